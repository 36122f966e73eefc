"""Convolutions and matrix products: the summed axis is shared, the other one goes on."""

from __future__ import annotations

import pytest

from tests.common import Row, check_row, check_sensitive, image, tokens, vector

CONV = [
    Row("Conv", "two layers with bias", "(float[N,2,7,7] x) => (float[N,3,P,Q] y) <float[8,2,3,3] A, float[8] a,"
        " float[3,8,3,3] B, float[3] b>"
        "{ h = Conv(x, A, a) r = Relu(h) y = Conv <pads = [1,1,1,1]> (r, B, b) }", "A:0=8"),
    Row("Conv", "1-d", "(float[N,2,9] x) => (float[N,3,P] y) <float[6,2,3] A, float[3,6,2] B> { h = Conv(x, A) y ="
        " Conv(h, B) }", "A:0=6"),
    Row("Conv", "3-d strided", "(float[N,2,5,5,5] x) => (float[N,3,P,Q,R] y) <float[6,2,3,3,3] A, float[3,6,1,1,1] B>"
        "{ h = Conv <strides = [2,2,2]> (x, A) y = Conv(h, B) }", "A:0=6"),
    Row("Conv", "same padding", image('g = Conv <auto_pad = "SAME_UPPER"> (h, C)', "float[6,8,3,3] C")
        .replace("3,8,1,1", "3,6,1,1"),
        "A:0=8 C:0=6"),
    Row("Conv", "depthwise", image("g = Conv <group = 8> (h, C, c)", "float[8,1,3,3] C, float[8] c"), "A:0=8"),
    Row("Conv", "depthwise multiplier", image("g = Conv <group = 8> (h, C)", "float[16,1,3,3] C").replace("3,8,1,1",
        "3,16,1,1"),
        "A:0=8 C:0/1=2"),
    Row("Conv", "grouped", image("g = Conv <group = 2> (h, C)", "float[6,4,3,3] C").replace("3,8,1,1", "3,6,1,1"),
        "A:0/0=2 A:0/1=4 C:0/1=3"),
    Row("Conv", "grouped twice", image("k = Conv <group = 4> (h, C) g = Conv <group = 2> (k, D)", "float[8,2,1,1] C,"
        " float[8,4,1,1] D"),
        "A:0/0=2 A:0/1=2 A:0/2=2 C:0/2=2 D:0/1=4"),
    Row("Conv", "grouped from the input", "(float[N,4,5,5] x) => (float[N,3,P,Q] y) <float[6,2,1,1] A, float[3,6,1,1]"
        " B>"
        "{ h = Conv <group = 2> (x, A) y = Conv(h, B) }", "A:0/1=3", "A:1=graph-input x:1=graph-input"),
    Row("Conv", "residual", image("k = Conv <pads = [1,1,1,1]> (h, C) g = Add(h, k)", "float[8,8,3,3] C"), "A:0=8"),
    Row("Conv", "concat of two", image("k = Conv(h, C) g = Concat <axis = 1> (h, k)", "float[6,8,1,1] C")
        .replace("3,8,1,1", "3,14,1,1"),
        "A:0=8 C:0=6"),
    Row("Conv", "kernel", image("g = Conv(h, C)", "float[8,8,2,2] C"), "A:0=8 C:0=8", "C:2=kernel h:2=graph-input"
        " g:2=spatial"),
    Row("Conv", "pointwise over free positions", "(float[N,2,4] x) => (float[N,3,2] y) <float[4,6] P, float[8,2,1] A,"
        " float[3,8,1] B, float[6,2] Q>"
        "{ p = MatMul(x, P) h = Conv(p, A) k = Conv(h, B) y = MatMul(k, Q) }", "P:1=6 A:0=8"),
    Row("Conv", "weight is an activation", "(float[2,6,6,6] x, float[4,8] w) => (float[2,3,P,Q] y) <float[8,5] A,"
        " float[5,6] W, float[3,4,1,1] B, int64[4] s = {4,6,1,1}>"
        "{ v = MatMul(w, A) u = MatMul(v, W) k = Reshape(u, s) h = Conv(x, k) y = Conv(h, B) }", "A:1=5",
        "W:1=graph-input B:1=graph-input"),
    Row("ConvTranspose", "two layers", image("g = ConvTranspose <strides = [2,2]> (h, C, c)", "float[8,6,2,2] C,"
        " float[6] c")
        .replace("3,8,1,1", "3,6,1,1"), "A:0=8 C:1=6"),
    Row("ConvTranspose", "grouped", image("g = ConvTranspose <group = 2> (h, C, c)", "float[8,3,2,2] C, float[6] c")
        .replace("3,8,1,1", "3,6,1,1"),
        "A:0/0=2 A:0/1=4 C:1=3"),
    Row("ConvTranspose", "depthwise", image("g = ConvTranspose <group = 8> (h, C)", "float[8,1,2,2] C"), "A:0=8"),
    Row("ConvTranspose", "padded", image("g = ConvTranspose <strides = [2,2], pads = [1,1,1,1], output_padding ="
        " [1,1]> (h, C)", "float[8,8,3,3] C"),
        "A:0=8 C:1=8"),
    Row("DeformConv", "two layers", image("g = DeformConv(h, C, o)", "float[6,8,2,2] C, float[2,8,5,5] o")
        .replace("3,8,1,1", "3,6,1,1")
        .replace("[N,2,6,6]", "[2,2,6,6]"), "A:0=8 C:0=6", opset=22),
    Row("CausalConvWithState", "depthwise", "(float[N,2,9] x) => (float[N,3,9] y) <float[6,2,1] A, float[6,1,3] C,"
        " float[6] c, float[3,6,1] B>"
        "{ h = Conv(x, A) g, s = CausalConvWithState(h, C, c) y = Conv(g, B) }", "A:0=6", opset=27, runs=False),
    Row("Col2Im", "blocks", "(float[N,2,9] x) => (float[N,3,P,Q] y) <float[24,2,1] A, float[3,6,1,1] B, int64[2] s ="
        " {4,4}, int64[2] k = {2,2}>"
        "{ h = Conv(x, A) g = Col2Im(h, s, k) y = Conv(g, B) }", "A:0/0=6"),
]  # fmt: skip

MATRIX = [
    Row("MatMul", "hidden layer", vector("g = Relu(h)"), "A:1=8"),
    Row("MatMul", "batched", tokens("g = Relu(h)"), "A:1=8"),
    Row("MatMul", "weight on the left", "(float[4,5] x) => (float[3,5] y) <float[8,4] A, float[3,8] B> { h = MatMul(A,"
        " x) y = MatMul(B, h) }", "A:0=8"),
    Row("MatMul", "vectors", "(float[4] x) => (float y) <float[4,8] A, float[8] b> { h = MatMul(x, A) y = MatMul(h, b)"
        " }", "A:1=8"),
    Row("MatMul", "matrix times vector", "(float[5,4] x) => (float[5] y) <float[4,8] A, float[8] b> { h = MatMul(x, A)"
        " y = MatMul(h, b) }", "A:1=8"),
    Row("MatMul", "experts", "(float[5,4] x) => (float[5,3] y) <float[6,4,8] A, float[6,8,3] B, int64[1] zero = {0}>"
        "{ h = MatMul(x, A) r = Relu(h) o = MatMul(r, B) y = ReduceSum <keepdims = 0> (o, zero) }", "A:0=6 A:2=8"),
    Row("MatMul", "shared weight stays tied", "(float[N,4] x, float[N,4] z) => (float[N,3] y) <float[4,8] A,"
        " float[8,3] B>"
        "{ h = MatMul(x, A) k = MatMul(z, A) s = Add(h, k) r = Relu(k) t = MatMul(r, B) u = MatMul(s, B) y = Add(t, u)"
        " }", "A:1=8"),
    Row("MatMul", "equal shapes tie by residual only", vector("k = MatMul(h, C) r = Relu(k) g = MatMul(r, D)",
        "float[8,8] C, float[8,8] D"),
        "A:1=8 C:1=8 D:1=8"),
    Row("MatMul", "data times data", "(float[N,4] x) => (float[N,N] y) <float[4,8] A, float[4,8] B> "
        "{ q = MatMul(x, A) k = MatMul(x, B) t = Transpose(k) y = MatMul(q, t) }", "A:1=8", "q:0=dynamic"),
    Row("Gemm", "two layers", "(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8] a, float[8,3] B, float[3] b>"
        "{ h = Gemm(x, A, a) r = Relu(h) y = Gemm(r, B, b) }", "A:1=8"),
    Row("Gemm", "transB", "(float[N,4] x) => (float[N,3] y) <float[8,4] A, float[8] a, float[3,8] B>"
        "{ h = Gemm <transB = 1> (x, A, a) y = Gemm <transB = 1> (h, B) }", "A:0=8"),
    Row("Gemm", "transA", "(float[4,5] x) => (float[3,5] y) <float[4,8] A, float[8,3] B, float[3,1] b>"
        "{ h = Gemm <transA = 1> (A, x) y = Gemm <transA = 1, alpha = 0.5, beta = 2.0> (B, h, b) }", "A:1=8"),
    Row("Gemm", "matrix bias", "(float[5,4] x) => (float[5,3] y) <float[4,8] A, float[5,8] a, float[8,3] B>"
        "{ h = Gemm(x, A, a) y = Gemm(h, B) }", "A:1=8"),
    Row("Gemm", "one bias for all", "(float[5,4] x) => (float[5,3] y) <float[4,8] A, float[1] a, float[8,3] B>"
        "{ h = Gemm(x, A, a) y = Gemm(h, B) }", "A:1=8"),
    Row("Gemm", "legacy", "(float[5,4] x) => (float[5,3] y) <float[4,8] A, float[8] a, float[8,3] B, float[3] b>"
        "{ h = Gemm <broadcast = 1> (x, A, a) y = Gemm <broadcast = 1> (h, B, b) }", "A:1=8", opset=6, runs=False),
    Row("Gemm", "accidentally shared bias", "(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8] a, float[8,8] C,"
        " float[8,3] B>"
        "{ h = Gemm(x, A, a) r = Relu(h) k = Gemm(r, C, a) s = Relu(k) y = MatMul(s, B) }", "A:1=8 C:1=8"),
]  # fmt: skip

EINSUM = [
    Row("Einsum", "matrix product", tokens('k = Einsum <equation = "btc,cd->btd"> (h, C) g = Relu(k)', "float[8,8] C"),
        "A:1=8 C:1=8"),
    Row("Einsum", "implicit output", vector('g = Einsum <equation = "bc, cd"> (h, C)', "float[8,8] C"), "A:1=8 C:1=8"),
    Row("Einsum", "ellipsis", tokens('g = Einsum <equation = "...c,cd->...d"> (h, C)', "float[8,8] C"), "A:1=8 C:1=8"),
    Row("Einsum", "sum of one operand", tokens('s = Einsum <equation = "btc->bc"> (h) g = Unsqueeze(s, one)',
        "int64[1] one = {1}")
        .replace("[N,5,3] y", "[N,1,3] y"), "A:1=8"),
    Row("Einsum", "sum over the units", "(float[N,4] x) => (float[N] y) <float[4,8] A>"
        '{ h = MatMul(x, A) y = Einsum <equation = "bc->b"> (h) }', "A:1=8"),
    Row("Einsum", "three operands", vector('k = MatMul(x, C) g = Einsum <equation = "bc,bc,cd->bd"> (h, k, D)',
        "float[4,8] C, float[8,8] D"),
        "A:1=8 D:1=8"),
    Row("Einsum", "outer product", "(float[N,4] x) => (float[N,3,2] y) <float[4,8] A, float[4,6] B, float[8,3] C,"
        " float[6,2] D>"
        '{ h = MatMul(x, A) k = MatMul(x, B) o = Einsum <equation = "bi,bj->bij"> (h, k)'
        ' y = Einsum <equation = "bij,ik,jl->bkl"> (o, C, D) }', "A:1=8 B:1=6"),
    Row("Einsum", "attention scores", "(float[N,5,4] x) => (float[N,5,5] y) <float[4,8] A, float[4,8] B>"
        '{ q = MatMul(x, A) k = MatMul(x, B) y = Einsum <equation = "bqc,bkc->bqk"> (q, k) }', "A:1=8"),
    Row("Einsum", "broadcast letter", vector('g = Einsum <equation = "bc,bc->bc"> (h, s)', "float[1,8] s"), "A:1=8"),
    Row("Einsum", "diagonal", "(float[8,8] x) => (float[3] y) <float[8,8] A, float[8,3] B>"
        '{ h = MatMul(A, x) d = Einsum <equation = "ii->i"> (h) y = MatMul(d, B) }', "", "B:0=barrier A:0=barrier"),
    Row("Einsum", "sum over an ellipsis", "(float[5,4] x) => (float[] y) <float[4,8] A, float[8,3] B>"
        .replace("float[] y", "float y")
        + '{ h = MatMul(x, A) k = MatMul(h, B) y = Einsum <equation = "...->"> (k) }', "A:1=8", "B:1=barrier",
        runs=False),
]  # fmt: skip
ROWS = CONV + MATRIX + EINSUM


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row) -> None:
    check_row(row)


@pytest.mark.parametrize("row", [r for r in ROWS if r.free and r.runs], ids=str)
def test_check_can_fail(row: Row) -> None:
    check_sensitive(row)
