"""What was measured before: milliseconds by machine, settings and question, in one SQLite file of the user's cache.

SQLite keeps processes that write at the same time apart. The store is a convenience: where it cannot be read or written
(no place, no rights, a file that is damaged) everything is measured anew, and nothing fails.
"""

from __future__ import annotations

import hashlib
import platform
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnxruntime
import platformdirs

from onnxprune.sessions import Settings

TABLE = "CREATE TABLE IF NOT EXISTS times (machine TEXT, question TEXT, ms REAL, PRIMARY KEY (machine, question))"
WAIT_SECONDS = 2.0  # for another process to finish writing
FORMAT = 1  # of questions and of the way they are measured
MANY = 500  # questions in one query


def cache_folder() -> Path:
    """Where the times are kept, as the system wants it."""
    return Path(platformdirs.user_cache_dir("onnxprune", appauthor=False))


@cache
def processor() -> str:
    """The processor's name, as far as the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class Store:
    """Times at some settings. `folder`: None keeps nothing."""

    settings: Settings
    folder: Path | None = None

    @property
    def machine(self) -> str:
        """What times hold for: processor, ONNX Runtime, settings."""
        told = (FORMAT, processor(), platform.machine(), onnxruntime.__version__, *self.settings.to_dict().values())
        return hashlib.sha256(repr(told).encode()).hexdigest()[:32]

    def read(self, questions: Iterable[str]) -> dict[str, float]:
        """Those that are known."""
        wanted = list(dict.fromkeys(questions))
        found: dict[str, float] = {}
        if self.folder is None or not (self.folder / "times.sqlite").exists():
            return {}
        with suppress(sqlite3.Error, OSError), closing(self._open()) as base:
            for k in range(0, len(wanted), MANY):
                some = wanted[k : k + MANY]
                marks = ",".join("?" * len(some))
                query = f"SELECT question, ms FROM times WHERE machine = ? AND question IN ({marks})"
                found |= dict(base.execute(query, (self.machine, *some)))
        return {q: ms for q, ms in found.items() if isinstance(ms, float) and ms >= 0}

    def write(self, times: Mapping[str, float]) -> None:
        """Keep times; a damaged file is begun anew."""
        if self.folder is None or not times:
            return
        rows = [(self.machine, q, ms) for q, ms in times.items()]
        with suppress(sqlite3.Error, OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._insert(rows)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):  # locked, full, read-only: not damaged
                    return
                (self.folder / "times.sqlite").unlink()
                self._insert(rows)

    def _insert(self, rows: list[tuple[str, str, float]]) -> None:
        with closing(self._open()) as base, base:
            base.execute(TABLE)
            base.executemany("INSERT OR REPLACE INTO times VALUES (?, ?, ?)", rows)

    def _open(self) -> sqlite3.Connection:
        assert self.folder is not None
        return sqlite3.connect(self.folder / "times.sqlite", timeout=WAIT_SECONDS)
