"""Operators that move entries: reshapes, concatenation, cutting, padding, repetition."""

from __future__ import annotations

import pytest

from tests.common import Row, check_row, check_sensitive, image, tokens, vector

RESHAPE = [
    Row("Reshape", "flatten with -1", image("f = Reshape(h, s) g = MatMul(f, C)", "int64[2] s = {0,-1}, float[288,3]"
        " C", "float[N,3] g")
        .replace("y = Conv(g, B)", ""), "A:0=8"),
    Row("Reshape", "fixed sizes", "(float[2,5,4] x) => (float[2,5,3] y) <float[4,8] A, float[8,3] B, int64[2] s ="
        " {10,8}, int64[3] t = {2,5,8}>"
        "{ h = MatMul(x, A) r = Reshape(h, s) g = Reshape(r, t) y = MatMul(g, B) }", "A:1=8"),
    Row("Reshape", "attribute", "(float[2,5,4] x) => (float[2,5,3] y) <float[4,8] A, float[8,3] B>"
        "{ h = MatMul(x, A) r = Reshape <shape = [10,8]> (h) g = Reshape <shape = [2,5,-1]> (r) y = MatMul(g, B) }",
        "A:1=8", opset=1, runs=False),
    Row("Reshape", "attribute, run", "(float[2,5,4] x) => (float[2,5,3] y) <float[4,8] A, float[8,3] B, int64[2] s ="
        " {10,8}, int64[3] t = {0,-1,8}>"
        "{ h = MatMul(x, A) r = Reshape(h, s) u = Reshape(r, t) g = Reshape(u, t2) y = MatMul(g, B) }"
        .replace("t = {0,-1,8}", "t = {2,-1,8}, int64[3] t2 = {0,0,8}"), "A:1=8", opset=7),
    Row("Reshape", "heads", tokens("f = Reshape(h, s) r = Relu(f) g = Reshape(r, t)", "int64[4] s = {0,0,4,2},"
        " int64[3] t = {0,0,8}"),
        "A:1/0=4 A:1/1=2"),
    Row("Reshape", "heads by -1", tokens("f = Reshape(h, s) r = Relu(f) g = Reshape(r, t)", "int64[4] s = {0,0,-1,2},"
        " int64[3] t = {0,0,-1}"),
        "A:1/0=4 A:1/1=2"),
    Row("Reshape", "allowzero", "(float[2,5,4] x) => (float[10,3] y) <float[4,8] A, float[8,3] B, int64[2] s = {10,8}>"
        "{ h = MatMul(x, A) g = Reshape <allowzero = 1> (h, s) y = MatMul(g, B) }", "A:1=8"),
    Row("Reshape", "channel shuffle", image("f = Reshape(h, s) u = Transpose <perm = [0,2,1,3,4]> (f) g = Reshape(u,"
        " t)",
        "int64[5] s = {0,2,4,6,6}, int64[4] t = {0,8,6,6}"), "A:0/0=2 A:0/1=4"),
    Row("Reshape", "mixes units and rows", "(float[4,6] x) => (float[3] y) <float[6,9] A, float[3,3] B, int64[2] s ="
        " {12,3}, int64[1] z = {0}>"
        "{ h = MatMul(x, A) r = Reshape(h, s) t = MatMul(r, B) y = ReduceSum <keepdims = 0> (t, z) }", "A:1/0=3"
        " A:1/1=3", "x:0=graph-input"),
    Row("Reshape", "does not align", "(float[4] x, float[4] z) => (float[3] y) <float[4,6] A, float[4,6] C, float[2,5]"
        " L, float[5,3] B, float[3,5] M, int64[2] s = {2,3}, int64[2] t = {3,2}, int64[1] q = {0}>"
        "{ h = MatMul(x, A) r = Reshape(h, s) v = Reshape(h, t) a = MatMul(v, L) b = MatMul(r, M) e = ReduceSum(a, q)"
        " f = ReduceSum(b, q)"
        " k = Add(e, f) o = MatMul(k, B) y = Squeeze(o, q) }", "L:1=5", "A:1=misaligned L:0=misaligned"),
    Row("Reshape", "rank 0", "(float[4] x) => (float y) <float[4,8] A, float[8,1] B, int64[0] s = {}>"
        "{ h = MatMul(x, A) r = MatMul(h, B) y = Reshape(r, s) }", "A:1=8"),
    Row("Reshape", "empty tensor", "(float[5,4] x) => (float[5,3] y, float[0,5] z) <float[4,8] A, float[8,3] B,"
        " int64[1] n = {3}, int64[1] a = {1},"
        "int64[2] s = {0,5}> { h = MatMul(x, A) y = MatMul(h, B) e = Slice(h, n, n, a) z = Reshape <allowzero = 1> (e,"
        " s) }",
        "A:1/0=3 A:1/1=5", "z:1=barrier"),
    Row("Flatten", "default", image("f = Flatten(h) g = MatMul(f, C)", "float[288,3] C", "float[N,3] g").replace("y ="
        " Conv(g, B)", ""), "A:0=8"),
    Row("Flatten", "axis 0", "(float[4] x) => (float[1,3] y) <float[4,8] A, float[8,3] B> { h = MatMul(x, A) g ="
        " Flatten <axis = 0> (h) y = MatMul(g, B) }", "A:1=8"),
    Row("Flatten", "negative axis", "(float[N,5,4] x) => (float[M,3] y) <float[4,8] A, float[8,3] B>"
        "{ h = MatMul(x, A) g = Flatten <axis = -1> (h) y = MatMul(g, B) }", "A:1=8", opset=13),
    Row("Flatten", "axis is the rank", "(float[5,4] x) => (float[1,1] y) <float[4,8] A, float[40,1] B>"
        "{ h = MatMul(x, A) f = Flatten <axis = 2> (h) t = Transpose(f) y = MatMul(t, B) }", "A:1=8"),
    Row("Squeeze", "attribute", image("p = GlobalAveragePool(h) q = Squeeze <axes = [2,3]> (p) g = MatMul(q, C)",
        "float[8,3] C", "float[N,3] g")
        .replace("y = Conv(g, B)", ""), "A:0=8", opset=11),
    Row("Squeeze", "operand", image("p = GlobalAveragePool(h) q = Squeeze(p, s) g = MatMul(q, C)", "float[8,3] C,"
        " int64[2] s = {-1,-2}", "float[N,3] g")
        .replace("y = Conv(g, B)", ""), "A:0=8"),
    Row("Squeeze", "all of size 1", "(float[1,5,4] x) => (float[5,3] y) <float[4,8] A, float[8,3] B> { h = MatMul(x,"
        " A) g = Squeeze(h) y = MatMul(g, B) }",
        "A:1=8"),
    Row("Squeeze", "all of size 1 stays what it was", "(float[5,4] x) => (float[5,3] y) <float[4,2] A, float[2,3] B>"
        "{ h = MatMul(x, A) g = Squeeze(h) y = MatMul(g, B) }", "", "A:1=structure"),
    Row("Unsqueeze", "attribute", vector("u = Unsqueeze <axes = [0,2]> (h) g = Squeeze <axes = [0,2]> (u)"), "A:1=8",
        opset=11),
    Row("Unsqueeze", "negative axes", vector("u = Unsqueeze(h, s) g = Squeeze(u, s)", "int64[2] s = {-1,1}"), "A:1=8"),
    Row("Transpose", "default", "(float[5,4] x) => (float[3,5] y) <float[4,8] A, float[3,8] B> { h = MatMul(x, A) g ="
        " Transpose(h) y = MatMul(B, g) }",
        "A:1=8"),
    Row("Transpose", "perm", image("t = Transpose <perm = [0,2,3,1]> (h) g = MatMul(t, C)", "float[8,3] C",
        "float[N,6,6,3] g")
        .replace("y = Conv(g, B)", ""), "A:0=8"),
    Row("Transpose", "of a weight", "(float[N,4] x) => (float[N,3] y) <float[8,4] A, float[3,8] B>"
        "{ a = Transpose(A) h = MatMul(x, a) b = Transpose(B) y = MatMul(h, b) }", "A:0=8"),
]  # fmt: skip

PARTS = [
    Row("Concat", "two branches", vector("k = MatMul(x, C) c = Concat <axis = -1> (h, k) g = Relu(c)", "float[4,6] C")
        .replace("[8,3] B", "[14,3] B"),
        "A:1=8 C:1=6"),
    Row("Concat", "with the input", vector("g = Concat <axis = 1> (h, x)").replace("[8,3] B", "[12,3] B"), "A:1=8"),
    Row("Concat", "same twice", vector("g = Concat <axis = 1> (h, h)").replace("[8,3] B", "[16,3] B"), "A:1=8"),
    Row("Concat", "other axis ties", tokens("k = MatMul(x, C) g = Concat <axis = 1> (h, k)", "float[4,8] C")
        .replace("[N,5,3] y", "[N,10,3] y"), "A:1=8"),
    Row("Concat", "of one", vector("g = Concat <axis = 1> (h)"), "A:1=8"),
    Row("Concat", "then split", vector("k = MatMul(x, C) c = Concat <axis = 1> (h, k) p, q = Split <axis = 1> (c, s) u"
        " = Relu(p) v = MatMul(q, D)"
        " g = Add(u, v)", "float[4,6] C, int64[2] s = {8,6}, float[6,8] D"), "A:1=8 C:1=6"),
    Row("Concat", "then split elsewhere", vector("k = MatMul(x, C) c = Concat <axis = 1> (h, k) p, q = Split <axis ="
        " 1> (c, s) v = MatMul(q, D)"
        " w = MatMul(p, E) g = Add(w, v)", "float[4,6] C, int64[2] s = {4,10}, float[10,8] D, float[4,8] E"),
        "A:1/0=4 A:1/1=4 C:1=6 D:1=8"),
    Row("Split", "even", tokens("p, q = Split <axis = 2> (h) g = Mul(p, q)").replace("[8,3] B", "[4,3] B"), "A:1=4",
        opset=11),
    Row("Split", "attribute", tokens("p, q = Split <axis = -1, split = [2,6]> (h) c = Concat <axis = -1> (q, p) g ="
        " Relu(c)"),
        "A:1/0=2 A:1/1=6", opset=11),
    Row("Split", "operand", tokens("p, q = Split <axis = -1> (h, s) r = Relu(q) g = Concat <axis = -1> (r, p)",
        "int64[2] s = {3,5}"),
        "A:1/0=3 A:1/1=5"),
    Row("Split", "uneven num_outputs", tokens("p, q, r = Split <axis = -1, num_outputs = 3> (h) s = Relu(r) g = Concat"
        " <axis = -1> (s, q, p)"),
        "A:1/0=3 A:1/1=3 A:1/2=2", opset=18),
    Row("Split", "no sizes in 13", tokens("p, q = Split <axis = -1> (h) g = Concat <axis = -1> (q, p)"), "A:1/0=4"
        " A:1/1=4", opset=13),
    Row("Split", "gated", tokens("p, q = Split <axis = -1> (h, s) t = Sigmoid(q) g = Mul(p, t)", "int64[2] s = {4,4}")
        .replace("[8,3] B", "[4,3] B"),
        "A:1=4"),
    Row("Split", "beside the units", tokens("p, q = Split <axis = 1> (h, s) g = Concat <axis = 1> (q, p)", "int64[2] s"
        " = {2,3}"), "A:1=8"),
    Row("Slice", "attribute", tokens("p = Slice <axes = [2], starts = [0], ends = [3]> (h) q = Slice <axes = [2],"
        " starts = [3], ends = [99999]> (h)"
        " g = Concat <axis = -1> (q, p)"), "A:1/0=3 A:1/1=5", opset=9),
    Row("Slice", "attribute without axes", vector("p = Slice <starts = [0,0], ends = [9999,3]> (h) g = MatMul(p, C)",
        "float[3,8] C"),
        "A:1/0=3 A:1/1=5 C:1=8", opset=9),
    Row("Slice", "operands", tokens("p = Slice(h, z, n, a) q = Slice(h, n, e, a) g = Concat <axis = -1> (q, p)",
        "int64[1] z = {0}, int64[1] n = {3}, int64[1] e = {9223372036854775807}, int64[1] a = {-1}"), "A:1/0=3"
        " A:1/1=5"),
    Row("Slice", "int32 bounds", tokens("p = Slice(h, z, n, a) q = Slice(h, n, e, a) g = Concat <axis = -1> (q, p)",
        "int32[1] z = {0}, int32[1] n = {3}, int32[1] e = {2147483647}, int32[1] a = {2}"), "A:1/0=3 A:1/1=5"),
    Row("Slice", "negative bounds", tokens("p = Slice(h, z, n, a) q = Slice(h, n, e, a) r = Relu(q) g = Concat <axis ="
        " -1> (q, p)",
        "int64[1] z = {-8}, int64[1] n = {-5}, int64[1] e = {8}, int64[1] a = {2}"), "A:1/0=3 A:1/1=5"),
    Row("Slice", "last unit", tokens("p = Slice(h, n, e, a) q = Slice(h, z, n, a) r = Concat <axis = -1> (p, q) g ="
        " Relu(r)",
        "int64[1] z = {0}, int64[1] n = {-1}, int64[1] e = {100}, int64[1] a = {2}"), "A:1=7"),
    Row("Slice", "every second unit", tokens("p = Slice(h, z, e, a, t) q = Slice(h, o, e, a, t) g = Mul(p, q)",
        "int64[1] z = {0}, int64[1] o = {1}, int64[1] e = {1000}, int64[1] a = {-1}, int64[1] t = {2}").replace("[8,3]"
        " B", "[4,3] B"), "A:1/0=4",
        "A:1=free"),
    Row("Slice", "step that does not divide", tokens("p = Slice(h, z, e, a, t) g = MatMul(p, C)",
        "int64[1] z = {0}, int64[1] e = {1000}, int64[1] a = {-1}, int64[1] t = {3}, float[3,8] C"), "C:1=8",
        "A:1=picked"),
    Row("Slice", "backwards", tokens("g = Slice(h, z, e, a, t)", "int64[1] z = {-1}, int64[1] e = {-1000}, int64[1] a"
        " = {-1}, int64[1] t = {-1}"), "",
        "A:1=picked"),
    Row("Slice", "whole", tokens("g = Slice(h, z, e, a)", "int64[1] z = {0}, int64[1] e = {1000}, int64[1] a = {-1}"),
        "A:1=8"),
    Row("Slice", "empty", tokens("p = Slice(h, n, n, a) g = Concat <axis = -1> (h, p)", "int64[1] n = {3}, int64[1] a"
        " = {-1}"), "A:1/0=3 A:1/1=5"),
    Row("Slice", "beside the units", tokens("g = Slice(h, z, e, a)", "int64[1] z = {1}, int64[1] e = {-1}, int64[1] a"
        " = {1}")
        .replace("[N,5,3] y", "[N,3,3] y"), "A:1=8"),
    Row("Slice", "start at run time, units untouched", "(float[5,4] x, int64[1] z) => (float[P,3] y) <float[4,8] A,"
        " float[8,3] B, int64[1] e = {5}, int64[1] a = {0}>"
        "{ h = MatMul(x, A) g = Slice(h, z, e, a) y = MatMul(g, B) }", "A:1=8", "g:0=operand"),
    Row("Slice", "start at run time", "(float[5,4] x, int64[1] z) => (float[5,P] y) <float[4,8] A, int64[1] e = {8},"
        " int64[1] a = {1}>"
        "{ h = MatMul(x, A) y = Slice(h, z, e, a) }", "", "A:1=operand"),
    Row("Slice", "axes at run time", "(float[5,4] x, int64[1] a) => (float[P,Q] y) <float[4,8] A, int64[1] z = {0},"
        " int64[1] e = {3}>"
        "{ h = MatMul(x, A) y = Slice(h, z, e, a) }", "", "A:1=operand"),
]  # fmt: skip

SPATIAL = [
    Row("Pad", "attribute", image('g = Pad <mode = "constant", pads = [0,0,1,1,0,0,1,1]> (h)'), "A:0=8", opset=10),
    Row("Pad", "channels", image("g = Pad(h, p, v)", "int64[8] p = {0,2,0,0,0,1,0,0}, float v = {0.5}")
        .replace("3,8,1,1", "3,11,1,1"),
        "A:0=8 B:1/0=2"),
    Row("Pad", "axes, no value", image('g = Pad(h, p, "", a)', "int64[2] p = {1,1}, int64[1] a = {-3}")
        .replace("3,8,1,1", "3,10,1,1"), "A:0=8"),
    Row("Pad", "reflect beside the units", image('g = Pad <mode = "reflect"> (h, p)', "int64[8] p ="
        " {0,0,1,1,0,0,2,2}"), "A:0=8"),
    Row("Pad", "edge over the units", image('g = Pad <mode = "edge"> (h, p)', "int64[8] p = {0,1,0,0,0,0,0,0}")
        .replace("3,8,1,1", "3,9,1,1"), "",
        "A:0=spatial"),
    Row("Pad", "negative", image("g = Pad(h, p)", "int64[8] p = {0,-1,0,0,0,0,0,0}").replace("3,8,1,1", "3,7,1,1"), "",
        "A:0=spatial"),
    Row("Pad", "pads at run time", "(float[N,2,6,6] x, int64[8] p) => (float[M,C,P,Q] y) <float[8,2,1,1] A> { h ="
        " Conv(x, A) y = Pad(h, p) }", "",
        "A:0=operand"),
    Row("Pad", "pads at run time, axes known", "(float[N,2,6,6] x, int64[4] p) => (float[N,3,P,Q] y) <float[8,2,1,1]"
        " A, float[3,8,1,1] B, int64[2] a = {2,3}>"
        '{ h = Conv(x, A) g = Pad(h, p, "", a) y = Conv(g, B) }', "A:0=8"),
    Row("Expand", "new axis of units", "(float[N,1] x) => (float[N,3] y) <int64[2] s = {1,8}, float[8,3] B>"
        "{ h = Expand(x, s) r = Relu(h) y = MatMul(r, B) }", "B:0=8"),
    Row("Expand", "shape of lower rank", tokens("u = ReduceMean(h, a) g = Expand(u, s)", "int64[1] a = {1}, int64[2] s"
        " = {5,1}"), "A:1=8"),
    Row("Expand", "key-value heads", "(float[N,5,4] x) => (float[N,5,3] y) <float[4,4] A, int64[4] s = {0,0,2,2},"
        " int64[1] a = {3},"
        "int64[5] e = {1,1,1,3,1}, int64[3] t = {0,0,12}, float[12,3] B>"
        "{ h = MatMul(x, A) r = Reshape(h, s) u = Unsqueeze(r, a) v = Expand(u, e) g = Reshape(v, t) y = MatMul(g, B)"
        " }",
        "A:1/0=2 A:1/1=2 B:0/1=3"),
    Row("Expand", "shape from a measured tensor", "(float[N,4] x, float[N,1] z) => (float[N,3] y) <float[4,8] A,"
        " float[8,3] B>"
        "{ h = MatMul(x, A) s = Shape(h) e = Expand(z, s) m = Mul(h, e) y = MatMul(m, B) }", "A:1=8"),
    Row("Tile", "units repeated", vector("t = Tile(h, r) g = Relu(t)", "int64[2] r = {1,3}").replace("[8,3] B",
        "[24,3] B"), "A:1=8 B:0/0=3"),
    Row("Tile", "beside the units", tokens("g = Tile(h, r)", "int64[3] r = {1,2,1}").replace("[N,5,3] y", "[N,10,3]"
        " y"), "A:1=8"),
    Row("Tile", "repeats at run time", "(float[5,4] x, int64[2] r) => (float[P,Q] y) <float[4,8] A> { h = MatMul(x, A)"
        " y = Tile(h, r) }", "", "A:1=operand"),
    Row("DepthToSpace", "DCR", image("g = DepthToSpace <blocksize = 2> (h)").replace("3,8,1,1", "3,2,1,1"), "A:0/1=2"),
    Row("DepthToSpace", "CRD", image('g = DepthToSpace <blocksize = 2, mode = "CRD"> (h)').replace("3,8,1,1",
        "3,2,1,1"), "A:0/0=2"),
    Row("SpaceToDepth", "blocks of 2", image("g = SpaceToDepth <blocksize = 2> (h)").replace("3,8,1,1", "3,32,1,1"),
        "A:0=8"),
    Row("SpaceToDepth", "channels outside", image('g = SpaceToDepth <blocksize = 2, mode = "CRD"> (h)')
        .replace("3,8,1,1", "3,32,1,1"), "A:0=8", opset=28, runs=False),
    Row("Resize", "scales", image('g = Resize(h, "", s)', "float[4] s = {1,1,2,2}"), "A:0=8"),
    Row("Resize", "sizes", image('n = Relu(h) g = Resize <mode = "linear"> (n, "", "", s)', "int64[4] s = {2,8,12,12}")
        .replace("[N,2,6,6]", "[2,2,6,6]"), "A:0=8"),
    Row("Resize", "axes and sizes", image('g = Resize <axes = [2,3]> (h, "", "", s)', "int64[2] s = {4,9}"), "A:0=8"),
    Row("Resize", "opset 10", image("g = Resize(h, s)", "float[4] s = {1,1,2,2}"), "A:0=8", opset=10),
    Row("Resize", "opset 11 with region of interest", image("g = Resize(h, r, s)", "float[0] r = {}, float[4] s ="
        " {1,1,2,2}"), "A:0=8", opset=11),
    Row("Resize", "over the units", image('g = Resize(h, "", s)', "float[4] s = {1,2,1,1}").replace("3,8,1,1",
        "3,16,1,1"), "", "A:0=spatial"),
    Row("Upsample", "operand", image("g = Upsample(h, s)", "float[4] s = {1,1,2,2}"), "A:0=8", opset=9, valid=False),
    Row("Upsample", "attribute", image("g = Upsample <scales = [1.0,1.0,2.0,2.0]> (h)"), "A:0=8", opset=7),
]  # fmt: skip
ROWS = RESHAPE + PARTS + SPATIAL


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row) -> None:
    check_row(row)


@pytest.mark.parametrize("row", [r for r in ROWS if r.free and r.runs], ids=str)
def test_check_can_fail(row: Row) -> None:
    check_sensitive(row)
