"""Node tests of the onnx package between prunable neighbours: a dense layer makes each input, a weighted sum takes each
output, so that whatever the operator leaves free can be cut.

    x (1, 6) -> MatMul -> Reshape to the input's shape -> Sigmoid, brought into (0.9, 1) -> times the test's own data

The operator thus sees numbers near those of its test. Inputs that are not made so are constants with the test's data.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
WIDTH = 6
MAX_ELEMENTS = 40_000
NEWEST, OLDEST = 26, 7  # opsets that ONNX Runtime runs


def arrays(case: Any) -> tuple[list[Any], list[Any]]:
    """The inputs and outputs of a test's first data set; sequences and the like are None."""
    given, wanted = case.data_sets[0]
    return [_array(v) for v in given], [_array(v) for v in wanted]


def _array(value: Any) -> Any:
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, (np.ndarray, np.generic, int, float)) else None


def makeable(case: Any) -> list[int]:
    """Inputs that can be made by a layer: floats, and others only if there are none."""
    found: dict[bool, list[int]] = {True: [], False: []}
    for k, (value, array) in enumerate(zip(case.model.graph.input, arrays(case)[0], strict=False)):
        if array is not None and array.ndim and 1 < array.size <= MAX_ELEMENTS and array.dtype.kind in "fiubV":
            found[value.type.tensor_type.elem_type in FLOATS].append(k)
    return found[True] or found[False]


def opset(model: ModelProto) -> int:
    """The opset nearest to the model's that ONNX Runtime runs and that has the same operators."""
    given = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), NEWEST)
    wanted = min(max(given, OLDEST), NEWEST)
    return wanted if all(_since(n, wanted) == _since(n, given) for n in model.graph.node) else given


def _since(node: onnx.NodeProto, version: int) -> int:
    try:
        return int(onnx.defs.get_schema(node.op_type, version, node.domain).since_version)
    except onnx.defs.SchemaError:
        return -1


def wrapped(case: Any, chosen: Collection[int]) -> ModelProto | None:
    """The test's model with the inputs `chosen` made by layers; None where an input or output is no tensor."""
    inputs, outputs = arrays(case)
    graph = GraphProto(name="wrapped")
    rng = np.random.default_rng(0)
    for k, (value, array) in enumerate(zip(case.model.graph.input, inputs, strict=False)):
        if array is None or not value.type.HasField("tensor_type"):
            return None
        if k in chosen:
            _make(graph, value, array, rng)
        else:
            graph.initializer.append(numpy_helper.from_array(array, value.name))
            graph.initializer[-1].data_type = value.type.tensor_type.elem_type
    graph.node.extend(case.model.graph.node)
    graph.initializer.extend(case.model.graph.initializer)
    graph.sparse_initializer.extend(case.model.graph.sparse_initializer)
    for value, array in zip(case.model.graph.output, outputs, strict=False):
        if array is None or array.dtype.kind not in "fiubV" or not value.type.HasField("tensor_type"):
            return None
        _take(graph, value.name, array, rng)
    graph.input.append(helper.make_tensor_value_info("wrapped.x", TensorProto.FLOAT, [1, WIDTH]))
    model = ModelProto(ir_version=min(max(case.model.ir_version, 4), 11), graph=graph, functions=case.model.functions)
    if all(o.domain not in ("", "ai.onnx") for o in case.model.opset_import):
        model.opset_import.append(helper.make_opsetid("", NEWEST))
    for o in case.model.opset_import:
        version = opset(case.model) if o.domain in ("", "ai.onnx") else o.version
        model.opset_import.append(helper.make_opsetid(o.domain, version))
    return model


def _const(graph: GraphProto, name: str, array: Any) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return name


def _op(graph: GraphProto, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
    graph.node.append(helper.make_node(kind, inputs, [output], name=f"wrapped.{output}", **attributes))
    return output


def _make(graph: GraphProto, value: onnx.ValueInfoProto, array: Any, rng: np.random.Generator) -> None:
    """An input out of x."""
    n, kind = value.name, value.type.tensor_type.elem_type
    weight = rng.standard_normal((WIDTH, array.size)).astype(np.float32)
    wide = _op(graph, "MatMul", ["wrapped.x", _const(graph, f"{n}.weight", weight)], f"{n}.wide")
    shaped = _op(graph, "Reshape", [wide, _const(graph, f"{n}.shape", np.array(array.shape, np.int64))], f"{n}.shaped")
    share = _op(graph, "Sigmoid", [shaped], f"{n}.share")
    part = _op(graph, "Mul", [share, _const(graph, f"{n}.part", np.float32(-0.1))], f"{n}.below")
    factor = _op(graph, "Add", [part, _const(graph, f"{n}.one", np.float32(1))], f"{n}.factor")
    data = _const(graph, f"{n}.data", np.nan_to_num(array.astype(np.float32), nan=1, posinf=2, neginf=-2))
    made = _op(graph, "Mul", [factor, data], n if kind == TensorProto.FLOAT else f"{n}.float")
    if kind == TensorProto.BOOL:
        _op(graph, "Greater", [made, _const(graph, f"{n}.half", np.float32(0.5))], n)
    elif kind != TensorProto.FLOAT:
        _op(graph, "Cast", [made], n, to=kind)


def _take(graph: GraphProto, name: str, array: Any, rng: np.random.Generator) -> None:
    """A few weighed sums of an output."""
    real = _op(graph, "Cast", [name], f"{name}.real", to=TensorProto.FLOAT)
    end = real
    if array.ndim:
        flat = _op(graph, "Reshape", [real, _const(graph, f"{name}.flat", np.array([1, -1], np.int64))], f"{name}.row")
        weight = rng.standard_normal((array.size, WIDTH)).astype(np.float32) / math.sqrt(max(array.size, 1))
        end = _op(graph, "MatMul", [flat, _const(graph, f"{name}.weights", weight)], f"{name}.end")
    graph.output.append(helper.make_tensor_value_info(end, TensorProto.FLOAT, [1, WIDTH] if array.ndim else []))
