"""fold-constants: what is the same in every run is stored, as long as that stores no more than it frees."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.sessions import run
from tests.common import build
from tests.passes.cases import Case, check, passed, same_outputs

X = "(float[N,4] x) => "
CASES = [
    Case("nothing constant", X + "(float[N,4] y) <float[4] A> { y = Add(x, A) }"),
    Case(
        "a chain over weights",
        X + "(float[N,8] y) <float[8,4] A> { t = Transpose(A) n = Neg(t) y = MatMul(x, n) }",
        """const A: float[8, 4]
        const n: float[4, 8]
        y = MatMul(x, n)""",
    ),
    Case(
        "weight norm",
        X + """(float[N,8] y) <float[8,4] V, float[8,1] g, int64[1] one = {1}> {
        q = Mul(V, V) s = ReduceSum(q, one) r = Sqrt(s) d = Div(V, r)
        w = Mul(d, g) t = Transpose(w) y = MatMul(x, t) }""",
        """const one: int64[1]
        const V: float[8, 4]
        const g: float[8, 1]
        const t: float[4, 8]
        y = MatMul(x, t)""",
    ),
    Case(
        "shape arithmetic of a fixed axis",
        X + """(float[N,2,2] y) <int64 one = {1}, int64 two = {2}, int64[1] minus = {-1}, int64[1] zero = {0}> {
        s = Shape(x) c = Gather(s, one) h = Div(c, two) k = Unsqueeze(h, zero) t = Concat <axis = 0> (minus, k, k)
        y = Reshape(x, t) }""",
        """const one: int64[]
        const two: int64[]
        const minus: int64[1]
        const zero: int64[1]
        const t: int64[3]
        s = Shape(x)
        y = Reshape(x, t)""",
    ),
    Case(
        "shape arithmetic of a dynamic axis stays",
        X + """(float[M] y) <int64 zero = {0}, int64 four = {4}, int64[1] axis = {0}> {
        s = Shape(x) n = Gather(s, zero) m = Mul(n, four) t = Unsqueeze(m, axis) y = Reshape(x, t) }""",
    ),
    Case(
        "the scale of attention",
        X + """(float[N,4] y) <int64 one = {1}> { s = Shape(x) c = Gather(s, one)
        f = Cast <to = 1> (c) r = Sqrt(f) y = Div(x, r) }""",
        """const one: int64[]
        const r: float[]
        s = Shape(x)
        y = Div(x, r)""",
    ),
    Case(
        "halves stay halves",
        "(float[N,64] x) => (float[N,64] y) <float16[64,64] A> { w = Cast <to = 1> (A) y = MatMul(x, w) }",
    ),
    Case(
        "8-bit weights with scales stay what they are",
        "(float[N,64] x) => (float[N,64] y) <int8[64,64] A, float[64] s>"
        "{ c = Cast <to = 1> (A) w = Mul(c, s) y = MatMul(x, w) }",
    ),
    Case(
        "a broadcast constant is not blown up",
        X + """(float[64,64] y) <float[1,64] A, int64[2] big = {64, 64}, int64[2] shape = {-1, 1}, int64[1] all = {1}> {
        e = Expand(A, big) m = ReduceSum(x) y = Add(e, m) }""",
    ),
    Case(
        "random numbers stay random",
        X + "(float[N,4] y) { r = RandomNormal <shape = [1, 4], seed = 1.0> () y = Add(x, r) }",
        same=False,
    ),
    Case(
        "dequantisation stays",
        X + """(float[N,8] y) <int8[4,8] A, float s_pos, int8 z = {0}> {
        w = DequantizeLinear(A, s_pos, z) y = MatMul(x, w) }""",
    ),
    Case(
        "an identity of a weight is the weight",
        X + "(float[N,4] y) <float[4,4] A> { i = Identity(A) h = MatMul(x, A) y = MatMul(h, i) }",
        """const A: float[4, 4]
        h = MatMul(x, A)
        y = MatMul(h, A)""",
    ),
    Case(
        "an output keeps its node",
        X + "(float[N,4] y, float[4] z) <float[4] A> { z = Neg(A) y = Add(x, z) }",
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    check(case, "fold-constants")


def test_the_value_is_what_the_nodes_computed() -> None:
    model = build(X + "(float[N,3] y) <float[3,4] A> { t = Transpose(A) n = Neg(t) y = MatMul(x, n) }")
    graph, _ = passed(model, "fold-constants")
    assert (graph.array("n") == -graph.array("A").T).all()


LOOP = """(float[5,2,4] x) => (float[2,8] y) <float[4,8] A, float[8,8] R, float[2,8] z, int64 five = {5}> {
    f, g = Loop (five, , z, R) <body = b (int64 i, bool k, float[2,8] h, float[8,8] W) => (bool l, float[2,8] n, W) {
    l = Identity(k) e = Gather(x, i) a = MatMul(e, A) V = Identity(W) r = MatMul(h, V) s = Add(a, r) n = Tanh(s) }>
    y = Relu(f) }"""


def test_a_constant_that_a_loop_carries_round_is_read_where_it_is() -> None:
    """The loop still carries it: its bodies and results keep their signatures."""
    model = build(LOOP)
    graph, _ = passed(model, "fold-constants")
    assert [list(n.input) for n in graph.nodes if n.op_type == "MatMul"] == [["e", "A"], ["h", "R"]]
    made = graph.to_proto()
    same_outputs(model, made)
    assert not passed(made, "fold-constants")[1][-1].modified


@pytest.mark.parametrize("op", ["BlackmanWindow", "HammingWindow", "HannWindow"])
def test_windows_are_those_of_the_runtime(op: str) -> None:
    """To the last bit: at its ends a window is 0 or nearly so, and what is read there only is as large as that."""
    text = f"(float[N,10] x) => (float[N,10] y) <int64 n = {{10}}> {{ w = {op} <periodic = 0> (n) y = Add(x, w) }}"
    model = build(text)
    graph, _ = passed(model, "fold-constants")
    want = run(model, {"x": np.zeros((1, 10), np.float32)})["y"]
    assert np.array_equal(graph.array("w")[None], want)
