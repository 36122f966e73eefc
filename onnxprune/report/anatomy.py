"""What a network is made of, before and after: its layers, what each operator costs, and the network as blocks.

A layer is a node with weights or products, and what follows it without meeting anything else (activation,
normalisation, pooling); where branches meet is a row of its own if it has weights. Every product of the graph is in one
layer, and so is every weight, other than those that layers share and that are cut differently. Blocks are layers and
meeting points, joined until few enough are left to be looked at.

Both sides are read off typed graphs: the one that the first cut started from, and the one that the last cut started
from, at the sizes that it left. Nodes are the same if they make the same tensor.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from onnxprune import cost
from onnxprune.dims import Dim, Expr, atoms, resolve, size_under
from onnxprune.graph import Graph
from onnxprune.inference import TypedGraph
from onnxprune.naming import CONVOLUTIONS
from onnxprune.quantization import stands_for_reals
from onnxprune.report.condense import Blocks

MAX_LAYERS = 250  # rows; more are summed up
MAX_BLOCKS = 128
MAX_OPERATORS = 60
MAX_NAMED = 6  # operators named in a layer or block
MAX_SCALARS = 8  # numbers at a meeting point (an attention scale, say) that make no layer of it
MAX_TEXT = 160  # characters of a name
EMBEDDINGS = ("Gather", "EmbedLayerNormalization", "GatherBlockQuantized")


@dataclass(frozen=True)
class BeforeAfter:
    before: int
    after: int

    def to_dict(self) -> dict[str, int]:
        return {"before": self.before, "after": self.after}

    def __add__(self, other: BeforeAfter) -> BeforeAfter:
        return BeforeAfter(self.before + other.before, self.after + other.after)


ZERO = BeforeAfter(0, 0)


@dataclass(frozen=True)
class Layer:
    """`width`: units of the axes that can be cut, else of the channel axis; `shape`: of the output, at the traced
    sizes; `macs`: per sample; `fused`: operators that follow. After is all 0 where the layer is gone.
    """

    node: str
    operator: str
    fused: tuple[str, ...]
    shape: dict[str, list[int]]
    width: BeforeAfter
    params: BeforeAfter
    macs: BeforeAfter


@dataclass(frozen=True)
class Operator:
    """All nodes of one operator; `activations`: entries of their outputs, per sample."""

    operator: str
    nodes: BeforeAfter
    params: BeforeAfter
    macs: BeforeAfter
    activations: BeforeAfter


@dataclass(frozen=True)
class Block:
    """A box of the drawing. `kind`: "input", "output", "layer", "join" (where branches meet); `layers`: how many
    layers it holds; width and shape are those of the last one.
    """

    name: str
    kind: str
    operators: tuple[str, ...]
    layers: int
    shape: dict[str, list[int]]
    width: BeforeAfter
    params: BeforeAfter
    macs: BeforeAfter


@dataclass(frozen=True)
class Anatomy:
    """Layers in order (`more`: those that are left out, the cheapest, as a count and two sums), operators by cost,
    blocks and edges between them by number.
    """

    layers: tuple[Layer, ...] = ()
    more: tuple[int, BeforeAfter, BeforeAfter] = (0, ZERO, ZERO)
    operators: tuple[Operator, ...] = ()
    blocks: tuple[Block, ...] = ()
    edges: tuple[tuple[int, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Keys of the JSON report."""
        count, params, macs = self.more
        return {
            "layers": [asdict(x) for x in self.layers],
            "layers_left_out": {"layers": count, "params": params.to_dict(), "macs": macs.to_dict()},
            "operators": [asdict(x) for x in self.operators],
            "network": {"blocks": [asdict(x) for x in self.blocks], "edges": [list(e) for e in self.edges]},
        }


def anatomy(first: TypedGraph, last: TypedGraph, sizes: Mapping[Dim, int], batch: int = 1) -> Anatomy:
    """The network before the first cut, and after the last one, which leaves dims of `last` with `sizes`."""
    old = _Side(first, {}, batch)
    new = old if last is first and not sizes else _Side(last, sizes, batch)
    return _Reader(old, new).read()


class _Costs(NamedTuple):
    params: int = 0
    macs: int = 0
    activations: int = 0


class _Side:
    """One of the two graphs: sizes and costs of every node, found by the first tensor that it makes."""

    def __init__(self, typed: TypedGraph, sizes: Mapping[Dim, int], batch: int) -> None:
        self.typed, self.sizes = typed, sizes
        nodes = typed.graph.nodes
        self.carriers = [i for i in range(len(nodes)) if not _is_arithmetic(typed, i)]
        macs = {i: sum(t.at(sizes) for t in terms) for i, terms in cost.macs_by_node(typed).items()}
        params = self._params()
        others = {s[0] for i in typed.graph.inputs if (s := typed.facts.other.shapes[i.name])} if batch > 1 else set()
        self.batch, self.other_batch = batch, others.pop() if len(others) == 1 else batch
        self.place = {name: i for i, wires in enumerate(typed.graph.wires) if (name := _made(wires.outputs))}
        self.costs = [_Costs(params.get(i, 0), macs.get(i, 0) // batch) for i in range(len(nodes))]
        for i in self.carriers:
            self.costs[i] = self.costs[i]._replace(activations=self._entries(i))

    def _params(self) -> dict[int, int]:
        """Weights by node. What several nodes share counts for the first one, and where they are cut differently for
        the first of each kind: it is cut into several then.
        """
        graph = self.typed.graph
        found: Counter[int] = Counter()
        for name, tensor in graph.constants.items():
            if not stands_for_reals(graph, name):
                continue
            forms = {tuple(map(repr, map(resolve, u.axes))): u for u in reversed(self.typed.weights.get(name, []))}
            for use in forms.values():
                found[use.node] += math.prod(size_under(e, self.sizes) for e in use.axes)
            if not forms and (users := graph.consumers.get(name)):
                found[users[0][0]] += math.prod(tensor.dims)
        return found

    def _entries(self, i: int) -> int:
        made = [self.shape(name) for name in self.typed.graph.wires[i].outputs if name]
        return sum(math.prod(shape) for shape in made if shape is not None)

    def shape(self, name: str) -> list[int] | None:
        """Sizes of a tensor as it is left, for one sample."""
        axes, traced = self.typed.axes.get(name), self.typed.facts.shapes.get(name)
        if traced is None:
            return None
        sizes = list(traced) if axes is None else [size_under(e, self.sizes) for e in axes]
        other = self.typed.facts.other_shapes.get(name, ())
        if self.batch == self.other_batch or len(other) != len(sizes):
            return sizes
        grows = [n * self.other_batch == m * self.batch for n, m in zip(traced, other, strict=True)]
        return [n // self.batch if by_sample else n for n, by_sample in zip(sizes, grows, strict=True)]


class _Reader:
    def __init__(self, old: _Side, new: _Side) -> None:
        self.old, self.new = old, new
        self.typed, self.graph = old.typed, old.typed.graph
        self.inputs = [i.name for i in self.graph.inputs]
        self.start = len(self.inputs)  # numbers of blocks: inputs, nodes, outputs
        self.end = self.start + len(self.graph.nodes)
        self.anchors = {i for i in old.carriers if old.costs[i].macs or _picks(self.graph, i)}

    def read(self) -> Anatomy:
        blocks = self._blocks()
        layers = [x for nodes in sorted(blocks.ordered()[0], key=self._order) if (x := self._layer(nodes)) is not None]
        blocks.shrink(MAX_BLOCKS)
        members, edges = blocks.ordered()
        kept = _largest(layers)
        rest = [x for k, x in enumerate(layers) if k not in kept]
        more = (len(rest), sum((x.params for x in rest), ZERO), sum((x.macs for x in rest), ZERO))
        drawn = tuple(self._block(nodes) for nodes in members)
        return Anatomy(tuple(layers[k] for k in sorted(kept)), more, self._operators(), drawn, tuple(edges))

    def _blocks(self) -> Blocks:
        """Every input, node and output that carries data, the plain ones taken in by their neighbours."""
        wires = self.graph.wires
        carriers = self.old.carriers
        maker = {name: k for k, name in enumerate(self.inputs)}
        maker |= {name: self.start + i for i in carriers for name in wires[i].outputs if name}
        edges = [
            (maker[name], self.start + i)
            for i in carriers
            for name in (*wires[i].inputs, *wires[i].captured)
            if name in maker
        ]
        edges += [(maker[o.name], self.end + k) for k, o in enumerate(self.graph.outputs) if o.name in maker]
        total = [max(1, sum(getattr(c, name) for c in self.old.costs)) for name in ("params", "macs")]
        light = 1e-3 / max(len(wires), 1)
        weights = [light] * (self.end + len(self.graph.outputs))
        for i, c in enumerate(self.old.costs):
            weights[self.start + i] += c.params / total[0] + c.macs / total[1]
        blocks = Blocks(weights, edges)
        for i in set(range(len(wires))) - set(carriers):
            blocks.drop(self.start + i)
        blocks.absorb([self.start + i for i in carriers if i not in self.anchors])
        return blocks

    def _nodes(self, members: Iterable[int]) -> list[int]:
        return [m - self.start for m in members if self.start <= m < self.end]

    def _sums(self, nodes: Sequence[int]) -> tuple[BeforeAfter, BeforeAfter]:
        """Params and MACs of some nodes."""
        after = [self.new.place.get(_made(self.graph.wires[i].outputs)) for i in nodes]
        old, new = [self.old.costs[i] for i in nodes], [self.new.costs[j] for j in after if j is not None]
        return (
            BeforeAfter(sum(c.params for c in old), sum(c.params for c in new)),
            BeforeAfter(sum(c.macs for c in old), sum(c.macs for c in new)),
        )

    def _layer(self, members: Sequence[int]) -> Layer | None:
        nodes = self._nodes(members)
        params, macs = self._sums(nodes)
        if not (params.before > MAX_SCALARS or macs.before):
            return None
        main = self._main(nodes)
        rest = [_operator(self.graph, i) for i in nodes if i != main]
        shape, width = self._sizes(main)
        named = clipped(self.graph.nodes[main].name or _made(self.graph.wires[main].outputs))
        return Layer(named, _operator(self.graph, main), _named(rest), shape, width, params, macs)

    def _order(self, members: Sequence[int]) -> int:
        """Layers are listed as the file lists their main nodes."""
        nodes = self._nodes(members)
        return self._main(nodes) if nodes else members[0]

    def _main(self, nodes: Sequence[int]) -> int:
        """The node that a layer is called after."""
        own = [i for i in nodes if i in self.anchors]
        return max(own or nodes, key=lambda i: (self.old.costs[i].macs, self.old.costs[i].params, -i))

    def _block(self, members: Sequence[int]) -> Block:
        nodes = self._nodes(members)
        params, macs = self._sums(nodes)
        own = [i for i in nodes if i in self.anchors]
        ends = [m for m in members if not self.start <= m < self.end]
        if own or (nodes and not ends):
            last = own[-1] if own else nodes[0]
            kind = "layer" if own else "join"
            name = self.graph.nodes[last].name or _made(self.graph.wires[last].outputs)
            shape, width = self._sizes(last)
        else:
            kind = "input" if ends[0] < self.start else "output"
            names = [self.inputs[m] if m < self.start else self.graph.outputs[m - self.end].name for m in ends]
            name = ", ".join(names[:MAX_NAMED])
            shape, width = self._shapes(names[0]), ZERO
        operators = _named(_operator(self.graph, i) for i in nodes)
        return Block(clipped(name), kind, operators, len(own), shape, width, params, macs)

    def _shapes(self, name: str) -> dict[str, list[int]]:
        return {"before": self.old.shape(name) or [], "after": self.new.shape(name) or []}

    def _sizes(self, i: int) -> tuple[dict[str, list[int]], BeforeAfter]:
        """Shape and width of what a node makes."""
        name = _made(self.graph.wires[i].outputs)
        shape = self._shapes(name)
        axes = self.typed.axes.get(name) or []
        wide = _wide_axes(self.graph, i, axes)
        sizes = {side: math.prod(s[k] for k in wide) if len(s) == len(axes) else 0 for side, s in shape.items()}
        return shape, BeforeAfter(sizes["before"], sizes["after"] if name in self.new.place else 0)

    def _operators(self) -> tuple[Operator, ...]:
        found: dict[str, tuple[list[_Costs], list[_Costs]]] = {}
        for k, side in enumerate((self.old, self.new)):
            for i in side.carriers:
                found.setdefault(_operator(side.typed.graph, i), ([], []))[k].append(side.costs[i])
        rows = []
        for name, (old, new) in found.items():
            sums = (BeforeAfter(sum(c[k] for c in old), sum(c[k] for c in new)) for k in range(3))
            rows.append(Operator(name, BeforeAfter(len(old), len(new)), *sums))
        rows.sort(key=lambda r: (-r.macs.before, -r.params.before, -r.activations.before, r.operator))
        return tuple(rows[:MAX_OPERATORS])


def _made(outputs: Sequence[str]) -> str:
    return next((name for name in outputs if name), "")


def _operator(graph: Graph, i: int) -> str:
    return clipped(graph.wires[i].operator)


def _is_arithmetic(typed: TypedGraph, i: int) -> bool:
    """Whether a node only computes sizes and other small numbers that are known, or holds a constant."""
    names = [n for n in typed.graph.wires[i].outputs if n]
    return all(n in typed.facts.values or n in typed.graph.constants for n in names)


def _picks(graph: Graph, i: int) -> bool:
    """Whether a node picks rows of a matrix of weights."""
    node = graph.nodes[i]
    if node.op_type not in EMBEDDINGS:
        return False
    tables = node.input[:1] if node.op_type == "Gather" else node.input
    return any(n in graph.constants and sum(size > 1 for size in graph.constants[n].dims) > 1 for n in tables)


def _wide_axes(graph: Graph, i: int, axes: Sequence[Expr]) -> list[int]:
    """Axes that make up the width: those that can be cut, else the channels."""
    free = [k for k, e in enumerate(axes) if any(not d.frozen for d in atoms(e))]
    if free or not axes:
        return free
    by_channel = graph.wires[i].operator in CONVOLUTIONS or len(axes) > 3
    return [min(1, len(axes) - 1)] if by_channel else [len(axes) - 1]


def _largest(layers: Sequence[Layer]) -> Collection[int]:
    """The layers that are listed: all, or those that cost most."""
    params, macs = (max(1, sum(getattr(x, name).before for x in layers)) for name in ("params", "macs"))
    order = sorted(range(len(layers)), key=lambda k: -layers[k].params.before / params - layers[k].macs.before / macs)
    return set(order[:MAX_LAYERS])


def _named(operators: Iterable[str]) -> tuple[str, ...]:
    """Different operators, in order, the first few."""
    return tuple(dict.fromkeys(operators))[:MAX_NAMED]


def clipped(text: str, limit: int = MAX_TEXT) -> str:
    """A text of at most `limit` characters, its middle left out where it is longer."""
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"
