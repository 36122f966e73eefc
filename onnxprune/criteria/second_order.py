"""Optimal brain surgery over whole units: what removing them costs if everything that reads them is refitted.

A product with input covariance C and weights W loses, when the rows R of its inputs go and the others make up for them
as well as they can (Hassibi & Stork 1993, "Second order derivatives for network pruning"),

    E(R) = trace(W_R' [(C^-1)_RR]^-1 W_R),    W <- W - (C^-1)_:R [(C^-1)_RR]^-1 W_R

A unit's rows in all of its consumers go together, and their errors, each as a share of the consumer's output energy,
are summed (groups as in Kurtic et al. 2023, "ZipLM"). Units go one by one, cheapest first, each removal updating the
rest; so one sweep gives an order of removal and the error of every width. `swap` then improves the set for one width by
exchanges (Meng et al. 2024, "OSSCAR").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
DAMPING = 1e-2  # of the mean of C's diagonal, added to it
STEPS = 128  # removals of a sweep: larger dims lose several units at a time
SWAPS = 8  # exchanges that are tried for a width


@dataclass(frozen=True)
class Reader:
    """One consumer, restricted to the rows that belong to the dim: inverse covariance (G, R, R), weights (G, R, O), and
    the unit of each row. `weight` is what an error of 1 counts.
    """

    inverse: Array
    weights: Array
    units: NDArray[np.int64]
    weight: float = 1.0


@dataclass(frozen=True)
class Curve:
    """`order`: units, first to go first. `errors[k]`: error with k units gone, shape (size + 1,), never falling."""

    order: NDArray[np.int64]
    errors: NDArray[np.float64]


def reader(covariance: Array, matrix: Array, rows: NDArray[np.int64]) -> Reader:
    """A consumer from its covariance (G, K, K), or variances (G, K), its weights (G, K, O) and the unit of each row
    (-1: another dim's).
    """
    mine = np.flatnonzero(rows >= 0)
    w = matrix[:, mine].astype(np.float64)
    if covariance.ndim == 2:
        level = np.maximum(covariance.mean(1, keepdims=True), 1e-12)
        inverse = np.stack([np.diag(1 / row) for row in covariance[:, mine] + DAMPING * level])
        energy = float((covariance[:, :, None] * matrix.astype(np.float64) ** 2).sum())
    else:
        level = np.maximum(np.trace(covariance, axis1=1, axis2=2) / covariance.shape[1], 1e-12)
        damped = covariance + DAMPING * level[:, None, None] * np.eye(covariance.shape[1])
        inverse = np.linalg.inv(damped)[:, mine][:, :, mine]
        energy = float(np.einsum("gko,gko->", covariance @ matrix, matrix.astype(np.float64)))
    return Reader(inverse, w, rows[mine], 1 / max(energy, 1e-30))


def meeting(first: Array, second: Array, units: NDArray[np.int64]) -> Reader:
    """A product of two activations, a' b, from their second moments (G, K, K): when units go from both, the rest of a
    can be mixed to make up for them, as weights can. What a multiplies counts as the input, a itself as the weights, of
    which only the second moment matters.
    """
    groups = max(len(first), len(second))  # heads that share keys
    first, second = (np.repeat(x, groups // len(x), 0) for x in (first, second))
    level = np.maximum(np.trace(first, axis1=1, axis2=2) / first.shape[1], 1e-12)
    root = np.linalg.cholesky(first + 1e-6 * level[:, None, None] * np.eye(first.shape[1]))
    return reader(second, root, units)


def sweep(readers: Sequence[Reader], size: int) -> Curve:
    """Remove all units of a dim of `size` units but one, cheapest first."""
    work = [_Elimination(r) for r in readers]
    step = max(1, size // STEPS)
    left = np.ones(size, bool)
    order: list[int] = []
    errors = [0.0]
    while left.sum() > 1:
        alone = np.zeros(size)
        for w in work:
            alone += w.costs(size)
        alone[~left] = np.inf
        gone = np.argsort(alone, kind="stable")[: min(step, int(left.sum()) - 1)]
        start = errors[-1]
        total = sum(w.remove(gone) for w in work)
        shares = np.cumsum(alone[gone]) / max(float(alone[gone].sum()), 1e-300)
        errors += [start + total * float(s) for s in shares]
        order += gone.tolist()
        left[gone] = False
    last = int(np.flatnonzero(left)[0])
    order.append(last)
    errors.append(errors[-1] + sum(float(w.costs(size)[last]) for w in work))
    return Curve(np.array(order, np.int64), np.maximum.accumulate(np.array(errors)))


class _Elimination:
    """One consumer while units go."""

    def __init__(self, reader: Reader) -> None:
        self.inverse, self.weights = reader.inverse.copy(), reader.weights.copy()
        self.units, self.weight = reader.units.copy(), reader.weight

    def costs(self, size: int) -> Array:
        """Error of removing each unit alone, (size,); 0 for those that this consumer does not read."""
        made = np.zeros(size)
        if not self.units.size:
            return made
        order = np.argsort(self.units, kind="stable")
        units, counts = np.unique(self.units, return_counts=True)
        if (counts == counts[0]).all():
            blocks = order.reshape(len(units), -1)  # rows of each unit
            inner = self.inverse[:, blocks[:, :, None], blocks[:, None, :]]  # (G, U, r, r)
            w = self.weights[:, blocks]  # (G, U, r, O)
            made[units] = np.einsum("guro,guro->u", w, _solve(inner, w))
            return made * self.weight
        for u, rows in zip(units, np.split(order, np.cumsum(counts)[:-1]), strict=True):
            w = self.weights[:, rows]
            made[u] = np.einsum("gro,gro->", w, _solve(self.inverse[:, rows][:, :, rows], w))
        return made * self.weight

    def remove(self, units: Array) -> float:
        """Take units out; returns the error that this adds."""
        rows = np.isin(self.units, units)
        if not rows.any():
            return 0.0
        w = self.weights[:, rows]
        change = _solve(self.inverse[:, rows][:, :, rows], np.concatenate([w, self.inverse[:, rows][:, :, ~rows]], 2))
        cross = self.inverse[:, ~rows][:, :, rows]
        error = float(np.einsum("gro,gro->", w, change[:, :, : w.shape[2]]))
        self.weights = self.weights[:, ~rows] - cross @ change[:, :, : w.shape[2]]
        self.inverse = self.inverse[:, ~rows][:, :, ~rows] - cross @ change[:, :, w.shape[2] :]
        self.units = self.units[~rows]
        return error * self.weight


def _solve(a: Array, b: Array) -> Array:
    """a^-1 b for small symmetric a; 1 x 1 ones are divided by."""
    if a.shape[-1] == 1:
        return np.asarray(b / a)
    return np.linalg.solve(a, b)


def error_of(readers: Sequence[Reader], gone: NDArray[np.bool_]) -> float:
    """Error of removing a set of units at once."""
    units = np.flatnonzero(gone)
    return float(sum(_Elimination(r).remove(units) for r in readers))


def swap(readers: Sequence[Reader], gone: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Exchange removed units for kept ones as long as that lowers the error."""
    best, error = gone.copy(), error_of(readers, gone)
    for _ in range(SWAPS):
        out, back = _cheapest_kept(readers, best), _dearest_gone(readers, best)
        if out is None or back is None:
            break
        tried = best.copy()
        tried[out], tried[back] = True, False
        found = error_of(readers, tried)
        if found >= error * (1 - 1e-9):
            break
        best, error = tried, found
    return best


def _cheapest_kept(readers: Sequence[Reader], gone: NDArray[np.bool_]) -> int | None:
    work = [_Elimination(r) for r in readers]
    for w in work:
        w.remove(np.flatnonzero(gone))
    costs = np.sum([w.costs(gone.size) for w in work], axis=0)
    costs[gone] = np.inf
    return int(np.argmin(costs)) if (~gone).sum() > 1 else None


def _dearest_gone(readers: Sequence[Reader], gone: NDArray[np.bool_]) -> int | None:
    """The removed unit whose return lowers the error most: that whose share of the joint error is largest."""
    share = np.zeros(gone.size)
    for r in readers:
        rows = gone[r.units]
        w = r.weights[:, rows]
        if rows.any():
            part = np.einsum("gro,gro->r", w, _solve(r.inverse[:, rows][:, :, rows], w)) * r.weight
            np.add.at(share, r.units[rows], part)
    return int(np.argmax(np.where(gone, share, -np.inf))) if gone.any() else None
