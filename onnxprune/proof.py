"""What is proved and measured of a run: the surgery check of every cut, the distance from the original, the metric at
each stage, the latency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from onnxprune.data import Labels, Samples, sample_count
from onnxprune.errors import GateError
from onnxprune.feeds import Binding, random_feeds
from onnxprune.graph import Graph
from onnxprune.manager import Recovery, State
from onnxprune.metrics import MetricLike, Yardstick
from onnxprune.plan import bind
from onnxprune.progress import Progress, silent
from onnxprune.report.report import Report
from onnxprune.sessions import CPU, Feeds, Settings, program
from onnxprune.validate import latency, numerics
from onnxprune.validate.profile import profile
from onnxprune.validate.surgery_check import TOLERANCE, SurgeryCheck, relative_error, surgery_check

CHECK_SAMPLES = 64  # of the user's data, for the surgery check
RANDOM_FEEDS = 2  # one of each kind
SLOWER, SLOWER_MS = 0.02, 0.05  # than the original, as a share and a run: what is refused
SETTLE_SECONDS, NARROW = (2.0, 8.0), 0.04  # for a ratio that is searched for; the width of its interval
FINAL = 100  # turn: what is reported is no measurement that a result was chosen by
AGAIN = 2.0  # times as long, before a result is refused


@dataclass(frozen=True)
class Original:
    """What is known of the original before anything is removed. `random`: inputs for the surgery check; `resized`: such
    inputs of other sizes, where the model takes them; `tests`: the data that results are measured on, if there is any.
    """

    random: list[Feeds]
    resized: list[Feeds]
    tests: Samples | None
    outputs: numerics.Original
    yardstick: Yardstick | None

    @property
    def measured_on(self) -> str:
        return "random inputs" if self.tests is None or self.tests.is_random else "data"

    def surgery_feeds(self) -> list[Feeds]:
        """The random inputs, and some of the data."""
        picked, count = [*self.random, *self.resized], 0
        for feeds in self.tests or ():
            picked.append(feeds)
            count += sample_count(feeds)
            if count >= CHECK_SAMPLES:
                break
        return picked


def look(
    graph: Graph,
    pair: tuple[Binding, Binding],
    tests: Samples | None,
    metric: MetricLike | None,
    seed: int,
    progress: Progress,
) -> Original:
    """Run the original on what it will be compared on, so that data and metrics that do not fit are told at once."""
    progress("running the original")
    first, second = pair
    random = [random_feeds(graph, first, seed + k) for k in range(RANDOM_FEEDS)]
    resized = [random_feeds(graph, second, seed)] if second.shapes != first.shapes else []
    on = "the random inputs" if tests is None else "the data"
    pairs = [(f, Labels()) for f in random] if tests is None else tests.labelled
    outputs = numerics.Original(partial(program, graph), pairs, on=on)
    if tests is None:
        outputs.watch(None, [])
    return Original(random, resized, tests, outputs, None if tests is None else Yardstick(outputs, metric))


def prove(report: Report, facts: Original, state: State, base: Graph | None, progress: Progress) -> None:
    """The surgery check of every cut, before anything is recovered, the first one against `base` with masks (the folded
    graph if None); GateError if one failed.
    """
    progress("surgery check")
    tried = facts.surgery_feeds()
    verdicts = []
    for k, cut in enumerate(state.cuts):
        made = _removed(state, k)
        found = surgery_check(cut.typed, bind(cut.plan, cut.typed), made, tried, base if k == 0 else None)
        verdicts.append(found)
    passed = SurgeryCheck(True, 0.0, TOLERANCE)  # of a pipeline that cuts nothing
    verdict = max(verdicts, key=lambda v: (not v.passed, v.max_rel_err), default=passed)
    report.surgery_check = verdict
    if not verdict.passed and verdict.max_rel_err <= verdict.tolerance:
        raise GateError(f"the surgery check says nothing about {verdict.detail}; nothing was saved", report)
    if not verdict.passed:
        raise GateError(
            f"the surgery check failed: error {verdict.max_rel_err:.2g} over {verdict.tolerance:.0e}"
            f" at {verdict.detail}; this is a bug of onnxprune, nothing was saved",
            report,
        )


def _removed(state: State, cut: int) -> Graph:
    """What a cut left: the graph before the first recovery after it, or the result."""
    found = next((r.before for r in state.recoveries if r.cuts == cut + 1), None)
    last = state.graph if cut == len(state.cuts) - 1 else state.cuts[cut].result
    return last if found is None else found


def measure(report: Report, facts: Original, state: State, lossless: bool, progress: Progress) -> None:
    """Compare with the original and read the metric at every stage; GateError if the pruned model does not run, or a
    lossless cut changed the outputs.
    """
    comparison, largest = numerics.Comparison(), _LargestError()
    told = _Told(progress, facts.outputs.count * _models(state))
    watchers: list[numerics.Watcher] = [comparison, largest, told]
    try:
        if facts.yardstick is None:
            facts.outputs.watch(numerics.runner(program(state.graph)), watchers)
        else:
            _read(report, facts.yardstick, state, watchers, told)
    except numerics.DoesNotRun as error:  # the original does
        raise GateError(f"{error}; this is a bug of onnxprune, nothing was saved", report) from error
    report.numerics, report.numerics_on = comparison.table(), facts.measured_on
    report.notes += [
        f"not compared with the original: {o.name!r}, no tensor or of another shape"
        for o in state.graph.outputs
        if o.name not in report.numerics
    ]
    limit = max(TOLERANCE, report.surgery_check.tolerance if report.surgery_check else 0.0)
    if lossless and largest.error > limit:
        raise GateError(
            f"lossless pruning changed the outputs by {largest.error:.2g} (limit {limit:.0e}): nothing was saved",
            report,
        )


@dataclass(frozen=True)
class Stopwatch:
    """Times models against the original, on one feed."""

    original: Graph
    feeds: Feeds
    settings: Settings = latency.ONE_THREAD
    seconds: float = 1.0
    seed: int = 0
    progress: Progress = silent

    def compare(self, model: Graph, turn: int = 0, seconds: float | None = None) -> latency.Comparison:
        """Both models, anew at each turn."""
        pair = [program(self.original), program(model)]
        return latency.compare(
            pair, self.feeds, self.settings, seconds or self.seconds, self.seed + turn, self.progress
        )

    def settled(self, model: Graph, turn: int = 0) -> latency.Comparison:
        """Both models, again and longer until the interval of the ratio is narrow."""
        seconds = max(self.seconds, SETTLE_SECONDS[0])
        while True:
            found = self.compare(model, turn, seconds)
            timing = found.timings[-1]
            narrow = timing.ci95[1] - timing.ci95[0] <= NARROW * timing.ratio
            if narrow or 2 * seconds > SETTLE_SECONDS[1]:
                return found
            seconds *= 2

    @cached_property
    def original_ms(self) -> float:
        """The original alone."""
        found = latency.compare([program(self.original)], self.feeds, self.settings, self.seconds, self.seed)
        return found.timings[0].median_ms


def time_both(report: Report, watch: Stopwatch, result: Graph, settled: bool, profiled: bool) -> None:
    """The latency of both models, and where it goes if that is asked for and can be told."""
    report.latency_ms = watch.settled(result, FINAL) if settled else watch.compare(result)
    if profiled and watch.settings.provider == CPU:
        pair = (watch.original, result)
        report.profile = profile(pair, watch.feeds, watch.settings, watch.seconds, watch.seed, watch.progress)


def refuse_slower(report: Report, watch: Stopwatch, result: Graph, refuse: bool) -> None:
    """GateError, or a note where it is not to be refused, if the result is slower than the original: by more than
    SLOWER of its time and SLOWER_MS a run, at the lower end of the 95 % interval, in two measurements of which the
    second takes longer.
    """
    for turn in (0, 1):
        found = watch.compare(result, turn, AGAIN * watch.seconds) if turn else report.latency_ms
        if found is None:
            return
        report.latency_ms, timing = found, found.timings[-1]
        if timing.ci95[0] <= 1 + SLOWER or (timing.ci95[0] - 1) * found.timings[0].median_ms <= SLOWER_MS:
            return
    ratio = f"{timing.ratio:.3g} of its time ({timing.ci95[0]:.3g} to {timing.ci95[1]:.3g})"
    text = (
        f"the result is slower than the original: it takes {ratio}; --round-to auto keeps to widths that are fast here"
    )
    if refuse:
        raise GateError(f"{text}, --allow-slower lets it pass; nothing was saved", report)
    report.notes.append(text)


def _models(state: State) -> int:
    """How many models `_read` runs."""
    return 1 if not state.recoveries else 2 + len(_steps(state))


def _steps(state: State) -> list[Recovery]:
    """The last recovery of every cut but the last."""
    last = {r.cuts: r for r in state.recoveries}
    return [last[k] for k in sorted(last) if k < len(state.cuts)]


def _read(
    report: Report, yardstick: Yardstick, state: State, watchers: Sequence[numerics.Watcher], told: numerics.Watcher
) -> None:
    """The metric of the original, after removal and after recovery, or after each step."""
    report.metrics.append(yardstick.read("original"))
    if not state.recoveries:
        report.metrics.append(yardstick.read("removed", program(state.graph), watchers, "the pruned model"))
        return
    for k, step in enumerate(_steps(state)):
        report.metrics.append(yardstick.read(f"step {k + 1}", program(step.after), [told]))
    report.metrics.append(yardstick.read("removed", program(_removed(state, len(state.cuts) - 1)), [told]))
    report.metrics.append(yardstick.read("recovered", program(state.graph), watchers, "the pruned model"))


class _Told:
    """A watcher: how many feeds it has seen, for who waits."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._seen, self._total = progress, 0, total
        self._tell()

    def add(self, want: numerics.Outputs, got: numerics.Outputs, labels: Labels) -> None:
        self._seen += 1
        self._tell()

    def _tell(self) -> None:
        self._progress("comparison with the original", self._seen, self._total)


class _LargestError:
    """A watcher: the largest relative error of any output on any feed."""

    error = 0.0

    def add(self, want: numerics.Outputs, got: numerics.Outputs, labels: Labels) -> None:
        for a, b in zip(want.values(), got.values(), strict=True):
            self.error = max(self.error, relative_error(a, b))
