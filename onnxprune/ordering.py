"""Nodes in an order in which they can run.

ONNX wants every node after those that make its inputs, and all here relies on it. ONNX Runtime sorts for itself, so
files that are not sorted (converters to float16 append their casts at the end) work for their users. They are sorted
when they are read, bodies of control flow too: a node moves as little as it must.
"""

from __future__ import annotations

from onnx import AttributeProto, GraphProto, ModelProto

from onnxprune.graph import BODIES, Graph, captured


def is_ordered(graph: Graph) -> bool:
    """Whether no node uses what a later one makes."""
    producer = graph.producer
    return all(
        producer.get(name, -1) < i for i, wires in enumerate(graph.wires) for name in wires.inputs + wires.captured
    )


def ordered(model: ModelProto) -> ModelProto:
    """A copy of a model with the nodes in order; a cycle stays as it is."""
    made = ModelProto()
    made.CopyFrom(model)
    _order(made.graph)
    return made


def _order(graph: GraphProto) -> None:
    import networkx as nx

    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type in BODIES:
                for body in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
                    _order(body)
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    flow = nx.DiGraph()
    flow.add_nodes_from(range(len(graph.node)))
    for i, node in enumerate(graph.node):
        flow.add_edges_from((makers[n], i) for n in (*node.input, *captured(node)) if n in makers)
    if nx.is_directed_acyclic_graph(flow):
        nodes = [graph.node[i] for i in nx.lexicographical_topological_sort(flow)]
        graph.ClearField("node")
        graph.node.extend(nodes)
