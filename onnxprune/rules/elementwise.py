"""Operators that work entry by entry: every axis goes through, broadcasting unifies the axes of equal size."""

from __future__ import annotations

from onnxprune.dims import ONE
from onnxprune.errors import Barrier
from onnxprune.rules.rule import Axes, Node, Table


def same(node: Node) -> None:
    """Output axes are input 0's. Other inputs are scalars, such as Clip's bounds."""
    for k in range(len(node.outputs)):
        node.out(list(node.axes(0)), k)


def dropout(node: Node) -> None:
    """Dropout (opset 1-22): output axes are input 0's, unless it draws random numbers (training mode)."""
    training = node.static(2)
    if node.has(2) and (training is None or training.any()):
        raise Barrier("barrier", "Dropout in training mode")
    same(node)


def cast_like(node: Node) -> None:
    """CastLike (opset 15-25): output axes are input 0's; input 1 gives the type only, whatever its axes."""
    node.axes(1)
    same(node)


def broadcast(node: Node) -> None:
    """All inputs broadcast together. Before opset 7 the second one is placed at attribute `axis`."""
    shapes = [node.axes(i) for i in range(len(node.inputs)) if node.has(i)]
    if node.opset < 7 and node.attr("broadcast", 0):
        shapes[1] = _legacy(node, shapes)
    node.out(node.broadcast(shapes))


def _legacy(node: Node, shapes: list[Axes]) -> Axes:
    rank = len(shapes[0])
    at = int(node.attr("axis", rank - len(shapes[1])))
    return shapes[1] + [ONE] * (rank - (at % rank if at < 0 else at) - len(shapes[1]))


def prelu(node: Node) -> None:
    """PRelu: the slope broadcasts to x; before opset 7 it is one number per channel (axis 1)."""
    x, slope = node.axes(0), node.axes(1)
    if node.opset < 7 and len(slope) == 1 and slope[0].size > 1:
        slope = slope + [ONE] * (len(x) - 2)
    node.out(node.broadcast([x, slope]))


_SAME = """Abs Acos Acosh Asin Asinh Atan Atanh BitCast BitwiseNot Cast Ceil Celu Clip Cos Cosh Elu Erf
Exp Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink
Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"""
_BROADCAST = """Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max
Mean Min Mod Mul Or Pow Sub Sum SwiGLU Where Xor"""

TABLE: Table = {
    **dict.fromkeys(_SAME.split(), same),
    **dict.fromkeys(_BROADCAST.split(), broadcast),
    "CastLike": cast_like,
    "Dropout": dropout,
    "PRelu": prelu,
}
