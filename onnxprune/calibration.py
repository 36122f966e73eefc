"""What calibration data says about a graph: Gram matrices of the inputs of its products, and statistics of units.

Everything is gathered in passes over the data that cost one run of the graph each: tensors are asked for in the order
in which the graph makes them, as many at a time as fit into memory (`stages`). Gram matrices are summed in float32
blocks into float64, over rows picked at random where a tensor has more than are needed, and kept in float32.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxprune.dims import Dim, Expr, Mask, atoms, resolve, spread
from onnxprune.flow import inner_names
from onnxprune.importance import Importance, Weights, drawn
from onnxprune.inference import TypedGraph
from onnxprune.linear import Gates, Linear, gates, linears
from onnxprune.nodes import operator
from onnxprune.regression import GRAM_LIMIT, product, summed, usable, wanted_rows
from onnxprune.sessions import Feeds
from onnxprune.stages import Room, Stages
from onnxprune.tokens import counted, token_mask

Array = NDArray[Any]
ROWS_PER_SUMMAND = 4  # of a Gram matrix, where it has many summands
WATCHED_BYTES = 512 << 20  # of tensors that are watched at once
HELD_BYTES = 7 << 28  # of activations between two stages
GRAM_BYTES = 5 << 28  # of Gram matrices that are held at once
HELD_OUT = 5  # every fifth feed judges what the others say


@dataclass(frozen=True)
class Gram:
    """The centred second moments of a product's input: mean (G, K), covariance (G, K, K), or its diagonal (G, K) where
    K is too large; `n` rows. Kept in float32, and where there are `folds`, of those that are fitted to and those that
    are held out, only for these.
    """

    n: int
    mean: Array
    stored: Array
    folds: tuple[Gram, Gram] | None = None

    @property
    def covariance(self) -> Array:
        """In float64."""
        if self.folds is None:
            return self.stored.astype(np.float64)
        fit, held = self.folds
        away = held.mean - fit.mean
        between = away[:, :, None] * away[:, None]
        both = fit.stored.astype(np.float64) * (fit.n / self.n)
        both += held.stored * np.float32(held.n / self.n)
        return np.asarray(both + between * (fit.n * held.n / self.n**2))


@dataclass(frozen=True)
class Statistics:
    """Of the units along one axis of a tensor, each (size,): mean, variance, mean of |x|, share of entries that are 0
    (APoZ), largest |x|; `n` entries per unit.
    """

    n: int
    mean: Array
    variance: Array
    magnitude: Array
    zeros: Array
    largest: Array


@dataclass(frozen=True)
class Consumer:
    """A product that sums over units of a dim: `units` (I,) gives the unit of each input channel of a group, -1 for
    those of other dims.
    """

    linear: Linear
    units: NDArray[np.int64]

    @property
    def area(self) -> int:
        """Entries of K for each channel: the kernel's."""
        return math.prod(self.linear.kernel)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """The unit of each of the K summands."""
        return np.repeat(self.units, self.area)


@dataclass(frozen=True)
class Meeting:
    """A product of two activations that sums over units of a dim, such as queries and keys: node `index`, the axis of
    each operand, and the unit of each entry there.
    """

    index: int
    axes: tuple[int, int]
    units: NDArray[np.int64]


class Calibration:
    """Statistics of one typed graph over data: `feeds` is iterated several times, and holds about `samples` samples.
    Rows of Gram matrices are drawn by their `importance` where that is given. `whole`: the graph of which this is what
    the data see.
    """

    def __init__(
        self,
        typed: TypedGraph,
        feeds: Iterable[Feeds],
        samples: int,
        seed: int = 0,
        importance: Importance | None = None,
        whole: TypedGraph | None = None,
    ) -> None:
        self.whole = whole or typed
        self.typed, self.feeds, self.samples, self.seed = typed, feeds, samples, seed
        self.importance = importance
        self._statistics: dict[tuple[str, int], Statistics] = {}
        self._grams: dict[Hashable, Gram] = {}

    @cached_property
    def period(self) -> int:
        """Every so many feeds one is held out; 0 if there is one feed only."""
        first = next((len(a) for f in self.feeds for a in f.values() if a.ndim), 1)
        count = -(-self.samples // max(first, 1))
        return min(HELD_OUT, count) if count > 1 else 0

    @cached_property
    def unseen(self) -> set[Dim]:
        """The prunable dims that are only in what the data do not see."""
        seen = {d for use in self.typed.uses for e in use.axes for d in atoms(e)}
        return {d.dim for d in self.whole.prunable} - seen if self.whole is not self.typed else set()

    @cached_property
    def _mask(self) -> str:
        return token_mask(self.typed.graph, self.feeds)

    def tokens(self, feed: Feeds) -> Mask | None:
        """Which of the tokens of a feed count (N, L); None if all do."""
        return feed[self._mask].astype(bool) if self._mask else None

    def is_held(self, feed: int) -> bool:
        return self.period > 0 and feed % self.period == self.period - 1

    @cached_property
    def linears(self) -> dict[int, Linear]:
        """Products with stored weights, by key; those inside of recurrent layers included."""
        graph = self.typed.graph
        return linears(graph) | {x.key: x for x in gates(graph) if x.data in self.typed.facts.shapes}

    @cached_property
    def consumers(self) -> dict[Dim, list[Consumer]]:
        """For each free dim the products that sum over its units."""
        found: dict[Dim, list[Consumer]] = {}
        for linear in self.linears.values():
            signature = self.typed.signatures[linear.index]
            place = 2 if isinstance(linear, Gates) and linear.slot == 2 else 0
            read = next((r for r in signature.reads if r.input == place and (r.partner or place)), None)
            if read is None:
                continue
            for d in dict.fromkeys(atoms(read.expr)):
                if not d.frozen and d.size > 1:
                    found.setdefault(d, []).append(Consumer(linear, units_along(read.expr, d)))
        return found

    @cached_property
    def meetings(self) -> dict[Dim, list[Meeting]]:
        """For each free dim the products of activations that sum over its units (MatMul), outside of bodies of control
        flow.
        """
        found: dict[Dim, list[Meeting]] = {}
        graph = self.typed.graph
        unseen = inner_names(graph.nodes) | set(graph.constants)
        for i, (node, signature) in enumerate(zip(graph.nodes, self.typed.signatures, strict=True)):
            if operator(node) != "MatMul" or not unseen.isdisjoint(node.input) or not signature.reads:
                continue
            read = signature.reads[0]
            if read.partner is None or not all(n in self.typed.facts.shapes for n in node.input):
                continue
            for d in dict.fromkeys(atoms(read.expr)):
                if not d.frozen and d.size > 1:
                    units = units_along(read.expr, d)
                    found.setdefault(d, []).append(Meeting(i, (read.axis, read.partner[1]), units))
        return found

    def seconds(self, meetings: Iterable[Meeting]) -> dict[int, tuple[Array, Array]]:
        """Second moments (G, K, K) of both operands of products of activations, by node index; heads are groups."""
        graph = self.typed.graph
        nodes = {m.index: m for m in meetings}
        sums: dict[tuple[int, int], Any] = {}
        labels = [(graph.nodes[i].input[j], (i, j)) for i in nodes for j in (0, 1)]
        for _, got, here in self.watch([n for n, _ in labels], labels):
            for i, j in here:
                x = np.moveaxis(got[graph.nodes[i].input[j]], nodes[i].axes[j], -1).astype(np.float32)
                x = (
                    x.swapaxes(0, 1).reshape(x.shape[1], -1, x.shape[-1])
                    if x.ndim == 4
                    else x.reshape(1, -1, x.shape[-1])
                )
                x, _ = usable(x, x[..., :0])
                sums[i, j] = summed(sums.get((i, j), 0.0), product(x, x))
        return {i: (sums[i, 0], sums[i, 1]) for i in nodes}

    def grouped(self, dims: Iterable[Dim]) -> Iterator[list[Dim]]:
        """The dims in groups whose consumers' Gram matrices fit into memory together."""
        group: list[Dim] = []
        held: set[Hashable] = set()
        for d in dims:
            more = {c.linear.view for c in self.consumers.get(d, [])}
            if group and self._gram_bytes(held | more) > GRAM_BYTES:
                yield group
                group, held = [], set()
            group.append(d)
            held |= more
        if group:
            yield group

    def _gram_bytes(self, views: Iterable[Hashable]) -> int:
        """Of what is kept of them."""
        return sum(_entries(self._of_view[v]) * 4 * 2 for v in views)

    @cached_property
    def _of_view(self) -> dict[Hashable, Linear]:
        return {x.view: x for x in self.linears.values()}

    def grams(self, wanted: Iterable[Linear]) -> dict[int, Gram]:
        """Gram matrices by key. Products that see the same rows share one; they are kept while they fit into memory."""
        linears = {x.key: x for x in wanted}
        views = {x.view: x for x in linears.values()}
        if self._gram_bytes({*views, *self._grams}) > GRAM_BYTES:
            self._grams = {v: g for v, g in self._grams.items() if v in views}
        missing = [x for v, x in views.items() if v not in self._grams]
        sums: dict[Hashable, _Sums] = {}
        rng = np.random.default_rng(self.seed)
        labels = [(x.data, x) for x in missing]
        spent: dict[str, int] = {}
        tokens = [self.tokens(f) for f in self.feeds] if missing and self._mask else None
        weights = self.importance.of(self.typed, self.feeds, self.samples) if missing and self.importance else ()
        for x in missing:
            spent[x.data] = spent.get(x.data, 0) + 8 * 2 * _entries(x)
        for k, got, here in self.watch([x.data for x in missing], labels, spent):
            if k == 0:
                self._grams |= {v: s.finish() for v, s in sums.items()}
                sums = {x.view: _Sums(x) for x in here}
            for x in here:
                mask = tokens[k] if tokens else None
                drawn_by = self._weights(x, weights[k]) if weights else None
                sums[x.view].add(got[x.data], self.samples, rng, self.is_held(k), mask, drawn_by)
        self._grams |= {v: s.finish() for v, s in sums.items()}
        return {k: self._grams[x.view] for k, x in linears.items()}

    def _weights(self, linear: Linear, weights: Mapping[str, Weights]) -> Array | None:
        """Of the rows that products of one view see: the mean of what they are to these."""
        made = [weights[x.out] for x in self.linears.values() if x.view == linear.view and x.out in weights]
        return np.asarray(np.mean(made, 0, np.float32)) if made and len({w.shape for w in made}) == 1 else None

    def statistics(self, places: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], Statistics]:
        """Statistics of the units along axes of activations, by (tensor, axis)."""
        missing = [p for p in dict.fromkeys(places) if p not in self._statistics]
        sums: dict[tuple[str, int], _UnitSums] = {p: _UnitSums() for p in missing}
        for _, got, here in self.watch([n for n, _ in missing], [(p[0], p) for p in missing]):
            for place in here:
                sums[place].add(np.moveaxis(got[place[0]], place[1], 0))
        self._statistics |= {p: s.finish() for p, s in sums.items()}
        return self._statistics

    def watch(
        self, tensors: Iterable[str], labels: Sequence[tuple[str, Any]], sums: Mapping[str, int] | None = None
    ) -> Iterator[tuple[int, Feeds, list[Any]]]:
        """Tensors of each feed, by its number, as many at once as fit, with the labels of those that are there. `sums`:
        the bytes that go with a tensor besides.
        """
        stages = Stages(self.typed.graph, self.typed.facts, self.feeds, Room(HELD_BYTES))
        for chunk in self._chunks(tensors, sums or {}):
            here = [label for name, label in labels if name in chunk]
            for k, got in enumerate(stages.run(list(chunk))):
                yield k, got, here

    def _chunks(self, tensors: Iterable[str], sums: Mapping[str, int]) -> Iterator[set[str]]:
        order = {n: k for k, node in enumerate(self.typed.graph.nodes) for n in node.output}
        chunk: set[str] = set()
        size = 0
        for name in sorted(set(tensors), key=lambda n: order.get(n, -1)):
            kind = self.typed.facts.dtypes.get(name, TensorProto.FLOAT)
            nbytes = math.prod(self.typed.facts.shapes[name]) * helper.tensor_dtype_to_np_dtype(kind).itemsize
            nbytes += sums.get(name, 0)
            if chunk and size + nbytes > WATCHED_BYTES:
                yield chunk
                chunk, size = set(), 0
            chunk.add(name)
            size += nbytes
        if chunk:
            yield chunk


def _entries(linear: Linear) -> int:
    """Of a product's Gram matrix, or its diagonal."""
    g, k, _ = linear.size
    return g * k * (1 if k > GRAM_LIMIT else k)


def block(covariance: Array, rows: NDArray[np.int64]) -> Array:
    """That of some rows, (G, rows, rows), from a covariance or its diagonal."""
    return covariance[:, rows][:, :, rows] if covariance.ndim == 3 else covariance[:, rows, None] * np.eye(rows.size)


def units_along(expr: Expr, dim: Dim) -> NDArray[np.int64]:
    """The unit of `dim` at each index of an axis, shape (size,); -1 where it has no part in the index."""
    return spread(resolve(expr), {dim: np.arange(dim.size)}, np.maximum, -1).astype(np.int64)


class _Sums:
    """A Gram matrix under way: sums over the feeds that are fitted to and over those that are held out."""

    def __init__(self, linear: Linear) -> None:
        self.linear = linear
        self.plain = linear.size[1] > GRAM_LIMIT
        self.n = [0, 0]
        self.shift: Any = None
        self.x: list[Any] = [0.0, 0.0]
        self.xx: list[Any] = [0.0, 0.0]

    def add(
        self,
        data: Array,
        samples: int,
        rng: np.random.Generator,
        held: bool,
        tokens: Mask | None = None,
        weights: Array | None = None,
    ) -> None:
        """Take in one feed; `tokens` (N, L): those that count; `weights` (N, P): what rows are drawn by."""
        x = self.linear
        out = x.result(data.shape)
        count = x.positions(out)
        if not data.shape[0] or not count:
            return
        valid = None if x.is_conv or isinstance(x, Gates) else counted(tokens, data.shape, count)
        share = 1.0 if valid is None else max(float(valid.mean()), 1e-6)
        wanted = wanted_rows(x.size[1], ROWS_PER_SUMMAND) / max(samples, 1) / share
        each = max(1, min(count, math.ceil(wanted)))
        picks = np.sort(rng.choice(count, each, replace=False)) if each < count else np.arange(count)
        if weights is not None and count > 1 and weights.shape == (len(data), count):
            picks = drawn(weights, each, rng)
        columns = x.columns(data, out, picks).swapaxes(0, 1).astype(np.float32)
        columns = columns.reshape(columns.shape[0], -1, columns.shape[3])
        if valid is not None:
            columns = columns[:, np.take_along_axis(valid, np.atleast_2d(picks), 1).reshape(-1)]
        columns, _ = usable(columns, columns[..., :0])
        if not columns.shape[1]:
            return
        self.shift = columns.mean(1) if self.shift is None else self.shift
        columns = columns - self.shift[:, None]
        self.n[held] += columns.shape[1]
        self.x[held] = self.x[held] + columns.sum(1, dtype=np.float64)
        square = np.square(columns).sum(1, dtype=np.float64) if self.plain else product(columns, columns)
        self.xx[held] = summed(self.xx[held], square)

    def finish(self) -> Gram:
        if self.shift is None:  # there was no row of finite numbers
            g, k, _ = self.linear.size
            return Gram(1, np.zeros((g, k)), np.zeros((g, k) if self.plain else (g, k, k), np.float32))
        if self.plain or not all(self.n):
            return self._gram(sum(self.n), self.x[0] + self.x[1], self.xx[0] + self.xx[1])
        fit, held = (self._gram(*sums) for sums in zip(self.n, self.x, self.xx, strict=True))
        mean = (fit.n * fit.mean + held.n * held.mean) / sum(self.n)
        return Gram(sum(self.n), mean, fit.stored[:0], (fit, held))

    def _gram(self, n: int, x: Array, xx: Array) -> Gram:
        mean = x / n
        square = mean**2 if self.plain else mean[:, :, None] * mean[:, None]
        return Gram(n, mean + self.shift, (xx / n - square).astype(np.float32))


class _UnitSums:
    """Statistics under way."""

    def __init__(self) -> None:
        self.n = 0
        self.sums: Any = 0.0
        self.largest: Any = 0.0

    def add(self, x: Array) -> None:
        """Entries of each unit: (size, ...)."""
        flat = x.reshape(x.shape[0], -1)
        self.n += flat.shape[1]
        plain = flat.astype(np.float32, copy=False)
        size = np.abs(plain)
        self.sums = self.sums + np.stack(
            [
                plain.sum(1, dtype=np.float64),
                np.square(plain).sum(1, dtype=np.float64),
                size.sum(1, dtype=np.float64),
                (flat == 0).sum(1).astype(np.float64),
            ]
        )
        self.largest = np.maximum(self.largest, size.max(1, initial=0))

    def finish(self) -> Statistics:
        mean, square, magnitude, zeros = self.sums / max(self.n, 1)
        return Statistics(self.n, mean, np.maximum(square - mean**2, 0), magnitude, zeros, self.largest)
