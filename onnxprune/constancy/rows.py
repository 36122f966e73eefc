"""What each operator makes of constants: one table row per operator, a few behaviours. No row: nothing is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxprune.constancy.products import merge, product, quantised_product, quantised_zeros, stored_zero, zeros
from onnxprune.constancy.walk import ZERO_POINT, Constancy, Row, Values, single_dims
from onnxprune.dims import Dim, atoms, gather
from onnxprune.evaluate import evaluate
from onnxprune.graph import FLOATS
from onnxprune.nodes import attributes
from onnxprune.rules import elementwise, movement


def _pointwise(c: Constancy, i: int) -> dict[int, Values]:
    """The operator itself, applied to the constants; a product with zero is zero whatever the other side holds, but for
    what is known to give no number: 0 / 0, 0 * infinity.
    """
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
        zero = np.any([args[j] == 0 for j in given], axis=0)
        infinite = np.any([np.isinf(args[j]) for j in given], axis=0)
        made[zero & ~infinite] = 0
        known &= ~(zero & infinite)
    elif node.op_type == "Div":
        made[(args[0] == 0) & (args[1] != 0)] = 0
        known &= (args[0] != 0) | (args[1] != 0)
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
        made[d] = np.where(x == 0, ZERO_POINT if dynamic else stored_zero(c, i, 2, d), np.nan)
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
    moving = [j for j in states if c.uniform(i, j) != 0]
    if "activations" in attrs or any(signature.inputs[j] is None for j in moving):
        return {}
    r = signature.inputs[2]
    names = [n for n in node.input[1:4] if n]
    if r is None or any(n not in c.typed.graph.constants for n in names):
        return {}
    hidden = r[2].size
    gate = {"LSTM": 3, "GRU": 2, "RNN": 0}[node.op_type]  # iofc, zrh
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[node.op_type]
    still = np.all([np.ones(hidden, bool), *(c.zero(i, j, -1) for j in moving)], axis=0)
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


def _entered(c: Constancy, i: int) -> dict[int, Values]:
    """Body inputs: what a Loop or Scan carries stays what it enters with, until the end of the body refutes it."""
    node = c.typed.graph.nodes[i]
    scanned = attributes(node).get("num_scan_inputs")
    count = len(node.output) - 1  # none for If
    made: dict[int, Values] = {}
    for j in range(2, count) if scanned is None else range(count - int(scanned)):
        refuted = c.refuted.get(node.output[1 + j], {})
        values = {d: v for d, v in c.at(i, j).items() if d in c.out_dims(i, 1 + j)}
        made[1 + j] = {d: np.where(refuted.get(d, False), np.nan, v) for d, v in values.items()}
    return made


def _repeated(c: Constancy, i: int, given: int, skipped: int) -> dict[int, Values]:
    """Loop and Scan: what is carried, `given` from its own inputs, is constant if it is so before and after the body;
    scan outputs are if each slice is. The body's results lie behind the own inputs and `skipped` more.
    """
    attrs = attributes(c.typed.graph.nodes[i])
    own = int(attrs["flow_inputs"])
    states = own - given - int(attrs.get("num_scan_inputs", 0))
    results = range(own + skipped, own + skipped + _outputs(c, i))
    return {k: _merge_into(c, i, (given + k, j) if k < states else (j,), k) for k, j in enumerate(results)}


def _expanded(c: Constancy, i: int) -> dict[int, Values]:
    """Expand: of a number, every unit is that number."""
    number = c.uniform(i, 0)
    return _moved(c, i) if math.isnan(number) else {0: {d: np.full(d.size, number) for d in c.out_dims(i)}}


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
    made = product(c, i)[0]
    return {0: {d: np.maximum(v, 0) if kind else v for d, v in made.items()}}


def _group_query(c: Constancy, i: int) -> dict[int, Values]:
    return _all_zero(c, i, (2, 4) if c.typed.graph.nodes[i].input[2] else (0, 4))


def _kept(c: Constancy, i: int) -> dict[int, Values]:
    """A constant stays what it is: maxima, means, pools without padding."""
    return {0: merge(c, i, (0,))}


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
TABLE: dict[str, Row] = {
    **dict.fromkeys(elementwise.TABLE, _pointwise),
    **dict.fromkeys(_MOVED, _moved),
    **dict.fromkeys(_ZERO.split(), zeros),
    **dict.fromkeys(_KEPT.split(), _kept),
    "Pad": _padded,
    "Conv": product,
    "ConvTranspose": product,
    "Gemm": product,
    "MatMul": product,
    "Einsum": product,
    "ConvInteger": partial(product, at=4),
    "MatMulInteger": partial(product, at=4),
    "com.microsoft.DynamicQuantizeMatMul": partial(product, at=4),
    "com.microsoft.MatMulIntegerToFloat": partial(product, at=6),
    "QLinearConv": partial(quantised_product, bias=8, zero=7),
    "QLinearMatMul": partial(quantised_product, bias=8, zero=7),
    "com.microsoft.QGemm": partial(quantised_product, bias=6, zero=8),
    "com.microsoft.QLinearConv": partial(quantised_product, bias=8, zero=7),
    "com.microsoft.QLinearAdd": partial(quantised_zeros, inputs=(0, 3), zero=7),
    "com.microsoft.QLinearMul": partial(quantised_zeros, inputs=(0, 3), zero=7, any_zero=True),
    "com.microsoft.QLinearLeakyRelu": partial(quantised_zeros, inputs=(0,), zero=4),
    "com.microsoft.QLinearGlobalAveragePool": partial(quantised_zeros, inputs=(0,), zero=4),
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
    "Attention": lambda c, i: zeros(c, i, (2, 5)),  # values and their past
    "ConstantOfShape": _filled,
    "SimplifiedLayerNormalization": _norm,
    **dict.fromkeys((f"com.microsoft.{n}" for n in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")), _pointwise),
    **dict.fromkeys((f"com.microsoft.{n}" for n in ("FusedMatMul", "TransposeMatMul")), product),
    "com.microsoft.FusedConv": _activated,
    "com.microsoft.FusedGemm": _activated,
    "com.microsoft.RotaryEmbedding": zeros,
    "com.microsoft.Attention": lambda c, i: _all_zero(c, i, (1, 2, 4)),  # weights, bias, past
    "com.microsoft.MultiHeadAttention": lambda c, i: _all_zero(c, i, (2, 3, 7)),  # values, bias, past
    "com.microsoft.GroupQueryAttention": _group_query,
    "Expand": _expanded,
    "BodyEnter": _entered,
    "BodyLeave": _left,
    "Loop": partial(_repeated, given=2, skipped=1),
    "Scan": partial(_repeated, given=0, skipped=0),
    "If": _branches,
}
