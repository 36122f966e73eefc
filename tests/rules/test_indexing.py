"""Operators that pick entries by number, make tensors or tell sizes; and those that are deliberately not typed."""

from __future__ import annotations

import pytest

from tests.common import Row, check_row, check_sensitive, image, tokens, vector

# rows 0-2 and 2-4 of two heads with 6 rows of 4 channels
WINDOWS = ",".join(str(24 * h + 8 * w + i) for h in range(2) for w in range(2) for i in range(12))
GATHER = [
    Row("Gather", "embedding", "(int64[N,5] i) => (float[N,5,3] y) <float[9,8] A, float[8,3] B> { h = Gather(A, i) y ="
        " MatMul(h, B) }", "A:1=8",
        "A:0=index"),
    Row("Gather", "embedding, scalar batch", "(int64 i) => (float[3] y) <float[9,8] A, float[8,3] B> { h = Gather(A,"
        " i) y = MatMul(h, B) }", "A:1=8"),
    Row("Gather", "scalar", tokens("p = Gather <axis = 1> (h, k) g = Unsqueeze(p, o)", "int64 k = {-1}, int64[1] o ="
        " {1}")
        .replace("[N,5,3] y", "[N,1,3] y"), "A:1=8"),
    Row("Gather", "scalar out of a fused axis", tokens("f = Reshape(h, s) q = Gather <axis = 2> (f, zero) k = Gather"
        " <axis = 2> (f, one) g = Mul(q, k)",
        "int64[4] s = {0,0,2,4}, int64 zero = {0}, int64 one = {1}").replace("[8,3] B", "[4,3] B"), "A:1=4", ""),
    Row("Gather", "scalar unit", vector("p = Gather <axis = 1> (h, k) u = Unsqueeze(p, o) g = Mul(h, u)", "int64 k ="
        " {3}, int64[1] o = {1}"),
        "A:1/0=3 A:1/1=4"),
    Row("Gather", "list of one", vector("p = Gather <axis = 1> (h, k) g = Mul(h, p)", "int64[1] k = {-5}"),
        "A:1/0=3 A:1/1=4"),
    Row("Gather", "heads that share keys", tokens("f = Reshape(h, s) q = Slice(f, zero, two, two) k = Gather <axis = 2>"
        " (f, third) m = Mul(q, k) g = Reshape(m, t)", "int64[4] s = {0,0,4,2}, int64[1] zero = {0}, int64[1] two ="
        " {2}, int64[1] third = {-2}, int64[3] t = {0,0,4}").replace("[8,3] B", "[4,3] B"), "A:1/0=2 A:1/1=2"),
    Row("Gather", "list of runs", vector("p = Gather <axis = 1> (h, k) g = Relu(p)", "int64[8] k = {4,5,6,7,0,1,2,3}"),
        "A:1/0=4 A:1/1=4"),
    Row("Gather", "negative list of runs", vector("p = Gather <axis = -1> (h, k) g = Relu(p)", "int64[5] k ="
        " {-3,-2,-1,0,1}").replace("[8,3] B", "[5,3] B"),
        "A:1/0=2 A:1/1=3 A:1/2=3"),
    Row("Gather", "unit list with repeats", vector("g = Gather <axis = 1> (h, k)", "int64[4] k = {0,1,0,1}")
        .replace("[8,3] B", "[4,3] B"),
        "A:1/0=2 A:1/1=6"),
    Row("Gather", "permutation by product", "(float[N,4] x) => (float[N,3] y) <float[4,72] A, float[72,3] B, int64[72]"
        " k = {"
        + ",".join(str(i * 2 + j) for j in range(2) for i in range(36)) + "}> { h = MatMul(x, A) g = Gather <axis = 1>"
        " (h, k) y = MatMul(g, B) }",
        "A:1/0=36 A:1/1=2"),
    Row("Gather", "every second of many", "(float[N,4] x) => (float[N,3] y) <float[4,72] A, float[36,3] B, int64[36] k"
        " = {"
        + ",".join(str(i * 2 + 1) for i in range(36)) + "}> { h = MatMul(x, A) g = Gather <axis = 1> (h, k) y ="
        " MatMul(g, B) }",
        "A:1/0=36"),
    Row("Gather", "scattered list", "(float[N,4] x) => (float[N,3] y) <float[4,80] A, float[40,3] B, int64[40] k = {"
        + ",".join(str(i * 7 % 80) for i in range(40)) + "}> { h = MatMul(x, A) g = Gather <axis = 1> (h, k) y ="
        " MatMul(g, B) }", "B:0=40", "A:1=picked"),
    Row("Gather", "matrix of indices", vector("p = Gather <axis = 1> (h, k) f = Flatten(p) g = Relu(f)", "int64[2,4] k"
        " = {0,1,2,3,4,5,6,7}"), "A:1/0=2 A:1/1=4"),
    Row("Gather", "matrix of scattered indices", vector("p = Gather <axis = 1> (h, k) f = Flatten(p) g = Relu(f)",
        "int64[2,40] k = {" + ",".join(str(i * 3 % 8) for i in range(80)) + "}").replace("[8,3] B", "[80,3] B"),
        "k:0=2 k:1=40", "A:1=picked"),
    Row("Gather", "windows of a flattened tensor", "(float[6,4] x) => (float[2,2,3,3] y) <float[4,8] A, float[4,3] B,"
        " int64[3] s = {6,2,4}, int64[1] flat = {-1}, int64[2,2,3,4] k = {"
        + WINDOWS + "}> { h ="
        " MatMul(x, A) r = Reshape(h, s) t = Transpose <perm = [1,0,2]> (r) f = Reshape(t, flat) g = Gather(f, k) y ="
        " MatMul(g, B) }", "A:1/1=4"),
    Row("Gather", "windows of heads", "(float[6,4] x) => (float[2,3,3] y) <float[4,8] A, float[8,3] B, int64[3] s ="
        " {6,2,4}, int64[1] flat = {-1}, int64[3] j = {2,3,-1}, int64[2,2,3,4] k = {"
        + WINDOWS + "}> { h ="
        " MatMul(x, A) r = Reshape(h, s) t = Transpose <perm = [1,0,2]> (r) f = Reshape(t, flat) g = Gather(f, k) p ="
        " Transpose <perm = [1,2,0,3]> (g) m = Reshape(p, j) y = MatMul(m, B) }", "A:1/0=2 A:1/1=4"),
    Row("Gather", "grid that mixes rows", "(float[6,4] x) => (float[3,2,3] y) <float[4,8] A, float[8,3] B, int64[1]"
        " flat = {-1}, int64[3,2,8] k = {" + ",".join(str((i * 5 + i // 8 % 2) % 48) for i in range(48)) + "}> { h ="
        " MatMul(x, A) f = Reshape(h, flat) g = Gather(f, k) y = MatMul(g, B) }", "k:2=8", "A:1=picked"),
    Row("Gather", "index at run time", "(float[N,4] x, int64[5] k) => (float[N,5] y) <float[4,8] A> { h = MatMul(x, A)"
        " y = Gather <axis = 1> (h, k) }", "",
        "A:1=index"),
    Row("GatherElements", "beside the units", "(float[5,4] x, int64[5,8] k) => (float[5,3] y) <float[4,8] A,"
        " float[8,3] B, int64[3,8] i>"
        "{ h = MatMul(x, A) g = GatherElements(h, k) y = MatMul(g, B) }".replace(", int64[3,8] i", ""), "",
        "A:1=graph-input"),
    Row("GatherElements", "constant index beside the units", "(float[5,4] x) => (float[3,3] y) <float[4,8] A,"
        " float[8,3] B, int64[3,8] k>"
        "{ h = MatMul(x, A) g = GatherElements(h, k) y = MatMul(g, B) }", "A:1=8", "k:0=index"),
    Row("GatherElements", "along the units", "(float[2,4] x) => (float[2,3] y) <float[4,8] A, float[4,3] B, int64[2,4]"
        " k>"
        "{ h = MatMul(x, A) g = GatherElements <axis = -1> (h, k) y = MatMul(g, B) }", "", "A:1=index"),
    Row("GatherElements", "fewer rows", "(float[5,4] x) => (float[5,3] y) <float[4,8] A, float[5,3] B, int64[5,5] k>"
        "{ h = MatMul(x, A) g = GatherElements(h, k) y = MatMul(g, B) }", "", "A:1=index"),
    Row("GatherND", "rows", "(float[5,4] x) => (float[3,3] y) <float[4,8] A, float[8,3] B, int64[3,1] k> { h ="
        " MatMul(x, A) g = GatherND(h, k) y = MatMul(g, B) }",
        "A:1=8"),
    Row("GatherND", "batch", "(float[2,5,4] x) => (float[2,3] y) <float[4,8] A, float[8,3] B, int64[2,1] k>"
        "{ h = MatMul(x, A) g = GatherND <batch_dims = 1> (h, k) y = MatMul(g, B) }", "A:1=8"),
    Row("GatherND", "entries", "(float[5,4] x) => (float[3] y) <float[4,8] A, int64[3,2] k> { h = MatMul(x, A) y ="
        " GatherND(h, k) }", "", "A:1=index"),
]  # fmt: skip

SCATTER = [
    Row("ScatterElements", "beside the units", "(float[5,4] x) => (float[5,3] y) <float[4,8] A, float[8,3] B,"
        " int64[3,8] k, float[3,8] u>"
        "{ h = MatMul(x, A) g = ScatterElements(h, k, u) y = MatMul(g, B) }", "A:1=8"),
    Row("ScatterElements", "along the units", "(float[2,4] x) => (float[2,3] y) <float[4,8] A, float[8,3] B,"
        " int64[2,3] k, float[2,3] u>"
        "{ h = MatMul(x, A) g = ScatterElements <axis = 1> (h, k, u) y = MatMul(g, B) }", "", "A:1=index"),
    Row("Scatter", "beside the units", "(float[5,4] x) => (float[5,3] y) <float[4,8] A, float[8,3] B, int64[3,8] k,"
        " float[3,8] u>"
        "{ h = MatMul(x, A) g = Scatter(h, k, u) y = MatMul(g, B) }", "A:1=8", opset=9, valid=False),
    Row("ScatterND", "rows", "(float[5,4] x) => (float[5,3] y) <float[4,8] A, float[8,3] B, int64[2,1] k = {1,4},"
        " float[2,8] u>"
        "{ h = MatMul(x, A) g = ScatterND(h, k, u) y = MatMul(g, B) }", "A:1=8"),
    Row("OneHot", "classes, then dense", "(int64[N] i) => (float[N,3] y) <int64 d = {5}, float[2] v = {0,1},"
        " float[5,8] A, float[8,3] B>"
        "{ o = OneHot(i, d, v) h = MatMul(o, A) y = MatMul(h, B) }", "A:1=8", "A:0=index"),
    Row("OneHot", "axis 0", "(int64[N] i) => (float[N,3] y) <int64 d = {5}, float[2] v = {0,1}, float[5,8] A,"
        " float[8,3] B>"
        "{ o = OneHot <axis = 0> (i, d, v) t = Transpose(o) h = MatMul(t, A) y = MatMul(h, B) }", "A:1=8"),
]  # fmt: skip

ORDERED = [
    Row("CumSum", "along the tokens", tokens("g = CumSum(h, k)", "int64 k = {1}"), "A:1=8"),
    Row("CumSum", "along the units", tokens("g = CumSum(h, k)", "int64 k = {-1}"), "", "A:1=index"),
    Row("CumSum", "axis at run time", "(float[5,4] x, int64 k) => (float[5,8] y) <float[4,8] A> { h = MatMul(x, A) y ="
        " CumSum(h, k) }", "", "A:1=operand"),
    Row("Trilu", "beside the units", "(float[5,5,4] x) => (float[5,5,3] y) <float[4,8] A, float[8,3] B>"
        "{ h = MatMul(x, A) t = Transpose <perm = [2,0,1]> (h) u = Trilu <upper = 0> (t) g = Transpose <perm ="
        " [1,2,0]> (u) y = MatMul(g, B) }", "A:1=8"),
    Row("Trilu", "over the units", tokens("g = Trilu(h)"), "", "A:1=index"),
    Row("ReverseSequence", "tokens", "(float[5,2,4] x) => (float[5,2,3] y) <float[4,8] A, float[8,3] B, int64[2] n ="
        " {5,3}>"
        "{ h = MatMul(x, A) g = ReverseSequence(h, n) y = MatMul(g, B) }", "A:1=8"),
    Row("GridSample", "channels", "(float[2,2,6,6] x) => (float[2,3,3,3] y) <float[8,2,1,1] A, float[3,8,1,1] B,"
        " float[2,3,3,2] k>"
        "{ h = Conv(x, A) g = GridSample(h, k) y = Conv(g, B) }", "A:0=8", opset=20),
    Row("CumProd", "along the tokens", tokens("g = CumProd(h, k)", "int64 k = {1}"), "A:1=8", opset=26, runs=False),
    Row("Compress", "beside the units", "(float[5,4] x) => (float[3,3] y) <float[4,8] A, float[8,3] B, bool[5] c ="
        " {1,0,1,1,0}>"
        "{ h = MatMul(x, A) g = Compress <axis = 0> (h, c) y = MatMul(g, B) }", "A:1=8"),
    Row("Compress", "flattened", "(float[5,4] x) => (float[M] y) <float[4,8] A, bool[5] c = {1,0,1,1,0}>"
        "{ h = MatMul(x, A) y = Compress(h, c) }", "", "A:1=index"),
    Row("TensorScatter", "cache", "(float[2,1,4] x, float[2,6,8] p, int64[2] i) => (float[2,6,3] y) <float[4,8] A,"
        " float[8,8] C, float[8,3] B>"
        "{ h = MatMul(x, A) c = MatMul(p, C) g = TensorScatter(c, h, i) y = MatMul(g, B) }", "A:1=8", opset=24,
        runs=False),
    Row("CenterCropPad", "rows", image("g = CenterCropPad <axes = [2,3]> (h, s)", "int64[2] s = {4,4}"), "A:0=8"),
    Row("DFT", "beside the units", "(float[2,8,4] x) => (float[2,8,3] y) <float[4,6] A, float[6,3] B, int64 b = {2},"
        " int64[1] l = {3}>"
        "{ h = MatMul(x, A) t = Transpose <perm = [0,2,1]> (h) u = Unsqueeze(t, l) d = DFT(u, \"\", b) p = ReduceSum"
        " <keepdims = 0> (d, l)"
        " g = Transpose <perm = [0,2,1]> (p) y = MatMul(g, B) }", "A:1=6", opset=20),
    Row("Det", "of the last two axes", "(float[5,3,4] x) => (float[6] y) <float[4,6] A, int64[1] z = {0}, int64[1] n ="
        " {3}, int64[1] a = {1}>"
        + "{ h = MatMul(x, A) t = Transpose <perm = [2,0,1]> (h) q = Slice(t, z, n, a) y = Det(q) }", "",
        "A:1=graph-output"),
]  # fmt: skip

SIZES = [
    Row("Shape", "static entries fixed by the trace", tokens("s = Shape(h) f = Reshape(h, s) g = Relu(f)"), "A:1=8"),
    Row("Shape", "dynamic batch by Gather and Concat", "(float[N,T,4] x) => (float[N,T,3] y) <float[4,8] A, float[8,3]"
        " B, int64 z = {0}, int64 o = {1},"
        "int64[1] a = {0}, int64[1] k = {4}, int64[1] c = {2}, int64[1] w = {8}>"
        "{ h = MatMul(x, A) s = Shape(h) n = Gather(s, z) t = Gather(s, o) nu = Unsqueeze(n, a) tu = Unsqueeze(t, a) d"
        " = Concat <axis = 0> (nu, tu, k, c)"
        " f = Reshape(h, d) r = Relu(f) e = Concat <axis = 0> (nu, tu, w) g = Reshape(r, e) y = MatMul(g, B) }",
        "A:1/0=4 A:1/1=2"),
    Row("Shape", "attention scale", "(float[N,T,4] x) => (float[N,T,T] y) <float[4,8] A, float[4,8] B, int64 last ="
        " {-1}, float one = {1}>"
        "{ q = MatMul(x, A) k = MatMul(x, B) s = Shape(q) d = Gather(s, last) f = Cast <to = 1> (d) r = Sqrt(f) i ="
        " Div(one, r) p = Mul(q, i)"
        " t = Transpose <perm = [0,2,1]> (k) y = MatMul(p, t) }", "A:1=8"),
    Row("Shape", "start and end", tokens("s = Shape <start = -1> (h) f = Cast <to = 1> (s) g = Mul(h, f)"), "A:1=8"),
    Row("Shape", "scaled with the batch", "(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8,3] B, int64[1] z ="
        " {0}, int64[1] t = {2}, int64[1] w = {8}>"
        "{ h = MatMul(x, A) s = Shape(h) n = Slice(s, z, o) d = Concat <axis = 0> (n, w) e = Mul(d, tt) m = Div(e, tt)"
        " g = Reshape(h, m) y = MatMul(g, B) }"
        .replace("int64[1] w = {8}", "int64[1] w = {8}, int64[1] o = {1}, int64[2] tt = {3,3}").replace(", int64[1] t"
        " = {2}", ""), "A:1=8"),
    Row("Shape", "expand to a measured shape", "(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8,3] B,"
        " float[1,1] c>"
        "{ h = MatMul(x, A) s = Shape(h) e = Expand(c, s) m = Add(h, e) y = MatMul(m, B) }", "A:1=8"),
    Row("Size", "mean by hand", "(float[5,4] x) => (float y) <float[4,8] A> { h = MatMul(x, A) s = ReduceSum <keepdims"
        " = 0> (h) n = Size(h)"
        " f = Cast <to = 1> (n) y = Div(s, f) }", "A:1=8"),
    Row("Size", "dynamic batch", "(float[N,4] x) => (float y) <float[4,8] A> { h = MatMul(x, A) s = ReduceSum"
        " <keepdims = 0> (h) n = Size(h)"
        " f = Cast <to = 1> (n) y = Div(s, f) }", "A:1=8"),
    Row("Size", "of a constant", vector("n = Size(c) f = Cast <to = 1> (n) g = Mul(h, f)", "float[5] c"), "A:1=8",
        "c:0=structure"),
    Row("ConstantOfShape", "from a measured shape", "(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8,3] B>"
        "{ h = MatMul(x, A) s = Shape(h) e = ConstantOfShape <value = float[1] {0.5}> (s) m = Add(h, e) y = MatMul(m,"
        " B) }", "A:1=8"),
    Row("ConstantOfShape", "static", vector("e = ConstantOfShape(s) g = Add(h, e)", "int64[2] s = {1,8}"), "A:1=8"),
    Row("ConstantOfShape", "operand at run time", "(float[5,4] x, int64[2] s) => (float[M,3] y) <float[8,3] B> { e ="
        " ConstantOfShape(s) y = MatMul(e, B) }"
        .replace("float[5,4] x, ", ""), "", "", runs=False),
    Row("Range", "positions", "(float[N,T,4] x) => (float[N,T,3] y) <float[4,8] A, float[8,3] B, int64 z = {0}, int64"
        " o = {1}>"
        "{ h = MatMul(x, A) s = Shape(x) t = Gather(s, o) r = Range(z, t, o) f = Cast <to = 1> (r) u = Unsqueeze(f,"
        " ol) g = Mul(h, u) y = MatMul(g, B) }"
        .replace("int64 o = {1}", "int64 o = {1}, int64[1] ol = {1}"), "A:1=8", "r:0=index"),
    Row("Range", "as long as the units", "(float[4] x) => (float[3] y) <float[4,8] A, float[8,3] B, float z = {0},"
        " float o = {1}, float e = {8}>"
        "{ h = MatMul(x, A) r = Range(z, e, o) g = Mul(h, r) y = MatMul(g, B) }", "", "A:1=index"),
    *(Row(f"{name}Window", "as long as the units", vector(f"w = {name}Window(k) g = Mul(h, w)", "int64 k = {8}"), "",
        "A:1=index")
      for name in ("Blackman", "Hamming", "Hann")),
    Row("MelWeightMatrix", "filter bank", "(float[5,4] x) => (float[5,8] y) <float[4,9] A, int64 b = {8}, int64 n ="
        " {16}, int64 r = {8192},"
        "float lo = {0}, float hi = {4096}> { h = MatMul(x, A) m = MelWeightMatrix(b, n, r, lo, hi) y = MatMul(h, m)"
        " }", "", "A:1=index"),
    Row("Constant", "weights in nodes", vector("c = Constant <value = float[8] {1,2,3,4,5,6,7,8}> () g = Add(h, c)"),
        "A:1=8"),
    Row("Constant", "list of numbers", vector("c = Constant <value_floats = [1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0]> () g ="
        " Add(h, c)"), "A:1=8"),
]  # fmt: skip

UNTYPED = [
    Row("NonZero", "positions", "(float[5,4] x) => (int64[2,M] y) <float[4,8] A> { h = MatMul(x, A) r = Relu(h) y ="
        " NonZero(r) }", "", "A:1=barrier"),
    Row("MaxUnpool", "indices", image("p, i = MaxPool <kernel_shape = [2,2], strides = [2,2]> (h)"
        " g = MaxUnpool <kernel_shape = [2,2], strides = [2,2]> (p, i)"), "", "A:0=barrier"),
    Row("NonMaxSuppression", "boxes", "(float[1,2,4] x) => (int64[M,3] y) <float[4,4] A, float[1,1,2] s, int64 n = {2}>"
        "{ h = MatMul(x, A) y = NonMaxSuppression(h, s, n) }", "", "A:1=barrier"),
    Row("Unique", "values", "(float[5,4] x) => (float[M] y) <float[4,8] A> { h = MatMul(x, A) y = Unique(h) }", "",
        "A:1=barrier"),
]  # fmt: skip
ROWS = GATHER + SCATTER + ORDERED + SIZES + UNTYPED


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row) -> None:
    check_row(row)


@pytest.mark.parametrize("row", [r for r in ROWS if r.free and r.runs], ids=str)
def test_check_can_fail(row: Row) -> None:
    check_sensitive(row)
