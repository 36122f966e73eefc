"""The command line as a process: runs one of the `commands` and turns what it raises into an exit code and a line on
stderr. Exit codes: 0 done, 1 a check failed, 2 bad input or usage, 3 an internal error, 130 interrupted.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from onnxprune.commands import app
from onnxprune.errors import GateError, InputError
from onnxprune.sessions import silence
from onnxprune.version import __version__

INTERRUPTED = 130
GC_OBJECTS = 1_000_000  # new objects between two collections


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
    silence()
    with _fewer_collections():
        return _exit_code(argv)


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


def _exit_code(argv: list[str] | None) -> int:
    try:
        words = sys.argv[1:] if argv is None else argv
        code = app(args=words, prog_name="onnxprune", standalone_mode=False, obj=words)
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
