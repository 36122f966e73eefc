"""What is proved and measured of a run: the surgery check of every cut, the distance from the original, the metric at
each stage. The latency is `stopwatch`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from onnxprune.data import Labels, Samples, sample_count
from onnxprune.errors import GateError
from onnxprune.feeds import Binding, other_branches, random_feeds
from onnxprune.graph import Graph
from onnxprune.layers import without
from onnxprune.manager import Recovery, State, Turn
from onnxprune.metrics import MetricLike, Yardstick
from onnxprune.plan import bind
from onnxprune.progress import Progress
from onnxprune.report.report import Report
from onnxprune.sessions import Feeds, program, session
from onnxprune.validate import numerics
from onnxprune.validate.closeness import TOLERANCE, relative_error
from onnxprune.validate.surgery_check import SurgeryCheck, surgery_check

CHECK_SAMPLES = 64  # of the user's data, for the surgery check
RANDOM_SIZES = (1.0, 1.0, 0.05)  # of a random feed of each kind, and a faint one: biases and tails of activations show


@dataclass(frozen=True)
class Original:
    """What is known of the original before anything is removed. `random`: inputs for the surgery check; `others`: such
    inputs of other sizes, and for other branches, where the model takes them; `tests`: the data that results are
    measured on, if there is any.
    """

    graph: Graph
    random: list[Feeds]
    others: list[Feeds]
    tests: Samples | None
    outputs: numerics.Original
    yardstick: Yardstick | None

    @property
    def measured_on(self) -> str:
        return "random inputs" if self.tests is None or self.tests.is_random else "data"

    def surgery_feeds(self) -> list[Feeds]:
        """The random inputs, and some of the data."""
        picked, count = [*self.random, *self.others], 0
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
    random = [random_feeds(graph, first, seed + k, size) for k, size in enumerate(RANDOM_SIZES)]
    others = [random_feeds(graph, second, seed)] if second.shapes != first.shapes else []
    others += _for_other_branches(graph, random[0])
    on = "the random inputs" if tests is None else "the data"
    pairs = [(f, Labels()) for f in random] if tests is None else tests.labelled
    outputs = numerics.Original(partial(program, graph), pairs, on=on)
    if tests is None:
        outputs.watch(None, [])
    return Original(graph, random, others, tests, outputs, None if tests is None else Yardstick(outputs, metric))


def _for_other_branches(graph: Graph, feeds: Feeds) -> list[Feeds]:
    """Inputs that take branches which `feeds` do not, if there are any and the model runs with them."""
    changed = other_branches(graph, feeds)
    if all(changed[n] is feeds[n] for n in feeds):
        return []
    try:
        session(program(graph)).run(None, changed)
    except Exception:  # no other number is allowed there
        return []
    return [changed]


def prove(report: Report, facts: Original, state: State, base: Graph | None, progress: Progress) -> None:
    """The surgery check of every cut, before anything is recovered; GateError if one failed. Up to the first cut of
    widths it is against `base` with layers switched off and masks (the folded graph if None).
    """
    progress("surgery check")
    tried = facts.surgery_feeds()
    verdicts = []
    for k, cut in enumerate(state.cuts):
        made, reference = _removed(state, k), _reference(state, k, base)
        found = surgery_check(cut.typed, bind(cut.plan, cut.typed), made, tried, reference)
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


def prove_turn(report: Report, facts: Original, turn: Turn, original: Graph, progress: Progress) -> None:
    """The model in other bases, with nothing removed, against the file as it was read; GateError if they differ."""
    progress("rotation check")
    verdict = surgery_check(turn.typed, {}, turn.result, facts.surgery_feeds(), original)
    report.rotation_check = verdict
    if not verdict.passed:
        raise GateError(
            f"the rotation check failed: error {verdict.max_rel_err:.2g} over {verdict.tolerance:.0e}"
            f" at {verdict.detail}; this is a bug of onnxprune, nothing was saved",
            report,
        )


def _reference(state: State, cut: int, base: Graph | None) -> Graph | None:
    """What a cut is compared with, without masks yet: `base` with all layers off that went by then, or the graph that
    the first cut started from. None for the graph that this cut started from: where another one changed weights or
    widths before.
    """
    before, first = state.cuts[:cut], state.cuts[0].typed
    if any(c.plan.keep for c in before) or any(r.mended and r.cuts <= cut for r in state.recoveries):
        before, first, base = [], state.cuts[cut].typed, None
    layers = [x for c in (*before, state.cuts[cut]) for x in c.dropped.layers]
    if not layers:
        return base
    off = without(base, layers, first.facts.dtypes) if base is not None else None
    return off or without(first.graph, layers, first.facts.dtypes)


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
    if lossless and largest.error > limit and not _equals_original(facts, state):
        raise GateError(
            f"lossless pruning changed the outputs by {largest.error:.2g} (limit {limit:.0e}): nothing was saved",
            report,
        )


def _equals_original(facts: Original, state: State) -> bool:
    """Whether the result equals the original without any mask, by the surgery check's measure: ties aside."""
    if len(state.cuts) != 1:
        return False
    return surgery_check(state.cuts[0].typed, {}, state.graph, facts.surgery_feeds(), facts.graph).passed


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
