"""Ridge regression from sufficient statistics: given many rows x (K) and targets t (O), the M and c that make
x @ M + c close to t, pulled towards the weights W that are there.

    M = W + (C + lambda * mean(diag C) * I)^-1 (D - C W)        C = cov(x, x), D = cov(x, t), both times n

Rows come in two folds, by sample: the penalty is the one whose solution on the first predicts the second best, and
leaving the weights alone, or changing the bias only, are among the candidates. Everything is batched over groups. Where
there are more summands than rows are worth (K > GRAM_LIMIT), the rows themselves are kept, and the same solution comes
from the n x n matrix of their products.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.rectified import Rows

Array = NDArray[Any]
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
DEFAULT_PENALTY = 1e-2  # where there are too few samples to choose
HELD_OUT = 5  # every fifth sample chooses the penalty
BLOCK_ROWS = 8192  # rows that are multiplied at once
NEGLIGIBLE_BIAS = 0.01  # of the error: a bias that can be left out is, if that costs no more
GRAM_LIMIT = 6144  # summands; more are solved in the rows' own space


@dataclass
class Moments:
    """Sums over rows of one fold, in float64: of x (G, K), t (G, O), x'x (G, K, K), x't (G, K, O) and t^2 (G, O)."""

    n: int = 0
    x: Any = 0.0
    t: Any = 0.0
    xx: Any = 0.0
    xt: Any = 0.0
    tt: Any = 0.0

    def add(self, x: Array, t: Array) -> None:
        """Take in x (G, rows, K) and t (G, rows, O), float32."""
        self.n += x.shape[1]
        self.x = self.x + x.sum(1, dtype=np.float64)
        self.t = self.t + t.sum(1, dtype=np.float64)
        self.xx = self.xx + product(x, x)
        self.xt = self.xt + product(x, t)
        self.tt = self.tt + np.square(t, dtype=np.float64).sum(1)

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, f) + getattr(other, f) for f in ("n", "x", "t", "xx", "xt", "tt")))

    def error(self, m: Array, c: Array) -> float:
        """Sum of squares of t - x @ m - c, for m (G, K, O) and c (G, O)."""
        if not self.n:
            return 0.0
        quadratic = np.einsum("gko,gko->", m, self.xx @ m) - 2 * np.einsum("gko,gko->", m, self.xt)
        rest = self.t - np.einsum("gk,gko->go", self.x, m)
        return float(self.tt.sum() + quadratic + self.n * np.square(c).sum() - 2 * (c * rest).sum())

    def intercept(self, m: Array) -> Array:
        """The c that is best for m."""
        return np.asarray((self.t - np.einsum("gk,gko->go", self.x, m)) / max(self.n, 1))

    def centred(self) -> tuple[Array, Array]:
        """C (G, K, K) and D (G, K, O)."""
        n = max(self.n, 1)
        return self.xx - self.x[:, :, None] * self.x[:, None] / n, self.xt - self.x[:, :, None] * self.t[:, None] / n


def product(a: Array, b: Array) -> Array:
    """a' b over rows, (G, rows, I) and (G, rows, J) -> (G, I, J), summed in blocks."""
    if a.shape[0] == 1:  # a plain product of a matrix with itself is recognised and costs half
        return np.asarray((a[0].T @ b[0])[None], np.float64)
    return np.asarray(a.transpose(0, 2, 1) @ b, np.float64)


@dataclass
class Solution:
    """New weights (G, K, O) and bias (G, O); squared error of the targets per row before and after, on the held-out
    fold where there is one; the penalty (None: only the bias changed, or nothing).
    """

    weight: Array
    bias: Array
    before: float
    after: float
    penalty: float | None = None


@dataclass
class Regression:
    """Collects rows of one product and solves for its weights. `shift` (G, K) is taken off x, against cancellation.
    `spare_bias`: the product has no bias yet, and should get one only if it is worth it. `rows`: where an activation
    follows, and what it lets through is what counts.
    """

    weight: Array
    bias: Array
    spare_bias: bool = False
    folds: tuple[Moments, Moments] = field(default_factory=lambda: (Moments(), Moments()))
    shift: Array | None = None
    rows: Rows | None = None
    _pending: list[tuple[int, Array, Array, Array | None]] = field(default_factory=list)
    _rows: int = 0

    @property
    def dual(self) -> bool:
        return int(self.weight.shape[1]) > GRAM_LIMIT

    def add(self, x: Array, t: Array, first: int, offset: Array | None = None) -> None:
        """Rows of some samples: x (N, G, P, K) and t (N, G, P, O), of samples number `first` and on; `offset`, as t:
        what is added in front of an activation.
        """
        held = np.arange(first, first + x.shape[0]) % HELD_OUT == HELD_OUT - 1
        for fold, mask in ((0, ~held), (1, held)):
            if mask.any():
                added = None if offset is None else _flat(offset[mask])
                self._pending.append((fold, _flat(x[mask]), _flat(t[mask]), added))
                self._rows += self._pending[-1][1].shape[1]
        if self._rows >= BLOCK_ROWS and not self.dual:
            self._flush()

    def _flush(self) -> None:
        for fold in (0, 1):
            x = [a for f, a, _, _ in self._pending if f == fold]
            t = [b for f, _, b, _ in self._pending if f == fold]
            o = [c for f, _, _, c in self._pending if f == fold and c is not None]
            if x:
                rows, targets = np.concatenate(x, 1).astype(np.float32), np.concatenate(t, 1).astype(np.float32)
                if self.shift is None:
                    self.shift = rows.mean(1)
                rows = rows - self.shift[:, None]
                self.folds[fold].add(rows, targets)
                if self.rows is not None:
                    self.rows.add(fold, rows, targets, np.concatenate(o, 1).astype(np.float32) if o else None)
        self._pending, self._rows = [], 0

    def solve(self) -> Solution:
        """The best candidate, found on one fold by the other, then solved anew on both."""
        if self.dual:
            return self._solve_dual()
        self._flush()
        fit, held = self.folds
        if not fit.n:
            return Solution(self.weight, self.bias, 0.0, 0.0)
        assert self.shift is not None
        w = self.weight.astype(np.float64)
        moved = self.bias + np.einsum("gk,gko->go", self.shift, w)  # the bias for shifted rows
        judge = held if held.n else fit
        before = judge.error(w, moved) / judge.n
        tried = {None: (w, fit.intercept(w))} | {p: self._ridge(fit, w, p) for p in self._penalties(held.n)}
        errors = {p: judge.error(*found) / judge.n for p, found in tried.items()}
        best = min(errors, key=lambda p: errors[p])
        if errors[best] >= before:
            return Solution(self.weight, self.bias, before, before)
        both = fit + held
        m, c = (w, both.intercept(w)) if best is None else self._ridge(both, w, best)
        if self.rows is not None and best is not None and held.n:
            start = tried[best]
            rounds, after = self.rows.choose(start[0], start[1], best)
            if rounds:
                m, c = self.rows.improve(m, c, best, rounds)
                before, errors[best] = self.rows.error(w, moved), after
        unbiased = np.einsum("gk,gko->go", self.shift, m)
        if self.spare_bias and judge.error(m, unbiased) <= (1 + NEGLIGIBLE_BIAS) * judge.error(m, c):
            c = unbiased
        return Solution(m, c - unbiased, before, errors[best], best)

    @staticmethod
    def _penalties(held: int) -> tuple[float, ...]:
        return PENALTIES if held else (DEFAULT_PENALTY,)

    @staticmethod
    def _ridge(moments: Moments, w: Array, penalty: float) -> tuple[Array, Array]:
        c, d = moments.centred()
        k = c.shape[1]
        level = np.maximum(np.trace(c, axis1=1, axis2=2) / k, 1e-12)
        damped = c + penalty * level[:, None, None] * np.eye(k)
        m = w + np.linalg.solve(damped, d - c @ w)
        return m, moments.intercept(m)

    def _solve_dual(self) -> Solution:
        """As `solve`, for few rows of many summands: M = W + X' (X X' + lambda I)^-1 (T - X W), columns centred."""
        kept = [(f, a[0].astype(np.float32), b[0].astype(np.float32)) for f, a, b, _ in self._pending]
        if not any(f == 0 for f, _, _ in kept):
            return Solution(self.weight, self.bias, 0.0, 0.0)
        folds = [
            tuple(
                np.concatenate([r[k] for r in kept if r[0] == f] or [np.empty((0, s), np.float32)])
                for k, s in ((1, self.weight.shape[1]), (2, self.weight.shape[2]))
            )
            for f in (0, 1)
        ]
        w = self.weight[0].astype(np.float32)
        (x, t), held = folds[0], folds[1]
        judge = held if len(held[0]) else folds[0]

        def error(m: Array, c: Array) -> float:
            return float(np.square(judge[1] - judge[0] @ m - c, dtype=np.float64).sum() / len(judge[0]))

        before = error(w, self.bias[0].astype(np.float32))
        tried: dict[float | None, tuple[Array, Array]] = {None: (w, (t - x @ w).mean(0))}
        tried |= {p: _dual(x, t, w, p) for p in self._penalties(len(held[0]))}
        errors = {p: error(*found) for p, found in tried.items()}
        best = min(errors, key=lambda p: errors[p])
        if errors[best] >= before:
            return Solution(self.weight, self.bias, before, before)
        x, t = (np.concatenate(pair) for pair in zip(*folds, strict=True))
        m, c = (w, (t - x @ w).mean(0)) if best is None else _dual(x, t, w, best)
        return Solution(m[None], c[None], before, errors[best], best)


def _flat(v: Array) -> Array:
    """(N, G, P, K) as (G, N*P, K)."""
    return v.swapaxes(0, 1).reshape(v.shape[1], -1, v.shape[3])


def _dual(x: Array, t: Array, w: Array, penalty: float) -> tuple[Array, Array]:
    mean = x.mean(0)
    centred, rest = x - mean, t - x @ w
    kernel = (centred @ centred.T).astype(np.float64)
    level = max(float(np.trace(kernel)) / x.shape[1], 1e-12)
    dual = np.linalg.solve(kernel + penalty * level * np.eye(len(x)), rest - rest.mean(0))
    m = w + centred.T @ dual.astype(np.float32)
    return m, (t - x @ m).mean(0)
