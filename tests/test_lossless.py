"""Lossless pruning takes exactly what is without effect: planted units go, all others stay, and outputs do not change.

plant    constants' slices set to a number before pruning: `tensor:axis[units]=value`
gone     what must go, `dim[units]`; nothing else may
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune.budget import Budget
from onnxprune.feeds import random_feeds
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import LOSSLESS, PASSES
from onnxprune.reading import load
from onnxprune.sessions import run
from onnxprune.validate.closeness import relative_error
from tests.common import build, image, tokens, vector

TOLERANCE = 1e-4  # absorbed constants are added in another order: rounding; real mistakes are 1e-2 and more
ENTRY = re.compile(r"([\w./#]+):?(\d*)\[([\d,]+)\](?:=(\S+))?")


@dataclass(frozen=True)
class Case:
    """One model with planted units."""

    title: str
    text: str
    plant: str
    gone: str
    opset: int = 21

    def __str__(self) -> str:
        return self.title.replace(" ", "-")


def planted(case: Case) -> ModelProto:
    model = build(case.text, case.opset)
    tensors = {t.name: t for t in model.graph.initializer}
    for name, axis, units, value in ENTRY.findall(case.plant):
        array = numpy_helper.to_array(tensors[name]).copy()
        np.moveaxis(array, int(axis or 0), 0)[[int(u) for u in units.split(",")]] = float(value)
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))
    return model


def lossless(model: ModelProto) -> State:
    state = State(load(model), budget=Budget(lossless=True))
    PassManager(parse(LOSSLESS, PASSES)).run(state)
    return state


def removed(state: State) -> str:
    keep = sorted(state.cuts[0].plan.keep.items())
    return " ".join(f"{name}[{','.join(map(str, np.flatnonzero(~mask)))}]" for name, mask in keep)


def check(case: Case) -> State:
    model = planted(case)
    onnx.checker.check_model(model)
    state = check_lossless(model)
    assert removed(state) == case.gone
    return state


def check_lossless(model: ModelProto) -> State:
    """Prune without loss: the outputs stay what they were."""
    state = lossless(model)
    pruned = state.graph.to_proto()
    onnx.checker.check_model(pruned)
    facts = state.cuts[0].typed.facts
    for k, binding in enumerate((facts.binding, facts.other)):
        feeds = random_feeds(load(model), binding, k)
        want, got = run(model, feeds), run(pruned, feeds)
        assert max(relative_error(want[n], got[n]) for n in want) <= TOLERANCE
    return state


CONV_BN = (
    "(float[N,2,7,7] x) => (float[N,3,P,Q] y) <float[8,2,3,3] A, float[8] s, float[8] b, float[8] m, float[8] v_pos,"
    " float[3,8,3,3] B>"
    "{{ h = Conv(x, A) n = BatchNormalization(h, s, b, m, v_pos) r = Relu(n) y = Conv {0} (r, B) }}"
)
PADDED = "<pads = [1,1,1,1]>"
GEMM = (
    "(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8] a, float[8,3] B, float[3] b>"
    "{{ h = Gemm(x, A, a) r = {0}(h) y = Gemm(r, B, b) }}"
)
HEADS = (
    "(float[N,5,4] x) => (float[N,5,3] y) <float[4,2,4] A, float[2,4,3] B>"
    '{ h = Einsum <equation = "btc,cnd->btnd"> (x, A) g = Tanh(h) y = Einsum <equation = "btnd,ndo->bto"> (g, B) }'
)
STEP = "a = MatMul(e, A) r = MatMul(h, R) s = Add(a, r) n = Tanh(s)"
SCAN = (
    "(float[5,2,4] x) => (float[2,3] y) <float[4,8] A, float[8,8] R, float[2,8] z, float[8,3] B> { f, o = Scan"
    f" <num_scan_inputs = 1, body = b (h, e) => (n, c) {{ {STEP} c = Identity(n) }}> (z, x) m = ReduceMax <keepdims ="
    " 0, axes = [0]> (o) t = Add(f, m) y = MatMul(t, B) }"
)
LOOP = (
    "(float[5,N,4] x) => (float[N,3] y) <float[4,8] A, float[8,8] R, float zero = {0}, int64[1] w = {8}, int64 five ="
    " {5}, float[8,3] B> { p = Shape <start = 1, end = 2> (x) q = Concat <axis = 0> (p, w) z = Expand(zero, q) f ="
    " Loop (five, , z) <body = b (int64 i, bool k, float[N,8] h) => (bool l, float[N,8] n) { l = Identity(k) e ="
    f" Gather(x, i) {STEP} }}> y = MatMul(f, B) }}"
)
NETS = [
    Case("nothing planted", GEMM.format("Relu"), "", ""),
    Case("conv, batch norm, relu", CONV_BN.format(PADDED), "A:0[1,4]=0 b[1,4]=0 m[1,4]=0", "A:0[1,4]", 15),
    Case("batch norm without scale and bias", CONV_BN.format(PADDED), "s[2]=0 b[2]=0 s[5]=0 b[5]=-1", "A:0[2,5]", 15),
    Case("batch norm bias before a padded window", CONV_BN.format(PADDED), "s[2]=0 b[2]=1", "", 15),
    Case("batch norm bias before windows inside", CONV_BN.format(""), "s[2]=0 b[2]=1 s[3]=0 b[3]=-2", "A:0[2,3]", 15),
    Case("batch norm shifts a zero filter", CONV_BN.format(PADDED), "A:0[1]=0 b[1]=0 m[1]=-3 s[1]=1", "", 15),
    Case("gemm", GEMM.format("Relu"), "A:1[0,3]=0 a[0,3]=0", "A:1[0,3]"),
    Case("negative bias before relu", GEMM.format("Relu"), "A:1[0,3]=0 a[0,3]=-1", "A:1[0,3]"),
    Case("unread units", GEMM.format("Sigmoid"), "B:0[2,6,7]=0", "A:1[2,6,7]"),
    Case("one of everything keeps one unit", GEMM.format("Relu"), "A:1[0,1,2,3,4,5,6,7]=0 a[0,1,2,3,4,5,6,7]=0",
        "A:1[1,2,3,4,5,6,7]"),
    Case("matmul", vector("g = Tanh(h)"), "A:1[5]=0", "A:1[5]"),
    Case("dead rows make their sources unread", vector("r = Relu(h) k = MatMul(r, C) g = Relu(k)", "float[8,6] C")
        .replace("[8,3] B", "[6,3] B"),
        "B:0[0,1]=0 C:0[3]=0 C:1[0]=1", "A:1[3] C:1[0,1]"),
    Case("unread but for a row that goes", vector("r = Relu(h) k = MatMul(r, C) g = Relu(k)", "float[8,3] C")
        .replace("[8,3] B", "[3,3] B"),
        "C:0[1,2,3,4,5,6,7]=0 C:1[0]=1 C:1[1]=0 B:0[0]=0", "A:1[1,2,3,4,5,6,7] C:1[0,1]"),
    Case("residual needs both", vector("k = MatMul(x, C) g = Add(h, k)", "float[4,8] C"), "A:1[1,2]=0 C:1[2,3]=0",
        "A:1[2]"),
    Case("residual over a weight that is tied to its own input", image("k = Conv(h, C) g = Add(h, k)", "float[8,8,1,1]"
        " C"),
        "A:0[3]=0 A:0[5]=0 C:0[5]=0", "A:0[5]"),
    Case("gate needs one", vector("k = MatMul(x, C) g = Mul(h, k)", "float[4,8] C"), "A:1[1]=0 C:1[3]=0", "A:1[1,3]"),
    Case("zero by zero is no number", vector("q = Div(h, h) n = IsNaN(q) g = Cast <to = 1> (n)"), "A:1[1]=0", ""),
    Case("zero times infinity is no number", vector("q = Mul(h, c) n = IsNaN(q) g = Cast <to = 1> (n)", "float[8] c"),
        "A:1[1,3]=0 c[1]=inf", "A:1[3]"),
    Case("concat", vector("k = MatMul(x, C) c = Concat <axis = 1> (h, k) g = Relu(c)", "float[4,6] C").replace("[8,3]"
        " B", "[14,3] B"),
        "A:1[7]=0 C:1[0,2]=0", "A:1[7] C:1[0,2]"),
    Case("depthwise", image("r = Relu(h) g = Conv <group = 8, pads = [1,1,1,1]> (r, C, c)", "float[8,1,3,3] C,"
        " float[8] c"),
        "A:0[1,4]=0 c[1]=0 C:0[6]=0 c[6]=0", "A:0[1,4,6]"),
    Case("grouped, a channel of every group", image("r = Relu(h) g = Conv <group = 2> (r, C)", "float[6,4,3,3] C")
        .replace("3,8,1,1", "3,6,1,1"),
        "A:0[1,5]=0 A:0[2]=0", "A:0/1[1]"),
    Case("grouped, a whole group", image("r = Relu(h) g = Conv <group = 4> (r, C)", "float[8,2,3,3] C"), "C:0[4,5]=0",
        "A:0/0[2]"),
    Case("grouped, ignored by its filters", image("r = Relu(h) g = Conv <group = 2> (r, C)", "float[6,4,3,3] C")
        .replace("3,8,1,1", "3,6,1,1"),
        "C:1[3]=0", "A:0/1[3]"),
    Case("transposed convolution", image("g = ConvTranspose <strides = [2,2]> (h, C, c)", "float[8,6,2,2] C, float[6]"
        " c").replace("3,8,1,1", "3,6,1,1"),
        "A:0[3]=0 C:1[2]=0 c[2]=0", "A:0[3] C:1[2]"),
    Case("embedding", "(int64[N,5] i) => (float[N,5,3] y) <float[9,8] A, float[8,3] B> { h = Gather(A, i) y ="
        " MatMul(h, B) }", "A:1[4]=0", "A:1[4]"),
    Case("pooling, then dense", image("r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p) g = MatMul(f, C)",
        "float[8,3] C", "float[N,3] g")
        .replace("y = Conv(g, B)", ""), "A:0[2]=0", "A:0[2]"),
    Case("einsum", tokens('k = Einsum <equation = "btc,cd->btd"> (h, C) g = Relu(k)', "float[8,8] C"), "A:1[1]=0"
        " C:1[2]=0", "A:1[1] C:1[2]"),
    Case("carried state stays zero", SCAN, "z:0[0,1]=0 A:1[1,3]=0 R:1[1,3]=0", "z:1[1,3]", 13),
    Case("carried state starts elsewhere", SCAN, "z:0[0,1]=1 A:1[1,3]=0 R:1[1,3]=0", "", 13),
    Case("carried state that others move", SCAN, "z:0[0,1]=0 A:1[1,3]=0 R:1[3]=0", "z:1[3]", 13),
    Case("state of a loop stays zero", LOOP, "A:1[1,3]=0 R:1[1,3]=0", "A:1[1,3]"),
    Case("state of a loop moves", LOOP, "A:1[1]=0 R:1[3]=0", ""),
    Case("einsum over two axes, unread", HEADS, "B:0[0]=0 B:1[0]=0", "A:1[0] A:2[0]"),
    Case("einsum over two axes, zero", HEADS, "A:1[0]=0 A:2[0]=0", "A:1[0] A:2[0]"),
    Case("einsum over two axes, half unread and half zero", HEADS, "A:2[0,1]=0 B:1[2]=0 B:0[1]=0", "A:1[1] A:2[0,1,2]"),
    Case("einsum of one operand", tokens('s = Einsum <equation = "btc->bc"> (h) g = Unsqueeze(s, one)', "int64[1] one"
        " = {1}")
        .replace("[N,5,3] y", "[N,1,3] y"), "A:1[1]=0", "A:1[1]"),
    Case("tied weight", "(float[N,4] x, float[N,4] z) => (float[N,3] y) <float[4,8] A, float[8,3] B>"
        "{ h = MatMul(x, A) k = MatMul(z, A) r = Relu(k) s = Add(h, r) y = MatMul(s, B) }", "A:1[6]=0", "A:1[6]"),
    Case("padded channels are zeros", image("g = Pad(h, p)", "int64[8] p = {0,2,0,0,0,1,0,0}").replace("3,8,1,1",
        "3,11,1,1"), "A:0[3]=0",
        "A:0[3] B:1/0[1]"),
]  # fmt: skip

ABSORBED = [
    Case("relu of a bias", GEMM.format("Relu"), "A:1[0,3]=0 a[0,3]=1.5", "A:1[0,3]"),
    Case("sigmoid of zero", GEMM.format("Sigmoid"), "A:1[0,3]=0 a[0]=0 a[3]=-2", "A:1[0,3]"),
    Case("matmul without bias", vector("b = Add(h, c) g = Relu(b)", "float[8] c"), "A:1[2]=0 c[2]=3", "A:1[2]"),
    Case("gemm, transposed weight, alpha", "(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8] a, float[3,8] B>"
        "{ h = Gemm(x, A, a) r = Relu(h) y = Gemm <transB = 1, alpha = 0.25> (r, B) }", "A:1[2,7]=0 a[2,7]=3",
        "A:1[2,7]"),
    Case("gemm whose bias is scaled stays", "(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8] a, float[8,3] B,"
        " float[3] b>"
        "{ h = Gemm(x, A, a) r = Relu(h) y = Gemm <beta = 2.0> (r, B, b) }", "A:1[2,7]=0 a[2,7]=3", ""),
    Case("one bias for all outputs", "(float[5,4] x) => (float[5,3] y) <float[4,8] A, float[8] a, float[8,3] B,"
        " float[1] b>"
        "{ h = Gemm(x, A, a) r = Relu(h) y = Gemm(r, B, b) }", "A:1[2,7]=0 a[2,7]=3", "A:1[2,7]"),
    Case("convolution without padding", "(float[N,2,7,7] x) => (float[N,3,P,Q] y) <float[8,2,3,3] A, float[8] a,"
        " float[3,8,3,3] B>"
        "{ h = Conv(x, A, a) r = Relu(h) p = MaxPool <kernel_shape = [2,2]> (r) y = Conv(p, B) }", "A:0[5]=0 a[5]=2",
        "A:0[5]"),
    Case("convolution with padding stays", "(float[N,2,7,7] x) => (float[N,3,P,Q] y) <float[8,2,3,3] A, float[8] a,"
        " float[3,8,3,3] B>"
        '{ h = Conv(x, A, a) r = Relu(h) y = Conv <auto_pad = "SAME_UPPER"> (r, B) }', "A:0[5]=0 a[5]=2", ""),
    Case("two readers, one weight", vector("b = Add(h, c) r = Relu(b) k = MatMul(x, D) p = MatMul(r, C) q = MatMul(k,"
        " C) g = Add(p, q)",
        "float[8] c, float[4,8] D, float[8,8] C"), "A:1[2]=0 c[2]=3", ""),
    Case("through concat", vector("b = Add(h, c) r = Relu(b) k = MatMul(x, C) g = Concat <axis = 1> (k, r)", "float[8]"
        " c, float[4,6] C")
        .replace("[8,3] B", "[14,3] B"), "A:1[2]=0 c[2]=3", "A:1[2]"),
    Case("a chain of constants", vector("b = Add(h, c) r = Relu(b) k = MatMul(r, C) l = Add(k, e) s = Relu(l) g ="
        " Identity(s)",
        "float[8] c, float[8,6] C, float[6] e").replace("[8,3] B", "[6,3] B"), "A:1[2]=0 c[2]=3 C:1[1]=0 e[1]=2",
        "A:1[2] C:1[1]"),
]  # fmt: skip

NEVER = [
    Case("layer normalisation", tokens("g = LayerNormalization(h, s, b)", "float[8] s, float[8] b"), "A:1[1]=0 s[1]=0"
        " b[1]=0 B:0[1]=0", ""),
    Case("rms normalisation", tokens("g = RMSNormalization(h, s)", "float[8] s"), "A:1[1]=0 s[1]=0 B:0[1]=0", "", 23),
    Case("group normalisation", image("g = GroupNormalization <num_groups = 2> (h, s, b)", "float[8] s, float[8] b"),
        "A:0[1,5]=0 s[1,5]=0 b[1,5]=0", ""),
    Case("mean over the units", "(float[N,4] x) => (float[N,1] y) <float[4,8] A, int64[1] a = {1}> { h = MatMul(x, A)"
        " y = ReduceMean(h, a) }",
        "A:1[1]=0", ""),
    Case("maximum over the units", "(float[N,4] x) => (float[N,1] y) <float[4,8] A, int64[1] a = {1}> { h = MatMul(x,"
        " A) y = ReduceMax(h, a) }",
        "A:1[1]=0", ""),
    Case("log-sum-exp over the units", "(float[N,4] x) => (float[N,1] y) <float[4,8] A, int64[1] a = {1}>"
        "{ h = MatMul(x, A) y = ReduceLogSumExp(h, a) }", "A:1[1]=0", ""),
    Case("hidden layer beside a normalised stream", tokens("n = LayerNormalization(h, s, b) u = MatMul(n, C) v ="
        " Gelu(u) w = MatMul(v, D)"
        " g = Add(h, w)", "float[8] s, float[8] b, float[8,6] C, float[6,8] D"), "A:1[1]=0 D:1[1]=0 C:1[4]=0",
        "C:1[4]"),
]  # fmt: skip
SUMS = [
    Case(f"{op} over the units", "(float[N,4] x) => (float[N,1] y) <float[4,8] A, int64[1] a = {1}> { h = MatMul(x, A)"
        " y = "
        + op + "(h, a) }", "A:1[1]=0", "A:1[1]")
    for op in ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
]  # fmt: skip

HEADS = (
    "(float[N,7,8] x) => (float[N,7,3] y) <float[8,24] Q, float[8,12] K, float[8,10] V, float[20,3] O>"
    "{ q = MatMul(x, Q) k = MatMul(x, K) v = MatMul(x, V) g = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v)"
    " y = MatMul(g, O) }"
)
SPELLED_OUT = (
    "(float[N,T,8] x) => (float[N,T,3] y) <float[8,12] Q, float[8,12] K, float[8,12] V, float[12,3] O, int64[4] s ="
    " {0,0,4,3},"
    "int64[3] t = {0,0,12}> { q = MatMul(x, Q) k = MatMul(x, K) v = MatMul(x, V) qr = Reshape(q, s) kr = Reshape(k, s)"
    " vr = Reshape(v, s) qt = Transpose <perm = [0,2,1,3]> (qr) u = Transpose <perm = [0,2,3,1]> (kr)"
    " vt = Transpose <perm = [0,2,1,3]> (vr) a = MatMul(qt, u) n = Softmax(a) o = MatMul(n, vt)"
    " j = Transpose <perm = [0,2,1,3]> (o) g = Reshape(j, t) y = MatMul(g, O) }"
)
PAST = HEADS.replace("[N,", "[2,").replace("O>", "O, float[2,2,3,6] pk, float[2,2,3,5] pv>")
PAST = PAST.replace("g = Att", "g, ck, cv = Att").replace("(q, k, v)", '(q, k, v, "", pk, pv)')
ATTENTION = [
    Case("value channels of every head", SPELLED_OUT, "V:1[1,4,7,10]=0", "V:1/1[1]"),
    Case("query channels of every head", SPELLED_OUT, "Q:1[2,5,8,11]=0", "Q:1/1[2]"),
    Case("a head without values", SPELLED_OUT, "V:1[3,4,5]=0", "Q:1/0[1]"),
    Case("a head that is not read", SPELLED_OUT, "O:0[6,7,8]=0", "Q:1/0[2]"),
    Case("a channel of one head only", SPELLED_OUT, "V:1[4]=0", ""),
    Case("operator, value channels", HEADS, "V:1[1,6]=0", "V:1/1[1]", 23),
    Case("operator, value channels beside a past", PAST, "V:1[1,6]=0", "", 23),
    Case("operator, value channels and their past", PAST, "V:1[1,6]=0 pv:3[1]=0", "V:1/1[1]", 23),
    Case("operator, key channels", HEADS, "K:1[4,10]=0", "Q:1/2[4]", 23),
    Case("operator, a key-value head", HEADS, "V:1[0,1,2,3,4]=0", "Q:1/0[0]", 23),
    Case("operator, unread query head of every group", HEADS, "O:0[5,6,7,8,9,15,16,17,18,19]=0", "Q:1/1[1]", 23),
]


def recurrent(op: str, gates: int, attributes: str = "", inputs: str = "", weights: str = "") -> str:
    rows = gates * 6
    return (
        f"(float[5,N,4] x) => (float[5,N,3] y) <float[1,{rows},4] W, float[1,{rows},6] R, float[1,{2 * rows}] b,"
        f" float[6,3] B,"
        f"int64[1] one = {{1}}{weights}> {{ q = {op} <hidden_size = 6{attributes}> (x, W, R, b{inputs}) g = Squeeze(q,"
        f" one) y = MatMul(g, B) }}"
    )


def candidate(op: str, gates: int, gate: int, unit: int) -> str:
    """Zeros for the candidate gate of a unit."""
    row, twin = gate * 6 + unit, (gates + gate) * 6 + unit
    return f"W:1[{row}]=0 R:1[{row}]=0 b:1[{row},{twin}]=0"


KINDS = (("LSTM", 4, 3), ("GRU", 3, 2), ("RNN", 1, 0))
RECURRENT = [
    Case(f"{op} unit at rest", recurrent(op, n), candidate(op, n, gate, 2), "W:1[2]" if op == "RNN" else "W:1/1[2]")
    for op, n, gate in KINDS
]
RECURRENT += [
    Case("GRU at rest, linear before reset", recurrent("GRU", 3, ", linear_before_reset = 1"), candidate("GRU", 3, 2,
        4), "W:1/1[4]"),
    Case("LSTM at rest, peepholes", recurrent("LSTM", 4, "", ', "", "", "", p', ", float[1,18] p"), candidate("LSTM",
        4, 3, 4), "W:1/1[4]"),
    Case("LSTM at rest from another state", recurrent("LSTM", 4, "", ', "", h, h', ", float[1,2,6] h").replace("[5,N",
        "[5,2"),
        candidate("LSTM", 4, 3, 4), ""),
    Case("LSTM bias moves it", recurrent("LSTM", 4), candidate("LSTM", 4, 3, 1) + " b:1[19]=1", ""),
    Case("GRU unit that nothing reads", recurrent("GRU", 3), "R:2[5]=0 B:0[5]=0", "W:1/1[5]"),
    Case("GRU unit that only the dense layer ignores", recurrent("GRU", 3), "B:0[5]=0", ""),
    Case("RNN with activations of its own stays", recurrent("RNN", 1, ', activations = ["Sigmoid"]'), candidate("RNN",
        1, 0, 2), ""),
]  # fmt: skip
CASES = NETS + ABSORBED + NEVER + SUMS + ATTENTION + RECURRENT


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    check(case)


def test_a_second_run_finds_nothing() -> None:
    state = check(Case("gemm", GEMM.format("Relu"), "A:1[0,3]=0 a[0,3]=1.5", "A:1[0,3]"))
    again = lossless(state.graph.to_proto())
    assert removed(again) == "" and again.graph.to_proto() == state.graph.to_proto()


def test_plans_list_dims_in_order_of_appearance() -> None:
    many = [c for c in CASES if " " in c.gone]
    for state in map(check, many):
        order = [d.name for d in state.cuts[0].typed.prunable]
        assert sorted(state.cuts[0].plan.keep, key=order.index) == list(state.cuts[0].plan.keep)


def test_sizes_stay_multiples() -> None:
    case = Case("gemm", GEMM.format("Relu"), "A:1[0,3,6]=0 a[0,3,6]=0", "")
    state = State(load(planted(case)), budget=Budget(lossless=True, round_to=4))
    PassManager(parse(LOSSLESS, PASSES)).run(state)
    assert removed(state) == ""
    state = State(load(planted(case)), budget=Budget(lossless=True, round_to=2))
    PassManager(parse(LOSSLESS, PASSES)).run(state)
    assert removed(state) == "A:1[3,6]"
