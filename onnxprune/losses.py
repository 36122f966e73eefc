"""How far outputs are off, without labels: what sensitivities are measured in, and what gradients are taken of.

    relative      squared error over the squared deviation of the outputs from their mean
    divergence    of a classifier's probabilities (Kullback-Leibler, nats): an error of the leading scores counts, one
                  of a thousand unlikely classes hardly does
    leniency      divergence of probabilities at every step of a sequence, in both directions, where a class may come up
                  a few steps earlier or later: what a recogniser of text reads does not depend on where exactly

`OutputError` is the first, plus the second where an output is class scores (N, C) that favour some class; of such
scores at steps, (N, T, C), it is the third and a tenth of the first; of whole numbers the share that differs.

Gradients are of a loss of the outputs y of one sample (`loss_gradient`):

    class scores       cross entropy with the label, or with the model's own first choice where there are no labels;
                       `curvature` without labels: noise whose squared gradient is, on average, the curvature of the
                       divergence from the model's own probabilities (that loss itself has no gradient)
    anything else      a random projection of y / rms(y): its squared gradient is on average that of the squared error

Class scores are (N, C) or (N, C, 1, 1) with C > 1: probabilities where they are such, else logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d

Array = NDArray[Any]
PROBABILITY_SUM = 1e-3  # rows that sum to 1 within this, and hold nothing negative, are probabilities already
SMALLEST = 1e-12  # probabilities below are taken for this
REACH = 2  # steps that a class may be off
EXACTLY = 0.1  # what counts besides of the error step by step
SEEN, LEAST_PROBABILITY = 1e-2, 1e-6  # classes that are likelier at some step; what is taken for 0 there
CONSTANT = 1e-6  # of the squared size of an output, if it deviates less from its mean
FAVOURED = 0.5  # the mean of the largest probability, from which on outputs are taken for class scores
SURE, COMMON = 0.9, 0.98  # that mean, and the share of the commonest class, for scores at steps without a softmax


class OutputError:
    """The error of several outputs, summed up feed by feed."""

    def __init__(self) -> None:
        self._terms: list[list[_Terms]] = []

    def add(self, want: Sequence[Any], got: Sequence[Any]) -> None:
        """Take in the outputs of one feed; those that are no arrays of numbers, or of another shape, are left out."""
        pairs = zip(want, got, strict=True)
        self._terms.append([_terms(a, b) if _compares(a, b) else _Terms() for a, b in pairs])

    def value(self) -> float:
        """The mean over outputs; infinite where one is not finite and the original's is."""
        made = [_together(terms) for terms in zip(*self._terms, strict=True) if any(t.signal for t in terms)]
        return float(np.nan_to_num(np.mean(made), nan=np.inf)) if made else 0.0


def output_error(want: Sequence[Sequence[Any]], got: Sequence[Sequence[Any]]) -> float:
    """Error of the outputs of several feeds, each a list of outputs; what is not finite counts as 0."""
    made = OutputError()
    for a, b in zip(want, got, strict=True):
        made.add(a, [np.nan_to_num(x, posinf=0, neginf=0) if isinstance(x, np.ndarray) else x for x in b])
    return made.value()


@dataclass
class _Terms:
    """Of one output of one feed: its squared error, its squared deviation, and by measure the sum over its samples."""

    noise: float = 0.0
    signal: float = 0.0
    samples: int = 0
    divergence: float | None = None
    leniency: float | None = None


def _compares(a: Any, b: Any) -> bool:
    arrays = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
    return arrays and a.shape == b.shape and a.dtype.kind in "fiub" and a.size > 0


def _terms(want: Array, got: Array) -> _Terms:
    if want.dtype.kind != "f":
        return _Terms(float((want != got).sum()), want.size, len(want) if want.ndim else 1)
    fine = np.isfinite(want)
    wide = np.promote_types(want.dtype, np.float32)
    a, b = (np.where(fine, x, 0).astype(wide, copy=False) for x in (want, got))
    samples = a.ndim > 0 and len(a) > 1
    middle = a.mean(0 if samples else None, dtype=np.float64)  # over samples, or all entries where there is one sample
    deviation, size = (float(np.square(a - m, dtype=np.float64).sum()) for m in (middle, np.float64(0)))
    noise = float(np.square(np.subtract(a, b, dtype=np.float64)).sum())
    made = _Terms(noise, max(deviation, CONSTANT * size, 1e-30), len(a) if a.ndim else 1)
    if _favours(a):
        made.divergence = float(divergence(a, b).sum())
    elif _favours_at_steps(a):
        made.leniency = float(lenient_divergence(a, b).sum())
    return made


def _together(terms: Sequence[_Terms]) -> float:
    """Error of one output over feeds."""
    found = sum(t.noise for t in terms) / sum(t.signal for t in terms)
    samples = sum(t.samples for t in terms)
    if all(t.divergence is not None for t in terms):
        return found + sum(t.divergence or 0.0 for t in terms) / samples
    if all(t.leniency is not None for t in terms):
        return EXACTLY * found + sum(t.leniency or 0.0 for t in terms) / samples
    return found


def _favours(scores: Array) -> bool:
    """Whether scores (N, classes) favour a class in each row."""
    if scores.ndim != 2 or scores.shape[1] < 2 or not len(scores):
        return False
    largest = np.exp(log_probabilities(scores, is_distribution(scores))).max(1)
    return bool(largest.mean() >= FAVOURED)


def _favours_at_steps(scores: Array) -> bool:
    """Whether scores (N, T, classes) favour classes at the steps: probabilities do so as in `_favours`, scores without
    a softmax if they are sure, and not always of the same one, as features with one large entry are.
    """
    if scores.ndim != 3 or scores.shape[1] < 2 or scores.shape[2] < 2 or not scores.size:
        return False
    rows = scores.reshape(-1, scores.shape[2])
    if is_distribution(rows):
        return _favours(rows)
    largest = np.exp(log_probabilities(rows, False).max(1))
    return bool(largest.mean() >= SURE and np.bincount(rows.argmax(1)).max() <= COMMON * len(rows))


def divergence(want: Array, got: Array) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of the probabilities `got` from `want`, both scores (N, classes), in nats: (N,)."""
    ready = is_distribution(want)
    with np.errstate(all="ignore"):
        p, q = (log_probabilities(x, ready) for x in (want, got))
        terms = np.where(np.exp(p) > 0, np.exp(p) * (p - q), 0.0)
    total: NDArray[np.float64] = np.nan_to_num(terms.sum(1), nan=np.inf, posinf=np.inf)
    return total


def lenient_divergence(want: Array, got: Array) -> NDArray[np.float64]:
    """What each of two scores (N, T, classes) holds that the other does not hold within REACH steps, as a divergence of
    the probabilities in both directions, in nats, the mean over steps: (N,).
    """
    ready = is_distribution(want.reshape(-1, want.shape[2]))
    p, q = (x if ready else np.exp(log_probabilities(x, False)) for x in (want, got))
    seen = np.maximum(p.max((0, 1)), q.max((0, 1))) > SEEN
    p, q = (np.maximum(x[..., seen], LEAST_PROBABILITY) for x in (p, q))
    terms = (a * np.log(a / _nearby(b)) for a, b in ((p, q), (q, p)))
    total: NDArray[np.float64] = sum(np.maximum(t, 0).sum(2, dtype=np.float64).mean(1) for t in terms)
    return total


def _nearby(probabilities: Array) -> Array:
    """The largest within REACH steps."""
    width = 2 * REACH + 1
    return np.asarray(maximum_filter1d(probabilities, width, axis=1, mode="nearest"))


def is_distribution(scores: Array) -> bool:
    """Whether rows are probabilities already."""
    return bool((scores >= 0).all() and (np.abs(scores.sum(1) - 1) < PROBABILITY_SUM).all())


def log_probabilities(scores: Array, ready: bool) -> Array:
    """Logarithms of probabilities, or of the softmax of scores, (..., classes)."""
    if ready:
        return np.asarray(np.log(np.maximum(scores, SMALLEST)))
    shifted = scores - scores.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def loss_gradient(
    outputs: Mapping[str, Array], label: Array | None, curvature: bool, rng: np.random.Generator
) -> dict[str, Array]:
    """What is differentiated, as its gradient with respect to the outputs that it is a function of."""
    for name, output in outputs.items():
        if (y := _class_scores(output)) is not None:
            fits = label is not None and label.size == len(y) and label.min() >= 0 and label.max() < y.shape[1]
            made = _of_classes(y, label if fits else None, curvature, rng)
            return {name: made.reshape(output.shape).astype(output.dtype)}
    return {
        n: (rng.choice((-1.0, 1.0), y.shape) / (np.sqrt(np.square(y, dtype=np.float64).sum()) + 1e-12)).astype(y.dtype)
        for n, y in outputs.items()
    }


def _of_classes(y: Array, label: Array | None, curvature: bool, rng: np.random.Generator) -> Array:
    probabilities = is_distribution(y)
    if probabilities:
        p = np.maximum(y, 1e-6)
    else:
        p = np.exp(y - y.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
    if curvature and label is None:
        noise = rng.choice((-1.0, 1.0), y.shape)
        root = np.sqrt(p)
        made = noise / root if probabilities else root * noise - p * (root * noise).sum(1, keepdims=True)
        return np.asarray(made)
    chosen = y.argmax(1) if label is None else label.reshape(-1)
    hot = (np.arange(y.shape[1]) == chosen[:, None]).astype(np.float64)
    return np.asarray(-hot / p if probabilities else p - hot)


def _class_scores(output: Array) -> Array | None:
    """An output as scores (N, C) if it looks like them; probabilities of several labels at once do not."""
    shape = list(output.shape)
    if len(shape) not in (2, 4) or shape[1] < 2 or any(n != 1 for n in shape[2:]):
        return None
    y = output.reshape(shape[:2]).astype(np.float64)
    several = (y >= 0).all() and (y <= 1).all() and not is_distribution(y)
    return None if several else y
