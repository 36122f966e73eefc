"""The options of the commands, in groups: a dataclass is a group, its fields are options, annotated as typer wants
them. A command takes whole groups:

    @app.command()
    @grouped
    def prune(model: Model, budget: BudgetGroup, gates: GateGroup) -> None: ...

and `grouped` spreads them out for typer, one panel of the help to a group. A new option is a field here, and nothing
else: the config file takes its keys and their types from the same fields (`CONFIG`).
"""

from __future__ import annotations

import copy
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Any

import typer

from onnxprune.budget import AUTO
from onnxprune.criteria import CRITERIA, OBS
from onnxprune.errors import InputError
from onnxprune.gates import Gates
from onnxprune.ranking import SCALES, SCOPES
from onnxprune.sessions import LEVELS, Settings
from onnxprune.validate.latency import ONE_THREAD

DATA = "FILE|DIR|random"


class Multiple:
    """How an option is typed that takes a whole number or "auto"."""


def multiple(text: str) -> int | str:
    """What such an option says."""
    if text == AUTO:
        return text
    try:
        return int(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is neither a whole number nor {AUTO}") from error


@dataclass(frozen=True)
class Panel:
    """Marks a parameter as a group of options; its title in the help."""

    title: str


@dataclass(frozen=True)
class BudgetOptions:
    """How much goes."""

    ratio: Annotated[float | None, typer.Option(help="Remove this fraction of the units.")] = None
    macs: Annotated[float | None, typer.Option(help="Keep at most this fraction of the multiply-accumulates.")] = None
    params: Annotated[float | None, typer.Option(help="Keep at most this fraction of the parameters.")] = None
    bytes: Annotated[float | None, typer.Option(help="Keep at most this fraction of the file's size.")] = None
    latency: Annotated[
        float | None, typer.Option(help="Take at most this fraction of the original's time, on this machine.")
    ] = None
    latency_ms: Annotated[
        float | None, typer.Option(metavar="MS", help="Take at most this many milliseconds, on this machine.")
    ] = None
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="F",
            help="Lose at most this fraction of the metric, with its standard error; as few MACs as it allows.",
        ),
    ] = None
    lossless: Annotated[bool | None, typer.Option("--lossless", help="Remove exactly what has no effect.")] = None


@dataclass(frozen=True)
class ChoiceOptions:
    """Which units go."""

    scope: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(SCOPES),
            help="Weigh units of all dims against each other, cut every dim alike, or weigh those of like dims.",
        ),
    ] = None
    criterion: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|MODULE:FUNCTION",
            help=f"How units are ranked (default: obs with data, l2 without): {', '.join([OBS, *CRITERIA])}; or a"
            " function of yours.",
        ),
    ] = None
    normalise: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(SCALES),
            help="What scores are divided by before dims are compared (default: mean; none where they are comparable).",
        ),
    ] = None
    round_to: Annotated[
        Multiple | None,
        typer.Option(
            metavar="N|auto",
            parser=multiple,
            help="Keep a multiple of N units; auto: of what is measured to be best on this machine.",
        ),
    ] = None
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Prune only these dims: kind:heads, or a name with wildcards."),
    ] = None
    exclude: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Leave these dims alone.")] = None
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Get there in N cuts, recovering after each (default 1).")
    ] = None
    drop_layers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N|auto|PATTERN",
            help="Drop the N least important layers, or those of these names (kind:attention, or with wildcards) first;"
            " may be all that is asked for. auto: as many as leave the least error together with the widths.",
        ),
    ] = None
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="layers,global,local",
            help="Cuts in order: layers first, then widths by these scopes, each recovered from.",
        ),
    ] = None
    sensitivity: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Error curves saved by `onnxprune sensitivity`.")
    ] = None


@dataclass(frozen=True)
class RecoverOptions:
    """What is mended."""

    recover: Annotated[
        bool | None, typer.Option("--recover/--no-recover", help="With data: refit the weights that are left, or not.")
    ] = None
    rotate: Annotated[
        bool | None,
        typer.Option(
            "--rotate/--no-rotate", help="With data: cut in another basis where only linear operators touch units."
        ),
    ] = None


@dataclass(frozen=True)
class LibraryOptions:
    """What models need to run."""

    custom_op_library: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A shared library with custom operators of the model, for ONNX Runtime; may be repeated.",
        ),
    ] = None


@dataclass(frozen=True)
class InputOptions(LibraryOptions):
    """What models are fed with."""

    data: Annotated[
        Path | None,
        typer.Option(
            metavar=DATA,
            help="Real inputs: an .npz with arrays named like the model's inputs, an .npy, a folder of them, or a"
            " folder of images (see \\[data] of the config).",
        ),
    ] = None
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the random inputs.")] = None


@dataclass(frozen=True)
class SampleOptions(InputOptions):
    """What models are compared on."""

    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Take N samples of --data, spread evenly over it; 64 to 1024 are useful (default 512; `check`: all).",
        ),
    ] = None
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|MODULE:FUNCTION",
            help="Measured before and after: rel-l2, cosine, sqnr-db, top1-agreement, kl; top1, top5 where the data has"
            " labels; or a function of yours. Default: top1 where that is possible, else rel-l2.",
        ),
    ] = None


@dataclass(frozen=True)
class TestOptions(SampleOptions):
    """What a run is calibrated and measured on."""

    test_data: Annotated[
        Path | None,
        typer.Option(
            metavar=DATA, help="Other data for the checks and the metric, used in full. Default: that of --data."
        ),
    ] = None


@dataclass(frozen=True)
class ShapeOptions(InputOptions):
    """What models are timed on."""

    batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Size of the first axis of inputs where it is free.")
    ] = None
    shape: Annotated[
        list[str] | None, typer.Option(metavar="NAME:1x3x224x224", help="Shape of an input; may be given again.")
    ] = None


@dataclass(frozen=True)
class CheckOptions:
    """What is proved and measured."""

    check: Annotated[
        bool | None, typer.Option("--check/--no-check", help="The surgery check and all measurements, or none.")
    ] = None


@dataclass(frozen=True)
class RuntimeOptions:
    """How ONNX Runtime runs when it is timed."""

    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads of an operator (default 1).")] = None
    provider: Annotated[
        str | None, typer.Option(metavar="NAME", help="Execution provider, such as cpu (default) or cuda.")
    ] = None
    optimization: Annotated[
        str | None, typer.Option(metavar="|".join(LEVELS), help="ONNX Runtime's graph optimisations (default: all).")
    ] = None


@dataclass(frozen=True)
class BenchOptions(RuntimeOptions):
    """How the latency of the result is measured."""

    bench_seconds: Annotated[
        float | None, typer.Option(min=0, metavar="S", help="How long the latency is measured (default 1 s).")
    ] = None
    allow_slower: Annotated[
        bool | None, typer.Option("--allow-slower", help="Save a result that is slower than the original, too.")
    ] = None
    cache: Annotated[
        bool | None,
        typer.Option("--cache/--no-cache", help="Keep what was measured for --latency and --round-to auto, or do not."),
    ] = None


@dataclass(frozen=True)
class PassOptions:
    """What runs."""

    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop at the plan: print it, write no model.")] = False
    passes: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A pipeline of passes instead of the default one.")
    ] = None
    verify_each: Annotated[bool, typer.Option("--verify-each", help="Check the model after each pass.")] = False


@dataclass(frozen=True)
class OutputOptions:
    """What is written."""

    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT.onnx", help="Where to write the pruned model.")
    ] = None
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON.")] = None
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Write the report as a page to look at.")
    ] = None


@dataclass(frozen=True)
class PlanOptions(OutputOptions):
    """What `prune` writes."""

    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="Save the plan, for `onnxprune apply`.")
    ] = None


BudgetGroup = Annotated[BudgetOptions, Panel("Budget: give exactly one")]
ChoiceGroup = Annotated[ChoiceOptions, Panel("Which units go")]
LibraryGroup = Annotated[LibraryOptions, Panel("Inputs")]
RecoverGroup = Annotated[RecoverOptions, Panel("Recovery")]
InputGroup = Annotated[InputOptions, Panel("Inputs")]
SampleGroup = Annotated[SampleOptions, Panel("Inputs")]
TestGroup = Annotated[TestOptions, Panel("Inputs")]
ShapeGroup = Annotated[ShapeOptions, Panel("Inputs")]
CheckGroup = Annotated[CheckOptions, Panel("Checks")]
GateGroup = Annotated[Gates, Panel("Gates: if one is missed nothing is saved, exit code 1")]
RuntimeGroup = Annotated[RuntimeOptions, Panel("How ONNX Runtime runs")]
BenchGroup = Annotated[BenchOptions, Panel("Latency")]
PassGroup = Annotated[PassOptions, Panel("Passes")]
OutputGroup = Annotated[OutputOptions, Panel("Output")]
PlanGroup = Annotated[PlanOptions, Panel("Output")]


CONFIG = {
    "prune": (BudgetOptions, ChoiceOptions, RecoverOptions, TestOptions, CheckOptions, BenchOptions),
    "gates": (Gates,),
}
CONFIG_TOO = {"prune": {"passes": str, "json": Path, "report": Path}}  # of groups that are the command line's otherwise


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with its groups spread out into options, as typer reads them from a signature."""
    hints = typing.get_type_hints(command, include_extras=True)
    groups = {n: (typing.get_args(h)[0], panel) for n, h in hints.items() if (panel := _panel(h))}

    @functools.wraps(command)
    def flat(**given: Any) -> Any:
        made = {n: kind(**{f.name: given.pop(f.name) for f in fields(kind)}) for n, (kind, _) in groups.items()}
        return command(**given, **made)

    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _parameters(*groups[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {p.name: p.annotation for p in parameters}
    return flat


def _panel(hint: Any) -> Panel | None:
    return next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Panel)), None)


def _parameters(kind: type[Any], panel: Panel) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(kind, include_extras=True)
    made = []
    for f in fields(kind):
        plain, *marks = typing.get_args(hints[f.name]) if hasattr(hints[f.name], "__metadata__") else (hints[f.name],)
        option = copy.copy(next(iter(marks), None)) or typer.Option(**f.metadata["option"])
        option.rich_help_panel = panel.title
        hint = Annotated[plain, option]  # type: ignore[valid-type]
        made.append(inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hint))
    return made


def kinds(table: str) -> dict[str, Any]:
    """The keys that a table of the config file may have, each with the type of its option, None left out."""
    found = dict(CONFIG_TOO.get(table, {}))
    for kind in CONFIG[table]:
        hints = typing.get_type_hints(kind)
        found |= {f.name: next(t for t in typing.get_args(hints[f.name]) if t is not NoneType) for f in fields(kind)}
    return found


def settings(options: Mapping[str, Any]) -> Settings:
    """The settings in options by name; one thread of the CPU if nothing is said."""
    return replace(ONE_THREAD, **{f.name: options[f.name] for f in fields(Settings) if f.name in options})


def given(*groups: Any) -> dict[str, Any]:
    """What was given of some groups, by name: neither None nor an empty list."""
    found = {f.name: getattr(g, f.name) for g in groups for f in fields(g)}
    return {n: v for n, v in found.items() if v not in (None, [])}


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """An input and its shape from `NAME:1x3x224x224`."""
    name, _, sizes = text.rpartition(":")
    parts = sizes.split("x")
    if not name or not all(p.isascii() and p.isdigit() and int(p) for p in parts):
        raise InputError(f"cannot read the shape {text!r}: write it as NAME:1x3x224x224")
    return name, tuple(map(int, parts))
