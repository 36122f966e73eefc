"""The whole flow on one screen: take in what is given, run the passes, check, measure, report.

A report is made of every run; where its result must not be used, an error brings it along, and it says so itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from onnx import ModelProto

from onnxprune.budget import Budget
from onnxprune.criteria import OBS
from onnxprune.data import SAMPLES, DataLike
from onnxprune.errors import GateError, InputError, SlowerError
from onnxprune.feeds import foreign_operators
from onnxprune.gates import Gates, GatesLike
from onnxprune.graph import Graph, from_proto
from onnxprune.intake import calibrate_on, calibration_and_tests, notes, require_data, sizes, timed_feeds
from onnxprune.manager import Pass, PassManager, State, parse
from onnxprune.metrics import MetricLike
from onnxprune.passes import LOSSLESS, PASSES, RECOVERING, AbsorbConstants, in_steps
from onnxprune.passes.drop_layers import DropLayers
from onnxprune.passes.prune import Prune
from onnxprune.passes.refit_least_squares import RefitLeastSquares
from onnxprune.plan import Plan
from onnxprune.progress import Progress, silent
from onnxprune.proof import Original, look, measure, prove, prove_turn
from onnxprune.reading import blaming
from onnxprune.report.about import UNTOLD, About
from onnxprune.report.describe import describe
from onnxprune.report.report import Report
from onnxprune.report.timing import Timing
from onnxprune.search import Found, meet, missed_time
from onnxprune.sensitivity import Sensitivity
from onnxprune.sessions import Settings
from onnxprune.stopwatch import Stopwatch, refuse_slower, time_both
from onnxprune.timing import Clock, Store, cache_folder
from onnxprune.validate.latency import ONE_THREAD


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
    given, tests = calibration_and_tests(graph, budget, data, test_data, samples, seed)
    limits, foreign = Gates.of(gates), foreign_operators(graph)
    if not dry_run and not (check and not foreign):
        limits.require_measured(f"operators that ONNX Runtime lacks: {foreign}" if check else "no checks (--no-check)")
    check, excused = check and not foreign, allow_slower or "max_latency_ratio" in limits.given
    require_data(budget, metric, tests, check, dry_run)
    steps = _steps(budget, plan, curves, passes, recover, rotate, given is not None and not foreign)
    with blaming(graph), _telling_failures():
        clocked = budget is not None and budget.needs_clock and not foreign
        pair = sizes(graph, given or tests, check or clocked, seed)
        state = State(graph, pair, budget, plan, graph.fingerprint(), dry_run)
        calibrate_on(state, None if foreign else given, seed)
        _prepare(state, steps, curves)
        facts = look(graph, pair, tests, metric, seed, progress) if pair and check and not dry_run else None
        watch = None
        if pair:
            watch = Stopwatch(graph, timed_feeds(graph, pair, tests, seed), settings, bench_seconds, seed, progress)
            state.clock = _clock(watch, cache) if clocked else None
        found = meet(PassManager(steps, verify_each), state, facts, watch, progress, excused)
        report = _described(graph, found, notes(foreign, given, tests), about, curves)
        if facts and watch:
            _prove(report, facts, found.state, steps, budget, progress)
            try:
                _time(report, watch, found.state.graph, budget, profiled, excused)
            except SlowerError as error:
                return _again(error, call | {"budget": found.state.budget, "curves": report.sensitivity})
        _try(limits, report, dry_run)
    return PruneResult(found.state.graph, found.state.done, report)


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


def _steps(
    budget: Budget | None,
    plan: Plan | None,
    curves: Sensitivity | None,
    passes: str | None,
    recover: bool,
    rotate: bool,
    fit: bool,
) -> tuple[Pass, ...]:
    """The passes of a pipeline text, else the default ones; `fit`: there are data to recover and to rotate with."""
    turn = _turns(budget, plan, curves, rotate and fit)
    steps = parse(passes or _pipeline(budget, plan, recover and fit, turn), PASSES)
    _require_order(steps)
    return steps


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


def _prepare(state: State, steps: Sequence[Pass], curves: Sensitivity | None) -> None:
    """What passes are told of the run: whether recovery follows, and what was measured before."""
    state.mends = any(isinstance(s, RefitLeastSquares) for s in steps)
    if curves:
        state.curves, state.bases = curves.curves_for(state.model), curves.bases


def _clock(watch: Stopwatch, cache: bool) -> Clock:
    """Tells what widths cost, on the inputs that models are timed on."""
    store = Store(watch.settings, cache_folder() if cache else None)
    return Clock(watch.feeds, watch.settings, store, watch.seed, watch.progress)


def _described(graph: Graph, found: Found, told: list[str], about: About, curves: Sensitivity | None) -> Report:
    """The report of what was done, before anything is proved."""
    state = found.state
    report = describe(graph, state, found.results, told + [r.note for r in state.recoveries if r.note])
    report.about, report.sensitivity = about, curves or found.curves
    report.timing = Timing.of(state.clock, state.cuts) if isinstance(state.clock, Clock) else None
    return report


def _prove(
    report: Report, facts: Original, state: State, steps: Sequence[Pass], budget: Budget | None, progress: Progress
) -> None:
    """The checks of every change, and what outputs and metrics say of the result."""
    original = facts.graph
    # with other biases a base of its own is needed
    base = None if any(isinstance(s, AbsorbConstants) for s in steps) else original
    if state.turn:
        prove_turn(report, facts, state.turn, original, progress)
    prove(report, facts, state, None if state.turn else base, progress)
    measure(report, facts, state, _is_lossless(steps, budget), progress)


def _is_lossless(steps: Sequence[Pass], budget: Budget | None) -> bool:
    """Whether every cut of a pipeline is a lossless one."""
    prunes = [s for s in steps if isinstance(s, Prune)]
    from_call = budget is not None and budget.lossless
    return bool(prunes) and all(s.lossless or (s == Prune() and from_call) for s in prunes)


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
