"""A Gather whose indices count through a whole axis is a Reshape.

    index  (N, C, 1, 1), computed from the size N of the batch, with the values 0, 1, ... N C - 1
    Gather(data (N C,), index) = Reshape(data, (-1, C, 1, 1))

Exporters write such strided views behind pools of tensors with channels last. A list of indices does not say what it
counts; a Reshape does: batch and channels are told apart. Two sizes of the batch tell, since such indices are sums of
products of sizes and places: nothing is divided or rounded, as it is where a picture is resized by indices, which may
be all of them in order at two sizes and not at a third. Left alone: indices that are the same in every run, which the
rule of Gather types, and results with more than one axis that varies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from onnx import NodeProto, TensorProto

from onnxprune.graph import Graph
from onnxprune.kinds import Value
from onnxprune.manager import State
from onnxprune.nodes import attributes
from onnxprune.storage import tensor
from onnxprune.trace import Trace

SHAPE_OPSET = 5  # since which Reshape takes its shape as an operand
EXACT = frozenset(
    [
        "Range",
        "Add",
        "Sub",
        "Mul",
        "Reshape",
        "Unsqueeze",
        "Squeeze",
        "Expand",
        "Concat",
        "Identity",
        "Cast",
        "Gather",
        "Slice",
        "Constant",
    ]
)  # what indices may be made of, from sizes


@dataclass(frozen=True)
class ReshapeViews:
    """Replace Gathers (opset 5-13) of all entries in their order by Reshapes."""

    name: ClassVar[str] = "reshape-views"
    keeps_facts: ClassVar[bool] = False

    def run(self, state: State) -> Graph:
        graph = state.graph
        if graph.opsets.get("", 1) < SHAPE_OPSET:
            return graph
        nodes, tensors = list(graph.nodes), dict(graph.tensors)
        for i, wires in enumerate(graph.wires):
            computed = wires.operator == "Gather" and wires.inputs[1] in graph.producer
            shape = _shape(graph, i, state.facts) if computed else None
            if shape is not None:
                name = graph.unused_name(f"{wires.outputs[0]}.shape")
                tensors[name] = tensor(name, np.array(shape, np.int64))
                nodes[i] = _reshape(nodes[i], name)
        return graph.replace(nodes, tensors) if len(tensors) > len(graph.tensors) else graph


def _shape(graph: Graph, i: int, facts: Trace) -> list[int] | None:
    """The shape operand of the Reshape that does what Gather `i` does; None if none does."""
    (data, index), made = graph.wires[i].inputs, graph.wires[i].outputs[0]
    shape = facts.shapes.get(made, (0,))
    if 0 in shape or len(varying := facts.varying(made)) != 1 or facts.static(index) is not None:
        return None
    if not _is_exact(graph, index, facts):
        return None
    axis = attributes(graph.nodes[i]).get("axis", 0)
    for shapes, values in ((facts.shapes, facts.values), (facts.other_shapes, facts.other_values)):
        if index not in values or data not in shapes or not _counts(values[index], shapes[data][axis]):
            return None
    return [-1 if k in varying else n for k, n in enumerate(shape)]


def _is_exact(graph: Graph, index: str, facts: Trace) -> bool:
    """Whether indices are integers made of sizes, without a division."""
    open_, seen = [index], {index}
    while open_:
        name = open_.pop()
        if facts.dtypes.get(name) not in (TensorProto.INT32, TensorProto.INT64):
            return False
        wires = graph.wires[graph.producer[name]] if name in graph.producer else None
        if wires is None or wires.operator in ("Shape", "Size"):
            continue
        if wires.operator not in EXACT:
            return False
        open_ += set(wires.inputs) - seen - {""}
        seen.update(wires.inputs)
    return True


def _counts(index: Value, size: int) -> bool:
    """Whether indices go through an axis of `size` entries from the first to the last."""
    return np.array_equal(index.reshape(-1), np.arange(size))


def _reshape(node: NodeProto, shape: str) -> NodeProto:
    made = NodeProto()
    made.CopyFrom(node)
    made.op_type, made.input[1] = "Reshape", shape
    del made.attribute[:]
    return made
