"""Which nodes of a model file each of ONNX Runtime's kernels stands for.

ONNX Runtime does not run the nodes of the file: it fuses, folds and re-arranges them. A kernel is traced back

    by name     nodes are numbered "#17#" before the session is made, and many fusions keep the name of a node
    by tensors  the graph that ONNX Runtime made is saved; a kernel stands for the nodes between its outputs and its
                inputs, where these are tensors of the file. "T_nchwc" makes T in blocks of channels, and may do more
                than its name says: it stands for what lies between T and the node of its own operator
    the rest    a node that no kernel stands for is part of the last one that makes an operand of it, unless it depends
                on constants only; a kernel that stands for no node (a copy into another layout, a Reshape around a
                fused product) helps the one that reads it, or makes what it reads

Nodes of two models are the same where they make the same tensor or bear the same name (`partners`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from onnxprune.flow import ENTER, LEAVE
from onnxprune.graph import Graph
from onnxprune.nodes import operator

NUMBER = re.compile(r"#(\d+)#")
BLOCKED = re.compile(r"(_bn)?_nchwc$")  # behind the tensor that such a kernel makes
REORDERS = ("ReorderInput", "ReorderOutput")
MICROSOFT = "com.microsoft."


def numbered(graph: Graph) -> Graph:
    """The graph with every node named by its place."""
    return graph.replace(nodes=[_renamed(n, f"#{k}#") for k, n in enumerate(graph.nodes)])


def _renamed(node: NodeProto, name: str) -> NodeProto:
    made = NodeProto()
    made.CopyFrom(node)
    made.name = name
    return made


def kernel_operator(node: NodeProto) -> str:
    """`Conv`, `FusedConv`, `nchwc.Conv`: the domain of ONNX Runtime itself is left out."""
    return operator(node).removeprefix(MICROSOFT)


def kernel_name(node: NodeProto, index: int) -> str:
    """What the profiler calls a node of the optimised graph."""
    return node.name or f"{node.op_type}_{index}"


@dataclass(frozen=True)
class Origin:
    """The nodes that a kernel stands for; `helps`: it only moves the data of the one that does their work."""

    nodes: frozenset[int]
    helps: bool = False


def origins(graph: Graph, kernels: Sequence[NodeProto]) -> list[Origin]:
    """Where kernels come from: nodes that ONNX Runtime made of the numbered graph, in topological order."""
    tensors = _Tensors(graph, kernels)
    made = {t for k in kernels if k.op_type not in REORDERS for t in tensors.of(k.output)}
    fixed = _fixed(graph)
    found = [_region(graph, tensors, k, made) - fixed for k in kernels]
    owner = {i: k for k, nodes in enumerate(found) for i in nodes}
    for i, node in enumerate(graph.nodes):
        if i in owner or i in fixed or made & set(node.output) or node.op_type in (ENTER, LEAVE):
            continue
        before = [owner[p] for name in node.input if (p := graph.producer.get(name)) in owner]
        if before:
            owner[i] = max(before)
            found[owner[i]].add(i)
    return _with_helpers(kernels, [Origin(frozenset(nodes)) for nodes in found])


def _with_helpers(kernels: Sequence[NodeProto], found: list[Origin]) -> list[Origin]:
    """Kernels without nodes get those of their reader, from the last one on, or of their maker."""
    makers = {name: k for k, kernel in enumerate(kernels) for name in kernel.output if name}
    readers: dict[int, int] = {}
    for k in reversed(range(len(kernels))):
        if not found[k].nodes and k in readers:
            found[k] = Origin(found[readers[k]].nodes, helps=True)
        if found[k].nodes:
            readers |= {makers[name]: k for name in kernels[k].input if name in makers}
    for k, kernel in enumerate(kernels):
        sources = [found[makers[name]] for name in kernel.input if name in makers]
        if not found[k].nodes and sources:
            found[k] = Origin(sources[0].nodes, helps=True)
    return found


class _Tensors:
    """Tensors of the file behind those of the optimised graph."""

    def __init__(self, graph: Graph, kernels: Iterable[NodeProto]) -> None:
        self.known = {*graph.producer, *(i.name for i in graph.inputs)}
        self.behind: dict[str, str] = {}
        for k in kernels:
            source = BLOCKED.sub("", k.name)
            if k.op_type in REORDERS:
                self.behind[k.output[0]] = next(iter(self.of(k.input[:1])), "")
            elif source != k.name and source in self.known:
                self.behind[k.output[0]] = source

    def of(self, names: Iterable[str]) -> list[str]:
        return [t for n in names if (t := n if n in self.known else self.behind.get(n, ""))]


def _region(graph: Graph, tensors: _Tensors, kernel: NodeProto, made: set[str]) -> set[int]:
    if kernel.op_type in REORDERS:
        return set()
    outputs, stop = tensors.of(kernel.output), set(tensors.of(kernel.input))
    todo = [t for t in outputs if t not in stop]
    found = {int(k) for text in (kernel.name, *kernel.output) for k in NUMBER.findall(text)}
    seen, blocked = set(todo), BLOCKED.search(kernel.name)
    while todo:
        i = graph.producer.get(todo.pop())
        if i is None:
            continue
        found.add(i)
        if blocked and (blocked[1] or graph.nodes[i].op_type == kernel.op_type):
            continue
        more = [x for x in graph.nodes[i].input if x and x not in seen | stop | made]
        seen.update(more)
        todo += more
    return found


def _fixed(graph: Graph) -> set[int]:
    """Nodes that depend on constants only."""
    constant = set(graph.tensors) | {""}
    found: set[int] = set()
    for i, node in enumerate(graph.nodes):
        if node.op_type not in (ENTER, LEAVE) and constant.issuperset(node.input):
            found.add(i)
            constant.update(node.output)
    return found


def partners(graph: Graph, other: Graph) -> dict[int, int]:
    """Nodes of `other` that are nodes of `graph`, index by index: first those of the same operator that make the same
    tensor, or alone bear the same name, then those of which only the tensor or the name is the same.
    """
    keys = (lambda g: _by_tensor(g, True), lambda g: _by_name(g, True), _by_tensor, _by_name)
    found: dict[int, int] = {}
    for key in keys:
        mine, theirs, taken = key(graph), key(other), set(found.values())
        pairs = ((i, mine[k]) for k, i in theirs.items() if k in mine)
        found |= {i: same for i, same in pairs if i not in found and same not in taken}
    return found


Key = tuple[str, str]


def _by_tensor(graph: Graph, typed: bool = False) -> Mapping[Key, int]:
    return {(name, graph.nodes[i].op_type if typed else ""): i for name, i in graph.producer.items()}


def _by_name(graph: Graph, typed: bool = False) -> Mapping[Key, int]:
    """Nodes whose name is theirs alone."""
    often = Counter(n.name for n in graph.nodes)
    named = ((n, i) for i, n in enumerate(graph.nodes) if n.name and often[n.name] == 1)
    return {(n.name, n.op_type if typed else ""): i for n, i in named}


def label(graph: Graph, nodes: Iterable[int], kernel: str) -> str:
    """The name of a group of nodes: that of the one whose operator the kernel has, or of the last one."""
    order = sorted(nodes)
    main = next((i for i in order if graph.nodes[i].op_type == kernel.rpartition(".")[2]), order[-1])
    return graph.nodes[main].name or next(iter(graph.nodes[main].output), "")


def node_operators(graph: Graph, nodes: Iterable[int]) -> Iterator[str]:
    """Operators of nodes, in the graph's order."""
    return (graph.nodes[i].op_type for i in sorted(nodes))
