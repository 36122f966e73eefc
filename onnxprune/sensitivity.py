"""How much the output suffers when one dim is cut: a curve per dim, from its width to an error.

The shape of a curve is that of optimal brain surgery (`criteria.second_order`): the error of every width at the
products that read the dim, after they are refitted. Its height is measured (`probes`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration import Calibration, Consumer, Gram
from onnxprune.criteria import score
from onnxprune.criteria.second_order import Curve, Reader, meeting, reader, swap, sweep
from onnxprune.dims import Dim, Mask
from onnxprune.errors import InputError
from onnxprune.inference import DimInfo
from onnxprune.probes import Probe, measure, refitted
from onnxprune.rotation import Bases, packed, unpacked

Array = NDArray[Any]
VERSION = 2
SHARES = (0.9, 0.75, 0.5, 0.25)  # of the units, in tables of sensitivities and for metrics
EXCHANGE_ROWS = 2048  # of a reader: above, a try costs more than it brings
HELD_OUT_WORK = 1 << 30  # K * K * O of a reader that is solved anew for feeds that it was not fitted to
WIDTHS = 6  # at which readers are judged on feeds that they were not fitted to, from both ends of a curve
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)


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
