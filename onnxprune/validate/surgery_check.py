"""The surgery check (translation validation): the pruned model must equal the masked original, on random inputs and on
data.

Both compute the same numbers in another order, so they agree to rounding (`closeness`). Where activations are rounded
to integers, or entries picked by rank, a step is no rounding error: both are compared section by section then
(`sections`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto

from onnxprune.dims import Dim, Mask, is_frozen
from onnxprune.feeds import random_feeds
from onnxprune.flow import inner_names
from onnxprune.graph import Graph, from_proto
from onnxprune.inference import TypedGraph
from onnxprune.nodes import operator
from onnxprune.quantization import rounds
from onnxprune.sessions import Feeds, Program, program, session, watched
from onnxprune.validate import ties
from onnxprune.validate.closeness import (
    MOVES,
    NOISE_FACTOR,
    NOISE_LIMIT,
    SATURATING,
    SMALLEST,
    STEP,
    TOLERANCE,
    TOLERANCE_HALF,
    Slack,
    in_steps,
    nudged,
    relative_error,
)
from onnxprune.validate.masked import masked_original
from onnxprune.validate.sections import Sections, find_cuts, picks

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
OWN_BUFFER = ("com.microsoft.MoE",)  # where ONNX Runtime 1.31 gives a wrong result if it lies in a buffer used before


@dataclass(frozen=True)
class SurgeryCheck:
    """Largest error over all outputs and inputs tried, relative to the largest entry of the output; of a check section
    by section, over all tensors that enter a rounding too.
    """

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
    pair = _pair(typed, masks, result, masked_original(typed, masks, original), feeds)
    try:
        got = _outputs(pair.made, pair.names, feeds)
    except Exception as refusal:  # ONNX Runtime's own exceptions share no base class
        return _refused(pair, feeds, str(refusal))
    want = _reference_outputs(pair.reference, pair.names, feeds)
    error, worst = _largest(want, got, pair.slack)
    tolerance = TOLERANCE_HALF if pair.halves else TOLERANCE
    if not _says_something(want):
        return SurgeryCheck(False, error, tolerance, "any output: none is finite on these inputs (give --data)")
    if pair.rounds and (found := _by_section(pair, error)) is not None:
        return found
    if tolerance < error <= NOISE_LIMIT:
        tolerance = max(tolerance, NOISE_FACTOR * _noise(pair, want))
    if error <= tolerance:
        return SurgeryCheck(True, error, tolerance)
    excuses = (_rounded_elsewhere, _rounded_to_integers, _picked_by_rank)
    excused = next((e for excuse in excuses if (e := excuse(pair, error, tolerance)) is not None), None)
    return excused or SurgeryCheck(False, error, tolerance, worst)


@dataclass(frozen=True)
class _Pair:
    """What is compared: outputs of the masked original and of the result, and how errors of each are read."""

    typed: TypedGraph
    masks: dict[Dim, Mask]
    result: Graph
    masked: Graph
    feeds: Sequence[Feeds]
    reference: Program
    made: Program
    slack: dict[str, Slack]

    @property
    def names(self) -> list[str]:
        return [*self.slack]

    @property
    def rounds(self) -> bool:
        """Whether activations are rounded to integers."""
        return any(map(rounds, self.result.nodes))

    @property
    def halves(self) -> bool:
        """Whether some activation is float16 or bfloat16; constants that are only stored so do not count."""
        graph, dtypes = self.typed.graph, self.typed.facts.dtypes
        return any(
            any(dtypes.get(o) in HALVES for o in wires.outputs) and not graph.constants.keys() >= set(wires.inputs)
            for wires in graph.wires
        )


def _refused(pair: _Pair, feeds: Sequence[Feeds], refusal: str) -> SurgeryCheck:
    """Of a pruned model that ONNX Runtime refuses: a mistake, unless the masked original does not run either, as where
    a graph splits a list into as many parts as it had entries when it was traced, and other values make another number.
    """
    try:
        _reference_outputs(pair.reference, pair.names, feeds)
    except Exception:
        return SurgeryCheck(False, 0.0, TOLERANCE, f"units without which the original does not run: {refusal}")
    return SurgeryCheck(False, np.inf, TOLERANCE, f"ONNX Runtime, which refuses the pruned model: {refusal}")


def _pair(typed: TypedGraph, masks: dict[Dim, Mask], result: Graph, masked: Graph, feeds: Sequence[Feeds]) -> _Pair:
    behind = saturated(typed, result)
    names = [o.name for o in typed.graph.outputs] + [n for n in behind.values() if n not in behind]
    slack = {n: Slack(1.0 if n in behind else SMALLEST, STEP if in_steps(typed.graph, n) else 0.0) for n in names}
    masked, result = _watched(masked, names), _watched(result, names)
    return _Pair(typed, masks, result, masked, feeds, program(masked), program(result), slack)


def _by_section(pair: _Pair, error: float) -> SurgeryCheck | None:
    """The verdict of the sections, where graphs can be cut; `error` is that of whole runs."""
    typed, masks, masked = pair.typed, pair.masks, pair.masked
    cuts = find_cuts(typed, masked, pair.result)
    if cuts.left:  # the file may lack what inlining made
        masked = _watched(masked_original(typed, masks), pair.names)
        cuts = find_cuts(typed, masked, pair.result)
    if cuts.left:
        return None
    found = Sections(typed, masks, masked, pair.result, cuts, pair.slack).check(pair.feeds)
    if found.error > found.tolerance:
        return SurgeryCheck(False, found.error, found.tolerance, found.detail)
    told = f"section by section ({len(cuts.entries)} cuts)"
    told += f"; in whole, ties move outputs by {error:.1e}" if error > found.tolerance else ""
    return SurgeryCheck(True, found.error, found.tolerance, told)


def _rounded_elsewhere(pair: _Pair, error: float, tolerance: float) -> SurgeryCheck | None:
    """Graphs that round activations to integers may be chaotic: what ONNX Runtime's optimisations re-associate changes
    all that follows, in the original too. In graphs of halves they leave casts out. Without them both models go the
    same way.
    """
    if not pair.rounds and not pair.halves:
        return None
    want, got = (_outputs(m, pair.names, pair.feeds, optimise=False) for m in (pair.reference, pair.made))
    left, _ = _largest(want, got, pair.slack)
    if left > tolerance:
        return None
    return SurgeryCheck(True, left, tolerance, "without ONNX Runtime's optimisations, which round elsewhere")


def _rounded_to_integers(pair: _Pair, error: float, tolerance: float) -> SurgeryCheck | None:
    """A few slices may be off where a value next to a tie moved by one step, if the graph cannot be cut there."""
    if error > ties.LIMIT or not pair.rounds:
        return None
    typed = pair.typed
    more = [*pair.feeds, *(random_feeds(typed.graph, typed.facts.binding, k) for k in range(ties.FEEDS))]
    want, got = _reference_outputs(pair.reference, pair.names, more), _outputs(pair.made, pair.names, more)
    share = ties.share_off(want, got, tolerance)
    if share > ties.SHARE:
        return None
    left = find_cuts(typed, pair.masked, pair.result).left[0]
    told = f"{share:.1%} of an output's slices differ: {left!r} rounds where the graph cannot be cut"
    return SurgeryCheck(True, error, ties.LIMIT, told)


def _picked_by_rank(pair: _Pair, error: float, tolerance: float) -> SurgeryCheck | None:
    """Entries that are picked by rank may be others, where scores are all but equal."""
    found = _by_section(pair, error) if any(map(picks, pair.result.nodes)) else None
    return found if found is not None and found.passed else None


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


def _noise(pair: _Pair, want: Sequence[Sequence[Any]]) -> float:
    """How far rounding alone moves the outputs: without optimisations, and with inputs off by one part in 2^23."""
    stepless = {n: replace(s, step=0.0) for n, s in pair.slack.items()}
    plain = _outputs(pair.reference, pair.names, pair.feeds, optimise=False)
    moved = _reference_outputs(pair.reference, pair.names, [nudged(f) for f in pair.feeds])
    return max(_largest(want, off, stepless)[0] for off in (plain, moved))


def _says_something(outputs: Sequence[Sequence[Any]]) -> bool:
    """Whether some output is an integer, or holds a finite number."""
    arrays = [a for row in outputs for a in row if isinstance(a, np.ndarray)]
    return not arrays or any(a.dtype.kind not in "fV" or np.isfinite(a.astype(np.float64)).any() for a in arrays)


def _watched(graph: Graph, names: Sequence[str]) -> Graph:
    """With outputs `names`, and with results that need a buffer of their own as outputs too, which have one."""
    inner = inner_names(graph.nodes)
    alone = [n.output[0] for n in graph.nodes if operator(n) in OWN_BUFFER]
    return watched(graph, [*names, *(n for n in alone if n not in inner)])


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


def _largest(want: Sequence[Sequence[Any]], got: Sequence[Sequence[Any]], slack: dict[str, Slack]) -> tuple[float, str]:
    rows = [
        (relative_error(a, b, allowed), f"output {name!r}, input {k}")
        for k, (left, right) in enumerate(zip(want, got, strict=True))
        for (name, allowed), a, b in zip(slack.items(), left, right, strict=True)
    ]
    return max(rows, key=lambda r: r[0], default=(0.0, ""))
