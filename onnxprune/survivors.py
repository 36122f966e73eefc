"""What several cuts leave of the original's tensors, and what they change."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.dims import Mask, keep
from onnxprune.graph import Graph, captured
from onnxprune.manager import Cut
from onnxprune.plan import bind


class Survivors:
    """Which entries of the original's tensors are left after several cuts."""

    def __init__(self, cuts: Sequence[Cut]) -> None:
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
        return found


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
