"""A graph in which layers can be switched off: at a sum the branch is replaced by zeros (or a constant), elsewhere the
exit by the entry.

    x = s + f(s)     ->  x = s + Where(on, f(s), 0)
    x = f(e)         ->  x = Where(on, f(e), e)

Nothing is taken out or renamed, so this tells what a graph without the layers must compute, and what dropping them
would cost, without any of the code that drops them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxprune.graph import Graph
from onnxprune.layers.layer import Layer
from onnxprune.layers.residual import SKIP, SUMS
from onnxprune.storage import tensor

Array = NDArray[Any]
WHERE = (TensorProto.FLOAT, TensorProto.DOUBLE)  # types of ONNX Runtime's Where among the floats
BIAS = {SKIP[0]: 4, SKIP[1]: 3}  # the input of a fused sum that belongs to its branch


def switched(
    base: Graph,
    layers: Sequence[Layer],
    dtypes: Mapping[str, int],
    fills: Mapping[str, Array] | None = None,
) -> Graph:
    """The graph with a boolean input `switch.k` for the k-th layer, which is on where that is true; layers in the
    order of the graph, since one that ends where another one ends counts last. `fills`: constants by layer name that
    take the place of branches.
    """
    made = _Switches(base, dtypes)
    for k, layer in enumerate(layers):
        made.put(layer, f"switch.{k}", (fills or {}).get(layer.name))
    shell = ModelProto()
    shell.CopyFrom(base.shell)
    for k in range(len(layers)):
        shell.graph.input.append(helper.make_tensor_value_info(f"switch.{k}", TensorProto.BOOL, []))
    return made.build(shell)


def without(base: Graph, layers: Sequence[Layer], dtypes: Mapping[str, int]) -> Graph | None:
    """The graph with all of the layers off for good; None where it does not have their tensors."""
    there = set(base.producer) | {i.name for i in base.shell.graph.input}
    if not all({x.exit, x.entry} <= there and _fits(base, x) for x in layers):
        return None
    made = _Switches(base, dtypes)
    made.tensors["switch.off"] = tensor("switch.off", np.array(False))
    for layer in layers:
        made.put(layer, "switch.off", None)
    return made.build(base.shell)


def _fits(base: Graph, layer: Layer) -> bool:
    """Whether the sum that a layer is dropped at is one in this graph, too."""
    return not layer.is_branch or base.wires[base.producer[layer.exit]].operator in SUMS


class _Switches:
    """New nodes by the node that they stand before or behind."""

    def __init__(self, base: Graph, dtypes: Mapping[str, int]) -> None:
        self.base, self.dtypes = base, dtypes
        self.tensors = dict(base.tensors)
        self.before: dict[int, list[NodeProto]] = {}
        self.after: dict[int, list[NodeProto]] = {}
        self.nodes = list(base.nodes)
        self._count = 0

    def build(self, shell: ModelProto) -> Graph:
        nodes: list[NodeProto] = []
        for i, node in enumerate(self.nodes):
            nodes += [*self.before.get(i, ()), node, *self.after.get(i, ())]
        return self.base.replace(nodes, self.tensors, shell)

    def put(self, layer: Layer, switch: str, fill: Array | None) -> None:
        """Put a switch at a layer."""
        i = self.base.producer[layer.exit]
        node, kind = NodeProto(), self.dtypes.get(layer.exit, TensorProto.FLOAT)
        node.CopyFrom(self.nodes[i])
        self.nodes[i] = node
        if not layer.is_branch:
            behind, raw = self.after.setdefault(i, []), self._name()
            last = next((n for n in reversed(behind) if layer.exit in n.output), node)
            last.output[list(last.output).index(layer.exit)] = raw
            self._choose(behind, switch, raw, layer.entry, kind, layer.exit)
            return
        bias = BIAS.get(self.base.wires[i].operator, len(node.input))
        for j in (layer.operand, *([bias] if bias < len(node.input) and node.input[bias] else [])):
            zero = np.zeros((), helper.tensor_dtype_to_np_dtype(kind))
            other = self._constant(fill.astype(zero.dtype) if fill is not None and j == layer.operand else zero)
            node.input[j] = self._choose(self.before.setdefault(i, []), switch, node.input[j], other, kind)

    def _choose(self, nodes: list[NodeProto], switch: str, on: str, off: str, kind: int, out: str = "") -> str:
        """`on` where the switch is true, else `off`."""
        out = out or self._name()
        if self.base.opsets.get("", 1) >= 9 and kind in WHERE:
            nodes.append(helper.make_node("Where", [switch, on, off], [out]))
            return out
        one, zero, left, right = (self._name() for _ in range(4))
        nodes.append(helper.make_node("Cast", [switch], [one], to=kind))
        nodes.append(helper.make_node("Cast", [self._inverse(nodes, switch)], [zero], to=kind))
        nodes.append(helper.make_node("Mul", [on, one], [left]))
        nodes.append(helper.make_node("Mul", [off, zero], [right]))
        nodes.append(helper.make_node("Add", [left, right], [out]))
        return out

    def _inverse(self, nodes: list[NodeProto], switch: str) -> str:
        name = self._name()
        nodes.append(helper.make_node("Not", [switch], [name]))
        return name

    def _constant(self, array: Array) -> str:
        name = self._name()
        self.tensors[name] = tensor(name, array)
        return name

    def _name(self) -> str:
        self._count += 1
        return f"switched.{self._count}"
