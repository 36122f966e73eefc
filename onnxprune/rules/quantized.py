"""Quantised operators: integers that stand for (value - zero point) * scale are typed like the reals.

One scale for a whole tensor is no axis; a vector of scales or zero points lies along an axis and is cut with it; where
blocks of an axis share a scale, whole blocks go. Dynamic quantisation chooses its scale by the range of all entries, 0
included: that is a read of every axis which removed units, being 0, do not change.
"""

from __future__ import annotations

from onnxprune.dims import ONE, Expr, total
from onnxprune.quantization import axis_of, operand, placed
from onnxprune.rules.contraction import conv, gemm, matmul
from onnxprune.rules.elementwise import same
from onnxprune.rules.normalization import channels_only
from onnxprune.rules.recurrent import directions_choice, gate_rows
from onnxprune.rules.rule import Axes, Node, Table

ZERO_PRESERVING = ("Sigmoid", "Tanh", "Tanh")  # LSTM activations under which a unit that gets nothing stays at 0


def quantize(node: Node) -> None:
    """QuantizeLinear, DequantizeLinear (opset 10-25): scale and zero point are scalars, lie along `axis`, or (opset 21)
    have one entry per `block_size` entries of it.
    """
    x, block = node.axes(0), int(node.attr("block_size", 0))
    at = int(node.attr("axis", 1)) % max(len(x), 1)
    for i in (1, 2):
        if node.has(i) and block:
            for k, (e, s) in enumerate(zip(x, node.axes(i), strict=True)):
                _blocks(node, e, s, block) if k == at else node.unify(e, s)
        elif node.has(i):
            _along(node, i, x, at)
    node.out(list(x))


def _blocks(node: Node, axis: Expr, scales: Expr, block: int) -> None:
    """An axis is scales x block; a last block that is not full freezes it."""
    detail = f"blocks of {block} share a scale"
    if axis.size % block:
        node.freeze(axis, "structure", detail)
        node.freeze(scales, "structure", detail)
        return
    outer, inner = node.space.factor(axis, block)
    node.freeze(inner, "structure", detail)
    node.unify(outer, scales)


def _along(node: Node, i: int, axes: Axes, axis: int) -> None:
    """Input i, scales or zero points if present, follows the axes that it has entries for."""
    if not node.has(i):
        return
    given = iter(e for e in node.axes(i) if e.size > 1)
    for e, size in zip(axes, placed(node.shape(i), len(axes), axis), strict=True):
        if size > 1:
            node.unify(e, next(given))


def _follow(node: Node, *values: int) -> None:
    """Scales and zero points of the quantised inputs `values` follow them."""
    for j in values:
        found = operand(node.proto, j)
        for i in (found.scale, found.zero) if found else ():
            if found and i is not None:
                _along(node, i, node.axes(j), axis_of(node.proto, found))


def qlinear_conv(node: Node) -> None:
    """QLinearConv (opset 10): x (N, g*I, *S), w (g*O, I, *K), its scales and zero points (g*O) or one, B (g*O).
    com.microsoft QLinearConv with `channels_last`: x (N, *S, g*I).
    """
    conv(node, weight=3, bias=8, last=bool(node.attr("channels_last", 0)))
    _follow(node, 3)


def conv_integer(node: Node) -> None:
    """ConvInteger (opset 10): x (N, g*I, *S), w (g*O, I, *K), its zero points (g*O) or one -> int32."""
    conv(node, weight=1, bias=len(node.inputs))
    _follow(node, 1)


def qlinear_matmul(node: Node) -> None:
    """QLinearMatMul (opset 10-21): a (*B, M, K), its scales per row; b (*B, K, N), its scales per column; y per row."""
    matmul(node, weight=3)
    _follow(node, 0, 3)
    for i in (6, 7):
        _along(node, i, node.signature.outputs[0] or [], -2)


def matmul_integer(node: Node) -> None:
    """MatMulInteger (opset 10): a (*B, M, K), zero points per row; b (*B, K, N), zero points per column -> int32.
    com.microsoft MatMulIntegerToFloat has scales too, and a bias (N).
    """
    matmul(node)
    _follow(node, 0, 1)
    _bias(node, 6)


def _bias(node: Node, i: int) -> None:
    if node.has(i):
        node.unify(node.axes(i)[-1], (node.signature.outputs[0] or [])[-1])


def dynamic_quantize(node: Node) -> None:
    """DynamicQuantizeLinear (opset 11): x -> y of the same axes, its scale () and zero point ()."""
    _range(node)
    node.out(list(node.axes(0)))
    node.out([], 1)
    node.out([], 2)


def _range(node: Node) -> None:
    """The scale of input 0 is chosen by the range of all its entries."""
    for k in range(node.rank(0)):
        node.read(0, k, "range")


def dynamic_matmul(node: Node) -> None:
    """DynamicQuantizeMatMul: A (*B, M, K) float, B (K, N) with scales and zero points per column or one, bias (N)."""
    matmul(node)
    _follow(node, 1)
    _bias(node, 4)
    _range(node)


def qgemm(node: Node) -> None:
    """QGemm: A' (M, K), B' (K, N) with scales and zero points per column or one, C (N) int32; transposed by
    attribute.
    """
    gemm(node, weight=3, bias=6)
    _follow(node, 3)


def qlinear_binary(node: Node) -> None:
    """QLinearAdd, QLinearMul: A (0) and B (3) broadcast together."""
    node.out(node.broadcast([node.axes(0), node.axes(3)]))


def qlinear_where(node: Node) -> None:
    """QLinearWhere: condition, X (1) and Y (4) broadcast together."""
    node.out(node.broadcast([node.axes(0), node.axes(1), node.axes(4)]))


def qlinear_softmax(node: Node) -> None:
    """QLinearSoftmax: Softmax of the default domain's opset `opset`; the axis, before 13 all axes from it on, are
    frozen.
    """
    x, flat = node.axes(0), int(node.attr("opset", 13)) < 13
    at = node.axis(1 if flat else -1)
    for e in x[at:] if flat else x[at : at + 1]:
        node.freeze(e, "normalised")
    node.out(list(x))


def qlinear_pool(node: Node) -> None:
    """QLinearAveragePool, NhwcMaxPool: channels go through, spatial axes do not. They are the second axis, or with
    `channels_last`, and always for the latter, the last.
    """
    last = node.attr("channels_last", int(node.proto.op_type == "NhwcMaxPool"))
    node.out(channels_only(node, at=-1 if last else 1))


def qlinear_global_pool(node: Node) -> None:
    """QLinearGlobalAveragePool: every axis but batch and channels becomes 1; the mean is rounded, so none of it may
    go.
    """
    x = node.axes(0)
    channel = len(x) - 1 if node.attr("channels_last", 0) else 1
    for k, e in enumerate(x):
        if k not in (0, channel):
            node.freeze(e, "spatial")
    node.out([e if k in (0, channel) else ONE for k, e in enumerate(x)])


def qlinear_reduce_mean(node: Node) -> None:
    """QLinearReduceMean: `axes` as attribute, all if absent; the mean is rounded, so they are frozen."""
    x = node.axes(0)
    gone = {a % len(x) for a in node.ints("axes", len(node.inputs)) or range(len(x))}
    for k in gone:
        node.freeze(x[k], "normalised")
    keepdims = node.attr("keepdims", 1)
    node.out([ONE if k in gone else e for k, e in enumerate(x) if keepdims or k not in gone])


def qlinear_concat(node: Node) -> None:
    """QLinearConcat: Y's scale and zero point, then (tensor, scale, zero point) for each part."""
    parts = [node.axes(i) for i in range(2, len(node.inputs), 3)]
    at = int(node.attr("axis", 1)) % len(parts[0])
    out = node.broadcast([[ONE if k == at else e for k, e in enumerate(p)] for p in parts])
    node.out([total(*(p[at] for p in parts)) if k == at else e for k, e in enumerate(out)])


def dynamic_lstm(node: Node) -> None:
    """DynamicQuantizeLSTM: X (T, N, I), W (D, I, 4*H), R (D, H, 4*H), B (D, 8*H), lengths (N), states (D, N, H),
    P (D, 3*H), scales and zero points of W and R (D) or (D, 4*H) -> Y (T, D, N, H), Y_h, Y_c.

    Each direction quantises all its hidden units with one scale, step by step. A unit whose gates get nothing stays at
    0 and leaves that scale alone, so it is the gates that are read.
    """
    x, w, r = node.axes(0), node.axes(1), node.axes(2)
    directions, hidden = w[0], r[1]
    node.freeze(x[0], "index")
    node.unify(x[2], w[1])
    for j in (2, 3, 7, 8, 9, 10, 11):
        if node.has(j) and node.rank(j):
            node.unify(node.axes(j)[0], directions)
    for j in (1, 2):
        gate_rows(node, node.axes(j)[2], hidden, 4)
        found = operand(node.proto, j)
        for i in (found.scale, found.zero) if found else ():
            if i is not None and node.has(i) and node.rank(i) == 2 and node.shape(i)[1] > 1:
                gate_rows(node, node.axes(i)[1], hidden, 4)
    _state_operands(node, [directions, x[1], hidden])
    node.out([x[0], directions, x[1], hidden])
    node.out([directions, x[1], hidden], 1)
    node.out([directions, x[1], hidden], 2)
    node.edit("hidden_size", hidden, scalar=True)
    directions_choice(node, directions)
    node.read(0, 2, partner=(1, 1))
    for j, axis in ((1, 2), (2, 2), (3, 1), (5, 2), (6, 2)):
        if node.has(j):
            node.read(j, axis)
    _range(node)
    named = [a.decode() for a in node.attr("activations", [])]
    if any(a != ZERO_PRESERVING[k % 3] for k, a in enumerate(named)):
        node.freeze(hidden, "normalised", "all hidden units share one scale")


def _state_operands(node: Node, state: Axes) -> None:
    """Bias, lengths, initial states and peepholes of DynamicQuantizeLSTM."""
    for j, count in ((3, 8), (7, 3)):
        if node.has(j):
            gate_rows(node, node.axes(j)[1], state[2], count)
    if node.has(4):
        node.unify(node.axes(4)[0], state[1])
    for j in (5, 6):
        if node.has(j):
            for a, b in zip(node.axes(j), state, strict=True):
                node.unify(a, b)


TABLE: Table = {
    "QuantizeLinear": quantize,
    "DequantizeLinear": quantize,
    "DynamicQuantizeLinear": dynamic_quantize,
    "QLinearConv": qlinear_conv,
    "ConvInteger": conv_integer,
    "QLinearMatMul": qlinear_matmul,
    "MatMulInteger": matmul_integer,
}

TABLE_MICROSOFT: Table = {
    "com.microsoft.QLinearConv": qlinear_conv,
    "com.microsoft.QuantizeLinear": quantize,
    "com.microsoft.DequantizeLinear": quantize,
    "com.microsoft.DynamicQuantizeMatMul": dynamic_matmul,
    "com.microsoft.MatMulIntegerToFloat": matmul_integer,
    "com.microsoft.QGemm": qgemm,
    "com.microsoft.QLinearAdd": qlinear_binary,
    "com.microsoft.QLinearMul": qlinear_binary,
    "com.microsoft.QLinearWhere": qlinear_where,
    "com.microsoft.QLinearSigmoid": same,
    "com.microsoft.QLinearLeakyRelu": same,
    "com.microsoft.QLinearSoftmax": qlinear_softmax,
    "com.microsoft.QLinearAveragePool": qlinear_pool,
    "com.microsoft.NhwcMaxPool": qlinear_pool,
    "com.microsoft.QLinearGlobalAveragePool": qlinear_global_pool,
    "com.microsoft.QLinearReduceMean": qlinear_reduce_mean,
    "com.microsoft.QLinearConcat": qlinear_concat,
    "com.microsoft.DynamicQuantizeLSTM": dynamic_lstm,
}
