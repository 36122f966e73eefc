"""How much the output suffers when one dim is cut: a curve per dim, from its width to an error.

The shape of a curve is that of optimal brain surgery (`criteria.second_order`): the error of every width at the
products that read the dim, after they are refitted. Its height is measured: the model is run with the dim at one width,
its readers refitted, the rest whole, and the relative squared error of the outputs is what the curve is scaled to. The
units are not cut for that: readers ignore them, which is a change of weights only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration import Calibration, Consumer, Gram, units_along
from onnxprune.criteria.magnitude import l2
from onnxprune.criteria.second_order import DAMPING, Curve, Reader, meeting, reader, sweep
from onnxprune.dims import Dim, atoms
from onnxprune.graph import FLOATS, Graph
from onnxprune.linear import Gates
from onnxprune.sessions import Feeds, program, session
from onnxprune.storage import tensor

Array = NDArray[Any]
PROBE_SAMPLES = 64
PROBE_ERROR = 0.05  # of the readers' output energy: a dim is probed at the width with about this error


@dataclass(frozen=True)
class Probe:
    """Where a curve was measured: `gone` units, the error of the dim's readers, and that of the outputs."""

    gone: int
    local: float
    output: float


def curves(calibration: Calibration, dims: Iterable[Dim]) -> dict[Dim, Curve]:
    """Order of removal and error of every width, for each dim. Dims that no product sums over are ordered by weight
    norm, and lose that share of its square.
    """
    wanted = list(dims)
    read = [d for d in wanted if d in calibration.consumers or d in calibration.meetings]
    found: dict[Dim, Curve] = {}
    for group in calibration.grouped(read):
        grams = calibration.grams([c.linear for d in group for c in calibration.consumers.get(d, [])])
        seconds = calibration.seconds([m for d in group for m in calibration.meetings.get(d, [])])
        for d in group:
            readers = [_reader(calibration, c, grams) for c in calibration.consumers.get(d, [])]
            readers += [meeting(*seconds[m.index], m.units) for m in calibration.meetings.get(d, [])]
            found[d] = sweep(readers, d.size)
    norms = l2(calibration.typed, [d for d in wanted if d not in found])
    return {d: found[d] if d in found else by_score(norms[d]) for d in wanted}


def _reader(calibration: Calibration, c: Consumer, grams: Mapping[int, Gram]) -> Reader:
    weight = calibration.typed.graph.array(c.linear.weight)
    return reader(grams[c.linear.key].covariance, c.linear.matrix(weight), c.rows)


def by_score(scores: NDArray[np.float64]) -> Curve:
    """A curve from scores alone: the share of the squared scores that is gone."""
    order = np.argsort(scores, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(np.square(scores[order]))])
    return Curve(order, total / max(total[-1], 1e-300))


def measure(
    calibration: Calibration, found: Mapping[Dim, Curve], samples: int = PROBE_SAMPLES
) -> dict[Dim, tuple[Curve, Probe]]:
    """Probe every dim on some samples, and scale its curve to what the outputs say."""
    graph = calibration.typed.graph
    feeds = _first(calibration.feeds, samples)
    want = _outputs(graph, feeds)
    made: dict[Dim, tuple[Curve, Probe]] = {}
    for group in calibration.grouped(found):
        grams = calibration.grams([c.linear for d in group for c in calibration.consumers.get(d, [])])
        for d in group:
            curve = found[d]
            gone = int(np.clip(np.searchsorted(curve.errors, PROBE_ERROR), 1, d.size - 1))
            units = np.isin(np.arange(d.size), curve.order[:gone])
            error = _relative(want, _outputs(_without(calibration, d, units, grams), feeds))
            local = float(curve.errors[gone])
            made[d] = Curve(curve.order, curve.errors * (error / max(local, 1e-12))), Probe(gone, local, error)
    return {d: made[d] for d in found}


def _without(calibration: Calibration, d: Dim, gone: NDArray[np.bool_], grams: Mapping[int, Gram]) -> Graph:
    """The graph with every weight of some units zero, and their readers refitted."""
    graph = calibration.typed.graph
    arrays: dict[str, Array] = {}
    for use in calibration.typed.uses:
        for axis, e in enumerate(use.axes):
            units = units_along(e, d) if d in set(atoms(e)) else np.empty(0, np.int64)
            if units.size and graph.constants[use.tensor].data_type in FLOATS and use.tensor in graph.tensors:
                array = arrays.setdefault(use.tensor, graph.array(use.tensor).copy())
                index = np.flatnonzero((units >= 0) & gone[units])
                array[(slice(None),) * axis + (index,)] = 0
    biases: dict[str, Array] = {}
    for c in calibration.consumers.get(d, []):
        x, gram = c.linear, grams[c.linear.key]
        if isinstance(x, Gates):  # its weights stay as they are but for the rows that are zero
            continue
        old = x.matrix(graph.array(x.weight)).astype(np.float64)
        rows = (c.rows >= 0) & gone[c.rows]
        new = refitted(gram.covariance, old, rows)
        if x.weight in graph.tensors:
            arrays[x.weight] = x.unmatrix(new).astype(arrays.get(x.weight, old).dtype)
        if x.bias in graph.tensors and x.bias:
            change = np.einsum("gk,gko->go", gram.mean, old - new).reshape(-1) / x.beta
            biases[x.bias] = (biases.get(x.bias, graph.array(x.bias)) + change).astype(graph.array(x.bias).dtype)
    tensors = {n: tensor(n, a.astype(graph.array(n).dtype), graph.tensors[n]) for n, a in {**arrays, **biases}.items()}
    return graph.replace(tensors={**graph.tensors, **tensors})


def refitted(covariance: Array, weights: Array, gone: NDArray[np.bool_]) -> Array:
    """Weights (G, K, O) whose rows `gone` (K,) are zero, the others fitted to make up for them."""
    made = weights.copy()
    made[:, gone] = 0
    if covariance.ndim == 2 or not gone.any():
        return made
    level = np.maximum(np.trace(covariance, axis1=1, axis2=2) / covariance.shape[1], 1e-12)
    damped = covariance + DAMPING * level[:, None, None] * np.eye(covariance.shape[1])
    kept = ~gone
    made[:, kept] += np.linalg.solve(damped[:, kept][:, :, kept], damped[:, kept][:, :, gone] @ weights[:, gone])
    return made


def _first(feeds: Iterable[Feeds], samples: int) -> list[Feeds]:
    """Feeds with about that many samples."""
    taken: list[Feeds] = []
    count = 0
    for feed in feeds:
        if count >= samples:
            break
        taken.append(feed)
        count += max((a.shape[0] for a in feed.values() if a.ndim), default=1)
    return taken


def _outputs(graph: Graph, feeds: Sequence[Feeds]) -> list[list[Any]]:
    made = session(program(graph))
    return [list(made.run(None, f)) for f in feeds]


def _relative(want: Sequence[Sequence[Any]], got: Sequence[Sequence[Any]]) -> float:
    """Squared error over the squared deviation of the outputs from their mean, summed over float outputs."""
    errors = []
    for left, right in zip(zip(*want, strict=True), zip(*got, strict=True), strict=True):
        if not isinstance(left[0], np.ndarray) or left[0].dtype.kind != "f":
            continue
        a = np.concatenate([x.reshape(x.shape[0], -1) for x in left]).astype(np.float64)
        b = np.concatenate([x.reshape(x.shape[0], -1) for x in right]).astype(np.float64)
        errors.append(float(np.square(a - b).sum() / max(np.square(a - a.mean(0)).sum(), 1e-30)))
    return float(np.mean(errors)) if errors else 0.0
