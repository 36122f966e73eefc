"""Reductions, pools, normalisations."""

from __future__ import annotations

import numpy as np

from tests.random_graphs.builder import Builder, replaced
from tests.random_graphs.movement import image
from tests.random_graphs.moves import Moves, moves
from tests.random_graphs.pointwise import above, narrow
from tests.random_graphs.products import frame, kernel


def reduce(b: Builder, op: str) -> None:
    """Over one axis or several, kept or not."""
    t = b.pick()
    axes = sorted(b.rng.sample(range(t.rank), b.rng.choice((1, 1, min(2, t.rank)))))
    keep = b.rng.random() < 0.5
    if len(axes) == t.rank and not keep:
        keep = b.rng.random() < 0.8
    source = {"ReduceLogSum": above(0.5), "ReduceProd": narrow, "ReduceLogSumExp": narrow}.get(op, lambda b, t: t.name)
    shape = [1 if k in axes else n for k, n in enumerate(t.shape) if keep or k not in axes]
    since = 13 if op == "ReduceSum" else 18
    counted = [t.at(k) if b.opset < 11 or b.rng.random() < 0.7 else k - t.rank for k in axes]
    b.add(b.axes_op(op, source(b, t), counted, since, keepdims=int(keep)), t.lead, shape)


def arg(b: Builder, op: str) -> None:
    t = b.pick(fits=lambda t: t.rank > 1)
    at, keep = b.axis(t), b.rng.random() < 0.5
    made = b.one(op, t, axis=t.at(at), keepdims=int(keep))
    b.float(made, t, replaced(t.shape, at, *[1] * keep))


def top_k(b: Builder, op: str) -> None:
    t = b.pick(fits=lambda t: t.rank > 1)
    at = b.axis(t)
    k = b.rng.randint(1, t.shape[at])
    operands, options = ([t], {"k": k}) if b.opset < 10 else ([t, b.fixed([k], np.int64)], {})
    values, places = b.raw(op, operands, outputs=2, axis=t.at(at), **options)
    shape = replaced(t.shape, at, k)
    b.add(values, t.lead, shape)
    b.float(places, t, shape)


def pool(b: Builder, op: str) -> None:
    t = frame(b)
    extents, options, sizes = kernel(b, t)
    if op == "LpPool":
        options |= {"p": b.rng.choice((1, 2))}
    b.op(op, [t], t, [t.shape[0], *sizes], kernel_shape=extents, **options)


def global_pool(b: Builder, op: str) -> None:
    t = frame(b)
    b.op(op, [t], t, [t.shape[0], *[1] * (t.rank - 1)])


def regions(b: Builder, op: str) -> None:
    """Two regions of the first sample."""
    t = image(b, size=4)
    boxes = [[0, 0, 2, 2], [0.5, 0, 3, 2.5]]
    if op == "RoiAlign":
        operands, options = [t, b.fixed(boxes), b.fixed([0, 0], np.int64)], {"output_height": 2, "output_width": 2}
    else:
        operands, options = [t, b.fixed([[0, *box] for box in boxes])], {"pooled_shape": [2, 2]}
    b.add(b.raw(op, operands, **options)[0], [2], [t.shape[0], 2, 2])


def batch_norm(b: Builder, op: str) -> None:
    t = b.batched(b.pick())
    c = t.shape[0]
    operands = [b.weight(c, fan=1), b.weight(c, fan=1), b.plain(c, fan=1), b.positive(c)]
    b.op(op, [t, *operands], t, t.shape, epsilon=0.01)


def instance_norm(b: Builder, op: str) -> None:
    t = frame(b)
    c = t.shape[0]
    b.op(op, [t, b.weight(c, fan=1), b.weight(c, fan=1)], t, t.shape, epsilon=0.1)


def group_norm(b: Builder, op: str) -> None:
    t = image(b, b.rng.choice((4, 6, 8)))
    c = t.shape[0]
    groups = b.rng.choice([g for g in (1, 2, 3, 4, c) if c % g == 0])
    b.op(op, [t, b.weight(c, fan=1), b.weight(c, fan=1)], t, t.shape, epsilon=0.1, num_groups=groups)


def layer_norm(b: Builder, op: str) -> None:
    """Over the last axis or the last two; scale and bias of these axes."""
    t = b.pick(fits=lambda t: t.shape[-1] > 2)
    count = 2 if t.rank > 1 and b.rng.random() < 0.25 else 1
    lying = t.shape[-count:]
    biased = op == "LayerNormalization" and b.rng.random() < 0.6
    operands = [t, b.weight(*lying, fan=1), *([b.weight(*lying, fan=1)] if biased else [])]
    b.op(op, operands, t, t.shape, axis=-count, epsilon=0.1)
    b.valid &= op != "SimplifiedLayerNormalization" and (op != "LayerNormalization" or b.opset >= 17)


def mean_variance(b: Builder, op: str) -> None:
    """Of entries that differ: where all are the same, rounding makes the operator's variance negative."""
    t = b.pick(fits=lambda t: t.rank > 1 and t.shape[-1] > 2, batched=True)
    varied = b.one("Add", t, b.fixed(2 * b.noise(*t.shape)))
    b.op(op, [varied], t, t.shape, axes=b.rng.choice(([t.rank], [t.rank - 1, t.rank])))


def lp_norm(b: Builder, op: str) -> None:
    t = b.pick()
    b.op(op, [above(0.3)(b, t)], t, t.shape, axis=t.at(b.axis(t)), p=b.rng.choice((1, 2)))


def lrn(b: Builder, op: str) -> None:
    t = image(b)
    b.op(op, [t], t, t.shape, size=3, alpha=0.1)


def softmax(b: Builder, op: str) -> None:
    t = b.pick()
    b.op(op, [t], t, t.shape, axis=t.at(b.axis(t)))


def one_hot(b: Builder, op: str) -> None:
    """Of the place of the largest entry, along a new last axis or the first sample axis."""
    t = b.pick(fits=lambda t: t.rank < 4)
    at = b.axis(t)
    places = b.one("ArgMax", t, axis=t.at(at), keepdims=0)
    rest = replaced(t.shape, at)
    first = b.rng.random() < 0.4
    size = t.shape[at] + b.rng.choice((0, 1))
    made = b.one(op, places, b.fixed(size, np.int64), b.fixed([-0.5, 1.0]), axis=len(t.lead) if first else -1)
    b.add(made, t.lead, (size, *rest) if first else (*rest, size))


TABLE: Moves = {
    **moves("ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare", reduce),
    **moves("ReduceLogSum ReduceLogSumExp", reduce),
    **moves("ArgMax ArgMin", arg),
    **moves("TopK", top_k),
    **moves("MaxPool AveragePool LpPool", pool),
    **moves("GlobalAveragePool GlobalMaxPool", global_pool),
    **moves("GlobalLpPool", global_pool, until=21),
    **moves("RoiAlign", regions, since=16, until=21),
    **moves("MaxRoiPool", regions, until=21),
    **moves("BatchNormalization", batch_norm, since=9),
    **moves("InstanceNormalization", instance_norm),
    **moves("GroupNormalization", group_norm, since=21),
    **moves("LayerNormalization", layer_norm, since=17, links=1),
    **moves("RMSNormalization", layer_norm, since=23),
    **moves("SimplifiedLayerNormalization", layer_norm, until=26),
    **moves("MeanVarianceNormalization", mean_variance, since=9),
    **moves("LpNormalization", lp_norm),
    **moves("LRN", lrn),
    **moves("Softmax LogSoftmax Hardmax", softmax),
    **moves("OneHot", one_hot, since=9),
}
