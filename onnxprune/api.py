"""The whole flow on one screen: load, run the passes, check, measure, report. The command line is a thin layer over
these functions.

Nothing is printed, nothing given is changed, nothing is shared between calls: safe from several threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from onnx import ModelProto

from onnxprune import cost
from onnxprune.data import DataLike, load_feeds
from onnxprune.dims import Dim
from onnxprune.errors import GateError, InputError
from onnxprune.feeds import batch_size, foreign_operators, random_feeds, running_shapes
from onnxprune.graph import Graph, from_proto
from onnxprune.inference import TypedGraph
from onnxprune.manager import Cut, Pass, PassManager, PassResult, State, parse
from onnxprune.passes import DEFAULT, LOSSLESS, PASSES, AbsorbConstants
from onnxprune.passes.prune import Prune
from onnxprune.plan import Budget, Plan, bind
from onnxprune.reading import ModelLike, blaming, load
from onnxprune.report.report import BeforeAfter, Report, cut_rows, dim_counts, frozen_rows
from onnxprune.sessions import Feeds, Libraries, program
from onnxprune.validate import latency, numerics
from onnxprune.validate.surgery_check import TOLERANCE, SurgeryCheck, relative_error, surgery_check

CHECK_SAMPLES = 64  # of the user's data, for the surgery check
NUMERIC_SAMPLES = 256  # for the comparison with the original
RANDOM_FEEDS = 2  # one of each kind
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
        left = from_proto(made, files=self.graph.files, libraries=self.graph.libraries)
        object.__setattr__(self, "graph", left)  # lets go of what it was made from
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
    seed: int = 0,
    check: bool = True,
    passes: str | None = None,
    custom_op_library: Libraries = (),
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
        data: inputs for the checks: an .npz or .npy file, a folder of them, a dict of arrays or several such dicts.
        seed: of the random inputs.
        check: run the surgery check, compare with the original, and measure latency.
        passes: pipeline text instead of the default one.
        custom_op_library: shared libraries with the kernels of operators that ONNX Runtime does not bring along.

    Raises:
        InputError: the model, an option or the data cannot be used.
        GateError: the surgery check failed; the result must not be used.
    """
    budget = choose_budget(
        passes, ratio=ratio, macs=macs, params=params, lossless=lossless, scope=scope, criterion=criterion,
        round_to=round_to, include=_patterns(include), exclude=_patterns(exclude),
    )  # fmt: skip
    graph = load(model, custom_op_library)
    return run(graph, budget=budget, data=data, seed=seed, check=check, passes=passes)


def apply(
    model: ModelLike,
    plan: Plan,
    *,
    data: DataLike | None = None,
    seed: int = 0,
    check: bool = True,
    custom_op_library: Libraries = (),
) -> PruneResult:
    """Carry out a saved plan on the model that it was made for. Raises as `prune` does."""
    return run(load(model, custom_op_library), plan=plan, data=data, seed=seed, check=check)


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
    feeds = load_feeds(graph, data, NUMERIC_SAMPLES) if data is not None else []
    foreign = foreign_operators(graph)
    check = check and not foreign
    default = LOSSLESS if budget is not None and budget.lossless else DEFAULT
    steps = parse(default if passes is None else passes, PASSES)
    with blaming(graph):
        shapes = {n: a.shape for n, a in feeds[0].items()} if feeds else running_shapes(graph, seed) if check else {}
        state = State(graph, shapes, budget, plan, graph.fingerprint(), dry_run)
        binding = state.facts.binding
        results = PassManager(steps, verify_each).run(state, progress)
        typed = state.cuts[0].typed if state.cuts else state.typed
        done = state.cuts[-1].plan if state.cuts else Plan({}, state.model)
        pruned = state.graph
        batch = batch_size(graph, binding)
        report = _describe(graph, state, typed, results, batch)
        report.macs_shapes = {n: [s[0] // batch, *s[1:]] if s else [] for n, s in binding.shapes.items()}
        report.options = asdict(budget) if budget else {}
        if foreign:
            report.notes.append(
                f"not checked and not measured: ONNX Runtime has no kernels for {', '.join(foreign)};"
                " --custom-op-library takes a library that has them"
            )
        if check and not dry_run:
            random = [random_feeds(graph, binding, seed + k) for k in range(RANDOM_FEEDS)]
            base = (
                None if any(isinstance(s, AbsorbConstants) for s in steps) else graph
            )  # else its biases are other ones
            exact = _is_lossless(steps, budget)
            _prove(report, graph, base, state.cuts, pruned, random, feeds, exact, progress)
            progress("latency")
            report.latency_ms = latency.bench(
                program(graph), program(pruned), (feeds or random)[0], bench_seconds, seed=seed
            )
    return PruneResult(pruned, done, report)


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
    report: Report,
    graph: Graph,
    base: Graph | None,
    cuts: Sequence[Cut],
    pruned: Graph,
    random: list[Feeds],
    feeds: list[Feeds],
    lossless: bool,
    progress: Progress,
) -> None:
    """The surgery check, against `base` with masks (the folded graph if None), then the comparison with the original;
    GateError if the result must not be used.
    """
    progress("running the original")
    inputs = feeds or random
    report.numerics_on = "data" if feeds else "random inputs"
    try:
        names, before = numerics.outputs(program(graph), inputs)
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise InputError(f"ONNX Runtime does not run the model on the {report.numerics_on}: {error}") from error
    progress("surgery check")
    tried = random + _some(feeds, CHECK_SAMPLES)
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
    progress("comparison with the original")
    _, after = numerics.outputs(program(pruned), inputs)
    report.numerics = numerics.compare(names, before, after)
    if lossless:
        _require_equal(report, before, after)


def _require_equal(report: Report, before: list[list[Any]], after: list[list[Any]]) -> None:
    error = max(
        (relative_error(a, b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True)),
        default=0.0,
    )
    limit = max(TOLERANCE, report.surgery_check.tolerance if report.surgery_check else 0.0)
    if error > limit:
        raise GateError(
            f"lossless pruning changed the outputs by {error:.2g} (limit {limit:.0e}): nothing was saved", report
        )


def _some(feeds: list[Feeds], samples: int) -> list[Feeds]:
    count, picked = 0, []
    for feed in feeds:
        if count >= samples:
            break
        picked.append(feed)
        count += max((a.shape[0] for a in feed.values() if a.ndim), default=1)
    return picked
