"""Magnitude criteria: a unit matters as much as the weights that carry it, over all members of its dim.

L1: sum of |w|; L2: square root of the sum of w^2 (Li et al. 2017, "Pruning filters for efficient convnets"; groups as
in Fang et al. 2023, "DepGraph"). Constants that are added or multiplied entry by entry (biases, scales, masks) count
only for dims that no weight carries. Quantised weights count as the reals that they stand for; their scales do not
count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.dims import Dim, atoms, gather
from onnxprune.graph import FLOATS
from onnxprune.inference import TypedGraph, Use, is_pointwise
from onnxprune.quantization import is_scale, meant, quantised_use

Scores = dict[Dim, NDArray[np.float64]]
CHUNK_ELEMENTS = 1 << 20  # working memory of a reduction, in elements


def l1(typed: TypedGraph, dims: Iterable[Dim]) -> Scores:
    """Sum of absolute weights per unit; shapes (size,)."""
    return _collect(typed, dims, np.abs, lambda total: total)


def l2(typed: TypedGraph, dims: Iterable[Dim]) -> Scores:
    """Euclidean norm of the weights of each unit; shapes (size,)."""
    return _collect(typed, dims, np.square, np.sqrt)


def _collect(typed: TypedGraph, dims: Iterable[Dim], power: np.ufunc, finish: Callable[[Any], Any]) -> Scores:
    wanted = set(dims)
    sums: dict[bool, Scores] = {True: {}, False: {}}
    for uses in typed.weights.values():
        seen: set[tuple[Dim, int]] = set()
        array: NDArray[Any] | None = None
        for use in uses:
            if not _counts(typed, use):
                continue
            for axis, e in enumerate(use.axes):
                new = {d for d in atoms(e) if d in wanted and (d, axis) not in seen}
                if not new:
                    continue
                array = _array(typed, use) if array is None else array
                seen |= {(d, axis) for d in new}
                weight = array.ndim > 1 and not _pointwise(typed, use.node)
                for d, value in gather(e, axis_sums(array, axis, power), np.add.reduce).items():
                    if d in new:
                        into = sums[weight]
                        into[d] = into[d] + value if d in into else value
    nothing = {d: np.zeros(d.size) for d in wanted}
    return {d: finish(sums[True].get(d, sums[False].get(d, nothing[d]))) for d in wanted}


def _counts(typed: TypedGraph, use: Use) -> bool:
    """Whether a constant's use has something to say: floats but for scales, and integers that stand for reals."""
    node = typed.graph.nodes[use.node]
    if typed.graph.constants[use.tensor].data_type not in FLOATS:
        return quantised_use(typed.graph, use.node, use.input) is not None
    return not is_scale(node, use.input)


def _array(typed: TypedGraph, use: Use) -> NDArray[Any]:
    """The numbers of a constant; integers whose zero point is not known count as they are."""
    found = meant(typed.graph, use.node, use.input)
    return typed.graph.array(use.tensor) if found is None else found


def _pointwise(typed: TypedGraph, i: int) -> bool:
    """Whether a constant that node i uses is a bias, scale or mask; one that is dequantised is what it is used as."""
    node = typed.graph.nodes[i]
    if node.op_type != "DequantizeLinear":
        return is_pointwise(node)
    users = [k for k, _ in typed.graph.consumers.get(node.output[0], [])]
    return bool(users) and all(is_pointwise(typed.graph.nodes[k]) for k in users)


def axis_sums(array: NDArray[Any], axis: int, power: np.ufunc) -> NDArray[np.float64]:
    """Sum of power(w) over all other axes, shape (size of axis,), float64, in bounded working memory."""
    if array.size <= CHUNK_ELEMENTS:  # masks hold the lowest float, whose square needs more range
        others = tuple(k for k in range(array.ndim) if k != axis)
        return np.asarray(power(array, dtype=np.float64).sum(others))
    cube = array.reshape(int(np.prod(array.shape[:axis])), array.shape[axis], -1)
    total = np.zeros(array.shape[axis])
    step = max(1, CHUNK_ELEMENTS // max(1, cube.shape[1] * cube.shape[2]))
    for at in range(0, cube.shape[0], step):
        block = cube[at : at + step]
        if block[0].size <= 2 * CHUNK_ELEMENTS:
            total += power(block, dtype=np.float32).sum((0, 2), dtype=np.float64)
        else:
            rows = max(1, CHUNK_ELEMENTS // cube.shape[2])
            for r in range(0, cube.shape[1], rows):
                total[r : r + rows] += power(block[:, r : r + rows], dtype=np.float32).sum((0, 2), dtype=np.float64)
    return total
