"""Initial states of recurrent layers that are zero whatever the input go: zero is the default, and a tensor of zeros
that several layers cut their states from would tie their hidden units together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnx import NodeProto, numpy_helper

from onnxprune.graph import Graph
from onnxprune.manager import State
from onnxprune.nodes import attributes, is_standard

STATES = (5, 6)  # initial_h and, for LSTM, initial_c
MOVES = frozenset(
    [
        "Slice",
        "Split",
        "Gather",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Expand",
        "Tile",
        "Identity",
        "Cast",
        "Concat",
        "Flatten",
    ]
)


@dataclass(frozen=True)
class DropZeroStates:
    """Drop initial states of LSTM, GRU and RNN (opset 1-22) that are cut from zeros."""

    name: ClassVar[str] = "drop-zero-states"
    keeps_facts: ClassVar[bool] = True

    def run(self, state: State) -> Graph:
        graph = state.graph
        nodes = [
            _without_zeros(graph, node) if node.op_type in ("LSTM", "GRU", "RNN") else node for node in graph.nodes
        ]
        return graph.replace(nodes) if any(a is not b for a, b in zip(nodes, graph.nodes, strict=True)) else graph


def _without_zeros(graph: Graph, node: NodeProto) -> NodeProto:
    gone = [j for j in STATES if j < len(node.input) and node.input[j] and _is_zero(graph, node.input[j])]
    if not gone:
        return node
    made = NodeProto()
    made.CopyFrom(node)
    for j in gone:
        made.input[j] = ""
    while made.input and not made.input[-1]:
        del made.input[-1]
    return made


def _is_zero(graph: Graph, name: str) -> bool:
    """Whether a tensor is made of zeros by moving them around."""
    if name in graph.constants:
        return not graph.array(name).any()
    node = graph.nodes[graph.producer[name]] if name in graph.producer else None
    if node is None or not is_standard(node):
        return False
    if node.op_type == "ConstantOfShape":
        value = attributes(node).get("value")
        return value is None or not numpy_helper.to_array(value).any()
    sources = node.input if node.op_type == "Concat" else node.input[:1]
    return node.op_type in MOVES and all(_is_zero(graph, n) for n in sources)
