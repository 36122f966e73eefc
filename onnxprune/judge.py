"""How sure is a loss of the metric that was measured on samples?

The metric is measured on groups of these samples too, each spread evenly over all of them. By how much the groups'
losses differ says by how much the loss on other samples would: their standard deviation over the root of their number
is its standard error (random groups: K. M. Wolter, Introduction to Variance Estimation, chapter 2). That holds for
whatever a metric is, also where it is no mean over samples. Both models see the same samples, so what is hard for both
of them does not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.data import Labels, sample_count
from onnxprune.errors import InputError
from onnxprune.metrics import Metric, Tally, Yardstick, measured
from onnxprune.sessions import Feeds, Runnable
from onnxprune.validate.numerics import Outputs, Run, runner

GROUPS = 32  # so that the error is known to an eighth
FEWEST = 4  # groups, where a user's function does not take fewer samples
KEPT_BYTES = 2**28  # of samples in groups for a user's function; of more the first ones must do
Arrays = dict[str, Any]
Pairs = list[tuple[Feeds, Labels]]


@dataclass(frozen=True)
class Loss:
    """The loss since the original as a fraction, its standard error (None where the metric has no value for parts of
    the samples), and on how many samples.
    """

    drop: float
    error: float | None
    samples: int


class Judge:
    """Measures the loss of a metric on the samples of a yardstick."""

    def __init__(self, yardstick: Yardstick) -> None:
        self._yardstick = yardstick
        made = _Pieces if yardstick.metric.tally is None else _Tallies
        self._groups: _Pieces | _Tallies = made(yardstick)

    @property
    def counts(self) -> bool:
        """Whether the metric says how many samples are right."""
        return self._yardstick.metric.counts

    def loss(self, model: Runnable) -> Loss:
        """Of a model. Raises as `Yardstick.read` does."""
        drop, after = self._groups.read(model)
        return Loss(drop, self._error(after), self._yardstick.original.samples)

    def _error(self, after: Sequence[float]) -> float | None:
        """From the groups' values; each counts as the whole that changes by as much."""
        before, metric, whole = self._groups.before, self._yardstick.metric, self._yardstick.before
        if len(after) < max(len(before), 2):
            return None
        shifted = after if math.isinf(whole) else [whole + a - b for a, b in zip(after, before, strict=True)]
        drops = np.array([metric.drop(whole, v) for v in shifted])
        error = drops.std(ddof=1) * self._groups.scale / math.sqrt(drops.size)
        return float(error) if np.isfinite(error) else None


class _Tallies:
    """Groups for a metric that is summed up feed by feed, in the run that measures the whole."""

    scale = 1.0

    def __init__(self, yardstick: Yardstick) -> None:
        self._yardstick = yardstick
        split = _Split(yardstick.metric)
        yardstick.original.watch(None, [split])
        self.before = split.values()

    def read(self, model: Runnable) -> tuple[float, list[float]]:
        """The loss of a model on all samples, and the values of the groups."""
        split = _Split(self._yardstick.metric)
        return self._yardstick.read("tried", model, [split]).drop, split.values()


class _Pieces:
    """Groups for a user's function, which are run one by one: as many as it has numbers for, none if it has none."""

    def __init__(self, yardstick: Yardstick) -> None:
        self._yardstick = yardstick
        original, held, size, samples = yardstick.original, Pairs(), 0, 0
        for feeds, labels in original.data:
            size += sum(a.nbytes for a in feeds.values())
            if held and size > KEPT_BYTES:
                break
            held.append((feeds, labels))
            samples += sample_count(feeds)
        self.scale = math.sqrt(samples / original.samples)
        run = original.runner()
        self._groups, self.before = list[Pairs](), list[float]()
        for units in (_cut(held), held):  # a model of a fixed batch size takes whole feeds only
            count = min(GROUPS, len(units))
            while count >= FEWEST and not self.before:
                self._groups = [units[k::count] for k in range(count)]
                self.before = self._values(run)
                count //= 2

    def read(self, model: Runnable) -> tuple[float, list[float]]:
        """The loss of a model on all samples, and the values of the groups."""
        drop = self._yardstick.read("tried", model).drop
        return drop, self._values(runner(model)) if self.before else []

    def _values(self, run: Run) -> list[float]:
        """What the function says of each group; nothing where it has no number for one."""
        try:
            found = [measured(self._yardstick.metric, run, pairs) for pairs in self._groups]
        except InputError:
            return []
        return found if np.isfinite(found).all() else []


class _Split:
    """A watcher that shows each of many tallies its group of the samples."""

    def __init__(self, metric: Metric) -> None:
        assert metric.tally is not None
        self._tallies: list[Tally] = [metric.tally() for _ in range(GROUPS)]
        self._seen, self._used = 0, set[int]()

    def add(self, want: Outputs, got: Outputs, labels: Labels) -> None:
        for k, (a, b, c) in _shares((want, got, labels), self._seen, len(self._tallies)):
            self._tallies[k].add(a, b, c)
            self._used.add(k)
        self._seen += _length((want, got, labels))

    def values(self) -> list[float]:
        """Of the groups that there were samples for."""
        return [self._tallies[k].value() for k in sorted(self._used)]


def _cut(held: Pairs) -> Pairs:
    """One sample each, as far as feeds can be cut."""
    return [(feeds, labels) for pair in held for _, (feeds, labels) in _shares(pair, 0, _length(pair))]


def _length(dicts: Sequence[Arrays]) -> int:
    """How many samples there are, that can be told apart by the first axis of all arrays; else it is one."""
    lengths = {a.shape[0] if isinstance(a, np.ndarray) and a.ndim else 0 for d in dicts for a in d.values()}
    return max(lengths.pop(), 1) if len(lengths) == 1 else 1


def _shares(dicts: Sequence[Arrays], seen: int, groups: int) -> Iterator[tuple[int, Sequence[Arrays]]]:
    """Of arrays of some samples, where others were `seen` before: each group that has some of them, and these."""
    count = _length(dicts)
    for first in range(min(count, groups)):
        rows = slice(first, None, groups)
        mine = dicts if count == 1 else [{n: a[rows] for n, a in d.items()} for d in dicts]
        yield (seen + first) % groups, mine
