"""Matrix products, convolutions, Einsum."""

from __future__ import annotations

from typing import Any

from tests.random_graphs.builder import SIZES, Builder, Tensor, replaced
from tests.random_graphs.movement import image
from tests.random_graphs.moves import Moves, moves


def matmul(b: Builder, op: str) -> None:
    """A weight on the right or left, a stack of weights, a vector, or data times data."""
    t = b.pick()
    way, size = b.rng.random(), b.rng.choice(SIZES)
    if way < 0.55:
        b.op(op, [t, b.weight(t.shape[-1], size)], t, replaced(t.shape, t.rank - 1, size))
    elif way < 0.65 and t.rank > 1:
        b.op(op, [b.weight(size, t.shape[-2], fan=t.shape[-2]), t], t, replaced(t.shape, t.rank - 2, size))
    elif way < 0.75 and t.rank > 1:
        stack = b.weight(*t.shape[:-2], t.shape[-1], size, fan=t.shape[-1])
        b.op(op, [t, stack], t, replaced(t.shape, t.rank - 1, size))
    elif way < 0.82:
        b.op(op, [t, b.weight(t.shape[-1])], t, t.shape[:-1])
    else:
        t = t if t.rank > 1 else b.pick(2)
        other = b.mate(t, *t.shape[:-2], b.rng.choice(SIZES[:4]), t.shape[-1])
        perm = [*range(t.at(t.rank - 2)), t.at(t.rank - 1), t.at(t.rank - 2)]
        turned = b.one("Transpose", other, perm=perm)
        b.op(op, [t, turned], t, replaced(t.shape, t.rank - 1, other.shape[-2]))


def gemm(b: Builder, op: str) -> None:
    t = b.batched(b.flat(b.pick()))
    size, turned = b.rng.choice(SIZES), b.rng.random() < 0.5
    shape = (size, t.size) if turned else (t.size, size)
    options: dict[str, Any] = {"transB": int(turned), "alpha": b.rng.choice((1.0, 0.5))}
    bias = [b.weight(*b.rng.choice(((size,), (1, size), (1,))), fan=1)] if b.opset < 11 or b.rng.random() < 0.7 else []
    if b.rng.random() < 0.2:
        left = b.one("Transpose", t, perm=[1, 0])
        b.op(op, [left, b.weight(*shape, fan=t.size), *bias], t, [size], transA=1, **options)
    else:
        b.op(op, [t, b.weight(*shape, fan=t.size), *bias], t, [size], **options)


def einsum(b: Builder, op: str) -> None:
    """One row per equation: what it is for, the operands' sample shapes, the result's."""
    t = b.batched(b.pick(2))
    (m, k), n = t.shape, b.rng.choice(SIZES)
    weight, other = b.weight(k, n), b.mate(t, n, k)
    rows: tuple[tuple[str, list[Any], list[int]], ...] = (
        ("bmk,kn->bmn", [t, weight], [m, n]),
        ("...k,kn->...n", [t, weight], [m, n]),
        ("bmk,bnk->bmn", [t, other], [m, n]),
        ("bmk,mkn->bn", [t, b.weight(m, k, n, fan=m * k)], [n]),
        ("bmk->bkm", [t], [k, m]),
        ("bmk->bm", [t], [m]),
        ("bmk,k->bmk", [t, b.weight(k, fan=1)], [m, k]),
        ("bm,bn->bmn", [b.mate(t, m), b.mate(t, n)], [m, n]),
        ("bmk,kn,bnk->bm", [t, weight, other], [m]),
    )
    equation, operands, shape = b.rng.choice(rows)
    b.op(op, operands, t, shape, equation=equation)


def kernel(b: Builder, t: Tensor) -> tuple[list[int], dict[str, Any], list[int]]:
    """Kernel, attributes and output sizes of a window over the axes behind the channels."""
    extents, out, strides, pads = [], [], [], []
    for n in t.shape[1:]:
        extents.append(k := b.rng.randint(1, min(n, 3)))
        strides.append(s := b.rng.choice((1, 1, 2)))
        pads.append(p := b.rng.choice((0, 0, 1)) if k > 1 else 0)
        out.append((n + 2 * p - k) // s + 1)
    return extents, {"strides": strides, "pads": pads * 2}, out


def frame(b: Builder) -> Tensor:
    """Channels and one to three axes of positions."""
    rank = b.rng.choice((1, 2, 2, 3))
    if rank == 2:
        return image(b)
    return b.pick(1 + rank, fits=lambda t: min(t.shape[1:]) > 1, batched=True)


def grouped(b: Builder, channels: int) -> tuple[int, int]:
    """Groups, output channels."""
    groups = b.rng.choice([1, 1, channels, *(g for g in (2, 3, 4) if channels % g == 0)])
    return groups, groups * b.rng.choice((1, 2, 3) if groups > 1 else SIZES)


def conv(b: Builder, op: str) -> None:
    t = frame(b)
    groups, out = grouped(b, t.shape[0])
    extents, options, sizes = kernel(b, t)
    if b.rng.random() < 0.2:
        options = {"auto_pad": "SAME_UPPER"}
        sizes = list(t.shape[1:])
    inner = t.shape[0] // groups
    bias = [b.weight(out, fan=1)] if b.rng.random() < 0.6 else []
    weight = b.weight(out, inner, *extents, fan=inner * len(extents))
    b.op(op, [t, weight, *bias], t, [out, *sizes], group=groups, **options)


def conv_transpose(b: Builder, op: str) -> None:
    t = frame(b)
    groups, out = grouped(b, t.shape[0])
    extents = [b.rng.randint(1, 2) for _ in t.shape[1:]]
    stride = b.rng.choice((1, 2))
    sizes = [(n - 1) * stride + k for n, k in zip(t.shape[1:], extents, strict=True)]
    bias = [b.weight(out, fan=1)] if b.rng.random() < 0.6 else []
    weight = b.weight(t.shape[0], out // groups, *extents)
    b.op(op, [t, weight, *bias], t, [out, *sizes], group=groups, strides=[stride] * len(extents))


def deform_conv(b: Builder, op: str) -> None:
    """Offsets and mask are data; channels in groups at times."""
    t = image(b, b.rng.choice((2, 4, 6)), 3)
    (c, height, width), groups = t.shape, b.rng.choice((1, 1, 2))
    out = groups * b.rng.choice((1, 2))
    h, w = height - 1, width - 1
    offsets = b.mate(t, 8, h, w)
    operands = [t, b.weight(out, c // groups, 2, 2, fan=c), offsets]
    if b.rng.random() < 0.5:
        operands += [b.weight(out, fan=1), b.mate(t, 4, h, w)]
    b.op(op, operands, t, [out, h, w], group=groups)


def causal_conv(b: Builder, op: str) -> None:
    t = b.pick(2, batched=True)
    extent = b.rng.choice((2, 3))
    operands = [t, b.weight(t.shape[0], 1, extent, fan=extent), b.weight(t.shape[0], fan=1)]
    if b.rng.random() < 0.5:
        operands.append(b.mate(t, t.shape[0], extent - 1).name)
    made, state = b.raw(op, operands, outputs=2)
    b.add(made, t.lead, t.shape)
    b.add(state, t.lead, [t.shape[0], extent - 1])


def col2im(b: Builder, op: str) -> None:
    c = b.rng.choice(SIZES[:4])
    t = b.shaped(4 * c, 4, batched=True)
    b.op(op, [t, b.ints(3, 3), b.ints(2, 2)], t, [c, 3, 3])


TABLE: Moves = {
    **moves("MatMul", matmul, links=5),
    **moves("Gemm", gemm, links=1),
    **moves("Einsum", einsum, since=12),
    **moves("Conv", conv, links=2),
    **moves("ConvTranspose", conv_transpose),
    **moves("DeformConv", deform_conv, since=19),
    **moves("CausalConvWithState", causal_conv, since=27, runs=False),
    **moves("Col2Im", col2im, since=18),
}
