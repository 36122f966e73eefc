"""How much the output suffers when one dim is cut: a curve per dim, from its width to an error.

The shape of a curve is that of optimal brain surgery (`criteria.second_order`): the error of every width at the
products that read the dim, after they are refitted. Its height is measured: the model is run with the dim at one width,
its readers refitted, the rest whole, and the error of the outputs (`losses`) is what the curve is scaled to. The
units are not cut for that: readers ignore them, which is a change of weights only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxprune.algebra import level, spd_solve
from onnxprune.calibration import Calibration, Consumer, Gram, units_along
from onnxprune.criteria import score
from onnxprune.criteria.second_order import DAMPING, Curve, Reader, meeting, reader, swap, sweep
from onnxprune.dims import Dim, Mask, atoms
from onnxprune.errors import InputError
from onnxprune.graph import FLOATS, Graph
from onnxprune.guard import cuttable
from onnxprune.inference import DimInfo
from onnxprune.linear import Gates
from onnxprune.losses import output_error
from onnxprune.rotation import Bases, packed, unpacked
from onnxprune.sessions import Feeds, program, session
from onnxprune.stages import Stages
from onnxprune.storage import tensor
from onnxprune.tokens import meant

Array = NDArray[Any]
VERSION = 2
SHARES = (0.9, 0.75, 0.5, 0.25)  # of the units, in tables of sensitivities and for metrics
PROBE_SAMPLES = 64
PROBE_PASSES, LEAST_SAMPLES = 1.5, 24  # what all probes together may take, in passes over the data
EXCHANGE_ROWS = 2048  # of a reader: above, a try costs more than it brings
HELD_OUT_WORK = 1 << 30  # K * K * O of a reader that is solved anew for feeds that it was not fitted to
WIDTHS = 6  # at which readers are judged on feeds that they were not fitted to, from both ends of a curve
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)
PROBE_ERROR = 0.05  # of the readers' output energy: a dim is probed at the width with about this error


@dataclass(frozen=True)
class Probe:
    """Where a curve was measured: `gone` units, the error of the dim's readers, and that of the outputs."""

    gone: int
    local: float
    output: float


@dataclass(frozen=True)
class MetricScan:
    """A metric (`scan`): its value for the whole model, on how many samples, and for each dim at some widths, as pairs
    of units kept and value.
    """

    name: str
    whole: float
    samples: int
    values: Mapping[str, Sequence[tuple[int, float]]]

    @staticmethod
    def of(data: Mapping[str, Any]) -> MetricScan:
        """As it was saved."""
        values = {n: tuple((int(k), float(v)) for k, v in rows) for n, rows in data["values"].items()}
        return MetricScan(str(data["name"]), float(data["whole"]), int(data["samples"]), values)


@dataclass(frozen=True)
class Sensitivity:
    """The curves of one model, by dim name, and where they were measured; saved for reuse as JSON. `model` is the
    fingerprint of the file's structure, `bases` are those in which the units are counted (`rotation`).
    """

    model: str
    samples: int
    curves: Mapping[str, Curve]
    probes: Mapping[str, Probe]
    kinds: Mapping[str, str]
    bases: Bases = field(default_factory=dict)
    metric: MetricScan | None = None

    def curves_for(self, model: str) -> Mapping[str, Curve]:
        """The curves; InputError if they are another model's."""
        if model != self.model:
            raise InputError(
                f"the sensitivities were measured on another model: structure {self.model}, this file has {model}"
            )
        return self.curves

    def to_json(self) -> str:
        """Text that `from_json` reads."""
        dims = {
            n: {
                "kind": self.kinds[n],
                "size": len(c.order),
                "order": c.order.tolist(),
                "errors": c.errors.tolist(),
                "probe": asdict(self.probes[n]),
            }
            for n, c in self.curves.items()
        }
        made = {"version": VERSION, "model": self.model, "samples": self.samples, "dims": dims}
        measured = {"metric": asdict(self.metric)} if self.metric else {}
        return json.dumps(made | {"bases": packed(self.bases)} | measured, indent=1)

    @staticmethod
    def from_json(text: str) -> Sensitivity:
        """Read saved curves; InputError if the text is none."""
        try:
            data = json.loads(text)
            if data["version"] != VERSION:
                raise InputError(f"the sensitivities have version {data['version']}, this onnxprune reads {VERSION}")
            rows = data["dims"].items()
            found = {n: Curve(np.array(r["order"], np.int64), np.array(r["errors"], float)) for n, r in rows}
            for name, c in found.items():
                if sorted(c.order) != list(range(len(c.order))) or len(c.errors) != len(c.order) + 1:
                    raise ValueError(f"the curve of {name!r} does not fit its size")
            probes = {
                n: Probe(int(p["gone"]), float(p["local"]), float(p["output"])) for n, r in rows for p in [r["probe"]]
            }
            kinds = {n: str(r["kind"]) for n, r in rows}
            bases = unpacked(data["bases"])
            scan = MetricScan.of(data["metric"]) if "metric" in data else None
            return Sensitivity(str(data["model"]), int(data["samples"]), found, probes, kinds, bases, scan)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"these are no sensitivities of onnxprune: {type(error).__name__}: {error}") from error


def analyse(
    calibration: Calibration,
    dims: Sequence[DimInfo],
    model: str,
    jobs: int = 1,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Sensitivity:
    """The measured curves of some dims."""
    found = measure(calibration, curves(calibration, [d.dim for d in dims]), jobs=jobs, tell=tell)
    return Sensitivity(
        model,
        calibration.samples,
        {d.name: found[d.dim][0] for d in dims},
        {d.name: found[d.dim][1] for d in dims},
        {d.name: d.kind for d in dims},
    )


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
            swept = sweep(_readers(calibration, d, grams, seconds), d.size)
            found[d] = _held_out(calibration, d, grams, swept)
    others = [i for i in calibration.whole.dims if i.dim in set(wanted) - set(found)]
    norms, _ = score(calibration.whole, others, "l2")
    return {d: found[d] if d in found else by_score(norms[d]) for d in wanted}


def exchange(calibration: Calibration, masks: Mapping[Dim, Mask]) -> dict[Dim, Mask]:
    """The keep-masks with units exchanged where that lowers the error of the dim's readers; as many stay. Those of
    readers with many rows are left as they are.
    """
    made = dict(masks)
    rows = {d: max(c.linear.size[1] for c in consumers) for d, consumers in calibration.consumers.items()}
    cut = [
        d for d, m in masks.items() if not m.all() and m.sum() > 1 and rows.get(d, EXCHANGE_ROWS + 1) <= EXCHANGE_ROWS
    ]
    for group in calibration.grouped(cut):
        grams = calibration.grams([c.linear for d in group for c in calibration.consumers[d]])
        seconds = calibration.seconds([m for d in group for m in calibration.meetings.get(d, [])])
        for d in group:
            made[d] = ~swap(_readers(calibration, d, grams, seconds), ~masks[d])
    return made


def _held_out(calibration: Calibration, d: Dim, grams: Mapping[int, Gram], swept: Curve) -> Curve:
    """A curve with the errors that its readers have on feeds that they were not refitted to. They are solved at some
    widths; in between, the ratio to the sweep's errors is interpolated. Meetings, readers that are not refitted and
    those that take too long to be solved so often keep the sweep's.
    """
    consumers = [c for c in calibration.consumers.get(d, []) if grams[c.linear.key].folds]
    small = all(math.prod(c.linear.size[1:]) * c.linear.size[1] <= HELD_OUT_WORK for c in consumers)
    if not consumers or not small or d in calibration.meetings:
        return swept
    widths = np.unique(np.geomspace(1, d.size, WIDTHS).round().astype(int))
    places = np.unique(np.concatenate([widths, d.size - widths]))[1:]  # units that are gone
    errors = np.zeros(len(places))
    for c in consumers:
        errors += _errors(calibration, c, grams[c.linear.key], swept.order, places)
    ratio = np.log(np.maximum(errors, 1e-12) / np.maximum(swept.errors[places], 1e-12))
    factor = np.exp(np.interp(np.arange(d.size + 1), places, ratio))
    return Curve(swept.order, np.maximum.accumulate(swept.errors * factor))


def _errors(
    calibration: Calibration, c: Consumer, gram: Gram, order: NDArray[np.int64], places: NDArray[np.int64]
) -> Array:
    """Held-out error of one reader, as a share of its output energy, with the first units of an order gone."""
    assert gram.folds is not None
    fit, held = gram.folds
    old = c.linear.matrix(calibration.typed.graph.array(c.linear.weight)).astype(np.float32)
    energy = max(_output(held.stored, old), 1e-30)
    away = held.mean - fit.mean

    def error(k: int, damping: float) -> float:
        gone = (c.rows >= 0) & np.isin(c.rows, order[:k])
        change = old - refitted(fit.stored, old, gone, damping)
        moved = float(np.square(np.einsum("gk,gko->go", away, change)).sum())
        return (_output(held.stored, change) + moved) / energy

    middle = int(places[len(places) // 2])
    damping = min(DAMPINGS, key=lambda p: error(middle, p))
    return np.array([error(int(k), damping) for k in places])


def _output(covariance: Array, matrix: Array) -> float:
    """Variance of x @ matrix, summed over outputs."""
    return float(np.einsum("gko,gko->", covariance @ matrix, matrix, dtype=np.float64))


def _readers(
    calibration: Calibration, d: Dim, grams: Mapping[int, Gram], seconds: Mapping[int, tuple[Array, Array]]
) -> list[Reader]:
    """What sums over the units of a dim."""
    readers = [_reader(calibration, c, grams) for c in calibration.consumers.get(d, [])]
    return readers + [meeting(*seconds[m.index], m.units) for m in calibration.meetings.get(d, [])]


def _reader(calibration: Calibration, c: Consumer, grams: Mapping[int, Gram]) -> Reader:
    weight = calibration.typed.graph.array(c.linear.weight)
    return reader(grams[c.linear.key].covariance, c.linear.matrix(weight), c.rows)


def by_score(scores: NDArray[np.float64]) -> Curve:
    """A curve from scores alone: the share of the squared scores that is gone."""
    order = np.argsort(scores, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(np.square(scores[order]))])
    return Curve(order, total / max(total[-1], 1e-300))


def measure(
    calibration: Calibration,
    found: Mapping[Dim, Curve],
    samples: int = PROBE_SAMPLES,
    jobs: int = 1,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Dim, tuple[Curve, Probe]]:
    """Probe every dim on some samples, and scale its curve to what the outputs say; a dim that the data do not see is
    taken to lose what others do. `jobs` probes run at once, through joblib, so that its back ends (processes, Dask,
    Ray) can spread them; `tell` hears how many are done.
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
    for group in calibration.grouped(sorted(found, key=lambda d: starts[d])):
        grams = calibration.grams([c.linear for d in group for c in calibration.consumers.get(d, [])])
        places = [_place(found[d]) for d in group]
        tasks = (
            delayed(_probe)(
                *stages.rest(starts[d]), without(calibration, d, found[d], k, carried.get(d, []), grams), want, tokens
            )
            for d, k in zip(group, places, strict=True)
        )
        for d, gone, error in zip(group, places, Parallel(n_jobs=jobs, return_as="generator")(tasks), strict=True):
            local = float(found[d].errors[gone])
            made[d] = Curve(found[d].order, found[d].errors * (error / max(local, 1e-12))), Probe(gone, local, error)
            tell(len(made), len(found))
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
