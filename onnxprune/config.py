"""Options from a TOML file: the keys of `onnxprune prune`, at the top level or in a table `[prune]`; and a table
`[data]` that says where the data is (`path`, `test`, `samples`) and how images are read (`Preprocessing`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from onnxprune.data import Preprocessing
from onnxprune.errors import InputError

NUMBER, PATTERNS = (float, int), (list, str)
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("ratio", "macs", "params"), NUMBER),
    **dict.fromkeys(("include", "exclude"), PATTERNS),
    **dict.fromkeys(("lossless", "check"), (bool,)),
    **dict.fromkeys(("round_to", "samples", "seed"), (int,)),
    **dict.fromkeys(("scope", "criterion", "data", "test_data", "metric", "passes", "json"), (str,)),
}
DATA = {"path": "data", "test": "test_data", "samples": "samples"}  # keys of [data], and the options that they are


def read_config(path: Path) -> dict[str, Any]:
    """Options of a config file by name; a table [data] gives `images`, a `Preprocessing`, too. InputError if it cannot
    be read, is not TOML, or has an unknown or ill-typed key.
    """
    try:
        data: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"the config {path} is not TOML: {error}") from error
    table = data.get("prune", {})
    if not isinstance(table, dict):
        raise InputError(f"the config {path} gives 'prune' a {type(table).__name__}: write a table [prune]")
    flat = {**{k: v for k, v in data.items() if k != "prune"}, **table}
    stated = data.get("data")
    if not isinstance(stated, dict):
        return _options(path, flat)
    if "data" not in table:
        del flat["data"]
    where = {DATA[k]: v for k, v in stated.items() if k in DATA}
    if twice := sorted(where.keys() & {k.replace("-", "_") for k in flat}):
        raise InputError(f"the config {path} gives {', '.join(twice)} twice: in the table [data] and outside")
    return {**_options(path, {**flat, **where}), "images": _preprocessing(path, stated)}


def _preprocessing(path: Path, stated: Mapping[str, Any]) -> Preprocessing:
    known = [f.name for f in fields(Preprocessing)]
    if unknown := next((k for k in stated if k not in known and k not in DATA), None):
        raise InputError(f"the config {path} has an unknown key {unknown!r} in [data]: choose from {[*DATA, *known]}")
    try:
        return Preprocessing(**{k: v for k, v in stated.items() if k in known})
    except InputError as error:
        raise InputError(f"the config {path}: {error}") from error


def _options(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in KINDS:
            raise InputError(f"the config {path} has an unknown option {key!r}: choose from {', '.join(KINDS)}")
        if not isinstance(value, KINDS[name]) or (isinstance(value, bool) and bool not in KINDS[name]):
            raise InputError(
                f"the config {path} gives {key!r} a {type(value).__name__}, it takes {KINDS[name][0].__name__}"
            )
        found[name] = [value] if name in ("include", "exclude") and isinstance(value, str) else value
        if isinstance(value, list) and not all(isinstance(v, str) for v in value):
            raise InputError(f"the config {path} gives {key!r} a list with something that is not text")
    return found
