"""Options from a TOML file: keys of `onnxprune prune`, at the top level or in a table `[prune]`; gates in a table
`[gates]`; and a table `[data]` that says where the data is (`path`, `test`, `samples`) and how images are read
(`Preprocessing`). Which keys there are, and of what type, is told by the options themselves. What the command line
gives wins (`merged`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from onnxprune.data import DataLike, Preprocessing, with_preprocessing
from onnxprune.errors import InputError
from onnxprune.gates import Gates
from onnxprune.options import CONFIG, Multiple, given, kinds

# type of an option: what TOML may give for it
TOML: dict[Any, tuple[type, ...]] = {
    float: (float, int),
    int: (int,),
    Multiple: (int, str),
    bool: (bool,),
    str: (str,),
    Path: (str,),
    list[str]: (list, str),
    list[Path]: (list, str),
}
BUDGETS = ("ratio", "macs", "params", "bytes", "latency", "latency_ms", "max_drop", "lossless")
DATA = {"path": "data", "test": "test_data", "samples": "samples"}  # keys of [data], and the options that they are


def merged(config: Path | None, gates: Gates, *groups: Any) -> dict[str, Any]:
    """Options of the config, those of the command line over them; a budget given there replaces the config's."""
    found, mine = read_config(config) if config else {}, given(*groups)
    if any(n in mine for n in BUDGETS):
        found = {n: v for n, v in found.items() if n not in BUDGETS}
    return found | mine | {"gates": Gates.of(found.get("gates", {}) | gates.given)}


def source(options: dict[str, Any], path: str | Path | None) -> DataLike | None:
    """Data with the preprocessing that the config states."""
    return None if path is None else with_preprocessing(path, options.get("images"))


def read_config(path: Path) -> dict[str, Any]:
    """Options of a config file by name, gates as a dict under "gates", and with a table [data] a `Preprocessing` under
    "images". InputError if it cannot be read, is not TOML, or has an unknown or ill-typed key.
    """
    try:
        data: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"the config {path} is not TOML: {error}") from error
    tables = {name: data.get(name, {}) for name in CONFIG}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise InputError(f"the config {path} gives {name!r} a {type(table).__name__}: write a table [{name}]")
    flat = {k: v for k, v in data.items() if k not in tables} | tables["prune"]
    gates = _options(path, tables["gates"], "gates")
    found = {"gates": gates} if gates else {}
    stated = data.get("data")
    if not isinstance(stated, dict):
        return _options(path, flat, "prune") | found
    if "data" not in tables["prune"]:
        del flat["data"]
    where = {DATA[k]: v for k, v in stated.items() if k in DATA}
    if twice := sorted(where.keys() & {k.replace("-", "_") for k in flat}):
        raise InputError(f"the config {path} gives {', '.join(twice)} twice: in the table [data] and outside")
    return _options(path, flat | where, "prune") | found | {"images": _preprocessing(path, stated)}


def _preprocessing(path: Path, stated: Mapping[str, Any]) -> Preprocessing:
    known = [f.name for f in fields(Preprocessing)]
    if unknown := next((k for k in stated if k not in known and k not in DATA), None):
        choice = ", ".join([*DATA, *known])
        raise InputError(f"the config {path} has an unknown key {unknown!r} in [data]: choose from {choice}")
    try:
        return Preprocessing(**{k: v for k, v in stated.items() if k in known})
    except InputError as error:
        raise InputError(f"the config {path}: {error}") from error


def _options(path: Path, table: Mapping[str, Any], title: str) -> dict[str, Any]:
    known = kinds(title)
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            raise InputError(f"the config {path} has an unknown option {key!r}: choose from {', '.join(known)}")
        wanted = TOML[known[name]]
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            raise InputError(f"the config {path} gives {key!r} a {type(value).__name__}, it takes {wanted[0].__name__}")
        found[name] = [value] if list in wanted and isinstance(value, str) else value
        if isinstance(value, list) and not all(isinstance(v, str) for v in value):
            raise InputError(f"the config {path} gives {key!r} a list with something that is not text")
    return found
