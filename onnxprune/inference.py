"""Dimension inference: one walk over the nodes, one rule call each, types every axis of the graph.

    activations   one list of axes per tensor, made by its producer's rule
    constants     one list of axes per *use*: exporters share equal initialisers, and what is tied by accident is not
    tied.
                  Weights shared by several products (embedding and head) are tied afterwards.

Whatever a rule does not ask for is frozen, as are graph inputs and outputs, what control flow captures, and sizes that
vary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from onnx import NodeProto

from onnxprune.dims import ONE, Dim, Expr, Reason, atoms, resolve
from onnxprune.errors import Barrier
from onnxprune.graph import FLOATS, Graph
from onnxprune.nodes import operator
from onnxprune.quantization import stands_for_reals
from onnxprune.rules import RULES, elementwise
from onnxprune.rules.rule import Axes, Node, Signature
from onnxprune.trace import Trace
from onnxprune.unification import Space


class Use(NamedTuple):
    """One use of a constant: input `input` of node `node`."""

    tensor: str
    node: int
    input: int
    axes: tuple[Expr, ...]


class Place(NamedTuple):
    """A constant's axis that carries a dim, and the node that uses it."""

    node: str
    operator: str
    tensor: str
    axis: int


@dataclass(frozen=True)
class DimInfo:
    """A dim as people see it. `name`: the tensor and axis where it is first found; `kind`: what its units are
    called.
    """

    dim: Dim
    name: str
    kind: str
    places: tuple[Place, ...]


@dataclass(frozen=True)
class TypedGraph:
    """A graph with the axes of every tensor, and the signature of every node."""

    graph: Graph
    facts: Trace
    axes: dict[str, Axes]
    signatures: tuple[Signature, ...]

    @cached_property
    def uses(self) -> tuple[Use, ...]:
        """Typed uses of constants, in node order."""
        constants = self.graph.constants
        return tuple(
            [
                Use(name, i, j, tuple(axes))
                for i, (wires, signature) in enumerate(zip(self.graph.wires, self.signatures, strict=True))
                for j, name in enumerate(wires.inputs)
                if name in constants and (axes := signature.inputs[j]) is not None
            ]
        )

    @cached_property
    def weights(self) -> dict[str, list[Use]]:
        """Typed uses by constant."""
        found: dict[str, list[Use]] = {}
        for use in self.uses:
            found.setdefault(use.tensor, []).append(use)
        return found

    @cached_property
    def dims(self) -> tuple[DimInfo, ...]:
        """Every dim of two or more units that a constant carries or an operator makes, frozen ones included, in order
        of appearance.
        """
        from onnxprune.naming import name_dims

        return name_dims(self)

    @cached_property
    def prunable(self) -> tuple[DimInfo, ...]:
        return tuple(d for d in self.dims if not d.dim.frozen and d.dim.size > 1)

    def all_axes(self) -> Iterator[Expr]:
        """Every axis expression in the graph: of constants by use, then of activations."""
        for use in self.uses:
            yield from use.axes
        for axes in self.axes.values():
            yield from axes


def infer(graph: Graph, facts: Trace) -> TypedGraph:
    """Type a graph. Never fails on a graph that could be traced: what cannot be typed is frozen, with a reason."""
    return _Walk(graph, facts).typed()


class _Walk:
    """The axes found so far."""

    def __init__(self, graph: Graph, facts: Trace) -> None:
        self.graph, self.facts, self.space = graph, facts, Space()
        self.axes: dict[str, Axes] = {}
        self.constants, self.opset = graph.constants, graph.opsets.get("", 1)

    def typed(self) -> TypedGraph:
        graph, facts, space, axes = self.graph, self.facts, self.space, self.axes
        for value in graph.inputs:
            shape = facts.shapes.get(value.name)
            if shape is not None:
                axes[value.name] = [
                    space.dim(n, Reason("dynamic" if facts.dynamic(value.name, k) else "graph-input", value.name))
                    for k, n in enumerate(shape)
                ]
        signatures = tuple([self._type_node(i) for i in range(len(graph.nodes))])
        for output in graph.outputs:
            for e in axes.get(output.name, []):
                space.freeze(e, Reason("graph-output", output.name))
        for node, wires in zip(graph.nodes, graph.wires, strict=True):
            for name in wires.captured:
                for e in axes.get(name, []):
                    space.freeze(e, Reason("control-flow", node.name, node.op_type))
        made = TypedGraph(graph, facts, axes, signatures)
        _tie(made, space)
        return made

    def _type_node(self, index: int) -> Signature:
        proto, wires = self.graph.nodes[index], self.graph.wires[index]
        if wires.operator == "Constant" and wires.outputs[0] in self.constants:
            return Signature([], [None])
        inputs = [self._input_axes(name) for name in wires.inputs]
        node = Node(proto, wires, index, self.opset, self.space, self.facts, inputs)
        rule = RULES.get(wires.operator)
        self.space.where = node.where
        try:
            if rule is None:
                raise Barrier("no-rule", wires.operator)
            rule(node)
            self._verify(node)
        except Barrier as stop:
            _block(node, Reason(stop.code, node.where, _told(node, stop.detail)))
        except (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError) as error:
            _block(node, Reason("rule-mismatch", node.where, f"{proto.op_type}: {error}"))
        self._close_inputs(node)
        self._close_outputs(node)
        return node.signature

    def _input_axes(self, name: str) -> Axes | None:
        constant = self.constants.get(name)
        if constant is None:
            return self.axes.get(name)
        return [ONE if n == 1 else self.space.dim(n) for n in constant.dims]

    def _verify(self, node: Node) -> None:
        """The axes that the rule made must have the traced sizes; a wrong rule, or a graph that does not fit its
        inputs, is a barrier.
        """
        for name, made in zip(node.outputs, node.signature.outputs, strict=True):
            shape = self.facts.shapes.get(name)
            if name and shape is None:
                raise Barrier("shape-unknown", f"output {name!r}")
            if made is not None and tuple([e.size for e in made]) != shape:
                raise Barrier("rule-mismatch", f"{[e.size for e in made]} against {list(shape or ())}")

    def _close_inputs(self, node: Node) -> None:
        """Freeze operands that the rule did not ask for; constants among them carry no axes at all, but for the weights
        of a barrier.
        """
        barrier = node.signature.barrier
        for i, axes in enumerate(node.signature.inputs):
            if i in node.typed or axes is None:
                continue
            for e in axes:
                self.space.freeze(e, barrier or Reason("operand", node.where, node.proto.op_type))
            constant = self.constants.get(node.inputs[i])
            if constant is not None and (barrier is None or constant.data_type not in FLOATS):
                node.signature.inputs[i] = None

    def _close_outputs(self, node: Node) -> None:
        """Record the output axes; freeze what the rule left open and what varies."""
        for k, name in enumerate(node.outputs):
            shape = self.facts.shapes.get(name)
            if not name or shape is None:
                continue
            made = node.signature.outputs[k]
            if made is None:
                reason = node.signature.barrier or Reason("structure", node.where, node.proto.op_type)
                made = [self.space.dim(n, reason) for n in shape]
            for axis in self.facts.varying(name):
                if not any(d.frozen for d in atoms(made[axis])):
                    self.space.freeze(made[axis], Reason("dynamic", node.where))
            self.axes[name] = made
            node.signature.outputs[k] = made


def _told(node: Node, detail: str) -> str:
    """The operator, and what was wrong there."""
    name = operator(node.proto)
    return detail if detail.startswith(name) else f"{name}: {detail}" if detail else name


def _block(node: Node, reason: Reason) -> None:
    """Freeze all that a node touches."""
    node.signature.barrier = reason
    node.signature.reads.clear()
    node.signature.edits.clear()
    node.typed.clear()
    node.signature.outputs = [None] * len(node.outputs)


def _tie(typed: TypedGraph, space: Space) -> None:
    """Matrices that several products share stay one tensor: their uses are unified axis by axis."""
    for name, uses in typed.weights.items():
        tensor = typed.graph.constants[name]
        if len(uses) < 2 or len(tensor.dims) < 2 or not stands_for_reals(typed.graph, name):
            continue
        if any(is_pointwise(typed.graph.nodes[u.node]) for u in uses):
            continue
        for use in uses[1:]:
            for a, b in zip(uses[0].axes, use.axes, strict=True):
                space.unify(resolve(a), resolve(b))


def is_pointwise(node: NodeProto) -> bool:
    """Whether a node works entry by entry, so that its constants are biases, scales or masks rather than weights."""
    return RULES.get(operator(node)) in (elementwise.broadcast, elementwise.prelu)
