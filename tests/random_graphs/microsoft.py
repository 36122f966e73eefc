"""ONNX Runtime's own operators."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from onnx import TensorProto

from tests.random_graphs.builder import MICROSOFT, SIZES, Builder, Tensor, replaced
from tests.random_graphs.indexing import gather_nd, trilu
from tests.random_graphs.movement import image
from tests.random_graphs.moves import Moves, moves
from tests.random_graphs.products import grouped, kernel
from tests.random_graphs.sequences import heads


def unary(b: Builder, op: str) -> None:
    t = b.pick()
    options = {"alpha": 0.7} if not op.endswith("Gelu") or op.endswith("QuickGelu") else {}
    b.op(op, [t], t, t.shape, **options)


def biased(b: Builder, op: str) -> None:
    t = b.pick()
    bias = [b.weight(t.shape[-1], fan=1)] if op.endswith("BiasGelu") or b.rng.random() < 0.6 else []
    b.op(op, [t, *bias], t, t.shape)


def gated_add(b: Builder, op: str) -> None:
    t = b.pick()
    gate = b.mate(t, *t.shape[:-1], 1)
    b.op(op, [t, b.mate(t, *t.shape), gate], t, t.shape)


def skip_norm(b: Builder, op: str) -> None:
    """With the sum as a second result at times."""
    t = b.pick(2, fits=lambda t: t.shape[-1] > 2, batched=True)
    c, simple = t.shape[-1], "Simplified" in op
    more = [] if simple else [b.weight(c, fan=1)]
    more += [b.weight(c, fan=1)] if b.rng.random() < 0.5 else []
    operands = [t, b.mate(t, *t.shape), b.weight(c, fan=1), *more]
    made = b.raw(op, operands, outputs=4 if b.rng.random() < 0.4 else 1, epsilon=0.1)
    if len(made) == 4:
        for k in (1, 2):
            b.nodes[-1].output[k] = ""
        b.add(made[3], t.lead, t.shape)
    b.add(made[0], t.lead, t.shape)


def embed(b: Builder, op: str) -> None:
    """Ids are the places of the largest entries."""
    t = b.pick(2, fits=lambda t: t.shape[1] > 1, batched=True)
    (steps, rows), c = t.shape, b.rng.choice(SIZES[1:])
    ids = b.cast(b.one("ArgMax", t, axis=2, keepdims=0), TensorProto.INT32)
    segment = ["", ""] if b.rng.random() < 0.5 else [ids, b.plain(rows, c, fan=1)]
    tables = [b.plain(rows, c, fan=1), b.plain(steps + 1, c, fan=1), segment[1]]
    operands = [ids, segment[0], *tables, b.weight(c, fan=1), b.weight(c, fan=1)]
    b.add(b.raw(op, operands, outputs=2, epsilon=0.1)[0], t.lead, [steps, c])


def fused_conv(b: Builder, op: str) -> None:
    t = image(b)
    groups, n = grouped(b, t.shape[0])
    extents, options, sizes = kernel(b, t)
    operands = [t, b.plain(n, t.shape[0] // groups, *extents, fan=t.shape[0]), b.plain(n, fan=1)]
    operands += [b.mate(t, n, *sizes)] if b.rng.random() < 0.4 else []
    b.op(op, operands, t, [n, *sizes], group=groups, activation=b.rng.choice(("Relu", "Sigmoid", "Tanh")), **options)


def fused_gemm(b: Builder, op: str) -> None:
    t, n = b.batched(b.flat(b.pick())), b.rng.choice(SIZES)
    operands = [t, b.weight(t.size, n), b.weight(n, fan=1)]
    b.op(op, operands, t, [n], activation="LeakyRelu", activation_alpha=0.1, alpha=0.7)


def fused_matmul(b: Builder, op: str) -> None:
    """Weights or data, either of them transposed."""
    t, n = b.batched(b.pick(2)), b.rng.choice(SIZES)
    (m, k), alpha = t.shape, b.rng.choice((1.0, 0.5))
    way = b.rng.choice(("weight", "turned weight", "data", "turned data"))
    if way == "weight":
        b.op(op, [t, b.weight(k, n)], t, [m, n], alpha=alpha)
    elif way == "turned weight":
        b.op(op, [t, b.weight(n, k, fan=k)], t, [m, n], transB=1, alpha=alpha)
    elif way == "data":
        b.op(op, [t, b.mate(t, n, k)], t, [m, n], transB=1, alpha=alpha)
    else:
        b.op(op, [t, b.mate(t, m, n)], t, [k, n], transA=1, alpha=alpha)


def attention(b: Builder, op: str) -> None:
    t = b.pick(2, batched=True)
    count, size, value = b.rng.choice((1, 2)), *b.rng.choices((2, 3, 4), k=2)
    sizes = [count * size, count * size, count * value]
    operands = [t, b.plain(t.shape[1], sum(sizes), fan=t.shape[1]), b.plain(sum(sizes), fan=4)]
    options: dict[str, Any] = {"unidirectional": 1} if b.rng.random() < 0.3 else {}
    options |= {"scale": 0.4} if b.rng.random() < 0.3 else {}
    if value != size or b.rng.random() < 0.5:
        options |= {"qkv_hidden_sizes": sizes}
    b.op(op, operands, t, [t.shape[0], sizes[2]], num_heads=count, **options)


def multi_head(b: Builder, op: str) -> None:
    t = b.pick(2, batched=True)
    count, size, value, steps = b.rng.choice((1, 2)), *b.rng.choices((2, 3, 4), k=2), t.shape[0]
    parts = [heads(b, t, count, n) for n in (size, size, value)]
    bias = [b.plain(count * (2 * size + value), fan=4)] if b.rng.random() < 0.4 else []
    if not bias and b.rng.random() < 0.4:
        bias = ["", "", b.const(b.noise(1, b.rng.choice((1, count)), steps, steps))]
    options = {"scale": 0.4} if b.rng.random() < 0.4 else {}
    b.op(op, [*parts, *bias], t, [steps, count * value], num_heads=count, **options)


def group_query(b: Builder, op: str) -> None:
    """16 channels in each head; queries, keys and values apart or in one."""
    t = b.pick(2, batched=True)
    groups, per_group, steps = b.rng.choice((1, 2)), b.rng.choice((1, 2)), t.shape[0]
    count = groups * per_group
    lengths = b.one("Expand", b.fixed([steps - 1], np.int32), b.size_of(t))
    total = b.fixed(steps, np.int32)
    if b.rng.random() < 0.6:
        parts: list[Tensor | str] = [heads(b, t, n, 16) for n in (count, groups, groups)]
    else:
        parts = [heads(b, t, count + 2 * groups, 16), "", ""]
    options: dict[str, Any] = {"scale": 0.3} if b.rng.random() < 0.4 else {}
    operands = [*parts, "", "", lengths, total]
    b.op(op, operands, t, [steps, count * 16], num_heads=count, kv_num_heads=groups, **options)


def rotary(b: Builder, op: str) -> None:
    t = b.pick(2, batched=True)
    count, pairs, steps = b.rng.choice((1, 2)), b.rng.choice((1, 2, 3)), t.shape[0]
    x = heads(b, t, count, 2 * pairs)
    tables = [b.plain(steps + 2, pairs, fan=1) for _ in range(2)]
    options = {"interleaved": b.rng.randint(0, 1)}
    b.op(op, [x, b.fixed([0], np.int64), *tables], t, x.shape, **options)


def mixture(b: Builder, op: str) -> None:
    t = b.batched(b.flat(b.pick()))
    experts, c, inner = 3, t.size, b.rng.choice(SIZES)
    scores = b.one("MatMul", t, b.plain(c, experts))
    weights = [b.plain(experts, inner, c, fan=c), b.plain(experts, inner, fan=1)]
    weights += [b.plain(experts, c, inner, fan=inner), b.plain(experts, c, fan=1)]
    b.op(op, [t, scores, *weights], t, t.shape, k=2, activation_type=b.rng.choice(("relu", "gelu", "silu")))


def distances(b: Builder, op: str) -> None:
    t = b.batched(b.flat(b.pick()))
    n = b.rng.choice(SIZES)
    b.op(op, [t, b.plain(n, t.size, fan=1)], t, [n], metric=b.rng.choice(("euclidean", "sqeuclidean")))


def inverse(b: Builder, op: str) -> None:
    """Of matrices that are near to the identity."""
    t = b.shaped(*b.rng.choice(((2, 2), (3, 3), (3, 2, 2))))
    small = b.one("Mul", b.one("Tanh", t), b.fixed(0.2))
    b.op(op, [b.one("Add", small, b.fixed(np.eye(t.shape[-1])))], t, t.shape)


def pad(b: Builder, op: str) -> None:
    t = b.pick()
    at = b.axis(t)
    pads = [0] * 2 * (len(t.lead) + t.rank)
    pads[t.at(at)], pads[t.at(at) + len(pads) // 2] = 1, 2
    b.op(op, [t, b.ints(*pads), b.fixed(0.5)], t, replaced(t.shape, at, t.shape[at] + 3))


def grid_sample(b: Builder, op: str) -> None:
    t = image(b)
    grid = b.one("Tanh", b.mate(t, 2, 3, 2))
    b.op(op, [t, grid], t, [t.shape[0], 2, 3], mode=b.rng.choice(("bilinear", "nearest")))


_ROWS = {
    **moves("Gelu QuickGelu ScaledSiLU", unary, domain=MICROSOFT),
    **moves("BiasGelu FastGelu", biased, domain=MICROSOFT),
    **moves("GatedAdd", gated_add, domain=MICROSOFT),
    **moves("SkipLayerNormalization SkipSimplifiedLayerNormalization", skip_norm, domain=MICROSOFT),
    **moves("EmbedLayerNormalization", embed, domain=MICROSOFT),
    **moves("FusedConv", fused_conv, domain=MICROSOFT),
    **moves("FusedGemm", fused_gemm, domain=MICROSOFT),
    **moves("FusedMatMul TransposeMatMul", fused_matmul, domain=MICROSOFT),
    **moves("Attention", attention, domain=MICROSOFT),
    **moves("MultiHeadAttention", multi_head, domain=MICROSOFT),
    **moves("GroupQueryAttention", group_query, domain=MICROSOFT),
    **moves("RotaryEmbedding", rotary, domain=MICROSOFT),
    **moves("MoE", mixture, domain=MICROSOFT),
    **moves("CDist", distances, domain=MICROSOFT),
    **moves("Inverse", inverse, domain=MICROSOFT),
    **moves("Pad", pad, domain=MICROSOFT),
    **moves("GridSample", grid_sample, domain=MICROSOFT),
    **moves("Trilu", trilu, domain=MICROSOFT),
    **moves("GatherND", gather_nd, domain=MICROSOFT),
}
TABLE: Moves = {name: replace(move, since=13) for name, move in _ROWS.items()}
