"""Model functions are inlined, so that every node has a rule of its own. A model without functions is left as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnx import inliner

from onnxprune.graph import Graph, from_proto
from onnxprune.manager import State


@dataclass(frozen=True)
class InlineFunctions:
    """Inline model-local functions (onnx.inliner)."""

    name: ClassVar[str] = "inline-functions"
    keeps_facts: ClassVar[bool] = False

    def run(self, state: State) -> Graph:
        if not state.graph.shell.functions:
            return state.graph
        graph = state.graph
        model = inliner.inline_local_functions(graph.skeleton())
        return from_proto(model, graph.sources, graph.files, graph.libraries)
