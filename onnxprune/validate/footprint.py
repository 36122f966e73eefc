"""What a model file costs beside its latency: the time to load it, and the memory that it needs, each measured in a
process of its own, so that no other model's arena, cache or mapped file counts.

The process imports what it needs, notes its resident memory, opens a session on the file (load), then runs it once.
Memory is the peak resident set (VmHWM on Linux, ru_maxrss elsewhere) above what the imports took: mapped pages of the
file count while they are resident. The file was read before, so loading shows ONNX Runtime's work, not the disk's.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import InputError
from onnxprune.progress import Progress, silent
from onnxprune.sessions import Feeds, Program, Settings, open_session
from onnxprune.validate.latency import resource

ROUNDS = 3  # processes per model; the medians are reported
CHILD = "from onnxprune.validate.footprint import child; child()"
TAIL = 300  # characters of what a process said last
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Footprint:
    """Milliseconds to load, and peak bytes above the imports while loading and while running; None where this system
    does not tell. Where a peak cannot be reset, the second holds the first.
    """

    load_ms: float
    load_peak_bytes: int | None
    run_peak_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def footprints(
    models: Sequence[Path],
    feeds: Feeds,
    settings: Settings,
    rounds: int = ROUNDS,
    progress: Progress = silent,
    libraries: Sequence[Path] = (),
) -> list[Footprint]:
    """Load and run every file in `rounds` processes, in turn. InputError with the words of one that fails."""
    found: list[list[dict[str, Any]]] = [[] for _ in models]
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        data = Path(folder) / "feeds.npz"
        np.savez(data, *(a.astype(str) if a.dtype.kind == "O" else a for a in feeds.values()))
        for k in range(rounds):
            for i, model in enumerate(models):
                progress("load time and memory", k * len(models) + i, rounds * len(models))
                request = {"model": str(model), "data": str(data), "inputs": [*feeds], "settings": asdict(settings)}
                request["libraries"] = list(map(str, libraries))
                found[i].append(_probe(request))
    return [Footprint(**{key: _median([r[key] for r in rows]) for key in rows[0]}) for rows in found]


def _median(values: list[Any]) -> Any:
    return None if None in values else type(values[0])(statistics.median(values))


def _probe(request: dict[str, Any]) -> dict[str, Any]:
    paths = os.pathsep.join(p or os.curdir for p in sys.path)  # so that the process imports this very package
    made = subprocess.run(
        [sys.executable, "-P", "-c", CHILD],
        input=json.dumps(request),
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    last = (made.stdout.splitlines() or ["{}"])[-1]
    answer: dict[str, Any] = {} if made.returncode else json.loads(last)
    if "load_ms" not in answer:
        reason = answer.get("error", f"it ended with code {made.returncode}: {made.stderr.strip()[-TAIL:]}")
        raise InputError(f"{request['model']} could not be loaded and run in a process of its own: {reason}")
    return answer


def child() -> None:
    """What runs in the process: a request on stdin, the answer on stdout."""
    request = json.load(sys.stdin)
    with np.load(request["data"]) as arrays:
        values = [a.astype(object) if a.dtype.kind == "U" else a for a in arrays.values()]
    feeds = dict(zip(request["inputs"], values, strict=True))
    try:
        model = Program(Path(request["model"]), libraries=tuple(map(Path, request["libraries"])))
        answer = measure(model, feeds, Settings(**request["settings"]))
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        answer = {"error": str(error)}
    print(json.dumps(answer))


def measure(model: Program, feeds: Feeds, settings: Settings) -> dict[str, Any]:
    """One load and one run in this process, as the fields of a Footprint."""
    _reset_peak()
    base = peak_bytes()
    start = time.perf_counter()
    made = open_session(model, settings)
    load_ms = (time.perf_counter() - start) * 1e3
    loaded = peak_bytes()
    _reset_peak()
    made.run(None, feeds)
    ran = peak_bytes()
    above = [None if peak is None or base is None else max(peak - base, 0) for peak in (loaded, ran)]
    return {"load_ms": load_ms, "load_peak_bytes": above[0], "run_peak_bytes": above[1]}


def peak_bytes() -> int | None:
    """The largest resident set of this process so far, or since it was reset."""
    if STATUS.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
        return int(found[1]) * 1024 if found else None
    if resource is None:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(largest) if sys.platform == "darwin" else int(largest) * 1024


def _reset_peak() -> None:
    """Forget the peak so far, where the system allows it (Linux)."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")
