"""Options from a TOML file: the keys of `onnxprune prune`, at the top level or in a table `[prune]`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxprune.errors import InputError

NUMBER, TEXTS = (float, int), (list, str)
LISTS = ("include", "exclude", "custom_op_library")
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("ratio", "macs", "params"), NUMBER),
    **dict.fromkeys(LISTS, TEXTS),
    **dict.fromkeys(("lossless", "check"), (bool,)),
    **dict.fromkeys(("round_to", "seed"), (int,)),
    **dict.fromkeys(("scope", "criterion", "data", "passes", "json"), (str,)),
}


def read_config(path: Path) -> dict[str, Any]:
    """Options of a config file by name. InputError if it cannot be read, is not TOML, or has an unknown or ill-typed
    key.
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
    found: dict[str, Any] = {}
    for key, value in {**{k: v for k, v in data.items() if k != "prune"}, **table}.items():
        name = key.replace("-", "_")
        if name not in KINDS:
            raise InputError(f"the config {path} has an unknown option {key!r}: choose from {', '.join(KINDS)}")
        if not isinstance(value, KINDS[name]) or (isinstance(value, bool) and bool not in KINDS[name]):
            raise InputError(
                f"the config {path} gives {key!r} a {type(value).__name__}, it takes {KINDS[name][0].__name__}"
            )
        found[name] = [value] if name in LISTS and isinstance(value, str) else value
        if isinstance(value, list) and not all(isinstance(v, str) for v in value):
            raise InputError(f"the config {path} gives {key!r} a list with something that is not text")
    return found
