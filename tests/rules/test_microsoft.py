"""ONNX Runtime's own operators: one row per edge case, real graphs as its optimisers write them, and the table against
its schemas.
"""

from __future__ import annotations

import pytest
from onnx import numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from onnxprune.passes.prune import cut
from onnxprune.rules import RULES, microsoft
from onnxprune.validate.surgery_check import surgery_check
from tests.common import (
    Row,
    build,
    check_row,
    check_sensitive,
    feeds_for,
    image,
    plans,
    tokens,
    typed_model,
    vector,
)

MS = "com.microsoft"


def fused(attributes: str, extra: str = "", weights: str = "", width: int = 44, value: int = 20, more: str = "") -> str:
    """Attention: 8 inputs, 4 heads of 3 query-key and 5 value channels."""
    return (
        f"(float[N,7,6] x{more}) => (float[N,7,3] y) <float[6,8] A, float[8,{width}] W, float[{width}] b,"
        f" float[{value},3] O{weights}> {{ h = MatMul(x, A) g = com.microsoft.Attention <num_heads = 4{attributes}>"
        f" (h, W, b{extra}) y = MatMul(g, O) }}"
    )


UNEQUAL = ", qkv_hidden_sizes = [12, 12, 20]"
FUSED = "A:1=8 W:1/0=4 W:1/1=3 W:1/2=5"
EQUAL = "A:1=8 W:1/0=4 W:1/1=3 W:1/2=3"
ALIKE = "A:1=8 W:1/0=4 W:1/1=3"
ATTENTION = [
    Row(f"{MS}.Attention", "values of their own size", fused(UNEQUAL), FUSED),
    Row(f"{MS}.Attention", "equal sizes become unequal", fused("", width=36, value=12), EQUAL),
    Row(f"{MS}.Attention", "scale given, causal", fused(UNEQUAL + ", scale = 0.3, unidirectional = 1"), FUSED),
    Row(f"{MS}.Attention", "mask of lengths", fused(UNEQUAL, ", m", ", int32[2] m = {7, 3}").replace("[N,", "[2,"),
        FUSED),
    Row(f"{MS}.Attention", "mask by key", fused(UNEQUAL, ", m", more=", int32[N,7] m"), FUSED),
    Row(f"{MS}.Attention", "mask by query and key", fused(UNEQUAL, ", m", more=", int32[N,7,7] m"), FUSED),
    Row(f"{MS}.Attention", "scores added per head", fused(UNEQUAL, ', "", "", s', ", float[1,4,7,7] s"), FUSED),
    Row(f"{MS}.Attention", "constant past", fused(", unidirectional = 1", ', "", p', ", float[2,2,4,5,3] p", 36, 12)
        .replace("[N,", "[2,").replace(" g =", " g, c ="), ALIKE),
    Row(f"{MS}.Attention", "past and present", fused(", unidirectional = 1", ', "", p', "", 36, 12,
        ", float[2,N,4,5,3] p").replace("y) <", "y, float[2,N,4,12,3] c) <").replace(" g =", " g, c ="), "A:1=8",
        "W:1=graph-input"),
    Row(f"{MS}.Attention", "rotary inside", fused(UNEQUAL + ", do_rotary = 1"), "A:1=8 W:1/0=4 W:1/2=5", runs=False),
    Row(f"{MS}.Attention", "shared buffer", fused("", ', "", p, "", n', ", int32[1] n = {5}", 36, 12,
        ", float[2,N,4,12,3] p"), "", "h:2=barrier", runs=False),
]  # fmt: skip


def integers(weights: str, scale: str, zero: str, extra: str = "", more: str = "") -> str:
    return (
        f"(float[N,7,6] x{more}) => (float[N,7,3] y) <float[6,8] A, {weights}, float[36] b, float[12,3] O, float s ="
        f" {{0.05}}, uint8 z = {{128}}, {scale} t_pos, {zero}> {{ h = MatMul(x, A) q = QuantizeLinear(h, s, z) g ="
        f' com.microsoft.QAttention <num_heads = 4> (q, W, b, s, t_pos, "", z, v{extra}) y = MatMul(g, O) }}'
    )


QUANTIZED = [
    Row(f"{MS}.QAttention", "one scale", integers("int8[8,36] W", "float", "int8 v = {0}"), ALIKE),
    Row(f"{MS}.QAttention", "zero points", integers("uint8[8,36] W", "float", "uint8 v = {3}"), ALIKE),
    Row(f"{MS}.QAttention", "scale per column", integers("int8[8,36] W", "float[36]", "int8[36] v"), ALIKE),
    Row(f"{MS}.QAttention", "constant past", integers("int8[8,36] W", "float",
        "int8 v = {0}, float[2,2,4,5,3] p", ", p").replace("[N,", "[2,").replace(" g =", " g, c ="), ALIKE),
]  # fmt: skip


def heads(
    attributes: str = "", extra: str = "", weights: str = "", more: str = "", out: str = "", value: int = 5
) -> str:
    """MultiHeadAttention: 4 heads of 3 query-key and 5 value channels."""
    return (
        f"(float[N,7,8] x{more}) => (float[N,7,3] y) <float[8,12] Q, float[8,12] K, float[8,{4 * value}] V,"
        f" float[{4 * value},3] O{weights}> {{ q = MatMul(x, Q) k = MatMul(x, K) v = MatMul(x, V) g{out} ="
        f" com.microsoft.MultiHeadAttention <num_heads = 4{attributes}> (q, k, v{extra}) y = MatMul(g, O) }}"
    )


MHA = "Q:1/0=4 Q:1/1=3 V:1/1=5"
CROSS = (
    "(float[N,7,8] x) => (float[N,7,3] y) <float[8,12] Q, float[2,4,5,3] K, float[2,4,5,3] V, float[12,3] O> { q ="
    " MatMul(x, Q) g = com.microsoft.MultiHeadAttention <num_heads = 4> (q, K, V) y = MatMul(g, O) }"
).replace("[N,", "[2,")
MULTI_HEAD = [
    Row(f"{MS}.MultiHeadAttention", "plain", heads(), MHA),
    Row(f"{MS}.MultiHeadAttention", "scale given, causal", heads(", scale = 0.3, unidirectional = 1"), MHA),
    Row(f"{MS}.MultiHeadAttention", "bias", heads("", ", b", ", float[44] b"), MHA),
    Row(f"{MS}.MultiHeadAttention", "mask by key", heads("", ', "", m', more=", int32[N,7] m"), MHA),
    Row(f"{MS}.MultiHeadAttention", "mask of lengths", heads("", ', "", m', ", int32[2] m = {7, 3}")
        .replace("[N,", "[2,"), MHA),
    Row(f"{MS}.MultiHeadAttention", "scores added per head", heads("", ', "", "", s', ", float[1,4,7,7] s"), MHA),
    Row(f"{MS}.MultiHeadAttention", "scores added to all", heads("", ', b, "", s', ", float[44] b, float[1,1,7,7] s"),
        MHA),
    Row(f"{MS}.MultiHeadAttention", "constant past", heads("", ', "", "", "", p, r',
        ", float[2,4,5,3] p, float[2,4,5,3] r", out=", c, d", value=3).replace("[N,", "[2,"), "Q:1/0=4 Q:1/1=3"),
    Row(f"{MS}.MultiHeadAttention", "present goes out", heads(out=", c, d").replace("y) <", "y, float[N,4,7,3] c) <"),
        "V:1/1=5", "Q:1=graph-output"),
    Row(f"{MS}.MultiHeadAttention", "keys from a cache", CROSS, "Q:1/0=4 Q:1/1=3"),
    Row(f"{MS}.MultiHeadAttention", "packed", "(float[N,7,8] x) => (float[N,7,3] y) <float[8,36] Q, float[12,3] O,"
        " int64[5] s = {0,0,4,3,3}> { q = MatMul(x, Q) p = Reshape(q, s) g = com.microsoft.MultiHeadAttention"
        " <num_heads = 4> (p) y = MatMul(g, O) }", "", "Q:1=barrier O:0=barrier", runs=False),
]  # fmt: skip


def grouped(attributes: str = "", extra: str = "", weights: str = "", size: int = 16, out: str = "") -> str:
    """GroupQueryAttention: 4 query heads over 2 key-value heads, lengths of both samples 5."""
    return (
        f"(float[2,5,8] x) => (float[2,5,3] y) <float[8,{4 * size}] Q, float[8,{2 * size}] K, float[8,{2 * size}] V,"
        f" float[{4 * size},3] O, int32[2] n = {{4, 4}}, int32 t = {{5}}{weights}> {{ q = MatMul(x, Q) k = MatMul(x, K)"
        f" v = MatMul(x, V) g{out} = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads ="
        f" 2{attributes}> (q,"
        f' k, v, "", "", n, t{extra}) y = MatMul(g, O) }}'
    )


PACKED = (
    "(float[2,5,8] x) => (float[2,5,3] y) <float[8,128] Q, float[64,3] O, int32[2] n = {4, 4}, int32 t = {5}> { q ="
    ' MatMul(x, Q) g = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (q, "", "", "", "", n,'
    " t) y ="
    " MatMul(g, O) }"
)
PAST = (
    "(float[2,1,8] x) => (float[2,1,3] y) <float[8,64] Q, float[8,32] K, float[8,32] V, float[64,3] O, int32[2] n ="
    " {4, 4}, int32 t = {5}, float[2,2,4,16] p, float[2,2,4,16] r> { q = MatMul(x, Q) k = MatMul(x, K) v = MatMul(x, V)"
    " g, c, d = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (q, k, v, p, r, n, t) y ="
    " MatMul(g, O) }"
)
GQA = "Q:1/0=2 Q:1/1=2 Q:1/2=2"
TABLES = ", float[9,16] c, float[9,16] s"
GROUPED = [
    Row(f"{MS}.GroupQueryAttention", "plain, channels by the eight", grouped(), GQA),
    Row(f"{MS}.GroupQueryAttention", "scale given, window, soft cap",
        grouped(", scale = 0.3, local_window_size = 3, softcap = 2.0"), GQA),
    Row(f"{MS}.GroupQueryAttention", "rotary halves", grouped(", do_rotary = 1", ", c, s", TABLES, 32),
        "Q:1/0=2 Q:1/1=2 Q:1/3=2"),
    Row(f"{MS}.GroupQueryAttention", "rotary pairs",
        grouped(", do_rotary = 1, rotary_interleaved = 1", ", c, s", TABLES,
        32), GQA),
    Row(f"{MS}.GroupQueryAttention", "rotary on a part", grouped(", do_rotary = 1", ", c, s",
        ", float[9,16] c, float[9,16] s", 64), "Q:1/0=2 Q:1/1=2 Q:1/3=2 Q:1/5=2"),
    Row(f"{MS}.GroupQueryAttention", "scores added, sinks", grouped("", ', "", "", "", s, k0',
        ", float[1,4,5,5] s, float[4] k0"), GQA),
    Row(f"{MS}.GroupQueryAttention", "packed", PACKED, GQA),
    Row(f"{MS}.GroupQueryAttention", "constant past", PAST, GQA),
    Row(f"{MS}.GroupQueryAttention", "one row of channels", grouped(size=8), "Q:1/0=2 Q:1/1=2"),
]  # fmt: skip


def rotary(attributes: str, half: int, positions: str = "int64[1] p = {0}", cube: bool = False, size: int = 6) -> str:
    """Queries and keys of 4 heads, rotated, then multiplied."""
    split = " qc = Reshape(q, u) qd = Transpose <perm = [0,2,1,3]> (qc)" if cube else ""
    back = " qf = Transpose <perm = [0,2,1,3]> (qe) qr = Reshape(qf, w)" if cube else ""
    return (
        f"(float[N,5,8] x) => (float[N,5,3] y) <float[8,{4 * size}] Q, float[{4 * size},3] O, float[9,{half}] c,"
        f" float[9,{half}] s, {positions}, int64[4] u = {{0,0,4,{size}}}, int64[3] w = {{0,0,-1}}> {{ q = MatMul(x, Q)"
        f"{split} {'qe' if cube else 'qr'} = com.microsoft.RotaryEmbedding{attributes} ({'qd' if cube else 'q'}, p,"
        f" c, s)"
        f"{back} y = MatMul(qr, O) }}"
    )


PART = " <num_heads = 4, rotary_embedding_dim = 4>"
ROTARY = [
    Row(f"{MS}.RotaryEmbedding", "halves", rotary("", 3), "Q:1/0=4 Q:1/2=3"),
    Row(f"{MS}.RotaryEmbedding", "pairs, heads by attribute", rotary(" <interleaved = 1, num_heads = 4>", 3),
        "Q:1/0=4 Q:1/1=3"),
    Row(f"{MS}.RotaryEmbedding", "part of a head", rotary(PART, 2), "Q:1/0=4 Q:1/2=2 Q:1/3=2"),
    Row(f"{MS}.RotaryEmbedding", "positions by token", rotary("", 3, "int64[2,5] p").replace("[N,", "[2,"),
        "Q:1/0=4 Q:1/2=3"),
    Row(f"{MS}.RotaryEmbedding", "heads apart", rotary(PART, 2, cube=True), "Q:1/0=4 Q:1/2=2 Q:1/3=2"),
]  # fmt: skip

NORMS = [
    Row(f"{MS}.SkipLayerNormalization", "all operands and the sum",
        tokens("k = MatMul(x, C) g, m, d, s = com.microsoft.SkipLayerNormalization <epsilon = 0.01> (h, k, w, b, e) z ="
        " Relu(s) y0 = MatMul(z, D)", "float[4,8] C, float[8] w, float[8] b, float[8] e, float[8,3] D")
        .replace("(float[N,5,3] y)", "(float[N,5,3] y, float[N,5,3] y0, float[N,5,1] m, float[N,5,1] d)"), "A:1=8"),
    Row(f"{MS}.SkipLayerNormalization", "no beta, skip without a batch",
        tokens("g = com.microsoft.SkipLayerNormalization(h, e, w)", "float[8] w, float[5,8] e"), "A:1=8"),
    Row(f"{MS}.SkipSimplifiedLayerNormalization", "bias and sum",
        tokens('k = MatMul(x, C) g, "", "", s = com.microsoft.SkipSimplifiedLayerNormalization(h, k, w, e) y0 ='
        " MatMul(s, D)", "float[4,8] C, float[8] w, float[8] e, float[8,3] D")
        .replace("(float[N,5,3] y)", "(float[N,5,3] y, float[N,5,3] y0)"), "A:1=8"),
    Row(f"{MS}.SkipSimplifiedLayerNormalization", "plain",
        tokens("g = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.1> (h, h, w)", "float[8] w"), "A:1=8"),
    Row("SimplifiedLayerNormalization", "last axis", tokens("g = SimplifiedLayerNormalization <epsilon = 0.1> (h, w)",
        "float[8] w"), "A:1=8", valid=False),
    Row("SimplifiedLayerNormalization", "deviation goes out", tokens("g, d = SimplifiedLayerNormalization(h, w)",
        "float[8] w").replace("y) <", "y, float[N,5,1] d) <"), "A:1=8", valid=False),
    Row("LayerNormalization", "before its time", tokens("g, m, d = LayerNormalization(h, w, b)",
        "float[8] w, float[8] b"), "A:1=8", opset=13, valid=False),
    Row(f"{MS}.EmbedLayerNormalization", "all operands",
        "(int32[N,5] i, int32[N,5] j, int32[N,5] m) => (float[N,5,3] y,"
        " int32[N] k, float[N,5,3] z) <float[9,8] W, float[7,8] P, float[2,8] S, float[8] g, float[8] b, float[8,3]"
        " B> {"
        " h, k, s = com.microsoft.EmbedLayerNormalization <epsilon = 0.01> (i, j, W, P, S, g, b, m) y = MatMul(h,"
        " B) z ="
        " MatMul(s, B) }", "W:1=8", "W:0=picked"),
    Row(f"{MS}.EmbedLayerNormalization", "positions given",
        "(int32[N,5] i) => (float[N,5,3] y) <float[9,8] W, float[7,8]"
        " P, float[8] g, float[8] b, float[8,3] B, int32[1,5] p = {0, 2, 1, 4, 3}> { h, k ="
        ' com.microsoft.EmbedLayerNormalization(i, "", W, P, "", g, b, "", p) y = MatMul(h, B) }', "W:1=8"),
]  # fmt: skip

POINTWISE = [
    Row(f"{MS}.BiasGelu", "bias", tokens("g = com.microsoft.BiasGelu(h, b)", "float[8] b"), "A:1=8"),
    Row(f"{MS}.FastGelu", "bias", tokens("g = com.microsoft.FastGelu(h, b)", "float[8] b"), "A:1=8"),
    Row(f"{MS}.FastGelu", "plain", tokens("g = com.microsoft.FastGelu(h)"), "A:1=8"),
    Row(f"{MS}.Gelu", "plain", vector("g = com.microsoft.Gelu(h)"), "A:1=8"),
    Row(f"{MS}.QuickGelu", "alpha", vector("g = com.microsoft.QuickGelu <alpha = 0.5> (h)"), "A:1=8"),
    Row(f"{MS}.ScaledSiLU", "alpha", vector("g = com.microsoft.ScaledSiLU <alpha = 0.5> (h)"), "A:1=8"),
    Row(f"{MS}.GatedAdd", "a gate per row", tokens("k = MatMul(x, C) t = MatMul(x, D) g = com.microsoft.GatedAdd(h, k,"
        " t)", "float[4,8] C, float[4,1] D"), "A:1=8"),
    Row(f"{MS}.BiasAdd", "residual", tokens("k = MatMul(x, C) g = com.microsoft.BiasAdd(h, b, k)",
        "float[4,8] C, float[8] b"), "A:1=8", runs=False),
    Row(f"{MS}.BiasSplitGelu", "halves", tokens("g = com.microsoft.BiasSplitGelu(h, b)", "float[8] b")
        .replace("[8,3] B", "[4,3] B"), "A:1/1=4", runs=False),
    Row(f"{MS}.Trilu", "over tokens", tokens("g = com.microsoft.Trilu(h)"), "", "A:1=index"),
    Row(f"{MS}.Inverse", "matrices",
        "(float[N,4] x) => (float[N,2,2] y) <float[4,8] A, float[8,4] B, int64[3] s = {-1, 2,"
        " 2}> { h = MatMul(x, A) k = MatMul(h, B) r = Reshape(k, s) y = com.microsoft.Inverse(r) }", "A:1=8",
        "B:1=index"),
    Row(f"{MS}.GridSample", "channels", image("g = com.microsoft.GridSample(h, r)", "float[2,3,3,2] r")
        .replace("[N,", "[2,"), "A:0=8"),
    Row(f"{MS}.GatherND", "rows", "(float[4,6] x) => (float[2,3] y) <float[6,8] A, float[8,3] B, int64[2,1] i ="
        " {1, 3}> { h = MatMul(x, A) g = com.microsoft.GatherND(h, i) y = MatMul(g, B) }", "A:1=8"),
    Row(f"{MS}.Pad", "units of their own", vector("g = com.microsoft.Pad(h, p, v)",
        "int64[4] p = {0, 1, 0, 2}, float v = {0.5}")
        .replace("[8,3] B", "[11,3] B"), "A:1=8 B:0/1=2"),
]  # fmt: skip


def product(body: str, a: str, b: str, out: str = "float[N,5,3] y") -> str:
    return f"(float[N,5,4] x) => ({out}) <float[4,8] A, {a}{b}> {{ h = MatMul(x, A) {body} }}"


PRODUCTS = [
    Row(f"{MS}.FusedConv", "activation", image("g = com.microsoft.FusedConv <activation = \"Relu\"> (h, W, b)",
        "float[6,8,3,3] W, float[6] b").replace("[3,8,1,1] B", "[3,6,1,1] B"), "A:0=8 W:0=6"),
    Row(f"{MS}.FusedConv", "groups and a residual",
        image("k = Conv(x, C) g = com.microsoft.FusedConv <group = 4, pads ="
        ' [1,1,1,1], activation = "LeakyRelu", activation_params = [0.1]> (h, W, b, k)',
        "float[8,2,1,1] C, float[8,2,3,3] W, float[8] b"), "A:0/0=4 A:0/1=2 C:0/1=2"),
    Row(f"{MS}.FusedConv", "activation over channels",
        image('g = com.microsoft.FusedConv <activation = "Softmax"> (h, W)',
        "float[6,8,3,3] W").replace("[3,8,1,1] B", "[3,6,1,1] B"), "", "A:0=barrier", runs=False),
    Row(f"{MS}.FusedGemm", "activation", vector('g = com.microsoft.FusedGemm <activation = "Relu", transB = 1, alpha ='
        " 0.5> (h, W, b)", "float[6,8] W, float[6] b").replace("[8,3] B", "[6,3] B"), "A:1=8 W:0=6"),
    Row(f"{MS}.GemmFastGelu", "bias", vector("g = com.microsoft.GemmFastGelu(h, W, b)", "float[8,6] W, float[6] b")
        .replace("[8,3] B", "[6,3] B"), "A:1=8 W:1=6", runs=False),
    Row(f"{MS}.FusedMatMul", "plain", tokens("g = com.microsoft.FusedMatMul <alpha = 0.5> (h, W)", "float[8,6] W")
        .replace("[8,3] B", "[6,3] B"), "A:1=8 W:1=6"),
    Row(f"{MS}.FusedMatMul", "weights transposed", tokens("g = com.microsoft.FusedMatMul <transB = 1> (h, W)",
        "float[6,8] W").replace("[8,3] B", "[6,3] B"), "A:1=8 W:0=6"),
    Row(f"{MS}.FusedMatMul", "both transposed, data",
        "(float[N,4,5] x) => (float[N,5,5] y) <float[8,4] A, float[6,8] C>"
        " { h = MatMul(A, x) k = MatMul(C, h) y = com.microsoft.FusedMatMul <transA = 1> (k, k) }", "A:0=8 C:0=6"),
    Row(f"{MS}.FusedMatMul", "batch of the left behind the rows", "(float[5,N,4] x) => (float[N,5,3] y) <float[4,8] A,"
        " float[1,8,3] B> { h = MatMul(x, A) y = com.microsoft.FusedMatMul <transBatchA = 1> (h, B) }", "A:1=8"),
    Row(f"{MS}.FusedMatMul", "batch of the left before the columns",
        "(float[4,N,5] x) => (float[N,5,3] y) <float[8,4] A,"
        " float[1,8,3] B, int64[3] s = {8, -1, 5}, int64[2] r = {4, -1}> { f = Reshape(x, r) m = MatMul(A, f) h ="
        " Reshape(m, s) y = com.microsoft.FusedMatMul <transBatchA = 1, transA = 1> (h, B) }", "A:0=8"),
    Row(f"{MS}.FusedMatMul", "batch of the right", "(float[N,5,4] x, float[4,N,7] z) => (float[N,5,7] y) <float[4,8] A,"
        " float[8,4] C, int64[3] s = {8, -1, 7}, int64[2] r = {4, -1}> { h = MatMul(x, A) f = Reshape(z, r) m ="
        " MatMul(C, f) k = Reshape(m, s) y = com.microsoft.FusedMatMul <transBatchB = 1> (h, k) }", "A:1=8"),
    Row(f"{MS}.FusedMatMul", "vector",
        "(float[N,5,4] x) => (float[N,5] y) <float[4,8] A, float[8] B> { h = MatMul(x, A)"
        " y = com.microsoft.FusedMatMul <transB = 1> (h, B) }", "A:1=8"),
    Row(f"{MS}.TransposeMatMul", "weights transposed", tokens("g = com.microsoft.TransposeMatMul <transB = 1> (h, W)",
        "float[6,8] W").replace("[8,3] B", "[6,3] B"), "A:1=8 W:0=6"),
    Row(f"{MS}.FusedMatMulActivation", "activation", tokens('g = com.microsoft.FusedMatMulActivation <activation ='
        ' "Relu"> (h, W)', "float[8,6] W").replace("[8,3] B", "[6,3] B"), "A:1=8 W:1=6", runs=False),
    Row(f"{MS}.CDist", "Euclidean",
        '(float[N,4] x) => (float[N,5] y) <float[4,8] A, float[5,8] B> { h = MatMul(x, A) y ='
        ' com.microsoft.CDist <metric = "euclidean"> (h, B) }', "A:1=8"),
    Row(f"{MS}.CDist", "other metric",
        '(float[N,4] x) => (float[N,5] y) <float[4,8] A, float[5,8] B> { h = MatMul(x, A) y'
        ' = com.microsoft.CDist <metric = "cityblock"> (h, B) }', "", "A:1=barrier", runs=False),
    Row(f"{MS}.RelativePositionBias", "heads", "(float[N,4,5,5] x) => (float[N,5,5] y) <float[9,4] T, int64[1] n = {5},"
        " int64[1] a = {1}> { b = com.microsoft.RelativePositionBias <max_distance = 8> (T, n, n) s = Add(x, b) y ="
        " ReduceSum <keepdims = 0> (s, a) }", "", "T:0=picked T:1=graph-input", runs=False),
]  # fmt: skip


def nbits(extra: str = "", weights: str = "", k: int = 48, attributes: str = "", scales: str = "") -> str:
    """MatMulNBits: 48 inputs in blocks of 16, 8 outputs, 4 bits."""
    blocks = -(-k // 16)
    return (
        f"(float[N,5,4] x) => (float[N,5,3] y) <float[4,{k}] A, uint8[8,{blocks},8] W, float[8,3] B,"
        f" {scales or f'float[8,{blocks}] s'}{weights}> {{ h = MatMul(x, A) g = com.microsoft.MatMulNBits <K = {k},"
        f" N = 8,"
        f" block_size = 16{attributes}> (h, W, s{extra}) y = MatMul(g, B) }}"
    )


BLOCKED = [
    Row(f"{MS}.MatMulNBits", "four bits", nbits(), "A:1/0=3 W:0=8"),
    Row(f"{MS}.MatMulNBits", "eight bits, bias", nbits(', "", "", b', ", float[8] b", attributes=", bits = 8")
        .replace("[8,3,8] W", "[8,3,16] W"), "A:1/0=3 W:0=8"),
    Row(f"{MS}.MatMulNBits", "zero points in bytes", nbits(", z", ", uint8[8,2] z"), "W:0=8", "A:1=structure"),
    Row(f"{MS}.MatMulNBits", "real zero points", nbits(", z", ", float[8,3] z"), "A:1/0=3 W:0=8"),
    Row(f"{MS}.MatMulNBits", "flat scales and zero points",
        nbits(", z", ", uint8[16] z", scales="float[24] s"), "W:0=8",
        "A:1=structure"),
    Row(f"{MS}.MatMulNBits", "flat scales", nbits(scales="float[24] s"), "A:1/0=3 W:0=8"),
    Row(f"{MS}.MatMulNBits", "last block not full", nbits(k=40), "W:0=8", "A:1=structure"),
    Row(f"{MS}.MatMulNBits", "packed for a device", nbits(attributes=", weight_prepacked = 1"), "", "A:1=barrier",
        runs=False),
]  # fmt: skip


def experts(attributes: str = "", rows: int = 6, third: str = "", weights: str = "") -> str:
    """MoE: 3 experts with 6 inner units, 2 chosen for each of 10 tokens."""
    return (
        f"(float[2,5,4] x) => (float[2,5,3] y) <float[4,8] A, float[4,3] R, float[3,{rows},8] F, float[3,{rows}] f,"
        f" float[3,8,6] G, float[3,8] e, float[8,3] B, int64[2] s = {{10, 3}}{weights}> {{ h = MatMul(x, A) r ="
        f" MatMul(x, R) t = Reshape(r, s) g = com.microsoft.MoE <k = 2{attributes}> (h, t, F, f, G, e{third}) y ="
        f" MatMul(g, B) }}"
    )


MIXTURES = [
    Row(f"{MS}.MoE", "two of three", experts(), "A:1=8 F:1=6", "R:1=index"),
    Row(f"{MS}.MoE", "gelu, normalised", experts(', activation_type = "gelu", normalize_routing_weights = 1'),
        "A:1=8 F:1=6"),
    Row(f"{MS}.MoE", "gates side by side", experts(', activation_type = "swiglu", swiglu_fusion = 1', 12),
        "A:1=8 F:1/0=6"),
    Row(f"{MS}.MoE", "gates in halves", experts(', activation_type = "swiglu", swiglu_fusion = 2', 12), "A:1=8 F:1/1=6",
        runs=False),
    Row(f"{MS}.MoE", "a third matrix", experts(', activation_type = "silu"', third=", H, d",
        weights=", float[3,6,8] H, float[3,6] d"), "A:1=8 F:1=6", runs=False),
]  # fmt: skip

BARRIERS = [
    Row(f"{MS}.{name}", "barrier", vector(f"g = {MS}.{name}(h)"), "", "A:1=barrier", runs=False)
    for names in microsoft.BARRIERS.values()
    for name in names.split()
]
ROWS = [
    *ATTENTION,
    *QUANTIZED,
    *MULTI_HEAD,
    *GROUPED,
    *ROTARY,
    *NORMS,
    *POINTWISE,
    *PRODUCTS,
    *BLOCKED,
    *MIXTURES,
    *BARRIERS,
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row) -> None:
    check_row(row)


@pytest.mark.parametrize("row", [r for r in ROWS if r.free and r.runs], ids=str)
def test_check_can_fail(row: Row) -> None:
    check_sensitive(row)


def test_experts_see_their_input() -> None:
    """ONNX Runtime's kernel is wrong where its result lies in a buffer used before; the check gives it its own."""
    typed = typed_model(build(experts()))
    masks = next(plans(typed))
    wrong = cut(typed, masks).to_proto()
    first = next(t for t in wrong.graph.initializer if t.name == "A")
    first.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(first)[::-1].copy(), "A"))
    assert not surgery_check(typed, masks, wrong, feeds_for(typed)).passed


def test_every_operator_of_the_runtime_has_a_row_in_the_table() -> None:
    known = {f"{MS}.{s.name}" for s in runtime.get_all_operator_schema() if s.domain == MS}
    assert not known - set(RULES)
