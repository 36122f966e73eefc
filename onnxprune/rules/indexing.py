"""Operators that pick entries by number, and operators that make tensors or tell sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from onnxprune.dims import Expr, Prod, children, is_frozen, product, resolve, total
from onnxprune.errors import Barrier
from onnxprune.rules.movement import regroup
from onnxprune.rules.rule import Axes, Bound, Node, Table, frozen_all

MAX_RUNS = 32  # an index list with more contiguous runs than this freezes the axis that it reads


def gather(node: Node) -> None:
    """Gather (opset 1-13): data axes before and after `axis` go through, the indices' axes take its place.

    A constant index list that is made of contiguous runs, or that transposes a product, rearranges the axis; of a
    constant grid of indices the factors that one side of the grid counts through go on; any other index freezes it.
    """
    x, index = node.axes(0), node.axes(1)
    at = node.axis(0)
    value = node.static(1)
    if is_frozen(x[at]) or value is None:
        node.freeze(x[at], "index")
        middle = index
    elif value.ndim == 0:
        k = int(value) % x[at].size
        node.edit(1, Bound(x[at], k), when=(x[at],))
        node.space.split(node.space.split(x[at], k)[1], 1)
        middle = []
    elif value.ndim > 1 and (grid := _grid(node, x[at], value % x[at].size)) is not None:
        middle = grid
        node.renumber(1, x[at], middle)
        frozen_all(node, index, "structure", "it lists indices")
    elif value.size and (picked := _picked(node, x[at], value.reshape(-1) % x[at].size)) is not None:
        middle = [picked] if value.ndim == 1 else regroup(node, [picked], value.shape)
        node.renumber(1, x[at], middle)
        frozen_all(node, index, "structure", "it lists indices")
    else:
        node.freeze(x[at], "picked")
        middle = index
    node.out([*x[:at], *middle, *x[at + 1 :]])


def _picked(node: Node, axis: Expr, index: NDArray[np.int64]) -> Expr | None:
    """The axis that a constant index list makes of `axis`, or None."""
    steps = np.flatnonzero(np.diff(index) != 1) + 1
    if len(steps) < MAX_RUNS:
        runs = [(int(r[0]), len(r)) for r in np.split(index, steps)]
        return total(*(node.space.split(node.space.split(axis, start)[1], n)[0] for start, n in runs))
    stride = int(index[1] - index[0])
    if stride > 0 and axis.size % stride == 0:
        grid = np.arange(axis.size).reshape(-1, stride)
        if index.size == axis.size and np.array_equal(index, grid.T.reshape(-1)):
            outer, inner = node.space.factor(axis, stride)
            return product(inner, outer)
        if index.size == axis.size // stride and index[0] < stride and np.array_equal(index, grid[:, index[0]]):
            outer, inner = node.space.factor(axis, stride)
            node.freeze(inner, "picked")
            return outer
    return None


def _grid(node: Node, axis: Expr, index: NDArray[np.int64]) -> Axes | None:
    """The axes that a constant grid of indices makes of the product `axis`, or None: strided views of a flattened
    tensor pick windows along some of its axes and count through the others.
    """
    row = index.shape[-1]
    if axis.size % row == 0 and np.array_equal(index % row, np.broadcast_to(np.arange(row), index.shape)):
        node.space.factor(axis, row)
    factors = list(children(found)) if isinstance(found := resolve(axis), Prod) else []
    axes: Axes = [node.fixed(n, "picked") for n in index.shape]
    counted: set[int] = set()
    for side in range(index.ndim):
        for first, last in combinations(range(len(factors) + 1), 2):
            run = product(*factors[first:last])
            if run.size > 1 and _counts(index, side, run.size, math.prod(f.size for f in factors[last:])):
                axes[side] = run
                counted.update(range(first, last))
    for k, factor in enumerate(factors):
        if counted and k not in counted:
            node.freeze(factor, "picked")
    return axes if counted else None


def _counts(index: NDArray[np.int64], side: int, size: int, inner: int) -> bool:
    """Whether along axis `side` of a grid of indices the factor of `size` units with `inner` entries each goes 0, 1,
    ... while all else stays.
    """
    if index.shape[side] != size:
        return False
    place = index // inner % size
    steps = np.arange(size).reshape(-1, *[1] * (index.ndim - 1 - side))
    stays = not np.diff(index - place * inner, axis=side).any()
    return stays and np.array_equal(place, np.broadcast_to(steps, index.shape))


def gather_elements(node: Node) -> None:
    """GatherElements, ScatterElements, Scatter: `axis` is indexed; other axes agree where the indices cover them
    whole.
    """
    x, index, at = node.axes(0), node.axes(1), node.axis(0)
    others = [node.axes(2)] if node.has(2) else []
    for e in (x[at], index[at], *(o[at] for o in others)):
        node.freeze(e, "index")
    for k, e in enumerate(x):
        if k == at:
            continue
        for other in (index, *others):
            if other[k].size == e.size:
                node.unify(e, other[k])
            else:
                node.freeze(e, "index")
                node.freeze(other[k], "index")
    node.out(list(x) if others else list(index))


def gather_nd(node: Node) -> None:
    """GatherND (opset 11-13): the first b axes are batch, the next q are indexed, the rest goes through."""
    x, index, b = node.axes(0), node.axes(1), int(node.attr("batch_dims", 0))
    q = index[-1].size
    for e in x[: b + q]:
        node.freeze(e, "index")
    for e in (*index[:b], index[-1]):
        node.freeze(e, "index")
    node.out([*x[:b], *index[b:-1], *x[b + q :]])


def scatter_nd(node: Node) -> None:
    """ScatterND (opset 11-18): the first q axes are indexed, the list of places is fixed, the rest of data and updates
    agrees.
    """
    x, index, updates = node.axes(0), node.axes(1), node.axes(2)
    q = index[-1].size
    for e in (*x[:q], *index):
        node.freeze(e, "index")
    for a, b in zip([*index[:-1], *x[q:]], updates, strict=True):
        node.unify(a, b)
    node.out(list(x))


def one_hot(node: Node) -> None:
    """OneHot (opset 9-11): a new axis of class numbers."""
    out, x = list(node.axes(0)), node.axes(0)
    at = int(node.attr("axis", -1)) % (len(x) + 1)
    out.insert(at, node.fixed(node.out_shape()[at], "index"))
    node.out(out)


def ordered(node: Node) -> None:
    """CumSum (opset 11-14), CumProd (opset 26): sums or products along input 1's axis, in its order."""
    x = node.axes(0)
    axis = node.ints("axis", 1)
    if axis is None:
        raise Barrier("operand", "axis")
    node.freeze(x[axis[0] % len(x)], "index")
    node.out(list(x))


def trilu(node: Node) -> None:
    """Trilu (opset 14): compares the indices of the last two axes."""
    x = node.axes(0)
    for e in x[-2:]:
        node.freeze(e, "index")
    node.out(list(x))


def reverse_sequence(node: Node) -> None:
    """ReverseSequence (opset 10): reverses along `time_axis`, as far as each entry of `batch_axis` says."""
    x = node.axes(0)
    for name, default in (("time_axis", 0), ("batch_axis", 1)):
        node.freeze(x[int(node.attr(name, default))], "index")
    node.out(list(x))


def grid_sample(node: Node) -> None:
    """GridSample (opset 16-22): X (N, C, *S), grid (N, *S', r) -> (N, C, *S')."""
    x, grid = node.axes(0), node.axes(1)
    for e in (*x[2:], grid[-1]):
        node.freeze(e, "spatial")
    node.unify(x[0], grid[0])
    node.out([*x[:2], *grid[1:-1]])


def measure(node: Node) -> None:
    """Shape, Size: numbers derived from sizes keep their original values (surgery sees to it); the count itself is
    fixed. What is known beforehand is not cut for being measured.
    """
    x = node.axes(0)
    if node.static(0) is not None:
        frozen_all(node, x, "structure", "it is a constant that is measured")
    node.signature.measures = True
    node.out([node.fixed(n) for n in node.out_shape()])


def constant_of_shape(node: Node) -> None:
    """ConstantOfShape (opset 9-25): every unit is the same constant."""
    out: Sequence[Expr] = [node.fresh(n) for n in node.out_shape()]
    node.sized(0, out)
    node.out(list(out))


def compress(node: Node) -> None:
    """Compress (opset 9-11): entries of `axis` are chosen by a condition."""
    if "axis" not in node.attrs:
        raise Barrier("index", "Compress of the flattened tensor")
    x, at = node.axes(0), node.axis()
    node.freeze(x[at], "index")
    node.freeze(node.axes(1)[0], "index")
    node.out([node.fixed(node.out_shape()[at], "index") if k == at else e for k, e in enumerate(x)])


def tensor_scatter(node: Node) -> None:
    """TensorScatter (opset 24): an update is written at positions of `axis`, by sample; other axes agree."""
    x, update, at = node.axes(0), node.axes(1), node.axis(-2)
    for k, (a, b) in enumerate(zip(x, update, strict=True)):
        if k in (0, at):
            node.freeze(a, "index")
            node.freeze(b, "index")
        else:
            node.unify(a, b)
    if node.has(2):
        node.freeze(node.axes(2)[0], "index")
    node.out(list(x))


def resized_by_center(node: Node) -> None:
    """CenterCropPad (opset 18): axes whose size changes are frozen, the others go through."""
    x, shape = node.axes(0), node.out_shape()
    axes = [a % len(x) for a in node.attr("axes", range(len(x)))]
    wanted = node.traced(1)
    for k in axes:
        node.freeze(x[k], "spatial")
    if wanted is None:
        raise Barrier("operand", "shape")
    node.out([node.fixed(shape[k], "spatial") if k in axes else e for k, e in enumerate(x)])


def transform(node: Node) -> None:
    """DFT (opset 17-20): entries of the transformed axis are mixed, the last axis is real and imaginary part."""
    x, shape = node.axes(0), node.out_shape()
    value = node.ints("axes", 2) if node.opset >= 20 else None
    at = (value[0] if value else int(node.attr("axis", 1 if node.opset < 20 else -2))) % len(x)
    for e in (x[at], x[-1]):
        node.freeze(e, "normalised")
    changed = (at, len(x) - 1)
    node.out([node.fixed(shape[k], "index") if k in changed else e for k, e in enumerate(x)])


def last_two(node: Node) -> None:
    """Det (opset 11-22): one number for each square matrix of the last two axes."""
    x = node.axes(0)
    for e in x[-2:]:
        node.freeze(e, "normalised")
    node.out(list(x[:-2]))


TABLE: Table = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "ScatterElements": gather_elements,
    "Scatter": gather_elements,
    "GatherND": gather_nd,
    "ScatterND": scatter_nd,
    "OneHot": one_hot,
    "CumSum": ordered,
    "Trilu": trilu,
    "ReverseSequence": reverse_sequence,
    "GridSample": grid_sample,
    "Shape": measure,
    "Size": measure,
    "ConstantOfShape": constant_of_shape,
    "Compress": compress,
    "TensorScatter": tensor_scatter,
    "CenterCropPad": resized_by_center,
    "DFT": transform,
    "Det": last_two,
    "CumProd": ordered,
}
