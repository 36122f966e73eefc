"""Integers that stand for reals: real = (value - zero point) * scale. Which operands of which operators do, and what
they stand for.

Rules, scores, costs, the lossless analysis and the masked original all ask here: the zero of a quantised tensor is its
zero point, the weight of a quantised product is the real number. Left out: formats that pack several weights into one
entry.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from onnxprune.evaluate import evaluate
from onnxprune.graph import FLOATS, Graph
from onnxprune.nodes import attributes, is_standard

Array = NDArray[Any]
MICROSOFT = "com.microsoft"
SHORT = (TensorProto.INT8, TensorProto.UINT8)
MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast", "Slice", "Concat", "Gather")


@dataclass(frozen=True)
class Operand:
    """Input `value` is quantised with inputs `scale` and `zero` (None: applied later, or zero). A vector of scales lies
    along `axis`, None: along attribute `axis`, 1 if there is none.
    """

    value: int
    scale: int | None = None
    zero: int | None = None
    axis: int | None = None


_BINARY = (Operand(0, 1, 2, 0), Operand(3, 4, 5, 0))
_UNARY = (Operand(0, 1, 2, 0),)
_CONV = (Operand(0, 1, 2, 0), Operand(3, 4, 5, 0), Operand(8))
_STANDARD: dict[str, tuple[Operand, ...]] = {
    "DequantizeLinear": (Operand(0, 1, 2),),
    "QLinearConv": _CONV,
    "QLinearMatMul": (Operand(0, 1, 2, -2), Operand(3, 4, 5, -1)),
    "ConvInteger": (Operand(0, None, 2, 0), Operand(1, None, 3, 0)),
    "MatMulInteger": (Operand(0, None, 2, -2), Operand(1, None, 3, -1)),
}
_MICROSOFT: dict[str, tuple[Operand, ...]] = {
    "DequantizeLinear": (Operand(0, 1, 2),),
    "QLinearConv": _CONV,
    "DynamicQuantizeMatMul": (Operand(1, 2, 3, -1),),
    "MatMulIntegerToFloat": (Operand(0, 2, 4, -2), Operand(1, 3, 5, -1)),
    "QGemm": (Operand(0, 1, 2, 0), Operand(3, 4, 5, -1), Operand(6)),
    "DynamicQuantizeLSTM": (Operand(1, 8, 9, 0), Operand(2, 10, 11, 0)),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), _BINARY),
    "QLinearWhere": (Operand(1, 2, 3, 0), Operand(4, 5, 6, 0)),
    **dict.fromkeys(
        ("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearAveragePool", "QLinearGlobalAveragePool"),
        _UNARY,
    ),
    "QLinearReduceMean": _UNARY,
    "QAttention": (Operand(0, 3, 6, 0), Operand(1, 4, 7, -1)),
}
OPERANDS: Mapping[str, Mapping[str, tuple[Operand, ...]]] = {"": _STANDARD, "ai.onnx": _STANDARD, MICROSOFT: _MICROSOFT}
PRODUCTS = frozenset(op for table in (_STANDARD, _MICROSOFT) for op in table if "Conv" in op or "Mat" in op) | {
    "QGemm",
    "DynamicQuantizeLSTM",
}


def operands(node: NodeProto) -> tuple[Operand, ...]:
    """The quantised operands of a node that it has."""
    kind = node.op_type
    if kind == "QLinearConcat" and node.domain == MICROSOFT:
        return tuple(Operand(j, j + 1, j + 2, 0) for j in range(2, len(node.input), 3))
    found = OPERANDS.get(node.domain, {}).get(kind, ())
    if kind == "QGemm" and attributes(node).get("transB", 0):
        found = (found[0], Operand(3, 4, 5, 0), found[2])
    return tuple([o for o in found if has(node, o.value)])


def operand(node: NodeProto, j: int) -> Operand | None:
    """How input j of a node is quantised, None if it is not."""
    return next((o for o in operands(node) if o.value == j), None)


def is_scale(node: NodeProto, j: int) -> bool:
    """Whether input j of a node is the scale or zero point of something."""
    if node.op_type == "QuantizeLinear":
        return j > 0
    return any(j in (o.scale, o.zero) for o in operands(node))


def has(node: NodeProto, j: int | None) -> bool:
    return j is not None and j < len(node.input) and node.input[j] != ""


def rounds(node: NodeProto) -> bool:
    """Whether a node rounds activations to integers while the model runs."""
    return node.op_type == "QGemm" or node.op_type.startswith(("QuantizeLinear", "DynamicQuantize", "QLinear"))


def product_operands(node: NodeProto) -> tuple[int, int]:
    """Where a product has its data and its weights."""
    places = [o.value for o in operands(node)] if node.op_type in PRODUCTS else []
    return (places[0], places[1]) if len(places) > 1 else (0, 1)


def stands_for_reals(graph: Graph, name: str) -> bool:
    """Whether a constant holds numbers that a model has learnt: floats, or integers that some node dequantises,
    multiplies or, where they are short, casts to floats.
    """
    kind = graph.constants[name].data_type
    if kind in FLOATS:
        return True
    uses = graph.consumers.get(name, [])
    return any(quantised_use(graph, i, j) is not None or (kind in SHORT and _to_float(graph, i)) for i, j in uses)


def _to_float(graph: Graph, i: int) -> bool:
    return graph.nodes[i].op_type == "Cast" and attributes(graph.nodes[i])["to"] in FLOATS


def quantised_use(graph: Graph, i: int, j: int) -> tuple[int, int] | None:
    """The node and input at which what goes into input j of node i is taken as quantised, behind moves (rows of an
    embedding are picked first); None if it is not.
    """
    if j < 0 or operand(graph.nodes[i], j) is not None:
        return (i, j) if j >= 0 else None
    if graph.nodes[i].op_type not in MOVES or (j > 0 and graph.nodes[i].op_type != "Concat"):
        return None
    uses = (quantised_use(graph, *use) for use in graph.consumers.get(graph.nodes[i].output[0], []))
    return next((use for use in uses if use is not None), None)


def placed(shape: Sequence[int], rank: int, axis: int) -> list[int]:
    """The shape at which scales of `shape` broadcast against an operand of `rank` axes: one for all, as many axes, a
    vector along `axis`, or (D, n) against (D, ., n).
    """
    if math.prod(shape) == 1:
        return [1] * rank
    if len(shape) == rank:
        return list(shape)
    if len(shape) == 1:
        return [shape[0] if k == axis % rank else 1 for k in range(rank)]
    return [shape[0], *[1] * (rank - len(shape)), *shape[1:]]


def axis_of(node: NodeProto, found: Operand) -> int:
    """The axis along which a vector of scales of an operand lies."""
    return int(attributes(node).get("axis", 1)) if found.axis is None else found.axis


def spread_blocks(scales: Array, shape: Sequence[int], axis: int) -> Array:
    """Scales so that they broadcast against an operand of `shape`; blocks (opset 21) are repeated along their axis."""
    made = scales.reshape(placed(scales.shape, len(shape), axis))
    for k, (have, want) in enumerate(zip(made.shape, shape, strict=True)):
        if have not in (1, want):
            made = np.repeat(made, -(-want // have), axis=k).take(range(want), axis=k)
    return made


def real(graph: Graph, i: int, j: int) -> Array | None:
    """What input j of node i stands for, where it depends on constants only: its array; for integers that are quantised
    (value - zero point) * scale, as float32; through DequantizeLinear and moves. None where that is not known.
    """
    node = graph.nodes[i]
    if not has(node, j):
        return None
    found = operand(node, j)
    if found is None:
        return _traced(graph, node.input[j])
    value = graph.array(node.input[j]) if node.input[j] in graph.constants else None
    if value is None:
        return None
    return _as_reals(graph, i, found, value, axis_of(node, found))


def meant(graph: Graph, i: int, j: int) -> Array | None:
    """What a constant, input j of node i, stands for where it is used at last: as `real`, and behind moves if one scale
    holds for all of it. Stored numbers where the scale is not known.
    """
    found, use = real(graph, i, j), quantised_use(graph, i, j)
    if found is None or use is None or use == (i, j):
        return found
    node, place = graph.nodes[use[0]], operand(graph.nodes[use[0]], use[1])
    names = [node.input[k] for k in (place.scale, place.zero) if k is not None and has(node, k)] if place else []
    if place is None or any(n not in graph.constants or math.prod(graph.constants[n].dims) > 1 for n in names):
        return found
    return _as_reals(graph, use[0], place, found, 0)


def _as_reals(graph: Graph, i: int, found: Operand, value: Array, axis: int) -> Array | None:
    node, made = graph.nodes[i], value.astype(np.float32)
    if found.zero is not None and has(node, found.zero):
        if node.input[found.zero] not in graph.constants:
            return None
        made = made - spread_blocks(graph.array(node.input[found.zero]).astype(np.float32), made.shape, axis)
    scale = _scale(graph, i, found)
    if scale is None or (scale.ndim == 1 < scale.size != made.shape[axis]):
        return made
    return made * spread_blocks(scale, made.shape, axis)


def _scale(graph: Graph, i: int, found: Operand) -> Array | None:
    node = graph.nodes[i]
    if found.scale is None:
        return next(_later_scales(graph, i), None)
    name = node.input[found.scale] if has(node, found.scale) else ""
    return graph.array(name).astype(np.float32) if name in graph.constants else None


def _later_scales(graph: Graph, i: int) -> Iterator[Array]:
    """ConvInteger and MatMulInteger: the constants that Mul brings in after the Cast, as vectors along the output's
    channels: the scale of the weights, times that of the data if it is constant too.
    """
    names = list(graph.nodes[i].output)
    while names:
        for k, _ in graph.consumers.get(names.pop(), []):
            node = graph.nodes[k]
            if node.op_type == "Cast":
                names += node.output
            elif node.op_type == "Mul":
                yield from _factors(graph, [n for n in node.input], 2)


def _factors(graph: Graph, names: Sequence[str], depth: int) -> Iterator[Array]:
    for name in names:
        if name in graph.constants and graph.constants[name].data_type in FLOATS:
            yield graph.array(name).astype(np.float32).reshape(-1)
        elif depth > 1 and name in graph.producer and graph.nodes[graph.producer[name]].op_type == "Mul":
            yield from _factors(graph, graph.nodes[graph.producer[name]].input, depth - 1)


def _traced(graph: Graph, name: str) -> Array | None:
    """The value of a tensor that constants reach through DequantizeLinear and moves."""
    if name in graph.constants:
        return graph.array(name)
    i = graph.producer.get(name)
    if i is None:
        return None
    node = graph.nodes[i]
    if operand(node, 0) is not None and node.op_type == "DequantizeLinear":
        return real(graph, i, 0)
    if node.op_type not in MOVES or not is_standard(node):
        return None
    inputs = [_traced(graph, n) if n else None for n in node.input]
    if any(a is None and n for a, n in zip(inputs, node.input, strict=True)):
        return None
    made = evaluate(node, inputs, attributes(node), graph.opsets.get("", 1))
    return made[0] if made is not None else None
