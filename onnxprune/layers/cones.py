"""Which nodes serve nothing but one tensor, and what flows into them: the two questions that tell a layer's extent.

carried   tensors that are computed from the inputs' entries; numbers made of sizes alone are none, so what is
          derived from a shape ties nothing
cone      the nodes that nothing needs any more once some uses of a tensor are gone (fan-out free cone)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property

from onnxprune.flow import inner_names
from onnxprune.graph import Graph

SIZES = ("Shape", "Size")


class Cones:
    """Questions about one graph; each costs as much as its answer is long."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.wires = graph, graph.wires
        self.outputs = {o.name for o in graph.outputs}
        self.inner = inner_names(graph.nodes)

    @cached_property
    def carried(self) -> set[str]:
        """Tensors that entries of the model's inputs flow into."""
        found = {i.name for i in self.graph.inputs}
        for wires in self.wires:
            if wires.operator not in SIZES and not found.isdisjoint([*wires.inputs, *wires.captured]):
                found.update(n for n in wires.outputs if n)
        return found

    @cached_property
    def counts(self) -> dict[str, int]:
        """How often each tensor is used, as an output of the model too."""
        found = {n: len(uses) for n, uses in self.graph.consumers.items()}
        return found | {n: found.get(n, 0) + 1 for n in self.outputs}

    def cone(self, cut: Iterable[str], kept: str = "") -> set[int]:
        """Nodes that nothing needs once each tensor in `cut` is used once less (as often as it is listed), and `kept`
        goes on being used.
        """
        left: dict[str, int] = {}
        found: set[int] = set()
        stack = list(cut)
        while stack:
            name = stack.pop()
            left[name] = left.get(name, self.counts.get(name, 0)) - 1
            i = self.graph.producer.get(name)
            if i is None or i in found or kept in self.wires[i].outputs:
                continue
            if all(left.get(n, self.counts.get(n, 0)) <= 0 for n in self.wires[i].outputs if n):
                found.add(i)
                stack += [n for n in (*self.wires[i].inputs, *self.wires[i].captured) if n]
        return found

    def behind(self, exit: str, entry: str) -> set[int]:
        """Nodes that nothing needs once all that uses `exit` uses `entry` instead."""
        return self.cone([exit] * self.counts.get(exit, 0), entry)

    def entries(self, nodes: Collection[int]) -> set[str]:
        """Tensors carried into some nodes from outside."""
        made = {n for i in nodes for n in self.wires[i].outputs}
        used = {n for i in nodes for n in (*self.wires[i].inputs, *self.wires[i].captured)}
        return {n for n in used - made if n in self.carried}

    def reached(self, start: str, end: int) -> set[str]:
        """Tensors that entries of `start` flow into, made by nodes before node `end`."""
        found, stack = {start}, [start]
        while stack:
            for i, _ in self.graph.consumers.get(stack.pop(), []):
                if i < end and self.wires[i].operator not in SIZES:
                    fresh = [n for n in self.wires[i].outputs if n and n not in found]
                    found.update(fresh)
                    stack += fresh
        return found - {start}
