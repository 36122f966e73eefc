"""The whole flow on one screen: load, run the passes, check, measure, report. The command line is a thin layer over
these functions.

Nothing is printed, nothing given is changed, nothing is shared between calls: safe from several threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from typing import Any

from onnx import ModelProto

from onnxprune import cost
from onnxprune.data import SAMPLES, DataLike, Labels, Samples, sample_count
from onnxprune.dims import Dim
from onnxprune.errors import GateError, InputError
from onnxprune.feeds import Binding, batch_size, foreign_operators, random_feeds, running_shapes
from onnxprune.graph import Graph, from_proto
from onnxprune.inference import TypedGraph
from onnxprune.manager import Cut, Pass, PassManager, PassResult, State, parse
from onnxprune.metrics import MetricLike, Reading, Yardstick
from onnxprune.passes import DEFAULT, LOSSLESS, PASSES, AbsorbConstants
from onnxprune.passes.prune import Prune
from onnxprune.plan import Budget, Plan, bind
from onnxprune.reading import ModelLike, blaming, load
from onnxprune.report.report import BeforeAfter, Report, cut_rows, dim_counts, frozen_rows
from onnxprune.sessions import Feeds, program
from onnxprune.validate import latency, numerics
from onnxprune.validate.surgery_check import TOLERANCE, SurgeryCheck, relative_error, surgery_check

CHECK_SAMPLES = 64  # of the user's data, for the surgery check
RANDOM_FEEDS = 2  # one of each kind
NO_DATA = "a metric needs data to be measured on: give --data"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class PruneResult:
    """The pruned model, the plan that was carried out and the report. `graph.save` writes a model without having all of
    it in memory.
    """

    graph: Graph
    plan: Plan
    report: Report

    @cached_property
    def model(self) -> ModelProto:
        """The pruned model, with all its data; made when it is asked for."""
        made = self.graph.to_proto()
        object.__setattr__(self, "graph", from_proto(made, files=self.graph.files))  # lets go of what it was made from
        return made


def prune(
    model: ModelLike,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    lossless: bool = False,
    scope: str = "global",
    criterion: str = "l2",
    round_to: int = 1,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    data: DataLike | None = None,
    test_data: DataLike | None = None,
    samples: int = SAMPLES,
    metric: MetricLike | None = None,
    seed: int = 0,
    check: bool = True,
    passes: str | None = None,
) -> PruneResult:
    """Remove units from a model and prove the result.

    Args:
        model: a path, bytes, ModelProto or graphsurgeon graph; it is not changed.
        ratio: fraction of units to remove, in (0, 1), of every dim or of all units together (`scope`).
        macs, params: keep at most this fraction of the multiply-accumulates or parameters.
        lossless: remove exactly what cannot matter. Exactly one of ratio, macs, params, lossless must be given.
        scope: "local": cut every dim alike; "global": rank the units of all dims together.
        criterion: "l1" or "l2" norm of the weights that carry a unit.
        round_to: keep a multiple of this many units in every dim.
        include, exclude: patterns over dims: `kind:heads`, or names of dims, nodes and tensors with wildcards.
        data: real inputs: an .npz or .npy file, a folder of them, an `ImageFolder`, a dict of arrays, an iterable of
            such dicts, or "random". Arrays that are no input are labels.
        test_data: other data for the checks and the metric, used in full; default: what is taken of `data`.
        samples: how many samples of `data` are used, spread evenly over it; 64 to 1,024 are useful.
        metric: what is measured before and after: a name (`onnxprune.metrics.METRICS`), `module:function`, or a
            function (see `onnxprune.metrics`). Default: top1 where that is possible, else the relative L2 error.
        seed: of the random inputs.
        check: run the surgery check, compare with the original, and measure latency.
        passes: pipeline text instead of the default one.

    Raises:
        InputError: the model, an option, the data or the metric cannot be used.
        GateError: the surgery check failed; the result must not be used.
    """
    budget = choose_budget(
        passes, ratio=ratio, macs=macs, params=params, lossless=lossless, scope=scope, criterion=criterion,
        round_to=round_to, include=_patterns(include), exclude=_patterns(exclude),
    )  # fmt: skip
    return run(
        load(model), budget=budget, data=data, test_data=test_data, samples=samples, metric=metric, seed=seed,
        check=check, passes=passes,
    )  # fmt: skip


def apply(
    model: ModelLike,
    plan: Plan,
    *,
    data: DataLike | None = None,
    test_data: DataLike | None = None,
    samples: int = SAMPLES,
    metric: MetricLike | None = None,
    seed: int = 0,
    check: bool = True,
) -> PruneResult:
    """Carry out a saved plan on the model that it was made for. Options and errors are those of `prune`."""
    return run(
        load(model), plan=plan, data=data, test_data=test_data, samples=samples, metric=metric, seed=seed, check=check
    )


def choose_budget(passes: str | None, **options: Any) -> Budget | None:
    """The budget that `options` (fields of Budget) state; None where the pipeline text leaves none open."""
    if passes is None or any(step == Prune() for step in parse(passes, PASSES)):
        return Budget(**options)
    given = [f.name for f in fields(Budget) if options.get(f.name, f.default) != f.default]
    if given:
        raise InputError(
            f"{', '.join(given)} given, but the pipeline {passes!r} has no `prune` that is left open for it"
        )
    return None


def _patterns(given: Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def run(
    graph: Graph,
    *,
    budget: Budget | None = None,
    plan: Plan | None = None,
    data: DataLike | None = None,
    test_data: DataLike | None = None,
    samples: int = SAMPLES,
    metric: MetricLike | None = None,
    seed: int = 0,
    check: bool = True,
    passes: str | None = None,
    dry_run: bool = False,
    verify_each: bool = False,
    bench_seconds: float = 1.0,
    progress: Progress = lambda text: None,
) -> PruneResult:
    """The flow behind `prune` and `apply`, with the command line's further options."""
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed must be a whole number of at least 0, got {seed!r}")
    given, tests = _samples(graph, data, test_data, samples, seed)
    if metric is not None and tests is None:
        raise InputError(NO_DATA)
    foreign = foreign_operators(graph)
    check = check and not foreign
    default = LOSSLESS if budget is not None and budget.lossless else DEFAULT
    steps = parse(default if passes is None else passes, PASSES)
    with blaming(graph):
        state = State(graph, _shapes(graph, given or tests, check, seed), budget, plan, graph.fingerprint(), dry_run)
        binding = state.facts.binding
        facts = _look(graph, binding, tests, metric, seed, progress) if check and not dry_run else None
        results = PassManager(steps, verify_each).run(state, progress)
        typed = state.cuts[0].typed if state.cuts else state.typed
        done = state.cuts[-1].plan if state.cuts else Plan({}, state.model)
        pruned = state.graph
        batch = batch_size(graph, binding)
        report = _describe(graph, state, typed, results, batch)
        report.macs_shapes = {n: [s[0] // batch, *s[1:]] if s else [] for n, s in binding.shapes.items()}
        report.options = asdict(budget) if budget else {}
        report.notes += _notes(foreign, given, tests)
        if facts:
            base = (
                None if any(isinstance(s, AbsorbConstants) for s in steps) else graph
            )  # else its biases are other ones
            _prove(report, facts, state.cuts, pruned, base, progress)
            _measure(report, facts, pruned, _is_lossless(steps, budget), progress)
            progress("latency")
            feeds = next(iter(tests), {}) if tests else facts.random[0]
            report.latency_ms = latency.bench(program(graph), program(pruned), feeds, bench_seconds, seed=seed)
    return PruneResult(pruned, done, report)


def _samples(
    graph: Graph, data: DataLike | None, test_data: DataLike | None, samples: int, seed: int
) -> tuple[Samples | None, Samples | None]:
    """Samples of the data, and those that checks and metrics are made on: all of `test_data`, else the same."""
    given = None if data is None else Samples(graph, data, samples, seed)
    return given, given if test_data is None else Samples(graph, test_data, None, seed)


def _shapes(graph: Graph, samples: Samples | None, check: bool, seed: int) -> dict[str, tuple[int, ...]]:
    """Input shapes to start from: those of the data, else some that run."""
    if samples is not None:
        return {n: a.shape for n, a in next(iter(samples)).items()}
    return running_shapes(graph, seed) if check else {}


def _notes(foreign: Sequence[str], *data: Samples | None) -> list[str]:
    notes = []
    if foreign:
        notes.append(f"not checked and not measured: ONNX Runtime has no kernels for {', '.join(foreign)}")
    if any(d is not None and d.is_random for d in data):
        notes.append("the data is random, a poor choice: what matters on real inputs may not show on it; give samples")
    return notes


@dataclass(frozen=True)
class _Facts:
    """What is known of the original before anything is removed. `random`: inputs for the surgery check; `tests`: the
    data that results are measured on, if there is any.
    """

    random: list[Feeds]
    tests: Samples | None
    original: numerics.Original
    yardstick: Yardstick | None

    @property
    def measured_on(self) -> str:
        return "random inputs" if self.tests is None or self.tests.is_random else "data"

    def surgery_feeds(self) -> list[Feeds]:
        """The random inputs, and some of the data."""
        picked, count = list(self.random), 0
        for feeds in self.tests or ():
            picked.append(feeds)
            count += sample_count(feeds)
            if count >= CHECK_SAMPLES:
                break
        return picked


def _look(
    graph: Graph, binding: Binding, tests: Samples | None, metric: MetricLike | None, seed: int, progress: Progress
) -> _Facts:
    """Run the original on what it will be compared on, so that data and metrics that do not fit are told at once."""
    progress("running the original")
    random = [random_feeds(graph, binding, seed + k) for k in range(RANDOM_FEEDS)]
    on = "the random inputs" if tests is None else "the data"
    pairs = [(f, Labels()) for f in random] if tests is None else tests.labelled
    original = numerics.Original(partial(program, graph), pairs, on=on)
    if tests is None:
        original.watch(None, [])
    return _Facts(random, tests, original, None if tests is None else Yardstick(original, metric))


def inputs(graph: Graph, data: DataLike | None, samples: int | None, seed: int) -> Iterable[tuple[Feeds, Labels]]:
    """Labelled feeds from the data, else one at random that the model runs with."""
    if data is None:
        return [(random_feeds(graph, Binding(running_shapes(graph, seed)), seed), {})]
    return Samples(graph, data, samples, seed).labelled


def compare(
    original: Graph,
    pruned: Graph,
    *,
    data: DataLike | None = None,
    samples: int | None = None,
    metric: MetricLike | None = None,
    seed: int = 0,
    titles: tuple[str, str] = ("the original", "the pruned model"),
) -> tuple[dict[str, dict[str, float | None]], list[Reading]]:
    """Errors per output on the data (all of it, or `samples`) or on random inputs, and what the metric says of both."""
    if metric is not None and data is None:
        raise InputError(NO_DATA)
    on = "these inputs or data"
    feeds = inputs(original, data, samples, seed)
    reference = numerics.Original(partial(program, original), feeds, titles[0], on)
    comparison, readings = numerics.Comparison(), []
    if data is None:
        reference.watch(numerics.runner(program(pruned), titles[1], on), [comparison])
    else:
        yardstick = Yardstick(reference, metric)
        readings = [yardstick.read("original"), yardstick.read("pruned", program(pruned), [comparison], titles[1])]
    table = comparison.table()
    if not table:
        raise InputError(f"{titles[0]} and {titles[1]} have no output of equal shape to compare")
    return table, readings


def _describe(graph: Graph, state: State, typed: TypedGraph, results: list[PassResult], batch: int) -> Report:
    plans = [c.plan for c in state.cuts]
    macs = cost.macs(typed)
    last = state.cuts[-1].typed if state.cuts else typed
    left = {d: int(m.sum()) for d, m in _masks(state.cuts[-1:]).items()}
    report = Report(
        params=BeforeAfter(graph.params(), state.graph.params()),
        macs=BeforeAfter(macs.at({}) // batch, (macs if last is typed else cost.macs(last)).at(left) // batch),
        bytes=BeforeAfter(graph.size_bytes(), state.graph.size_bytes()),
        dims=dim_counts(typed, plans),
        passes=results,
        cuts=[row for plan in plans for row in cut_rows(plan)],
        frozen=frozen_rows(typed),
        refused=[r for plan in plans for r in plan.refused],
    )
    if not report.cuts:
        report.notes.append("nothing was removed")
    return report


def _masks(cuts: Sequence[Cut]) -> dict[Dim, Any]:
    return {d: m for cut in cuts for d, m in bind(cut.plan, cut.typed).items()}


def _is_lossless(steps: Sequence[Pass], budget: Budget | None) -> bool:
    """Whether every cut of a pipeline is a lossless one."""
    prunes = [s for s in steps if isinstance(s, Prune)]
    from_call = budget is not None and budget.lossless
    return bool(prunes) and all(s.lossless or (s == Prune() and from_call) for s in prunes)


def _prove(
    report: Report, facts: _Facts, cuts: Sequence[Cut], pruned: Graph, base: Graph | None, progress: Progress
) -> None:
    """The surgery check, against `base` with masks (the folded graph if None); GateError if it failed."""
    progress("surgery check")
    tried = facts.surgery_feeds()
    verdicts = []
    for k, cut in enumerate(cuts):
        last = k == len(cuts) - 1
        made = pruned if last else cut.result
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


def _measure(report: Report, facts: _Facts, pruned: Graph, lossless: bool, progress: Progress) -> None:
    """Compare with the original and read the metric, in one run; GateError if the pruned model does not run, or a
    lossless cut changed the outputs.
    """
    progress("comparison with the original")
    comparison, largest = numerics.Comparison(), _LargestError()
    watchers: list[numerics.Watcher] = [comparison, largest]
    try:
        if facts.yardstick is None:
            facts.original.watch(numerics.runner(program(pruned)), watchers)
        else:
            report.metrics.append(facts.yardstick.read("original"))
            report.metrics.append(facts.yardstick.read("removed", program(pruned), watchers, "the pruned model"))
    except numerics.DoesNotRun as error:  # the original does
        raise GateError(f"{error}; this is a bug of onnxprune, nothing was saved", report) from error
    report.numerics, report.numerics_on = comparison.table(), facts.measured_on
    limit = max(TOLERANCE, report.surgery_check.tolerance if report.surgery_check else 0.0)
    if lossless and largest.error > limit:
        raise GateError(
            f"lossless pruning changed the outputs by {largest.error:.2g} (limit {limit:.0e}): nothing was saved",
            report,
        )


class _LargestError:
    """A watcher: the largest relative error of any output on any feed."""

    error = 0.0

    def add(self, want: numerics.Outputs, got: numerics.Outputs, labels: Labels) -> None:
        for a, b in zip(want.values(), got.values(), strict=True):
            self.error = max(self.error, relative_error(a, b))
