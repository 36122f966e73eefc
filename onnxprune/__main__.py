"""The command line: a thin layer over `api`. Exit codes: 0 done, 1 a check failed, 2 bad input or usage, 3 an internal
error.
"""

from __future__ import annotations

import gc
import json
import os
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxprune import api, operators
from onnxprune.config import read_config
from onnxprune.data import load_feeds
from onnxprune.errors import GateError, InputError
from onnxprune.feeds import Binding, random_feeds, running_shapes
from onnxprune.graph import Graph
from onnxprune.inference import TypedGraph
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import PASSES, PREPARE
from onnxprune.plan import Budget, Plan
from onnxprune.reading import blaming, load
from onnxprune.report import terminal
from onnxprune.sessions import Feeds, Runnable, program
from onnxprune.validate import latency, numerics
from onnxprune.version import __version__
from onnxprune.writing import write_atomic

BUDGETS = ("ratio", "macs", "params", "lossless")
INTERRUPTED = 130
GC_OBJECTS = 1_000_000  # new objects between two collections

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Make trained ONNX models smaller and faster by removing filters, neurons, heads, hidden units; and prove it.",
)

Model = Annotated[Path, typer.Argument(metavar="IN.onnx", help="The model.", show_default=False)]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="OUT.onnx", help="Where to write the pruned model.")
]
Data = Annotated[
    Path | None,
    typer.Option(metavar="FILE.npz|DIR", help="Real inputs for the checks: arrays named like the model's inputs."),
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON.")]
Library = Annotated[
    list[Path] | None,
    typer.Option(
        "--custom-op-library",
        metavar="FILE",
        help="A shared library with custom operators of the model, for ONNX Runtime; may be repeated.",
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of the random inputs.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print every cut and the time of each pass.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")]
NoCheck = Annotated[bool, typer.Option("--no-check", help="Skip the surgery check and all measurements.")]


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
def prune(
    model: Model,
    output: Output = None,
    ratio: Annotated[float | None, typer.Option(help="Budget: remove this fraction of the units.")] = None,
    macs: Annotated[
        float | None, typer.Option(help="Budget: keep at most this fraction of the multiply-accumulates.")
    ] = None,
    params: Annotated[float | None, typer.Option(help="Budget: keep at most this fraction of the parameters.")] = None,
    lossless: Annotated[
        bool | None, typer.Option("--lossless", help="Budget: remove exactly what has no effect.")
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(metavar="global|local", help="Rank units of all dims together, or cut every dim alike."),
    ] = None,
    criterion: Annotated[str | None, typer.Option(metavar="l1|l2", help="How units are ranked.")] = None,
    round_to: Annotated[
        int | None, typer.Option(metavar="N", help="Keep a multiple of N units; 8 or 16 suits most CPUs.")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Prune only these dims: kind:heads, or a name with wildcards."),
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Leave these dims alone.")] = None,
    data: Data = None,
    custom_op_library: Library = None,
    seed: Seed = None,
    json_file: Json = None,
    no_check: NoCheck = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop at the plan: print it, write no model.")] = False,
    plan_file: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="Save the plan, for `onnxprune apply`.")
    ] = None,
    passes: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A pipeline of passes instead of the default one.")
    ] = None,
    verify_each: Annotated[bool, typer.Option("--verify-each", help="Check the model after each pass.")] = False,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Read options from a file; those given here win.")
    ] = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Remove units from a model. Give exactly one budget: --ratio, --macs, --params or --lossless."""
    given = {
        "ratio": ratio, "macs": macs, "params": params, "lossless": lossless, "scope": scope, "criterion": criterion,
        "round_to": round_to, "include": include, "exclude": exclude, "data": data, "seed": seed, "json": json_file,
        "check": False if no_check else None, "passes": passes, "custom_op_library": custom_op_library,
    }  # fmt: skip
    options = _merged(read_config(config) if config else {}, {k: v for k, v in given.items() if v not in (None, [])})
    if not dry_run:
        _require_output(output)
    report_path = Path(options["json"]) if "json" in options else None
    libraries = options.get("custom_op_library", ())
    _check_paths((model, config, options.get("data"), *libraries), output, report_path, plan_file)
    budget = _budget(options)
    with _progress(quiet) as step:
        result = api.run(
            load(model, libraries),
            budget=budget,
            data=options.get("data"),
            seed=options.get("seed", 0),
            check=options.get("check", True),
            passes=options.get("passes"),
            dry_run=dry_run,
            verify_each=verify_each,
            progress=step,
        )
        _write(result, None if dry_run else output, report_path, plan_file)
    out = terminal.console(quiet)
    terminal.show_report(
        out, result.report, model.name, "" if dry_run or output is None else output.name, verbose or dry_run
    )
    if dry_run:
        terminal.show_plan(out, result.plan, result.report.dims)


@app.command()
def apply(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="A plan saved by `onnxprune prune --plan`.", show_default=False)
    ],
    model: Model,
    output: Output = None,
    data: Data = None,
    custom_op_library: Library = None,
    seed: Seed = None,
    json_file: Json = None,
    no_check: NoCheck = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Carry out a saved plan on the model that it was made for."""
    _require_output(output)
    _check_paths((plan, model, data), output, json_file)
    try:
        loaded = Plan.from_json(plan.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the plan {plan}: {error}") from error
    graph = load(model, custom_op_library or ())
    if loaded.model != graph.fingerprint():
        raise InputError(
            f"the plan {plan} was made for another model: structure {loaded.model}, this file has {graph.fingerprint()}"
        )
    with _progress(quiet) as step:
        result = api.run(graph, plan=loaded, data=data, seed=seed or 0, check=not no_check, progress=step)
        _write(result, output, json_file, None)
    terminal.show_report(terminal.console(quiet), result.report, model.name, output.name if output else "", verbose)


@app.command()
def inspect(model: Model, custom_op_library: Library = None, json_file: Json = None, quiet: Quiet = False) -> None:
    """List every dim: its size, what it couples and costs; what is frozen, and why."""
    _check_paths((model,), json_file)
    typed = _typed(load(model, custom_op_library or ()))
    if json_file:
        write_atomic(json_file, json.dumps(terminal.inspection(typed), indent=1).encode())
    terminal.show_inspection(terminal.console(quiet), typed)


@app.command()
def check(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", show_default=False)],
    pruned: Annotated[Path, typer.Argument(metavar="PRUNED", show_default=False)],
    data: Data = None,
    custom_op_library: Library = None,
    seed: Seed = None,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Compare the outputs of two models on the same inputs."""
    _check_paths((original, pruned, data), json_file)
    before, after, feeds = _pair(original, pruned, data, seed or 0, custom_op_library or ())
    with _progress(quiet) as step:
        step("running both models")
        names, want = _run(before, feeds, original)
        _, got = _run(after, feeds, pruned)
    table = numerics.compare(names, want, got)
    if not table:
        raise InputError(f"{original} and {pruned} have no output of equal shape to compare")
    if json_file:
        write_atomic(json_file, json.dumps(table, indent=1).encode())
    terminal.show_numerics(terminal.console(quiet), table, str(data) if data else "random inputs")


@app.command()
def bench(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", show_default=False)],
    pruned: Annotated[Path, typer.Argument(metavar="PRUNED", show_default=False)],
    threads: Annotated[int, typer.Option(min=1, help="Threads of ONNX Runtime.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure.")] = 5.0,
    data: Data = None,
    custom_op_library: Library = None,
    seed: Seed = None,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Compare the latency of two models: interleaved runs, paired ratio, 95 % interval."""
    _check_paths((original, pruned, data), json_file)
    before, after, feeds = _pair(original, pruned, data, seed or 0, custom_op_library or ())
    for content, path in ((before, original), (after, pruned)):
        _run(content, feeds[:1], path)
    with _progress(quiet) as step:
        step("timing both models in turn")
        found = latency.bench(before, after, feeds[0], seconds, threads, seed or 0)
    if json_file:
        write_atomic(json_file, json.dumps(found.to_dict(), indent=1).encode())
    terminal.show_latency(terminal.console(quiet), found, (original.name, pruned.name))


def _merged(config: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Options of the config, those of the command line over them; a budget given there replaces the config's."""
    if any(n in given for n in BUDGETS):
        config = {n: v for n, v in config.items() if n not in BUDGETS}
    return config | given


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


def _require_output(output: Path | None) -> None:
    if output is None:
        raise InputError("give the output with -o OUT.onnx (or --dry-run to stop at the plan)")


def _check_paths(sources: Sequence[str | Path | None], *outputs: Path | None) -> None:
    """Refuse outputs that cannot be written, before any work is done."""
    paths = [p for p in outputs if p]
    for path in paths:
        if problem := _problem(path):
            raise InputError(f"cannot write {path}: {problem}")
        if any(s and os.path.exists(s) and path.exists() and path.samefile(s) for s in sources):
            raise InputError(f"{path} is the input itself: choose another output")
    if len({p.resolve() for p in paths}) < len(paths):
        raise InputError(f"two outputs go to the same file: {', '.join(map(str, paths))}")


def _problem(path: Path) -> str | None:
    """What keeps a file from being written."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return "it is a folder"
        if not stat.S_ISREG(mode):  # a device or pipe
            return None if os.access(path, os.W_OK) else "no permission"
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        return error.strerror
    writable = path.parent.is_dir() and os.access(path.parent, os.W_OK)
    return None if writable else "the folder is missing or not writable"


def _write(result: api.PruneResult, output: Path | None, report: Path | None, plan: Path | None) -> None:
    if report:
        write_atomic(report, result.report.to_json().encode())
    if plan:
        write_atomic(plan, result.plan.to_json().encode())
    if output:
        result.graph.save(output)


def _typed(graph: Graph) -> TypedGraph:
    with blaming(graph):
        state = State(graph)
        PassManager(parse(PREPARE, PASSES)).run(state)
        return state.typed


def _pair(
    original: Path, pruned: Path, data: Path | None, seed: int, libraries: Sequence[Path]
) -> tuple[Runnable, Runnable, list[Feeds]]:
    first, second = load(original, libraries), load(pruned, libraries)
    if [i.name for i in first.inputs] != [i.name for i in second.inputs]:
        raise InputError(f"{original} and {pruned} have different inputs")
    if len(first.outputs) != len(second.outputs):
        raise InputError(f"{original} and {pruned} have different outputs")
    feeds = load_feeds(first, data, api.NUMERIC_SAMPLES) if data else []
    feeds = feeds or [random_feeds(first, Binding(running_shapes(first, seed)), seed)]
    return program(first), program(second), feeds


def _run(model: Runnable, feeds: list[Feeds], path: Path) -> tuple[list[str], list[list[Any]]]:
    try:
        return numerics.outputs(model, feeds)
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise InputError(f"ONNX Runtime does not run {path} on these inputs or data: {error}") from error


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line that says what is being done, on a terminal only."""
    screen = terminal.console(quiet, stderr=True)
    if quiet or not screen.is_terminal:
        yield lambda text: None
        return
    with screen.status("loading") as status:
        yield lambda text: status.update(f"{text} ...")


def _say(text: str) -> None:
    print("onnxprune: " + " ".join(text.split()), file=sys.stderr)


def _internal(error: Exception) -> int:
    handle, path = tempfile.mkstemp(prefix="onnxprune-", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8") as log:
        log.write(f"onnxprune {__version__}\n{sys.argv}\n\n{traceback.format_exc()}")
    _say(f"internal error: {error}. Nothing was written. Please report this with the log {path}")
    return 3


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    with _fewer_collections():
        return _main(argv)


@contextmanager
def _fewer_collections() -> Iterator[None]:
    """Large graphs are many small objects that live as long as the process: looking for cycles among them would take
    a third of the time.
    """
    before = gc.get_threshold()
    gc.set_threshold(GC_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _main(argv: list[str] | None) -> int:
    try:
        code = app(args=argv, prog_name="onnxprune", standalone_mode=False)
        if code == INTERRUPTED:  # how typer passes it on
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except InputError as error:
        _say(f"error: {error}")
        return 2
    except GateError as error:
        _say(f"failed: {error}")
        return 1
    except KeyboardInterrupt:
        _say("interrupted, nothing was written")
        return INTERRUPTED
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as error:
        # what typer raises for bad usage; its class differs between versions
        usage = getattr(error, "format_message", None)
        if type(error).__name__ == "Abort":
            _say("interrupted, nothing was written")
            return INTERRUPTED
        if usage is None:
            return _internal(error)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(usage())
            return 2
        _say(f"error: {usage()} (see onnxprune --help)")
        return 2


if __name__ == "__main__":
    sys.exit(main())
