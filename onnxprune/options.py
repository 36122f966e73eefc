"""Options that several commands share, and how those of a config and of the command line become one set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxprune.config import read_config
from onnxprune.data import DataLike, with_preprocessing

BUDGETS = ("ratio", "macs", "params", "lossless")
RUN = ("samples", "metric", "seed", "check", "passes")  # of `api.run`
DATA = "FILE|DIR|random"

Model = Annotated[Path, typer.Argument(metavar="IN.onnx", help="The model.", show_default=False)]
Original = Annotated[Path, typer.Argument(metavar="ORIGINAL", show_default=False)]
Pruned = Annotated[Path, typer.Argument(metavar="PRUNED", show_default=False)]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="OUT.onnx", help="Where to write the pruned model.")
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar=DATA,
        help="Real inputs: an .npz with arrays named like the model's inputs, an .npy, a folder of them, or a folder of"
        " images (see \\[data] of the config).",
    ),
]
TestData = Annotated[
    Path | None,
    typer.Option(metavar=DATA, help="Other data for the checks and the metric, used in full. Default: that of --data."),
]
Samples = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Take N samples of --data, spread evenly over it; 64 to 1024 are useful. Default: 512, for `check` all.",
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|MODULE:FUNCTION",
        help="Measured before and after: rel-l2, cosine, sqnr-db, top1-agreement, kl; top1, top5 where the data has"
        " labels; or a function of yours. Default: top1 where that is possible, else rel-l2.",
    ),
]
Config = Annotated[
    Path | None, typer.Option(metavar="FILE.toml", help="Read options from a file; those given here win.")
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of the random inputs.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print every cut and the time of each pass.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")]
NoCheck = Annotated[bool, typer.Option("--no-check", help="Skip the surgery check and all measurements.")]


def merged(config: Path | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the config, those of the command line over them; a budget given there replaces the config's."""
    options = read_config(config) if config else {}
    given = {k: v for k, v in given.items() if v not in (None, [])}
    if any(n in given for n in BUDGETS):
        options = {n: v for n, v in options.items() if n not in BUDGETS}
    return {**options, **given}


def for_run(options: Mapping[str, Any]) -> dict[str, Any]:
    """What `api.run` takes of the options."""
    kept = {n: options[n] for n in RUN if n in options}
    return {**kept, "data": source(options, "data"), "test_data": source(options, "test_data")}


def source(options: Mapping[str, Any], *names: str) -> DataLike | None:
    """The first of these options that is there, as data with its preprocessing."""
    path = next((options[n] for n in names if n in options), None)
    return None if path is None else with_preprocessing(path, options.get("images"))
