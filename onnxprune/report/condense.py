"""A network on one page: the nodes of a directed graph without cycles joined into blocks, few enough to be looked at.

Two blocks u -> v can be joined, and no cycle comes about, where v is all that follows u or u all that comes before v.
Branches that part and meet again become chains that way, so networks shrink to any size, the lightest pair first. Where
no such pair is left, two blocks at the same distance from the start are joined: no path leads from one to the other.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Sequence


class Blocks:
    """Nodes 0 .. n-1, numbered so that edges point upwards, each a block of its own at first. A block is called after
    one of its nodes.
    """

    def __init__(self, weights: Sequence[float], edges: Iterable[tuple[int, int]]) -> None:
        self.weight = dict(enumerate(weights))
        self.members = {k: [k] for k in self.weight}
        self.before: dict[int, set[int]] = {k: set() for k in self.weight}
        self.after: dict[int, set[int]] = {k: set() for k in self.weight}
        for u, v in edges:
            self.before[v].add(u)
            self.after[u].add(v)

    def join(self, u: int, v: int) -> None:
        """Block v becomes part of block u."""
        for near, back in ((self.before, self.after), (self.after, self.before)):
            for other in near.pop(v):
                back[other].discard(v)
                if other != u:
                    back[other].add(u)
                    near[u].add(other)
        self.members[u] += self.members.pop(v)
        self.weight[u] += self.weight.pop(v)

    def drop(self, node: int) -> None:
        """Leave a node out."""
        for near, back in ((self.before, self.after), (self.after, self.before)):
            for other in near.pop(node):
                back[other].discard(node)
        del self.members[node], self.weight[node]

    def absorb(self, plain: Collection[int]) -> None:
        """Join nodes that are no blocks of their own with what comes before them, if that is one block. What nothing
        comes before goes into the first block that it feeds, whose other readers do not show that then.
        """
        left: list[int] = []
        while left != (left := [n for n in sorted(plain) if n in self.members]):
            for node in left:
                if len(self.before[node]) == 1:
                    self.join(next(iter(self.before[node])), node)
                elif not self.before[node] and self.after[node]:
                    first = min(self.after[node])
                    for other in self.after[node] - {first}:
                        self.before[other].discard(node)
                    self.after[node] = {first}
                    self.join(first, node)

    def shrink(self, limit: int) -> None:
        """Join blocks until there are at most `limit` (at least 1) of them."""
        queue = [self._entry(u, v) for u, followers in self.after.items() for v in followers]
        heapq.heapify(queue)
        while len(self.members) > max(limit, 1):
            pair = self._lightest(queue) or self._level()
            self.join(*pair)
            u = pair[0]
            for entry in [self._entry(u, v) for v in self.after[u]] + [self._entry(p, u) for p in self.before[u]]:
                heapq.heappush(queue, entry)

    def _entry(self, u: int, v: int) -> tuple[float, int, int]:
        return self.weight[u] + self.weight[v], u, v

    def _lightest(self, queue: list[tuple[float, int, int]]) -> tuple[int, int] | None:
        """The lightest pair that may be joined. A pair that may not yet comes back when a neighbour was joined."""
        while queue:
            weight, u, v = heapq.heappop(queue)
            if v not in self.after.get(u, ()) or weight != self.weight[u] + self.weight[v]:
                continue
            if len(self.after[u]) == 1 or len(self.before[v]) == 1:
                return u, v
        return None

    def _level(self) -> tuple[int, int]:
        """The two lightest blocks at one distance from the start."""
        levels: dict[int, list[int]] = {}
        for block, level in self.levels().items():
            levels.setdefault(level, []).append(block)
        pairs = [sorted(found, key=lambda b: (self.weight[b], b))[:2] for found in levels.values() if len(found) > 1]
        u, v = min(pairs, key=lambda p: (self.weight[p[0]] + self.weight[p[1]], p))
        return u, v

    def levels(self) -> dict[int, int]:
        """The length of the longest path to each block."""
        open_, found = {b: len(p) for b, p in self.before.items()}, dict.fromkeys(self.before, 0)
        ready = sorted(b for b, n in open_.items() if not n)
        while ready:
            block = ready.pop()
            for v in self.after[block]:
                found[v] = max(found[v], found[block] + 1)
                open_[v] -= 1
                if not open_[v]:
                    ready.append(v)
        return found

    def ordered(self) -> tuple[list[list[int]], list[tuple[int, int]]]:
        """The blocks' nodes, both in order, and the edges between blocks by their places in that list."""
        levels = self.levels()
        order = sorted(self.members, key=lambda b: (levels[b], min(self.members[b])))
        place = {b: k for k, b in enumerate(order)}
        edges = sorted((place[u], place[v]) for u, followers in self.after.items() for v in followers)
        return [sorted(self.members[b]) for b in order], edges
