"""Nodes that no output needs go, and with them the initialisers and `value_info` entries that nothing names any
more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from onnx import ModelProto, NodeProto

from onnxprune.graph import Graph
from onnxprune.manager import State
from onnxprune.nodes import free_names


@dataclass(frozen=True)
class RemoveDead:
    """Keep the ancestors of the graph's outputs. Unused graph inputs stay: they are the model's interface."""

    name: ClassVar[str] = "remove-dead"
    keeps_facts: ClassVar[bool] = True

    def run(self, state: State) -> Graph:
        return alive(state.graph)


def alive(graph: Graph) -> Graph:
    """The graph without what none of its outputs needs; the same object if there is nothing such."""
    named = {o.name for o in graph.outputs}
    made: set[str] = set()
    nodes: list[NodeProto] = []
    for node, wires in zip(reversed(graph.nodes), reversed(graph.wires), strict=True):
        if any([n in named for n in wires.outputs if n]):
            named.update(wires.inputs, wires.captured)
            made.update(wires.outputs)
            nodes.append(node)
    nodes.reverse()
    kept = named | made
    noted = set(_noted(graph.shell, kept))
    tensors = {n: t for n, t in graph.tensors.items() if n in named or n in noted}
    shell = _without_stale(graph.shell, kept, set(graph.tensors) - set(tensors))
    if len(nodes) == len(graph.nodes) and len(tensors) == len(graph.tensors) and shell is graph.shell:
        return graph
    return graph.replace(nodes, tensors, shell)


def _without_stale(shell: ModelProto, alive: set[str], dropped: set[str]) -> ModelProto:
    values = [v for v in shell.graph.value_info if v.name in alive]
    inputs = [v for v in shell.graph.input if v.name not in dropped]  # IR version 3 lists initialisers as inputs
    notes = [a for a in shell.graph.quantization_annotation if a.tensor_name in alive]
    parts = (shell.graph.value_info, values), (shell.graph.input, inputs), (shell.graph.quantization_annotation, notes)
    if all(len(old) == len(left) for old, left in parts):
        return shell
    made = ModelProto()
    made.CopyFrom(shell)
    fields = made.graph.value_info, made.graph.input, made.graph.quantization_annotation
    for field, (_, left) in zip(fields, parts, strict=True):
        del field[:]
        field.extend(left)
    return made


def _noted(shell: ModelProto, alive: set[str]) -> Iterator[str]:
    """Names that the annotations of live tensors and the training graphs refer to."""
    for annotation in shell.graph.quantization_annotation:
        if annotation.tensor_name in alive:
            yield from (p.value for p in annotation.quant_parameter_tensor_names)
    for training in shell.training_info:
        for pair in (*training.initialization_binding, *training.update_binding):
            yield from (pair.key, pair.value)
        yield from free_names(training.initialization)
        yield from free_names(training.algorithm)
