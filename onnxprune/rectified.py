"""Least squares for what an activation lets through: after Relu or Clip it does not matter how far below its lower
bound a value lies, nor how far above the upper one.

    minimise   sum (p - z)^2 + ridge     p = x @ m + c
    z = t inside of (low, high); where t is beyond a bound, p itself if it is beyond it too, else the bound

This is convex in (m, c) and no smaller than the error behind the activation. It falls with every round of "take z for
the present p, then solve the ridge regression for z" (asymmetric reconstruction: Zhang et al. 2016, "Accelerating very
deep convolutional networks for classification and detection"). The matrix stays the same, so it is inverted once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.algebra import damped, level, spd_inverse
from onnxprune.graph import Graph
from onnxprune.nodes import attributes, operator
from onnxprune.regression import Solution, by_fold

Array = NDArray[Any]
ROUNDS = 8
ENOUGH_ROWS, ROWS_PER_SUMMAND = 4096, 32  # that are kept for it, at most
ROWS_BYTES = 128 << 20  # of these rows
WORK = 6e9  # multiply-adds that a product may take for it


@dataclass(frozen=True)
class Window:
    """What an activation lets through unchanged."""

    low: float
    high: float

    def wanted(self, p: Array, t: Array) -> Array:
        """z, in the shape of p and t."""
        z = np.where(t <= self.low, np.minimum(p, self.low), t)
        return np.where(t >= self.high, np.maximum(p, self.high), z)

    def error(self, p: Array, t: Array) -> float:
        """Sum of squares behind the activation."""
        passed = np.clip(p, self.low, self.high) - np.clip(t, self.low, self.high)
        return float(np.square(passed, dtype=np.float64).sum())


def window_behind(graph: Graph, tensor: str) -> Window | None:
    """The window of the activation that is all that reads a tensor: Relu, or Clip with constant bounds; else None."""
    users = graph.consumers.get(tensor, [])
    if len(users) != 1 or users[0][1] != 0 or tensor in {o.name for o in graph.outputs}:
        return None
    node = graph.nodes[users[0][0]]
    if operator(node) == "Relu":
        return Window(0.0, math.inf)
    if operator(node) != "Clip":
        return None
    bounds = [attributes(node).get("min", -math.inf), attributes(node).get("max", math.inf)]
    for k, name in enumerate(node.input[1:3]):
        if name and name not in graph.constants:
            return None
        bounds[k] = float(graph.array(name)) if name else bounds[k]
    return Window(*bounds)


@dataclass
class Rows:
    """Every so many rows of a product: x (G, n, K), t (G, n, O) and what is added to p in front of the activation, as
    t, or None, with the fold that they belong to.
    """

    window: Window
    every: int
    kept: list[tuple[int, Array, Array, Array | None]] = field(default_factory=list)

    @staticmethod
    def some(window: Window, count: int, size: tuple[int, int, int]) -> Rows:
        """Enough of `count` rows of a (G, K, O) product, as far as they fit into `ROWS_BYTES`."""
        g, k, o = size
        enough = max(ENOUGH_ROWS, ROWS_PER_SUMMAND * k)
        return Rows(window, max(1, count // enough, -(-4 * count * g * (k + 2 * o) // ROWS_BYTES)))

    def add(
        self,
        x: Array,
        t: Array,
        first: int,
        offset: Array | None = None,
        valid: NDArray[np.bool_] | None = None,
    ) -> None:
        """Rows of some samples, as for `Regression.add`; `offset` as t. What is not finite is left out."""
        added = [None, None] if offset is None else [o for _, _, o in by_fold(x, offset, first, valid)]
        for (fold, a, b), c in zip(by_fold(x, t, first, valid), added, strict=False):
            some = [None if v is None else v[:, :: self.every].astype(np.float32) for v in (a, b, c)]
            if all(v is None or np.isfinite(v).all() for v in some) and some[0] is not None and some[1] is not None:
                self.kept.append((fold, some[0], some[1], some[2]))

    def polish(self, old: tuple[Array, Array], found: Solution, stored: Callable[[Array], Array]) -> Solution:
        """A solution by least squares, or the `old` weights and bias if they are better behind the activation, after as
        many rounds as held-out rows say. Errors are then those behind the activation; see `Regression.solve` for
        `stored`.
        """
        if found.penalty is None or {f for f, *_ in self.kept} != {0, 1}:
            return found
        before, start = self.error(*old), (found.weight.astype(np.float32), found.bias.astype(np.float32))
        start = old if before < self.error(*start) else start
        errors = [self.error(*start), *(self.error(*r) for r in self._walk(self._joined((0,)), *start, found.penalty))]
        rounds = int(np.argmin(errors))
        walked = list(islice(self._walk(self._joined((0, 1)), *start, found.penalty), rounds)) if rounds else []
        if walked:  # all rows together may be too many
            m, c = walked[-1]
            m = stored(m)
            if (after := self.error(m, c)) < errors[0]:
                return Solution(m, c, before, after, found.penalty)
        return Solution(*old, before, before) if start is old else found

    def error(self, m: Array, c: Array) -> float:
        """Error per row behind the activation, on fold 1."""
        x, t, offset = self._joined((1,))
        return self.window.error(x @ m + c[:, None] + offset, t + offset) / int(x.shape[1])

    def _joined(self, folds: tuple[int, ...]) -> tuple[Array, Array, Array | float]:
        """All rows of some folds."""
        x, t, o = zip(*((x, t, o) for f, x, t, o in self.kept if f in folds), strict=True)
        return np.concatenate(x, 1), np.concatenate(t, 1), 0.0 if o[0] is None else np.concatenate(o, 1)

    def _walk(
        self, rows: tuple[Array, Array, Array | float], m: Array, c: Array, penalty: float
    ) -> Iterator[tuple[Array, Array]]:
        """(m, c) after each round; a ridge holds m near to where it starts."""
        x, t, offset = rows
        affordable = self._affordable(x, t)
        if not affordable:
            return
        mean = x.mean(1)
        centred = x - mean[:, None]
        cov = centred.swapaxes(1, 2) @ centred
        ridge = (penalty * level(cov)).astype(np.float32)[:, None, None]
        inverse = spd_inverse(damped(cov, penalty)).astype(np.float32)
        first = m = m.astype(np.float32)
        for _ in range(affordable):
            p = x @ m + c[:, None] + offset
            rest = self.window.wanted(p, t + offset) - p
            away = rest.mean(1)
            pull = ridge * (first - m)
            step = inverse @ (centred.swapaxes(1, 2) @ (rest - away[:, None]) + pull)
            m = m + step
            c = c + away - np.einsum("gk,gko->go", mean, step)
            yield m, c

    @staticmethod
    def _affordable(x: Array, t: Array) -> int:
        k = x.shape[2]
        start = 0.5 * x.size * k + x.shape[0] * k**3  # the covariance and its inverse
        return int(np.clip((WORK - start) / (2.0 * x.size * t.shape[2]), 0, ROUNDS))
