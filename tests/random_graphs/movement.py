"""Operators that move entries: reshapes, concatenation, cutting, padding, repetition."""

from __future__ import annotations

from tests.random_graphs.builder import SIZES, Builder, Tensor, replaced
from tests.random_graphs.moves import Moves, moves


def regroup(b: Builder, op: str) -> None:
    """Split an axis in two, or join two."""
    t = b.pick(fits=lambda t: t.rank > 1 or t.size in (4, 6, 8, 12))
    at = b.axis(t)
    divisors = [n for n in range(2, t.shape[at]) if t.shape[at] % n == 0]
    if divisors and t.rank < 4 and (t.rank == 1 or b.rng.random() < 0.6):
        inner = b.rng.choice(divisors)
        b.reshape(t, replaced(t.shape, at, t.shape[at] // inner, inner))
    elif t.rank > 1:
        at = min(at, t.rank - 2)
        b.reshape(t, (*t.shape[:at], t.shape[at] * t.shape[at + 1], *t.shape[at + 2 :]))


def flatten(b: Builder, op: str) -> None:
    t = b.batched(b.pick())
    b.op(op, [t], t, [t.size], axis=1 if t.rank == 1 or b.opset < 11 else b.rng.choice((1, -t.rank)))


def unsqueeze(b: Builder, op: str) -> None:
    t = b.pick(fits=lambda t: t.rank < 4)
    at = b.rng.randint(0, t.rank)
    made = b.unsqueeze(t, b.rng.choice((t.at(at), at - t.rank - 1) if b.opset >= 11 else (t.at(at),)))
    b.add(made, t.lead, (*t.shape[:at], 1, *t.shape[at:]))


def squeeze(b: Builder, op: str) -> None:
    t = b.pick(fits=lambda t: t.rank < 4)
    at = b.rng.randint(0, t.rank)
    wide = b.one("Relu", b.unsqueeze(t, t.at(at)))
    b.add(b.squeeze(wide, t.at(at)), t.lead, t.shape)


def transpose(b: Builder, op: str) -> None:
    t = b.pick(fits=lambda t: t.rank > 1)
    perm = list(range(t.rank))
    b.rng.shuffle(perm)
    b.op(op, [t], t, [t.shape[p] for p in perm], perm=[*range(len(t.lead)), *(t.at(p) for p in perm)])


def concat(b: Builder, op: str) -> None:
    t = b.pick()
    at = b.axis(t)
    alike = [o for o in b.pool if o.lead == t.lead and o.rank == t.rank]
    found = [o for o in alike if replaced(o.shape, at) == replaced(t.shape, at)]
    parts = [t, *b.rng.choices(found, k=b.rng.choice((0, 1, 1, 1, 2)))]
    b.rng.shuffle(parts)
    b.op(op, parts, t, replaced(t.shape, at, sum(p.shape[at] for p in parts)), axis=t.at(at))


def split(b: Builder, op: str) -> None:
    t = b.pick(fits=lambda t: max(t.shape) > 2)
    at = max(range(t.rank), key=lambda k: t.shape[k])
    n = t.shape[at]
    cut = b.rng.randint(1, n - 1)
    if n % 2 == 0 and b.rng.random() < 0.4:
        sizes, options, operands = [n // 2, n // 2], {}, []
        options = {"num_outputs": 2} if b.opset >= 18 else {}
    elif b.opset >= 18 and b.rng.random() < 0.5:
        sizes, options, operands = [-(-n // 2), n // 2], {"num_outputs": 2}, []
    elif b.opset < 13:
        sizes, options, operands = [cut, n - cut], {"split": [cut, n - cut]}, []
    else:
        sizes, options, operands = [cut, n - cut], {}, [b.ints(cut, n - cut)]
    for name, size in zip(b.raw(op, [t, *operands], outputs=2, axis=t.at(at), **options), sizes, strict=True):
        b.add(name, t.lead, replaced(t.shape, at, size))


def cut(b: Builder, op: str) -> None:
    """Both parts of an axis, or every second entry."""
    t = b.pick(fits=lambda t: max(t.shape) > 1)
    at = max(range(t.rank), key=lambda k: t.shape[k])
    n = t.shape[at]
    if n % 2 == 0 and b.opset >= 10 and b.rng.random() < 0.3:
        for first in (0, 1):
            b.add(b.slice(t, t.at(at), first, 1 << 40, 2), t.lead, replaced(t.shape, at, n // 2))
        return
    where = b.rng.randint(1, n - 1)
    b.add(b.slice(t, t.at(at), 0, where), t.lead, replaced(t.shape, at, where))
    b.add(b.slice(t, t.at(at), where - n, 1 << 40), t.lead, replaced(t.shape, at, n - where))


def pad(b: Builder, op: str) -> None:
    """Constant padding anywhere, other modes along an axis that is long enough."""
    t = b.pick()
    at = b.axis(t)
    before, after = b.rng.choice(((1, 0), (0, 2), (1, 1)))
    mode = b.rng.choice(("constant", "constant", "edge", "reflect"))
    if mode == "reflect" and t.shape[at] < 3:
        mode = "constant"
    shape = replaced(t.shape, at, before + t.shape[at] + after)
    pads = [0] * 2 * (len(t.lead) + t.rank)
    pads[t.at(at)], pads[t.at(at) + len(pads) // 2] = before, after
    if b.opset < 11:
        b.op(op, [t], t, shape, pads=pads, mode=mode)
        return
    value = [b.fixed(0.5)] if mode == "constant" else [""]
    if b.opset >= 18 and b.rng.random() < 0.5:
        b.op(op, [t, b.ints(before, after), *value, b.ints(t.at(at))], t, shape, mode=mode)
    else:
        b.op(op, [t, b.ints(*pads), *value][: 3 if value != [""] else 2], t, shape, mode=mode)


def expand(b: Builder, op: str) -> None:
    """A new axis, repeated; by sizes or against a measured shape."""
    t = b.pick(fits=lambda t: t.rank < 4)
    at, times = b.rng.randint(0, t.rank), b.rng.choice((2, 3, 4))
    wide = b.unsqueeze(t, t.at(at))
    shape = [*t.shape[:at], times, *t.shape[at:]]
    if b.rng.random() < 0.3:
        target = b.one("Shape", b.mate(t, *shape))
    else:
        target = b.ints(*[1] * len(t.lead), *(n if k == at or b.rng.random() < 0.3 else 1 for k, n in enumerate(shape)))
    b.op(op, [wide, target], t, shape)


def tile(b: Builder, op: str) -> None:
    t = b.pick(fits=lambda t: t.size <= 100)
    at, times = b.axis(t), b.rng.choice((2, 3))
    repeats = [times if k == at else 1 for k in range(t.rank)]
    b.op(op, [t, b.ints(*[1] * len(t.lead), *repeats)], t, replaced(t.shape, at, times * t.shape[at]))


def image(b: Builder, channels: int = 0, size: int = 0) -> Tensor:
    """(N, C, H, W)"""
    if channels or size:
        return b.shaped(channels or b.rng.choice(SIZES), size or 3, size or 2, batched=True)
    return b.pick(3, fits=lambda t: min(t.shape[1:]) > 1, batched=True)


def depth_to_space(b: Builder, op: str) -> None:
    t = image(b, 4 * b.rng.choice((1, 2, 3)), 2)
    options = {"mode": b.rng.choice(("DCR", "CRD"))} if b.opset >= 11 else {}
    b.op(op, [t], t, [t.shape[0] // 4, 2 * t.shape[1], 2 * t.shape[2]], blocksize=2, **options)


def space_to_depth(b: Builder, op: str) -> None:
    t = image(b, 0, 2)
    b.op(op, [t], t, [4 * t.shape[0], t.shape[1] // 2, t.shape[2] // 2], blocksize=2)


def resize(b: Builder, op: str) -> None:
    """By scales, by sizes, by sizes of some axes."""
    t = image(b)
    mode = b.rng.choice(("nearest", "linear"))
    way = b.rng.choice(("scales", "axes") if b.opset >= 18 else ("scales",))
    shape = [t.shape[0], 2 * t.shape[1], 2 * t.shape[2]]
    if way == "scales":
        operands, options = ["", b.fixed([1, 1, 2, 2])], {}
    else:
        operands, options = ["", "", b.ints(*shape[1:])], {"axes": [2, 3]}
    b.op(op, [t, *operands], t, shape, mode=mode, **options)


def upsample(b: Builder, op: str) -> None:
    t = image(b)
    b.op(op, [t], t, [t.shape[0], 2 * t.shape[1], 2 * t.shape[2]], scales=[1.0, 1.0, 2.0, 2.0])


def center_crop_pad(b: Builder, op: str) -> None:
    t = b.pick(fits=lambda t: t.rank > 1)
    at, size = b.axis(t), b.rng.choice((2, 4, 5))
    b.op(op, [t, b.ints(size)], t, replaced(t.shape, at, size), axes=[t.at(at)])


TABLE: Moves = {
    **moves("Reshape", regroup, links=3),
    **moves("Flatten", flatten),
    **moves("Unsqueeze", unsqueeze),
    **moves("Squeeze", squeeze),
    **moves("Transpose", transpose, links=2),
    **moves("Concat", concat, links=3),
    **moves("Split", split, links=1),
    **moves("Slice", cut, links=1),
    **moves("Pad", pad),
    **moves("Expand", expand, since=8),
    **moves("Tile", tile),
    **moves("DepthToSpace", depth_to_space),
    **moves("SpaceToDepth", space_to_depth),
    **moves("Resize", resize, since=13),
    **moves("Upsample", upsample, until=8),
    **moves("CenterCropPad", center_crop_pad, since=18),
}
