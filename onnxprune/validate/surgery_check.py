"""The surgery check (translation validation): the pruned model must equal the masked original, on random inputs and on
data.

Both compute the same numbers in another order, so they agree to rounding. How much rounding there is, is measured: the
masked original is run with and without ONNX Runtime's optimisations, and on inputs off by a rounding, which
re-associate sums too. The tolerance is the base, or a small multiple of that noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.dims import Dim, Mask, is_frozen
from onnxprune.feeds import random_feeds
from onnxprune.flow import LEAVE, inner_names
from onnxprune.graph import Graph, from_proto, operator
from onnxprune.inference import TypedGraph
from onnxprune.quantization import rounds
from onnxprune.sessions import Feeds, Program, program, session, watched
from onnxprune.validate.choices import choices, given
from onnxprune.validate.masked import masked_original

TOLERANCE = 1e-4  # of the largest output: float32 sums re-associate to about 1e-6 each, real mistakes are 1e-2 and more
TOLERANCE_HALF = 2e-2  # float16 and bfloat16 carry 11 and 8 bits
NOISE_FACTOR = 10  # over the measured rounding noise of the same graph
NOISE_LIMIT = 5e-3  # above this, noise is no excuse
EPSILON = 2.0**-23  # of float32
SMALLEST = 1e-6  # outputs below this are taken for rounding of zero
OVERWRITTEN = {"com.microsoft.MoE": 0}  # inputs that a CPU kernel of ONNX Runtime 1.31 writes its result over
SATURATING = frozenset(("Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "Tanh", "Exp"))
STEP = 4 * EPSILON  # absolute: what an activation that saturates at 1 is exact to, however small its values are
MOVES = frozenset(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast"))
MOVES_PARTS = frozenset(("Slice", "Split", "Gather", "GatherElements", "GatherND", "Concat", "Expand", "Tile", "Pad"))
KEEPS_STEPS = MOVES | MOVES_PARTS | {"Where", "TopK", "ReduceMean", "ReduceMax", "If", LEAVE}
FLIPPED = 0.1  # share of an output's slices that may differ where a graph rounds activations to integers: a sum that
# re-associates next to a tie moves by one step, and all that follows with it. Ties were met in up to 4 % of the slices
# of 8-bit models; kernels and scales that were one unit off changed 69 % and more, scales of a bias less than ties do
FLIP_LIMIT = 0.2  # how far such a slice may be off: one step of 8 bits in 1/127, several layers deep up to 0.07
FLIP_FEEDS = 16  # further random inputs to tell ties, which are rare, from mistakes
LABEL_MISMATCH = 0.01  # share of integer outputs (labels, indices) that may flip where two scores tie


@dataclass(frozen=True)
class SurgeryCheck:
    """Largest error over all outputs and inputs tried, relative to the largest entry of the output."""

    passed: bool
    max_rel_err: float
    tolerance: float
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "max_rel_err": self.max_rel_err if np.isfinite(self.max_rel_err) else None,
            "tolerance": self.tolerance,
            "detail": self.detail,
        }


def surgery_check(
    typed: TypedGraph,
    masks: dict[Dim, Mask],
    pruned: Graph | ModelProto,
    feeds: Sequence[Feeds],
    original: Graph | None = None,
) -> SurgeryCheck:
    """Run both models on `feeds` and compare every output. `original`: the file as it was read, so that folding is
    checked too.
    """
    result = from_proto(pruned, libraries=typed.graph.libraries) if isinstance(pruned, ModelProto) else pruned
    pair = _pair(typed, result, masked_original(typed, masks, original), feeds)
    want = _reference_outputs(pair.reference, pair.names, feeds)
    try:
        got = _outputs(pair.made, pair.names, feeds)
    except Exception as refusal:  # ONNX Runtime's own exceptions share no base class
        return SurgeryCheck(False, np.inf, TOLERANCE, f"ONNX Runtime, which refuses the pruned model: {refusal}")
    error, worst = pair.largest(want, got)
    tolerance = _base(want)
    if not _says_something(want):
        return SurgeryCheck(False, error, tolerance, "any output: none is finite on these inputs (give --data)")
    if tolerance < error <= NOISE_LIMIT:
        tolerance = max(tolerance, NOISE_FACTOR * _noise(pair, want))
    if error <= tolerance:
        return SurgeryCheck(True, error, tolerance)
    excuses = (_rounded_elsewhere, _rounded_to_integers, _picked_by_rank)
    found = next((e for excuse in excuses if (e := excuse(pair, error, tolerance)) is not None), None)
    return found or SurgeryCheck(False, error, tolerance, worst)


@dataclass(frozen=True)
class _Pair:
    """What is compared: outputs `names` of the reference and of the result. Errors are relative to at least `floors`,
    and free up to `steps`.
    """

    typed: TypedGraph
    result: Graph
    masked: Graph
    names: list[str]
    feeds: Sequence[Feeds]
    reference: Program
    made: Program
    floors: list[float]
    steps: list[float]

    def largest(self, want: Sequence[Sequence[Any]], got: Sequence[Sequence[Any]]) -> tuple[float, str]:
        """The largest error, and where it is."""
        return _largest(want, got, self.names, self.floors, self.steps)


def _pair(typed: TypedGraph, result: Graph, masked: Graph, feeds: Sequence[Feeds]) -> _Pair:
    behind = saturated(typed, result)
    names = [o.name for o in typed.graph.outputs] + [n for n in behind.values() if n not in behind]
    reference, made = program(_watched(masked, names)), program(_watched(result, names))
    floors = [1.0 if n in behind else SMALLEST for n in names]
    return _Pair(typed, result, masked, names, feeds, reference, made, floors, _steps(typed.graph, names))


def _rounded_elsewhere(pair: _Pair, error: float, tolerance: float) -> SurgeryCheck | None:
    """Graphs that round activations to integers may be chaotic: what ONNX Runtime's optimisations re-associate changes
    all that follows, in the original too. Without them both models go the same way.
    """
    if not any(map(rounds, pair.typed.graph.nodes)):
        return None
    plain = [_outputs(model, pair.names, pair.feeds, optimise=False) for model in (pair.reference, pair.made)]
    left, _ = pair.largest(*plain)
    if left > tolerance:
        return None
    return SurgeryCheck(True, left, tolerance, "without ONNX Runtime's optimisations, which round elsewhere")


def _rounded_to_integers(pair: _Pair, error: float, tolerance: float) -> SurgeryCheck | None:
    """A few slices may be off where a value next to a tie moved by one step."""
    typed = pair.typed
    if error > FLIP_LIMIT or not any(map(rounds, typed.graph.nodes)):
        return None
    more = [*pair.feeds, *(random_feeds(typed.graph, typed.facts.binding, k) for k in range(FLIP_FEEDS))]
    want, got = _reference_outputs(pair.reference, pair.names, more), _outputs(pair.made, pair.names, more)
    share = _flipped(want, got, tolerance)
    if share > FLIPPED:
        return None
    return SurgeryCheck(True, error, FLIP_LIMIT, f"{share:.1%} differ by a rounding to integers")


def _picked_by_rank(pair: _Pair, error: float, tolerance: float) -> SurgeryCheck | None:
    """The pruned model goes by the choices of the masked original: what is chosen from and the outputs must agree."""
    picked = choices(pair.typed, pair.result)
    if picked is None:
        return None
    graph, made = pair.typed.graph, list(picked.made)
    names = list(dict.fromkeys([*(o.name for o in graph.outputs), *picked.scores]))
    want = _reference_outputs(program(_watched(pair.masked, [*names, *made])), [*names, *made], pair.feeds)
    told = [f | dict(zip(made, row[len(names) :], strict=True)) for f, row in zip(pair.feeds, want, strict=True)]
    try:
        got = _outputs(program(_watched(given(pair.result, made, pair.typed.facts), names)), names, told)
    except Exception:  # a graph that does not load without these nodes, whatever the reason, proves nothing
        return None
    shown = [row[: len(names)] for row in want]
    left, _ = _largest(shown, got, names, [SMALLEST] * len(names), _steps(graph, names))
    if left > tolerance:
        return None
    return SurgeryCheck(True, left, tolerance, "ties between entries that are picked by rank aside")


def _steps(graph: Graph, names: Sequence[str]) -> list[float]:
    return [STEP if _in_steps(graph, n) else 0.0 for n in names]


def _flipped(want: Sequence[Sequence[Any]], got: Sequence[Sequence[Any]], tolerance: float) -> float:
    """The share of slices along axis 0 that differ by more than the tolerance, in the output where it is largest."""
    shares = []
    for columns in zip(*(zip(left, right, strict=True) for left, right in zip(want, got, strict=True)), strict=True):
        off = np.concatenate([_slices_off(a, b, tolerance) for a, b in columns])
        shares.append(float(off.mean()) if off.size else 0.0)
    return max(shares, default=0.0)


def _slices_off(want: Any, got: Any, tolerance: float) -> NDArray[np.bool_]:
    if not isinstance(want, np.ndarray) or not np.issubdtype(want.dtype, np.number):
        return np.zeros(0, bool)
    a, b = (np.nan_to_num(np.atleast_1d(x).astype(np.float64), posinf=0, neginf=0) for x in (want, got))
    largest = np.abs(a).max(initial=0) if want.dtype.kind == "f" else 0.0
    return np.asarray((np.abs(a - b) > tolerance * largest).reshape(len(a), -1).any(axis=1))


def saturated(typed: TypedGraph, pruned: Graph) -> dict[str, str]:
    """Outputs of sigmoids and the like, with the tensor behind each: compared too, since a saturated output hides
    differences, while its own last digits are the activation's approximation (errors are then relative to its range,
    1).
    """
    there = {n for node in pruned.nodes for n in node.output}
    found: dict[str, str] = {}
    for output in typed.graph.outputs:
        name = output.name
        while (i := typed.graph.producer.get(name)) is not None and typed.graph.nodes[i].op_type in MOVES:
            name = typed.graph.nodes[i].input[0]
        node = typed.graph.nodes[i] if i is not None else None
        if node is not None and node.op_type in SATURATING and node.input[0] in there:
            found |= {output.name: node.input[0]} if all(map(is_frozen, typed.axes.get(node.input[0], []))) else {}
    return found


def _in_steps(graph: Graph, name: str) -> bool:
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


def _noise(pair: _Pair, want: Sequence[Sequence[Any]]) -> float:
    """How far rounding alone moves the outputs: without optimisations, and with inputs off by one part in 2^23."""
    plain = _outputs(pair.reference, pair.names, pair.feeds, optimise=False)
    moved = _reference_outputs(pair.reference, pair.names, [_nudged(f) for f in pair.feeds])
    return max(_largest(want, off, pair.names, pair.floors)[0] for off in (plain, moved))


def _nudged(feeds: Feeds) -> Feeds:
    rng = np.random.default_rng(0)
    off = {n: a * (1 + rng.choice([-EPSILON, EPSILON], a.shape)) for n, a in feeds.items() if a.dtype.kind == "f"}
    return {n: off[n].astype(a.dtype) if n in off else a for n, a in feeds.items()}


def _says_something(outputs: Sequence[Sequence[Any]]) -> bool:
    """Whether some output is an integer, or holds a finite number."""
    arrays = [a for row in outputs for a in row if isinstance(a, np.ndarray)]
    return not arrays or any(a.dtype.kind not in "fV" or np.isfinite(a.astype(np.float64)).any() for a in arrays)


def _watched(graph: Graph, names: Sequence[str]) -> Graph:
    """With outputs `names`, and with what a kernel would write over as outputs too, so that it is kept."""
    inner = inner_names(graph.nodes)
    lost = [n.input[OVERWRITTEN[operator(n)]] for n in graph.nodes if operator(n) in OVERWRITTEN]
    return watched(graph, [*names, *(n for n in lost if n in graph.producer and n not in inner)])


def _reference_outputs(model: Program, names: Sequence[str], feeds: Sequence[Feeds]) -> list[list[Any]]:
    """Outputs of the masked original, without ONNX Runtime's optimisations where these break it: masks stand where no
    exporter puts an operator (a Where between Transpose and Pad with axes was met).
    """
    try:
        return _outputs(model, names, feeds)
    except Exception:  # what is wrong with the model itself is said by the second run
        return _outputs(model, names, feeds, optimise=False)


def _outputs(model: Program, names: Sequence[str], feeds: Sequence[Feeds], optimise: bool = True) -> list[list[Any]]:
    made = session(model, optimise=optimise, exact=True)
    return [list(made.run(names, f)) for f in feeds]


def _largest(
    want: Sequence[Sequence[Any]],
    got: Sequence[Sequence[Any]],
    names: Sequence[str],
    floors: Sequence[float],
    steps: Sequence[float] | None = None,
) -> tuple[float, str]:
    rows = [
        (relative_error(a, b, floor, step), f"output {name!r}, input {k}")
        for k, (left, right) in enumerate(zip(want, got, strict=True))
        for name, floor, step, a, b in zip(names, floors, steps or [0.0] * len(names), left, right, strict=True)
    ]
    return max(rows, key=lambda r: r[0], default=(0.0, ""))


def relative_error(want: Any, got: Any, floor: float = SMALLEST, step: float = 0.0) -> float:
    """Largest difference over the largest finite entry of `want`, but at least `floor`; differences up to `step` are
    free. Integers: the share that differs, free up to LABEL_MISMATCH.
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
    return 0.0 if largest <= step else float(largest / max(np.abs(a[~odd]).max(), floor))


def _base(outputs: Sequence[Sequence[NDArray[Any]]]) -> float:
    floats = [a.dtype for row in outputs for a in row if isinstance(a, np.ndarray) and a.dtype.kind in "fV"]
    return TOLERANCE if all(k.itemsize >= 4 for k in floats) else TOLERANCE_HALF
