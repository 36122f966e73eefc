"""Nodes in an order in which every tensor is made before it is used.

ONNX asks for that, ONNX Runtime does not: it sorts for itself, and some tools that shrink files leave nodes in any
order. Nodes that are in order already stay as they are; else those that came first still come first where they can.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from onnxprune.graph import Graph
from onnxprune.nodes import captured


def in_order(graph: Graph) -> bool:
    """Whether no node reads what a later one makes."""
    later = {n for wires in graph.wires for n in wires.outputs} - graph.tensors.keys()
    for wires in graph.wires:
        if not later.isdisjoint(wires.inputs) or not later.isdisjoint(wires.captured):
            return False
        later.difference_update(wires.outputs)
    return True


def put_in_order(model: ModelProto) -> ModelProto:
    """A copy of a model with the nodes of all its graphs in order. Nodes on a cycle are left at the end, for the check
    of the structure to find.
    """
    made = ModelProto()
    made.CopyFrom(model)
    for graph in list(_graphs(made.graph)):
        nodes = _sorted(graph.node)
        del graph.node[:]
        graph.node.extend(nodes)
    return made


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Bodies of control flow, then what holds them."""
    for node in graph.node:
        for a in node.attribute:
            if a.type == AttributeProto.GRAPH:
                yield from _graphs(a.g)
    yield graph


def _sorted(nodes: Iterable[NodeProto]) -> list[NodeProto]:
    listed = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
    makers = {name: i for i, node in enumerate(listed) for name in node.output if name}
    waits = [{makers[n] for n in (*node.input, *captured(node)) if n in makers} for node in listed]
    readers: dict[int, list[int]] = {}
    for i, needed in enumerate(waits):
        for k in needed:
            readers.setdefault(k, []).append(i)
    ready = [i for i, needed in enumerate(waits) if not needed]
    order: list[int] = []
    while ready:
        order.append(i := heapq.heappop(ready))
        for k in readers.get(i, []):
            waits[k].discard(i)
            if not waits[k]:
                heapq.heappush(ready, k)
    return [listed[i] for i in order + sorted(set(range(len(listed))) - set(order))]
