"""Ties: where a graph picks entries by rank (TopK, NonMaxSuppression), two models that agree to rounding may pick
others, and what comes after differs wholly.

To tell a tie from a mistake, the pruned model is run again with the choices of the reference fed in. What is chosen
from must agree, and so must all that comes of the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, helper

from onnxprune.dims import is_frozen
from onnxprune.flow import inner_names
from onnxprune.graph import Graph
from onnxprune.inference import TypedGraph
from onnxprune.trace import Trace

CHOOSERS = ("TopK", "NonMaxSuppression", "ArgMax", "ArgMin", "NonZero", "Unique")


@dataclass(frozen=True)
class Choices:
    """`made`: tensors that hold what was chosen; `scores`: tensors that it is chosen from."""

    made: tuple[str, ...]
    scores: tuple[str, ...]


def choices(typed: TypedGraph, pruned: Graph) -> Choices | None:
    """The choices that a graph makes outside of bodies; None if there are none, or if what one is made from was cut, so
    that it cannot be compared.
    """
    inside = inner_names(typed.graph.nodes)
    found = [n for n in typed.graph.nodes if n.op_type in CHOOSERS and inside.isdisjoint(n.output)]
    there = [n for n in found if n.output[0] in pruned.producer]
    scores = dict.fromkeys(name for node in there for name in _compared(node, pruned))
    if not there or not all(is_frozen(e) for name in scores for e in typed.axes.get(name, [])):
        return None
    return Choices(tuple(o for node in there for o in node.output if o), tuple(scores))


def _compared(node: NodeProto, graph: Graph) -> list[str]:
    """What a choice is made from: the data, or the boxes and scores."""
    count = 2 if node.op_type == "NonMaxSuppression" else 1
    return [name for name in node.input[:count] if name in graph.producer]


def given(pruned: Graph, made: Sequence[str], facts: Trace) -> Graph:
    """The graph with choices as further inputs, in place of the nodes that make them."""
    shell = ModelProto()
    shell.CopyFrom(pruned.shell)
    for name in made:
        shell.graph.input.append(helper.make_tensor_value_info(name, facts.dtypes[name], None))
    chosen = set(made)
    return pruned.replace((n for n in pruned.nodes if chosen.isdisjoint(n.output)), shell=shell)
