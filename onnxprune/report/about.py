"""What a report is about: the command or call that it comes from, and the files."""

from __future__ import annotations

import inspect
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.gates import Gates

MAX_TOLD = 300  # characters of an option of a call
PLAIN = (str, int, float, os.PathLike, Gates)


@dataclass(frozen=True)
class About:
    """The command line or call as it can be repeated, the words of the command line, the names of the files."""

    command: str = ""
    argv: tuple[str, ...] = ()
    source: str = ""
    target: str = ""


UNTOLD = About()


def typed(argv: Sequence[str], source: Path, target: Path | None) -> About:
    """A command line, without the name of the program."""
    words = ("onnxprune", *argv)
    return About(shlex.join(words), words, source.name, target.name if target else "")


def called(function: Callable[..., Any], given: Mapping[str, Any]) -> About:
    """A call with the arguments `given` by name: those that are not the default ones, models and data by their type."""
    told = []
    for name, parameter in inspect.signature(function).parameters.items():
        value, default = given[name], parameter.default
        if default is parameter.empty:
            told.append(_told(value))
        elif value is not default and not (isinstance(value, (*PLAIN, tuple)) and value == default):
            told.append(f"{name}={_told(value)}")
    source = given["model"]
    name = Path(os.fsdecode(source)).name if isinstance(source, (str, os.PathLike)) else ""
    return About(f"onnxprune.{function.__name__}({', '.join(told)})", source=name)


def _told(value: Any) -> str:
    inner = list(value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value])
    text = ""
    if all(isinstance(v, PLAIN) for v in inner):
        text = repr(os.fspath(value) if isinstance(value, os.PathLike) else value)
    return text if 0 < len(text) <= MAX_TOLD else f"<{getattr(value, '__name__', type(value).__name__)}>"
