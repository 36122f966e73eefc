"""What is known of every tensor at one set of input sizes, before anything runs: element type, shape, small values.

One walk over the nodes: values where all inputs are known (`evaluate`), shapes by onnx's own per-node inference
otherwise, with these values as data; bodies of control flow lie in the node list between brackets (`flow`). A stale
`value_info` is never read. What inference cannot tell is listed, not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, TypeProto, helper

from onnxprune.evaluate import MAX_ELEMENTS, OPAQUE, evaluate
from onnxprune.feeds import Binding, Shape
from onnxprune.flow import CONTROL, ENTER, LEAVE, OWNER, attribute, results_of
from onnxprune.graph import FLOATS, Graph
from onnxprune.kinds import Kind, Kinds, Value, concrete, says_sizes
from onnxprune.nodes import Wires, attributes
from onnxprune.sparse import Sparse

Known = tuple[Kind, Value | None]
FEW = 2  # entries: the size of an axis, in the second walk, that depends on data
VALUE_ELEMENTS = 1024  # constants of floats up to this size are looked at, integers of any size


@dataclass
class Walk:
    """Facts at one binding."""

    kinds: Kinds
    types: dict[str, Kind] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    failed: list[int] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # outputs of nodes that such inputs do not fit

    def learn(self, name: str, kind: Kind) -> None:
        """A tensor has this type."""
        self.types[name] = kind
        if kind.shape is not None:
            self.shapes[name] = kind.shape
        else:
            self.shapes.pop(name, None)

    def learn_value(self, name: str, value: Value) -> None:
        """A tensor has this value, and so its type."""
        self.values[name] = value
        self.learn(name, self.kinds.tensor(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape))

    def borrow(self, known: Mapping[str, Known], names: Iterable[str]) -> None:
        """Tensors are as another walk found them."""
        for name in filter(None, names):
            kind, value = known[name]
            self.learn(name, kind)
            if value is not None:
                self.values[name] = value

    def forget(self, graph: Graph, nodes: Iterable[int]) -> None:
        """Nothing is known of the sizes and values that some nodes make."""
        for name in (n for i in nodes for n in graph.wires[i].outputs):
            self.shapes.pop(name, None)
            self.values.pop(name, None)


def walk(
    graph: Graph,
    kinds: Kinds,
    binding: Binding,
    told: Mapping[str, Kind] | None = None,
    again: bool = False,
    lent: Mapping[str, Known] | None = None,
) -> Walk:
    """Shapes, types and small values of all tensors at one binding; nodes that inference cannot do are listed in
    `failed`, and have the types that are `told` (`again`: with open axes of another size than told). `lent`: facts that
    are taken as they are.
    """
    facts = Walk(kinds)
    for value in graph.shell.graph.input:
        facts.learn(value.name, _bound(kinds.of(value.type), binding.shapes.get(value.name), kinds))
    for name, tensor in graph.constants.items():
        shape = tuple(tensor.dims)
        facts.learn(name, kinds.tensor(tensor.data_type, shape))
        dense = tensor.data_type not in FLOATS and not isinstance(graph.source(name), Sparse)
        if dense or math.prod(shape) <= VALUE_ELEMENTS:
            facts.values[name] = graph.view(name)
    for i, (node, wires) in enumerate(zip(graph.nodes, graph.wires, strict=True)):
        if wires.operator == "Constant" and wires.outputs[0] in facts.types:
            continue
        if lent and lent.keys() >= set(wires.outputs) - {""}:
            facts.borrow(lent, wires.outputs)
            continue
        if not _by_value(graph, node, wires, facts) and not _by_type(node, wires, facts):
            facts.failed.append(i)
            for n in wires.outputs if told else ():
                if told and n in told:
                    facts.learn(n, _another_time(told[n], facts.types.get(n), kinds) if again else told[n])
    return facts


def _another_time(told: Kind, inferred: Kind | None, kinds: Kinds) -> Kind:
    """A shape that one run told, for the second walk: axes that inference leaves open (how many entries are not zero,
    how many boxes are found) may have another size in the next run, so they get one, and a far smaller one where that
    can be: of many entries often the first hundred are taken, whatever their number.
    """
    if inferred is None or told.shape is None or not inferred.proto.tensor_type.HasField("shape"):
        return told
    known = [d.HasField("dim_value") for d in inferred.proto.tensor_type.shape.dim]
    left_open = [k < len(known) and not known[k] for k in range(len(told.shape))]
    shape = [(FEW if n > FEW else n + 1) if free else n for n, free in zip(told.shape, left_open, strict=True)]
    return kinds.tensor(told.dtype, tuple(shape))


def _bound(kind: Kind, shape: Shape | None, kinds: Kinds) -> Kind:
    return kind if shape is None or not kind.is_tensor else kinds.tensor(kind.dtype, shape)


def _by_value(graph: Graph, node: NodeProto, wires: Wires, facts: Walk) -> bool:
    """Evaluate a node if all its inputs are known and small; True if its outputs are known now."""
    if wires.operator in ("Shape", "Size"):
        shape = facts.shapes.get(wires.inputs[0])
        if shape is None:
            return False
        attrs = attributes(node)
        value = np.array(shape, np.int64)[attrs.get("start", 0) : attrs.get("end")]
        size = wires.operator == "Size"
        return _know(facts, wires, [np.array(math.prod(shape), np.int64) if size else value])
    values = facts.values
    for n in wires.inputs:
        if n and n not in values:
            return False
    if not wires.inputs or node.op_type in OPAQUE or _output_elements(wires, facts) > MAX_ELEMENTS:
        return False
    try:
        given = [values[n] if n else None for n in wires.inputs]
        made = evaluate(node, given, attributes(node), graph.opsets.get("", 1))
    except Exception:  # an operator or type beyond the evaluator; shape inference still has its say
        return False
    return made is not None and _know(facts, wires, made)


def _output_elements(wires: Wires, facts: Walk) -> int:
    if wires.operator == "ConstantOfShape":
        return int(np.prod(facts.values[wires.inputs[0]]))
    if wires.operator == "Expand":
        return int(np.prod(facts.values[wires.inputs[1]])) * facts.values[wires.inputs[0]].size
    return max((facts.values[n].size for n in wires.inputs if n), default=0)


def _know(facts: Walk, wires: Wires, made: list[Value]) -> bool:
    for name, array in zip(wires.outputs, made, strict=False):
        facts.learn_value(name, array)
    return True


def _by_type(node: NodeProto, wires: Wires, facts: Walk) -> bool:
    if node.op_type in (ENTER, LEAVE) or (node.op_type in CONTROL and attribute(node, OWNER) is not None):
        return _by_flow(node, wires, facts)
    values = [facts.values.get(n) for n in wires.inputs]
    values = [v if v is not None and says_sizes(wires.operator, v) else None for v in values]
    answer = facts.kinds.outputs(node, wires, [facts.types.get(n) for n in wires.inputs], values)
    if answer is None:
        facts.refused += [n for n in wires.outputs if n]
        return False
    for name, kind in zip(wires.outputs, answer, strict=True):
        if name and kind is not None:
            facts.learn(name, kind)
    return all(kind is not None and kind.is_settled for n, kind in zip(wires.outputs, answer, strict=True) if n)


def _by_flow(node: NodeProto, wires: Wires, facts: Walk) -> bool:
    """Types around bodies of control flow, which lie in the node list between brackets (see `flow.py`)."""
    scalar = facts.kinds.tensor(TensorProto.INT64, ()).proto
    given = [kind.proto if kind else None for kind in map(facts.types.get, wires.inputs)]
    made: list[TypeProto | None]
    own = attributes(node)
    if node.op_type == ENTER:
        states = len(given) - own.get("num_scan_inputs", 0)
        axes = own.get("scan_input_axes", [0] * len(given))
        inside = [t if i < states else _without_axis(t, axes[i - states]) for i, t in enumerate(given)]
        loop = len(wires.outputs) > 1 and "num_scan_inputs" not in own
        made = [scalar, *(_loop_types(inside) if loop else inside)]
    elif node.op_type == LEAVE:
        made = list(given[1 : 1 + len(wires.outputs)])
    else:
        made = _control_types(node, given, own, facts)
    for name, kind in zip(wires.outputs, made, strict=False):
        if kind is not None:
            facts.learn(name, facts.kinds.of(kind))
    return all(n in facts.shapes for n in wires.outputs if n)


def _loop_types(given: list[TypeProto | None]) -> list[TypeProto | None]:
    integer, boolean = (helper.make_tensor_type_proto(t, []) for t in (TensorProto.INT64, TensorProto.BOOL))
    return [integer, boolean, *given[2:]]


def _control_types(
    node: NodeProto, given: list[TypeProto | None], own: dict[str, Any], facts: Walk
) -> list[TypeProto | None]:
    """Output types of If, Loop and Scan from the results of their bodies, for an If those of the branch that is taken
    if that is known; None where sizes are not known before running.
    """
    inputs, count = own.get("flow_inputs", len(given)), len(node.output)
    results = given[inputs:]
    if node.op_type == "If":
        taken = facts.values.get(node.input[0])
        if taken is not None and taken.size == 1:
            made = results_of(node, "then_branch" if taken.item() else "else_branch")
            return [kind.proto if (kind := facts.types.get(n)) else None for n in made]
        pairs = zip(results[:count], results[count:], strict=False)
        return [_either(a, b) for a, b in pairs]
    states = inputs - (2 if node.op_type == "Loop" else own.get("num_scan_inputs", 0))
    inner = results[1:] if node.op_type == "Loop" else results
    if node.op_type == "Loop":
        trips = facts.values.get(node.input[0])
        length = int(trips.item()) if trips is not None and trips.size == 1 else None
        axes = [0] * count
    else:
        axis = own.get("scan_input_axes", [0])[0]
        shape = facts.shapes.get(node.input[states]) if states < len(node.input) else None
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
    """The type of a slice; of unknown rank where the rank is not known."""
    if kind is None:
        return None
    made = TypeProto()
    made.CopyFrom(kind)
    if made.tensor_type.HasField("shape"):
        del made.tensor_type.shape.dim[axis]
    return made


def _with_axis(kind: TypeProto | None, axis: int, length: int | None) -> TypeProto | None:
    """The type of slices put together; None where a size is not known."""
    shape = None if kind is None else concrete(kind)
    if kind is None or shape is None or length is None:
        return None
    sizes = list(shape)
    sizes.insert(axis % (len(sizes) + 1), length)
    return helper.make_tensor_type_proto(kind.tensor_type.elem_type, sizes)
