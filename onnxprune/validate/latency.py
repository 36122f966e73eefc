"""Latency of models side by side, in one process: rounds in which each model runs once, in shuffled order; the medians,
and per model the median of its ratio to the first one, round by round, with a bootstrap interval.

Two things would make such an interval lie. The machine: what slows it slows a whole round, and a ratio within a round
loses most of it; a sample during which another process took the CPU away is taken again, and if that does not help its
round is left aside, as long as enough others remain. Where they do not, runs of one thread are told by the time that
their thread had the CPU. And the place in memory where a session happens to lie: the same
model, opened twice, differed by 2 to 14 % for as long as the sessions lived. So sessions are opened anew many times, in
shuffled order, and the bootstrap resamples sessions first and then their rounds (as Curtsinger and Berger, "Stabilizer:
statistically sound performance evaluation", ASPLOS 2013, randomise the layout of programs).

Only ratios travel between machines and days; the milliseconds are what this machine gave today. An interval that holds
1 shows no difference.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxprune.progress import Progress, silent
from onnxprune.sessions import CPU, Feeds, Runnable, Settings, open_session

SESSIONS, MIN_SESSIONS = 20, 5  # how often all models are opened, if time allows, and at least
MIN_ROUNDS, MAX_ROUNDS = 3, 1000  # of one set of sessions at least, of all at most
MIN_SAMPLE_SECONDS = 0.001  # shorter runs are repeated within a sample, above the clock's jitter, below a time slice
TRIES = 4  # of a sample that is interrupted
LONG_SECONDS = 0.1  # a run that takes longer is interrupted each time on a machine that has anything else to do
SLOW_SECONDS = 1.0  # a run that takes longer warms nothing up that can be told: it is a sample itself
RESAMPLES = 1000
WIDE = 0.1  # of the ratio: an interval wider than this says little
resource: Any = importlib.import_module("resource") if importlib.util.find_spec("resource") else None  # not on Windows
ONE_THREAD = Settings(threads=1)


Times = NDArray[np.float64]


@dataclass(frozen=True)
class Timing:
    """One model: milliseconds per run, one number a round, and their ratio to the first model's: the median over
    rounds, and its 95 % bootstrap interval.
    """

    times_ms: Times
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
    """Timings of two or more models, in the order they were given; the first is the reference. `sessions`: how often
    they were opened; `left_aside`: rounds that were interrupted and not used; `busy`: most were, so all are used, told
    by their time on the CPU where that can be had (`on_cpu`).
    """

    timings: tuple[Timing, ...]
    settings: Settings
    sessions: int
    left_aside: int = 0
    busy: bool = False
    on_cpu: bool = False

    @property
    def rounds(self) -> int:
        return len(self.timings[0].times_ms)

    def to_dict(self) -> dict[str, Any]:
        """How it was measured; what was found is the timings' own."""
        return {
            "rounds": self.rounds,
            "sessions": self.sessions,
            "rounds_left_aside": self.left_aside,
            "busy": self.busy,
            "on_cpu": self.on_cpu,
            **self.settings.to_dict(),
        }


class Sample(NamedTuple):
    """Seconds of a run, those of them that its thread had the CPU, and whether another process took it."""

    wall: float
    cpu: float
    interrupted: bool


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
    """Time models on one feed for about `seconds` in all, opening them included (at least MIN_SESSIONS times, with
    MIN_ROUNDS rounds each, or one where a run takes LONG_SECONDS, and that without warming up where it takes
    SLOW_SECONDS). Errors of ONNX Runtime come through.
    """
    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    groups: list[NDArray[np.float64]] = []  # (rounds, models, a Sample's numbers)
    tries = TRIES
    while len(groups) < MIN_SESSIONS or (time.perf_counter() - start < seconds and sum(map(len, groups)) < MAX_ROUNDS):
        progress("latency", min(time.perf_counter() - start, seconds), seconds)
        groups.append(np.array(_rounds(models, feeds, settings, seconds, rng, tries), float))
        tries = (
            1 if groups[-1][:, :, 2].any(axis=1).all() else TRIES
        )  # no use where all are interrupted again and again
    quiet = [g[calm] for g in groups if (calm := ~g[:, :, 2].any(axis=1)).any()]
    busy = len(quiet) < MIN_SESSIONS
    on_cpu = busy and settings.threads == 1 and settings.provider == CPU
    used = [g[:, :, int(on_cpu)] * 1e3 for g in (groups if busy else quiet)]
    left = sum(map(len, groups)) - sum(map(len, used))
    timings = tuple(_timing([g[:, k] for g in used], [g[:, 0] for g in used], seed) for k in range(len(models)))
    return Comparison(timings, settings, len(used), left, busy, on_cpu)


def _rounds(
    models: Sequence[Runnable],
    feeds: Feeds,
    settings: Settings,
    seconds: float,
    rng: np.random.Generator,
    tries: int = TRIES,
) -> list[list[Sample]]:
    """Rounds of one set of sessions: a sample of each model."""
    began = time.perf_counter()
    jobs = {int(k): open_session(models[k], settings) for k in rng.permutation(len(models))}
    took = {k: _warmed_up(job, feeds) for k, job in jobs.items()}
    longest = max(sample.wall for sample in took.values())
    if longest >= SLOW_SECONDS:
        return [[took[k] for k in range(len(models))]]
    repeats = {k: max(1, math.ceil(MIN_SAMPLE_SECONDS / max(s.wall, 1e-6))) for k, s in took.items()}
    now = time.perf_counter()
    end = now + min(max(seconds / SESSIONS, now - began), seconds / MIN_SESSIONS)
    least = MIN_ROUNDS if longest < LONG_SECONDS else 1
    rounds: list[list[Sample]] = []
    while len(rounds) < least or (time.perf_counter() < end and len(rounds) < MAX_ROUNDS):
        found = {
            int(k): _calm_sample(jobs[int(k)], feeds, repeats[int(k)], tries) for k in rng.permutation(len(models))
        }
        rounds.append([found[k] for k in range(len(models))])
    return rounds


def _warmed_up(job: Any, feeds: Feeds) -> Sample:
    """A run, the second one where the first did not take long."""
    first = _sample(job, feeds, 1)
    return first if first.wall >= LONG_SECONDS else _sample(job, feeds, 1)


def _timing(times: Sequence[Times], reference: Sequence[Times], seed: int) -> Timing:
    ratios = [t / r for t, r in zip(times, reference, strict=True)]
    return Timing(np.concatenate(times), float(np.median(np.concatenate(ratios))), interval(ratios, seed))


def interval(groups: Sequence[Times], seed: int) -> tuple[float, float]:
    """95 % interval of the median of all values, from a bootstrap in two stages: groups, then values within each.

    With few groups such an interval is too narrow, since what is drawn varies less than what was drawn from, by (n - 1)
    / n; the percentiles are moved outwards as far as a t interval is wider than a normal one (Hesterberg 2015, "What
    teachers should know about the bootstrap", expanded percentile intervals).
    """
    rng = np.random.default_rng(seed)
    sizes = np.array([len(g) for g in groups])
    table = np.full((len(groups), sizes.max()), np.inf)
    for row, group in zip(table, groups, strict=True):
        row[: len(group)] = group
    picked = rng.integers(0, len(groups), (RESAMPLES, len(groups)))
    counts = sizes[picked][..., None]
    drawn = (rng.random((*picked.shape, table.shape[1])) * counts).astype(int)
    values = np.where(np.arange(table.shape[1]) < counts, table[picked[..., None], drawn], np.inf)
    ordered = np.sort(values.reshape(RESAMPLES, -1), axis=1)
    total = counts.sum(axis=(1, 2))
    rows = np.arange(RESAMPLES)
    medians = (ordered[rows, (total - 1) // 2] + ordered[rows, total // 2]) / 2
    tail = expanded_tail(len(groups))
    low, high = np.quantile(medians, [tail, 1 - tail])
    return float(low), float(high)


def expanded_tail(groups: int) -> float:
    """The share beyond each end of a 95 % percentile interval of `groups` groups: 0.025 for many, less for few."""
    normal, n = NormalDist(), max(groups, 2)
    z, freedom = normal.inv_cdf(0.975), n - 1
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    t = z + sum(term / freedom ** (k + 1) for k, term in enumerate(terms))  # Student's, by Cornish and Fisher's series
    return normal.cdf(-t * math.sqrt(n / freedom))


def _calm_sample(job: Any, feeds: Feeds, repeat: int, tries: int) -> Sample:
    for _ in range(tries):
        sample = _sample(job, feeds, repeat)
        if not sample.interrupted or sample.wall > LONG_SECONDS:
            break
    return sample


def _sample(job: Any, feeds: Feeds, repeat: int) -> Sample:
    """A sample of some runs, its times per run."""
    taken, start, worked = _times_taken(), time.perf_counter(), time.thread_time()
    for _ in range(repeat):
        job.run(None, feeds)
    wall, cpu = time.perf_counter() - start, time.thread_time() - worked
    return Sample(wall / repeat, cpu / repeat, _times_taken() > taken)


def _times_taken() -> int:
    """How often the system took the CPU from this process (involuntary context switches); 0 where it does not tell."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0
