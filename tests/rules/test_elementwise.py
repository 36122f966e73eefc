"""Elementwise operators: all axes go through."""

from __future__ import annotations

import pytest

from tests.common import Row, check_row, check_sensitive, image, tokens, vector

AB = "A:1=8"
PLAIN = """
Abs Asinh Atan Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Mish Neg Relu Round
Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Tan Tanh ThresholdedRelu
"""
# operators with a domain of their own: the operand is brought into it first
BOUNDED = {
    "Acos": "t = Tanh(h) g = Acos(t)",
    "Asin": "t = Tanh(h) g = Asin(t)",
    "Atanh": "s = Tanh(h) t = Mul(s, half) g = Atanh(t)",
    "Acosh": "s = Abs(h) t = Add(s, two) g = Acosh(t)",
    "Log": "s = Abs(h) t = Add(s, half) g = Log(t)",
    "Sqrt": "s = Abs(h) g = Sqrt(s)",
    "Reciprocal": "s = Abs(h) t = Add(s, half) g = Reciprocal(t)",
    "Not": "b = Greater(h, half) n = Not(b) g = Cast <to = 1> (n)",
    "IsNaN": "b = Greater(h, half) f = Cast <to = 1> (b) z = Div(f, f) n = IsNaN(z) g = Cast <to = 1> (n)",
    "IsInf": "b = Greater(h, half) f = Cast <to = 1> (b) z = Div(two, f) n = IsInf(z) g = Cast <to = 1> (n)",
    "Cast": "d = Cast <to = 11> (h) g = Cast <to = 1> (d)",
    "CastLike": "g = CastLike(h, half)",
    "BitwiseNot": "i = Cast <to = 6> (h) n = BitwiseNot(i) g = Cast <to = 1> (n)",
}
SAME = [Row(op, "plain", vector(f"g = {op}(h)"), AB) for op in PLAIN.split()]
SAME += [Row(op, "in domain", vector(body, "float half = {0.5}, float two = {2}"), AB) for op, body in BOUNDED.items()]
SAME += [
    Row("Swish", "alpha", vector("g = Swish <alpha = 0.5> (h)"), AB, opset=24),
    Row("BitCast", "same width", vector("i = BitCast <to = 6> (h) g = BitCast <to = 1> (i)"), AB, opset=26, runs=False),
    Row("Clip", "bounds as attributes", vector("g = Clip <min = -0.5, max = 0.5> (h)"), AB, opset=6),
    Row("Clip", "no minimum", vector('g = Clip(h, "", top)', "float top = {0.5}"), AB),
    Row("Clip", "no bounds", vector("g = Clip(h)"), AB, opset=13),
    Row("Dropout", "ratio as attribute", vector("g = Dropout <ratio = 0.5> (h)"), AB, opset=7),
    Row("Dropout", "is_test", vector("g = Dropout <is_test = 1> (h)"), AB, opset=6, runs=False),
    Row(
        "Dropout",
        "training mode",
        vector("g = Dropout(h, r, t)", "float r = {0.5}, bool t = {1}"),
        "",
        "A:1=barrier",
        opset=13,
        runs=False,
    ),
    Row(
        "CastLike",
        "units that only give a type",
        "(float[N,4] x) => (float[N,3] y) <float[4,6] C, float[4,8] A, float[8,3] B>"
        "{ k = MatMul(x, C) h = MatMul(x, A) g = CastLike(h, k) y = MatMul(g, B) }",
        "C:1=6 A:1=8",
    ),
    Row("Dropout", "ratio, mask output", vector("g, m = Dropout(h, r)", "float r = {0.5}"), AB, opset=13),
    Row("Gelu", "tanh", tokens('g = Gelu <approximate = "tanh"> (h)'), AB, opset=20),
]

BROADCAST = [
    Row("Add", "bias", tokens("g = Add(h, b)", "float[8] b"), AB),
    Row("Add", "bias first", tokens("g = Add(b, h)", "float[1,1,8] b"), AB),
    Row("Add", "residual", vector("k = MatMul(x, C) g = Add(h, k)", "float[4,8] C"), AB),
    Row("Add", "residual of the input", vector("g = Add(h, x)").replace("[N,4] x", "[N,8] x").replace("[4,8] A",
        "[8,8] A"),
        frozen="A:1=graph-input"),
    Row("Add", "outer sum", "(float[4] x) => (float[8,6] y) <float[4,8] A, float[4,6] B, float[8,8] C, float[6,6] D>"
        "{ a = MatMul(x, A) b = MatMul(x, B) ax = Unsqueeze(a, one) s = Add(ax, b) l = MatMul(C, s) y = MatMul(l, D) }"
        .replace("D>", "D, int64[1] one = {1}>"), "A:1=8 B:1=6"),
    Row("Add", "legacy axis", image("g = Add <broadcast = 1, axis = 1> (h, b)", "float[8] b"), "A:0=8", opset=6,
        runs=False),
    Row("Add", "legacy suffix", vector("g = Add <broadcast = 1> (h, b)", "float[8] b"), AB, opset=6, runs=False),
    Row("Add", "legacy equal shapes", vector("k = MatMul(x, C) g = Add(h, k)", "float[4,8] C"), AB, opset=6,
        runs=False),
    Row("Mul", "gate", image("p = GlobalAveragePool(h) c = Conv(p, C) s = Sigmoid(c) g = Mul(h, s)", "float[8,8,1,1]"
        " C"), "A:0=8"),
    Row("Mul", "per unit", tokens("g = Mul(h, s)", "float[8] s"), AB),
    Row("Sub", "number", tokens("g = Sub(h, s)", "float s"), AB),
    Row("Div", "per unit", tokens("g = Div(h, s_pos)", "float[1,8] s_pos"), AB),
    Row("Pow", "number", vector("g = Pow(h, two)", "float two = {2}"), AB),
    Row("Mod", "per unit", vector("g = Mod <fmod = 1> (h, s_pos)", "float[8] s_pos"), AB),
    Row("Max", "three operands", vector("k = MatMul(x, C) g = Max(h, k, s)", "float[4,8] C, float[8] s"), AB),
    Row("Max", "legacy", vector("k = MatMul(x, C) g = Max(h, k)", "float[4,8] C"), AB, opset=6),
    Row("Min", "two operands", vector("g = Min(h, s)", "float[8] s"), AB),
    Row("Mean", "two operands", vector("k = MatMul(x, C) g = Mean(h, k)", "float[4,8] C"), AB),
    Row("Sum", "three operands", vector("k = MatMul(x, C) g = Sum(h, k, b)", "float[4,8] C, float[8] b"), AB),
    Row("Sum", "one operand", vector("g = Sum(h)"), AB),
    Row("SwiGLU", "gate", vector("k = MatMul(x, C) g = SwiGLU(h, k)", "float[4,8] C"), AB, opset=28, runs=False),
    Row("Where", "mask per unit", vector("b = Greater(h, s) g = Where(b, h, t)", "float[8] s, float[1,8] t"), AB),
    Row("Where", "number", vector("b = Less(h, s) g = Where(b, s, h)", "float s = {0}"), AB),
    Row("BitShift", "left", vector('a = Abs(h) i = Cast <to = 13> (a) k = BitShift <direction = "LEFT"> (i, n) g ='
        ' Cast <to = 1> (k)',
                                   "uint64[8] n"), AB),
]  # fmt: skip
COMPARE = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]
BROADCAST += [
    Row(
        op,
        "per unit",
        vector(f"r = Round(h) b = {op}(r, s) g = Cast <to = 1> (b)", "float[8] s = {0,1,-1,0,2,0,1,0}"),
        AB,
    )
    for op in COMPARE
]
BROADCAST += [
    Row(
        op,
        "masks",
        vector(f"b = Less(h, s) c = Greater(h, t) d = {op}(b, c) g = Cast <to = 1> (d)", "float[8] s, float[8] t"),
        AB,
    )
    for op in ("And", "Or", "Xor")
]
BROADCAST += [
    Row(op, "integers", vector(f"i = Cast <to = 6> (h) d = {op}(i, n) g = Cast <to = 1> (d)", "int32[8] n"), AB)
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
]

OTHERS = [
    Row("PRelu", "one slope", vector("g = PRelu(h, s)", "float[1] s"), AB),
    Row("PRelu", "slope per channel", image("g = PRelu(h, s)", "float[8,1,1] s"), "A:0=8"),
    Row("PRelu", "legacy slope per channel", image("g = PRelu(h, s)", "float[8] s"), "A:0=8", opset=6, runs=False),
]  # fmt: skip
ROWS = SAME + BROADCAST + OTHERS


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row) -> None:
    check_row(row)


@pytest.mark.parametrize("row", [r for r in ROWS if r.free and r.runs], ids=str)
def test_check_can_fail(row: Row) -> None:
    check_sensitive(row)
