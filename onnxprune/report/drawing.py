"""Where the blocks of a network go on paper: from left to right by their distance from the inputs, in lines like text.

A block stands in the column of its longest path from an input; blocks of one column are stacked, each near those that
it follows (one sweep of the barycentre method of Sugiyama, Tagawa and Toda, 1981). A line has up to COLUMNS columns.
Heights grow with the logarithm of the width. Edges bend: to the next column directly, further ones above the line,
those to other lines through the gap between lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx

COLUMNS = 14
COLUMN, BOX = 78.0, 46.0  # widths
LOW, HIGH = 14.0, 46.0  # heights of boxes
LABEL = 24.0  # below a box: two lines of text
STACK = 8.0  # between blocks of a column
LINE, ARC = 34.0, 11.0  # between lines; how far edges that skip columns rise
WIDEST = 4096  # a block this wide is drawn as high as they get
MARGIN = 16.0


@dataclass(frozen=True)
class Place:
    """The box of a block: its left upper corner and its size."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


@dataclass(frozen=True)
class Drawing:
    """Places by block, a path for each edge, the size of the whole."""

    width: float
    height: float
    places: tuple[Place, ...]
    paths: tuple[str, ...]


@dataclass(frozen=True)
class _Line:
    top: float
    bottom: float


def draw(widths: Sequence[int], edges: Sequence[tuple[int, int]]) -> Drawing:
    """Lay out blocks of some widths (units, 0: unknown). The edges must be free of cycles."""
    columns = _columns(len(widths), edges)
    at = {b: k for k, blocks in enumerate(columns) for b in blocks}
    heights = [_height(w) for w in widths]
    places: list[Place] = [Place(0, 0, BOX, h) for h in heights]
    lines: list[_Line] = []
    top = MARGIN
    length = math.ceil(len(columns) / max(1, math.ceil(len(columns) / COLUMNS)))
    for start in range(0, len(columns), max(length, 1)):
        stacks = columns[start : start + length]
        spans = [at[v] - at[u] for u, v in edges if start <= at[u] and at[v] < start + length]
        top += _rise(max(spans, default=1))
        tallest = max(_stacked(heights, blocks) for blocks in stacks)
        for k, blocks in enumerate(stacks):
            y = top + (tallest - _stacked(heights, blocks)) / 2
            for b in blocks:
                places[b] = Place(MARGIN + k * COLUMN + (COLUMN - BOX) / 2, y, BOX, heights[b])
                y += heights[b] + LABEL + STACK
        lines.append(_Line(top, top + tallest))
        top += tallest + LINE
    paths = tuple(_path(places[u], places[v], (at[u], at[v]), lines, length, k) for k, (u, v) in enumerate(edges))
    return Drawing(2 * MARGIN + COLUMN * max(length, 1), top, tuple(places), paths)


def essential(count: int, edges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The edges that no longer way replaces."""
    graph = nx.DiGraph(edges)
    graph.add_nodes_from(range(count))
    return sorted(nx.transitive_reduction(graph).edges)


def _columns(count: int, edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Blocks by column, from top to bottom."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(edges)
    columns = [sorted(generation) for generation in nx.topological_generations(graph)]
    height: dict[int, float] = {}
    for blocks in columns:
        wanted = {b: _mean([height[p] for p in graph.predecessors(b)]) for b in blocks}
        blocks.sort(key=lambda b, wanted=wanted: (wanted[b], b))  # type: ignore[misc]
        height |= {b: k - (len(blocks) - 1) / 2 for k, b in enumerate(blocks)}
    return columns


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _rise(span: int) -> float:
    """How far above its line an edge rises that goes that many columns further."""
    return ARC * min(3.0, math.log2(max(span, 1)))


def _height(width: int) -> float:
    return LOW + (HIGH - LOW) * min(1.0, math.log2(max(width, 1)) / math.log2(WIDEST))


def _stacked(heights: Sequence[float], blocks: Sequence[int]) -> float:
    return sum(heights[b] + LABEL for b in blocks) + STACK * (len(blocks) - 1)


def _path(a: Place, b: Place, columns: tuple[int, int], lines: Sequence[_Line], length: int, number: int) -> str:
    """The way from the right of one box to the left of another, in those columns; `length`: columns of a line."""
    x1, y1, x2, y2 = a.x + a.width, a.middle, b.x, b.middle
    column, target = columns
    first, last = column // length, target // length
    if first == last and target - column == 1:
        half = (x1 + x2) / 2
        return f"M{x1:.1f} {y1:.1f}C{half:.1f} {y1:.1f} {half:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
    gap = (COLUMN - BOX) / 2
    if first == last:
        rise = lines[first].top - _rise(target - column)
        return (
            f"M{x1:.1f} {y1:.1f}C{x1 + gap:.1f} {y1:.1f} {x1:.1f} {rise:.1f} {x1 + 2 * gap:.1f} {rise:.1f}"
            f"H{x2 - 2 * gap:.1f}C{x2:.1f} {rise:.1f} {x2 - gap:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
        )
    lane = lines[first].bottom + LINE * (0.25 + 0.5 * (number % 5) / 4)
    out, into = x1 + gap * (0.6 + 0.1 * (number % 5)), x2 - gap * (0.6 + 0.1 * (number % 5))
    return f"M{x1:.1f} {y1:.1f}H{out:.1f}V{lane:.1f}H{into:.1f}V{y2:.1f}H{x2:.1f}"
