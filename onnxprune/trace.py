"""What is known of every tensor before anything runs: concrete shape, element type, small values - and which of it may
vary.

One walk over the nodes at a concrete binding of the symbolic sizes: values where all inputs are known (`evaluate`),
shapes by onnx's own per-node inference otherwise. A second walk at another binding tells what is dynamic: a size or a
value that differs. A stale `value_info` is never read. Shapes that inference cannot tell (contrib operators,
data-dependent sizes) come from one ONNX Runtime run, and are only asked for when there are any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, TypeProto, helper, numpy_helper, shape_inference

from onnxprune import contrib
from onnxprune.evaluate import MAX_ELEMENTS, OPAQUE, evaluate
from onnxprune.feeds import Binding, Shape, bindings, random_feeds
from onnxprune.flow import CONTROL, ENTER, LEAVE, OWNER, attribute, inner_names
from onnxprune.graph import FLOATS, Graph, attributes
from onnxprune.sessions import program, run, watched
from onnxprune.sparse import Sparse

SHAPE_DATA_ELEMENTS = 1024  # only operands this small are shown to onnx's inference: shapes, axes, sizes


@dataclass
class Walk:
    """Facts at one binding."""

    types: dict[str, TypeProto] = field(default_factory=dict)
    values: dict[str, NDArray[Any]] = field(default_factory=dict)
    failed: list[int] = field(default_factory=list)

    _shapes: dict[str, tuple[TypeProto, Shape | None]] = field(default_factory=dict)

    def shape(self, name: str) -> Shape | None:
        kind = self.types.get(name)
        known = self._shapes.get(name)
        if kind is None:
            return None
        if known is None or known[0] is not kind:
            known = self._shapes[name] = kind, _concrete(kind)
        return known[1]


def _concrete(kind: TypeProto) -> Shape | None:
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None


@dataclass(frozen=True)
class Trace:
    """Facts at two bindings. `shapes` and `values` are those of the first; `other_*` of the second."""

    binding: Binding
    other: Binding
    shapes: dict[str, Shape]
    other_shapes: dict[str, Shape]
    values: dict[str, NDArray[Any]]
    other_values: dict[str, NDArray[Any]]
    dtypes: dict[str, int]

    def dynamic(self, name: str, axis: int) -> bool:
        """Whether the size of an axis differs between the bindings."""
        other = self.other_shapes.get(name)
        return other is None or len(other) <= axis or other[axis] != self.shapes[name][axis]

    def static(self, name: str) -> NDArray[Any] | None:
        """The value of a tensor if it is known and the same at both bindings."""
        a, b = self.values.get(name), self.other_values.get(name)
        return a if a is not None and b is not None and a.shape == b.shape and np.array_equal(a, b) else None


def trace(graph: Graph, shapes: Mapping[str, Shape] | None = None) -> Trace:
    """Walk `graph` at two bindings; `shapes` are input shapes known from data. Raises InputError if no binding
    works.
    """
    first, second, facts = min(_attempts(graph, shapes or {}), key=lambda a: len(a[2].failed))
    told = complete(graph, first, facts)
    other = facts
    if first.shapes != second.shapes:
        other = walk(graph, second)
        if len(other.failed) > len(facts.failed) and not facts.failed:
            second, other = first, facts  # the model fits one size only, whatever its input says
        told = complete(graph, second, other)
    if told:
        other = walk(graph, second, told, longer=True)
    known, others = dict(_shapes(facts)), dict(_shapes(other))
    dtypes = {n: t.tensor_type.elem_type for n, t in facts.types.items() if t.HasField("tensor_type")}
    return Trace(first, second, known, others, facts.values, other.values, dtypes)


def _attempts(graph: Graph, shapes: Mapping[str, Shape]) -> Iterator[tuple[Binding, Binding, Walk]]:
    """Walks at the bindings to try, up to the first that leaves nothing open."""
    for first, second in bindings(graph, shapes):
        facts = walk(graph, first)
        yield first, second, facts
        if not facts.failed or first.shapes == second.shapes:
            return


def _shapes(facts: Walk) -> Iterator[tuple[str, Shape]]:
    for name in facts.types:
        if (shape := facts.shape(name)) is not None:
            yield name, shape


def walk(graph: Graph, binding: Binding, told: Mapping[str, TypeProto] | None = None, longer: bool = False) -> Walk:
    """Shapes, types and small values of all tensors at one binding; nodes that inference cannot do are listed in
    `failed`, and have the types that are `told` (`longer`: with open axes one longer than told).
    """
    facts = Walk()
    for value in graph.shell.graph.input:
        facts.types[value.name] = _bound(value.type, binding.shapes.get(value.name))
    for name, tensor in graph.constants.items():
        facts.types[name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        dense = tensor.data_type not in FLOATS and not isinstance(graph.source(name), Sparse)
        if dense or int(np.prod(tensor.dims)) <= SHAPE_DATA_ELEMENTS:
            facts.values[name] = graph.view(name)
    for i, node in enumerate(graph.nodes):
        if node.op_type == "Constant" and node.output[0] in facts.types:
            continue
        if not _by_value(graph, node, facts) and not _by_type(graph, node, facts):
            facts.failed.append(i)
            for n in node.output if told else ():
                if told and n in told:
                    facts.types[n] = _one_longer(told[n], facts.types.get(n)) if longer else told[n]
    return facts


def _bound(kind: TypeProto, shape: Shape | None) -> TypeProto:
    if shape is None or not kind.HasField("tensor_type"):
        return kind
    return helper.make_tensor_type_proto(kind.tensor_type.elem_type, shape)


def _by_value(graph: Graph, node: NodeProto, facts: Walk) -> bool:
    """Evaluate a node if all its inputs are known and small; True if its outputs are known now."""
    if node.op_type in ("Shape", "Size"):
        shape = facts.shape(node.input[0])
        if shape is None:
            return False
        attrs = attributes(node)
        value = np.array(shape, np.int64)[attrs.get("start", 0) : attrs.get("end")]
        return _know(facts, node, [value if node.op_type == "Shape" else np.array(int(np.prod(shape)), np.int64)])
    if node.op_type in OPAQUE or not all(n in facts.values or not n for n in node.input) or not node.input:
        return False
    if _output_elements(node, facts) > MAX_ELEMENTS:
        return False
    try:
        made = evaluate(
            node, [facts.values[n] if n else None for n in node.input], attributes(node), graph.opsets.get("", 1)
        )
    except Exception:  # an operator or type beyond the evaluator; shape inference still has its say
        return False
    return made is not None and _know(facts, node, made)


def _output_elements(node: NodeProto, facts: Walk) -> int:
    if node.op_type == "ConstantOfShape":
        return int(np.prod(facts.values[node.input[0]]))
    if node.op_type == "Expand":
        return int(np.prod(facts.values[node.input[1]])) * facts.values[node.input[0]].size
    return max((facts.values[n].size for n in node.input if n), default=0)


def _know(facts: Walk, node: NodeProto, made: list[NDArray[Any]]) -> bool:
    for name, array in zip(node.output, made, strict=False):
        facts.values[name] = array
        facts.types[name] = helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
    return True


def _by_flow(node: NodeProto, facts: Walk) -> bool:
    """Types around bodies of control flow, which lie in the node list between brackets (see `flow.py`)."""
    scalar = helper.make_tensor_type_proto(TensorProto.INT64, [])
    given = [facts.types.get(n) for n in node.input]
    made: list[TypeProto | None]
    own = attributes(node)
    if node.op_type == ENTER:
        states = len(given) - own.get("num_scan_inputs", 0)
        axes = own.get("scan_input_axes", [0] * len(given))
        inside = [t if i < states else _without_axis(t, axes[i - states]) for i, t in enumerate(given)]
        loop = len(node.output) > 1 and "num_scan_inputs" not in own
        made = [scalar, *(_loop_types(inside) if loop else inside)]
    elif node.op_type == LEAVE:
        made = list(given[1 : 1 + len(node.output)])
    else:
        made = _control_types(node, given, own, facts)
    for name, kind in zip(node.output, made, strict=False):
        if kind is not None:
            facts.types[name] = kind
    return all(facts.shape(n) is not None for n in node.output if n)


def _loop_types(given: list[TypeProto | None]) -> list[TypeProto | None]:
    integer, boolean = (helper.make_tensor_type_proto(t, []) for t in (TensorProto.INT64, TensorProto.BOOL))
    return [integer, boolean, *given[2:]]


def _control_types(
    node: NodeProto, given: list[TypeProto | None], own: dict[str, Any], facts: Walk
) -> list[TypeProto | None]:
    """Output types of If, Loop and Scan from the results of their bodies; None where sizes are not known before
    running.
    """
    inputs, count = own.get("flow_inputs", len(given)), len(node.output)
    results = given[inputs:]
    if node.op_type == "If":
        pairs = zip(results[:count], results[count:], strict=False)
        return [_either(a, b) for a, b in pairs]
    states = inputs - (2 if node.op_type == "Loop" else own.get("num_scan_inputs", 0))
    inner = results[1:] if node.op_type == "Loop" else results
    if node.op_type == "Loop":
        trips = facts.values.get(node.input[0])
        length = int(trips) if trips is not None and trips.size == 1 else None
        axes = [0] * count
    else:
        axis = own.get("scan_input_axes", [0])[0]
        shape = facts.shape(node.input[states]) if states < len(node.input) else None
        length = shape[axis] if shape else None
        axes = own.get("scan_output_axes", [0] * count)
    return [t if k < states else _with_axis(t, axes[k - states], length) for k, t in enumerate(inner[:count])]


def _either(a: TypeProto | None, b: TypeProto | None) -> TypeProto | None:
    """The type of a tensor that is one of two: sizes on which both agree, the others open."""
    known = a if a is not None else b
    if known is None or not known.tensor_type.HasField("shape"):
        return None
    made = TypeProto()
    made.CopyFrom(known)
    others = b.tensor_type.shape.dim if a is not None and b is not None else ()
    if a is not None and b is not None and len(others) != len(made.tensor_type.shape.dim):
        return None
    for k, dim in enumerate(made.tensor_type.shape.dim):
        if not others or others[k] != dim:
            dim.Clear()
    return made


def _without_axis(kind: TypeProto | None, axis: int) -> TypeProto | None:
    if kind is None:
        return None
    made = TypeProto()
    made.CopyFrom(kind)
    del made.tensor_type.shape.dim[axis]
    return made


def _with_axis(kind: TypeProto | None, axis: int, length: int | None) -> TypeProto | None:
    if kind is None or length is None:
        return None
    sizes = [d.dim_value for d in kind.tensor_type.shape.dim]
    sizes.insert(axis % (len(sizes) + 1), length)
    return helper.make_tensor_type_proto(kind.tensor_type.elem_type, sizes)


def _by_type(graph: Graph, node: NodeProto, facts: Walk) -> bool:
    if node.op_type in (ENTER, LEAVE) or (node.op_type in CONTROL and attribute(node, OWNER) is not None):
        return _by_flow(node, facts)
    node = contrib.standard(node)
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        schema = onnx.defs.get_schema(node.op_type, graph.opsets.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return _by_contrib(node, facts)
    names = [n for n in node.input if n]
    if any(n not in facts.types for n in names):
        return False
    data = {n: _operand(facts.values[n]) for n in names if n in facts.values and _small(facts.values[n])}
    try:
        found = shape_inference.infer_node_outputs(
            schema,
            node,
            {n: facts.types[n] for n in names},
            data,
            opset_imports=graph.shell.opset_import,
            ir_version=graph.shell.ir_version,
        )
    except Exception:  # onnx raises InferenceError, ValueError, RuntimeError for one thing: it cannot tell
        return False
    facts.types.update(found)
    if node.op_type in ("Slice", "Pad") and len(node.input) > 3:
        _keep_other_axes(node, facts)
    return all(facts.shape(n) is not None or not _is_tensor(found.get(n)) for n in node.output if n)


def _keep_other_axes(node: NodeProto, facts: Walk) -> None:
    """Slice and Pad at places known only at run time: axes that they do not name keep their sizes."""
    axes, shape, made = facts.values.get(node.input[3]), facts.shape(node.input[0]), facts.types.get(node.output[0])
    if axes is None or shape is None or made is None or len(made.tensor_type.shape.dim) != len(shape):
        return
    named = {int(a) % len(shape) for a in axes.reshape(-1)}
    for k, dim in enumerate(made.tensor_type.shape.dim):
        if k not in named:
            dim.dim_value = shape[k]


def _by_contrib(node: NodeProto, facts: Walk) -> bool:
    """Types of an operator of ONNX Runtime that onnx has no schema for."""
    kinds = [facts.types[n].tensor_type.elem_type if n in facts.types else 0 for n in node.input]
    given = contrib.Given(
        attributes(node), [facts.shape(n) for n in node.input], kinds, [facts.values.get(n) for n in node.input]
    )
    for name, made in zip(node.output, contrib.outputs(node, given) or [], strict=False):
        if name and made is not None:
            facts.types[name] = helper.make_tensor_type_proto(made[1], made[0])
    return all(facts.shape(n) is not None for n in node.output if n)


def _is_tensor(kind: TypeProto | None) -> bool:
    return kind is None or kind.HasField("tensor_type")


def _small(value: NDArray[Any]) -> bool:
    return value.size <= SHAPE_DATA_ELEMENTS


def _operand(value: NDArray[Any]) -> TensorProto:
    return numpy_helper.from_array(np.array(value, order="C"))


def complete(graph: Graph, binding: Binding, facts: Walk) -> dict[str, TypeProto]:
    """Ask ONNX Runtime for the shapes that inference could not tell, then walk on from them; returns what it told.
    Quietly leaves what does not run.
    """
    if not facts.failed:
        return {}
    inner = inner_names(graph.nodes)
    unknown = [n for node in graph.nodes for n in node.output if n and n not in inner and facts.shape(n) is None]
    try:
        made = run(program(watched(graph, unknown)), random_feeds(graph, binding), unknown)
    except Exception:  # sizes that the model refuses, custom operators, sequences: the tensors stay unknown
        return {}
    told = {
        n: helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in made.items()
        if isinstance(a, np.ndarray)
    }
    again = walk(graph, binding, told)
    facts.types.update({**told, **again.types})
    facts.values.update(again.values)
    return told


def _one_longer(told: TypeProto, inferred: TypeProto | None) -> TypeProto:
    """A shape that one run told, for the second walk: axes that inference leaves open (how many entries are not zero,
    how many boxes are found) may have another size in the next run, so they get one.
    """
    if inferred is None or not inferred.tensor_type.HasField("shape"):
        return told
    made = TypeProto()
    made.CopyFrom(told)
    dims = inferred.tensor_type.shape.dim
    for dim, known in zip(made.tensor_type.shape.dim, dims, strict=False):
        dim.dim_value += not known.HasField("dim_value")
    return made
