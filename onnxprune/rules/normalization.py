"""Normalisations and softmax: per-channel parameters follow their channels; a normalised axis is read by statistics, or
frozen.
"""

from __future__ import annotations

from functools import partial

from onnxprune.dims import ONE, Expr, is_frozen
from onnxprune.errors import Barrier
from onnxprune.rules.rule import Axes, Node, Table


def batch_normalization(node: Node) -> None:
    """BatchNormalization (opset 1-15): scale, bias, mean, variance (C,) along axis 1; extra outputs are running
    statistics (C,).

    In training mode the statistics are taken over the other axes, which are frozen.
    """
    if not node.attr("spatial", 1):
        raise Barrier("barrier", "BatchNormalization with statistics for each position")
    x = node.axes(0)
    channel = x[1] if len(x) > 1 else ONE
    if node.attr("training_mode", 0):
        for e in [*x[:1], *x[2:]]:
            node.freeze(e, "normalised", "BatchNormalization in training mode")
    for i in range(1, 5):
        node.unify(node.axes(i)[0], channel)
    node.out(list(x))
    for k in range(1, len(node.outputs)):
        node.out([channel], k)


def instance_normalization(node: Node) -> None:
    """InstanceNormalization (opset 1-22): scale, bias (C,); statistics over the axes after the channels, per sample."""
    x = node.axes(0)
    for i in (1, 2):
        node.unify(node.axes(i)[0], x[1])
    for k in range(2, len(x)):
        node.read(0, k, "stats")
    node.out(list(x))


def layer_normalization(node: Node) -> None:
    """LayerNormalization (opset 17), RMSNormalization (opset 23), which ONNX Runtime calls
    SimplifiedLayerNormalization: statistics over the axes from `axis` on; scale and
    bias lie there.
    """
    x = node.axes(0)
    at = node.axis(-1)
    for i in range(1, len(node.inputs)):
        if node.has(i):
            node.broadcast([x, node.axes(i)])
    for k in range(at, len(x)):
        node.read(0, k, "stats")
    node.out(list(x))
    for k in range(1, len(node.outputs)):
        node.out([*x[:at], *[ONE] * (len(x) - at)], k)


def group_normalization(node: Node) -> None:
    """GroupNormalization: X (N, g*I, *S); scale and bias (g,) in opset 18, (g*I,) from 21; statistics per group."""
    x = node.axes(0)
    g = int(node.attr("num_groups"))
    groups, inner = node.space.factor(x[1], x[1].size // g)
    per_channel = node.opset >= 21
    for i in (1, 2):
        node.unify(node.axes(i)[0], x[1] if per_channel else groups)
    node.edit("num_groups", groups, scalar=True)
    node.read(0, 1, "stats", expr=inner)
    for k in range(2, len(x)):
        node.read(0, k, "stats")
    node.out(list(x))


def mean_variance_normalization(node: Node) -> None:
    """MeanVarianceNormalization (opset 9-13): statistics over `axes`, by default all but the channels. Its variance is
    that of the definition, E[x^2] - E[x]^2, which rounding makes negative where one entry is left: two always stay.
    """
    x = node.axes(0)
    axes = [k % len(x) for k in node.attr("axes", [0, 2, 3])]
    several = [k for k in axes if x[k].size > 1]
    if several and not any(is_frozen(x[k]) for k in several):
        node.freeze(x[several[-1]], "normalised", "MeanVarianceNormalization of one entry")
    for k in axes:
        node.read(0, k, "stats")
    node.out(list(x))


def along_axis(node: Node, default: int, code: str, since: int = 0) -> None:
    """Units of attribute `axis` are normalised together, which freezes that axis. Before `since` from there on."""
    x = node.axes(0)
    at = node.axis(1 if node.opset < since else default)
    for e in x[at:] if node.opset < since else x[at : at + 1]:
        node.freeze(e, code)
    node.out(list(x))


def lp_normalization(node: Node) -> None:
    """LpNormalization (opset 1-22): each entry is divided by the p-norm along `axis`."""
    node.read(0, node.axis(-1), "norm")
    node.out(list(node.axes(0)))


def lrn(node: Node) -> None:
    """LRN (opset 1-13): a window slides over the channels."""
    node.freeze(node.axes(0)[1], "spatial", "LRN's window slides over the channels")
    node.out(list(node.axes(0)))


def channels_only(node: Node, out: Expr | None = None, at: int = 1) -> Axes:
    """Axes (N, C, ...), or (N, ..., C) with `at` -1, of which only N and C go through; the rest is new and fixed."""
    x, shape = node.axes(0), node.out_shape()
    at %= len(x)
    through = {0: x[0], at: out or x[at]}
    for k, e in enumerate(x):
        if k not in through:
            node.freeze(e, "spatial")
    return [through[k] if k in through else node.fixed(n, "spatial") for k, n in enumerate(shape)]


TABLE: Table = {
    "BatchNormalization": batch_normalization,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "RMSNormalization": layer_normalization,
    "SimplifiedLayerNormalization": layer_normalization,
    "GroupNormalization": group_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "LpNormalization": lp_normalization,
    "LRN": lrn,
    "Softmax": partial(along_axis, default=-1, code="normalised", since=13),
    "LogSoftmax": partial(along_axis, default=-1, code="normalised", since=13),
    "Hardmax": partial(along_axis, default=-1, code="normalised", since=13),
}
