"""What several cuts leave of the original's tensors, and what they change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from onnxprune.dims import Mask, keep
from onnxprune.graph import Graph
from onnxprune.linear import Linear
from onnxprune.manager import Cut
from onnxprune.nodes import captured
from onnxprune.plan import bind


class Survivors:
    """Which entries of the original's tensors are left after several cuts."""

    def __init__(self, cuts: Sequence[Cut]) -> None:
        self.cuts = cuts
        self._cuts = [(c.typed, bind(c.plan, c.typed)) for c in cuts]

    def masks(self, name: str) -> list[Mask] | None:
        """A keep-mask for each axis of an activation of the original; None if it is not known in every cut."""
        total: list[Mask] | None = None
        for typed, bound in self._cuts:
            axes = typed.axes.get(name)
            if axes is None:
                return None
            now = [keep(e, bound) for e in axes]
            total = now if total is None else [_after(a, b) for a, b in zip(total, now, strict=True)]
        return total

    def touched(self) -> set[str]:
        """Tensors that some cut changes directly: outputs of nodes that combine removed units with others."""
        found: set[str] = set()
        for typed, bound in self._cuts:
            for node, signature in zip(typed.graph.nodes, typed.signatures, strict=True):
                if any(not keep((signature.inputs[r.input] or [])[r.axis], bound).all() for r in signature.reads):
                    found.update(n for n in node.output if n)
        return found | self._behind_dropped()

    def _behind_dropped(self) -> set[str]:
        """Results of nodes that read the exit of a layer that is dropped."""
        return {
            n
            for c in self.cuts
            for x in c.dropped.layers
            for i, _ in c.typed.graph.consumers.get(x.exit, [])
            for n in c.typed.graph.wires[i].outputs
            if n
        }

    @cached_property
    def exits(self) -> dict[str, str]:
        """What the original has where a stream goes past dropped layers now, by the sum that makes the stream, which
        may be behind a Relu.
        """
        found: dict[str, str] = {}
        graph = self.cuts[0].typed.graph
        entries = {x.exit: x.entry for c in self.cuts for x in c.dropped.layers if x.is_branch}
        for exit in entries:
            entry = exit
            while entry in entries:
                entry = entries[entry]
            found[entry] = exit  # of several layers in series the last
            i = graph.producer.get(entry)
            if i is not None and graph.wires[i].operator == "Relu":
                found[graph.wires[i].inputs[0]] = exit
        return found

    def concerned(self, graph: Graph, found: Mapping[int, Linear]) -> set[int]:
        """Products of the present graph that a cut touched, or whose sum goes past dropped layers now."""
        touched = downstream(graph, self.touched())
        sums = [graph.wires[graph.producer[n]] for n in self.exits if n in graph.producer]
        ends = {n for wires in sums for n in wires.inputs}
        return {i for i, x in found.items() if touched & {x.data, x.out} or x.out in ends}


def _after(first: Mask, second: Mask) -> Mask:
    made = first.copy()
    made[first] = second
    return made


def downstream(graph: Graph, start: set[str]) -> set[str]:
    """`start`, and all that depends on it."""
    found = set(start)
    for node in graph.nodes:
        if not found.isdisjoint([*node.input, *captured(node)]):
            found.update(node.output)
    return found
