"""A kernel's time as a function of its widths: measured on a grid, straight lines in between.

    product     micro-models at each point of the grid, up to three coordinates; beyond, its MACs are the coordinate
    the rest    grow with the number of entries that they read and write

Tables say how the time changes; how much it is, the whole model says: each is scaled to what its kernel takes there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.cost import Term
from onnxprune.dims import Dim, Expr, size_under
from onnxprune.timing.kernels import Group, elements
from onnxprune.timing.micro import Sizes

FIXED_MS = 0.002  # of a kernel that only moves data, however small it is
NS = 1e6  # nanoseconds in a millisecond: costs are whole numbers
FRACTIONS = {1: (1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125), 2: (1, 0.75, 0.5, 0.25, 0.125), 3: (1, 0.5, 0.25)}
ALL_TOGETHER = (1, 0.75, 0.5, 0.25, 0.125)  # of every dim, where there are more coordinates than that

Point = tuple[int, ...]  # sizes of all dims of a kernel, coordinate by coordinate


@dataclass(frozen=True)
class Grid:
    """Where a kernel is measured: per coordinate the sizes of its dims, widest last."""

    group: Group
    axes: tuple[tuple[Point, ...], ...]

    @property
    def together(self) -> bool:
        """Whether all dims shrink together, so that the MACs are the only coordinate."""
        return len(self.group.coordinates) > len(self.axes)

    @cached_property
    def dims(self) -> tuple[Dim, ...]:
        return tuple(d for c in self.group.coordinates for d in c.dims)

    @property
    def points(self) -> list[Point]:
        """In the order of the table."""
        return [tuple(n for part in parts for n in part) for parts in itertools.product(*self.axes)]

    def sizes(self, point: Point) -> dict[Dim, int]:
        return dict(zip(self.dims, point, strict=True))


def grid(group: Group, rounding: Mapping[Dim, int]) -> Grid:
    """The points for a kernel: shares of its whole widths, rounded to what its dims may keep."""
    wide = group.coordinates
    if len(wide) > max(FRACTIONS):
        every = tuple(d for c in wide for d in c.dims)
        return Grid(group, (_ladder(every, ALL_TOGETHER, rounding),))
    return Grid(group, tuple(_ladder(c.dims, FRACTIONS[len(wide)], rounding) for c in wide))


def _ladder(dims: Sequence[Dim], fractions: Sequence[float], rounding: Mapping[Dim, int]) -> tuple[Point, ...]:
    """Sizes of some dims that shrink together, rising; down to the least that may be kept, and the first below the
    whole where that is no multiple.
    """
    steps = [min(rounding.get(d, 1), d.size) for d in dims]
    found = {tuple(_near(d.size * f, d.size, s) for d, s in zip(dims, steps, strict=True)) for f in fractions}
    found |= {tuple(d.size for d in dims), tuple(steps)}
    found.add(tuple(d.size if d.size % s == 0 else d.size // s * s for d, s in zip(dims, steps, strict=True)))
    return tuple(sorted(found, key=lambda point: math.prod(n / d.size for n, d in zip(point, dims, strict=True))))


def _near(wanted: float, size: int, step: int) -> int:
    return size if wanted >= size else max(1, round(wanted / step)) * step


@dataclass(frozen=True, eq=False)
class Table:
    """Milliseconds of a kernel at the points of its grid; those of all kernels that ask the same question."""

    grid: Grid
    ms: NDArray[np.float64]

    @cached_property
    def knots(self) -> tuple[NDArray[np.float64], ...]:
        """Coordinates of the points, axis by axis, as shares of the whole."""
        if self.grid.together:
            values = [self._shares(self.grid.group, self.grid.sizes(point)) for point in self.grid.points]
            return (np.array([v[0] for v in values]),)
        made = []
        for c, points in zip(self.grid.group.coordinates, self.grid.axes, strict=True):
            made.append(np.array([c.at(dict(zip(c.dims, point, strict=True))) for point in points]))
        return tuple(made)

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """Times over the grid, that at the whole widths being 1."""
        return self.ms.reshape([len(k) for k in self.knots]) / max(float(self.ms[-1]), 1e-9)

    def at(self, group: Group, sizes: Sizes) -> Any:
        """The time of a kernel of this question as a share of that at the whole widths; an array where a size is
        one.
        """
        return interpolated(self.knots, self.values, self._shares(group, sizes))

    def _shares(self, group: Group, sizes: Sizes) -> list[Any]:
        if not self.grid.together:
            return [c.at(sizes) for c in group.coordinates]
        now, whole = (sum(_macs(t, at) for t in group.products) for at in (sizes, {}))
        return [now / whole]


def _macs(term: Term, sizes: Sizes) -> Any:
    return term.coefficient * math.prod([size_under(e, sizes) for e in term.axes])


def interpolated(knots: Sequence[NDArray[np.float64]], values: NDArray[np.float64], at: Sequence[Any]) -> Any:
    """Multilinear interpolation of `values` over rising `knots`, one position an axis; outside, the nearest knot."""
    total: Any = 0.0
    corners: list[tuple[tuple[Any, Any], ...]] = []
    for knot, x in zip(knots, at, strict=True):
        if len(knot) == 1:
            corners.append(((0, 1.0),))
            continue
        x = np.clip(x, knot[0], knot[-1])
        i = np.clip(np.searchsorted(knot, x, "right") - 1, 0, len(knot) - 2)
        share = (x - knot[i]) / (knot[i + 1] - knot[i])
        corners.append(((i, 1 - share), (i + 1, share)))
    for picked in itertools.product(*corners):
        weight: Any = 1.0
        for _, w in picked:
            weight = weight * w
        total = total + weight * values[tuple(i for i, _ in picked)]
    return total


@dataclass(frozen=True, eq=False)
class KernelTerm:
    """A kernel as a term of a cost, in nanoseconds; without a table its time grows with its entries."""

    group: Group
    table: Table | None = None

    @cached_property
    def axes(self) -> tuple[Expr, ...]:
        """The axes that it depends on."""
        return tuple(dict.fromkeys(c.axis for c in self.group.coordinates))

    @property
    def owner(self) -> str:
        return self.group.name

    @property
    def whole(self) -> int:
        return round(self.group.ms * NS)

    @cached_property
    def _entries(self) -> float:
        return max(elements(self.group, {}), 1)

    def at(self, sizes: Sizes) -> Any:
        """Nanoseconds at other sizes; an array where a size is one."""
        if not self.group.coordinates:
            return self.whole
        share = self.table.at(self.group, sizes) if self.table is not None else self._by_entries(sizes)
        ns = self.group.ms * NS * share
        return np.rint(ns).astype(np.int64) if isinstance(ns, np.ndarray) else round(float(ns))

    def _by_entries(self, sizes: Sizes) -> Any:
        fixed = min(1.0, FIXED_MS / max(self.group.ms, FIXED_MS))
        return fixed + (1 - fixed) * elements(self.group, sizes) / self._entries
