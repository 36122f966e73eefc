"""One number for how good a model is on data: what users and gates compare before and after pruning.

Built in are distances from the original's outputs, which need no labels, and accuracies, which do. A user's metric is a
function that gets the model as a function and the data:

    def accuracy(run, data):
        hits = [run(feeds)["logits"].argmax(1) == labels["labels"] for feeds, labels in data]
        return numpy.concatenate(hits).mean()

`run` maps feeds (arrays by input name) to outputs by name; `data` can be iterated over many times and gives pairs of
feeds and labels (the arrays beside the inputs, by name). Larger is better, unless the function has an attribute
`higher_is_better = False`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune import losses
from onnxprune.data import LABEL_NAMES, Labels
from onnxprune.errors import InputError
from onnxprune.functions import called, imported
from onnxprune.sessions import Runnable
from onnxprune.validate.numerics import Comparison, Original, Outputs, Run, Watcher, class_scores, decibels, runner

Function = Callable[..., float]  # (run, data) -> value, see above


class Tally(Watcher, Protocol):
    """A watcher that ends in one number."""

    def value(self) -> float:
        """The metric over all feeds seen."""


class NotApplicable(InputError):
    """The metric does not fit the model's outputs or the labels."""


@dataclass(frozen=True)
class Metric:
    """A metric: what it is called, whether larger is better, and what measures it: a tally or a user's function.
    `counts`: samples are right or wrong (as a user's function is taken to say), so few of them say little.
    """

    name: str
    higher_is_better: bool = True
    tally: Callable[[], Tally] | None = None
    function: Function | None = None
    counts: bool = True

    def drop(self, before: float, after: float) -> float:
        """The loss from `before` to `after` as a fraction of `before` (0.01: one hundredth of it is lost; below 0: a
        gain). Where `before` is 0, as for distances, it is the change itself; where it is infinite (decibels without
        noise), the ratio of noise to signal; infinite for what is no number.
        """
        if before == after:
            return 0.0
        if math.isnan(before) or math.isnan(after):
            return math.inf
        if math.isinf(before):
            return 10 ** (-after / 20)
        lost = before - after if self.higher_is_better else after - before
        return lost / (abs(before) or 1.0)


MetricLike = str | Function | Metric


@dataclass(frozen=True)
class Reading:
    """What a metric said at a stage of a run: "original", "removed", "recovered" or "step k". `drop`: the loss since
    the original, as a fraction; `samples`: how many it was measured on.
    """

    stage: str
    name: str
    value: float
    drop: float
    higher_is_better: bool
    samples: int


class Yardstick:
    """One metric, measured for every model of a run on the same samples. Without a metric: top1 where there are labels
    and class scores, else the relative L2 error.

    Raises InputError where the metric is unknown, fails or does not fit, or the original does not run on the data.
    """

    def __init__(self, original: Original, metric: MetricLike | None = None) -> None:
        self.original = original
        if metric is None:
            self.metric, self.before = self._default()
        else:
            self.metric = find_metric(metric)
            self.before = self._value(None, "the model")

    def _default(self) -> tuple[Metric, float]:
        for metric in DEFAULTS:
            self.metric = metric
            try:
                return metric, self._value(None, "")
            except NotApplicable:  # the next may fit
                continue
        raise InputError("the model has no output that could be compared: give a metric")

    def read(
        self, stage: str, model: Runnable | None = None, watchers: Sequence[Watcher] = (), title: str = "the model"
    ) -> Reading:
        """Measure a model (None: the original); further watchers see its outputs in the same run."""
        value = self.before if model is None else self._value(model, title, watchers)
        metric = self.metric
        drop = metric.drop(self.before, value)
        return Reading(stage, metric.name, value, drop, metric.higher_is_better, self.original.samples)

    def _value(self, model: Runnable | None, title: str, watchers: Sequence[Watcher] = ()) -> float:
        run = None if model is None else runner(model, title)
        if self.metric.tally is not None:
            tally = self.metric.tally()
            self.original.watch(run, [*watchers, tally])
            return tally.value()
        self.original.watch(run, watchers)
        return measured(self.metric, run or self.original.runner(), self.original.data)


class Distance:
    """A figure of `Comparison`, the mean over the outputs that have it."""

    def __init__(self, key: str, finish: Callable[[float], float] = float) -> None:
        self._comparison, self._key, self._finish = Comparison(), key, finish

    def add(self, want: Outputs, got: Outputs, labels: Labels) -> None:
        self._comparison.add(want, got, labels)

    def value(self) -> float:
        rows = self._comparison.table().values()
        found = [v for r in rows if (v := r[self._key]) is not None]
        if not found:
            raise NotApplicable(f"the model has no output with the figure {self._key}: choose another metric")
        return self._finish(float(np.mean(found)))


class RowMean:
    """The mean over samples of a number for each."""

    def __init__(self, rows: Callable[[Outputs, Outputs, Labels], NDArray[Any]]) -> None:
        self._rows, self._sum, self._count = rows, 0.0, 0

    def add(self, want: Outputs, got: Outputs, labels: Labels) -> None:
        found = self._rows(want, got, labels)
        self._sum += float(found.sum())
        self._count += found.size

    def value(self) -> float:
        return self._sum / self._count


def in_top(k: int, want: Outputs, got: Outputs, labels: Labels) -> NDArray[np.bool_]:
    """Whether the label is among the k largest scores, the first of equal ones counting as larger; (N,)."""
    scores = _scores(got)
    wanted = _class_labels(labels, scores.shape)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    hits: NDArray[np.bool_] = (best == wanted[:, None]).any(1) & ~np.isnan(scores).any(1)
    return hits


def divergence(want: Outputs, got: Outputs, labels: Labels) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of the original's class probabilities from the model's, in nats; (N,)."""
    return losses.divergence(_scores(want), _scores(got))


def _scores(outputs: Outputs) -> NDArray[np.float64]:
    """The first output that looks like class scores, (N, classes)."""
    found = next((s for o in outputs.values() if (s := class_scores(o)) is not None), None)
    if found is None:
        raise NotApplicable(f"the metric needs class scores (N, classes); the outputs {list(outputs)} are none")
    return found.astype(np.float64)


def _class_labels(labels: Labels, shape: tuple[int, ...]) -> NDArray[Any]:
    name = next((n for n in LABEL_NAMES if n in labels), None)
    if name is None:
        have = f"has {', '.join(sorted(labels)) or 'nothing'} beside the inputs"
        raise NotApplicable(f"the metric needs labels, an array named {' or '.join(LABEL_NAMES)}; the data {have}")
    found = labels[name]
    if found.dtype.kind not in "iu" or found.size != shape[0]:
        shown = f"{found.dtype} {list(found.shape)} for {shape[0]} samples"
        raise NotApplicable(f"the metric needs one whole number per sample in {name!r}: it is {shown}")
    if found.min() < 0 or found.max() >= shape[1]:
        raise NotApplicable(f"{name!r} goes from {found.min()} to {found.max()}, the model has {shape[1]} classes")
    return found.reshape(-1)


METRICS = {
    m.name: m
    for m in (
        Metric("rel-l2", False, partial(Distance, "rel_l2"), counts=False),
        Metric("cosine", True, partial(Distance, "cosine"), counts=False),
        Metric("sqnr-db", True, partial(Distance, "rel_l2", decibels), counts=False),
        Metric("top1-agreement", True, partial(Distance, "top1_agreement")),
        Metric("kl", False, partial(RowMean, divergence), counts=False),
        Metric("top1", True, partial(RowMean, partial(in_top, 1))),
        Metric("top5", True, partial(RowMean, partial(in_top, 5))),
    )
}
DEFAULTS = tuple(METRICS[n] for n in ("top1", "rel-l2", "top1-agreement"))


def find_metric(given: MetricLike) -> Metric:
    """A metric from its name, `module:function`, or a function. InputError if there is none such."""
    if isinstance(given, Metric):
        return given
    if isinstance(given, str):
        if given in METRICS:
            return METRICS[given]
        return _of_function(imported(given, "metric", METRICS), given)
    if not callable(given):
        raise InputError(f"a metric is a name, module:function or a function, got a {type(given).__name__}")
    return _of_function(given, getattr(given, "__name__", type(given).__name__))


def _of_function(function: Function, name: str) -> Metric:
    return Metric(name, bool(getattr(function, "higher_is_better", True)), function=function)


def measured(metric: Metric, run: Run, data: object) -> float:
    """What a user's function says; InputError naming it where it fails or gives no number."""
    if metric.function is None:
        raise InputError(f"the metric {metric.name!r} has neither a tally nor a function")
    found = called(f"metric {metric.name!r}", metric.function, run, data)
    try:
        return float(found)
    except (TypeError, ValueError) as error:
        raise InputError(f"the metric {metric.name!r} gave a {type(found).__name__}, it must give a number") from error
