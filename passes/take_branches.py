"""An If whose condition is the same in every run is replaced by the branch that it takes.

Exporters write such Ifs where a script asked for a rank or a size. Behind them shapes are known again, so another look
may find more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnx import NodeProto, helper

from onnxprune.flow import BODY, ENTER, LEAVE, OWNER, attribute, results_of
from onnxprune.graph import Graph, attributes
from onnxprune.manager import State
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
    nodes: list[NodeProto] = []
    skipping = 0
    for node in graph.nodes:
        own = attributes(node) if node.op_type in (ENTER, LEAVE, "If") else {}
        branch = taken.get(own[OWNER].decode()) if OWNER in own else None
        other = branch is not None and node.op_type != "If" and own[BODY].decode() != branch
        skipping += other and node.op_type == ENTER
        if not skipping:
            nodes += [node] if branch is None else _straight(node, branch)
        skipping -= other and node.op_type == LEAVE
    return graph.replace(nodes)


def _straight(node: NodeProto, branch: str) -> list[NodeProto]:
    """What is left of a bracket of the branch that is taken, or of its If: plain identities."""
    if node.op_type == ENTER:
        return []
    made = results_of(node, branch) if node.op_type == "If" else node.input[1 : 1 + len(node.output)]
    return [helper.make_node("Identity", [a], [b], name=b) for a, b in zip(made, node.output, strict=True)]
