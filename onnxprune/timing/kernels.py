"""The kernels of a typed graph: nodes that ONNX Runtime runs as one, the time that they take in the whole model, and
the axes that they work on.

Which nodes run together is read off the graph that ONNX Runtime makes of the model, how long they take off its profiler
(`validate.profile`). Dims that always come together in an axis (the parts of a concatenation, heads and what is in
them) are one `Coordinate`: a kernel knows their product or sum only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from onnxprune import cost
from onnxprune.cost import Term
from onnxprune.dims import Dim, Expr, atoms, resolve, size_under
from onnxprune.inference import TypedGraph
from onnxprune.nodes import attributes
from onnxprune.timing.micro import Part, Sizes, cut_out
from onnxprune.validate.profile import Kernel

KNOWN_BYTES = 512  # integers up to this size say shapes, and so belong to the question


@dataclass(frozen=True)
class Coordinate:
    """Dims that a kernel sees as one width, and the axis in which they come."""

    dims: tuple[Dim, ...]
    axis: Expr

    def at(self, sizes: Sizes) -> float:
        """The width as a share of the whole one; an array where a size is one."""
        own = {d: sizes[d] for d in self.dims if d in sizes}
        return size_under(self.axis, own) / self.axis.size if own else 1.0


@dataclass(frozen=True)
class Group:
    """Kernels that share nodes: their time in the whole model. `main`: the node that they are named after; `products`:
    MACs, empty where nothing is multiplied up; `blocked`: in blocks of channels.
    """

    typed: TypedGraph
    nodes: tuple[int, ...]
    main: int
    ms: float
    products: tuple[Term, ...]
    blocked: bool

    @cached_property
    def kind(self) -> str:
        """What people call it."""
        node = self.typed.graph.nodes[self.main]
        grouped = "Conv" in node.op_type and attributes(node).get("group", 1) > 1
        return f"grouped {node.op_type}" if grouped else node.op_type

    @property
    def name(self) -> str:
        node = self.typed.graph.nodes[self.main]
        return node.name or node.output[0]

    @cached_property
    def tensors(self) -> tuple[tuple[Expr, ...], ...]:
        """Axes of every tensor that its nodes read or make, each once per use."""
        signatures = [self.typed.signatures[i] for i in self.nodes]
        listed = [axes for s in signatures for axes in (*s.inputs, *s.outputs) if axes is not None]
        return tuple(tuple(map(resolve, axes)) for axes in listed)

    @cached_property
    def coordinates(self) -> tuple[Coordinate, ...]:
        """What its time depends on."""
        free = {repr(e): e for axes in self.tensors for e in axes if any(map(_goes, atoms(e)))}
        places: dict[Dim, list[str]] = {}
        for key, e in free.items():
            for d in dict.fromkeys(atoms(e)):
                if _goes(d):
                    places.setdefault(d, []).append(key)
        found: dict[tuple[str, ...], list[Dim]] = {}
        for d, keys in places.items():
            found.setdefault(tuple(keys), []).append(d)
        return tuple(Coordinate(tuple(dims), free[keys[0]]) for keys, dims in found.items())

    @cached_property
    def widths(self) -> dict[Dim, int]:
        """The dims that make its product wider or longer, not more of it (axes before a matrix are no widths), and by
        how much each unit does.
        """
        signature = self.typed.signatures[self.main]
        listed = [axes for axes in (*signature.inputs, *signature.outputs) if axes is not None]
        matrix = "MatMul" in self.typed.graph.nodes[self.main].op_type
        found: dict[Dim, int] = {}
        for e in (e for axes in listed for e in (axes[-2:] if matrix else axes)):
            for d in {d for d in atoms(e) if _goes(d)}:
                grows = size_under(e, {}) - size_under(e, {d: d.size - 1})
                found[d] = min(found.get(d, grows), grows)
        return found

    @cached_property
    def part(self) -> Part | None:
        """It alone, None where that cannot be."""
        return cut_out(self.typed, self.nodes, self.blocked)

    @cached_property
    def question(self) -> str:
        """What a timing of it asks, whatever its tensors are called: kernels with one question have one answer."""
        number = {c: k for k, c in enumerate(self.coordinates)}
        owner = {d: number[c] for c in self.coordinates for d in c.dims}
        seen: dict[str, int] = {}
        told: list[object] = [self.blocked, sorted(self.typed.graph.opsets.items())]
        for i in self.nodes:
            node, wires, s = self.typed.graph.nodes[i], self.typed.graph.wires[i], self.typed.signatures[i]
            told.append((wires.operator, [a.SerializeToString(deterministic=True) for a in node.attribute]))
            for name, axes in zip((*wires.inputs, *wires.outputs), (*s.inputs, *s.outputs), strict=True):
                told.append((seen.setdefault(name, len(seen)), self._shape(name), _pattern(axes, owner)))
                told.append(self._value(name))
        return hashlib.sha256(repr(told).encode()).hexdigest()[:32]

    def _shape(self, name: str) -> object:
        facts = self.typed.facts
        return name in self.typed.graph.constants, facts.dtypes.get(name), facts.shapes.get(name)

    def _value(self, name: str) -> object:
        value = self.typed.facts.values.get(name)
        small = value is not None and value.dtype.kind in "iub" and value.nbytes <= KNOWN_BYTES
        return value.tobytes() if small and value is not None else None


def _goes(d: Dim) -> bool:
    """Whether units of it can go."""
    return d.frozen is None and d.size > 1


def _pattern(axes: Sequence[Expr] | None, owner: dict[Dim, int]) -> object:
    return axes and [(e.size, [(owner.get(d), d.size) for d in atoms(e)]) for e in axes]


def groups(typed: TypedGraph, kernels: Sequence[Kernel]) -> tuple[list[Group], float]:
    """Kernels joined where they stand for common nodes, those that take longest first; and the milliseconds of those
    that stand for none.
    """
    macs = cost.macs_by_node(typed)
    found: list[Group] = []
    for joined in _joined(kernels):
        nodes = tuple(sorted({i for k in joined for i in k.origin.nodes}))
        ms = sum(k.median_ms for k in joined)
        main = next((i for i in nodes if i in macs), nodes[-1])
        products = tuple(t for i in nodes for t in macs.get(i, ()))
        blocked = any(k.operator.startswith("nchwc.") for k in joined)
        found.append(Group(typed, nodes, main, ms, products, blocked))
    rest = sum(k.median_ms for k in kernels if not k.origin.nodes)
    return sorted(found, key=lambda g: -g.ms), rest


def _joined(kernels: Sequence[Kernel]) -> Iterator[list[Kernel]]:
    import networkx as nx  # which takes a tenth of a second

    graph = nx.Graph()
    for k, kernel in enumerate(kernels):
        graph.add_edges_from((("kernel", k), ("node", i)) for i in kernel.origin.nodes)
    for component in nx.connected_components(graph):
        yield [kernels[k] for side, k in sorted(component) if side == "kernel"]


def elements(group: Group, sizes: Sizes) -> float:
    """How many entries its tensors have."""
    return sum(math.prod([size_under(e, sizes) for e in axes]) for axes in group.tensors)
