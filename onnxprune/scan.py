"""How a metric falls as one dim is cut: its value at some widths of each dim, everything else whole.

As where curves are probed (`sensitivity`), readers ignore the units that go and are refitted, on feeds that were not
held out; the metric is measured on those that were, so there should be many samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from onnxprune.calibration import Calibration
from onnxprune.data import Labels
from onnxprune.metrics import MetricLike, Yardstick
from onnxprune.progress import Progress
from onnxprune.sensitivity import SHARES, MetricScan, Sensitivity, carriers, without
from onnxprune.sessions import Feeds, program
from onnxprune.validate.numerics import Original


def scan(
    calibration: Calibration,
    found: Sensitivity,
    labelled: Iterable[tuple[Feeds, Labels]],
    metric: MetricLike,
    jobs: int,
    progress: Progress,
) -> MetricScan:
    """The metric with `SHARES` of the units of each dim kept, of those that are worth the most. `labelled` are the
    feeds of the calibration; `jobs` widths are measured at once, in threads.
    """
    from joblib import Parallel, delayed  # which takes as long as onnx to import

    graph = calibration.typed.graph
    pairs = list(labelled)
    held = [p for k, p in enumerate(pairs) if calibration.is_held(k)] or pairs
    original = Original(partial(program, graph), held)
    yardstick = Yardstick(original, metric)
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
    return MetricScan(yardstick.metric.name, yardstick.before, original.samples, ordered)
