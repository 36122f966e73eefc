"""Nodes that no output needs go, and with them the initialisers and `value_info` entries that nothing names any
more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import networkx as nx
from onnx import ModelProto

from onnxprune.graph import Graph, captured
from onnxprune.manager import State


@dataclass(frozen=True)
class RemoveDead:
    """Keep the ancestors of the graph's outputs. Unused graph inputs stay: they are the model's interface."""

    name: ClassVar[str] = "remove-dead"
    keeps_facts: ClassVar[bool] = True

    def run(self, state: State) -> Graph:
        graph = state.graph
        flow = nx.DiGraph()
        for i, node in enumerate(graph.nodes):
            flow.add_node(i)
            flow.add_edges_from((graph.producer[n], i) for n in [*node.input, *captured(node)] if n in graph.producer)
        flow.add_edges_from((graph.producer[o.name], "end") for o in graph.outputs if o.name in graph.producer)
        flow.add_node("end")
        live = nx.ancestors(flow, "end")
        nodes = [node for i, node in enumerate(graph.nodes) if i in live]
        named = {n for node in nodes for n in [*node.input, *captured(node)]} | {o.name for o in graph.outputs}
        tensors = {n: t for n, t in graph.tensors.items() if n in named}
        shell = _without_stale(
            graph.shell, named | {n for node in nodes for n in node.output}, set(graph.tensors) - set(tensors)
        )
        if len(nodes) == len(graph.nodes) and len(tensors) == len(graph.tensors) and shell is graph.shell:
            return graph
        return graph.replace(nodes, tensors, shell)


def _without_stale(shell: ModelProto, alive: set[str], dropped: set[str]) -> ModelProto:
    stale = [v for v in shell.graph.value_info if v.name not in alive]
    inputs = [v for v in shell.graph.input if v.name in dropped]  # IR version 3 lists initialisers as inputs
    if not stale and not inputs:
        return shell
    made = ModelProto()
    made.CopyFrom(shell)
    for field, keep in ((made.graph.value_info, shell.graph.value_info), (made.graph.input, shell.graph.input)):
        left = [v for v in keep if v not in stale and v not in inputs]
        del field[:]
        field.extend(left)
    return made
