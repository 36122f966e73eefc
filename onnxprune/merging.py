"""Which units that stay are most like those that go, by the weights that make them, without any data.

Unit u is made by the weights v_u: its rows of all products that make it, with the BatchNormalization or scale behind
them, and the bias. A removed unit is stood in for by the kept unit k that leaves the least of v_u:

    u ~ a * k,    a = v_u . v_k / |v_k|^2,    left over: |v_u - a v_k|^2 / |v_u|^2

(Kim et al. 2020, "Neuron merging"). A scale a passes through what is positively homogeneous only (ReLU, pooling) and
from one product; elsewhere a = 1. Where more than `MOST` is left over, nothing stands in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration import units_along
from onnxprune.criteria.evidence import POINTWISE, PRODUCING, Entry, Evidence, by_unit
from onnxprune.dims import Dim, Mask, atoms
from onnxprune.inference import TypedGraph
from onnxprune.nodes import attributes, operator

Array = NDArray[Any]
MOST = 0.8  # of the squared weights of a unit that may be left over: a cosine of at least 0.45
HOMOGENEOUS = frozenset(
    (
        *("Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity"),
        *("Dropout", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Pad", "Resize", "ReduceMean", "Cast"),
        *("BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul", "Add"),
    )
)


@dataclass(frozen=True)
class Merge:
    """Removed unit `gone` of a dim is stood in for by `scale` times unit `stays`."""

    gone: int
    stays: int
    scale: float


def merges(typed: TypedGraph, masks: dict[Dim, Mask]) -> dict[Dim, list[Merge]]:
    """For each dim that is cut, the removed units that others can stand in for."""
    cut = [d for d, m in masks.items() if not m.all() and m.any()]
    evidence = Evidence(typed, cut)
    found = {d: list(_matched(*made, masks[d])) for d in cut if (made := _vectors(evidence, d)) is not None}
    return {d: m for d, m in found.items() if m}


def _vectors(evidence: Evidence, d: Dim) -> tuple[Array, bool] | None:
    """v (units, entries) of a dim, and whether a scale may pass; None if no weights make its units."""
    entries = [e for e in evidence.entries[d] if not e.logits]
    made = [e for e in entries if e.role == PRODUCING]
    if not made:
        return None
    vectors = [_rows(evidence.array(e), e, d) for e in made]
    vectors += [_rows(v, e, d) for e, v in _shifts(evidence, [e for e in entries if e.role == POINTWISE])]
    return np.concatenate(vectors, 1), len(made) == 1 and _is_homogeneous(evidence.typed, made[0], d)


def _rows(array: Array, entry: Entry, d: Dim) -> Array:
    """(units, entries)"""
    moved = np.moveaxis(array, entry.axis, -1)
    made = by_unit(moved.reshape(-1, moved.shape[-1]).astype(np.float64), entry.use.axes[entry.axis], d)
    return np.asarray(made.transpose(1, 0, 2).reshape(d.size, -1))


def _shifts(evidence: Evidence, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Array]]:
    """Vectors that are added to units: biases, and of a BatchNormalization beta - scale * mean."""
    graph = evidence.typed.graph
    for entry in entries:
        node = graph.nodes[entry.use.node]
        if node.op_type == "BatchNormalization" and entry.use.input == 2:
            gamma, beta, mean, variance = (graph.array(n).astype(np.float64) for n in node.input[1:5])
            epsilon = float(attributes(node).get("epsilon", 1e-5))
            yield entry, beta - gamma / np.sqrt(variance + epsilon) * mean
        elif operator(node) == "Add" or (entry.use.input == 2 and node.op_type in ("Conv", "Gemm")):
            yield entry, evidence.array(entry)


def _is_homogeneous(typed: TypedGraph, made: Entry, d: Dim) -> bool:
    """Whether nothing but positively homogeneous nodes carries a dim on from the product that makes it."""
    graph = typed.graph
    carriers = {n for n, axes in typed.axes.items() if any(d in atoms(e) for e in axes)}
    for i, node in enumerate(graph.nodes):
        reads = [n for n in node.input if n in carriers]
        if not reads or i == made.product[0]:
            continue
        constant = operator(node) == "Add" and any(n in graph.constants for n in node.input)
        if operator(node) not in HOMOGENEOUS or (operator(node) == "Add" and not constant):
            return False
    return True


def _matched(vectors: Array, scaled: bool, kept: Mask) -> Iterator[Merge]:
    squares = np.square(vectors).sum(1)
    stay = np.flatnonzero(kept & (squares > 0))
    for u in np.flatnonzero(~kept & (squares > 0)) if stay.size else ():
        shared = vectors[stay] @ vectors[u]
        scales = shared / squares[stay] if scaled else np.ones(stay.size)
        left = squares[u] - 2 * scales * shared + np.square(scales) * squares[stay]
        left = np.where(shared > 0, left, np.inf) / squares[u]
        k = int(np.argmin(left))
        if left[k] <= MOST:
            yield Merge(int(u), int(stay[k]), float(scales[k]))


def rows_of(typed: TypedGraph, node: int, d: Dim) -> NDArray[np.int64] | None:
    """The unit of a dim at each index of the axis that a product sums over; None if it sums over none of its units."""
    read = next((r for r in typed.signatures[node].reads if r.partner is not None and d in atoms(r.expr)), None)
    return None if read is None else units_along(read.expr, d)
