"""Quantised operators: scales and zero points follow the axes that they have entries for."""

from __future__ import annotations

import pytest

from tests.common import Row, check_row, check_sensitive, image, tokens, vector

AB = "A:1=8"
QUANTISE = [
    Row("QuantizeLinear", "one scale", vector("q = QuantizeLinear(h, s_pos, z) g = DequantizeLinear(q, s_pos, z)",
                                              "float s_pos, uint8 z = {128}"), AB),
    Row("QuantizeLinear", "scale per channel", image(
        "q = QuantizeLinear(h, s_pos, z) g = DequantizeLinear(q, s_pos, z)", "float[8] s_pos, int8[8] z"), "A:0=8"),
    Row("QuantizeLinear", "negative axis, no zero point", tokens(
        "q = QuantizeLinear <axis = -1> (h, s_pos) g = DequantizeLinear <axis = -1> (q, s_pos)", "float[8] s_pos"), AB),
    Row("DequantizeLinear", "weight", "(float[N,4] x) => (float[N,3] y) <int8[4,8] A, float[8] s_pos, int8[8] z,"
        " float[8,3] B>"
        "{ a = DequantizeLinear <axis = 1> (A, s_pos, z) h = MatMul(x, a) y = MatMul(h, B) }", AB),
    Row("DequantizeLinear", "blocked", "(float[N,4] x) => (float[N,3] y) <int8[4,8] A, float[2,8] s_pos, float[8,3] B>"
        "{ a = DequantizeLinear <axis = 0, block_size = 2> (A, s_pos) h = MatMul(x, a) y = MatMul(h, B) }",
        "A:1=8"),
    Row("DynamicQuantizeLinear", "one scale", vector("q, s, z = DynamicQuantizeLinear(h) g = DequantizeLinear(q, s,"
        " z)"), AB),
]  # fmt: skip
PRODUCTS = [
    Row("MatMulInteger", "two layers", "(uint8[N,4] x) => (int32[N,3] y) <int8[4,8] A, int8[8,3] B, uint8 z = {1},"
        " int8[8] w>"
        "{ h = MatMulInteger(x, A, z, w) u = Cast <to = 3> (h) y = MatMulInteger(u, B) }", AB),
    Row("ConvInteger", "two layers", "(uint8[N,2,5,5] x) => (int32[N,3,P,Q] y) <int8[8,2,3,3] A, uint8[3,8,1,1] B,"
        " uint8 z = {1}, int8[8] w>"
        "{ h = ConvInteger(x, A, z) c = Clip(h, lo, hi) u = Cast <to = 2> (c) y = ConvInteger(u, B) }"
        .replace(", int8[8] w", ", int32 lo = {0}, int32 hi = {255}"), "A:0=8"),
    Row("QLinearMatMul", "scale per column", "(uint8[5,4] x) => (uint8[5,3] y) <float s_pos, uint8 z = {3}, int8[4,8]"
        " A, float[8] t_pos, int8[8] w,"
        "float u_pos, int8[8,3] B, float v_pos, int8 k = {0}>"
        "{ h = QLinearMatMul(x, s_pos, z, A, t_pos, w, u_pos, z) y = QLinearMatMul(h, u_pos, z, B, v_pos, k, u_pos, z)"
        " }", AB),
    Row("QLinearConv", "scale per filter", "(uint8[N,2,5,5] x) => (uint8[N,3,P,Q] y) <float s_pos, uint8 z = {3},"
        " int8[8,2,3,3] A, float[8] t_pos,"
        "int8[8] w = {0,0,0,0,0,0,0,0}, float u_pos, int8[3,8,1,1] B, float v_pos, int8 k = {0}, int32[8] b>"
        "{ h = QLinearConv(x, s_pos, z, A, t_pos, w, u_pos, z, b) y = QLinearConv(h, u_pos, z, B, v_pos, k, u_pos, z)"
        " }", "A:0=8"),
]  # fmt: skip
QZ = "float s_pos, uint8 z = {128}"


def between(op: str, operands: str = "s_pos, z, s_pos, z", attributes: str = "", first: str = "q") -> str:
    """Body of a frame: quantise, apply a contrib operator, dequantise."""
    middle = f"r = com.microsoft.{op} {attributes} ({first}, {operands})"
    return f"q = QuantizeLinear(h, s_pos, z) {middle} g = DequantizeLinear(r, s_pos, z)"


TWO = "s_pos, z, q, s_pos, z, s_pos, z"
MICROSOFT = [
    Row("com.microsoft.QuantizeLinear", "one scale",
        vector("q = com.microsoft.QuantizeLinear(h, s_pos, z) g = com.microsoft.DequantizeLinear(q, s_pos, z)", QZ),
        AB),
    Row("com.microsoft.DequantizeLinear", "weight", "(float[N,4] x) => (float[N,3] y) <uint8[4,8] A, float[8] s_pos,"
        " uint8[8] z, float[8,3] B>"
        "{ a = com.microsoft.DequantizeLinear <axis = 1> (A, s_pos, z) h = MatMul(x, a) y = MatMul(h, B) }", AB),
    Row("com.microsoft.DynamicQuantizeMatMul", "before a dense layer", "(float[N,4] x) => (float[N,3] y) <uint8[4,8]"
        " A, float[8] s_pos, uint8[8] z,"
        "float[8,3] B> { h = com.microsoft.DynamicQuantizeMatMul(x, A, s_pos, z) y = MatMul(h, B) }", AB),
    Row("com.microsoft.MatMulIntegerToFloat", "before a dense layer", "(uint8[N,4] x) => (float[N,3] y) <uint8[4,8] A,"
        " float s_pos, float[8] t_pos,"
        "uint8 z = {3}, uint8[8] w, float[8] b, float[8,3] B>"
        "{ h = com.microsoft.MatMulIntegerToFloat(x, A, s_pos, t_pos, z, w, b) y = MatMul(h, B) }", AB),
    Row("com.microsoft.QGemm", "before a dense layer", "(uint8[N,4] x) => (float[N,3] y) <uint8[4,8] A, float s_pos,"
        " float t_pos, uint8 z = {3}, int32[8] b,"
        "float[8,3] B> { q = com.microsoft.QGemm(x, s_pos, z, A, t_pos, z, b, s_pos, z) h = DequantizeLinear(q, s_pos,"
        " z) y = MatMul(h, B) }", AB),
    Row("com.microsoft.QLinearAdd", "residual", vector(between("QLinearAdd", TWO), QZ), AB),
    Row("com.microsoft.QLinearMul", "residual", vector(between("QLinearMul", TWO), QZ), AB),
    Row("com.microsoft.QLinearWhere", "mask per unit", vector(between("QLinearWhere", "q, s_pos, z, w, s_pos, z,"
        " s_pos, z", first="c"),
        QZ + ", bool[8] c = {1,0,1,1,0,1,0,1}, uint8[8] w"), AB),
    Row("com.microsoft.QLinearSigmoid", "features", vector(between("QLinearSigmoid"), QZ), AB),
    Row("com.microsoft.QLinearLeakyRelu", "features", vector(between("QLinearLeakyRelu", attributes="<alpha = 0.1>"),
        QZ), AB),
    Row("com.microsoft.QLinearSoftmax", "over the units", vector(between("QLinearSoftmax", attributes="<opset = 13,"
        " axis = -1>"), QZ), "",
        "A:1=normalised"),
    Row("com.microsoft.QLinearAveragePool", "image", image(between("QLinearAveragePool", attributes="<kernel_shape ="
        " [2,2]>"), QZ), "A:0=8"),
    Row("com.microsoft.QLinearGlobalAveragePool", "image", image(between("QLinearGlobalAveragePool"), QZ), "A:0=8"),
    Row("com.microsoft.QLinearReduceMean", "no kernel to tell its shape", tokens(
        between("QLinearReduceMean", attributes="<axes = [1], keepdims = 1>"), QZ).replace("[N,5,3] y", "[N,1,3] y"),
        "",
        "A:1=shape-unknown", runs=False),
    Row("com.microsoft.QLinearConcat", "same twice", vector(between("QLinearConcat", "z, q, s_pos, z, q, s_pos, z",
        "<axis = 1>", "s_pos"), QZ)
        .replace("[8,3] B", "[16,3] B"), AB),
    Row("com.microsoft.DynamicQuantizeLSTM", "forward", "(float[5,N,4] x) => (float[5,N,3] y) <int8[1,4,24] W,"
        " int8[1,6,24] R, float[1,48] b, float[1] s_pos,"
        "int8[1] z = {0}, float[6,3] B, int64[1] one = {1}> { q = com.microsoft.DynamicQuantizeLSTM <hidden_size = 6>"
        ' (x, W, R, b, "", "", "", "", s_pos, z, s_pos, z) g = Squeeze(q, one) y = MatMul(g, B) }', "W:2/1=6"),
]  # fmt: skip
ROWS = QUANTISE + PRODUCTS + MICROSOFT


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row) -> None:
    check_row(row)


@pytest.mark.parametrize("row", [r for r in QUANTISE if r.free and r.runs], ids=str)
def test_check_can_fail(row: Row) -> None:
    check_sensitive(row)
