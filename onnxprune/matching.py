"""Mends that leave the directions of a product's weights alone, from the statistics of each of its outputs.

    fill    y + c           c: the mean of the target less the mean of y
    match   s * y + c       and s: the ratio of their standard deviations

A fill puts the mean of what was removed into the bias: exactly, where removed units are constant. A match gives each
channel the mean and variance that it had, as re-estimating BatchNormalization does (Hoffer et al. 2020, "Improving
neural network quantization without retraining"; here also where it was folded away). Both are taken only where samples
that are held out agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.regression import NEGLIGIBLE_BIAS, Solution, by_fold, usable

Array = NDArray[Any]
SCALES = (0.2, 5.0)  # beyond these a ratio of deviations says that the outputs have little in common
TINY = 1e-12


@dataclass
class Channels:
    """Sums over rows of one fold, per output (G, O), in float64: of y, t, y^2, t^2 and y t. y is taken less a shift."""

    n: int = 0
    y: Any = 0.0
    t: Any = 0.0
    yy: Any = 0.0
    tt: Any = 0.0
    yt: Any = 0.0

    def add(self, y: Array, t: Array) -> None:
        """Take in (G, rows, O)."""
        self.n += y.shape[1]
        for name, a, b in (("y", y, None), ("t", t, None), ("yy", y, y), ("tt", t, t), ("yt", y, t)):
            total = a.sum(1, dtype=np.float64) if b is None else np.einsum("gro,gro->go", a, b, dtype=np.float64)
            setattr(self, name, getattr(self, name) + total)

    def __add__(self, other: Channels) -> Channels:
        return Channels(*(getattr(self, f) + getattr(other, f) for f in ("n", "y", "t", "yy", "tt", "yt")))

    def fill(self) -> tuple[Array, Array]:
        """s and c (G, O) that give the mean."""
        return np.ones_like(self.y), (self.t - self.y) / self.n

    def match(self) -> tuple[Array, Array]:
        """s and c (G, O) that give mean and variance; channels that do not vary keep their scale."""
        own, wanted = self._variance(self.yy, self.y), self._variance(self.tt, self.t)
        varies = (own > TINY) & (wanted > TINY)
        s = np.where(varies, np.clip(np.sqrt(wanted / np.where(varies, own, 1.0)), *SCALES), 1.0)
        return s, (self.t - s * self.y) / self.n

    def _variance(self, squares: Array, total: Array) -> Array:
        return np.maximum(squares / self.n - np.square(total / self.n), 0)

    def error(self, s: Array, c: Array) -> float:
        """Mean square of t - s * y - c over rows, summed over outputs."""
        cross = self.tt - 2 * s * self.yt + s**2 * self.yy
        return float((cross - 2 * c * (self.t - s * self.y) + self.n * c**2).sum() / self.n)

    def gap(self, s: Array, c: Array) -> float:
        """Distance of the means, and of the deviations, squared and summed over outputs."""
        means = (self.t - s * self.y) / self.n - c
        own, wanted = (np.sqrt(v) for v in (self._variance(self.yy, self.y), self._variance(self.tt, self.t)))
        return float(np.square(means).sum() + np.square(s * own - wanted).sum())


@dataclass
class Matching:
    """Collects the outputs of one product beside their targets. `scale`: match, else fill. Other fields and the
    methods are those of `Regression`.
    """

    weight: Array
    bias: Array
    spare_bias: bool = False
    biased: bool = True
    scale: bool = True
    folds: tuple[Channels, Channels] = field(default_factory=lambda: (Channels(), Channels()))
    shift: Array | None = None

    def add(self, x: Array, t: Array, first: int, valid: NDArray[np.bool_] | None = None) -> None:
        """Rows of some samples, as for `Regression.add`."""
        for fold, rows, targets in by_fold(x, t, first, valid):
            rows, targets = usable(rows, targets)
            if rows.shape[1]:
                y = rows @ self.weight.astype(np.float32)
                self.shift = y.mean(1, dtype=np.float64) if self.shift is None else self.shift
                shift = self.shift[:, None].astype(np.float32)
                self.folds[fold].add(y - shift, targets - shift)

    def solve(self, stored: Callable[[Array], Array] = lambda weight: weight) -> Solution:
        """The scale and shift that the first fold suggests, if the second agrees; then those of both."""
        fit, held = self.folds
        same = Solution(self.weight, self.bias, 0.0, 0.0)
        if not fit.n or self.shift is None:
            return same
        judge = held if held.n else fit
        error = judge.gap if self.scale else judge.error
        one, none = np.ones_like(self.shift), self._bias(np.ones_like(self.shift), self.bias)
        before = error(one, none)
        ways = [w for w, able in ((Channels.fill, self.biased), (Channels.match, self.scale)) if able]
        tried = [(error(*self._made(way, fit)), k) for k, way in enumerate(ways)]
        best, k = min(tried, default=(before, 0))
        if not best < before:
            return Solution(self.weight, self.bias, before, before)
        s, c = self._made(ways[k], fit + held)
        weight = stored(self.weight * s[:, None])
        bias = self._stored_bias(s, c, judge)
        return Solution(weight, bias, before, best) if np.isfinite(weight).all() else same

    def _made(self, way: Callable[[Channels], tuple[Array, Array]], moments: Channels) -> tuple[Array, Array]:
        s, c = way(moments)
        return (s, c) if self.biased else (s, self._bias(s, np.zeros_like(s)))

    def _bias(self, s: Array, bias: Array) -> Array:
        """The c that a bias of the product amounts to, for outputs that are taken less the shift."""
        assert self.shift is not None
        return np.asarray(bias + s * self.shift - self.shift)

    def _stored_bias(self, s: Array, c: Array, judge: Channels) -> Array:
        """The bias for s and c; none where the product has none and does about as well without."""
        bare = self._bias(s, np.zeros_like(s))
        if self.spare_bias and judge.error(s, bare) <= (1 + NEGLIGIBLE_BIAS) * judge.error(s, c):
            return np.zeros_like(c)
        return np.asarray(c - bare)
