"""What recovery works on: a `Job` is one set of stored weights, the tensors that show what it should make and what it
is given, and what is put in its place.

    Product   a product or the scale of a normalisation, at all nodes that use its weights
    Recurrent the products within an LSTM, GRU or RNN

Jobs collect rows feed by feed and know nothing of how these are solved: that is a `Collector`'s, made by a `Mend`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune import recurrence
from onnxprune.dims import Mask
from onnxprune.graph import Graph
from onnxprune.importance import drawn
from onnxprune.linear import Linear
from onnxprune.manager import Mended
from onnxprune.rectified import ROWS_BYTES, Rows, Window
from onnxprune.recurrence import Layer, Part
from onnxprune.regression import GRAM_LIMIT, Solution, wanted_rows
from onnxprune.storage import tensor
from onnxprune.tokens import counted

Array = NDArray[Any]
ROWS_PER_SUMMAND = 5  # of a product, where it has many summands


class Collector(Protocol):
    """What rows are given to, and solves for a product's weights (`Regression`, `Matching`)."""

    def add(self, x: Array, t: Array, first: int, valid: NDArray[np.bool_] | None = None) -> None: ...

    def solve(self, stored: Callable[[Array], Array]) -> Solution: ...


Mend = Callable[..., Collector]  # of weight (G, K, O), bias (G, O), spare_bias, biased


@dataclass(frozen=True)
class Feed:
    """One feed as jobs see it: tensors of the original and of the slim graph; `first` is the number of its first sample
    of about `samples`; `tokens` (N, L): which of its tokens count; `weights`: see
    `Importance`.
    """

    want: Mapping[str, Array]
    got: Mapping[str, Array]
    first: int
    samples: int
    rng: np.random.Generator
    tokens: Mask | None = None
    weights: Mapping[str, Array] = field(default_factory=dict)

    def picks(self, count: int, summands: int, share: float = 1.0) -> NDArray[np.int64]:
        """Some of `count` positions in each sample, of which a share counts: the same in all."""
        wanted = wanted_rows(summands, ROWS_PER_SUMMAND) / max(self.samples, 1) / max(share, 1e-6)
        each = max(1, min(count, math.ceil(wanted)))
        return np.sort(self.rng.choice(count, each, replace=False)) if each < count else np.arange(count)


class Workbench:
    """The graph that is being mended. Its nodes keep their places."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def store(self, places: Sequence[tuple[int, int]], array: Array, stem: str) -> None:
        """Let the inputs (node, input) read an array: under the name that they have, unless others read that too, or a
        Constant node holds it.
        """
        graph, nodes, tensors = self.graph, list(self.graph.nodes), dict(self.graph.tensors)
        name = _input(nodes[places[0][0]], places[0][1])
        if name not in tensors or set(graph.consumers[name]) != set(places) or name in {o.name for o in graph.outputs}:
            like, name = None, self._free(name or stem)
        else:
            like = tensors[name]
        tensors[name] = tensor(name, array, like)
        for i, j in places:
            made = _copy(nodes[i])
            made.input.extend([""] * (j + 1 - len(made.input)))
            made.input[j] = name
            nodes[i] = made
        self.graph = graph.replace(nodes, tensors, sources={n: s for n, s in graph.sources.items() if n != name})

    def _free(self, stem: str) -> str:
        if stem not in self.graph.constants and stem not in self.graph.producer:
            return stem
        return self.graph.unused_name(f"{stem}.recovered")


class Job(Protocol):
    """`level`: the stage at which its inputs are ready; `early`: some node uses its weights before that."""

    level: int
    early: bool

    @property
    def wants(self) -> tuple[str, ...]: ...

    @property
    def has(self) -> tuple[str, ...]: ...

    @property
    def nbytes(self) -> int: ...

    def begin(self, graph: Graph, mend: Mend) -> None:
        """Get ready to take in rows, with the weights of the graph as it is now."""

    def take(self, feed: Feed) -> None: ...

    def finish(self, bench: Workbench) -> list[Mended]:
        """Put what was found in place."""


@dataclass(frozen=True)
class Site:
    """A node whose product aims at the original's `target`, of which `masks` are left, less the slim graph's
    `minus`.
    """

    linear: Linear
    target: str
    masks: list[Mask]
    minus: str = ""


@dataclass
class Product:
    """One weight, at all of its sites. `new`: its bias was made for recovery; `biased`: it can have one; `window`: what
    an activation behind it lets through, where that is what counts; `mixes`: what is found is not yet what is stored.
    """

    mixes: ClassVar[bool] = False
    sites: list[Site]
    level: int
    early: bool = False
    new: bool = False
    biased: bool = True
    window: Window | None = None
    _collector: Collector | None = None
    _rows: Rows | None = None
    _before: tuple[Array, Array] | None = None

    @property
    def linear(self) -> Linear:
        return self.sites[0].linear

    @property
    def wants(self) -> tuple[str, ...]:
        return tuple(s.target for s in self.sites)

    @property
    def has(self) -> tuple[str, ...]:
        return tuple(n for s in self.sites for n in (s.linear.data, s.minus) if n)

    @property
    def nbytes(self) -> int:
        """Of its sums."""
        return sums_bytes(*self.linear.size) + (ROWS_BYTES if self.window else 0)

    def begin(self, graph: Graph, mend: Mend) -> None:
        x = self.linear
        weight = x.matrix(graph.array(x.weight).astype(np.float32))
        bias = np.zeros(1, np.float32) if not x.bias else graph.array(x.bias).astype(np.float32).reshape(-1) * x.beta
        wide = np.broadcast_to(bias, (x.size[0] * x.size[2],)).reshape(weight.shape[0], -1)
        self._collector = mend(weight, wide, spare_bias=self.new, biased=self.biased)
        self._before = weight, wide
        self._rows = Rows.some(self.window, wanted_rows(x.size[1], ROWS_PER_SUMMAND), x.size) if self.window else None

    def take(self, feed: Feed) -> None:
        for site in self.sites:
            x, want = site.linear, feed.want[site.target]
            channel = x.channel % want.ndim
            for axis, mask in enumerate(site.masks):
                if axis != channel and not mask.all() and want.shape[axis] == mask.size:
                    want = np.compress(mask, want, axis)
            data, count = feed.got[x.data], x.positions(want.shape)
            if not data.shape[0] or not count or self._collector is None:
                continue
            valid = None if x.is_conv else counted(feed.tokens, data.shape, count)
            picks = feed.picks(count, x.size[1], 1.0 if valid is None else float(valid.mean()))
            weights = feed.weights.get(site.target, feed.weights.get(x.out))
            if weights is not None and count > 1 and weights.shape == (len(data), count):
                picks = drawn(weights, len(picks), feed.rng)
            valid = None if valid is None else np.take_along_axis(valid, np.atleast_2d(picks), 1)
            kept = site.masks[channel]
            rows = x.rows(want, picks, None if kept.all() else kept)
            minus = x.rows(feed.got[site.minus], picks) if site.minus else None
            rows, columns = rows if minus is None else rows - minus, x.columns(data, want.shape, picks)
            self._collector.add(columns, rows, feed.first, valid)
            if self._rows is not None:
                self._rows.add(columns, rows, feed.first, minus, valid)

    def finish(self, bench: Workbench) -> list[Mended]:
        if self._collector is None:
            return []
        x, kind = self.linear, bench.graph.array(self.linear.weight).dtype

        def stored(m: Array) -> Array:
            return m.astype(kind).astype(np.float32)

        found = self._collector.solve(stored)
        if self._rows is not None and self._before is not None:
            found = self._rows.polish(self._before, found, stored)
        self._collector, self._rows, self._before = None, None, None  # lets go of its sums
        name = x.node.name or x.out
        if found.after == found.before and not self.mixes:
            return [Mended(name, found.before, found.after)]
        found = self.narrowed(found)
        bench.store([(s.linear.index, 1) for s in self.sites], x.unmatrix(found.weight).astype(kind), x.weight)
        if self.biased:
            bias = (found.bias.reshape(-1) / x.beta).astype(kind)
            bench.store(bias_places(bench.graph, [s.linear for s in self.sites]), bias, f"{x.out}.bias")
        return [Mended(name, found.before, found.after, found.penalty)]

    def narrowed(self, found: Solution) -> Solution:
        """What is stored of a solution."""
        return found


def bias_places(graph: Graph, linears: Iterable[Linear]) -> list[tuple[int, int]]:
    """The nodes and inputs that hold the products' biases."""
    return [(x.index, 2) if x.adder < 0 else (x.adder, list(graph.nodes[x.adder].input).index(x.bias)) for x in linears]


@dataclass
class Recurrent:
    """Recurrent node `index` of the slim graph, which reads `data`, and the one of the original that it was cut from:
    `directions` and `hidden` are what is left there, `steps` names all of its hidden states.
    """

    index: int
    data: str
    original: NodeProto
    source: Graph
    directions: Mask
    hidden: Mask
    steps: str
    level: int
    early: bool = False
    _whole: Layer | None = None
    _layer: Layer | None = None
    _parts: list[tuple[Part, Part, Collector]] = field(default_factory=list)

    @property
    def wants(self) -> tuple[str, ...]:
        node = self.original
        others = [node.input[k] for k in (4, 5) if k < len(node.input) and node.input[k]]
        return (node.input[0], self.steps, *[n for n in others if n not in self.source.constants])

    @property
    def has(self) -> tuple[str, ...]:
        return (self.data,)

    @property
    def nbytes(self) -> int:
        d, rows, inputs = self.source.constants[self.original.input[1]].dims
        hidden = self.hidden.size
        return int(d) * 2 * sums_bytes(1, int(inputs) + hidden, int(rows))

    def begin(self, graph: Graph, mend: Mend) -> None:
        self._whole, self._layer = Layer.of(self.source, self.original), Layer.of(graph, graph.nodes[self.index])
        layer = self._layer
        rows = np.flatnonzero(np.tile(self.hidden, layer.gates))  # of the original, by those that are left
        sides = np.flatnonzero(self.directions)
        self._parts = []
        for part in layer.parts():
            whole = Part(int(sides[part.direction]), rows[part.rows], part.inputs, part.states, part.reset)
            self._parts.append((part, whole, mend(part.matrix(layer), part.bias(layer), spare_bias=False, biased=True)))

    def take(self, feed: Feed) -> None:
        assert self._whole is not None and self._layer is not None
        known = {n: self.source.array(n) for n in self.original.input if n in self.source.constants}
        want, x = {**known, **feed.want}, feed.got[self.data]
        batch, count = x.shape[:2] if self._layer.batch_first else x.shape[1::-1]
        lengths = want.get(self.original.input[4]) if len(self.original.input) > 4 else None
        picks = feed.picks(count, self._layer.hidden + x.shape[2])
        shown: dict[int, tuple[recurrence.Steps, recurrence.Steps]] = {}
        for part, whole, collector in self._parts:
            if part.direction not in shown:
                start = recurrence.start(self.original, want, self._whole, whole.direction, batch)
                view = (self._whole, whole.direction, picks)
                full = recurrence.steps(*view, want[self.original.input[0]], want[self.steps], lengths, start)
                mine = x[:, picks] if self._layer.batch_first else x[picks].swapaxes(0, 1)
                shown[part.direction] = full, recurrence.Steps(mine, full.h[..., self.hidden], full.valid)
            full, seen = shown[part.direction]
            columns = recurrence.columns(self._whole, part, seen, full, self.hidden)
            made = recurrence.targets(self._whole, whole, full)
            collector.add(columns[:, None], made[:, None], feed.first, full.valid)

    def finish(self, bench: Workbench) -> list[Mended]:
        assert self._layer is not None
        layer, node = self._layer, bench.graph.nodes[self.index]
        before = after = 0.0
        for part, _, collector in self._parts:
            found = collector.solve(lambda m: m)
            part.put(layer, found.weight, found.bias)
            before, after = before + found.before, after + found.after
        for slot, array in ((1, layer.w), (2, layer.r), (3, layer.b)):
            kind = bench.graph.array(node.input[1]).dtype
            bench.store([(self.index, slot)], array.astype(kind), f"{node.input[1]}.bias")
        self._parts = []
        return [Mended(node.name or node.output[0] or node.op_type, before, after)]


def sums_bytes(groups: int, summands: int, outputs: int) -> int:
    """Of the sums over the rows of a product, in both folds; of its rows where these are kept."""
    if summands > GRAM_LIMIT:
        return 4 * ROWS_PER_SUMMAND * summands * (summands + outputs)
    return 16 * groups * summands * (summands + outputs)


def _input(node: NodeProto, j: int) -> str:
    return str(node.input[j]) if j < len(node.input) else ""


def _copy(node: NodeProto) -> NodeProto:
    made = NodeProto()
    made.CopyFrom(node)
    return made
