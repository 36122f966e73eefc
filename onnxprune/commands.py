"""The commands, each a thin layer over `api`: options in, files and tables out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from onnxprune import api, operators, pruning
from onnxprune.benchmark import benchmark
from onnxprune.budget import Budget
from onnxprune.config import merged, source
from onnxprune.errors import InputError
from onnxprune.gates import Gates
from onnxprune.graph import Graph
from onnxprune.inference import TypedGraph
from onnxprune.manager import PassManager, State, parse
from onnxprune.options import (
    BenchGroup,
    BudgetGroup,
    CheckGroup,
    ChoiceGroup,
    GateGroup,
    LibraryGroup,
    OutputGroup,
    PassGroup,
    PlanGroup,
    RecoverGroup,
    RuntimeGroup,
    SampleGroup,
    ShapeGroup,
    TestGroup,
    grouped,
    settings,
    shape,
)
from onnxprune.outputs import Outputs
from onnxprune.passes import PASSES, PREPARE
from onnxprune.plan import Plan
from onnxprune.reading import blaming, load
from onnxprune.report import inspection, live, terminal
from onnxprune.report.about import typed
from onnxprune.report.benchmark import show_benchmark
from onnxprune.report.html import page
from onnxprune.report.plots import curves_svg
from onnxprune.report.report import Report, finite
from onnxprune.sensitivity import Sensitivity
from onnxprune.sizing import pair_if_it_runs
from onnxprune.version import __version__
from onnxprune.writing import check_paths, write_atomic

T = TypeVar("T")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Make trained ONNX models smaller and faster by removing filters, neurons, heads, hidden units and layers; and"
    " prove it.",
)

Model = Annotated[Path, typer.Argument(metavar="IN.onnx", help="The model.", show_default=False)]
Original = Annotated[Path, typer.Argument(metavar="ORIGINAL", show_default=False)]
Pruned = Annotated[Path, typer.Argument(metavar="PRUNED", show_default=False)]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON.")]
Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE.toml", help="Read options from a file; those given here win.")
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print every cut and the time of each pass.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"onnxprune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make trained ONNX models smaller and faster - and prove the result."""


@app.command()
@grouped
def prune(
    context: typer.Context,
    model: Model,
    budget: BudgetGroup,
    choice: ChoiceGroup,
    recovery: RecoverGroup,
    inputs: TestGroup,
    checks: CheckGroup,
    gates: GateGroup,
    timing: BenchGroup,
    steps: PassGroup,
    written: PlanGroup,
    config: Config = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Remove units from a model. Give exactly one budget: --ratio, --macs, --params, --bytes, --latency, --latency-ms,
    --max-drop or --lossless.
    """
    options = merged(config, gates, budget, choice, recovery, inputs, checks, timing, steps, written)
    files = Outputs.of(options, written, steps.dry_run)
    files.check(model, config, *(options.get(n) for n in ("data", "test_data", "sensitivity")))
    chosen, curves = _budget(options), _read(_path(options.get("sensitivity")), Sensitivity.from_json)
    shown = _shower(quiet, model, files.made, verbose or steps.dry_run)
    with files.reported(shown), live.shown(quiet) as step:
        result = pruning.run(
            load(model, options.get("custom_op_library", ())),
            budget=chosen,
            curves=curves,
            passes=options.get("passes"),
            dry_run=steps.dry_run,
            verify_each=steps.verify_each,
            about=typed(context.obj, model, files.made),
            progress=step,
            **_measured(options),
        )
        files.write(result)
    shown(result.report)
    if steps.dry_run:
        terminal.show_plan(terminal.console(quiet), result.plan, result.report.dims)


@app.command()
@grouped
def apply(
    context: typer.Context,
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="A plan saved by `onnxprune prune --plan`.", show_default=False)
    ],
    model: Model,
    recovery: RecoverGroup,
    inputs: TestGroup,
    checks: CheckGroup,
    gates: GateGroup,
    timing: BenchGroup,
    written: OutputGroup,
    config: Config = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Carry out a saved plan on the model that it was made for. Of a config, what is said of the plan is left aside."""
    options = merged(config, gates, recovery, inputs, checks, timing, written)
    files = Outputs.of(options, written)
    files.check(plan, model, config, options.get("data"), options.get("test_data"))
    loaded = _read(plan, Plan.from_json) or Plan({})
    graph = load(model, options.get("custom_op_library", ()))
    if loaded.model != graph.fingerprint():
        raise InputError(
            f"the plan {plan} was made for another model: structure {loaded.model}, this file has {graph.fingerprint()}"
        )
    shown = _shower(quiet, model, files.made, verbose)
    with files.reported(shown), live.shown(quiet) as step:
        about = typed(context.obj, model, files.made)
        result = pruning.run(graph, plan=loaded, about=about, progress=step, **_measured(options))
        files.write(result)
    shown(result.report)


@app.command()
@grouped
def inspect(model: Model, library: LibraryGroup, json_file: Json = None, quiet: Quiet = False) -> None:
    """List every dim: its size, what it couples and costs; what is frozen, and why."""
    check_paths((model,), json_file)
    typed = _typed(load(model, library.custom_op_library or ()))
    if json_file:
        write_atomic(json_file, json.dumps(inspection.inspection(typed), indent=1).encode())
    inspection.show_inspection(terminal.console(quiet), typed)


@app.command()
@grouped
def check(
    original: Original,
    pruned: Pruned,
    inputs: SampleGroup,
    json_file: Json = None,
    config: Config = None,
    quiet: Quiet = False,
) -> None:
    """Compare the outputs of two models on the same inputs, and what a metric says of both."""
    options = merged(config, Gates(), inputs)
    data = inputs.data or options.get("test_data") or options.get("data")
    check_paths((original, pruned, config, data), json_file)
    chosen = source(options, data)
    with live.shown(quiet) as step:
        before, after = _pair(original, pruned, options.get("custom_op_library", ()))
        step("running both models")
        table, readings = api.compare(
            before, after, data=chosen, samples=inputs.samples, metric=options.get("metric"),
            seed=options.get("seed", 0), titles=(str(original), str(pruned)),
        )  # fmt: skip
    if json_file:
        found = {"metrics": [asdict(r) for r in readings], **table}
        write_atomic(json_file, json.dumps(finite(found), indent=1).encode())
    terminal.show_numerics(terminal.console(quiet), table, "random inputs" if chosen is None else str(chosen))
    terminal.show_metrics(terminal.console(quiet), readings)


@app.command()
@grouped
def sensitivity(
    model: Model,
    inputs: SampleGroup,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE.json", help="Save the curves, for `prune --sensitivity`."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the curves.")] = None,
    jobs: Annotated[int, typer.Option(metavar="N", help="Dims that are measured at once.")] = 1,
    config: Config = None,
    quiet: Quiet = False,
) -> None:
    """Measure what the outputs lose at each width of each dim, with the weights that read it refitted."""
    options = merged(config, Gates(), inputs)
    data = source(options, options.get("data"))
    if data is None:
        raise InputError("sensitivities need calibration data: give --data")
    if plot and plot.suffix != ".svg":
        raise InputError(f"curves are drawn as SVG: give --plot a name that ends in .svg, not {plot}")
    check_paths((model, config, options.get("data")), output, plot)
    named = {n: options[n] for n in ("samples", "seed", "metric") if n in options}
    with live.shown(quiet) as step:
        found = api.measure_sensitivity(
            load(model, options.get("custom_op_library", ())), data, jobs=jobs, progress=step, **named
        )
    if output:
        write_atomic(output, found.to_json().encode())
    if plot:
        write_atomic(plot, curves_svg(found).encode())
    terminal.show_sensitivity(terminal.console(quiet), found)


@app.command()
@grouped
def bench(
    models: Annotated[
        list[Path], typer.Argument(metavar="A.onnx B.onnx ...", help="Models; the first one is the reference.")
    ],
    runtime: RuntimeGroup,
    inputs: ShapeGroup,
    seconds: Annotated[float, typer.Option(min=0.1, metavar="S", help="How long to measure, in all.")] = 5.0,
    profile: Annotated[bool, typer.Option("--profile", help="Compare operators and nodes as well.")] = False,
    json_file: Json = None,
    config: Config = None,
    quiet: Quiet = False,
) -> None:
    """Compare the latency of models: shuffled rounds, paired ratios with a 95 % interval; load time and memory."""
    options = merged(config, Gates(), runtime, inputs)
    check_paths((*models, config, options.get("data")), json_file)
    with live.shown(quiet) as step:
        found = benchmark(
            models,
            shapes=dict(map(shape, options.get("shape", []))),
            settings=settings(options),
            libraries=options.get("custom_op_library", ()),
            seconds=seconds,
            profiled=profile,
            progress=step,
            data=source(options, options.get("data")),
            **{n: options[n] for n in ("seed", "batch") if n in options},
        )
    if json_file:
        write_atomic(json_file, json.dumps(found.to_dict(), indent=1).encode())
    show_benchmark(terminal.console(quiet), found)


@app.command()
def report(
    saved: Annotated[
        Path, typer.Argument(metavar="REPORT.json", help="What `--json` of prune or apply wrote.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT.html", help="Where to write the page.", show_default=False)
    ],
) -> None:
    """Make the HTML report again from a report in JSON."""
    check_paths((saved,), output)
    write_atomic(output, (_read(saved, page) or "").encode())


@app.command()
def ops(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the documentation page.")] = False,
) -> None:
    """List what is decided for each operator: typed, or a barrier and why."""
    if markdown:
        print(operators.markdown(), end="")
    else:
        terminal.show_operators(terminal.console(), list(operators.operators()))


def _budget(options: dict[str, Any]) -> Budget | None:
    """The budget in the options; None if the pipeline text brings its own."""
    chosen = {f.name: options[f.name] for f in fields(Budget) if f.name in options}
    return api.choose_budget(
        options.get("passes"), **{n: tuple(v) if isinstance(v, list) else v for n, v in chosen.items()}
    )


def _measured(options: dict[str, Any]) -> dict[str, Any]:
    """What `prune` and `apply` tell `pruning.run` alike."""
    named = (
        "samples",
        "metric",
        "seed",
        "check",
        "recover",
        "rotate",
        "gates",
        "bench_seconds",
        "allow_slower",
        "cache",
    )
    data = {n: source(options, options.get(n)) for n in ("data", "test_data")}
    timed = {"settings": settings(options), "profiled": bool(options.get("report"))}
    return {n: options[n] for n in named if n in options} | data | timed


def _read(path: Path | None, parse: Callable[[str], T]) -> T | None:
    """What a JSON file of ours says."""
    if path is None:
        return None
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _path(given: str | Path | None) -> Path | None:
    return Path(given) if given else None


def _shower(quiet: bool, model: Path, output: Path | None, verbose: bool) -> Callable[[Report], None]:
    out = terminal.console(quiet)
    return lambda report: terminal.show_report(out, report, model.name, output.name if output else "", verbose)


def _typed(graph: Graph) -> TypedGraph:
    with blaming(graph):
        state = State(graph, pair_if_it_runs(graph))
        PassManager(parse(PREPARE, PASSES)).run(state)
        return state.typed


def _pair(original: Path, pruned: Path, libraries: Sequence[Path]) -> tuple[Graph, Graph]:
    first, second = load(original, libraries), load(pruned, libraries)
    if [i.name for i in first.inputs] != [i.name for i in second.inputs]:
        raise InputError(f"{original} and {pruned} have different inputs")
    if len(first.outputs) != len(second.outputs):
        raise InputError(f"{original} and {pruned} have different outputs")
    return first, second
