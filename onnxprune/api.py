"""The library calls. The command line is a thin layer over the same functions.

Nothing is printed, nothing given is changed, nothing is shared between calls: safe from several threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from functools import partial
from typing import Any

from onnxprune.budget import Budget
from onnxprune.criteria import Criterion
from onnxprune.data import SAMPLES, DataLike, fitting
from onnxprune.errors import InputError
from onnxprune.gates import GatesLike
from onnxprune.graph import Graph
from onnxprune.intake import NO_DATA, calibrate_on, labelled_feeds, sizes
from onnxprune.manager import PassManager, State, parse
from onnxprune.metrics import MetricLike, Reading, Yardstick, find_metric
from onnxprune.passes import PASSES, PREPARE
from onnxprune.passes.prune import Prune
from onnxprune.plan import Plan
from onnxprune.progress import Progress, silent
from onnxprune.pruning import PruneResult, run
from onnxprune.reading import ModelLike, blaming, load
from onnxprune.report.about import called
from onnxprune.scan import scan, yardstick_of
from onnxprune.search import sensitivity_of
from onnxprune.sensitivity import Sensitivity
from onnxprune.sessions import Libraries, Settings, program
from onnxprune.validate import numerics
from onnxprune.validate.latency import ONE_THREAD


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
        state = State(graph, sizes(graph, given, True, seed), model=graph.fingerprint())
        calibrate_on(state, given, seed)
        PassManager(parse(f"{PREPARE},rotate-units" if rotate else PREPARE, PASSES)).run(state, progress)
        if metric is None or state.calibration is None:
            return sensitivity_of(state, progress, jobs)
        yardstick = yardstick_of(state.calibration, given.labelled, metric)  # before all that takes long
        found = sensitivity_of(state, progress, jobs)
        return replace(found, metric=scan(state.calibration, found, yardstick, jobs, progress))


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
    feeds = labelled_feeds(original, data, samples, seed)
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
