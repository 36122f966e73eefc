"""What one NodeProto says: its operator, what it reads and makes, its attributes, the constant that it holds.

Nodes inside of bodies are asked the same way. Nothing here knows of the graph that a node is in (`graph`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.flow import ENTER

BODIES = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
NUMBERS = {  # attributes of Constant nodes that hold numbers, by name and type
    ("value_float", AttributeProto.FLOAT): np.float32,
    ("value_floats", AttributeProto.FLOATS): np.float32,
    ("value_int", AttributeProto.INT): np.int64,
    ("value_ints", AttributeProto.INTS): np.int64,
}


class Wires(NamedTuple):
    """What a node is and connects; names that bodies of control flow take from outside are `captured`."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    captured: tuple[str, ...]

    @staticmethod
    def of(node: NodeProto) -> Wires:
        """As a node's proto says."""
        return Wires(operator(node), tuple(node.input), tuple(node.output), tuple(captured(node)))


def describe(node: NodeProto, index: int) -> str:
    """How messages name a node."""
    return f"{node.op_type} {node.name!r}" if node.name else f"{node.op_type} #{index}"


def captured(node: NodeProto) -> list[str]:
    """Names that the bodies of a control-flow node take from outside."""
    found: dict[str, None] = {}
    for attribute in node.attribute:
        if attribute.type in BODIES and node.op_type != ENTER:
            for body in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
                found.update(dict.fromkeys(free_names(body)))
    return list(found)


def free_names(body: GraphProto) -> Iterator[str]:
    """Names that a graph uses and does not make."""
    local = {i.name for i in body.input} | {t.name for t in body.initializer}
    local |= {t.values.name for t in body.sparse_initializer} | {n for node in body.node for n in node.output}
    for node in body.node:
        yield from (n for n in [*node.input, *captured(node)] if n and n not in local)
    yield from (o.name for o in body.output if o.name not in local)


def attributes(node: NodeProto) -> dict[str, Any]:
    """Attribute values by name, as Python objects."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def operator(proto: NodeProto) -> str:
    """What a node's rule is found under: `Conv`, or with its domain where that is another: `com.microsoft.Gelu`."""
    return proto.op_type if is_standard(proto) else f"{proto.domain}.{proto.op_type}"


def is_standard(proto: NodeProto) -> bool:
    """Whether a node's operator is of ONNX's default domain."""
    return proto.domain in ("", "ai.onnx")


def constant_value(node: NodeProto) -> TensorProto | None:
    """The dense tensor of a Constant node (opset 1-25), None for sparse (see `sparse_value`) and string values, and for
    what is no value.
    """
    attribute = node.attribute[0] if node.attribute else None
    if attribute is None:
        return None
    if attribute.name == "value":
        value: TensorProto | None = attribute.t if attribute.HasField("t") else None
        return value
    kind = NUMBERS.get((attribute.name, attribute.type))
    if kind is None:
        return None
    return numpy_helper.from_array(np.array(helper.get_attribute_value(attribute), kind), node.output[0])


def tensors_in(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    """Tensors that attributes hold, and those of graphs among them; of sparse ones the values."""
    for node in nodes:
        for a in node.attribute:
            if a.type == AttributeProto.TENSOR:
                yield a.t
            elif a.type == AttributeProto.SPARSE_TENSOR:
                yield a.sparse_tensor.values
            elif a.type == AttributeProto.GRAPH:
                yield from a.g.initializer
                yield from (t.values for t in a.g.sparse_initializer)
                yield from tensors_in(a.g.node)
