"""Attention scores q . k where channels of both sides were cut: new targets for the products that make q and k.

Of d channels d' are left. With q' = A q and k' = B k, both (d', d), the scores of the original are met best, over all
pairs of tokens, where |S_q^(1/2) (I - A'B) S_k^(1/2)| is least, S_q and S_k being the second moments of the original's
q and k. For one side given, the other is a linear least squares: they are solved for in turn, head by head, beginning
with the channels that were kept (A = B = selection). The products before are refitted to all of the original's columns,
and what comes out is mixed by A and B.

Which columns of a product are channel c of head h is found by running the nodes between them on made-up numbers: they
must move and scale columns and do nothing else (a rotary embedding does more, and is left alone).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper

from onnxprune.dims import Mask
from onnxprune.graph import Graph
from onnxprune.jobs import Feed, Mend, Product
from onnxprune.linear import Linear
from onnxprune.nodes import operator
from onnxprune.regression import Solution
from onnxprune.sessions import Feeds
from onnxprune.stages import Stages
from onnxprune.tokens import meant
from onnxprune.trace import Trace

Array = NDArray[Any]
Columns = NDArray[np.int64]
ROUNDS = 4
DAMPING = 1e-6  # of the mean second moment
MOVES = ("Reshape", "Transpose", "Mul", "Div", "Split", "Gather", "Slice", "Squeeze", "Unsqueeze", "Identity", "Cast")
EXACT = 1e-4  # of float32, through a scaling


@dataclass
class Side:
    """One operand of the scores: of channel c of head h it is column `columns[h, c]` of product `linear` of the
    original; of each head the `channels` were kept. `moments` (heads, d, d) are gathered while rows are.
    """

    linear: Linear
    columns: Columns
    channels: Mask
    other: Side | None = None
    first: bool = True
    moments: Array | None = None

    def add(self, outputs: Array) -> None:
        """Take in outputs (rows, O) of the original's product."""
        x = np.moveaxis(outputs.astype(np.float32)[:, self.columns], 1, 0)
        new = (x.swapaxes(1, 2) @ x).astype(np.float64)
        self.moments = new if self.moments is None else self.moments + new

    def mix(self) -> Array | None:
        """(O, O): what its outputs should be, of the original's; None before the moments of both sides are known."""
        if self.moments is None or self.other is None or self.other.moments is None:
            return None
        own, others = (self, self.other) if self.first else (self.other, self)
        maps = alternate(own.moments, others.moments, self.channels)[0 if self.first else 1]  # type: ignore[arg-type]
        made = np.eye(self.linear.size[2])
        for h, columns in enumerate(self.columns):
            made[:, columns[self.channels]] = 0
            made[np.ix_(columns, columns[self.channels])] = maps[h].T
        return made


def alternate(queries: Array, keys: Array, kept: Mask) -> tuple[Array, Array]:
    """A and B (heads, d', d) for second moments (heads, d, d)."""
    a = b = np.broadcast_to(np.eye(kept.size)[kept], (len(queries), int(kept.sum()), kept.size))
    for _ in range(ROUNDS):
        a = _given(b, keys)
        b = _given(a, queries)
    return a, b


def _given(other: Array, moments: Array) -> Array:
    """(B S B')^-1 B S"""
    right = other @ moments
    left = right @ other.swapaxes(1, 2)
    size = left.shape[1]
    level = np.maximum(np.trace(left, axis1=1, axis2=2) / size, 1e-12)
    return np.asarray(np.linalg.solve(left + DAMPING * level[:, None, None] * np.eye(size), right))


@dataclass
class Projection(Product):
    """A product that makes queries or keys, or both: `sides` of scores. `whole` (K, O) are the original's weights of
    its inputs that are left, `kept` its outputs that are.
    """

    mixes: ClassVar[bool] = True
    sides: list[Side] = field(default_factory=list)
    whole: Array = field(default_factory=lambda: np.zeros((0, 0)))
    kept: Mask = field(default_factory=lambda: np.ones(0, bool))

    def begin(self, graph: Graph, mend: Mend) -> None:
        def wide(weight: Array, bias: Array, **options: Any) -> Any:
            w, b = self.whole[None].astype(np.float32), np.zeros((1, self.whole.shape[1]), np.float32)
            w[:, :, self.kept], b[:, self.kept] = weight, bias
            return mend(w, b, **options)

        super().begin(graph, wide)

    def take(self, feed: Feed) -> None:
        super().take(feed)
        outputs = meant(feed.want[self.linear.out], feed.tokens)
        for side in self.sides:
            side.add(outputs.reshape(-1, outputs.shape[-1]))

    def narrowed(self, found: Solution) -> Solution:
        mix = np.eye(self.whole.shape[1])
        for made in (s.mix() for s in self.sides):
            mix = mix if made is None else mix @ made
        mix = mix[:, self.kept]
        return replace(found, weight=found.weight @ mix, bias=found.bias @ mix)


def find(
    graph: Graph, facts: Trace, i: int, found: Mapping[str, Linear], masks: Mapping[str, list[Mask] | None], feed: Feeds
) -> tuple[Side, Side] | None:
    """Both sides of the scores that node i of the original makes, if they are columns of products, channels of which
    were cut; `found` are the original's products by output, `masks` what is left of the operands.
    """
    sides = []
    for j, name in enumerate(graph.nodes[i].input):
        axes, x = masks.get(name), _source(graph, name, found)
        if axes is None or x is None or len(axes) != 4:
            return None
        channel = 3 if j == 0 else 2
        columns = _columns(graph, facts, x, name, channel, feed)
        if columns is None:
            return None
        sides.append(Side(x, columns, axes[channel], first=j == 0))
    query, key = sides
    cut = not query.channels.all() and np.array_equal(query.channels, key.channels)
    if not cut or query.columns.shape != key.columns.shape:
        return None
    query.other, key.other = key, query
    return query, key


def _source(graph: Graph, name: str, found: Mapping[str, Linear]) -> Linear | None:
    """The product whose output a tensor is made of by moves alone."""
    while name not in found:
        i = graph.producer.get(name, -1)
        if i < 0 or operator(graph.nodes[i]) not in MOVES:
            return None
        inputs = [n for n in graph.nodes[i].input if n and n not in graph.constants]
        if not inputs:
            return None
        name = inputs[0]
    return found[name] if not found[name].is_conv else None


def _columns(graph: Graph, facts: Trace, x: Linear, name: str, channel: int, feed: Feeds) -> Columns | None:
    """The column of x's output that is channel c of head h, (heads, d); None if that is not all there is to it."""
    (seen,) = Stages(graph, facts, [feed]).run([x.out])
    shape, kind = seen[x.out].shape, seen[x.out].dtype
    shell = ModelProto()
    shell.CopyFrom(graph.shell)
    shell.graph.input.append(helper.make_tensor_value_info(x.out, facts.dtypes[x.out], None))
    numbers = np.broadcast_to(np.arange(1, shape[-1] + 1), shape)
    noise = np.random.default_rng(0).uniform(1, 2, shape)
    feeds = [{**feed, x.out: p.astype(kind)} for p in (np.ones(shape), numbers, noise)]
    made = Stages(graph.replace(shell=shell), facts, feeds).run([name])
    ones, numbered, noisy = (np.moveaxis(got[name].astype(np.float64), channel, 3) for got in made)
    factor = ones.flat[0]
    columns = np.rint(numbered[0, :, 0] / (factor or 1)).astype(np.int64) - 1
    plain = noise.reshape(shape[0], -1, shape[-1])
    fits = plain.shape[1] == noisy.shape[2] and columns.min() >= 0 and columns.max() < shape[-1]
    if not fits or np.unique(columns).size < columns.size:
        return None
    want = plain[:, :, columns].transpose(0, 2, 1, 3) * factor
    return columns if np.allclose(noisy, want, rtol=EXACT) else None
