"""Which units hold one constant, whatever the input: a forward walk over the typed graph.

For every tensor and every free dim d on exactly one of its axes, `values[tensor][d]` has shape (d.size,): the number
that all entries of that unit equal, or NaN where that is not known. Zero filters give their bias, ReLU of a constant is
a constant, a product with zero is zero. Integers that stand for reals are held as they are stored; `at` subtracts the
zero point for the operators that do so. Operators fall into few behaviours, one table row each; an operator without a
row gives nothing, which is always right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxprune.dims import Dim, Expr, atoms, gather, spread
from onnxprune.evaluate import evaluate
from onnxprune.graph import FLOATS, attributes, operator
from onnxprune.inference import TypedGraph
from onnxprune.quantization import Operand, has, operand, product_operands, real
from onnxprune.rules import elementwise, movement

Values = dict[Dim, NDArray[np.float64]]
ZERO_POINT = math.inf  # of an integer tensor: its zero point, which is known at run time only


class Constancy:
    """The walk and its result. `node_values(i, j)`: constants of input j of node i; `values`: of tensors."""

    def __init__(self, typed: TypedGraph) -> None:
        self.typed = typed
        self.values: dict[str, Values] = {}
        self._uniform: dict[str, float] = {}
        self._constants: dict[tuple[int, int], Values] = {}
        for i, node in enumerate(typed.graph.nodes):
            if typed.signatures[i].barrier is None and (row := _TABLE.get(operator(node))):
                for k, made in row(self, i).items():
                    known = {d: v for d, v in made.items() if not np.isnan(v).all()}
                    if known and k < len(node.output):
                        self.values[node.output[k]] = known

    def at(self, i: int, j: int) -> Values:
        """Constants of input j of node i; where the node takes it as quantised, with the zero point subtracted."""
        node, axes = self.typed.graph.nodes[i], self.typed.signatures[i].inputs[j] if j < self._arity(i) else None
        if not has(node, j) or axes is None:
            return {}
        if node.input[j] in self.values:
            found, values = operand(node, j), self.values[node.input[j]]
            return values if found is None else {d: self._less_zero(i, found, d, v) for d, v in values.items()}
        if (i, j) not in self._constants:
            array = real(self.typed.graph, i, j)
            self._constants[i, j] = {} if array is None else of_array(array, axes)
        return self._constants[i, j]

    def _arity(self, i: int) -> int:
        return len(self.typed.signatures[i].inputs)

    def _less_zero(self, i: int, found: Operand, d: Dim, stored: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(stored == ZERO_POINT, 0.0, stored - self.along(i, found.zero, d, 0.0))

    def along(self, i: int, j: int | None, d: Dim, absent: float) -> NDArray[np.float64]:
        """Scales or zero points, input j of node i, per unit of dim d; NaN where they are not known."""
        if j is None or not has(self.typed.graph.nodes[i], j):
            return np.full(d.size, absent)
        return self.at(i, j).get(d, np.full(d.size, self.uniform(i, j)))

    def uniform(self, i: int, j: int) -> float:
        """The number that every entry of input j equals, or NaN."""
        name = self.typed.graph.nodes[i].input[j]
        if name not in self._uniform:
            self._uniform[name] = math.nan
            if name in self.typed.graph.constants:
                array = self.typed.graph.array(name)
                if array.size and array.dtype.kind in "fiub" and (array.reshape(-1)[:1] == array).all():
                    self._uniform[name] = float(array.reshape(-1)[0])
        return self._uniform[name]

    def zero(self, i: int, j: int, axis: int) -> NDArray[np.bool_]:
        """Per index of an axis of input j: whether all its entries are known to be zero."""
        axes = self.typed.signatures[i].inputs[j] or []
        zeros = {d: v == 0 for d, v in self.at(i, j).items()}
        return spread(axes[axis], zeros, np.logical_or, False).astype(bool)

    def out_dims(self, i: int, k: int = 0) -> dict[Dim, int]:
        """Free dims that lie on one axis of output k only, with that axis."""
        return single_dims(self.typed.signatures[i].outputs[k] or [])


def single_dims(axes: Sequence[Expr]) -> dict[Dim, int]:
    """Free dims that lie on one axis only, with that axis."""
    found: dict[Dim, list[int]] = {}
    for axis, e in enumerate(axes):
        for d in set(atoms(e)):
            if not d.frozen and d.size > 1:
                found.setdefault(d, []).append(axis)
    return {d: places[0] for d, places in found.items() if len(places) == 1}


def of_array(array: NDArray[Any], axes: Sequence[Expr]) -> Values:
    """Constants of an array with the given axes."""
    if (array.dtype.kind not in "fiub" and array.dtype.itemsize > 2) or not array.size:
        return {}
    made: Values = {}
    by_axis: dict[int, list[Dim]] = {}
    for d, axis in single_dims(axes).items():
        by_axis.setdefault(axis, []).append(d)
    for axis, wanted in by_axis.items():
        others = tuple(k for k in range(array.ndim) if k != axis)
        low, high = (np.asarray(f(array, axis=others), np.float64) for f in (np.min, np.max))
        made.update({d: v for d, v in per_unit(axes[axis], low, high).items() if d in wanted})
    return made


def per_unit(expr: Expr, low: NDArray[Any], high: NDArray[Any]) -> Values:
    """Per-index bounds as per-unit constants: known where the bounds of all indices of a unit meet."""
    lows, highs = gather(expr, low, np.minimum.reduce), gather(expr, high, np.maximum.reduce)
    return {d: np.where(lows[d] == highs[d], lows[d], np.nan) for d in lows}


Row = Callable[[Constancy, int], dict[int, Values]]


def _pointwise(c: Constancy, i: int) -> dict[int, Values]:
    """The operator itself, applied to the constants; a product with zero is zero whatever the other side holds."""
    node = c.typed.graph.nodes[i]
    inputs = range(len(node.input))
    made: Values = {}
    for d, axis in c.out_dims(i).items():
        args = [_argument(c, i, j, d, axis) for j in inputs]
        if all(np.isnan(a).all() for a in args):
            continue
        made[d] = _apply(c, i, args)
    return {0: made}


def _argument(c: Constancy, i: int, j: int, d: Dim, axis: int) -> NDArray[np.float64]:
    """Input j as seen along dim d, shape (d.size,)."""
    node, signature = c.typed.graph.nodes[i], c.typed.signatures[i]
    if not node.input[j]:
        return np.full(d.size, np.nan)
    axes, out = signature.inputs[j], signature.outputs[0]
    place = single_dims(axes).get(d) if axes is not None else None
    aligned = place is not None and axes is not None and out is not None and place - len(axes) == axis - len(out)
    if aligned and d in c.at(i, j):
        integer = c.typed.facts.dtypes.get(node.input[j], TensorProto.FLOAT) not in FLOATS
        return np.where(np.isinf(c.at(i, j)[d]), np.nan, c.at(i, j)[d]) if integer else c.at(i, j)[d]
    return np.full(d.size, c.uniform(i, j))


def _apply(c: Constancy, i: int, args: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    node = c.typed.graph.nodes[i]
    given = [j for j, name in enumerate(node.input) if name]
    known = ~np.any([np.isnan(args[j]) for j in given], axis=0)
    made = np.full(args[0].size, np.nan)
    if node.op_type in ("Mul", "And"):
        made[np.any([args[j] == 0 for j in given], axis=0)] = 0
    elif node.op_type == "Div":
        made[args[0] == 0] = 0
    elif node.op_type == "Where":
        made[args[1] == args[2]] = args[1][args[1] == args[2]]
    if known.any():
        kinds = [c.typed.facts.dtypes.get(n, 1) for n in node.input]
        arrays = [
            args[j][known].astype(helper.tensor_dtype_to_np_dtype(kinds[j])) if j in given else None
            for j in range(len(args))
        ]
        try:
            with np.errstate(all="ignore"):
                result = evaluate(node, arrays, attributes(node), c.typed.graph.opsets.get("", 1))
        except Exception:  # an operator beyond the evaluator: nothing is known
            return made
        if result is not None and result[0].shape == (int(known.sum()),):
            made[known] = result[0].astype(np.float64)
    return made


def _zeros(c: Constancy, i: int, inputs: Sequence[int] = (0,)) -> dict[int, Values]:
    """Zero stays zero, in all of `inputs` that carry the dim."""
    return {0: {d: np.where(v == 0, 0.0, np.nan) for d, v in _merge(c, i, inputs).items()}}


def _merge(c: Constancy, i: int, inputs: Sequence[int]) -> Values:
    given = c.typed.signatures[i].inputs
    made: Values = {}
    for d in c.out_dims(i):
        carriers = [j for j in inputs if j < len(given) and d in single_dims(given[j] or [])]
        found = [c.at(i, j).get(d, np.full(d.size, np.nan)) for j in carriers]
        if found:
            made[d] = np.where(np.all([v == found[0] for v in found], axis=0), found[0], np.nan)
    return made


def _moved(c: Constancy, i: int) -> dict[int, Values]:
    """Entries only move: a unit is constant if it is the same constant in every data input that carries it."""
    node = c.typed.graph.nodes[i]
    data = range(len(node.input)) if node.op_type == "Concat" else (0, 2) if node.op_type == "ScatterND" else (0,)
    inputs = [j for j in data if j < len(node.input)]
    return {k: _merge_into(c, i, inputs, k) for k in range(len(node.output)) if node.output[k]}


def _merge_into(c: Constancy, i: int, inputs: Sequence[int], k: int) -> Values:
    made: Values = {}
    for d in c.out_dims(i, k):
        carriers = [j for j in inputs if any(d is a for e in c.typed.signatures[i].inputs[j] or [] for a in atoms(e))]
        found = [c.at(i, j).get(d, np.full(d.size, np.nan)) for j in carriers]
        if found:
            made[d] = np.where(np.all([v == found[0] for v in found], axis=0), found[0], np.nan)
    return made


def _padded(c: Constancy, i: int) -> dict[int, Values]:
    """Constant padding: its own units hold the fill value; others stay constant only if they hold it too."""
    node = c.typed.graph.nodes[i]
    fill = 0.0
    if len(node.input) > 2 and node.input[2]:
        fill = c.uniform(i, 2)
    elif "value" in attributes(node):
        fill = float(attributes(node)["value"])
    here = c.at(i, 0)
    mine = single_dims(c.typed.signatures[i].inputs[0] or [])
    return {
        0: {
            d: np.where(here.get(d, np.full(d.size, np.nan)) == fill, fill, np.nan)
            if d in mine
            else np.full(d.size, fill)
            for d in c.out_dims(i)
        }
    }


def _product(c: Constancy, i: int, at: int = 2) -> dict[int, Values]:
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


def _quantised_product(c: Constancy, i: int, bias: int, zero: int) -> dict[int, Values]:
    """QLinearConv, QLinearMatMul, QGemm: where the product and its bias are zero, the output is its zero point."""
    made = _product(c, i, bias)[0]
    return {0: {d: np.where(v == 0, _stored_zero(c, i, zero, d), np.nan) for d, v in made.items()}}


def _quantised_zeros(
    c: Constancy, i: int, inputs: Sequence[int], zero: int, any_zero: bool = False
) -> dict[int, Values]:
    """The output is its zero point where all of `inputs` (for products: any) are zero."""
    made: Values = {}
    for d in c.out_dims(i):
        found = [c.at(i, j)[d] == 0 for j in inputs if d in c.at(i, j)]
        if found and (any_zero or len(found) == len(inputs)):
            dead = np.any(found, axis=0) if any_zero else np.all(found, axis=0)
            made[d] = np.where(dead, _stored_zero(c, i, zero, d), np.nan)
    return {0: made}


def _stored_zero(c: Constancy, i: int, j: int, d: Dim) -> NDArray[np.float64]:
    """The zero point, input j of node i, as stored in the units of dim d."""
    zero = c.along(i, j, d, 0.0)
    return np.where(np.isnan(zero), ZERO_POINT, zero)


def _quantised(c: Constancy, i: int) -> dict[int, Values]:
    """QuantizeLinear: saturate(round(x / scale) + zero point), and the zero point for zero. DynamicQuantizeLinear knows
    neither beforehand.
    """
    made: Values = {}
    dynamic = c.typed.graph.nodes[i].op_type == "DynamicQuantizeLinear"
    kind = helper.tensor_dtype_to_np_dtype(
        c.typed.facts.dtypes.get(c.typed.graph.nodes[i].output[0], TensorProto.UINT8)
    )
    for d, x in c.at(i, 0).items():
        made[d] = np.where(x == 0, ZERO_POINT if dynamic else _stored_zero(c, i, 2, d), np.nan)
        if kind.kind in "iu" and not dynamic:
            limits, scale = np.iinfo(kind), c.along(i, 1, d, math.nan)
            with np.errstate(all="ignore"):
                stored = np.clip(np.round(x / scale) + c.along(i, 2, d, 0.0), limits.min, limits.max)
            made[d] = np.where(scale == 0, np.nan, np.where(x == 0, made[d], stored))
    return {0: {d: v for d, v in made.items() if d in c.out_dims(i)}}


def _dequantised(c: Constancy, i: int) -> dict[int, Values]:
    """DequantizeLinear: (stored - zero point) * scale."""
    values = c.at(i, 0)
    if c.typed.graph.nodes[i].input[0] in c.values:
        values = {d: np.where(v == 0, 0.0, v * c.along(i, 1, d, math.nan)) for d, v in values.items()}
    return {0: {d: v for d, v in values.items() if d in c.out_dims(i)}}


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
        return _dead_channels(c, i, w, live)
    shape = [1] * w.ndim
    shape[summed] = -1
    active = (w != 0) & live.reshape(shape) if not live.all() else w != 0
    made: dict[Dim, NDArray[np.bool_]] = {}
    for k, e in enumerate(signature.inputs[weight] or []):
        if k != summed:
            dead = ~active.any(axis=tuple(a for a in range(w.ndim) if a != k))
            made.update(gather(e, dead, np.logical_and.reduce))
    return {d: v for d, v in made.items() if d in c.out_dims(i)}


def _dead_channels(c: Constancy, i: int, w: NDArray[Any], live: NDArray[np.bool_]) -> dict[Dim, NDArray[np.bool_]]:
    node = c.typed.graph.nodes[i]
    g = int(attributes(node).get("group", 1))
    used = (w != 0).reshape(*w.shape[:2], -1).any(axis=2)
    if node.op_type != "ConvTranspose":  # (g*O, I) with inputs (g, I)
        dead = ~(used.reshape(g, -1, used.shape[1]) & live.reshape(g, 1, -1)).any(axis=2).reshape(-1)
    else:  # (g*I, O)
        dead = ~(used.reshape(g, -1, used.shape[1]) & live.reshape(g, -1, 1)).any(axis=1).reshape(-1)
    channels = (c.typed.signatures[i].outputs[0] or [])[1]
    return {d: v for d, v in gather(channels, dead, np.logical_and.reduce).items() if d in c.out_dims(i)}


def _batch_norm(c: Constancy, i: int) -> dict[int, Values]:
    """scale * (x - mean) / sqrt(variance + epsilon) + bias, for constant x or zero scale."""
    attrs = attributes(c.typed.graph.nodes[i])
    epsilon = float(attrs.get("epsilon", 1e-5))
    made: Values = {}
    if attrs.get("training_mode", 0):
        return {}
    for d in c.out_dims(i):
        unknown = np.full(d.size, np.nan)
        x = c.at(i, 0).get(d, unknown)
        scale, bias, mean, var = (c.at(i, j).get(d, unknown) for j in (1, 2, 3, 4))
        with np.errstate(all="ignore"):
            made[d] = np.where(scale == 0, bias, scale * (x - mean) / np.sqrt(var + epsilon) + bias)
    return {0: made}


def _norm(c: Constancy, i: int) -> dict[int, Values]:
    """Instance, layer, RMS and group normalisation: zero scale leaves the bias; so does a constant channel under
    InstanceNormalization.
    """
    node = c.typed.graph.nodes[i]
    made: Values = {}
    for d in c.out_dims(i):
        unknown = np.full(d.size, np.nan)
        scale = c.at(i, 1).get(d, unknown)
        bias = c.at(i, 2).get(d, unknown) if len(node.input) > 2 and node.input[2] else np.zeros(d.size)
        if node.op_type == "RMSNormalization":
            bias = np.zeros(d.size)
        flat = (
            ~np.isnan(c.at(i, 0).get(d, unknown)) if node.op_type == "InstanceNormalization" else np.zeros(d.size, bool)
        )
        made[d] = np.where((scale == 0) | flat, bias, np.nan)
    return {0: made}


def _recurrent(c: Constancy, i: int) -> dict[int, Values]:
    """A hidden unit whose candidate gate gets nothing stays at zero, if it starts there and the activation keeps
    zero.
    """
    node, signature = c.typed.graph.nodes[i], c.typed.signatures[i]
    attrs = attributes(node)
    states = [j for j in (5, 6) if j < len(node.input) and node.input[j]]
    if "activations" in attrs or any(c.uniform(i, j) != 0 for j in states):
        return {}
    r = signature.inputs[2]
    names = [n for n in node.input[1:4] if n]
    if r is None or any(n not in c.typed.graph.constants for n in names):
        return {}
    hidden = r[2].size
    gate = {"LSTM": 3, "GRU": 2, "RNN": 0}[node.op_type]  # iofc, zrh
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[node.op_type]
    still = np.ones(hidden, bool)
    for j, name in enumerate(names):
        array = c.typed.graph.array(name)
        blocks = array.reshape(array.shape[0], -1, hidden, *array.shape[2:])
        rows = [gate] if j < 2 else [gate, gate + gates]
        still &= ~np.any(blocks[:, rows] != 0, axis=tuple(k for k in range(blocks.ndim) if k != 2))
    zeros = {d: np.where(v, 0.0, np.nan) for d, v in gather(r[2], still, np.logical_and.reduce).items()}
    return {
        k: {d: v for d, v in zeros.items() if d in c.out_dims(i, k)} for k in range(len(node.output)) if node.output[k]
    }


def _left(c: Constancy, i: int) -> dict[int, Values]:
    """Results of a body are what its outputs hold."""
    return {k: {d: v for d, v in c.at(i, 1 + k).items() if d in c.out_dims(i, k)} for k in range(_outputs(c, i))}


def _branches(c: Constancy, i: int) -> dict[int, Values]:
    """If: a unit is constant if it is the same constant in both branches."""
    count, own = _outputs(c, i), int(attributes(c.typed.graph.nodes[i])["flow_inputs"])
    return {k: _merge_into(c, i, (own + k, own + count + k), k) for k in range(count)}


def _outputs(c: Constancy, i: int) -> int:
    return len(c.typed.graph.nodes[i].output)


def _all_zero(c: Constancy, i: int, inputs: Sequence[int]) -> dict[int, Values]:
    """A unit that every one of the inputs that are present carries and holds at zero is zero."""
    node, signature = c.typed.graph.nodes[i], c.typed.signatures[i]
    given = [j for j in inputs if j < len(node.input) and node.input[j]]
    made: Values = {}
    for d in c.out_dims(i):
        if given and all(d in single_dims(signature.inputs[j] or []) and d in c.at(i, j) for j in given):
            made[d] = np.where(np.all([c.at(i, j)[d] == 0 for j in given], axis=0), 0.0, np.nan)
    return {0: made}


def _activated(c: Constancy, i: int) -> dict[int, Values]:
    """FusedConv, FusedGemm: a product, with Relu or nothing behind it; what FusedConv adds is not followed."""
    attrs = attributes(c.typed.graph.nodes[i])
    kind = attrs.get("activation", b"").decode()
    if kind not in ("", "Relu") or len(c.typed.graph.nodes[i].input) > 3:
        return {}
    made = _product(c, i)[0]
    return {0: {d: np.maximum(v, 0) if kind else v for d, v in made.items()}}


def _group_query(c: Constancy, i: int) -> dict[int, Values]:
    return _all_zero(c, i, (2, 4) if c.typed.graph.nodes[i].input[2] else (0, 4))


def _kept(c: Constancy, i: int) -> dict[int, Values]:
    """A constant stays what it is: maxima, means, pools without padding."""
    return {0: _merge(c, i, (0,))}


def _filled(c: Constancy, i: int) -> dict[int, Values]:
    value = attributes(c.typed.graph.nodes[i]).get("value")
    number = float(numpy_helper.to_array(value).reshape(-1)[0]) if value is not None else 0.0
    return {0: {d: np.full(d.size, number) for d in c.out_dims(i)}}


_MOVED = [n for n in movement.TABLE if n not in ("Pad", "Resize", "Upsample")] + [
    "Gather",
    "GatherElements",
    "GatherND",
    "ScatterND",
]
_ZERO = """AveragePool LpPool GlobalLpPool ReduceSum ReduceL1 ReduceL2 ReduceSumSquare ReduceProd Resize Upsample
GridSample LRN LpNormalization CumSum Trilu RoiAlign MaxRoiPool"""
_KEPT = "MaxPool GlobalAveragePool GlobalMaxPool ReduceMean ReduceMax ReduceMin"
_TABLE: dict[str, Row] = {
    **dict.fromkeys(elementwise.TABLE, _pointwise),
    **dict.fromkeys(_MOVED, _moved),
    **dict.fromkeys(_ZERO.split(), _zeros),
    **dict.fromkeys(_KEPT.split(), _kept),
    "Pad": _padded,
    "Conv": _product,
    "ConvTranspose": _product,
    "Gemm": _product,
    "MatMul": _product,
    "Einsum": _product,
    "ConvInteger": partial(_product, at=4),
    "MatMulInteger": partial(_product, at=4),
    "com.microsoft.DynamicQuantizeMatMul": partial(_product, at=4),
    "com.microsoft.MatMulIntegerToFloat": partial(_product, at=6),
    "QLinearConv": partial(_quantised_product, bias=8, zero=7),
    "QLinearMatMul": partial(_quantised_product, bias=8, zero=7),
    "com.microsoft.QGemm": partial(_quantised_product, bias=6, zero=8),
    "com.microsoft.QLinearAdd": partial(_quantised_zeros, inputs=(0, 3), zero=7),
    "com.microsoft.QLinearMul": partial(_quantised_zeros, inputs=(0, 3), zero=7, any_zero=True),
    "com.microsoft.QLinearLeakyRelu": partial(_quantised_zeros, inputs=(0,), zero=4),
    "com.microsoft.QLinearGlobalAveragePool": partial(_quantised_zeros, inputs=(0,), zero=4),
    "QuantizeLinear": _quantised,
    "DynamicQuantizeLinear": _quantised,
    "DequantizeLinear": _dequantised,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _norm,
    "LayerNormalization": _norm,
    "RMSNormalization": _norm,
    "GroupNormalization": _norm,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Attention": lambda c, i: _zeros(c, i, (2, 5)),  # values and their past
    "ConstantOfShape": _filled,
    "SimplifiedLayerNormalization": _norm,
    **dict.fromkeys((f"com.microsoft.{n}" for n in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")), _pointwise),
    **dict.fromkeys((f"com.microsoft.{n}" for n in ("FusedMatMul", "TransposeMatMul")), _product),
    "com.microsoft.FusedConv": _activated,
    "com.microsoft.FusedGemm": _activated,
    "com.microsoft.RotaryEmbedding": _zeros,
    "com.microsoft.Attention": lambda c, i: _all_zero(c, i, (1, 2, 4)),  # weights, bias, past
    "com.microsoft.MultiHeadAttention": lambda c, i: _all_zero(c, i, (2, 3, 7)),  # values, bias, past
    "com.microsoft.GroupQueryAttention": _group_query,
    "BodyLeave": _left,
    "If": _branches,
}
