"""Operators that pick entries by number, and operators that make tensors or tell sizes."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.random_graphs.builder import Builder, Tensor, replaced
from tests.random_graphs.movement import image
from tests.random_graphs.moves import Moves, moves


def gather(b: Builder, op: str) -> None:
    """Runs in another order with an overlap at times, one entry, a matrix of entries, rows of a table."""
    t = b.pick()
    at, way = b.axis(t), b.rng.choice(("runs", "runs", "one", "matrix", "table"))
    n = t.shape[at]
    if way == "one" and t.rank > 1:
        number = b.rng.choice((b.rng.randrange(n), -1))
        b.op(op, [t, b.const(number, np.int64)], t, replaced(t.shape, at), axis=t.at(at))
    elif way == "matrix" and t.rank < 4:
        index = b.const(np.arange(2 * n).reshape(2, n) % n, np.int64)
        b.op(op, [t, index], t, replaced(t.shape, at, 2, n), axis=t.at(at))
    elif way == "table" and t.rank < 4:
        places = b.one("ArgMax", t, axis=t.at(at), keepdims=0)
        b.op(op, [b.weight(n, 4, fan=1), places], t, [*replaced(t.shape, at), 4])
    else:
        cut = b.rng.randrange(n)
        index = [*range(cut, n), *range(min(n, cut + b.rng.choice((0, 0, 1))))]
        index = [i - n for i in index] if b.opset >= 11 and b.rng.random() < 0.2 else index
        b.op(op, [t, b.ints(*index)], t, replaced(t.shape, at, len(index)), axis=t.at(at))


def ranking(b: Builder, t: Tensor, at: int) -> tuple[str, tuple[int, ...]]:
    """Places of the largest entries along an axis, which are all different, and the shape of them."""
    k = b.rng.randint(1, t.shape[at])
    operands, options = ([t], {"k": k}) if b.opset < 10 else ([t, b.fixed([k], np.int64)], {})
    return b.raw("TopK", operands, outputs=2, axis=t.at(at), **options)[1], replaced(t.shape, at, k)


def gather_elements(b: Builder, op: str) -> None:
    t = b.pick()
    at = b.axis(t)
    places, shape = ranking(b, b.mate(t, *t.shape), at)
    b.op(op, [t, places], t, shape, axis=t.at(at))


def scatter_elements(b: Builder, op: str) -> None:
    t = b.pick()
    at = b.axis(t)
    places, shape = ranking(b, t, at)
    b.op(op, [t, places, b.mate(t, *shape)], t, t.shape, axis=t.at(at))


def to_front(b: Builder, t: Tensor, at: int) -> tuple[str, list[int]]:
    """The tensor with a sample axis in front, and the permutation back."""
    order = [t.at(at), *(k for k in range(t.at(t.rank)) if k != t.at(at))]
    return b.one("Transpose", t, perm=order), [order.index(k) for k in range(len(order))]


def gather_nd(b: Builder, op: str) -> None:
    t = b.pick(fits=lambda t: max(t.shape) > 1)
    at = b.axis(t)
    places = b.const([[k] for k in b.rng.sample(range(t.shape[at]), -(-t.shape[at] // 2))], np.int64)
    turned, back = to_front(b, t, at)
    b.op("Transpose", [b.one(op, turned, places)], t, replaced(t.shape, at, -(-t.shape[at] // 2)), perm=back)


def scatter_nd(b: Builder, op: str) -> None:
    t = b.pick(fits=lambda t: max(t.shape) > 1)
    at = b.axis(t)
    count = -(-t.shape[at] // 2)
    places = b.const([[k] for k in b.rng.sample(range(t.shape[at]), count)], np.int64)
    turned, back = to_front(b, t, at)
    updates, _ = to_front(b, b.mate(t, *replaced(t.shape, at, count)), at)
    b.op("Transpose", [b.one(op, turned, places, updates)], t, t.shape, perm=back)


def compress(b: Builder, op: str) -> None:
    t = b.pick(fits=lambda t: t.rank > 1)
    at = b.axis(t)
    chosen = [k % 2 == 0 for k in range(t.shape[at])]
    b.op(op, [t, b.const(chosen, np.bool_)], t, replaced(t.shape, at, sum(chosen)), axis=t.at(at))


def ordered(b: Builder, op: str) -> None:
    """CumSum, CumProd."""
    t = b.pick(fits=lambda t: t.rank > 1)
    options = {"exclusive": b.rng.randint(0, 1), "reverse": b.rng.randint(0, 1)}
    b.op(op, [t, b.const(t.at(b.axis(t)), np.int64)], t, t.shape, **options)


def trilu(b: Builder, op: str) -> None:
    t = b.pick(fits=lambda t: t.rank > 1)
    b.op(op, [t, *([b.fixed(1, np.int64)] if b.rng.random() < 0.4 else [])], t, t.shape, upper=b.rng.randint(0, 1))


def reverse_sequence(b: Builder, op: str) -> None:
    """As many steps of each sample as a vector says."""
    t = b.pick(fits=lambda t: t.rank > 1 and t.shape[0] > 1, batched=True)
    lengths = b.one("Expand", b.fixed([2], np.int64), b.size_of(t))
    b.op(op, [t, lengths], t, t.shape, time_axis=1, batch_axis=0)


def grid_sample(b: Builder, op: str) -> None:
    t = image(b)
    grid = b.one("Tanh", b.mate(t, 2, 3, 2))
    modes = ("linear", "nearest") if b.opset >= 20 else ("bilinear", "nearest")
    b.op(op, [t, grid], t, [t.shape[0], 2, 3], mode=b.rng.choice(modes), padding_mode=b.rng.choice(("zeros", "border")))


def shape(b: Builder, op: str) -> None:
    """Sizes as numbers, as the target of a Reshape, within a longer calculation."""
    t = b.pick()
    way = b.rng.choice(("number", "target", "part"))
    if way == "target":
        b.op("Reshape", [b.mate(t, t.size), b.one(op, t)], t, t.shape)
    elif way == "part" and b.opset >= 15:
        last = b.cast(b.one(op, t, start=-1), TensorProto.FLOAT)
        b.op("Div", [t, b.one("Sqrt", last)], t, t.shape)
    elif len(t.lead) == 1:
        first = b.one("Gather", b.one(op, t), b.fixed([0], np.int64))
        target = b.one("Concat", first, b.ints(*t.shape[::-1]), axis=0)
        b.op("Reshape", [t, target], t, t.shape[::-1])
    else:
        whole = b.cast(b.one(op, t), TensorProto.FLOAT)
        b.op("Mul", [t, b.one("ReduceMean", whole, keepdims=0)], t, t.shape)


def size(b: Builder, op: str) -> None:
    """A mean by hand."""
    t = b.pick()
    summed = b.total(t, [t.at(k) for k in range(t.rank)], keepdims=1)
    count = b.cast(b.one(op, t), TensorProto.FLOAT)
    b.op("Div", [b.one("Sub", t, summed), count], t, t.shape)


def constant_of_shape(b: Builder, op: str) -> None:
    t = b.pick()
    measured = b.one("Shape", b.mate(t, *t.shape)) if b.rng.random() < 0.5 else b.ints(*[1] * len(t.lead), *t.shape)
    value = TensorProto(dims=[1], data_type=TensorProto.FLOAT, float_data=[0.5])
    b.op("Add", [t, b.one(op, measured, value=value)], t, t.shape)


def constant(b: Builder, op: str) -> None:
    t = b.pick()
    numbers = [float(v) for v in b.noise(t.shape[-1])]
    made = b.one(op, value_floats=numbers) if b.opset >= 12 else b.fixed(numbers)
    b.op("Add", [t, made], t, t.shape)


def positions(b: Builder, op: str) -> None:
    t = b.pick()
    at = b.axis(t)
    end = b.squeeze(b.size_of(t, t.at(at)), 0) if b.rng.random() < 0.5 else b.fixed(t.shape[at], np.int64)
    counted = b.cast(b.one(op, b.fixed(0, np.int64), end, b.fixed(1, np.int64)), TensorProto.FLOAT)
    placed = b.unsqueeze(counted, *range(1, t.rank - at)) if t.rank - at > 1 else counted
    b.op("Mul", [t, placed], t, t.shape)


def window(b: Builder, op: str) -> None:
    t = b.pick(fits=lambda t: t.shape[-1] > 2)  # the window of two is zero but for rounding
    b.op("Mul", [t, b.one(op, b.fixed(t.shape[-1], np.int64), periodic=b.rng.randint(0, 1))], t, t.shape)


def mel(b: Builder, op: str) -> None:
    t = b.shaped(9)
    numbers = [b.fixed(v, np.int64) for v in (4, 16, 8192)]
    b.op("MatMul", [t, b.one(op, *numbers, b.fixed(0.0), b.fixed(4096.0))], t, [4])


def tensor_scatter(b: Builder, op: str) -> None:
    t = b.pick(2, batched=True)
    longer = b.mate(t, t.shape[0] + 2, t.shape[1])
    b.op(op, [longer, t], t, longer.shape)


def transform(b: Builder, op: str) -> None:
    """DFT along an axis; real and imaginary parts are added up."""
    t = b.pick(fits=lambda t: t.rank > 1)
    at = b.axis(t)
    wide = b.unsqueeze(t, t.at(t.rank))
    operands, options = ([], {"axis": t.at(at)}) if b.opset < 20 else (["", b.fixed(t.at(at), np.int64)], {})
    b.add(b.total(b.one(op, wide, *operands, **options), [t.at(t.rank)]), t.lead, t.shape)


def determinant(b: Builder, op: str) -> None:
    t = b.shaped(*[b.rng.choice((2, 3))] * 2) if b.rng.random() < 0.4 else b.shaped(4, 2, 2)
    made = b.one(op, t)
    b.add(b.unsqueeze(made, len(t.lead)) if t.rank == 2 else made, t.lead, t.shape[:-2] or (1,))


TABLE: Moves = {
    **moves("Gather", gather, links=1),
    **moves("GatherElements", gather_elements, since=11),
    **moves("ScatterElements", scatter_elements, since=11),
    **moves("Scatter", scatter_elements, since=9, until=10),
    **moves("GatherND", gather_nd, since=11),
    **moves("ScatterND", scatter_nd, since=11),
    **moves("Compress", compress, since=9),
    **moves("CumSum", ordered, since=11),
    **moves("CumProd", ordered, since=26, runs=False),
    **moves("Trilu", trilu, since=14),
    **moves("ReverseSequence", reverse_sequence, since=10),
    **moves("GridSample", grid_sample, since=16),
    **moves("Shape", shape),
    **moves("Size", size),
    **moves("ConstantOfShape", constant_of_shape, since=9),
    **moves("Constant", constant),
    **moves("Range", positions, since=11),
    **moves("BlackmanWindow HammingWindow HannWindow", window, since=17),
    **moves("MelWeightMatrix", mel, since=17),
    **moves("TensorScatter", tensor_scatter, since=24, runs=False),
    **moves("DFT", transform, since=17),
    **moves("Det", determinant, since=11),
}
