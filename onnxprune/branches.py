"""What calibration data see of a graph with Ifs: where all samples take the same branch, that branch stands for the If.

A model of voice may hold one network for each sample rate. Data of one rate say nothing of the other network, and all
of this one; so statistics are gathered and weights are mended as if it stood alone, under the names that they have in
the whole. The graph itself keeps its Ifs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnx import NodeProto

from onnxprune.flow import ENTER, LEAVE, OWNER, attribute, straightened
from onnxprune.graph import Graph
from onnxprune.inference import TypedGraph
from onnxprune.nodes import attributes
from onnxprune.rules.rule import Signature
from onnxprune.sessions import Feeds
from onnxprune.stages import Stages
from onnxprune.storage import tensor
from onnxprune.trace import Trace

Path = Mapping[str, str]  # the branch that is taken, by the owner of the If


def path_of(graph: Graph, facts: Trace, feeds: Iterable[Feeds]) -> Path:
    """The branches that all feeds take; Ifs in them included."""
    path: dict[str, str] = {}
    while conditions := _conditions(along(graph, path)):
        names = list(dict.fromkeys(conditions.values()))
        values = {n: set[bool]() for n in names}
        for made in Stages(along(graph, path), facts, feeds).run(names):
            for name in names:
                values[name].add(bool(made[name].item()))
        decided = {owner: values[name].pop() for owner, name in conditions.items() if len(values[name]) == 1}
        if not decided:
            break
        path |= {owner: "then_branch" if taken else "else_branch" for owner, taken in decided.items()}
    return path


def along(graph: Graph, path: Path) -> Graph:
    """The graph with the branches of a path in place of their Ifs."""
    return graph.replace([node for node, _ in straightened(graph.nodes, path)]) if path else graph


def typed_along(typed: TypedGraph, path: Path) -> TypedGraph:
    """The same of a typed graph. Dims are those of the whole, also those of which nothing is left."""
    if not path:
        return typed
    found = straightened(typed.graph.nodes, path)
    signatures = tuple([typed.signatures[i] if i >= 0 else _passing(typed, node) for node, i in found])
    made = TypedGraph(along(typed.graph, path), typed.facts, typed.axes, signatures)
    made.__dict__["dims"] = typed.dims
    return made


def put_back(graph: Graph, path: Path, part: Graph) -> Graph:
    """The graph with what was changed in the part of it along a path: constants, and names of those that nodes read.
    What nodes elsewhere read as well stays as it is for them.
    """
    places = [i for _, i in straightened(graph.nodes, path)]
    changed = {n: t for n, t in part.tensors.items() if graph.tensors.get(n) is not t}
    elsewhere = {n for i in set(range(len(graph.nodes))) - set(places) for n in graph.nodes[i].input}
    names = {n: graph.unused_name(f"{n}.recovered") for n in changed if n in elsewhere}
    nodes = list(graph.nodes)
    for i, node in zip(places, part.nodes, strict=True):
        if i >= 0:
            nodes[i] = _reading(node, names)
    apart = {new: tensor(new, part.array(n), changed[n]) for n, new in names.items()}
    return graph.replace(nodes, {**graph.tensors, **{n: t for n, t in changed.items() if n not in names}, **apart})


def _reading(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    """The node with other names for some inputs."""
    if names.keys().isdisjoint(node.input):
        return node
    made = NodeProto()
    made.CopyFrom(node)
    made.input[:] = [names.get(n, n) for n in node.input]
    return made


def _passing(typed: TypedGraph, identity: NodeProto) -> Signature:
    return Signature([typed.axes.get(n) for n in identity.input], [typed.axes.get(n) for n in identity.output])


def _conditions(graph: Graph) -> dict[str, str]:
    """The conditions of all Ifs that are in no body, by owner."""
    found: dict[str, str] = {}
    depth = 0
    for node in graph.nodes:
        depth += (node.op_type == ENTER) - (node.op_type == LEAVE)
        if node.op_type == "If" and not depth and attribute(node, OWNER) is not None:
            found[attributes(node)[OWNER].decode()] = node.input[0]
    return found
