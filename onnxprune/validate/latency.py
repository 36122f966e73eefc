"""Latency of models side by side, in one process: after a warm-up, rounds in which each model runs once, in shuffled
order; the medians, and per model the median of its ratio to the first one, round by round, with a bootstrap interval.

What slows a machine slows a whole round, and a ratio within a round loses most of it. A sample during which another
process took the CPU away is taken again, and if that does not help its round is left aside, as long as enough others
remain. Only ratios travel between machines and days; the milliseconds are what this machine gave today. An interval
that holds 1 shows no difference.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.progress import Progress, silent
from onnxprune.sessions import Feeds, Runnable, Settings, open_session

MIN_ROUNDS, MAX_ROUNDS = 9, 1000
MIN_SAMPLE_SECONDS = 0.001  # shorter runs are repeated within a sample, above the clock's jitter, below a time slice
TRIES = 4  # of a sample that is interrupted
WARM_ROUNDS = 2
RESAMPLES = 2000
WIDE = 0.1  # of the ratio: an interval wider than this says little
resource: Any = importlib.import_module("resource") if importlib.util.find_spec("resource") else None  # not on Windows
ONE_THREAD = Settings(threads=1)


@dataclass(frozen=True)
class Timing:
    """One model: milliseconds per run, one number a round, and their ratio to the first model's: the median over
    rounds, and its 95 % bootstrap interval.
    """

    times_ms: NDArray[np.float64]
    ratio: float
    ci95: tuple[float, float]

    @property
    def median_ms(self) -> float:
        return float(np.median(self.times_ms))

    @property
    def speedup(self) -> float:
        return 1 / self.ratio

    @property
    def speedup_ci95(self) -> tuple[float, float]:
        return 1 / self.ci95[1], 1 / self.ci95[0]

    @property
    def verdict(self) -> str:
        return verdict(self.ci95[0] - 1, self.ci95[1] - 1)

    @property
    def is_wide(self) -> bool:
        """Whether the interval is too wide to say much: measure longer, or on a machine with less to do."""
        return self.ci95[1] - self.ci95[0] > WIDE * self.ratio

    def to_dict(self) -> dict[str, Any]:
        return {
            "median_ms": self.median_ms,
            "ratio": self.ratio,
            "ci95": list(self.ci95),
            "verdict": self.verdict,
            "times_ms": [round(float(t), 6) for t in self.times_ms],
        }


@dataclass(frozen=True)
class Comparison:
    """Timings of two or more models, in the order they were given; the first is the reference. `left_aside`: rounds
    that were interrupted and not used; `busy`: most were, so all are used.
    """

    timings: tuple[Timing, ...]
    settings: Settings
    left_aside: int = 0
    busy: bool = False

    @property
    def rounds(self) -> int:
        return len(self.timings[0].times_ms)

    def to_dict(self) -> dict[str, Any]:
        """How it was measured; what was found is the timings' own."""
        return {
            "rounds": self.rounds,
            "rounds_left_aside": self.left_aside,
            "busy": self.busy,
            **self.settings.to_dict(),
        }


def verdict(low: float, high: float) -> str:
    """What an interval around a difference shows."""
    return "faster" if high < 0 else "slower" if low > 0 else "no difference shown"


def compare(
    models: Sequence[Runnable],
    feeds: Feeds,
    settings: Settings = ONE_THREAD,
    seconds: float = 2.0,
    seed: int = 0,
    progress: Progress = silent,
) -> Comparison:
    """Time models on one feed for about `seconds` in all (at least MIN_ROUNDS rounds). Errors of ONNX Runtime come
    through.
    """
    jobs = [open_session(m, settings) for m in models]
    for _ in range(WARM_ROUNDS):
        once = [_sample(j, feeds, 1)[0] for j in jobs]
    repeats = [max(1, math.ceil(MIN_SAMPLE_SECONDS / max(t, 1e-6))) for t in once]
    rng = np.random.default_rng(seed)
    rounds: list[list[tuple[float, bool]]] = []
    start = time.perf_counter()
    while len(rounds) < MIN_ROUNDS or (time.perf_counter() - start < seconds and len(rounds) < MAX_ROUNDS):
        progress("latency", min(time.perf_counter() - start, seconds), seconds)
        found = {int(k): _calm_sample(jobs[k], feeds, repeats[k]) for k in rng.permutation(len(jobs))}
        rounds.append([found[k] for k in range(len(jobs))])
    table = np.array([[time for time, _ in r] for r in rounds]) * 1e3
    calm = ~np.array([any(interrupted for _, interrupted in r) for r in rounds])
    busy = int(calm.sum()) < MIN_ROUNDS
    used = table if busy else table[calm]
    timings = tuple(_timing(column, used[:, 0], seed) for column in used.T)
    return Comparison(timings, settings, len(table) - len(used), busy)


def _timing(times: NDArray[np.float64], reference: NDArray[np.float64], seed: int) -> Timing:
    ratios = times / reference
    return Timing(times, float(np.median(ratios)), interval(ratios, seed))


def interval(values: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    picks = np.random.default_rng(seed).integers(0, values.size, (RESAMPLES, values.size))
    low, high = np.percentile(np.median(values[picks], axis=1), [2.5, 97.5])
    return float(low), float(high)


def _calm_sample(job: Any, feeds: Feeds, repeat: int) -> tuple[float, bool]:
    for _ in range(TRIES):
        seconds, interrupted = _sample(job, feeds, repeat)
        if not interrupted:
            break
    return seconds, interrupted


def _sample(job: Any, feeds: Feeds, repeat: int) -> tuple[float, bool]:
    """Seconds per run, and whether another process took the CPU meanwhile."""
    taken, start = _times_taken(), time.perf_counter()
    for _ in range(repeat):
        job.run(None, feeds)
    return (time.perf_counter() - start) / repeat, _times_taken() > taken


def _times_taken() -> int:
    """How often the system took the CPU from this process (involuntary context switches); 0 where it does not tell."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0
