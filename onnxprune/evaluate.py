"""Small values of a graph, computed in NumPy: what Shape, Gather, Concat and their like amount to once shapes are
known.

One table row per operator that shape arithmetic is made of; anything else goes to onnx's reference implementation,
which is right but slow to start. Only cheap, deterministic nodes are evaluated here; weights are folded elsewhere
(`passes/fold_constants.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxprune.nodes import is_standard, operator

Array = NDArray[Any]
Inputs = Sequence[Array | None]
MAX_ELEMENTS = 1 << 20  # larger values are left to run time
OPAQUE = frozenset(
    [
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
        "Dropout",
        "If",
        "Loop",
        "Scan",
        "BodyEnter",
        "BodyLeave",
        "SequenceMap",
        "DequantizeLinear",
        "QuantizeLinear",
        "DynamicQuantizeLinear",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
    ]
)


def evaluate(node: NodeProto, inputs: Inputs, attrs: dict[str, Any], opset: int) -> list[Array] | None:
    """Outputs of a node whose inputs are all known; None where the node is better left alone. FloatingPointError where
    they are no numbers: what integers NaN and divisions by 0 become is not the same everywhere.
    """
    row = _TABLE.get(operator(node))
    with np.errstate(divide="ignore", over="ignore", under="ignore", invalid="raise"):
        if row is not None:
            made = row(inputs, attrs)
            return [np.asarray(a) for a in made] if isinstance(made, (list, tuple)) else [np.asarray(made)]
        if not is_standard(node) or node.op_type in OPAQUE:
            return None
        return _reference(node, inputs, opset)


def _reference(node: NodeProto, inputs: Inputs, opset: int) -> list[Array] | None:
    from onnx.reference import ReferenceEvaluator  # which reads some two hundred files

    names = [n for n in node.input if n]
    graph = helper.make_graph([node], "one", [_info(n) for n in names], [_info(n) for n in node.output if n])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    feeds = dict(zip(names, [a for a in inputs if a is not None], strict=True))
    made = ReferenceEvaluator(model).run(None, feeds)
    arrays = [a for a in made if isinstance(a, np.ndarray)]
    return arrays if len(arrays) == len(list(made)) else None


def _info(name: str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None)


def _ints(inputs: Inputs, attrs: dict[str, Any], name: str, at: int) -> list[int] | None:
    if name in attrs:
        return [int(v) for v in attrs[name]]
    value = inputs[at] if len(inputs) > at else None
    return None if value is None else [int(v) for v in value.reshape(-1)]


def _data(inputs: Inputs, at: int = 0) -> Array:
    value = inputs[at]
    assert value is not None
    return value


def _squeeze(inputs: Inputs, attrs: dict[str, Any]) -> Array:
    axes = _ints(inputs, attrs, "axes", 1)
    return np.squeeze(_data(inputs), tuple(axes) if axes is not None else None)


def _unsqueeze(inputs: Inputs, attrs: dict[str, Any]) -> Array:
    return np.expand_dims(_data(inputs), tuple(_ints(inputs, attrs, "axes", 1) or ()))


def slice_index(shape: Sequence[int], inputs: Inputs, attrs: dict[str, Any]) -> tuple[slice, ...]:
    """The Python slices of a Slice node (opset 1: attributes; opset 10: inputs)."""
    starts, ends = _ints(inputs, attrs, "starts", 1) or [], _ints(inputs, attrs, "ends", 2) or []
    axes = _ints(inputs, attrs, "axes", 3) or list(range(len(starts)))
    steps = _ints(inputs, attrs, "steps", 4) or [1] * len(starts)
    found = [slice(None)] * len(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        n = shape[axis]
        if step > 0:
            lo, hi = (max(0, min(v + n if v < 0 else v, n)) for v in (start, end))
            found[axis] = slice(lo, max(lo, hi), step)
        else:
            lo = max(0, min(start + n if start < 0 else start, n - 1))
            hi = max(-1, min(end + n if end < 0 else end, n - 1))
            found[axis] = slice(lo, None if hi < 0 else hi, step)
    return tuple(found)


def _concat(inputs: Inputs, attrs: dict[str, Any]) -> Array:
    return np.concatenate([a for a in inputs if a is not None], attrs.get("axis", 1))


def _reshape(inputs: Inputs, attrs: dict[str, Any]) -> Array:
    data = _data(inputs)
    want = _ints(inputs, attrs, "shape", 1) or []
    if not attrs.get("allowzero", 0):
        want = [data.shape[i] if n == 0 else n for i, n in enumerate(want)]
    return data.reshape(want)


def _cast(inputs: Inputs, attrs: dict[str, Any]) -> Array:
    return _data(inputs).astype(helper.tensor_dtype_to_np_dtype(attrs["to"]))


def _div(inputs: Inputs, attrs: dict[str, Any]) -> Array:
    a, b = _data(inputs), _divisor(inputs)
    if a.dtype.kind not in "iu":
        return a / b
    sign = np.sign(a) * np.sign(b)  # ONNX truncates towards zero
    return np.asarray(sign * (np.abs(a) // np.abs(b)), a.dtype)


def _mod(inputs: Inputs, attrs: dict[str, Any]) -> Array:
    return (np.fmod if attrs.get("fmod") else np.mod)(_data(inputs), _divisor(inputs))


def _divisor(inputs: Inputs) -> Array:
    made = _data(inputs, 1)
    if made.dtype.kind in "iu" and not made.all():
        raise FloatingPointError("an integer is divided by 0")
    return made


def _constant_of_shape(inputs: Inputs, attrs: dict[str, Any]) -> Array:
    shape = tuple(int(v) for v in _data(inputs))
    value = numpy_helper.to_array(attrs["value"]).reshape(-1)[0] if "value" in attrs else np.float32(0)
    return np.full(shape, value)


def _split(inputs: Inputs, attrs: dict[str, Any]) -> list[Array]:
    data, axis = _data(inputs), attrs.get("axis", 0)
    sizes = _ints(inputs, attrs, "split", 1)
    if sizes is None:
        raise NotImplementedError("even split: the number of outputs is the node's")
    return np.split(data, np.cumsum(sizes)[:-1], axis)


def _expand(inputs: Inputs, attrs: dict[str, Any]) -> Array:
    data = _data(inputs)
    shape = np.broadcast_shapes(data.shape, tuple(int(v) for v in _data(inputs, 1)))
    return np.broadcast_to(data, shape)


def _reduce(fn: Callable[..., Any]) -> Callable[[Inputs, dict[str, Any]], Array]:
    def run(inputs: Inputs, attrs: dict[str, Any]) -> Array:
        axes = _ints(inputs, attrs, "axes", 1)
        if axes == [] or (axes is None and attrs.get("noop_with_empty_axes")):
            axes = None if not attrs.get("noop_with_empty_axes") else []
        data = _data(inputs)
        return np.asarray(
            fn(data, axis=None if axes is None else tuple(axes), keepdims=bool(attrs.get("keepdims", 1)))
        ).astype(data.dtype)

    return run


def _pointwise(fn: Callable[..., Any], same_type: bool = True) -> Callable[[Inputs, dict[str, Any]], Array]:
    def run(inputs: Inputs, attrs: dict[str, Any]) -> Array:
        arrays = [a for a in inputs if a is not None]
        made = np.asarray(fn(*arrays))
        return made.astype(arrays[0].dtype) if same_type else made

    return run


def _gelu(inputs: Inputs, attrs: dict[str, Any]) -> Array:
    """Gelu of the sum of all inputs, by the error function."""
    x = np.asarray(sum(a for a in inputs if a is not None))
    return np.asarray(x * (1 + _erf(x / math.sqrt(2))) / 2, x.dtype)


def _fast_gelu(inputs: Inputs, attrs: dict[str, Any]) -> Array:
    """Gelu of the sum of all inputs, by the hyperbolic tangent."""
    x = np.asarray(sum(a for a in inputs if a is not None))
    return np.asarray(x / 2 * (1 + np.tanh(0.7978845608 * x + 0.0356774081 * x**3)), x.dtype)


def _quick_gelu(inputs: Inputs, attrs: dict[str, Any]) -> Array:
    x = _data(inputs)
    return np.asarray(x / (1 + np.exp(-attrs.get("alpha", 1.702) * x)), x.dtype)


_erf = np.vectorize(math.erf, otypes=[np.float64])
_TABLE: dict[str, Callable[[Inputs, dict[str, Any]], Any]] = {
    "Identity": lambda x, a: x[0],
    "Cast": _cast,
    "Gather": lambda x, a: np.take(_data(x), _data(x, 1), a.get("axis", 0)),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": lambda x, a: _data(x)[slice_index(_data(x).shape, x, a)],
    "Concat": _concat,
    "Reshape": _reshape,
    "Transpose": lambda x, a: np.transpose(_data(x), a.get("perm")),
    "Expand": _expand,
    "Tile": lambda x, a: np.tile(_data(x), [int(v) for v in _data(x, 1)]),
    "Range": lambda x, a: np.arange(_data(x).item(), _data(x, 1).item(), _data(x, 2).item(), dtype=_data(x).dtype),
    "ConstantOfShape": _constant_of_shape,
    "Add": _pointwise(np.add),
    "Sub": _pointwise(np.subtract),
    "Mul": _pointwise(np.multiply),
    "Div": _div,
    "Mod": _mod,
    "Neg": _pointwise(np.negative),
    "Abs": _pointwise(np.abs),
    "Floor": _pointwise(np.floor),
    "Ceil": _pointwise(np.ceil),
    "Sqrt": _pointwise(np.sqrt),
    "Exp": _pointwise(np.exp),
    "Log": _pointwise(np.log),
    "Sin": _pointwise(np.sin),
    "Cos": _pointwise(np.cos),
    "Pow": _pointwise(np.power),
    "Reciprocal": _pointwise(np.reciprocal),
    "Equal": _pointwise(np.equal, same_type=False),
    "Less": _pointwise(np.less, same_type=False),
    "Greater": _pointwise(np.greater, same_type=False),
    "LessOrEqual": _pointwise(np.less_equal, same_type=False),
    "GreaterOrEqual": _pointwise(np.greater_equal, same_type=False),
    "Not": _pointwise(np.logical_not),
    "And": _pointwise(np.logical_and),
    "Or": _pointwise(np.logical_or),
    "Where": lambda x, a: np.where(_data(x), _data(x, 1), _data(x, 2)),
    "com.microsoft.BiasGelu": _gelu,
    "com.microsoft.Gelu": _gelu,
    "com.microsoft.FastGelu": _fast_gelu,
    "com.microsoft.QuickGelu": _quick_gelu,
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
}
