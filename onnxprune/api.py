"""The whole flow on one screen: load, run the passes, check, measure, report. The command line is a thin layer over
these functions.

Nothing is printed, nothing given is changed, nothing is shared between calls: safe from several threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any

from onnx import ModelProto

from onnxprune.budget import Budget
from onnxprune.criteria import OBS, Criterion
from onnxprune.data import SAMPLES, DataLike, Labels, Samples, fitting
from onnxprune.errors import GateError, InputError, SlowerError
from onnxprune.feeds import Binding, foreign_operators, random_feeds
from onnxprune.gates import Gates
from onnxprune.graph import Graph, from_proto
from onnxprune.manager import Pass, PassManager, State, parse
from onnxprune.metrics import MetricLike, Reading, Yardstick, find_metric
from onnxprune.passes import LOSSLESS, PASSES, PREPARE, RECOVERING, AbsorbConstants, in_steps
from onnxprune.passes.drop_layers import DropLayers
from onnxprune.passes.prune import Prune
from onnxprune.passes.refit_least_squares import RefitLeastSquares
from onnxprune.plan import Plan
from onnxprune.progress import Progress, silent
from onnxprune.proof import look, measure, prove, prove_turn
from onnxprune.reading import ModelLike, blaming, load
from onnxprune.report.about import UNTOLD, About, called
from onnxprune.report.describe import describe
from onnxprune.report.report import Report
from onnxprune.report.timing import Timing
from onnxprune.scan import scan
from onnxprune.search import meet, missed_time, sensitivity_of
from onnxprune.sensitivity import Sensitivity
from onnxprune.sessions import Feeds, Libraries, Settings, program
from onnxprune.sizing import pair_if_it_runs, running_pair, running_shapes
from onnxprune.stopwatch import Stopwatch, refuse_slower, time_both
from onnxprune.timing import Clock, Store, cache_folder
from onnxprune.validate import numerics
from onnxprune.validate.latency import ONE_THREAD

HELD_BACK = 0.25  # of the samples, at least, where a budget is a limit on the metric and there is no other data
NO_DATA = "a metric needs data to be measured on: give --data"
GatesLike = Gates | Mapping[str, float]


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
        left = from_proto(made, files=self.graph.files, libraries=self.graph.libraries)
        object.__setattr__(self, "graph", left)  # lets go of what it was made from
        return made


def prune(
    model: ModelLike,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    bytes: float | None = None,
    latency: float | None = None,
    latency_ms: float | None = None,
    max_drop: float | None = None,
    lossless: bool = False,
    scope: str = "global",
    criterion: str | Criterion = "",
    normalise: str | None = None,
    round_to: int | str = 1,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    steps: int = 1,
    drop_layers: int | str | Iterable[str] = (),
    schedule: str = "",
    recover: bool = True,
    rotate: bool = True,
    curves: Sensitivity | None = None,
    data: DataLike | None = None,
    test_data: DataLike | None = None,
    samples: int = SAMPLES,
    metric: MetricLike | None = None,
    seed: int = 0,
    check: bool = True,
    passes: str | None = None,
    gates: GatesLike | None = None,
    custom_op_library: Libraries = (),
    settings: Settings = ONE_THREAD,
    allow_slower: bool = False,
    cache: bool = True,
) -> PruneResult:
    """Remove units from a model and prove the result.

    Args:
        model: a path, bytes, ModelProto or graphsurgeon graph; it is not changed.
        ratio: fraction of units to remove, in (0, 1), of every dim or of all units together (`scope`).
        macs, params, bytes: keep at most this fraction of the multiply-accumulates, parameters or bytes.
        latency: take this fraction of the original's time on this machine; latency_ms: this many milliseconds.
        max_drop: lose at most this fraction of the metric, its standard error included, on `test_data`, else on a part
            of `data` that is held back; the MACs are made as few as that allows.
        lossless: remove exactly what cannot matter. Exactly one of these budgets must be given.
        scope: "local": cut every dim alike; "global": weigh the units of all dims against each other; "isomorphic":
            those of dims of one size and structure.
        criterion: "obs" (default with data): what removal costs once the readers are refitted; "l2" (default without)
            or any other of `onnxprune.criteria.CRITERIA`; "module:function"; or a function from a
            `onnxprune.criteria.UnitView` to scores (size,), larger for units that matter more.
        normalise: what scores are divided by before dims are compared: the dim's "mean", "max", "sum", or "none".
        steps: number of cuts, each recovered from, on the way to the budget.
        drop_layers: whole layers that go first: how many, or patterns of their names (`onnxprune inspect` lists
            them); a budget of its own, or beside another one. "auto": as many as leave the least error together with
            the widths.
        schedule: cuts in order, such as "layers,global,local": layers first, then widths by these scopes.
        recover: with data, refit the remaining weights to what the original computes.
        rotate: with data and the criterion "obs", cut in other bases where that is exact (`onnxprune.rotation`).
        curves: what `measure_sensitivity` measured on this model.
        round_to: keep a multiple of this many units in every dim; "auto": of what is best on this machine, which is
            measured.
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
        custom_op_library: shared libraries with the kernels of operators that ONNX Runtime does not bring along.
        gates: limits that the result must keep: `Gates`, or a mapping such as {"max_rel_l2": 0.1}.
        settings: how ONNX Runtime runs what is timed.
        allow_slower: let a result pass that is slower than the original, though the budget is one of speed (MACs,
            latency, max_drop, or round_to="auto").
        cache: keep times of kernels at other widths on disk, for later calls.

    Raises:
        InputError: the model, an option, the data or the metric cannot be used, or a gate cannot be measured.
        GateError: the surgery check failed, a gate was missed, or the result is slower than the original; it must not
            be used.
    """
    about = called(prune, locals())
    budget = choose_budget(
        passes, ratio=ratio, macs=macs, params=params, bytes=bytes, latency=latency, latency_ms=latency_ms,
        max_drop=max_drop, lossless=lossless, scope=scope, criterion=criterion, normalise=normalise, round_to=round_to,
        include=_patterns(include), exclude=_patterns(exclude), steps=steps, drop_layers=_patterns(drop_layers),
        schedule=schedule,
    )  # fmt: skip
    return run(
        load(model, custom_op_library), budget=budget, recover=recover, rotate=rotate, curves=curves, data=data,
        test_data=test_data, samples=samples, metric=metric, seed=seed, check=check, passes=passes, gates=gates,
        about=about, settings=settings, allow_slower=allow_slower, cache=cache,
    )  # fmt: skip


def apply(
    model: ModelLike,
    plan: Plan,
    *,
    recover: bool = True,
    data: DataLike | None = None,
    test_data: DataLike | None = None,
    samples: int = SAMPLES,
    metric: MetricLike | None = None,
    seed: int = 0,
    check: bool = True,
    gates: GatesLike | None = None,
    custom_op_library: Libraries = (),
    settings: Settings = ONE_THREAD,
    allow_slower: bool = False,
) -> PruneResult:
    """Carry out a saved plan on the model that it was made for. Options and errors are those of `prune`."""
    about = called(apply, locals())
    return run(
        load(model, custom_op_library), plan=plan, recover=recover, data=data, test_data=test_data, samples=samples,
        metric=metric, seed=seed, check=check, gates=gates, about=about, settings=settings, allow_slower=allow_slower,
    )  # fmt: skip


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


def _patterns(given: int | str | Iterable[str]) -> tuple[str, ...]:
    return (str(given),) if isinstance(given, (str, int)) else tuple(given)


def run(
    graph: Graph,
    *,
    budget: Budget | None = None,
    plan: Plan | None = None,
    recover: bool = True,
    rotate: bool = True,
    curves: Sensitivity | None = None,
    data: DataLike | None = None,
    test_data: DataLike | None = None,
    samples: int = SAMPLES,
    metric: MetricLike | None = None,
    seed: int = 0,
    check: bool = True,
    passes: str | None = None,
    dry_run: bool = False,
    verify_each: bool = False,
    gates: GatesLike | None = None,
    settings: Settings = ONE_THREAD,
    bench_seconds: float = 1.0,
    profiled: bool = False,
    allow_slower: bool = False,
    cache: bool = True,
    about: About = UNTOLD,
    progress: Progress = silent,
) -> PruneResult:
    """The flow behind `prune` and `apply`, with the command line's further options. `profiled`: see which operators got
    faster, for the report. What a budget in MACs makes slower is tried again in blocks of channels.
    """
    call = dict(locals())
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed must be a whole number of at least 0, got {seed!r}")
    judged = budget is not None and budget.max_drop is not None
    given, tests = _samples(graph, data, test_data, samples, seed, judged)
    limits, foreign = Gates.of(gates), foreign_operators(graph)
    if not dry_run and not (check and not foreign):
        limits.require_measured(f"operators that ONNX Runtime lacks: {foreign}" if check else "no checks (--no-check)")
    check, needs_clock = check and not foreign, budget is not None and budget.needs_clock
    _require_data(budget, metric, tests, check, dry_run)
    fit = given is not None and not foreign
    turn = _turns(budget, plan, curves, rotate and fit)
    steps = parse(passes or _pipeline(budget, plan, recover and fit, turn), PASSES)
    _require_order(steps)
    with blaming(graph), _telling_failures():
        pair = _sizes(graph, given or tests, check or (needs_clock and not foreign), seed)
        state = State(graph, pair, budget, plan, graph.fingerprint(), dry_run)
        _calibrate_on(state, None if foreign else given, seed)
        state.mends = any(isinstance(s, RefitLeastSquares) for s in steps)
        state.curves = curves.curves_for(state.model) if curves else None
        state.bases = curves.bases if curves else None
        facts = look(graph, pair, tests, metric, seed, progress) if pair and check and not dry_run else None
        manager = PassManager(steps, verify_each)
        watch = None
        if pair:
            feeds = next(iter(tests)) if tests else random_feeds(graph, pair[0], seed)
            watch = Stopwatch(graph, feeds, settings, bench_seconds, seed, progress)
        if watch and needs_clock and not foreign:
            store = Store(settings, cache_folder() if cache else None)
            state.clock = Clock(watch.feeds, settings, store, seed, progress)
        excused = allow_slower or "max_latency_ratio" in limits.given
        found = meet(manager, state, facts, watch, progress, excused)
        state = found.state
        report = describe(graph, state, found.results, [*_notes(foreign, given, tests), *_told(state)])
        report.about, report.sensitivity = about, curves or found.curves
        report.timing = Timing.of(state.clock, state.cuts) if isinstance(state.clock, Clock) else None
        if facts and watch:
            # with other biases a base of its own is needed
            base = None if any(isinstance(s, AbsorbConstants) for s in steps) else graph
            if state.turn:
                prove_turn(report, facts, state.turn, graph, progress)
            prove(report, facts, state, None if state.turn else base, progress)
            measure(report, facts, state, _is_lossless(steps, budget), progress)
            try:
                _time(report, watch, state.graph, budget, profiled, excused)
            except SlowerError as error:
                return _again(error, call | {"budget": state.budget, "curves": report.sensitivity})
        _try(limits, report, dry_run)
    return PruneResult(state.graph, state.done, report)


def _again(error: SlowerError, call: dict[str, Any]) -> PruneResult:
    """The run anew, in widths that suit the machine; the same error where that is not to be, or changes nothing."""
    budget = call["budget"].in_blocks if call["budget"] else None
    if budget is None:
        raise error
    try:
        made = run(**call | {"budget": budget})
    except InputError:
        raise error from None
    made.report.notes.append(f"{error.args[0].split(';')[0]}: cut again in multiples of {budget.round_to}")
    return made


def _time(
    report: Report, watch: Stopwatch, result: Graph, budget: Budget | None, profiled: bool, excused: bool
) -> None:
    """The latency of the result, held to what was asked for; `excused`: it may be slower than the original."""
    in_time = budget is not None and budget.in_time
    time_both(report, watch, result, in_time, profiled)
    if budget is not None and in_time and report.latency_ms:
        report.notes += missed_time(budget, report.latency_ms)
    if report.cuts:
        refuse_slower(report, watch, result, budget is not None and budget.for_speed and not excused)


@contextmanager
def _telling_failures() -> Iterator[None]:
    """A report says itself why its result must not be used."""
    try:
        yield
    except GateError as error:
        if isinstance(error.report, Report):
            error.report.failure = str(error)
        raise


def _try(gates: Gates, report: Report, dry_run: bool) -> None:
    """GateError if the result misses a gate."""
    if dry_run:
        report.notes += [f"a dry run tries no gates: {', '.join(gates.given)}"] if gates.given else []
        return
    report.gates = gates.results(report.latency_ms, report.numerics, report.bytes.after)
    if missed := [str(g) for g in report.gates if not g.passed]:
        raise GateError(f"{'; '.join(missed)}: nothing was saved", report)


def _turns(budget: Budget | None, plan: Plan | None, curves: Sensitivity | None, chosen: bool) -> bool:
    """Whether units are cut in other bases: those of the plan or the curves, else such as may be `chosen` by data."""
    if plan is not None or curves is not None:
        return bool(plan.bases if plan is not None else curves and curves.bases)
    cuts = budget is not None and not budget.lossless and not budget.drops_only
    return chosen and cuts and budget is not None and budget.criterion in ("", OBS)


def _pipeline(budget: Budget | None, plan: Plan | None, recover: bool, rotate: bool = False) -> str:
    """The default passes for a budget or a plan."""
    if budget is not None and budget.lossless:
        return LOSSLESS
    layers = bool(plan.layers if plan is not None else budget and budget.layers)
    count = 1 if budget is None else 0 if budget.drops_only else len(budget.scopes)
    return in_steps(count, recover, layers, rotate)


def _require_order(steps: Sequence[Pass]) -> None:
    """InputError where nothing is cut before something is to be recovered from it."""
    for step in steps:
        if isinstance(step, (Prune, DropLayers)):
            return
        if isinstance(step, RECOVERING):
            raise InputError(f"the pass {step.name} makes up for a cut: put it behind `prune` or `drop-layers`")


def _require_data(
    budget: Budget | None, metric: MetricLike | None, tests: Samples | None, check: bool, dry_run: bool
) -> None:
    """InputError where what was asked for needs data, or measurements."""
    if metric is not None and tests is None:
        raise InputError(NO_DATA)
    if budget is not None and budget.max_drop is not None and (tests is None or not check):
        why = "data to be measured on: give --data" if tests is None else "the checks and measurements"
        raise InputError(f"max_drop {budget.max_drop} needs {why}")
    if budget is not None and budget.in_time and not (check or dry_run):
        raise InputError("a budget in latency needs the checks and measurements, and operators that ONNX Runtime has")


def measure_sensitivity(
    model: ModelLike | Graph,
    data: DataLike,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    jobs: int = 1,
    rotate: bool = True,
    metric: MetricLike | None = None,
    progress: Progress = silent,
) -> Sensitivity:
    """Measure the error curve of every prunable dim: what the outputs lose at each of its widths; and a `metric`, if
    one is given, at some of them. `jobs` dims are measured at once. The result can be saved, and given to `prune`.
    Raises InputError as `prune` does.
    """
    if metric is not None:
        find_metric(metric)  # so that a name that is none is told before anything is measured
    graph = model if isinstance(model, Graph) else load(model)
    given = fitting(graph, data, samples, seed)
    with blaming(graph):
        state = State(graph, _sizes(graph, given, True, seed), model=graph.fingerprint())
        _calibrate_on(state, given, seed)
        PassManager(parse(f"{PREPARE},rotate-units" if rotate else PREPARE, PASSES)).run(state, progress)
        found = sensitivity_of(state, progress, jobs)
        if metric is None or state.calibration is None:
            return found
        return replace(found, metric=scan(state.calibration, found, given.labelled, metric, jobs, progress))


def _samples(
    graph: Graph, data: DataLike | None, test_data: DataLike | None, samples: int, seed: int, judged: bool
) -> tuple[Samples | None, Samples | None]:
    """Samples of the data, and those that checks and metrics are made on: all of `test_data`, else the same. What is
    `judged` by a metric must not have been fitted to: then, of more samples than are wanted, as many again are held
    back for it, or else a part.
    """
    if data is None or test_data is not None or not judged:
        given = None if data is None else fitting(graph, data, samples, seed)
        return given, given if test_data is None else fitting(graph, test_data, None, seed)
    given = fitting(graph, data, 2 * samples, seed)
    tests, rest = given.parted(min(max(1 - samples / given.count, HELD_BACK), 0.5))
    return (rest, tests) if tests.count and rest.count else (given, given)


def _calibrate_on(state: State, given: Samples | None, seed: int) -> None:
    """What is gathered from data, and how many samples that is: rows are picked by it."""
    state.data, state.samples, state.seed = given, given.count if given is not None else 0, seed


def _sizes(graph: Graph, samples: Samples | None, check: bool, seed: int) -> tuple[Binding, Binding] | None:
    """Two sets of input shapes that the model runs at, those of the data first; without data or checks None is for a
    model that does not run, or is too large to be run for that.
    """
    if samples is None and not check:
        return None if graph.is_large else pair_if_it_runs(graph)
    known = {n: a.shape for n, a in next(iter(samples)).items()} if samples is not None else None
    return running_pair(graph, seed, known)


def _notes(foreign: Sequence[str], *data: Samples | None) -> list[str]:
    notes = []
    if foreign:
        notes.append(
            f"not checked and not measured: ONNX Runtime has no kernels for {', '.join(foreign)};"
            " --custom-op-library takes a library that has them"
        )
    unused = sorted({n for d in data if d is not None for n in d.unused})
    notes += [f"{n!r} in the data is not as long as the inputs: it was left aside" for n in unused]
    if any(d is not None and d.is_random for d in data):
        notes.append("the data is random, a poor choice: what matters on real inputs may not show on it; give samples")
    return notes


def _told(state: State) -> list[str]:
    return [r.note for r in state.recoveries if r.note]


def inputs(graph: Graph, data: DataLike | None, samples: int | None, seed: int) -> Iterable[tuple[Feeds, Labels]]:
    """Labelled feeds from the data, else one at random that the model runs with."""
    if data is None:
        return [(random_feeds(graph, Binding(running_shapes(graph, seed)), seed), {})]
    return fitting(graph, data, samples, seed).labelled


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


def _is_lossless(steps: Sequence[Pass], budget: Budget | None) -> bool:
    """Whether every cut of a pipeline is a lossless one."""
    prunes = [s for s in steps if isinstance(s, Prune)]
    from_call = budget is not None and budget.lossless
    return bool(prunes) and all(s.lossless or (s == Prune() and from_call) for s in prunes)
