"""Latency of two models side by side, in one process: interleaved rounds after a warm-up, the median of the paired
ratios, a bootstrap interval.

Only ratios travel between machines and days; the milliseconds are what this machine gave today.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.sessions import Feeds, Runnable, session

MIN_ROUNDS, MAX_ROUNDS = 9, 200
MIN_SAMPLE_SECONDS = 0.002  # shorter runs are repeated within a sample, above the clock's and scheduler's jitter
RESAMPLES = 2000


@dataclass(frozen=True)
class Latency:
    """Milliseconds per run (medians); `speedup` = before / after, the median over pairs; `ci95` its 95 % bootstrap
    interval.
    """

    before: float
    after: float
    speedup: float
    ci95: tuple[float, float]
    rounds: int
    threads: int
    provider: str = "CPUExecutionProvider"

    def to_dict(self) -> dict[str, Any]:
        return {
            "before": self.before,
            "after": self.after,
            "speedup": self.speedup,
            "ci95": list(self.ci95),
            "rounds": self.rounds,
            "threads": self.threads,
            "provider": self.provider,
            "graph_optimization": "all",
        }


def bench(
    before: Runnable, after: Runnable, feeds: Feeds, seconds: float = 2.0, threads: int = 1, seed: int = 0
) -> Latency:
    """Time two models on one feed for about `seconds` (at least MIN_ROUNDS rounds)."""
    jobs = [session(m, threads=threads) for m in (before, after)]
    for _ in range(2):
        once = [_time(j, feeds, 1) for j in jobs]
    repeat = max(1, int(np.ceil(MIN_SAMPLE_SECONDS / max(min(once), 1e-6))))
    end = time.perf_counter() + seconds
    times: list[tuple[float, float]] = []
    while len(times) < MIN_ROUNDS or (time.perf_counter() < end and len(times) < MAX_ROUNDS):
        order = (0, 1) if len(times) % 2 == 0 else (1, 0)
        found = {k: _time(jobs[k], feeds, repeat) for k in order}
        times.append((found[0], found[1]))
    table = np.array(times)
    ratios = table[:, 0] / table[:, 1]
    low, high = interval(ratios, seed)
    median = np.median(table, axis=0) * 1e3
    return Latency(float(median[0]), float(median[1]), float(np.median(ratios)), (low, high), len(times), threads)


def interval(ratios: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    picks = np.random.default_rng(seed).integers(0, ratios.size, (RESAMPLES, ratios.size))
    low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5])
    return float(low), float(high)


def _time(job: Any, feeds: Feeds, repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        job.run(None, feeds)
    return (time.perf_counter() - start) / repeat
