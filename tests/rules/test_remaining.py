"""The rarer operators of the default domain, and the ones that are deliberately not typed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from onnx import NodeProto

from onnxprune.errors import Barrier
from onnxprune.rules import RULES
from onnxprune.rules.deliberate import Deliberate
from tests.common import Row, check_row, check_sensitive, image, tokens, vector

HEADS = (
    "(float[2,5,4] x) => (float[2,5,3] y) <float[4,{width}] A, float[{width},3] B, "
    "float[9,{half}] c, float[9,{half}] s,"
)
PLACES = " int64[2,5] p = {0,1,2,3,4,0,1,2,3,4}>"
ROTARY = [
    Row("RotaryEmbedding", "halves, flat heads", HEADS.format(width=24, half=4) + PLACES + "{ h = MatMul(x, A)"
        " g = RotaryEmbedding <num_heads = 3> (h, c, s, p) y = MatMul(g, B) }", "A:1/0=3 A:1/2=4", opset=23),
    Row("RotaryEmbedding", "interleaved", HEADS.format(width=24, half=4) + PLACES + "{ h = MatMul(x, A)"
        " g = RotaryEmbedding <num_heads = 3, interleaved = 1> (h, c, s, p) y = MatMul(g, B) }",
        "A:1/0=3 A:1/1=4", opset=23),
    Row("RotaryEmbedding", "a part of the channels", HEADS.format(width=24, half=2) + PLACES + "{ h = MatMul(x, A)"
        " g = RotaryEmbedding <num_heads = 3, rotary_embedding_dim = 4> (h, c, s, p) y = MatMul(g, B) }",
        "A:1/0=3 A:1/2=2 A:1/3=4", opset=23),
]  # fmt: skip
CONVOLUTIONS = [
    Row("DeformConv", "offsets", image("g = DeformConv <kernel_shape = [3,3], pads = [1,1,1,1]> (h, C, o)",
        "float[7,8,3,3] C, float[1,18,6,6] o").replace("[3,8,1,1] B", "[3,7,1,1] B").replace("[N,", "[1,"),
        "A:0=8 C:0=7"),
    Row("DeformConv", "groups, bias and mask", image("g = DeformConv <kernel_shape = [1,1], group = 2> (h, C, o, b, m)",
        "float[6,4,1,1] C, float[1,2,6,6] o, float[6] b, float[1,1,6,6] m").replace("[3,8,1,1] B", "[3,6,1,1] B")
        .replace("[N,", "[1,"), "A:0/0=2 A:0/1=4 C:0/1=3"),
    Row("CausalConvWithState", "state", "(float[2,4,6] x) => (float[2,3,6] y) <float[8,4,1] A, float[3,8,1] B,"
        " float[8,1,3] C, float[8] b, float[2,8,2] t> { h = Conv(x, A) g, u = CausalConvWithState(h, C, b, t)"
        " y = Conv(g, B) }", "A:0=8", opset=27, runs=False),
    Row("Col2Im", "blocks", "(float[1,4,9] x) => (float[1,3,4,4] y) <float[8,4,1] A, float[3,2,1,1] B, int64[2] i ="
        " {4,4}, int64[2] b = {2,2}> { h = Conv(x, A) g = Col2Im(h, i, b) y = Conv(g, B) }", "A:0/0=2"),
]  # fmt: skip
ORDER = [
    Row("Compress", "chosen rows", "(float[5,4] x) => (float[3,3] y) <float[4,8] A, float[8,3] B, bool[5] c ="
        " {1,0,1,0,1}> { h = MatMul(x, A) g = Compress <axis = 0> (h, c) y = MatMul(g, B) }", "A:1=8"),
    Row("Compress", "flattened", "(float[5,4] x) => (float[M] y) <float[4,8] A, bool[40] c> { h = MatMul(x, A)"
        " y = Compress(h, c) }", "", "A:1=index"),
    Row("CumProd", "along tokens", tokens("g = CumProd(h, k)", "int64 k = {1}"), "A:1=8", opset=26, runs=False),
    Row("TensorScatter", "cache", "(float[2,5,4] x) => (float[2,7,3] y) <float[4,8] A, float[8,3] B, float[2,7,8] p,"
        " int64[2] w = {0,2}> { h = MatMul(x, A) g = TensorScatter(p, h, w) y = MatMul(g, B) }", "A:1=8", opset=24),
    Row("CenterCropPad", "height and width", image("g = CenterCropPad <axes = [2,3]> (h, s)", "int64[2] s = {4,4}"),
        "A:0=8", opset=18),
    Row("CenterCropPad", "units", vector("g = CenterCropPad <axes = [1]> (h, s)", "int64[1] s = {6}")
        .replace("[8,3] B", "[6,3] B"), "", "A:1=spatial", opset=18),
    Row("DFT", "along tokens", "(float[1,8,4] x) => (float[1,8,4,2] y) <float[4,4] A, int64[1] o = {3}, int64 n = {1}>"
        "{ h = MatMul(x, A) u = Unsqueeze(h, o) y = DFT(u, , n) }", "", opset=20),
    Row("Det", "of each head", "(float[2,4] x) => (float[2,3] y) <float[4,24] A, float[6,3] B, int64[4] s = {2,6,2,2}>"
        "{ h = MatMul(x, A) r = Reshape(h, s) d = Det(r) y = MatMul(d, B) }", "A:1/0=6"),
    Row("SwiGLU", "two projections", vector("k = MatMul(x, C) g = SwiGLU(h, k)", "float[4,8] C"), "A:1=8", opset=28,
        runs=False, valid=False),
]  # fmt: skip
SOURCES = [
    Row(name, "window over the units", vector(f"w = {name}(n) g = Mul(h, w)", "int64 n = {8}"), "", "A:1=index")
    for name in ("BlackmanWindow", "HammingWindow", "HannWindow")
] + [
    Row("MelWeightMatrix", "bands", "(float[2,9] x) => (float[2,4] y) <int64 m = {4}, int64 d = {16}, int64 r = {800},"
        " float l = {10.0}, float u = {400.0}> { w = MelWeightMatrix(m, d, r, l, u) y = MatMul(x, w) }", ""),
]  # fmt: skip
ROWS = ROTARY + CONVOLUTIONS + ORDER + SOURCES


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row) -> None:
    check_row(row)


@pytest.mark.parametrize("row", [r for r in ROWS if r.free and r.runs], ids=str)
def test_check_can_fail(row: Row) -> None:
    check_sensitive(row)


@pytest.mark.parametrize("name", [n for n, rule in RULES.items() if isinstance(rule, Deliberate)])
def test_deliberate_barriers_say_why(name: str) -> None:
    node = SimpleNamespace(proto=NodeProto(op_type=name))
    with pytest.raises(Barrier, match=name.rpartition(".")[2]) as found:
        RULES[name](node)  # type: ignore[arg-type]
    assert len(found.value.detail) > len(name) + 5
