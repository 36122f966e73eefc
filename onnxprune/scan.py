"""How a metric falls as one dim is cut: its value at some widths of each dim, everything else whole.

As where curves are probed (`probes`), readers ignore the units that go and are refitted, on feeds that were not
held out; the metric is measured on those that were, so there should be many samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from onnxprune.calibration import Calibration
from onnxprune.data import Labels
from onnxprune.metrics import MetricLike, Yardstick
from onnxprune.probes import carriers, without
from onnxprune.progress import Progress
from onnxprune.sensitivity import SHARES, MetricScan, Sensitivity
from onnxprune.sessions import Feeds, program
from onnxprune.validate.numerics import Original


def yardstick_of(calibration: Calibration, labelled: Iterable[tuple[Feeds, Labels]], metric: MetricLike) -> Yardstick:
    """The metric of the whole model, on the feeds that were held out; `labelled` are the feeds of the calibration.
    InputError if it cannot be measured.
    """
    held = [p for k, p in enumerate(labelled) if calibration.is_held(k)] or list(labelled)
    return Yardstick(Original(partial(program, calibration.typed.graph), held), metric)


def scan(
    calibration: Calibration, found: Sensitivity, yardstick: Yardstick, jobs: int, progress: Progress
) -> MetricScan:
    """The metric with `SHARES` of the units of each dim kept, of those that are worth the most; `jobs` widths are
    measured at once, in threads.
    """
    from joblib import Parallel, delayed  # which takes as long as onnx to import

    graph = calibration.typed.graph
    by_name = {d.name: d.dim for d in calibration.typed.dims if d.name in found.curves}
    names, carried = {d: n for n, d in by_name.items()}, carriers(calibration)
    values: dict[str, tuple[tuple[int, float], ...]] = {}

    def value(changed: object) -> float:
        tensors = {**graph.tensors, **changed}  # type: ignore[dict-item]
        return yardstick.read("tried", program(graph.replace(tensors=tensors))).value

    for group in calibration.grouped(list(by_name.values())):
        grams = calibration.grams([c.linear for d in group for c in calibration.consumers.get(d, [])])
        for d in group:
            progress("the metric at widths of dims", len(values), len(by_name))
            curve = found.curves[names[d]]
            kept = sorted({max(1, round(s * d.size)) for s in SHARES}, reverse=True)
            tasks = (
                delayed(value)(without(calibration, d, curve, d.size - k, carried.get(d, []), grams)) for k in kept
            )
            made = Parallel(n_jobs=jobs, prefer="threads")(tasks)
            values[names[d]] = tuple(zip(kept, made, strict=True))
    ordered = {n: values[n] for n in found.curves}
    return MetricScan(yardstick.metric.name, yardstick.before, yardstick.original.samples, ordered)
