"""Normalisations: parameters follow their channels, statistics are taken over the kept units."""

from __future__ import annotations

import pytest

from tests.common import Row, check_row, check_sensitive, image, tokens, vector

BATCH = [
    Row("BatchNormalization", "channels", image("g = BatchNormalization(h, s, b, m, v_pos)", "float[8] s, float[8] b,"
        " float[8] m, float[8] v_pos"),
        "A:0=8", opset=15),
    Row("BatchNormalization", "legacy", image("g = BatchNormalization <spatial = 1> (h, s, b, m, v_pos)",
        "float[8] s, float[8] b, float[8] m, float[8] v_pos"), "A:0=8", opset=7),
    Row("BatchNormalization", "features", vector("g = BatchNormalization(h, s, b, m, v_pos)", "float[8] s, float[8] b,"
        " float[8] m, float[8] v_pos"),
        "A:1=8", opset=9),
    Row("BatchNormalization", "running statistics", image("g, m2, v2 = BatchNormalization <training_mode = 1> (h, s,"
        " b, m, v_pos)",
        "float[8] s, float[8] b, float[8] m, float[8] v_pos"), "A:0=8", opset=15, runs=False),
    Row("InstanceNormalization", "channels", image("g = InstanceNormalization(h, s, b)", "float[8] s, float[8] b"),
        "A:0=8"),
    Row("InstanceNormalization", "1-d", "(float[N,2,9] x) => (float[N,3,9] y) <float[6,2,1] A, float[3,6,1] B,"
        " float[6] s, float[6] b>"
        "{ h = Conv(x, A) g = InstanceNormalization <epsilon = 0.01> (h, s, b) y = Conv(g, B) }", "A:0=6"),
    Row("InstanceNormalization", "prunable positions", "(float[N,2,4] x) => (float[N,2,3] y) <float[4,8] A, float[8,3]"
        " B, float[2] s, float[2] b>"
        "{ h = MatMul(x, A) g = InstanceNormalization(h, s, b) y = MatMul(g, B) }", "A:1=8", "s:0=graph-input"),
    Row("InstanceNormalization", "as group norm", image("f = Reshape(h, s) n = InstanceNormalization(f, one, zero) r ="
        " Reshape(n, t)"
        " m = Mul(r, w) g = Add(m, b)", "int64[3] s = {0,4,-1}, int64[4] t = {0,8,6,6}, float[4] one = {1,1,1,1},"
        " float[4] zero = {0,0,0,0},"
        "float[8,1,1] w, float[8,1,1] b"), "A:0/0=4 A:0/1=2"),
]  # fmt: skip

LAYER = [
    Row("LayerNormalization", "last axis", tokens("g = LayerNormalization(h, s, b)", "float[8] s, float[8] b"),
        "A:1=8"),
    Row("LayerNormalization", "no bias", tokens("g = LayerNormalization <axis = 2, epsilon = 0.1> (h, s)", "float[8]"
        " s"), "A:1=8"),
    Row("LayerNormalization", "two axes", "(float[N,4,5] x) => (float[N,3,5] y) <float[6,4] A, float[6,5] s,"
        " float[6,5] b, float[3,6] B>"
        "{ h = MatMul(A, x) g = LayerNormalization <axis = -2> (h, s, b) y = MatMul(B, g) }", "A:0=6",
        "s:1=graph-input"),
    Row("LayerNormalization", "statistics out", "(float[N,5,4] x) => (float[N,5,3] y, float[N,5,1] m, float[N,5,1] d)"
        " <float[4,8] A, float[8] s,"
        "float[8] b, float[8,3] B> { h = MatMul(x, A) g, m, d = LayerNormalization(h, s, b) y = MatMul(g, B) }",
        "A:1=8"),
    Row("LayerNormalization", "residual stream", tokens("n = LayerNormalization(h, s, b) u = MatMul(n, C) v = Gelu(u)"
        " w = MatMul(v, D)"
        " e = Add(h, w) g = LayerNormalization(e, t, c)", "float[8] s, float[8] b, float[8] t, float[8] c, float[8,6]"
        " C, float[6,8] D"),
        "A:1=8 C:1=6"),
    Row("ReduceMean", "layer normalisation spelled out", tokens("m = ReduceMean(h, last) d = Sub(h, m) q = Mul(d, d) v"
        " = ReduceMean(q, last) e = Add(v, eps)"
        " r = Sqrt(e) n = Div(d, r) k = Mul(n, s) g = Add(k, b)", "int64[1] last = {-1}, float eps = {0.001}, float[8]"
        " s, float[8] b"), "A:1=8"),
    Row("RMSNormalization", "last axis", tokens("g = RMSNormalization(h, s)", "float[8] s"), "A:1=8", opset=23),
    Row("RMSNormalization", "two axes", "(float[N,4,5] x) => (float[N,3,5] y) <float[6,4] A, float[6,5] s, float[3,6]"
        " B>"
        "{ h = MatMul(A, x) g = RMSNormalization <axis = 1, epsilon = 0.1> (h, s) y = MatMul(B, g) }", "A:0=6",
        opset=23),
    Row("GroupNormalization", "parameters per channel", image("g = GroupNormalization <num_groups = 4> (h, s, b)",
        "float[8] s, float[8] b"),
        "A:0/0=4 A:0/1=2"),
    Row("GroupNormalization", "parameters per group", image("g = GroupNormalization <num_groups = 4, epsilon = 0.1>"
        " (h, s, b)",
        "float[4] s, float[4] b"), "A:0/0=4 A:0/1=2", opset=18, valid=False),
    Row("GroupNormalization", "one group", image("g = GroupNormalization <num_groups = 1> (h, s, b)", "float[8] s,"
        " float[8] b"), "A:0=8"),
    Row("GroupNormalization", "group per channel", image("g = GroupNormalization <num_groups = 8> (h, s, b)",
        "float[8] s, float[8] b"), "A:0=8"),
    Row("MeanVarianceNormalization", "default axes", image("g = MeanVarianceNormalization(h)"), "A:0=8", opset=13),
    Row("MeanVarianceNormalization", "channels and rows", image("g = MeanVarianceNormalization <axes = [1, 2]> (h)"),
        "A:0=8", opset=13),
    Row("MeanVarianceNormalization", "nothing but units", tokens("g = MeanVarianceNormalization <axes = [2]> (h)"), "",
        "A:1=normalised", opset=13),
    Row("LpNormalization", "last axis", tokens("g = LpNormalization <p = 2> (h)"), "A:1=8"),
    Row("LpNormalization", "other axis", tokens("g = LpNormalization <p = 1, axis = 1> (h)"), "A:1=8"),
    Row("LRN", "window over channels", image("g = LRN <size = 3> (h)"), "", "A:0=spatial"),
]  # fmt: skip

SOFTMAX = [
    Row(
        op,
        f"last axis of {v}",
        tokens(f"k = Relu(h) t = MatMul(k, C) g = {op}(t)", "float[8,8] C"),
        "A:1=8",
        "C:1=normalised",
        opset=v,
    )
    for op in ("Softmax", "LogSoftmax")
    for v in (13, 21)
]
SOFTMAX += [
    Row("Softmax", "other axis", tokens("g = Softmax <axis = 1> (h)"), "A:1=8", "h:1=graph-input"),
    Row("Softmax", "negative axis", tokens("g = Softmax <axis = -1> (h)"), "", "A:1=normalised"),
    Row("Softmax", "legacy default flattens from axis 1", tokens("g = Softmax(h)"), "", "A:1=normalised", opset=11),
    Row("Softmax", "legacy over the last axis", "(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8,3] B>"
        "{ h = MatMul(x, A) k = MatMul(h, B) y = Softmax <axis = 1> (k) }", "A:1=8", opset=11),
    Row("LogSoftmax", "other axis", tokens("g = LogSoftmax <axis = 1> (h)"), "A:1=8"),
    Row("Hardmax", "other axis", tokens("g = Hardmax <axis = 1> (h)"), "A:1=8"),
    Row("Hardmax", "last axis", tokens("g = Hardmax(h)"), "", "A:1=normalised"),
]  # fmt: skip
ROWS = BATCH + LAYER + SOFTMAX


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row) -> None:
    check_row(row)


@pytest.mark.parametrize("row", [r for r in ROWS if r.free and r.runs], ids=str)
def test_check_can_fail(row: Row) -> None:
    check_sensitive(row)
