"""Operators that work entry by entry."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from tests.random_graphs.builder import Builder, Ref, Tensor
from tests.random_graphs.moves import Moves, moves

ATTRIBUTES: dict[str, tuple[str, ...]] = {  # that are drawn from (0.1, 1) half of the time
    "Elu": ("alpha",),
    "Celu": ("alpha",),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Selu": ("alpha", "gamma"),
    "Swish": ("alpha",),
    "ThresholdedRelu": ("alpha",),
    "Shrink": ("lambd", "bias"),
}


def drawn(b: Builder, op: str) -> dict[str, float | str]:
    if op == "Gelu":
        return {"approximate": b.rng.choice(("none", "tanh"))}
    return {name: b.rng.uniform(0.1, 1) for name in ATTRIBUTES.get(op, ()) if b.rng.random() < 0.5}


def unary(b: Builder, op: str) -> None:
    t = b.pick()
    b.op(op, [t], t, t.shape, **drawn(b, op))


def within(make: Callable[[Builder, Tensor], str]) -> Callable[[Builder, str], None]:
    """An operator that is given what `make` makes of a tensor: its domain is narrow, or its growth is steep."""

    def build(b: Builder, op: str) -> None:
        t = b.pick()
        b.op(op, [make(b, t)], t, t.shape)

    return build


def narrow(b: Builder, t: Tensor) -> str:
    """(-0.9, 0.9)"""
    return b.one("Mul", b.one("Tanh", t), b.fixed(0.9))


def above(low: float) -> Callable[[Builder, Tensor], str]:
    return lambda b, t: b.one("Add", b.one("Abs", t), b.fixed(low))


def partner(b: Builder, t: Tensor) -> Ref:
    """What is broadcast against a tensor: another one of its shape, a weight along some of its axes, a number."""
    kind = b.rng.random()
    if kind < 0.45:
        return b.mate(t, *t.shape)
    if kind < 0.55:
        return b.fixed(b.rng.uniform(0.5, 1.5))
    shape = [n if b.rng.random() < 0.7 else 1 for n in t.shape][b.axis(t) :]
    return b.weight(*shape, fan=1)


def binary(b: Builder, op: str) -> None:
    t = b.pick()
    pair = [t, partner(b, t)]
    if b.rng.random() < 0.3:
        pair.reverse()
    b.op(op, pair, t, t.shape)


def grown(b: Builder, op: str) -> None:
    """Add over a new axis: (..., a, 1) and (..., 1, b) make (..., a, b)."""
    t = b.pick(1)
    other = b.mate(t, b.rng.choice((2, 3, 4)))
    left, right = b.unsqueeze(t, t.at(1)), b.unsqueeze(other, t.at(0))
    b.op(op, [left, right], t, [*t.shape, *other.shape])


def add(b: Builder, op: str) -> None:
    grown(b, op) if b.rng.random() < 0.2 else binary(b, op)


def several(b: Builder, op: str) -> None:
    t = b.pick()
    b.op(op, [t, *(partner(b, t) for _ in range(b.rng.randint(0, 2)))], t, t.shape)


def divided(b: Builder, op: str) -> None:
    """By numbers away from zero."""
    t = b.pick()
    by: Ref = b.one("Add", b.one("Abs", b.mate(t, *t.shape)), b.fixed(0.5))
    by = by if b.rng.random() < 0.5 else b.positive(t.shape[-1])
    b.op(op, [t, by], t, t.shape, **({"fmod": 1} if op == "Mod" else {}))


def power(b: Builder, op: str) -> None:
    t = b.pick()
    base, exponent = b.rng.choice(((narrow(b, t), b.fixed(2)), (above(0.5)(b, t), b.positive(t.shape[-1], low=0.1))))
    b.op(op, [base, exponent], t, t.shape)


def prelu(b: Builder, op: str) -> None:
    t = b.pick()
    slopes = ([t.shape[-1]], [1], [t.shape[0], *[1] * (t.rank - 1)], t.shape)
    b.op(op, [t, b.weight(*b.rng.choice(slopes), fan=1)], t, t.shape)


def clip(b: Builder, op: str) -> None:
    t = b.pick()
    if b.opset < 11:
        b.op(op, [t], t, t.shape, min=-0.5, max=1.0)
        return
    bounds = b.rng.choice((["", b.fixed(0.7)], [b.fixed(-0.5), b.fixed(0.7)], [b.fixed(-0.5)], []))
    b.op(op, [t, *bounds], t, t.shape)


def dropout(b: Builder, op: str) -> None:
    t = b.pick()
    if b.opset < 12:
        b.op(op, [t], t, t.shape, ratio=0.4)
        return
    made, mask = b.raw(op, [t, b.fixed(0.4)], outputs=2)
    b.add(made, t.lead, t.shape)
    b.float(mask, t, t.shape)


def cast(b: Builder, op: str) -> None:
    """To a type and back."""
    t = b.pick()
    kind = b.rng.choice((TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64))
    b.float(b.cast(t, kind), t, t.shape)


def cast_like(b: Builder, op: str) -> None:
    t = b.pick()
    like = b.rng.choice((b.fixed(1.0), b.fixed(1, np.int64), t.name))
    b.float(b.one(op, t, like), t, t.shape)


def compared(b: Builder, op: str) -> None:
    """A comparison, as 0 and 1."""
    t = b.pick()
    left: Ref = b.one("Round", t) if op == "Equal" and b.opset >= 11 else t
    right = b.one("Round", b.mate(t, *t.shape)) if op == "Equal" and b.opset >= 11 else partner(b, t)
    b.float(b.one(op, left, right), t, t.shape)


def holds(b: Builder, t: Tensor) -> str:
    return b.one(b.rng.choice(("Less", "Greater")), t, partner(b, t))


def logical(b: Builder, op: str) -> None:
    t = b.pick()
    operands = [holds(b, t), *([] if op == "Not" else [holds(b, b.mate(t, *t.shape))])]
    b.float(b.one(op, *operands), t, t.shape)


def where(b: Builder, op: str) -> None:
    t = b.pick()
    b.op(op, [holds(b, t), t, partner(b, t)], t, t.shape)


def odd(b: Builder, op: str) -> None:
    """Infinities or NaNs where a comparison fails."""
    t = b.pick()
    failed = b.cast(holds(b, t), TensorProto.FLOAT)
    b.float(b.one(op, b.one("Div", failed if op == "IsNaN" else b.fixed(1), failed)), t, t.shape)


def whole(b: Builder, t: Tensor, kind: int = TensorProto.INT32) -> str:
    """Integers of 0 to 40 or so."""
    return b.cast(b.one("Mul", b.one("Abs", t), b.fixed(10)), kind)


def bitwise(b: Builder, op: str) -> None:
    t = b.pick()
    mask = b.const(np.random.default_rng(b.rng.randrange(99)).integers(0, 31, t.shape[-1]), np.int32)
    operands = [whole(b, t)]
    if op != "BitwiseNot":
        operands.append(mask if b.rng.random() < 0.5 else whole(b, b.mate(t, *t.shape)))
    b.op("Mul", [b.cast(b.one(op, *operands), TensorProto.FLOAT), b.fixed(0.05)], t, t.shape)


def bit_shift(b: Builder, op: str) -> None:
    t = b.pick()
    by = b.const(np.arange(t.shape[-1]) % 3, np.uint64)
    moved = b.one(op, whole(b, t, TensorProto.UINT64), by, direction=b.rng.choice(("LEFT", "RIGHT")))
    b.op("Mul", [b.cast(moved, TensorProto.FLOAT), b.fixed(0.05)], t, t.shape)


def bit_cast(b: Builder, op: str) -> None:
    t = b.pick()
    b.op(op, [b.one(op, t, to=TensorProto.INT32)], t, t.shape, to=TensorProto.FLOAT)


def gated(b: Builder, op: str) -> None:
    t = b.pick()
    b.op(op, [t, b.mate(t, *t.shape)], t, t.shape)


TABLE: Moves = {
    **moves("Abs Atan Cos Elu Identity LeakyRelu Neg Relu Selu Sigmoid Sin Softplus Softsign Tanh HardSigmoid", unary),
    **moves("Asinh Sign Erf Shrink Ceil Floor", unary, since=9),
    **moves("Celu", unary, since=12),
    **moves("Round", unary, since=11),
    **moves("ThresholdedRelu", unary, since=10),
    **moves("HardSwish", unary, since=14),
    **moves("Mish", unary, since=18),
    **moves("Gelu", unary, since=20),
    **moves("Swish", unary, since=24, until=24),
    **moves("Acos Asin Tan Exp", within(narrow)),
    **moves("Atanh Sinh Cosh", within(narrow), since=9),
    **moves("Acosh", within(above(1.2)), since=9),
    **moves("Log Sqrt Reciprocal", within(above(0.5))),
    **moves("Add", add, links=3),
    **moves("Mul Sub", binary, links=2),
    **moves("Max Min Mean Sum", several, since=8),
    **moves("Div", divided),
    **moves("Mod", divided, since=10),
    **moves("Pow", power),
    **moves("PRelu", prelu),
    **moves("Clip", clip),
    **moves("Dropout", dropout),
    **moves("Cast", cast),
    **moves("CastLike", cast_like, since=15),
    **moves("Greater Less", compared, since=9),
    **moves("Equal", compared, since=11),
    **moves("GreaterOrEqual LessOrEqual", compared, since=12),
    **moves("And Or Xor Not", logical, since=9),
    **moves("Where", where, since=9),
    **moves("IsNaN", odd, since=9),
    **moves("IsInf", odd, since=10),
    **moves("BitwiseAnd BitwiseOr BitwiseXor BitwiseNot", bitwise, since=18),
    **moves("BitShift", bit_shift, since=11),
    **moves("BitCast", bit_cast, since=26, runs=False),
    **moves("SwiGLU", gated, since=28, runs=False),
}
