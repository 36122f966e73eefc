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

from onnxprune.algebra import damped, spd_inverse, spd_solve

Array = NDArray[Any]
DAMPING = 1e-2  # of the mean of C's diagonal, added to it
STEPS = 128  # removals of a sweep: larger dims lose several units at a time
MANY_ROWS = 1024  # where a reader has more rows than that, float32 will do,
FEWER_STEPS = 32  # and so will fewer steps, as each goes through all of them
BLOCK = 1 << 20  # entries of a matrix that are updated at once
SWAPS = 8  # exchanges that are tried for a width


@dataclass(frozen=True)
class Reader:
    """One consumer, restricted to the rows that belong to the dim: inverse covariance (G, R, R), or its diagonal (G, R)
    where inputs count as uncorrelated, weights (G, R, O), and the unit of each row. `weight` is what an error of 1
    counts.
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
    w = matrix[:, mine].astype(np.float32 if len(rows) > MANY_ROWS else np.float64)
    if covariance.ndim == 2:
        level = np.maximum(covariance.mean(1, keepdims=True), 1e-12)
        inverse = 1 / (covariance[:, mine] + DAMPING * level)
        energy = float((covariance[:, :, None] * matrix.astype(np.float64) ** 2).sum())
    else:
        inverse = spd_inverse(damped(covariance, DAMPING, np.float32 if len(rows) > MANY_ROWS else np.float64))
        inverse = inverse if len(mine) == len(rows) else inverse[:, mine][:, :, mine]
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
    work = [_under_way(r) for r in readers]
    rows = max((r.units.size for r in readers), default=0)
    step = max(1, size // (STEPS if rows <= MANY_ROWS else FEWER_STEPS))
    left = np.ones(size, bool)
    order: list[int] = []
    errors = [0.0]
    while left.sum() > 1:
        alone = np.zeros(size)
        for w in work:
            alone += w.costs(size)
        there = np.flatnonzero(left)
        gone = there[np.argsort(alone[there], kind="stable")[: min(step, there.size - 1)]]
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


def _under_way(reader: Reader) -> _Elimination | _Apart:
    return _Apart(reader) if reader.inverse.ndim == 2 else _Elimination(reader)


class _Apart:
    """One consumer of uncorrelated inputs while units go: nothing makes up for them."""

    def __init__(self, reader: Reader) -> None:
        energy = np.square(reader.weights).sum(2) / reader.inverse
        self.units, self.energy = reader.units, energy.sum(0) * reader.weight

    def costs(self, size: int) -> Array:
        """Error of removing each unit alone, (size,)."""
        return np.bincount(self.units, self.energy, size)

    def remove(self, units: Array) -> float:
        """Take units out; returns the error that this adds."""
        rows = np.isin(self.units, units)
        error = float(self.energy[rows].sum())
        self.units, self.energy = self.units[~rows], self.energy[~rows]
        return error


class _Elimination:
    """One consumer while units go. What belongs to them becomes zero; it is left out when half of the rows are."""

    def __init__(self, reader: Reader) -> None:
        self.inverse, self.weights = reader.inverse.copy(), reader.weights.copy()
        self.units, self.weight = reader.units, reader.weight
        self.left = np.ones(reader.units.size, bool)

    def costs(self, size: int) -> Array:
        """Error of removing each unit alone, (size,); 0 for those that this consumer does not read."""
        return _costs(self.inverse, self.weights, self.units, np.flatnonzero(self.left), size) * self.weight

    def remove(self, units: Array) -> float:
        """Take units out; returns the error that this adds."""
        rows = np.flatnonzero(self.left & np.isin(self.units, units))
        if not rows.size:
            return 0.0
        w, across = self.weights[:, rows], self.inverse[:, rows]
        change = _solve(across[:, :, rows], np.concatenate([w, across], 2))
        error = float(np.einsum("gro,gro->", w, change[:, :, : w.shape[2]]))
        self.weights -= across.swapaxes(1, 2) @ change[:, :, : w.shape[2]]
        step = max(1, BLOCK // (self.inverse.shape[0] * self.inverse.shape[1]))
        for k in range(0, self.inverse.shape[1], step):
            self.inverse[:, k : k + step] -= across[:, :, k : k + step].swapaxes(1, 2) @ change[:, :, w.shape[2] :]
        self.left[rows] = False
        if 2 * self.left.sum() < self.left.size:
            kept = self.left
            self.inverse, self.weights = self.inverse[:, kept][:, :, kept], self.weights[:, kept]
            self.units, self.left = self.units[kept], kept[kept]
        return error * self.weight


def _costs(
    inverse: Array,
    weights: Array,
    units: NDArray[np.int64],
    rows: NDArray[np.int64],
    size: int,
    less: tuple[Array, Array] | None = None,
) -> Array:
    """Error of removing each of the units that some `rows` belong to, (size,): trace(W_u' [(C^-1)_uu]^-1 W_u). From the
    inverse, the product a' b of two (G, D, R) is taken off first where it is given.
    """
    made = np.zeros(size)
    order = rows[np.argsort(units[rows], kind="stable")]
    names, starts, counts = np.unique(units[order], return_index=True, return_counts=True)
    for count in np.unique(counts):  # mostly one
        alike = counts == count
        blocks = order[starts[alike][:, None] + np.arange(count)]  # (U, r)
        inner = inverse[:, blocks[:, :, None], blocks[:, None, :]]  # (G, U, r, r)
        if less is not None:
            a, b = (np.moveaxis(x[:, :, blocks], 1, 2) for x in less)  # (G, U, D, r)
            inner = inner - a.swapaxes(2, 3) @ b
        w = weights[:, blocks]
        made[names[alike]] = np.einsum("guro,guro->u", w, _solve(inner, w))
    return made


def _solve(a: Array, b: Array) -> Array:
    """a^-1 b for small symmetric a; 1 x 1 ones are divided by."""
    if a.shape[-1] == 1:
        return np.asarray(b / a)
    return np.linalg.solve(a, b)


def error_of(readers: Sequence[Reader], gone: NDArray[np.bool_]) -> float:
    """Error of removing a set of units at once."""
    return float(sum(_shares(r, gone).sum() for r in readers))


def _shares(reader: Reader, gone: NDArray[np.bool_]) -> Array:
    """What each of the removed units has of the error of removing them all, (size,)."""
    rows = gone[reader.units]
    w = reader.weights[:, rows]
    if reader.inverse.ndim == 2:
        part = (np.square(w).sum(2) / reader.inverse[:, rows]).sum(0)
    elif rows.any():
        part = np.einsum("gro,gro->r", w, spd_solve(reader.inverse[:, rows][:, :, rows], w))
    else:
        part = np.zeros(0)
    return np.bincount(reader.units[rows], part * reader.weight, gone.size)


def swap(readers: Sequence[Reader], gone: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Exchange removed units for kept ones as long as that lowers the error: the cheapest of the kept ones for the one
    that has the largest share of the error.
    """
    best, shares = gone.copy(), sum(_shares(r, gone) for r in readers)
    for _ in range(SWAPS if gone.any() and (~gone).sum() > 1 else 0):
        costs = np.where(best, np.inf, sum(_costs_without(r, best) for r in readers))
        tried = best.copy()
        tried[np.argmin(costs)], tried[np.argmax(np.where(best, shares, -np.inf))] = True, False
        found = sum(_shares(r, tried) for r in readers)
        if np.sum(found) >= np.sum(shares) * (1 - 1e-9):
            break
        best, shares = tried, found
    return best


def _costs_without(reader: Reader, gone: NDArray[np.bool_]) -> Array:
    """Error of removing each of the other units when some are gone, (size,)."""
    if reader.inverse.ndim == 2:
        return _Apart(reader).costs(gone.size)
    rows, others = np.flatnonzero(gone[reader.units]), np.flatnonzero(~gone[reader.units])
    w, across = reader.weights[:, rows], reader.inverse[:, rows]
    change = spd_solve(across[:, :, rows], np.concatenate([w, across], 2))
    weights = reader.weights - across.swapaxes(1, 2) @ change[:, :, : w.shape[2]]
    less = across, change[:, :, w.shape[2] :]
    return _costs(reader.inverse, weights, reader.units, others, gone.size, less) * reader.weight
