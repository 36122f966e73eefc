"""What does not depend on the inputs is computed once and stored.

Two sources: values that the trace knows to be the same in every run (shape arithmetic, numbers derived from static
sizes - which fixes them to their original values before any surgery), and nodes over constants only, computed together
by ONNX Runtime. Left alone: nodes that would store more than they save (an Expand of a broadcast constant, a second
copy of a shared weight), random ones, and dequantisation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, helper

from onnxprune.evaluate import OPAQUE
from onnxprune.flow import LEAVE, carried
from onnxprune.graph import Graph
from onnxprune.manager import State
from onnxprune.nodes import is_standard
from onnxprune.sessions import run
from onnxprune.storage import PACKED, tensor

SMALL_BYTES = 256  # results up to this size are always worth storing
WINDOWS = ("BlackmanWindow", "HammingWindow", "HannWindow")  # whose ends are 0 by onnx, 1e-8 by ONNX Runtime
EXTERNAL_BYTES = 1 << 30  # of constants that are not in memory: folding stores results in memory


@dataclass(frozen=True)
class FoldConstants:
    """Store what is known before anything runs."""

    name: ClassVar[str] = "fold-constants"
    keeps_facts: ClassVar[bool] = True

    def run(self, state: State) -> Graph:
        graph = _without_aliases(state.graph)
        values = _known_values(graph, state)
        values |= _computed(graph, values, state)
        if not values:
            return graph
        needed = graph.consumers.keys() | {o.name for o in graph.outputs}
        left = graph.replace(
            node
            for node, wires in zip(graph.nodes, graph.wires, strict=True)
            if wires.operator == "Constant" or any(o in needed and o not in values for o in wires.outputs)
        )
        used = left.consumers.keys() | {o.name for o in graph.outputs}
        stored = {n: tensor(n, a) for n, a in values.items() if n in used and n not in left.producer}
        return left.replace(tensors={**graph.tensors, **stored})


def _without_aliases(graph: Graph) -> Graph:
    """Uses of `Identity(constant)` read the constant: exporters write shared weights that way, and a copy would untie
    them. So do uses of a constant that a loop carries round unchanged, as it is with TensorFlow's weights.
    """
    outputs = {o.name for o in graph.outputs}
    rounds = _carried_round(graph)
    alias = dict(rounds)
    for wires in graph.wires:
        source = alias.get(wires.inputs[0], wires.inputs[0]) if wires.operator == "Identity" else ""
        if source in graph.constants and wires.outputs[0] not in outputs:
            alias[wires.outputs[0]] = source
    alias = {n: s for n, s in alias.items() if not any(j < 0 for _, j in graph.consumers.get(n, []))}
    if not alias:
        return graph
    nodes = []
    for node in graph.nodes:
        if node.output and node.output[0] in alias:
            continue
        stays = rounds if node.op_type == LEAVE else {}  # a body gives back its own input
        if any(n in alias and n not in stays for n in node.input):
            made = NodeProto()
            made.CopyFrom(node)
            for j, n in enumerate(node.input):
                made.input[j] = n if n in stays else alias.get(n, n)
            node = made
        nodes.append(node)
    return graph.replace(nodes)


def _carried_round(graph: Graph) -> dict[str, str]:
    """Inputs of loop bodies that hold a constant in every round, and are used: the body gives them back as they are."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        for k, j in carried(node) if node.op_type == LEAVE else ():
            enter = graph.nodes[graph.producer[node.input[0]]]
            given = enter.input[list(enter.output).index(node.input[j]) - 1]
            used = any(graph.nodes[i].op_type != LEAVE for i, _ in graph.consumers[node.input[j]])
            if used and node.input[k] == node.input[j] and given in graph.constants:
                found[node.input[j]] = given
    return found


def _known_values(graph: Graph, state: State) -> dict[str, NDArray[Any]]:
    """Outputs of nodes whose values are the same in every run, and small enough to store; not windows and what follows
    from them, which ONNX Runtime computes (`_computed`).
    """
    found: dict[str, NDArray[Any]] = {}
    outputs = {o.name for o in graph.outputs}
    left: set[str] = set()
    facts = state.facts
    for node, wires in zip(graph.nodes, graph.wires, strict=True):
        values = {o: v for o in wires.outputs if o and (v := facts.static(o)) is not None}
        if len(values) < sum(map(bool, wires.outputs)) or not outputs.isdisjoint(wires.outputs):
            continue
        if wires.operator == "Constant" or not is_standard(node):
            continue
        if wires.operator in WINDOWS or not left.isdisjoint(wires.inputs):
            left.update(values)
            continue
        given = sum(facts.values[n].nbytes for n in wires.inputs if n in graph.constants and n in facts.values)
        if all(v.nbytes <= max(SMALL_BYTES, given) for v in values.values()):
            found.update(values)
    return found


def _computed(graph: Graph, known: dict[str, NDArray[Any]], state: State) -> dict[str, NDArray[Any]]:
    """Outputs of the other nodes over constants only, from one ONNX Runtime run."""
    regions = _Regions(graph, known, state)
    chosen = regions.worth_storing()
    if not chosen:
        return {}
    made = {o for i in chosen for o in graph.wires[i].outputs if o}
    rest = {n for i, wires in enumerate(graph.wires) if i not in chosen for n in wires.inputs + wires.captured}
    return _evaluate(graph, [graph.nodes[i] for i in sorted(chosen)], known, sorted(made & rest))


class _Regions:
    """Connected groups of nodes over constants only. A group is folded whole if that stores no more than it frees; else
    node by node, as long as no single node makes more than it takes from constants of its own."""

    def __init__(self, graph: Graph, known: dict[str, NDArray[Any]], state: State) -> None:
        self.graph, self.shapes, self.dtypes = graph, state.facts.shapes, state.facts.dtypes
        self.fixed = set(graph.constants) | set(known)
        outputs = {o.name for o in graph.outputs}
        self.nodes: list[int] = []
        for i, wires in enumerate(graph.wires):
            done = wires.operator == "Constant" or all(o in known for o in wires.outputs)
            if not done and self._computable(i) and outputs.isdisjoint(wires.outputs):
                self.nodes.append(i)
                self.fixed.update(wires.outputs)

    def _computable(self, i: int) -> bool:
        wires = self.graph.wires[i]
        return (
            len(wires.inputs) > 0
            and all(n in self.fixed or not n for n in wires.inputs)
            and all(o in self.shapes for o in wires.outputs if o)
            and wires.operator not in OPAQUE
            and is_standard(self.graph.nodes[i])
        )

    def size(self, name: str) -> float:
        """Bytes of a constant, or of what would be stored for a tensor."""
        if name in self.graph.constants:
            return self.graph.entries(name) * _entry_bytes(self.graph.constants[name].data_type)
        return prod(self.shapes.get(name, ())) * _entry_bytes(self.dtypes.get(name, TensorProto.FLOAT))

    def worth_storing(self) -> set[int]:
        """Indices of the nodes to fold."""
        if not self.nodes:
            return set()
        import networkx as nx  # which takes a tenth of a second

        links = nx.Graph()
        links.add_nodes_from(self.nodes)
        inside = set(self.nodes)
        for i in self.nodes:
            node = self.graph.nodes[i]
            ties = [*node.output, *(n for n in node.input if self.size(n) > SMALL_BYTES)]
            links.add_edges_from((i, j) for n in ties for j, _ in self.graph.consumers.get(n, []) if j in inside)
        chosen: set[int] = set()
        room = EXTERNAL_BYTES
        for region in nx.connected_components(links):
            picked = region if self._pays(region) else self._single_nodes(region)
            external = self._external_bytes(picked) if self.graph.sources else 0
            if external <= room:
                chosen |= picked
                room -= external
        return chosen

    def _external_bytes(self, region: set[int]) -> int:
        names = {n for i in region for n in self.graph.nodes[i].input}
        return sum(self.graph.sources[n].nbytes for n in names if n in self.graph.sources)

    def _pays(self, region: set[int]) -> bool:
        def inner(name: str) -> bool:
            return all(j in region for j, _ in self.graph.consumers.get(name, []))

        taken = {n for i in region for n in self.graph.nodes[i].input if n}
        made = {o for i in region for o in self.graph.nodes[i].output if o}
        stored = sum(self.size(o) for o in made if not inner(o) and self.size(o) > SMALL_BYTES)
        freed = sum(self.size(n) for n in taken - made if inner(n))
        return stored <= freed

    def _single_nodes(self, region: set[int]) -> set[int]:
        chosen: set[int] = set()
        for i in sorted(region):
            node = self.graph.nodes[i]
            ready = all(
                self.graph.producer.get(n, -1) in chosen or self.graph.producer.get(n, -1) not in region
                for n in node.input
            )
            size, given = (sum(self.size(n) for n in names if n) for names in (node.output, node.input))
            shared = any(len(self.graph.consumers.get(n, [])) > 1 and self.size(n) > SMALL_BYTES for n in node.input)
            part = node.op_type in ("Slice", "Split", "Gather")
            if ready and (size <= SMALL_BYTES or (size <= given and (not shared or part))):
                chosen.add(i)
        return chosen


def _entry_bytes(dtype: int) -> float:
    return 0.5 if dtype in PACKED else helper.tensor_dtype_to_np_dtype(dtype).itemsize


def _evaluate(
    graph: Graph, nodes: list[NodeProto], known: dict[str, NDArray[Any]], wanted: Iterable[str]
) -> dict[str, NDArray[Any]]:
    names = {n for node in nodes for n in node.input if n} - {o for node in nodes for o in node.output}
    model = ModelProto(ir_version=max(graph.shell.ir_version, 4), opset_import=graph.shell.opset_import)
    model.graph.name = "constants"
    model.graph.node.extend(nodes)
    for n in sorted(names):
        constant = tensor(n, known[n]) if n in known else graph.tensor(n)
        model.graph.initializer.append(constant)
        model.graph.initializer[-1].name = n
    model.graph.output.extend(helper.make_value_info(n, TypeProto()) for n in wanted)
    try:
        made = run(model, {})
    except Exception:  # a type or operator that ONNX Runtime does not run alone: the nodes stay in the graph
        return {}
    return {n: np.asarray(a) for n, a in made.items() if isinstance(a, np.ndarray)}
