"""Functions that a user gives, or names as "module:function": metrics, criteria. Modules of the working directory are
found too; what fails in them is the user's to mend, and is told with the line that raised it.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from onnxprune.errors import InputError, OnnxPruneError


def imported(text: str, what: str, known: Iterable[str]) -> Callable[..., Any]:
    """The function of "module:function". InputError if there is none; `what` it was to be, and names `known` for it."""
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise InputError(f"unknown {what} {text!r}: choose from {', '.join(known)}, or give module:function")
    try:
        with _current_folder_first():
            importlib.invalidate_caches()
            found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"cannot import the {what} {text!r}: {_told(error)}") from error
    function = getattr(found, name, None)
    if not callable(function):
        raise InputError(
            f"cannot use the {what} {text!r}: {getattr(found, '__file__', module)} has no function {name!r}"
        )
    made: Callable[..., Any] = function
    return made


def called(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a user's function returns; InputError that names it where it fails."""
    try:
        with _current_folder_first():
            return function(*arguments)
    except OnnxPruneError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"the {what} failed: {_told(error)}") from error


def _told(error: BaseException) -> str:
    """An error and the line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"


@contextmanager
def _current_folder_first() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
