"""Types of a node's outputs from what is known of its inputs, by onnx's own per-node inference or by the tables of
`contrib`.

Large graphs repeat a few blocks, and so ask the same question thousands of times: operator, attributes, types and small
values of the inputs. Each is asked once. For that, types are there once too and compare by identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TypeProto, helper, numpy_helper, shape_inference

from onnxprune import contrib
from onnxprune.contrib import Shape
from onnxprune.graph import Graph
from onnxprune.nodes import Wires, attributes

Value = NDArray[Any]
MAX_ELEMENTS = 1024  # only operands this small are shown to onnx's inference: shapes, axes, sizes
FLOATS_READ = ("OneHot", "Range", "Resize", "Upsample")  # where floats say sizes: depths, bounds, scales


@dataclass(frozen=True, eq=False, slots=True)
class Kind:
    """A type: as onnx has it, its element type, and its shape where that is known in full."""

    proto: TypeProto
    is_tensor: bool
    dtype: int
    shape: Shape | None

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left open: a known shape, or no tensor."""
        return self.shape is not None or not self.is_tensor


Answer = tuple[Kind | None, ...] | None


def says_sizes(operator: str, value: Value) -> bool:
    """Whether the value of an operand may say something of the shapes that come out."""
    kinds = "iubf" if operator in FLOATS_READ else "iub"
    return value.size <= MAX_ELEMENTS and value.dtype.kind in kinds


class Kinds:
    """The types of one graph's tensors, and the answers about its nodes."""

    def __init__(self, graph: Graph) -> None:
        self._shell, self._opsets = graph.shell, graph.opsets
        self._tensors: dict[tuple[int, Shape], Kind] = {}
        self._others: dict[bytes, Kind] = {}
        self._answers: dict[tuple[Any, ...], Answer] = {}

    def tensor(self, dtype: int, shape: Shape) -> Kind:
        """The type of a tensor of known shape."""
        found = self._tensors.get((dtype, shape))
        if found is None:
            proto = helper.make_tensor_type_proto(dtype, shape)
            found = self._tensors[dtype, shape] = Kind(proto, True, dtype, shape)
        return found

    def of(self, proto: TypeProto) -> Kind:
        """A type as onnx has it; `proto` must not be changed afterwards."""
        kind = Kind(proto, proto.HasField("tensor_type"), proto.tensor_type.elem_type, concrete(proto))
        if kind.shape is not None:
            return self.tensor(kind.dtype, kind.shape)
        return self._others.setdefault(proto.SerializeToString(deterministic=True), kind)

    def outputs(
        self, node: NodeProto, wires: Wires, given: Sequence[Kind | None], values: Sequence[Value | None]
    ) -> Answer:
        """Types of a node's outputs, None where inference cannot tell, and None in all if such inputs, each of a known
        shape, do not fit the operator. `given`, and `values` that say sizes: by input, None where absent or unknown.
        """
        question = (
            wires.operator,
            b"".join([a.SerializeToString(deterministic=True) for a in node.attribute]),
            tuple(given),
            tuple([None if v is None else (v.dtype.char, v.shape, v.tobytes()) for v in values]),
            tuple(map(bool, wires.inputs)),
            tuple(map(bool, wires.outputs)),
        )
        if question not in self._answers:
            self._answers[question] = self._asked(node, given, values)
        return self._answers[question]

    def _asked(self, node: NodeProto, given: Sequence[Kind | None], values: Sequence[Value | None]) -> Answer:
        plain = contrib.standard(node)
        domain = "" if plain.domain == "ai.onnx" else plain.domain
        try:
            schema = onnx.defs.get_schema(plain.op_type, self._opsets.get(domain, 1), domain)
        except onnx.defs.SchemaError:
            return self._by_contrib(node, given, values)
        kinds = dict(zip(node.input, given, strict=True))
        data = {n: v for n, v in zip(node.input, values, strict=True) if n and v is not None}
        found = self._inferred(schema, plain, kinds, data)
        if found is None:
            settled = all(k is None or k.is_settled for k in given)
            return None if settled else (None,) * len(node.output)
        return tuple([self.of(found[n]) if n in found else None for n in node.output])

    def _inferred(
        self, schema: Any, node: NodeProto, kinds: Mapping[str, Kind | None], data: Mapping[str, Value]
    ) -> dict[str, TypeProto] | None:
        names = [n for n in node.input if n]
        types = {n: kind.proto for n in names if (kind := kinds[n]) is not None}
        if len(types) < len(set(names)):
            return {}
        try:
            found: dict[str, TypeProto] = shape_inference.infer_node_outputs(
                schema,
                node,
                types,
                {n: numpy_helper.from_array(np.array(data[n], order="C")) for n in names if n in data},
                opset_imports=self._shell.opset_import,
                ir_version=self._shell.ir_version,
            )
        except Exception:  # onnx raises InferenceError, ValueError, RuntimeError for one thing: it cannot tell
            return None
        if node.op_type in ("Slice", "Pad") and len(node.input) > 3:
            _keep_other_axes(found.get(node.output[0]), kinds[node.input[0]], data.get(node.input[3]))
        return found

    def _by_contrib(self, node: NodeProto, given: Sequence[Kind | None], values: Sequence[Value | None]) -> Answer:
        """Types of an operator of ONNX Runtime that onnx has no schema for."""
        asked = contrib.Given(
            attributes(node),
            [k.shape if k else None for k in given],
            [k.dtype if k else 0 for k in given],
            list(values),
        )
        made = contrib.outputs(node, asked) or []
        kinds = [m and self.tensor(m[1], m[0]) for m in made[: len(node.output)]]
        return (*kinds, *[None] * (len(node.output) - len(kinds)))


def _keep_other_axes(made: TypeProto | None, data: Kind | None, axes: Value | None) -> None:
    """Slice and Pad at places known only at run time: axes that they do not name keep their sizes."""
    shape = data.shape if data else None
    if axes is None or shape is None or made is None or len(made.tensor_type.shape.dim) != len(shape):
        return
    named = {int(a) % len(shape) for a in axes.reshape(-1)}
    for k, dim in enumerate(made.tensor_type.shape.dim):
        if k not in named:
            dim.dim_value = shape[k]


def concrete(proto: TypeProto) -> Shape | None:
    """The shape of a tensor type, None where a size is not known."""
    if not proto.HasField("tensor_type") or not proto.tensor_type.HasField("shape"):
        return None
    dims = proto.tensor_type.shape.dim
    return tuple([d.dim_value for d in dims]) if all(d.HasField("dim_value") for d in dims) else None
