"""Products: an output unit is constant if every weight that makes it is zero, or meets a zero input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.constancy.walk import ZERO_POINT, Constancy, Values, single_dims
from onnxprune.dims import Dim, gather
from onnxprune.nodes import attributes
from onnxprune.quantization import has, product_operands, real


def zeros(c: Constancy, i: int, inputs: Sequence[int] = (0,)) -> dict[int, Values]:
    """Zero stays zero, in all of `inputs` that carry the dim."""
    return {0: {d: np.where(v == 0, 0.0, np.nan) for d, v in merge(c, i, inputs).items()}}


def merge(c: Constancy, i: int, inputs: Sequence[int]) -> Values:
    given = c.typed.signatures[i].inputs
    made: Values = {}
    for d in c.out_dims(i):
        carriers = [j for j in inputs if j < len(given) and d in single_dims(given[j] or [])]
        found = [c.at(i, j).get(d, np.full(d.size, np.nan)) for j in carriers]
        if found:
            made[d] = np.where(np.all([v == found[0] for v in found], axis=0), found[0], np.nan)
    return made


def product(c: Constancy, i: int, at: int = 2) -> dict[int, Values]:
    """MatMul, Gemm, Einsum, Conv, ConvTranspose: an output unit whose weights are zero wherever the input is not is its
    bias, input `at`.
    """
    node = c.typed.graph.nodes[i]
    biased = has(node, at)
    bias = c.at(i, at) if biased else {}
    made = _zero_operands(c, i)
    for d, dead in dead_outputs(c, i).items():
        made[d] = np.where(dead | (made.get(d, np.full(d.size, np.nan)) == 0), 0.0, np.nan)
    if biased:
        axis = c.out_dims(i)
        carried = single_dims(c.typed.signatures[i].inputs[at] or [])
        scale = float(attributes(node).get("beta", 1.0))
        made = {
            d: np.where(v == 0, bias[d] * scale, np.nan)
            for d, v in made.items()
            if d in carried and d in bias and d in axis
        }
    return {0: made}


def quantised_product(c: Constancy, i: int, bias: int, zero: int) -> dict[int, Values]:
    """QLinearConv, QLinearMatMul, QGemm: where the product and its bias are zero, the output is its zero point."""
    made = product(c, i, bias)[0]
    return {0: {d: np.where(v == 0, stored_zero(c, i, zero, d), np.nan) for d, v in made.items()}}


def quantised_zeros(
    c: Constancy, i: int, inputs: Sequence[int], zero: int, any_zero: bool = False
) -> dict[int, Values]:
    """The output is its zero point where all of `inputs` (for products: any) are zero."""
    made: Values = {}
    for d in c.out_dims(i):
        found = [c.at(i, j)[d] == 0 for j in inputs if d in c.at(i, j)]
        if found and (any_zero or len(found) == len(inputs)):
            dead = np.any(found, axis=0) if any_zero else np.all(found, axis=0)
            made[d] = np.where(dead, stored_zero(c, i, zero, d), np.nan)
    return {0: made}


def stored_zero(c: Constancy, i: int, j: int, d: Dim) -> NDArray[np.float64]:
    """The zero point, input j of node i, as stored in the units of dim d."""
    zero = c.along(i, j, d, 0.0)
    return np.where(np.isnan(zero), ZERO_POINT, zero)


def _zero_operands(c: Constancy, i: int) -> Values:
    """A unit that is zero in an operand is zero in the product, if it lies on an axis that goes through to the output
    (a weight that is tied to its own input carries the same dim on the axis that is summed).
    """
    signature = c.typed.signatures[i]
    summed = {place for r in signature.reads for place in ((r.input, r.axis), r.partner)}
    made: Values = {}
    for d in c.out_dims(i):
        operands = product_operands(c.typed.graph.nodes[i])
        places = ((j, single_dims(signature.inputs[j] or []).get(d)) for j in operands if j < len(signature.inputs))
        carriers = [j for j, axis in places if axis is not None and (j, axis) not in summed]
        zeros = [c.at(i, j).get(d, np.full(d.size, np.nan)) == 0 for j in carriers]
        if zeros:
            made[d] = np.where(np.any(zeros, axis=0), 0.0, np.nan)
    return made


def dead_outputs(c: Constancy, i: int) -> dict[Dim, NDArray[np.bool_]]:
    """Per output unit of a product with constant weights: whether every weight is zero or meets a zero input."""
    node, signature = c.typed.graph.nodes[i], c.typed.signatures[i]
    read = next((r for r in signature.reads if r.partner is not None), None)
    if read is None or read.partner is None or node.op_type in ("LSTM", "GRU", "RNN", "Attention"):
        return {}
    (data, axis), (weight, summed) = (read.input, read.axis), read.partner
    w = real(c.typed.graph, i, weight)
    if w is None:
        (data, axis), (weight, summed) = (weight, summed), (data, axis)
        w = real(c.typed.graph, i, weight)
    if w is None or signature.inputs[weight] is None:
        return {}
    live = ~c.zero(i, data, axis)
    if "Conv" in node.op_type:
        return _dead_channels(c, i, axis, w, live)
    shape = [1] * w.ndim
    shape[summed] = -1
    active = (w != 0) & live.reshape(shape) if not live.all() else w != 0
    made: dict[Dim, NDArray[np.bool_]] = {}
    for k, e in enumerate(signature.inputs[weight] or []):
        if k != summed:
            dead = ~active.any(axis=tuple(a for a in range(w.ndim) if a != k))
            made.update(gather(e, dead, np.logical_and.reduce))
    return {d: v for d, v in made.items() if d in c.out_dims(i)}


def _dead_channels(
    c: Constancy, i: int, axis: int, w: NDArray[Any], live: NDArray[np.bool_]
) -> dict[Dim, NDArray[np.bool_]]:
    node = c.typed.graph.nodes[i]
    g = int(attributes(node).get("group", 1))
    used = (w != 0).reshape(*w.shape[:2], -1).any(axis=2)
    if node.op_type != "ConvTranspose":  # (g*O, I) with inputs (g, I)
        dead = ~(used.reshape(g, -1, used.shape[1]) & live.reshape(g, 1, -1)).any(axis=2).reshape(-1)
    else:  # (g*I, O)
        dead = ~(used.reshape(g, -1, used.shape[1]) & live.reshape(g, -1, 1)).any(axis=1).reshape(-1)
    channels = (c.typed.signatures[i].outputs[0] or [])[axis]
    return {d: v for d, v in gather(channels, dead, np.logical_and.reduce).items() if d in c.out_dims(i)}
