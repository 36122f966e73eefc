"""If, Loop and Scan: what goes into a body, what it carries, and what comes out are the same axes."""

from __future__ import annotations

import pytest

from tests.common import Row, check_row, check_sensitive

HEAD = "(float[5,4] x) => (float[5,3] y) <float[4,8] A, float[8,3] B"
IF = (
    "(float[5,4] x, bool c) => (float[5,3] y) <float[4,8] A, float[8,3] B> {{ h = MatMul(x, A) g = If <then_branch ="
    " yes ()"
    " => (float[5,8] a) {{ {0} }}, else_branch = no () => (float[5,8] b) {{ {1} }}> (c) y = MatMul(g, B) }}"
)
LOOP = (
    HEAD + "{0}, int64 n = {{3}}, bool t = {{1}}> {{ h = MatMul(x, A) g = Loop <body = step (int64 i, bool c,"
    " float[5,8] s)"
    " => (bool d, float[5,8] r) {{ d = Identity(c) {1} }}> (n, t, h) y = MatMul(g, B) }}"
)
CONTINUED = (
    HEAD + ", int64 n = {2}, bool t = {1}, int64[1] z = {0}> { h = MatMul(x, A) f, o = Loop <body = step (int64 i,"
    " bool c, float[5,8] s)"
    " => (bool d, float[5,8] r, float[5,8] e) { d = Identity(c) r = Relu(s) e = Neg(s) }> (n, t, h)"
    " u = ReduceSum <keepdims = 0> (o, z) g = Add(f, u) y = MatMul(g, B) }"
)
SCAN = (
    HEAD + ", float[8] w> {{ h = MatMul(x, A) {0}g = Scan <num_scan_inputs = 1, body = step (float[8] s) => (float[8]"
    " r)"
    " {{ r = Mul(s, w) }}> (h) y = MatMul(g, B) }}"
)
STATES = (
    "(float[5,4] x) => (float[1,3] y) <float[4,8] A, float[8,3] B, float[8] w, int64[1] z = {0}> { h = MatMul(x, A)"
    " e, q = Scan <num_scan_inputs = 1, body = step (float[8] s, float[8] v) => (float[8] r, float[8] o)"
    " { k = Tanh(s) r = Add(k, v) o = Relu(r) }> (w, h) g = Unsqueeze(e, z) y = MatMul(g, B) }"
)
NESTED = LOOP.format(
    ", float[8] w",
    "p = ReduceMax <keepdims = 0> (s) m = Less(p, p) r = If <then_branch = yes () => (float[5,8] a)"
    " { a = Add(s, w) }, else_branch = no () => (float[5,8] b) { b = Neg(s) }> (m)",
)
ROWS = [
    Row("If", "captures", IF.format("a = Identity(h)", "b = Neg(h)"), "A:1=8"),
    Row("If", "weights in a branch", IF.format("a = Mul(h, w)", "k = MatMul(h, C) b = Relu(k)").replace("3] B>", "3]"
        " B, float[8] w, float[8,8] C>"),
        "A:1=8"),
    Row("If", "one branch is frozen", IF.format("a = Softmax(h)", "b = Neg(h)"), "", "A:1=normalised"),
    Row("Loop", "carried", LOOP.format("", "r = Relu(s)"), "A:1=8"),
    Row("Loop", "residual block", LOOP.format(", float[8,6] U, float[6,8] D", "u = MatMul(s, U) k = Relu(u) v ="
        " MatMul(k, D) r = Add(s, v)"),
        "A:1=8 U:1=6"),
    Row("Loop", "scan output", CONTINUED, "A:1=8", "o:0=control-flow"),
    Row("Loop", "trip count in a list", CONTINUED.replace("int64 n", "int64[1] n"), "A:1=8", "o:0=control-flow"),
    Row("Loop", "with a branch", NESTED, "A:1=8"),
    Row("Scan", "rows", SCAN.format(""), "A:1=8", "h:0=graph-input"),
    Row("Scan", "states", STATES, "A:1=8"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row) -> None:
    check_row(row)


@pytest.mark.parametrize("row", [r for r in ROWS if r.free], ids=str)
def test_check_can_fail(row: Row) -> None:
    check_sensitive(row)
