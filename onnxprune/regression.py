"""Ridge regression from sufficient statistics: given many rows x (K) and targets t (O), the M and c that make
x @ M + c close to t, pulled towards the weights W that are there.

    M = W + (C + lambda * mean(diag C) * I)^-1 (D - C W)        C = cov(x, x), D = cov(x, t), both times n

Rows come in two folds, by sample: the penalty is the one whose solution on the first predicts the second best, and
leaving the weights alone, or changing the bias only, are among the candidates. Everything is batched over groups. Where
there are more summands than rows are worth (K > GRAM_LIMIT), the rows themselves are kept, and the same solution comes
from the n x n matrix of their products. Rows that are not finite are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.algebra import damped, spd_solve

Array = NDArray[Any]
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
DEFAULT_PENALTY = 1e-2  # where there are too few samples to choose
HELD_OUT = 5  # every fifth sample chooses the penalty
BLOCK_ROWS = 8192  # rows that are multiplied at once
NEGLIGIBLE_BIAS = 0.01  # of the error: a bias that can be left out is, if that costs no more
GRAM_LIMIT = 6144  # summands; more are solved in the rows' own space
FEW_SUMMANDS = 512  # up to which all penalties are tried; then only downhill from the middle, as a try costs K^3
LEAST_ROWS, ROWS = 4096, 16384  # rows for a product, by its summands: AMPLE for each are as good as more
AMPLE = 128
LARGEST = 1e15  # of an entry; squares of larger ones leave float32


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
        self.xx = summed(self.xx, product(x, x))
        self.xt = summed(self.xt, product(x, t))
        self.tt = self.tt + np.square(t, dtype=np.float64).sum(1)

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, f) + getattr(other, f) for f in ("n", "x", "t", "xx", "xt", "tt")))

    def less(self, w: Array) -> Moments:
        """Those of x and t - x @ w, for w (G, K, O)."""
        made = self.xx.astype(w.dtype, copy=False) @ w
        xt = self.xt - made
        tt = self.tt - np.einsum("gko,gko->go", w, self.xt + xt)
        return replace(self, t=self.t - np.einsum("gk,gko->go", self.x, w), xt=xt, tt=tt)

    def error(self, m: Array | None, c: Array) -> float:
        """Sum of squares of t - x @ m - c, for m (G, K, O), None standing for zeros, and c (G, O)."""
        if not self.n:
            return 0.0
        rest = self._rest(m)
        total = self.tt.sum() + self.n * np.square(c).sum() - 2 * (c * rest).sum()
        if m is not None:
            made = self.xx.astype(m.dtype, copy=False) @ m
            total += np.einsum("gko,gko->", m, made - 2 * self.xt)
        return float(total)

    def intercept(self, m: Array | None) -> Array:
        """The c that is best for m."""
        return np.asarray(self._rest(m) / max(self.n, 1))

    def _rest(self, m: Array | None) -> Array:
        """Sum of t - x @ m."""
        return np.asarray(self.t if m is None else self.t - np.einsum("gk,gko->go", self.x, m))

    def centred(self) -> tuple[Array, Array]:
        """C (G, K, K) and D (G, K, O)."""
        n = max(self.n, 1)
        return self.xx - self.x[:, :, None] * self.x[:, None] / n, self.xt - self.x[:, :, None] * self.t[:, None] / n


def wanted_rows(summands: int, least: int) -> int:
    """How many rows a product is judged by, over all samples; at least so many for each summand."""
    return max(int(np.clip(AMPLE * summands, LEAST_ROWS, ROWS)), least * summands)


def product(a: Array, b: Array) -> Array:
    """a' b over rows, (G, rows, I) and (G, rows, J) -> (G, I, J), in their own precision."""
    if a.shape[0] == 1:  # a plain product of a matrix with itself is recognised and costs half
        return np.asarray((a[0].T @ b[0])[None])
    return np.asarray(a.transpose(0, 2, 1) @ b)


def summed(total: Array | float, more: Array) -> Array:
    """A sum in float64, added to in place: copies of large matrices would take as long as the products."""
    if isinstance(total, float):
        return more.astype(np.float64)
    total += more
    return total


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


def by_fold(
    x: Array, t: Array, first: int, valid: NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, Array, Array]]:
    """Rows x (N, G, P, K) and t (N, G, P, O) of samples number `first` and on as (fold, (G, rows, K), (G, rows, O)).
    `valid` (N, P): which of them count.
    """
    held = np.arange(first, first + x.shape[0]) % HELD_OUT == HELD_OUT - 1
    for fold, mask in ((0, ~held), (1, held)):
        if mask.any():
            a, b = (v[mask].swapaxes(0, 1) for v in (x, t))
            a, b = (v.reshape(v.shape[0], -1, v.shape[3]) for v in (a, b))
            if valid is not None:
                a, b = (v[:, valid[mask].reshape(-1)] for v in (a, b))
            yield fold, a, b


def usable(x: Array, t: Array) -> tuple[Array, Array]:
    """Rows (G, rows, K) and (G, rows, O) in float32, without those that are not finite, or too large to be squared."""
    x, t = (v.astype(np.float32, copy=False) for v in (x, t))
    if all(np.isfinite(v.sum()) and max(v.max(initial=0), -v.min(initial=0)) < LARGEST for v in (x, t)):
        return x, t
    fine = np.logical_and.reduce([(np.abs(v) < LARGEST).all((0, 2)) for v in (x, t)])
    return x[:, fine], t[:, fine]


@dataclass
class Regression:
    """Collects rows of one product and solves for its weights. `shift` (G, K) is taken off x, against cancellation.
    `spare_bias`: the product has no bias yet, and should get one only if it is worth it; `biased`: it can have one.
    """

    weight: Array
    bias: Array
    spare_bias: bool = False
    biased: bool = True
    folds: tuple[Moments, Moments] = field(default_factory=lambda: (Moments(), Moments()))
    shift: Array | None = None
    _pending: list[tuple[int, Array, Array]] = field(default_factory=list)
    _rows: int = 0

    @property
    def dual(self) -> bool:
        return int(self.weight.shape[1]) > GRAM_LIMIT

    def add(self, x: Array, t: Array, first: int, valid: NDArray[np.bool_] | None = None) -> None:
        """Rows of some samples: x (N, G, P, K) and t (N, G, P, O), of samples number `first` and on; see `by_fold`."""
        made = list(by_fold(x, t, first, valid))
        self._pending += made
        self._rows += sum(a.shape[1] for _, a, _ in made)
        if self._rows >= BLOCK_ROWS and not self.dual:
            self._flush()

    def _taken(self, fold: int) -> tuple[Array, Array]:
        """The pending rows of a fold."""
        g, k, o = self.weight.shape
        x = [a for f, a, _ in self._pending if f == fold] or [np.empty((g, 0, k), np.float32)]
        t = [b for f, _, b in self._pending if f == fold] or [np.empty((g, 0, o), np.float32)]
        return usable(np.concatenate(x, 1), np.concatenate(t, 1))

    def _flush(self) -> None:
        for fold in (0, 1):
            rows, targets = self._taken(fold)
            if not rows.shape[1]:
                continue
            if self.shift is None:
                self.shift = rows.mean(1) if self.biased else np.zeros_like(rows[:, 0])
            moments = self.folds[fold]
            moments.add(rows - self.shift[:, None] if self.biased else rows, targets)
            if not self.biased:  # nothing is centred, and every intercept is 0
                moments.x, moments.t = 0 * moments.x, 0 * moments.t
        self._pending, self._rows = [], 0

    def solve(self, stored: Callable[[Array], Array] = lambda weight: weight) -> Solution:
        """The best candidate, found on one fold by the other, then solved anew on both. `stored` says what becomes of
        new weights (G, K, O) when they are stored: the bias and the judgement are those of what it gives.
        """
        return self._solve_dual(stored) if self.dual else self._solve(stored)

    def _same(self, error: float) -> Solution:
        return Solution(self.weight, self.bias, error, error)

    def _solve(self, stored: Callable[[Array], Array]) -> Solution:
        self._flush()
        fit, held = self.folds
        if not fit.n or self.shift is None:
            return self._same(0.0)
        w = self.weight.astype(np.float64)
        moved = self.bias + np.einsum("gk,gko->go", self.shift, w)  # the bias for shifted rows
        fit, held = fit.less(w), held.less(w) if held.n else held  # from here on of what the weights leave
        judge = held if held.n else fit
        before = judge.error(None, moved) / judge.n
        errors: dict[float | None, float] = {}
        if self.biased:
            errors[None] = judge.error(None, fit.intercept(None)) / judge.n
        ridge = _ridge(fit)
        errors |= self._search(lambda p: judge.error(*ridge(p)) / judge.n, bool(held.n))
        best = min(errors, key=lambda p: errors[p], default=None)
        if best not in errors or not errors[best] < before:
            return self._same(before)
        both = fit + held
        m = w if best is None else stored(w + _ridge(both)(best)[0]).astype(np.float64)
        change = None if best is None else (m - w).astype(np.float32 if w.shape[1] > FEW_SUMMANDS else np.float64)
        c = both.intercept(change)
        if not judge.error(change, c) / judge.n < before:
            return self._same(before)
        unbiased = np.einsum("gk,gko->go", self.shift, m)
        if self.spare_bias and judge.error(change, unbiased) <= (1 + NEGLIGIBLE_BIAS) * judge.error(change, c):
            c = unbiased
        return Solution(m, c - unbiased, before, errors[best], best)

    def _search(self, error: Callable[[float], float], held: bool) -> dict[float | None, float]:
        """Errors of the penalties that are worth a try; those for which there is no finite solution are left out."""
        listed = PENALTIES if held else (DEFAULT_PENALTY,)
        tried: dict[float, float] = {}

        def attempt(k: int) -> float:
            if not 0 <= k < len(listed):
                return np.inf
            if listed[k] not in tried:
                tried[listed[k]] = _finite(error, listed[k])
            return tried[listed[k]]

        if held and self.weight.shape[1] > FEW_SUMMANDS:
            k = len(listed) // 2
            step = 1 if attempt(k + 1) < attempt(k) else -1
            while attempt(k + step) < attempt(k):
                k += step
        else:
            for k in range(len(listed)):
                attempt(k)
        return {p: e for p, e in tried.items() if np.isfinite(e)}

    def _solve_dual(self, stored: Callable[[Array], Array]) -> Solution:
        """As `solve`, for few rows of many summands: M = W + X' (X X' + lambda I)^-1 (T - X W), columns centred."""
        folds = [tuple(v[0] for v in self._taken(f)) for f in (0, 1)]
        if not len(folds[0][0]):
            return self._same(0.0)
        w = self.weight[0].astype(np.float32)
        (x, t), held = folds[0], folds[1]
        judge = held if len(held[0]) else folds[0]

        def error(m: Array, c: Array) -> float:
            return float(np.square(judge[1] - judge[0] @ m - c, dtype=np.float64).sum() / len(judge[0]))

        before = error(w, self.bias[0].astype(np.float32))
        errors: dict[float | None, float] = {None: error(w, (t - x @ w).mean(0))}
        errors |= self._search(lambda p: error(*_dual(x, t, w, p)), len(held[0]) > 0)
        best = min(errors, key=lambda p: errors[p])
        if not errors[best] < before:
            return self._same(before)
        x, t = (np.concatenate(pair) for pair in zip(*folds, strict=True))
        m = w if best is None else stored(_dual(x, t, w, best)[0][None])[0].astype(np.float32)
        c = (t - x @ m).mean(0)
        return Solution(m[None], c[None], before, errors[best], best) if error(m, c) < before else self._same(before)


def _ridge(moments: Moments) -> Callable[[float], tuple[Array, Array]]:
    """Weights, pulled towards zero, and intercept by penalty; where there are many summands, solved in float32."""
    c, d = moments.centred()
    kind = np.float32 if d.shape[1] > FEW_SUMMANDS else np.float64
    d = d.astype(kind)

    def solved(penalty: float) -> tuple[Array, Array]:
        m = spd_solve(damped(c, penalty, kind), d)
        return m, moments.intercept(m)

    return solved


def _finite(error: Callable[[float], float], penalty: float) -> float:
    """The error at a penalty; infinite where the equations cannot be solved."""
    try:
        return float(np.nan_to_num(error(penalty), nan=np.inf))
    except np.linalg.LinAlgError:
        return np.inf


def _dual(x: Array, t: Array, w: Array, penalty: float) -> tuple[Array, Array]:
    mean = x.mean(0)
    centred, rest = x - mean, t - x @ w
    kernel = (centred @ centred.T).astype(np.float64)
    level = max(float(np.trace(kernel)) / x.shape[1], 1e-12)
    dual = np.linalg.solve(kernel + penalty * level * np.eye(len(x)), rest - rest.mean(0))
    m = w + centred.T @ dual.astype(np.float32)
    return m, (t - x @ m).mean(0)
