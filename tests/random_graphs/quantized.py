"""Quantised operators of both domains: values are quantised before them and read back as floats behind them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from tests.random_graphs.builder import MICROSOFT, SIZES, Builder, Ref, Tensor, replaced
from tests.random_graphs.movement import image
from tests.random_graphs.moves import Moves, moves
from tests.random_graphs.pointwise import holds
from tests.random_graphs.products import grouped, kernel

STEP = 0.05  # of a scale: 8 bits reach from -6.4 to 6.4


def scale(b: Builder) -> str:
    """One scale for all; a Constant node, since a zero is none."""
    return b.fixed(STEP * b.rng.choice((1.0, 1.3, 0.7)))


def zero(b: Builder, signed: bool) -> str:
    return b.fixed(b.rng.choice((0, 3, -5)), np.int8) if signed else b.fixed(128, np.uint8)


def quantised(b: Builder, t: Ref, signed: bool = False) -> tuple[str, str, str]:
    """Integers, scale, zero point."""
    s, z = scale(b), zero(b, signed)
    return b.one("QuantizeLinear", t, s, z), s, z


def read(b: Builder, q: tuple[str, str, str], like: Tensor, shape: Any) -> Tensor:
    return b.op("DequantizeLinear", q, like, shape)


def integers(b: Builder, *shape: int, signed: bool = True) -> str:
    low, high, kind = (-60, 60, np.int8) if signed else (60, 190, np.uint8)
    return b.const(np.random.default_rng(b.rng.randrange(1 << 30)).integers(low, high, shape), kind)


def scales(b: Builder, count: int) -> str:
    """A positive scale for each of `count`, or for all of them."""
    many = b.rng.random() < 0.6
    return b.fixed(0.01 + 0.02 * np.abs(b.noise(count)) if many else 0.02)


def zeros_for(b: Builder, per: str, signed: bool = True) -> str:
    """Zero points of the shape of some scales."""
    known = next(n for n in b.nodes if n.output[0] == per).attribute[0].t
    return b.fixed(np.full(list(known.dims), 2 if signed else 120), np.int8 if signed else np.uint8)


def there_and_back(b: Builder, op: str) -> None:
    """One scale, one per index of an axis, or one per block."""
    t = b.pick()
    domain = op.rpartition(".")[0]
    pair = [f"{domain}.{k}".lstrip(".") for k in ("QuantizeLinear", "DequantizeLinear")]
    way, at = b.rng.choice(("one", "axis", "block")), b.axis(t)
    options: dict[str, Any] = {}
    operands = [scale(b), zero(b, b.rng.random() < 0.5)]
    if way == "axis" and b.opset >= 13:
        options = {"axis": t.at(at)}
        operands = [b.fixed(0.03 + 0.03 * np.abs(b.noise(t.shape[at]))), b.const(np.zeros(t.shape[at]), np.int8)]
    elif way == "block" and b.opset >= 21 and not domain and t.shape[at] % 2 == 0 and len(t.lead) == 1 and b.batch:
        options = {"axis": t.at(at), "block_size": 2}
        blocks = (b.batch, *replaced(t.shape, at, t.shape[at] // 2)) if t.lead[0] == b.batch else ()
        operands = [b.fixed(0.03 + 0.03 * np.abs(b.noise(*blocks)))] if blocks else operands
        options = options if blocks else {}
    q = b.one(pair[0], t, *operands, **options)
    b.op(pair[1], [q, *operands], t, t.shape, **options)


def dequantised_weight(b: Builder, op: str) -> None:
    """A product with 8-bit weights, a scale per output or for all."""
    t, n = b.pick(), b.rng.choice(SIZES)
    if b.opset < 13 or b.rng.random() < 0.3:
        return there_and_back(b, op)
    s = scales(b, n)
    w = b.one(op, integers(b, t.shape[-1], n), s, zeros_for(b, s), axis=1)
    b.op("MatMul", [t, w], t, replaced(t.shape, t.rank - 1, n))
    return None


def dynamic(b: Builder, t: Tensor) -> tuple[str, str, str]:
    q, s, z = b.raw("DynamicQuantizeLinear", [t], outputs=3)
    return q, s, z


def dynamic_quantise(b: Builder, op: str) -> None:
    t = b.pick()
    read(b, dynamic(b, t), t, t.shape)


def integer_product(b: Builder, op: str) -> None:
    """As dynamic quantisation writes it: product, Cast, times both scales."""
    if op == "MatMulInteger":
        t, n = b.pick(), b.rng.choice(SIZES)
        weight, options, shape = integers(b, t.shape[-1], n), {}, replaced(t.shape, t.rank - 1, n)
        point = b.const(np.zeros(n), np.int8) if b.rng.random() < 0.5 else b.fixed(0, np.int8)
    else:
        t = image(b)
        groups, n = grouped(b, t.shape[0])
        extents, options, sizes = kernel(b, t)
        weight = integers(b, n, t.shape[0] // groups, *extents, signed=False)
        options, shape, point = options | {"group": groups}, (n, *sizes), b.fixed(120, np.uint8)
    q, s, z = dynamic(b, t)
    made = b.cast(b.one(op, q, weight, z, point, **options), TensorProto.FLOAT)
    b.op("Mul", [made, b.one("Mul", s, b.fixed(0.01))], t, shape)


def qlinear_matmul(b: Builder, op: str) -> None:
    t, n = b.pick(), b.rng.choice(SIZES)
    q, w = quantised(b, t), scales(b, n)
    end = scale(b), zero(b, False)
    made = b.one(op, *q, integers(b, t.shape[-1], n), w, zeros_for(b, w), *end)
    read(b, (made, *end), t, replaced(t.shape, t.rank - 1, n))


LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # the channels, by Transpose


def qlinear_conv(b: Builder, op: str) -> None:
    """That of com.microsoft may have its channels last."""
    t, last = image(b), op.startswith(MICROSOFT) and b.rng.random() < 0.7
    groups, n = grouped(b, t.shape[0])
    extents, options, sizes = kernel(b, t)
    q, w = quantised(b, t), scales(b, n)
    end = scale(b), zero(b, False)
    weight = integers(b, n, t.shape[0] // groups, *extents)
    point = b.fixed(np.zeros(_entries(b, w)), np.int8)
    bias = [b.const(np.arange(n) * 7 - 10, np.int32)] if b.rng.random() < 0.5 else []
    options |= {"group": groups, "channels_last": 1} if last else {"group": groups}
    q = (b.one("Transpose", q[0], perm=LAST), *q[1:]) if last else q
    made = b.one(op, *q, weight, w, point, *end, *bias, **options)
    read(b, (b.one("Transpose", made, perm=FIRST) if last else made, *end), t, [n, *sizes])


def _entries(b: Builder, constant: str) -> list[int]:
    return list(next(n for n in b.nodes if n.output[0] == constant).attribute[0].t.dims)


# com.microsoft
def qlinear_binary(b: Builder, op: str) -> None:
    t = b.pick()
    left, right = quantised(b, t), quantised(b, b.mate(t, *t.shape))
    end = scale(b), zero(b, False)
    read(b, (b.one(op, *left, *right, *end), *end), t, t.shape)


def qlinear_where(b: Builder, op: str) -> None:
    t = b.pick()
    chosen, left, right = holds(b, t), quantised(b, t), quantised(b, b.mate(t, *t.shape))
    end = scale(b), zero(b, False)
    read(b, (b.one(op, chosen, *left, *right, *end), *end), t, t.shape)


def qlinear_unary(b: Builder, op: str) -> None:
    t = b.pick()
    options = {"alpha": 0.2} if op.endswith("LeakyRelu") else {}
    end = scale(b), zero(b, False)
    read(b, (b.one(op, *quantised(b, t), *end, **options), *end), t, t.shape)


def qlinear_softmax(b: Builder, op: str) -> None:
    t = b.pick()
    end = b.fixed(1 / 255), b.fixed(0, np.uint8)
    made = b.one(op, *quantised(b, t), *end, axis=t.at(b.axis(t)), opset=13)
    read(b, (made, *end), t, t.shape)


def qlinear_pool(b: Builder, op: str) -> None:
    t, last = image(b), b.rng.random() < 0.5
    extents, options, sizes = kernel(b, t)
    if op.endswith("GlobalAveragePool"):
        extents, options, sizes = [], {}, [1, 1]
    else:
        options |= {"kernel_shape": extents}
    q, end = quantised(b, t), (scale(b), zero(b, False))
    if last:
        turned = b.one("Transpose", q[0], perm=LAST)
        made = b.one("Transpose", b.one(op, turned, *q[1:], *end, channels_last=1, **options), perm=FIRST)
    else:
        made = b.one(op, *q, *end, **options)
    read(b, (made, *end), t, [t.shape[0], *sizes])


def nhwc_pool(b: Builder, op: str) -> None:
    t = image(b)
    extents, options, sizes = kernel(b, t)
    q = quantised(b, t)
    made = b.one(op, b.one("Transpose", q[0], perm=LAST), kernel_shape=extents, **options)
    read(b, (b.one("Transpose", made, perm=FIRST), *q[1:]), t, [t.shape[0], *sizes])


def qlinear_concat(b: Builder, op: str) -> None:
    t = b.pick()
    at = b.axis(t)
    parts = [quantised(b, t), quantised(b, b.mate(t, *t.shape))]
    end = scale(b), zero(b, False)
    made = b.one(op, *end, *(n for p in parts for n in p), axis=t.at(at))
    read(b, (made, *end), t, replaced(t.shape, at, 2 * t.shape[at]))


def dynamic_matmul(b: Builder, op: str) -> None:
    t, n = b.pick(), b.rng.choice(SIZES)
    s = scales(b, n)
    bias = [b.weight(n, fan=1)] if b.rng.random() < 0.5 else []
    b.op(op, [t, integers(b, t.shape[-1], n), s, zeros_for(b, s), *bias], t, replaced(t.shape, t.rank - 1, n))


def to_float(b: Builder, op: str) -> None:
    t, n = b.pick(), b.rng.choice(SIZES)
    (q, s, z), w = dynamic(b, t), scales(b, n)
    bias = [b.plain(n, fan=1)] if b.rng.random() < 0.5 else []
    operands = [q, integers(b, t.shape[-1], n), s, w, z, zeros_for(b, w), *bias]
    b.op(op, operands, t, replaced(t.shape, t.rank - 1, n))


def qgemm(b: Builder, op: str) -> None:
    t, n = b.batched(b.flat(b.pick())), b.rng.choice(SIZES)
    turned, w = b.rng.random() < 0.5, scales(b, n)
    end = scale(b), zero(b, False)
    weight = integers(b, *((n, t.size) if turned else (t.size, n)))
    bias = b.const(np.arange(n) * 9 - 20, np.int32) if b.rng.random() < 0.5 else ""
    made = b.one(op, *quantised(b, t), weight, w, zeros_for(b, w), bias, *end, transB=int(turned))
    read(b, (made, *end), t, [n])


def nbits(b: Builder, op: str) -> None:
    """Four or eight bits, blocks of 16 inputs."""
    t, n, bits = b.shaped(b.rng.choice((16, 32))), b.rng.choice(SIZES[:4]), b.rng.choice((4, 8))
    blocks = t.shape[0] // 16
    packed = b.const(np.random.default_rng(b.rng.randrange(99)).integers(0, 255, (n, blocks, 2 * bits)), np.uint8)
    per_block = b.fixed(0.01 + 0.01 * np.abs(b.noise(n, blocks)))
    bias = ["", "", b.plain(n, fan=1)] if b.rng.random() < 0.4 else []
    b.op(op, [t, packed, per_block, *bias], t, [n], K=t.shape[0], N=n, bits=bits, block_size=16)


def dynamic_lstm(b: Builder, op: str) -> None:
    t, h = b.pick(2, batched=True), b.rng.choice((2, 3, 4))
    d = b.rng.choice((1, 2))
    x = b.one("Transpose", t, perm=[1, 0, 2])
    weights = integers(b, d, t.shape[1], 4 * h), integers(b, d, h, 4 * h)
    bias = b.plain(d, 8 * h, fan=4) if b.rng.random() < 0.5 else ""
    numbers = [b.fixed(np.full(d, 0.01)), b.fixed(np.zeros(d), np.int8)] * 2
    direction = "bidirectional" if d == 2 else b.rng.choice(("forward", "reverse"))
    made = b.one(op, x, *weights, bias, "", "", "", "", *numbers, hidden_size=h, direction=direction)
    b.op("Transpose", [made], t, [t.shape[0], d, h], perm=[2, 0, 1, 3])


def quantised_attention(b: Builder, op: str) -> None:
    t = b.pick(2, batched=True)
    count, size = b.rng.choice((1, 2)), b.rng.choice((2, 3, 4))
    width = 3 * count * size
    (q, s, z), w = quantised(b, t), scales(b, width)
    bias = b.plain(width, fan=4)
    operands = [q, integers(b, t.shape[1], width), bias, s, w, "", z, zeros_for(b, w)]
    b.op(op, operands, t, [t.shape[0], count * size], num_heads=count)


TABLE: Moves = {
    **moves("QuantizeLinear", there_and_back, since=10),
    **moves("DequantizeLinear", dequantised_weight, since=10),
    **moves("DynamicQuantizeLinear", dynamic_quantise, since=11),
    **moves("MatMulInteger ConvInteger", integer_product, since=11),
    **moves("QLinearMatMul", qlinear_matmul, since=11),
    **moves("QLinearConv", qlinear_conv, since=10),
    **moves("QuantizeLinear DequantizeLinear", there_and_back, since=13, domain=MICROSOFT),
    **moves("QLinearAdd QLinearMul", qlinear_binary, since=13, domain=MICROSOFT),
    **moves("QLinearWhere", qlinear_where, since=13, domain=MICROSOFT),
    **moves("QLinearSigmoid QLinearLeakyRelu", qlinear_unary, since=13, domain=MICROSOFT),
    **moves("QLinearSoftmax", qlinear_softmax, since=13, domain=MICROSOFT),
    **moves("QLinearAveragePool QLinearGlobalAveragePool", qlinear_pool, since=13, domain=MICROSOFT),
    **moves("NhwcMaxPool", nhwc_pool, since=13, domain=MICROSOFT),
    **moves("QLinearConv", qlinear_conv, since=13, domain=MICROSOFT),
    **moves("QLinearConcat", qlinear_concat, since=13, domain=MICROSOFT),
    **moves("DynamicQuantizeMatMul", dynamic_matmul, since=13, domain=MICROSOFT),
    **moves("MatMulIntegerToFloat", to_float, since=13, domain=MICROSOFT),
    **moves("QGemm", qgemm, since=13, domain=MICROSOFT),
    **moves("MatMulNBits", nbits, since=13, domain=MICROSOFT),
    **moves("DynamicQuantizeLSTM", dynamic_lstm, since=13, domain=MICROSOFT),
    **moves("QAttention", quantised_attention, since=13, domain=MICROSOFT),
}
