"""Attention, the operator and spelled out: key-value heads, query heads per group, both kinds of channels."""

from __future__ import annotations

import pytest

from tests.common import Row, check_row, check_sensitive


def flat(
    attributes: str, extra: str = "", weights: str = "", heads: int = 4, groups: int = 2, ends: str = "", out: str = ""
) -> str:
    """3-D form: 4 query heads over 2 key-value heads, 6 query-key channels, 5 value channels."""
    q, k, v = heads * 6, groups * 6, groups * 5
    return (
        f"(float[N,7,8] x{ends}) => (float[N,7,3] y) <float[8,{q}] Q, float[8,{k}] K, float[8,{v}] V, "
        f"float[{heads * 5},3] O{weights}>"
        f"{{ q = MatMul(x, Q) k = MatMul(x, K) v = MatMul(x, V) g{out} = Attention <q_num_heads = {heads},"
        f" kv_num_heads = {groups}{attributes}>"
        f" (q, k, v{extra}) y = MatMul(g, O) }}"
    )


def cube(attributes: str, extra: str = "", weights: str = "") -> str:
    """4-D form: 4 heads of 3 channels, split and joined by Reshape and Transpose."""
    return (
        f"(float[2,7,8] x) => (float[2,7,3] y) <float[8,12] Q, float[8,12] K, float[8,12] V, float[12,3] O, int64[4] s"
        f" = {{0,0,4,3}},"
        f"int64[3] t = {{0,0,-1}}{weights}> {{ q = MatMul(x, Q) k = MatMul(x, K) v = MatMul(x, V)"
        " qr = Reshape(q, s) kr = Reshape(k, s) vr = Reshape(v, s) qt = Transpose <perm = [0,2,1,3]> (qr)"
        " kt = Transpose <perm = [0,2,1,3]> (kr) vt = Transpose <perm = [0,2,1,3]> (vr)"
        f" a = Attention {attributes} (qt, kt, vt{extra}) at = Transpose <perm = [0,2,1,3]> (a) g = Reshape(at, t) y ="
        f" MatMul(g, O) }}"
    )


GQA = "Q:1/0=2 Q:1/1=2 Q:1/2=6 V:1/1=5"
MHA = "Q:1/0=4 Q:1/1=6 V:1/1=5"
LEARNED = (
    "(float[N,7,8] x) => (float[N,3] y) <float[5,7] L, float[8,6] Q, float[8,6] K, float[8,6] V, float[6,3] O, int64[1]"
    " one = {{1}}> {{ t = MatMul(L, x) q = MatMul(t, Q) k = MatMul(x, K) v = MatMul(x, V) g = Attention"
    " <q_num_heads = 2, kv_num_heads = 2{0}> (q, k, v) o = MatMul(g, O) y = ReduceSum <keepdims = 0> (o, one) }}"
)
CUBE = "Q:1/0=4 Q:1/1=3 V:1/1=3"
OPERATOR = [
    Row("Attention", "grouped queries", flat(""), GQA, opset=23),
    Row("Attention", "scale given, causal", flat(", scale = 0.3, is_causal = 1"), GQA, opset=23),
    Row("Attention", "soft cap", flat(", softcap = 2.0"), GQA, opset=23),
    Row("Attention", "heads of their own", flat("", heads=4, groups=4), MHA, opset=23),
    Row("Attention", "one key-value head", flat("", heads=4, groups=1), "Q:1/0=4 Q:1/1=6 V:1=5", opset=23),
    Row("Attention", "mask over tokens", flat("", ", m", ", float[7,7] m"), GQA, opset=23),
    Row("Attention", "mask per head", flat("", ", m", ", float[1,4,7,7] m"), GQA, opset=23),
    Row("Attention", "past and present", flat("", ', "", pk, pv', ends=", float[N,2,3,6] pk, float[N,2,3,5] pv",
        out=", ck, cv"),
        "Q:1/1=2", "K:1=graph-input", opset=23),
    Row("Attention", "constant past", flat("", ', "", pk, pv', ", float[2,2,3,6] pk, float[2,2,3,5] pv", out=", ck, cv")
        .replace("[N,", "[2,"),
        GQA, opset=23),
    Row("Attention", "scores out", flat("", out=', "", "", s').replace("(float[N,7,3] y)", "(float[N,7,3] y,"
        " float[N,4,7,7] s)"),
        "Q:1/2=6 V:1/1=5", opset=23),
    Row("Attention", "learned queries", LEARNED.format(""), "L:0=5 Q:1/0=2 Q:1/1=3 V:1/1=3", opset=23),
    Row("Attention", "learned queries, causal", LEARNED.format(", is_causal = 1"), "Q:1/0=2 Q:1/1=3 V:1/1=3",
        "L:0=index", opset=23),
    Row("Attention", "4-D", cube(""), CUBE, opset=23),
    Row("Attention", "4-D with a mask", cube("<is_causal = 1>", ", m", ", float[1,1,7,7] m"), CUBE, opset=24),
]  # fmt: skip

FUSED = (
    "(float[N,T,8] x) => (float[N,T,3] y) <float[8,36] W, float[36] w, float[12,3] O, int64[5] s = {0,0,3,4,3},"
    " int64[3] t = {0,0,-1},"
    "int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}, float c = {0.577}> { f = MatMul(x, W) b = Add(f, w) r ="
    " Reshape(b, s)"
    " p = Transpose <perm = [2,0,3,1,4]> (r) q = Gather(p, i0) k = Gather(p, i1) v = Gather(p, i2) z = Mul(q, c)"
    " u = Transpose <perm = [0,1,3,2]> (k) a = MatMul(z, u) n = Softmax(a) o = MatMul(n, v) j = Transpose <perm ="
    " [0,2,1,3]> (o)"
    " g = Reshape(j, t) y = MatMul(g, O) }"
)
SPLIT = (
    "(float[N,T,8] x) => (float[N,T,3] y) <float[8,36] W, float[12,3] O, int64[3] c = {12,12,12}, int64[4] s ="
    " {0,0,4,3}, int64[3] t = {0,0,12}>"
    "{ f = MatMul(x, W) q, k, v = Split <axis = 2> (f, c) qr = Reshape(q, s) kr = Reshape(k, s) vr = Reshape(v, s)"
    " qt = Transpose <perm = [0,2,1,3]> (qr) u = Transpose <perm = [0,2,3,1]> (kr) vt = Transpose <perm = [0,2,1,3]>"
    " (vr)"
    " a = MatMul(qt, u) n = Softmax(a) o = MatMul(n, vt) j = Transpose <perm = [0,2,1,3]> (o) g = Reshape(j, t) y ="
    " MatMul(g, O) }"
)
ROTARY = (
    "(float[N,5,8] x) => (float[N,5,5] y) <float[8,6] Q, float[8,6] K, float[5,6] co, float[5,6] si, int64[1] z = {0},"
    " int64[1] h = {3},"
    "int64[1] e = {9223372036854775807}, int64[1] a = {-1}>"
    "{ q = MatMul(x, Q) k = MatMul(x, K) qa = Slice(q, z, h, a) qb = Slice(q, h, e, a) qn = Neg(qb) qc = Concat <axis"
    " = -1> (qn, qa)"
    " q1 = Mul(q, co) q2 = Mul(qc, si) q3 = Add(q1, q2) ka = Slice(k, z, h, a) kb = Slice(k, h, e, a) kn = Neg(kb) kc"
    " = Concat <axis = -1> (kn, ka)"
    " k1 = Mul(k, co) k2 = Mul(kc, si) k3 = Add(k1, k2) u = Transpose <perm = [0,2,1]> (k3) y = MatMul(q3, u) }"
)
REPEATED = (
    "(float[N,5,8] x) => (float[N,5,3] y) <float[8,24] Q, float[8,12] K, float[8,12] V, float[24,3] O, int64[4] s ="
    " {0,0,-1,6},"
    "int64[1] two = {2}, int64[5] e = {1,1,2,1,1}, int64[4] w = {0,4,-1,6}, int64[3] t = {0,0,24}>"
    "{ q = MatMul(x, Q) k = MatMul(x, K) v = MatMul(x, V) qr = Reshape(q, s) kr = Reshape(k, s) vr = Reshape(v, s)"
    " qt = Transpose <perm = [0,2,1,3]> (qr) kt = Transpose <perm = [0,2,1,3]> (kr) vt = Transpose <perm = [0,2,1,3]>"
    " (vr)"
    " ku = Unsqueeze(kt, two) ke = Expand(ku, e) kk = Reshape(ke, w) vu = Unsqueeze(vt, two) ve = Expand(vu, e) vv ="
    " Reshape(ve, w)"
    " u = Transpose <perm = [0,1,3,2]> (kk) a = MatMul(qt, u) n = Softmax(a) o = MatMul(n, vv) j = Transpose <perm ="
    " [0,2,1,3]> (o)"
    " g = Reshape(j, t) y = MatMul(g, O) }"
)
SPELLED_OUT = [
    Row("Gather", "attention, fused weights by Reshape and Gather", FUSED, "W:1/0=4 W:1/1=3", "p:0=index"),
    Row("Split", "attention, fused weights by Split", SPLIT, "W:1/0=4 W:1/1=3 W:1/2=3"),
    Row("Slice", "attention, rotary halves", ROTARY, "Q:1=3"),
    Row("Expand", "attention, key-value heads repeated by Expand", REPEATED, "Q:1/0=2 Q:1/1=2 Q:1/2=6 V:1/1=6"),
]
TURNED = (
    "(float[2,7,8] x) => (float[2,7,3] y) <float[8,24] A, float[24,3] B, float[2,7,3] c, float[2,7,3] d>"
    "{ h = MatMul(x, A) g = RotaryEmbedding <num_heads = 4> (h, c, d) y = MatMul(g, B) }"
)
ROTARY_ROWS = [
    Row("RotaryEmbedding", "halves", TURNED, "A:1/0=4 A:1/2=3", opset=23),
    Row("RotaryEmbedding", "interleaved", TURNED.replace("<num_heads", "<interleaved = 1, num_heads"), "A:1/0=4"
        " A:1/1=3", opset=23),
    Row("RotaryEmbedding", "angles by sample", "(float[3,40] x) => (float[5,8] y) <float[6,3] A, float[6,5,2] c,"
        " float[6,5,2] d, int64[3] s = {6,5,8}, int64[1] z = {0}> { h = MatMul(A, x) r = Reshape(h, s)"
        " g = RotaryEmbedding <num_heads = 2> (r, c, d) y = ReduceSum <keepdims = 0> (g, z) }", "A:0=6", opset=23),
    Row("RotaryEmbedding", "positions by sample", "(float[3,40] x) => (float[5,8] y) <float[6,3] A, float[9,2] c,"
        " float[9,2] d, int64[6,5] p, int64[3] s = {6,5,8}, int64[1] z = {0}> { h = MatMul(A, x) r = Reshape(h, s)"
        " g = RotaryEmbedding <num_heads = 2> (r, c, d, p) y = ReduceSum <keepdims = 0> (g, z) }", "A:0=6",
        "c:0=index", opset=23),
    Row("RotaryEmbedding", "part of the channels", TURNED.replace("<num_heads", "<rotary_embedding_dim = 4, num_heads")
        .replace("7,3]", "7,2]")
        .replace("[2,7,2] y", "[2,7,3] y"), "A:1/0=4 A:1/2=2 A:1/3=2", opset=23),
]  # fmt: skip
ROWS = OPERATOR + SPELLED_OUT + ROTARY_ROWS


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row) -> None:
    check_row(row)


@pytest.mark.parametrize("row", [r for r in ROWS if r.free and r.runs], ids=str)
def test_check_can_fail(row: Row) -> None:
    check_sensitive(row)
