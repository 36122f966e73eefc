"""The scales and biases of normalisations as products, one weight for each channel:

    y = gamma * n(x) + beta,    n what the normalisation makes of its input

so that least squares and matched statistics work on them as on any product (`linear`): G = C groups of one summand and
one output each. A normalisation that lost channels has other statistics; gamma and beta make up for their mean effect.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.feeds import Shape
from onnxprune.flow import inner_names
from onnxprune.graph import FLOATS, Graph
from onnxprune.linear import Linear
from onnxprune.nodes import operator

Array = NDArray[Any]
CENTRED, UNCENTRED, STORED = "centred", "uncentred", "stored statistics"
KINDS = {
    "LayerNormalization": CENTRED,
    "RMSNormalization": UNCENTRED,
    "SimplifiedLayerNormalization": UNCENTRED,
    "BatchNormalization": STORED,
}


@dataclass(frozen=True)
class Norm(Linear):
    """LayerNormalization (opset 17), RMSNormalization (opset 23) over the last axis, and BatchNormalization (opset 7)
    with its stored `mean` and `variance`, both (C,).
    """

    mean: Array | None = None
    variance: Array | None = None

    @property
    def kind(self) -> str:
        return KINDS[operator(self.node)]

    @cached_property
    def size(self) -> tuple[int, int, int]:
        return int(math.prod(self.dims)), 1, 1

    def matrix(self, weight: Array) -> Array:
        return weight.reshape(self.size)

    def unmatrix(self, matrix: Array) -> Array:
        return matrix.reshape(self.dims)

    @property
    def channel(self) -> int:
        return 1 if self.kind == STORED else -1

    def positions(self, out: Shape) -> int:
        return math.prod(out[2:]) if self.channel == 1 else math.prod(out[1:-1])

    def columns(self, x: Array, out: Shape, picks: NDArray[np.int64]) -> Array:
        return self._normal(self._picked(x, picks))

    def rows(self, y: Array, picks: NDArray[np.int64], kept: NDArray[np.bool_] | None = None) -> Array:
        picked = self._picked(y, picks)
        return picked if kept is None else picked[:, kept]

    def _picked(self, x: Array, picks: NDArray[np.int64]) -> Array:
        """(N, C, P, 1)"""
        if self.channel == 1:
            return x.reshape(x.shape[0], x.shape[1], -1)[:, :, picks, None]
        return x.reshape(x.shape[0], -1, x.shape[-1])[:, picks].swapaxes(1, 2)[..., None]

    def _normal(self, x: Array) -> Array:
        epsilon = float(self.attrs.get("epsilon", 1e-5))
        wide = x.astype(np.float32, copy=False)
        if self.mean is not None and self.variance is not None:
            mean, variance = (v.astype(np.float32)[:, None, None] for v in (self.mean, self.variance))
            return np.asarray((wide - mean) / np.sqrt(variance + epsilon))
        centred = wide - wide.mean(1, keepdims=True) if self.kind == CENTRED else wide
        return np.asarray(centred / np.sqrt(np.square(centred).mean(1, keepdims=True) + epsilon))


def norms(graph: Graph, shapes: Mapping[str, Shape], wanted: Iterable[str] = tuple(KINDS)) -> dict[int, Norm]:
    """Normalisations with a stored scale per channel, by node index; outside of bodies of control flow."""
    inside = inner_names(graph.nodes)
    chosen = [i for i, n in enumerate(graph.nodes) if operator(n) in set(wanted) and n.output[0] not in inside]
    made = {i: _norm(graph, shapes, i) for i in chosen}
    return {i: x for i, x in made.items() if x is not None}


def _norm(graph: Graph, shapes: Mapping[str, Shape], i: int) -> Norm | None:
    node = graph.nodes[i]
    names = [n for n in node.input[1:] if n]
    floats = all(n in graph.constants and graph.constants[n].data_type in FLOATS for n in names)
    if not floats or not names or len(graph.constants[names[0]].dims) != 1 or node.input[0] not in shapes:
        return None
    bias = node.input[2] if len(node.input) > 2 else ""
    made = Norm(i, node, node.input[1], tuple(graph.constants[names[0]].dims), node.output[0], bias)
    rank = len(shapes[node.input[0]])
    if made.kind != STORED:
        return made if made.attrs.get("axis", -1) % rank == rank - 1 else None
    if made.attrs.get("training_mode", 0) or not made.attrs.get("spatial", 1) or rank < 2:
        return None
    mean, variance = (graph.array(n) for n in node.input[3:5])
    return replace(made, mean=mean, variance=variance)
