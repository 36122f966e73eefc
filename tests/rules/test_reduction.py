"""Reductions and pools: sums ignore what is removed, means and extrema are taken over what is kept."""

from __future__ import annotations

import pytest

from tests.common import Row, check_row, check_sensitive, image, tokens, vector

REDUCE = """
ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp
"""
POSITIVE = "r = Abs(h) e = Add(r, half)"  # ReduceLogSum takes a logarithm


def over_units(op: str, opset: int) -> Row:
    """The units themselves are reduced: (N, 5, 8) to (N, 5)."""
    operand = "" if legacy(op, opset) else ", last"
    attribute = "axes = [-1], keepdims = 0" if legacy(op, opset) else "keepdims = 0"
    text = (
        "(float[N,5,4] x) => (float[N,5] y) <float[4,8] A, float half = {0.5}, int64[1] last = {-1}>"
        f"{{ h = MatMul(x, A) {POSITIVE} y = {op} <{attribute}> (e{operand}) }}"
    )
    return Row(op, f"over the units in {opset}", text, "A:1=8", opset=opset)


def beside_units(op: str, opset: int) -> Row:
    """Another axis is reduced, and kept with size 1."""
    operand = "" if legacy(op, opset) else ", one"
    attribute = "<axes = [1]>" if legacy(op, opset) else ""
    body = f"{POSITIVE} g = {op} {attribute} (e{operand})"
    text = tokens(body, "float half = {0.5}, int64[1] one = {1}").replace("[N,5,3] y", "[N,1,3] y")
    return Row(op, f"beside the units in {opset}", text, "A:1=8", opset=opset)


def legacy(op: str, opset: int) -> bool:
    return opset < (13 if op == "ReduceSum" else 18)


ROWS = [make(op, opset) for op in REDUCE.split() for opset in (11, 18) for make in (over_units, beside_units)]
ROWS += [
    Row("ReduceSum", "all axes", "(float[5,4] x) => (float y) <float[4,8] A> { h = MatMul(x, A) y = ReduceSum"
        " <keepdims = 0> (h) }", "A:1=8"),
    Row("ReduceMean", "all axes", "(float[5,4] x) => (float[1,1] y) <float[4,8] A> { h = MatMul(x, A) y ="
        " ReduceMean(h) }", "A:1=8"),
    Row("ReduceMean", "empty axes mean none", vector("g = ReduceMean <noop_with_empty_axes = 1> (h)"), "A:1=8",
        opset=18),
    Row("ReduceSum", "empty list means all", "(float[5,4] x) => (float[1,1] y) <float[4,8] A, int64[0] none = {}>"
        "{ h = MatMul(x, A) y = ReduceSum(h, none) }", "A:1=8"),
    Row("ReduceMean", "channels and positions", "(float[N,2,6,6] x) => (float[N,6] y) <float[8,2,1,1] A, int64[2] axes"
        " = {1,-1}>"
        "{ h = Conv(x, A) y = ReduceMean <keepdims = 0> (h, axes) }", "A:0=8"),
    Row("ReduceMean", "half of a concatenation", "(float[N,4] x) => (float[N,1] y) <float[4,8] A, float[4,6] C,"
        " int64[1] one = {1}>"
        "{ h = MatMul(x, A) k = MatMul(x, C) c = Concat <axis = 1> (h, k) y = ReduceMean(c, one) }", "A:1=8 C:1=6"),
    Row("ReduceMax", "integers", "(float[N,4] x) => (int32[N] y) <float[4,8] A, int64[1] one = {1}>"
        "{ h = MatMul(x, A) i = Cast <to = 6> (h) y = ReduceMax <keepdims = 0> (i, one) }", "A:1=8"),
    *(Row(op, "booleans", "(float[N,5,4] x) => (bool[N,5] y) <float[4,8] A, int64[1] last = {-1}, float s = {"
        f"{bound}}}> {{ h = MatMul(x, A) b = Less(h, s) y = {op} <keepdims = 0> (b, last) }}", "A:1=8")
      for op, bound in (("ReduceMax", -3), ("ReduceMin", 3))),
    Row("ReduceSum", "axes at run time", "(float[5,4] x, int64[1] axes) => (float y) <float[4,8] A>"
        "{ h = MatMul(x, A) s = ReduceSum(h, axes) y = ReduceSum <keepdims = 0> (s) }", "", "A:1=operand"),
    Row("ReduceMean", "pooling, then dense", image("p = ReduceMean(h, last) f = Flatten(p) g = MatMul(f, C)",
        "float[8,3] C, int64[2] last = {2,3}",
        "float[N,3] g").replace("y = Conv(g, B)", ""), "A:0=8"),
]  # fmt: skip

POOLS = [
    Row("MaxPool", "2 x 2", image("g = MaxPool <kernel_shape = [2,2], strides = [2,2]> (h)"), "A:0=8"),
    Row("MaxPool", "ceil mode, dilated", image("g = MaxPool <kernel_shape = [2,2], ceil_mode = 1, dilations = [2,2]>"
        " (h)"), "A:0=8"),
    Row("MaxPool", "indices", image("g, i = MaxPool <kernel_shape = [2,2], strides = [2,2]> (h)"), "", "A:0=barrier"),
    Row("AveragePool", "padded", image("g = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad ="
        " 1> (h)"), "A:0=8"),
    Row("LpPool", "2 x 2", image("g = LpPool <kernel_shape = [2,2], p = 2> (h)"), "A:0=8"),
    Row("GlobalAveragePool", "image", image("g = GlobalAveragePool(h)"), "A:0=8"),
    Row("GlobalMaxPool", "image", image("g = GlobalMaxPool(h)"), "A:0=8"),
    Row("GlobalLpPool", "image", image("g = GlobalLpPool <p = 2> (h)"), "A:0=8"),
]  # fmt: skip
POOLS += [
    Row(op, "prunable positions", "(float[N,2,4] x) => (float[N,2,1] y) <float[4,8] A>"
        f"{{ h = MatMul(x, A) y = {op}(h) }}", free, frozen)
    for op, free, frozen in (("GlobalAveragePool", "A:1=8", ""), ("GlobalMaxPool", "A:1=8", ""), ("GlobalLpPool", "",
        "A:1=spatial"))
]  # fmt: skip
POOLS += [
    Row("GlobalMaxPool", "two prunable axes, before Where", "(float[N,4] x) => (float[N,2,1,1] y) <float[4,48] A,"
        " int64[4] s = {0,2,4,6}> { h = MatMul(x, A) f = Reshape(h, s) y = GlobalMaxPool(f) }",
        "A:1/1=4 A:1/2=6", "f:1=graph-output", opset=8),
]  # fmt: skip

ORDER = [
    Row("ArgMax", "classes", "(float[N,4] x) => (int64[N] y) <float[4,8] A, float[8,3] B>"
        "{ h = MatMul(x, A) k = MatMul(h, B) y = ArgMax <axis = 1, keepdims = 0> (k) }", "A:1=8", "B:1=index"),
    Row("ArgMin", "other axis", tokens("i = ArgMin <axis = -2> (h) g = Cast <to = 1> (i)").replace("[N,5,3] y",
        "[N,1,3] y"), "A:1=8"),
    Row("TopK", "along the units", vector("v, i = TopK(h, k) c = Cast <to = 1> (i) g = Add(v, c)", "int64[1] k = {8}"),
        "", "A:1=index"),
    Row("TopK", "beside the units", tokens("g, i = TopK <axis = 1> (h, k)", "int64[1] k = {2}").replace("[N,5,3] y",
        "[N,2,3] y"), "A:1=8"),
    Row("TopK", "legacy", tokens("g, i = TopK <axis = 1, k = 2> (h)").replace("[N,5,3] y", "[N,2,3] y"), "A:1=8",
        opset=9),
    Row("RoiAlign", "channels", image("p = RoiAlign <output_height = 2, output_width = 2> (h, r, n) g = Relu(p)",
        "float[2,4] r = {0,0,3,3,1,1,5,5}, int64[2] n = {0,1}"), "A:0=8"),
    Row("MaxRoiPool", "channels", image("g = MaxRoiPool <pooled_shape = [2,2]> (h, r)", "float[2,5] r ="
        " {0,0,0,3,3,1,1,1,5,5}"), "A:0=8"),
]  # fmt: skip
ROWS += POOLS + ORDER


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row) -> None:
    check_row(row)


@pytest.mark.parametrize("row", [r for r in ROWS if r.free and r.runs], ids=str)
def test_check_can_fail(row: Row) -> None:
    check_sensitive(row)
