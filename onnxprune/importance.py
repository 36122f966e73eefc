"""How much each row of a product counts: the squared gradient of a loss at its output, position by position.

Least squares takes every position of every sample for as important as any other, but a network looks at few of them: a
max over positions lets one through, a classifier sees the object and not the sky. To second order, an error e at an
output costs (g . e)^2, g being the gradient (`losses.loss_gradient`); summed over channels and with the cross terms
left out, that is a weight for each row (as in Kim et al. 2025, "GuidedQuant", for groups of channels). Recovery draws
rows in that proportion, some of them evenly.

Rows count alike where outputs have positions of their own, such as the steps of a text line or the pixels of a map: the
model is sure of most of them, so gradients vanish there, and still they can be lost (a recogniser of text lost most of
its lines that way). So they do where onnx-ad cannot differentiate the graph, where a pass over the data takes more than
WORK, or a sample more than HELD_BYTES.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from onnxprune.adjoint import PREFIX, differentiate, has_batch, opened
from onnxprune.cost import pass_macs, sample_share
from onnxprune.feeds import Binding, Shape
from onnxprune.graph import FLOATS, Graph
from onnxprune.inference import TypedGraph
from onnxprune.linear import Linear, linears
from onnxprune.losses import loss_gradient
from onnxprune.sessions import Feeds, Program, session
from onnxprune.trace import trace
from onnxprune.writing import serialize

Weights = NDArray[np.float16]
WORK = 1e12  # multiply-adds of a plain pass over the data
EVENLY = 0.1  # of the rows that are drawn
CHUNK = 8  # samples that are differentiated at once, where they can be told apart, or as many as fit:
HELD_BYTES, COPIES = 1 << 30, 3  # activations, and copies of them in the derivative
LARGEST = 6e4  # of a weight, in float16


@dataclass
class Importance:
    """Weights of rows, made when they are first asked for and kept for a run: of the graph before the first cut."""

    _made: list[dict[str, Weights]] = field(default_factory=list)
    _tried: bool = False

    def of(self, typed: TypedGraph, feeds: Iterable[Feeds], samples: int) -> Sequence[dict[str, Weights]]:
        """For each feed, by name of a product's output, or of a sum that it goes into, the weights of its positions
        (N, P), 1 on average in each sample; of tensors with a row for each sample. Empty if rows count alike.
        """
        if not self._tried:
            self._tried = True
            feed = next(iter(feeds))
            sizes = (math.prod(typed.facts.shapes.get(n, ())) for node in typed.graph.nodes for n in node.output)
            fitting = HELD_BYTES / max(COPIES * 4 * sample_share(typed, feed) * sum(sizes), 1)
            if _is_meant(typed) and fitting >= 1 and pass_macs(typed, feed, samples) <= WORK:
                try:
                    self._made = list(_weights(typed.graph, feeds, int(min(fitting, CHUNK))))
                except Exception:  # onnx-ad, or ONNX Runtime in what it made, do not know the graph
                    self._made = []
        return self._made


def _is_meant(typed: TypedGraph) -> bool:
    """Whether there are products to weigh, and one answer for each sample."""
    shapes = [typed.facts.shapes.get(o.name, ()) for o in typed.graph.outputs]
    single = all(math.prod(s[2:]) == 1 for s in shapes)
    return single and not typed.graph.is_large and any(True for _ in _targets(typed.graph))


def drawn(weights: NDArray[np.floating], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`count` positions of each sample (N, count), in proportion to weights (N, P), evenly spaced along their sum: the
    same number of each where all weights are alike.
    """
    shares = np.cumsum((1 - EVENLY) * weights.astype(np.float64) + EVENLY, 1)
    shares /= shares[:, -1:]
    places = (np.arange(count) + rng.random((len(weights), 1))) / count
    offsets = np.arange(len(weights))[:, None]
    found = np.searchsorted((shares + offsets).reshape(-1), (places + offsets).reshape(-1))
    made = found.reshape(places.shape) - offsets * weights.shape[1]
    return np.asarray(np.minimum(made, weights.shape[1] - 1), np.int64)


def _weights(graph: Graph, feeds: Iterable[Feeds], chunk: int) -> Iterator[dict[str, Weights]]:
    rng = np.random.default_rng(0)
    programs: dict[tuple[Shape, ...], _Rows] = {}
    ranked = [v for v in graph.inputs if v.type.tensor_type.shape.dim]
    free = has_batch(graph)
    for feed in feeds:
        count = {feed[v.name].shape[0] for v in ranked}
        cut = min(chunk, *count) if free and len(count) == 1 else 0
        pieces = list(_pieces(feed, cut)) if cut else [feed]
        found: list[Mapping[str, NDArray[np.float32]]] = []
        for piece in pieces:
            shapes = tuple(a.shape for a in piece.values())
            if shapes not in programs:
                programs.clear()
                programs[shapes] = _Rows(graph, {n: a.shape for n, a in piece.items()})
            found.append(programs[shapes].run(piece, rng))
        size = next((a.shape[0] for a in feed.values() if a.ndim), 1)
        whole = {n: np.concatenate([f[n] for f in found])[: size if cut else None] for n in found[0]}
        yield {n: _normal(a) for n, a in whole.items() if len(a) == size}


def _pieces(feed: Feeds, chunk: int) -> Iterator[Feeds]:
    """A feed in pieces of equal size; the last one is filled up with samples of before."""
    count = next(a.shape[0] for a in feed.values() if a.ndim)
    for k in range(0, count, chunk):
        picks = np.arange(k, k + chunk) % count
        yield {n: a[picks] if a.ndim else a for n, a in feed.items()}


def _normal(squares: NDArray[np.float32]) -> Weights:
    """With a mean of 1 in each sample; ones where there is no gradient."""
    clean = np.nan_to_num(squares, posinf=0)
    mean = clean.mean(1, keepdims=True)
    made = np.where(mean > 0, clean / np.where(mean > 0, mean, 1), 1)
    return np.minimum(made, LARGEST).astype(np.float16)


class _Rows:
    """The derivative of a graph at fixed input shapes, with respect to zeros added to what its products make."""

    def __init__(self, graph: Graph, shapes: Mapping[str, Shape]) -> None:
        facts = trace(graph, (Binding(shapes), Binding(shapes)))
        self.linears = {n: x for n, x in _targets(graph) if len(facts.shapes.get(n, ())) > 1}
        self.zeros: Feeds = {}
        self.names: dict[str, str] = {}
        ends = {o.name for o in graph.outputs}
        nodes: list[NodeProto] = []
        moved: dict[str, str] = {}
        for node in graph.nodes:
            made = NodeProto()
            made.CopyFrom(node)
            made.input[:] = [moved.get(n, n) for n in node.input]
            nodes.append(made)
            for name in (n for n in node.output if n in self.linears and n not in ends):
                kind = helper.tensor_dtype_to_np_dtype(facts.dtypes[name])
                zero, moved[name] = f"onnxprune.zero.{len(self.zeros)}", f"{name}.moved"
                self.zeros[zero], self.names[zero] = np.zeros(facts.shapes[name], kind), name
                nodes.append(helper.make_node("Add", [name, zero], [moved[name]]))
        model = opened(graph, nodes, facts, self.zeros, {b: a for a, b in moved.items()})
        self.outputs = [o.name for o in model.graph.output if o.type.tensor_type.elem_type in FLOATS]
        made_of = differentiate(model, list(self.zeros), self.outputs, "recovery", finite=True)
        self.session, self.plain = (session(Program(serialize(m), libraries=graph.libraries)) for m in (made_of, model))

    def run(self, feed: Feeds, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
        """Squared gradients by target, (N, P)."""
        given = feed | self.zeros
        outputs = dict(zip(self.outputs, self.plain.run(self.outputs, given), strict=True))
        seeds = loss_gradient(outputs, None, True, rng)
        taken = {i.name for i in self.session.get_inputs()}
        given |= {PREFIX + n: seeds.get(n, np.zeros_like(y))[..., None] for n, y in outputs.items()}
        found = self.session.run([PREFIX + n for n in self.zeros], {n: a for n, a in given.items() if n in taken})
        made = {}
        for zero, gradient in zip(self.zeros, found, strict=True):
            name = self.names[zero]
            axis = self.linears[name].channel
            squares = np.square(gradient[..., 0], dtype=np.float32).sum(axis)
            made[name] = squares.reshape(len(squares), -1)
        return made


def _targets(graph: Graph) -> Iterator[tuple[str, Linear]]:
    """What products aim at: their outputs, and sums that these go into."""
    for x in linears(graph).values():
        yield x.out, x
        users = graph.consumers.get(x.out, [])
        if len(users) == 1 and users[0][1] >= 0 and graph.nodes[users[0][0]].op_type == "Add":
            yield graph.nodes[users[0][0]].output[0], x
