"""How far two results are apart, and how far they may be.

Sums that are taken in another order differ by rounding. How much rounding there is in a graph is measured: it is run
with and without ONNX Runtime's optimisations, and on inputs off by a rounding, which re-associate sums too. A result
may be off by the base tolerance, or by a small multiple of that noise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.flow import LEAVE
from onnxprune.graph import Graph
from onnxprune.sessions import Feeds

TOLERANCE = 1e-4  # of the largest output: float32 sums re-associate to about 1e-6 each, real mistakes are 1e-2 and more
TOLERANCE_HALF = 2e-2  # float16 and bfloat16 carry 11 and 8 bits
NOISE_FACTOR = 10  # over the measured rounding noise of the same graph
NOISE_LIMIT = 5e-3  # above this, noise is no excuse
EPSILON = 2.0**-23  # of float32
SMALLEST = 1e-6  # outputs below this are taken for rounding of zero
STEP = 4 * EPSILON  # absolute: what an activation that saturates at 1 is exact to, however small its values are
SATURATING = frozenset(("Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "Tanh", "Exp"))
MOVES = frozenset(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast"))
MOVES_PARTS = frozenset(("Slice", "Split", "Gather", "GatherElements", "GatherND", "Concat", "Expand", "Tile", "Pad"))
KEEPS_STEPS = MOVES | MOVES_PARTS | {"Where", "TopK", "ReduceMean", "ReduceMax", "If", LEAVE}
LABEL_MISMATCH = 0.01  # share of integer outputs (labels, indices) that may flip where two scores tie


@dataclass(frozen=True)
class Slack:
    """How errors are read: relative to the largest entry, at least to `floor`; differences up to `step` are free."""

    floor: float = SMALLEST
    step: float = 0.0


def relative_error(want: Any, got: Any, slack: Slack = Slack()) -> float:
    """Largest difference over the largest finite entry of `want`. Integers: the share that differs, free up to
    LABEL_MISMATCH. Infinite where types, shapes or the places of what is not finite differ.
    """
    if not isinstance(want, np.ndarray) or not isinstance(got, np.ndarray):
        return 0.0 if type(want) is type(got) else np.inf
    if want.shape != got.shape or want.dtype != got.dtype:
        return np.inf
    if not want.size:
        return 0.0
    if want.dtype.kind not in "fV":
        share = float(np.mean(want != got))
        return 0.0 if share <= LABEL_MISMATCH else share
    a, b = want.astype(np.float64), got.astype(np.float64)
    odd = ~np.isfinite(a)
    if not np.array_equal(odd, ~np.isfinite(b)):
        return np.inf
    if odd.all():
        return 0.0
    largest = float(np.abs(a - b)[~odd].max())
    return 0.0 if largest <= slack.step else float(largest / max(np.abs(a[~odd]).max(), slack.floor))


def steps_apart(want: Any, got: Any) -> float:
    """Largest difference of two tensors of integers or booleans; infinite where types or shapes differ."""
    if want.shape != got.shape or want.dtype != got.dtype:
        return np.inf
    return float(np.abs(want.astype(np.float64) - got.astype(np.float64)).max(initial=0.0))


def base_tolerance(results: Iterable[Any]) -> float:
    """What results may be off without further questions, by the narrowest of their types."""
    floats = [a.dtype for a in results if isinstance(a, np.ndarray) and a.dtype.kind in "fV"]
    return TOLERANCE if all(k.itemsize >= 4 for k in floats) else TOLERANCE_HALF


def nudged(feeds: Feeds) -> Feeds:
    """Feeds whose floats are off by one part in 2^23, up or down."""
    rng = np.random.default_rng(0)
    off = {n: a * (1 + rng.choice([-EPSILON, EPSILON], a.shape)) for n, a in feeds.items() if a.dtype.kind == "f"}
    return {n: off[n].astype(a.dtype) if n in off else a for n, a in feeds.items()}


def in_steps(graph: Graph, name: str) -> bool:
    """Whether values of a tensor are those of an activation that saturates, or means of them."""
    todo, seen = [name], {name}
    while todo:
        i = graph.producer.get(todo.pop())
        if i is None:
            continue
        if graph.nodes[i].op_type in SATURATING:
            return True
        if graph.nodes[i].op_type in KEEPS_STEPS:
            fresh = set(graph.wires[i].inputs) - seen
            seen |= fresh
            todo.extend(fresh)
    return False
