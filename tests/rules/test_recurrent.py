"""LSTM, GRU, RNN: hidden units are shared by gates, recurrence and states; directions are units as well."""

from __future__ import annotations

import pytest

from tests.common import Row, check_row, check_sensitive

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def layer(
    op: str, directions: int = 1, attributes: str = "", inputs: str = "", weights: str = "", ends: str = ""
) -> str:
    """x (T, N, 4) -> op with 6 hidden units -> dense to 3."""
    rows, d = GATES[op] * 6, directions
    way = ', direction = "bidirectional"' if d == 2 else ""
    return (
        f"(float[T,N,4] x{ends}) => (float[T,N,3] y) <float[{d},{rows},4] W, float[{d},{rows},6] R, float[{6 * d},3] B,"
        f"int64[3] s = {{0,0,-1}} {', ' + weights if weights else ''}> {{ q = {op} <hidden_size = 6{way}{attributes}>"
        f" (x, W, R{inputs})"
        " t = Transpose <perm = [0,2,1,3]> (q) g = Reshape(t, s) y = MatMul(g, B) }"
    )


def hidden(op: str) -> str:
    return "W:1=6" if op == "RNN" else "W:1/1=6"


def bias(op: str, directions: int = 1) -> str:
    return f"float[{directions},{2 * GATES[op] * 6}] b"


ROWS = [Row(op, "no bias", layer(op), hidden(op)) for op in GATES]
ROWS += [Row(op, "bias", layer(op, 1, "", ", b", bias(op)), hidden(op)) for op in GATES]
ROWS += [Row(op, "bidirectional", layer(op, 2, "", ", b", bias(op, 2)), "W:0=2 " + hidden(op)) for op in GATES]
ROWS += [Row(op, "reverse", layer(op, 1, ', direction = "reverse"', ", b", bias(op)), hidden(op)) for op in GATES]
ROWS += [Row(op, "opset 7", layer(op, 2, "", ", b", bias(op, 2)), "W:0=2 " + hidden(op), opset=7) for op in GATES]
ROWS += [
    Row(op, "sequence lengths and a fed initial state", layer(op, 1, "", ", b, n, h0", bias(op), ", int32[N] n,"
        " float[1,N,6] h0"), "",
        "R:2=graph-input")
    for op in GATES
]  # fmt: skip
ROWS += [
    Row(
        op,
        "constant initial state",
        layer(op, 1, "", ', b, "", h0', bias(op) + ", float[1,2,6] h0").replace("[T,N", "[T,2"),
        hidden(op),
    )
    for op in GATES
]
FINAL = (
    "(float[5,N,4] x) => (float[N,3] y) <float[1,24,4] W, float[1,24,6] R, float[6,3] B, float[6,3] C, int64[1] z ="
    " {0}>"
    "{ q, h, c = LSTM <hidden_size = 6> (x, W, R) i = Squeeze(h, z) j = Squeeze(c, z) k = MatMul(i, B) l = MatMul(j,"
    " C) y = Add(k, l) }"
)
STACK = (
    "(float[5,N,4] x) => (float[N,3] y) <float[2,18,4] W, float[2,18,6] R, float[1,15,12] V, float[1,15,5] S,"
    " float[5,3] B, int64[1] z = {0},"
    'int64[3] s = {5,-1,12}> { q = GRU <hidden_size = 6, direction = "bidirectional"> (x, W, R) t = Transpose <perm ='
    " [0,2,1,3]> (q)"
    " g = Reshape(t, s) u, h = GRU <hidden_size = 5, linear_before_reset = 1> (g, V, S) i = Squeeze(h, z) y ="
    " MatMul(i, B) }"
)
COMPUTED = (
    "(float[5,N,4] x, float[N,7] e) => (float[N,3] y) <float[7,6] E, float[1,18,4] W, float[1,18,6] R, float[6,3] B,"
    " int64[1] z = {0}>"
    '{ i = MatMul(e, E) r = Tanh(i) h0 = Unsqueeze(r, z) q, h = GRU <hidden_size = 6> (x, W, R, "", "", h0) o ='
    " Squeeze(h, z) y = MatMul(o, B) }"
)
ROWS += [
    Row("LSTM", "peepholes", layer("LSTM", 1, "", ', b, "", "", "", p', bias("LSTM") + ", float[1,18] p"), "W:1/1=6"),
    Row("LSTM", "peepholes in both directions", layer("LSTM", 2, "", ', b, "", "", "", p', bias("LSTM", 2) + ","
        " float[2,18] p"), "W:0=2 W:1/1=6"),
    Row("LSTM", "input forget, clip", layer("LSTM", 1, ", input_forget = 1, clip = 0.5", ", b", bias("LSTM")),
        "W:1/1=6"),
    Row("LSTM", "activations in both directions", layer("LSTM", 2, ', activations ='
        ' ["Sigmoid","Tanh","Tanh","HardSigmoid","Tanh","Relu"]',
        ", b", bias("LSTM", 2)), "W:0=2 W:1/1=6"),
    Row("LSTM", "final states", FINAL, "W:1/1=6"),
    Row("LSTM", "batch first", "(float[N,5,4] x) => (float[N,5,3] y) <float[1,24,4] W, float[1,24,6] R, float[6,3] B,"
        " int64[1] two = {2}>"
        "{ q = LSTM <hidden_size = 6, layout = 1> (x, W, R) g = Squeeze(q, two) y = MatMul(g, B) }", "W:1/1=6",
        opset=14, runs=False),
    Row("GRU", "linear before reset", layer("GRU", 1, ", linear_before_reset = 1", ", b", bias("GRU")), "W:1/1=6"),
    Row("GRU", "two layers", STACK, "W:0=2 W:1/1=6 V:1/1=5"),
    Row("GRU", "computed initial state", COMPUTED, "E:1=6"),
    Row("GRU", "batch first, both directions", "(float[N,5,4] x) => (float[N,5,3] y) <float[2,18,4] W, float[2,18,6]"
        " R, float[12,3] B,"
        'int64[3] s = {0,0,-1}> { q = GRU <hidden_size = 6, layout = 1, direction = "bidirectional"> (x, W, R) g ='
        ' Reshape(q, s) y = MatMul(g, B) }',
        "W:0=2 W:1/1=6", opset=14, runs=False),
    Row("RNN", "activation", layer("RNN", 2, ', activations = ["Relu","Tanh"]', ", b", bias("RNN", 2)), "W:0=2 W:1=6"),
    Row("RNN", "activation values for one direction only", layer("RNN", 2, ', activations = ["LeakyRelu","Tanh"],'
        ' activation_alpha = [0.3]'),
        "W:1=6", "W:0=structure"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row) -> None:
    check_row(row)


@pytest.mark.parametrize("row", [r for r in ROWS if r.free and r.runs], ids=str)
def test_check_can_fail(row: Row) -> None:
    check_sensitive(row)
