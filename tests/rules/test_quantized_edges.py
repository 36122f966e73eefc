"""Edge cases of quantised operators: zero points that are not 0, groups, padding, rows and columns, blocks, moves."""

from __future__ import annotations

import pytest

from tests.common import Row, check_row, image, tokens, vector

Q = "float s_pos = {0.05}, uint8 z = {131}"
CONV = "float v_pos = {0.03}, float w_pos = {0.2}, int8 k = {3}"
DYNAMIC = "q, qs, qz = DynamicQuantizeLinear(h) "


def conv(attributes: str, bias: str = "") -> str:
    """Body of a frame: quantise, QLinearConv with kernels C, dequantise."""
    return (
        f"q = QuantizeLinear(h, s_pos, z) r = QLinearConv <{attributes}> (q, s_pos, z, C, v_pos, k, w_pos, z{bias})"
        " g = DequantizeLinear(r, w_pos, z)"
    )


def channels_last(body: str, weights: str) -> str:
    """Body of a frame: q is NHWC, of scale s_pos, and so is r, of scale w_pos."""
    turned = "t = Transpose <perm = [0,2,3,1]> (h) q = QuantizeLinear(t, s_pos, z) "
    back = " d = DequantizeLinear(r, w_pos, z) g = Transpose <perm = [0,3,1,2]> (d)"
    weights = weights if "w_pos" in weights else f"{weights}, float w_pos = {{0.2}}"
    return image(turned + body + back, weights)


def lstm(attributes: str = "", weights: str = "") -> str:
    """DynamicQuantizeLSTM with all operands, a scale per row of the gates, and as many zero points: the kernel reads
    beyond a shorter vector.
    """
    return (
        "(float[5,N,4] x, int32[N] n) => (float[5,N,3] y) <uint8[1,4,24] W, uint8[1,6,24] R, float[1,48] b,"
        f" float[1,2,6] c, float[1,18] p, float[1,24] s_pos, uint8[1,24] z = {{{','.join('3' * 24)}}}, float[6,3] B,"
        " int64[1] one = {1}"
        f"{weights}> {{ q = com.microsoft.DynamicQuantizeLSTM <hidden_size = 6{attributes}>"
        ' (x, W, R, b, n, c, c, p, s_pos, z, s_pos, z) g = Squeeze(q, one) y = MatMul(g, B) }'
    ).replace("[5,N,", "[5,2,").replace("int32[N]", "int32[2]")  # fmt: skip


TWO_WAYS = (
    "(float[5,2,4] x, int32[2] n) => (float[5,2,3] y) <uint8[2,4,24] W, uint8[2,6,24] R, float[2,48] b, float[2,2,6] c,"
    " float[2,18] p, float[2] s_pos, uint8[2] z = {3,4}, float[2] t_pos, float[12,3] B, int64[3] s = {5,2,12}> { q ="
    ' com.microsoft.DynamicQuantizeLSTM <hidden_size = 6, direction = "bidirectional"> (x, W, R, b, n, c, c, p, s_pos,'
    " z, t_pos, z) r = Transpose <perm = [0,2,1,3]> (q) g = Reshape(r, s) y = MatMul(g, B) }"
)
ROWS = [
    Row("QLinearConv", "padding holds the zero point", image(conv("pads = [1,1,1,1]", ", b"), f"{Q}, {CONV},"
        " int8[8,8,3,3] C, int32[8] b"), "A:0=8 C:0=8"),
    Row("QLinearConv", "depthwise", image(conv("group = 8, pads = [1,1,1,1]"), f"{Q}, {CONV}, int8[8,1,3,3] C"),
        "A:0=8"),
    Row("QLinearConv", "groups", image(conv("group = 2"), f"{Q}, {CONV}, int8[8,4,1,1] C"), "A:0/0=2 A:0/1=4 C:0/1=4"),
    Row("ConvInteger", "dynamic", image(DYNAMIC + "i = ConvInteger <pads = [1,1,1,1]> (q, C, qz, k) f = Cast <to = 1>"
        " (i) g = Mul(f, qs)", "int8[8,8,3,3] C, int8 k = {3}"), "A:0=8 C:0=8"),
    Row("ConvInteger", "groups", image(DYNAMIC + "i = ConvInteger <group = 2> (q, C, qz) f = Cast <to = 1>"
        " (i) g = Mul(f, qs)", "int8[8,4,1,1] C"), "A:0/0=2 A:0/1=4 C:0/1=4"),
    Row("MatMulInteger", "dynamic, scale per column", tokens(DYNAMIC + "i = MatMulInteger(q, C, qz, k) f = Cast <to ="
        " 1> (i) t = Mul(qs, s_pos) g = Mul(f, t)", "int8[8,8] C, int8[8] k, float[8] s_pos"), "A:1=8 C:1=8"),
    Row("MatMulInteger", "batches", "(uint8[2,5,4] x) => (float[2,5,3] y) <uint8[2,4,8] C, float[8,3] B,"
        " uint8[2,1,8] k> { i = MatMulInteger(x, C, none, k) h = Cast <to = 1> (i) y = MatMul(h, B) }"
        .replace("none", '""'), "C:2=8"),
    Row("QLinearMatMul", "activations times activations", "(float[N,4] x) => (float[5,5] y) <float[4,8] A, float[4,8]"
        f" B, {Q}> {{ a = MatMul(x, A) b = MatMul(x, B) t = Transpose(b) u = QuantizeLinear(a, s_pos, z)"
        " w = QuantizeLinear(t, s_pos, z) m = QLinearMatMul(u, s_pos, z, w, s_pos, z, s_pos, z)"
        " y = DequantizeLinear(m, s_pos, z) }", "A:1=8"),
    Row("com.microsoft.QGemm", "transposed, scale per column", vector("q = QuantizeLinear(h, s_pos, z) r ="
        " com.microsoft.QGemm <transB = 1> (q, s_pos, z, C, t_pos, k, b, s_pos, z) g = DequantizeLinear(r, s_pos, z)",
        f"{Q}, uint8[6,8] C, float[6] t_pos, uint8[6] k, int32[6] b").replace("[8,3] B", "[6,3] B"), "A:1=8 C:0=6"),
    Row("com.microsoft.DynamicQuantizeMatMul", "all that it reads", tokens(
        "g = com.microsoft.DynamicQuantizeMatMul(h, C, s_pos, k, b)", "int8[8,6] C, float[6] s_pos, int8[6] k, float[6]"
        " b").replace("[8,3] B", "[6,3] B"), "A:1=8 C:1=6"),
    Row("com.microsoft.DynamicQuantizeLSTM", "all operands", lstm(), "W:2/1=6"),
    Row("com.microsoft.DynamicQuantizeLSTM", "both directions", TWO_WAYS, "W:0=2 W:2/1=6"),
    Row("com.microsoft.DynamicQuantizeLSTM", "activation that does not keep zero", lstm(
        ', activations = ["Sigmoid","Tanh","Sigmoid"]'), "", "W:2=gates R:1=normalised"),
    Row("com.microsoft.QLinearConcat", "two scales", vector("q = QuantizeLinear(h, s_pos, z) m = MatMul(x, C) r ="
        " QuantizeLinear(m, t_pos, z) c = com.microsoft.QLinearConcat <axis = 1> (s_pos, z, q, s_pos, z, r, t_pos, z)"
        " g = DequantizeLinear(c, s_pos, z)", f"{Q}, float t_pos = {{0.07}}, float[4,6] C")
        .replace("[8,3] B", "[14,3] B"), "A:1=8 C:1=6"),
    Row("com.microsoft.QLinearSoftmax", "before opset 13", tokens("q = QuantizeLinear(h, s_pos, z) r ="
        " com.microsoft.QLinearSoftmax <opset = 11, axis = 2> (q, s_pos, z, s_pos, z) g = DequantizeLinear(r, s_pos,"
        " z)", Q), "", "A:1=normalised"),
    Row("com.microsoft.QLinearAveragePool", "channels last", channels_last(
        "r = com.microsoft.QLinearAveragePool <kernel_shape = [2,2], channels_last = 1> (q, s_pos, z, w_pos, z)", Q),
        "A:0=8"),
    Row("com.microsoft.QLinearGlobalAveragePool", "channels last", channels_last(
        "r = com.microsoft.QLinearGlobalAveragePool <channels_last = 1> (q, s_pos, z, w_pos, z)", Q), "A:0=8"),
    Row("com.microsoft.NhwcMaxPool", "image", channels_last(
        "r = com.microsoft.NhwcMaxPool <kernel_shape = [2,2]> (q)", Q), "A:0=8"),
    Row("com.microsoft.QLinearConv", "channels last", channels_last("r = com.microsoft.QLinearConv <channels_last = 1,"
        " pads = [1,1,1,1]> (q, s_pos, z, C, v_pos, k, w_pos, z, b)", f"{Q}, {CONV}, int8[8,8,3,3] C, int32[8] b"),
        "A:0=8 C:0=8"),
    Row("com.microsoft.QLinearConv", "channels last, groups", channels_last("r = com.microsoft.QLinearConv"
        " <channels_last = 1, group = 2> (q, s_pos, z, C, v_pos, k, w_pos, z)", f"{Q}, {CONV}, int8[8,4,1,1] C"),
        "A:0/0=2 A:0/1=4 C:0/1=4"),
    Row("com.microsoft.QLinearConv", "channels first", image("q = QuantizeLinear(h, s_pos, z) r ="
        " com.microsoft.QLinearConv (q, s_pos, z, C, v_pos, k, w_pos, z) g = DequantizeLinear(r, w_pos, z)",
        f"{Q}, {CONV}, int8[8,8,3,3] C"), "A:0=8 C:0=8"),
    Row("DequantizeLinear", "blocks of units", "(float[N,4] x) => (float[N,3] y) <float[4,8] A, int8[8,3] B,"
        " float[4,3] s_pos, int8[4,3] k> { h = MatMul(x, A) b = DequantizeLinear <axis = 0, block_size = 2>"
        " (B, s_pos, k) y = MatMul(h, b) }", "A:1/0=4", "s_pos:1=graph-output"),
    Row("DequantizeLinear", "last block not full", "(float[N,4] x) => (float[N,3] y) <float[4,8] A, int8[8,3] B,"
        " float[3,3] s_pos> { h = MatMul(x, A) b = DequantizeLinear <axis = 0, block_size = 3>"
        " (B, s_pos) y = MatMul(h, b) }", "", "A:1=structure s_pos:0=structure"),
    Row("DequantizeLinear", "one block", "(float[N,4] x) => (float[N,3] y) <float[4,8] A, int8[8,3] B,"
        " float[1,3] s_pos> { h = MatMul(x, A) b = DequantizeLinear <axis = 0, block_size = 8>"
        " (B, s_pos) y = MatMul(h, b) }", "", "A:1=structure"),
    Row("DequantizeLinear", "int4", vector("c = DequantizeLinear <axis = 0> (C, s_pos, k) g = MatMul(h, c)",
        "int4[8,6] C, float[8] s_pos, int4[8] k").replace("[8,3] B", "[6,3] B"), "A:1=8 C:1=6"),
    Row("DequantizeLinear", "then transposed", vector("c = DequantizeLinear <axis = 0> (C, s_pos, k) t = Transpose(c)"
        " g = MatMul(h, t)", "int8[6,8] C, float[6] s_pos, int8[6] k").replace("[8,3] B", "[6,3] B"), "A:1=8 C:0=6"),
    Row("DequantizeLinear", "then reshaped", image("c = DequantizeLinear <axis = 0> (C, s_pos, k) t = Reshape(c, to)"
        " g = Conv(h, t)", "int8[6,8] C, float[6] s_pos, int8[6] k, int64[4] to = {6,8,1,1}")
        .replace("[3,8,1,1] B", "[3,6,1,1] B"), "A:0=8 C:0=6"),
    Row("DequantizeLinear", "fused with its product", "(float[N,4] x) => (float[N,3] y) <float[4,48] A, int8[48,3] B,"
        " float s_pos, int8 z = {0}> { h = MatMul(x, A) w = DequantizeLinear(B, s_pos, z) y = MatMul(h, w) }",
        "A:1=48"),
    Row("DequantizeLinear", "one scale, opset 11", vector("q = QuantizeLinear(h, s_pos, z) d ="
        " DequantizeLinear(q, s_pos, z) g = MatMul(d, C)", "float[8,8] C, float s_pos = {0.05}, int8 z = {7}"),
        "A:1=8 C:1=8", opset=11),
    Row("DynamicQuantizeLinear", "range over heads and tokens", "(float[2,5,4] x) => (float[2,5,3] y) <float[4,8] A,"
        " float[8,3] B, int64[4] s = {2,5,2,4}, int64[3] u = {2,5,8}> { h = MatMul(x, A) r = Reshape(h, s) q, qs, qz ="
        " DynamicQuantizeLinear(r) d = DequantizeLinear(q, qs, qz) g = Reshape(d, u) y = MatMul(g, B) }",
        "A:1/0=2 A:1/1=4"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row) -> None:
    check_row(row)
