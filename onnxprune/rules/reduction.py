"""Operators that shrink axes: Reduce*, pools, ArgMax and TopK."""

from __future__ import annotations

from functools import partial

from onnxprune.dims import ONE, is_frozen
from onnxprune.errors import Barrier
from onnxprune.rules.normalization import channels_only
from onnxprune.rules.rule import Node, Rule, Table


def reduce(node: Node, how: str) -> None:
    """Reduce* (opset 1-20): `axes` as attribute or input 1, all if absent (or none with noop_with_empty_axes);
    keepdims.
    """
    x = node.axes(0)
    axes = node.ints("axes", 1)
    if not axes:
        axes = [] if node.attr("noop_with_empty_axes", 0) else list(range(len(x)))
    gone = {a % len(x) for a in axes}
    for k in sorted(gone):
        node.read(0, k, how)
    keepdims = node.attr("keepdims", 1)
    node.out([ONE if k in gone else e for k, e in enumerate(x) if keepdims or k not in gone])


def pool(node: Node) -> None:
    """Windowed pools: channels go through, spatial axes do not. MaxPool's Indices number the whole tensor: then nothing
    may go.
    """
    axes = channels_only(node)
    if len(node.outputs) > 1 and node.outputs[1]:
        raise Barrier("barrier", "its Indices output numbers the whole tensor")
    node.out(axes)


def global_pool(node: Node, how: str) -> None:
    """Global pools (opset 1-22): every axis after the channels becomes 1."""
    x = node.axes(0)
    for k in range(2, len(x)):
        if how == "norm":
            node.freeze(x[k], "spatial")
        elif not is_frozen(x[k]):
            node.read(0, k, how)
    node.out([*x[:2], *[ONE] * (len(x) - 2)])


def arg_reduce(node: Node) -> None:
    """ArgMax, ArgMin: the result counts along `axis`."""
    x, at = node.axes(0), node.axis(0)
    node.freeze(x[at], "index")
    keepdims = node.attr("keepdims", 1)
    node.out([ONE if k == at else e for k, e in enumerate(x) if keepdims or k != at])


def top_k(node: Node) -> None:
    """TopK (opset 1-24): the axis is sorted and its indices are returned."""
    x, at = node.axes(0), node.axis(-1)
    node.freeze(x[at], "index")
    for k in (0, 1):
        node.out([node.fixed(node.out_shape(k)[at], "index") if j == at else e for j, e in enumerate(x)], k)


def regions(node: Node) -> None:
    """RoiAlign, MaxRoiPool: X (N, C, H, W) -> (R, C, h, w)."""
    axes = channels_only(node)
    node.out([node.fixed(node.out_shape()[0]), *axes[1:]])


_REDUCE = {
    "ReduceSum": "sum",
    "ReduceMean": "mean",
    "ReduceMax": "max",
    "ReduceMin": "min",
    "ReduceProd": "prod",
    "ReduceL1": "norm",
    "ReduceL2": "norm",
    "ReduceSumSquare": "norm",
    "ReduceLogSum": "sum",
    "ReduceLogSumExp": "logsumexp",
}
_WINDOWS: dict[str, Rule] = dict.fromkeys(["MaxPool", "AveragePool", "LpPool"], pool)

TABLE: Table = {
    **{name: partial(reduce, how=how) for name, how in _REDUCE.items()},
    **_WINDOWS,
    "GlobalAveragePool": partial(global_pool, how="mean"),
    "GlobalMaxPool": partial(global_pool, how="max"),
    "GlobalLpPool": partial(global_pool, how="norm"),
    "ArgMax": arg_reduce,
    "ArgMin": arg_reduce,
    "TopK": top_k,
    "RoiAlign": regions,
    "MaxRoiPool": regions,
}
