"""How much the output suffers when one dim is cut to one width: the height of its error curve.

The model is run with the dim at that width, its readers refitted, the rest whole, and the error of the outputs
(`losses`) is what the curve is scaled to. The units are not cut for that: readers ignore them, which is a change of
weights only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxprune.algebra import level, spd_solve
from onnxprune.calibration import Calibration, Gram, units_along
from onnxprune.criteria.second_order import DAMPING, Curve
from onnxprune.dims import Dim, Mask, atoms
from onnxprune.graph import FLOATS, Graph
from onnxprune.guard import cuttable
from onnxprune.linear import Gates
from onnxprune.losses import output_error
from onnxprune.sessions import Feeds, program, session
from onnxprune.stages import Stages
from onnxprune.storage import tensor
from onnxprune.tokens import meant

Array = NDArray[Any]
PROBE_SAMPLES = 64
PROBE_PASSES, LEAST_SAMPLES = 1.5, 24  # what all probes together may take, in passes over the data
PROBE_ERROR = 0.05  # of the readers' output energy: a dim is probed at the width with about this error


@dataclass(frozen=True)
class Probe:
    """Where a curve was measured: `gone` units, the error of the dim's readers, and that of the outputs."""

    gone: int
    local: float
    output: float


def measure(
    calibration: Calibration,
    found: Mapping[Dim, Curve],
    samples: int = PROBE_SAMPLES,
    jobs: int = 1,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Dim, tuple[Curve, Probe]]:
    """Probe every dim on some samples, and scale its curve to what the outputs say; a dim that the data do not see is
    taken to lose what others do. `jobs` probes run at once, through joblib, so that its back ends (processes, Dask,
    Ray) can spread them; `tell` hears how many are done, or where several run at once handed out.
    """
    from joblib import Parallel, delayed  # which takes as long as onnx to import

    unseen = {d: c for d, c in found.items() if d in calibration.unseen}
    found = {d: c for d, c in found.items() if d not in unseen}
    graph = calibration.typed.graph
    held = [f for k, f in enumerate(calibration.feeds) if calibration.is_held(k)]
    affordable = PROBE_PASSES * calibration.samples / max(len(found), 1)
    wanted = int(np.clip(affordable, min(LEAST_SAMPLES, samples), samples))
    feeds = first(held or calibration.feeds, wanted, cuttable(graph, calibration.typed.facts))
    tokens = [calibration.tokens(f) for f in feeds]
    stages, want = Stages(graph, calibration.typed.facts, feeds), _outputs(graph, feeds, tokens)
    carried = carriers(calibration)
    starts = {d: _start(calibration, d, carried.get(d, [])) for d in found}
    made: dict[Dim, tuple[Curve, Probe]] = {}

    def probes(group: Sequence[Dim], grams: Mapping[int, Gram]) -> Iterator[Any]:
        for k, d in enumerate(group, len(made)):
            tell(k, len(found))
            changed = without(calibration, d, found[d], _place(found[d]), carried.get(d, []), grams)
            yield delayed(_probe)(*stages.rest(starts[d]), changed, want, tokens)

    for group in calibration.grouped(sorted(found, key=lambda d: starts[d])):
        grams = calibration.grams([c.linear for d in group for c in calibration.consumers.get(d, [])])
        errors = Parallel(n_jobs=jobs)(probes(group, grams))  # in a list, as not every back end has generators
        for d, error in zip(group, errors, strict=True):
            gone = _place(found[d])
            local = float(found[d].errors[gone])
            made[d] = Curve(found[d].order, found[d].errors * (error / max(local, 1e-12))), Probe(gone, local, error)
    tell(len(found), len(found))
    typical = [curve for curve, _ in made.values()]
    for d, c in unseen.items():
        curve, gone = _like(c, typical), _place(c)
        made[d] = curve, Probe(gone, float(c.errors[gone]), float(curve.errors[gone]))
    return made


def _like(curve: Curve, others: Sequence[Curve]) -> Curve:
    """A curve with the mean of the errors that others have at the same share of their units."""
    shares = np.linspace(0, 1, len(curve.order) + 1)
    errors = [np.interp(shares, np.linspace(0, 1, len(c.errors)), c.errors) for c in others]
    return Curve(curve.order, np.mean(errors, 0)) if errors else curve


def carriers(calibration: Calibration) -> dict[Dim, list[tuple[str, int, NDArray[np.int64]]]]:
    """The stored floats that carry each dim, with the axis and the unit of each of its indices."""
    graph, found = calibration.typed.graph, dict[Dim, list[tuple[str, int, NDArray[np.int64]]]]()
    for use in calibration.typed.uses:
        if use.tensor in graph.tensors and graph.constants[use.tensor].data_type in FLOATS:
            for axis, e in enumerate(use.axes):
                for d in dict.fromkeys(atoms(e)):
                    found.setdefault(d, []).append((use.tensor, axis, units_along(e, d)))
    return found


def _start(calibration: Calibration, d: Dim, carriers: Sequence[tuple[str, int, Any]]) -> int:
    """The first node that uses what is changed when units of a dim are ignored."""
    linears = [c.linear for c in calibration.consumers.get(d, [])]
    names = {n for n, *_ in carriers} | {n for x in linears for n in (x.weight, x.bias)}
    users = calibration.typed.graph.consumers
    return min((i for n in names for i, _ in users.get(n, [])), default=0)


def _place(curve: Curve) -> int:
    """How many units are gone where a dim is probed."""
    return int(np.clip(np.searchsorted(curve.errors, PROBE_ERROR), 1, len(curve.order) - 1))


def _probe(
    graph: Graph,
    feeds: Sequence[Feeds],
    changed: Mapping[str, TensorProto],
    want: Sequence[Mapping[str, Any]],
    tokens: Sequence[Mask | None],
) -> float:
    """Error of the outputs with some constants changed in the part of a graph that makes (some of) them; `tokens`:
    those of each feed that count.
    """
    got = _outputs(graph.replace(tensors={**graph.tensors, **changed}), feeds, tokens)
    return output_error(
        [list(w.values()) for w in want], [[g.get(n, a) for n, a in w.items()] for w, g in zip(want, got, strict=True)]
    )


def without(
    calibration: Calibration,
    d: Dim,
    curve: Curve,
    count: int,
    carriers: Sequence[tuple[str, int, NDArray[np.int64]]],
    grams: Mapping[int, Gram],
) -> dict[str, TensorProto]:
    """Constants of the graph in which nothing makes or reads the first units of a curve, and their readers are
    refitted.
    """
    gone = np.isin(np.arange(d.size), curve.order[:count])
    graph = calibration.typed.graph
    arrays: dict[str, Array] = {}
    for c in calibration.consumers.get(d, []):
        x, gram = c.linear, grams[c.linear.key]
        cov = (gram.folds[0] if gram.folds else gram).stored
        if isinstance(x, Gates) or x.weight not in graph.tensors:  # only loses its rows
            continue
        old = x.matrix(graph.array(x.weight)).astype(np.float32)
        new = refitted(cov, old, (c.rows >= 0) & gone[c.rows])
        arrays[x.weight] = x.unmatrix(new).copy()
        if x.bias in graph.tensors:
            change = np.einsum("gk,gko->go", gram.mean, old - new).reshape(-1) / x.beta
            arrays[x.bias] = arrays.get(x.bias, graph.array(x.bias)) + change
    for name, axis, units in carriers:
        array = arrays.setdefault(name, graph.array(name).copy())
        array[(slice(None),) * axis + (np.flatnonzero((units >= 0) & gone[units]),)] = 0
    return {n: tensor(n, a.astype(graph.array(n).dtype), graph.tensors[n]) for n, a in arrays.items()}


def refitted(covariance: Array, weights: Array, gone: NDArray[np.bool_], damping: float = DAMPING) -> Array:
    """Weights (G, K, O) whose rows `gone` (K,) are zero, the others fitted to make up for them; float32 will do."""
    made = weights.copy()
    made[:, gone] = 0
    if covariance.ndim == 2 or not gone.any():
        return made
    kept = np.flatnonzero(~gone)
    left = covariance[:, kept]
    own = left[:, :, kept]
    np.einsum("gkk->gk", own)[:] += damping * level(covariance)[:, None]
    made[:, kept] += spd_solve(own, left[:, :, gone] @ weights[:, gone])
    return made


def first(feeds: Iterable[Feeds], samples: int, cut: bool = False) -> list[Feeds]:
    """Feeds with about that many samples, or as many where feeds can be cut."""
    taken: list[Feeds] = []
    count = 0
    for feed in feeds:
        if count >= samples:
            break
        taken.append({n: a[: samples - count] for n, a in feed.items()} if cut else feed)
        count += max((a.shape[0] for a in feed.values() if a.ndim), default=1)
    return taken


def _outputs(graph: Graph, feeds: Sequence[Feeds], tokens: Sequence[Mask | None]) -> list[dict[str, Any]]:
    """The outputs for each feed, of the tokens that count."""
    job = session(program(graph))
    names, taken = [o.name for o in job.get_outputs()], {i.name for i in job.get_inputs()}
    made = (job.run(names, {n: a for n, a in f.items() if n in taken}) for f in feeds)
    return [
        {n: meant(a, mask) if isinstance(a, np.ndarray) else a for n, a in zip(names, values, strict=True)}
        for values, mask in zip(made, tokens, strict=True)
    ]
