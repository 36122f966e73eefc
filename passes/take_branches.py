"""An If whose condition is the same in every run is replaced by the branch that it takes.

Exporters write such Ifs where a script asked for a rank or a size. Behind them shapes are known again, so another look
may find more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxprune.flow import OWNER, attribute, straightened
from onnxprune.graph import Graph
from onnxprune.manager import State
from onnxprune.nodes import attributes
from onnxprune.trace import Trace, trace


@dataclass(frozen=True)
class TakeBranches:
    """Replace decided Ifs by their branches."""

    name: ClassVar[str] = "take-branches"
    keeps_facts: ClassVar[bool] = False

    def run(self, state: State) -> Graph:
        graph = state.graph
        for ask in (False, True):
            while any(node.op_type == "If" for node in graph.nodes):
                made = _taken_branches(graph, trace(graph, state.pair, ask))
                if made is graph:
                    break
                graph = made
        return graph


def _taken_branches(graph: Graph, facts: Trace) -> Graph:
    """The graph without the Ifs whose conditions are known; the same object if there are none."""
    taken: dict[str, str] = {}
    for node in graph.nodes:
        cond = facts.static(node.input[0]) if node.op_type == "If" and attribute(node, OWNER) is not None else None
        if cond is not None and cond.size == 1:
            taken[attributes(node)[OWNER].decode()] = "then_branch" if cond.item() else "else_branch"
    if not taken:
        return graph
    return graph.replace([node for node, _ in straightened(graph.nodes, taken)])
