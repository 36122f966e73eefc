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
from onnx import ModelProto

from onnxprune.dims import Dim, Mask, is_frozen
from onnxprune.feeds import random_feeds
from onnxprune.flow import inner_names
from onnxprune.graph import Graph, from_proto, operator
from onnxprune.inference import TypedGraph
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
    Slack,
    base_tolerance,
    in_steps,
    nudged,
    relative_error,
)
from onnxprune.validate.masked import masked_original
from onnxprune.validate.sections import Sections, find_cuts, picks

OVERWRITTEN = {"com.microsoft.MoE": 0}  # inputs that a CPU kernel of ONNX Runtime 1.31 writes its result over


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
    behind = saturated(typed, result)
    names = [o.name for o in typed.graph.outputs] + [n for n in behind.values() if n not in behind]
    masked = _watched(masked_original(typed, masks, original), names)
    result = _watched(result, names)
    reference, made = program(masked), program(result)
    want = _reference_outputs(reference, names, feeds)
    try:
        got = _outputs(made, names, feeds)
    except Exception as refusal:  # ONNX Runtime's own exceptions share no base class
        return SurgeryCheck(False, np.inf, TOLERANCE, f"ONNX Runtime, which refuses the pruned model: {refusal}")
    slack = {n: Slack(1.0 if n in behind else SMALLEST, STEP if in_steps(typed.graph, n) else 0.0) for n in names}
    error, worst = _largest(want, got, slack)
    tolerance = base_tolerance(a for row in want for a in row)
    if not _says_something(want):
        return SurgeryCheck(False, float(error), tolerance, "any output: none is finite on these inputs (give --data)")
    left: tuple[str, ...] = ()
    if any(map(rounds, result.nodes)):
        sections, left = _cut_up(typed, masks, masked, result, slack)
        if sections is not None:
            return _by_section(sections, feeds, error)
    if tolerance < error <= NOISE_LIMIT:
        tolerance = max(tolerance, NOISE_FACTOR * _noise(reference, feeds, want, slack))
    if left and tolerance < error <= ties.LIMIT:
        more = [*feeds, *(random_feeds(typed.graph, typed.facts.binding, k) for k in range(ties.FEEDS))]
        want, got = _reference_outputs(reference, names, more), _outputs(made, names, more)
        share = ties.share_off(want, got, tolerance)
        if share <= ties.SHARE:
            told = f"{share:.1%} of an output's slices differ: {left[0]!r} rounds where the graph cannot be cut"
            return SurgeryCheck(True, float(error), ties.LIMIT, told)
    if error > tolerance and not left and any(map(picks, result.nodes)):
        sections, _ = _cut_up(typed, masks, masked, result, slack)
        if sections is not None and (found := _by_section(sections, feeds, error)).passed:
            return found
    passed = bool(error <= tolerance)
    return SurgeryCheck(passed, float(error), tolerance, "" if passed else worst)


def _cut_up(
    typed: TypedGraph, masks: dict[Dim, Mask], masked: Graph, pruned: Graph, slack: dict[str, Slack]
) -> tuple[Sections | None, tuple[str, ...]]:
    """Both graphs in sections, or the nodes that round where one cannot cut."""
    cuts = find_cuts(typed, masked, pruned)
    if cuts.left:  # the file may lack what inlining made
        masked = _watched(masked_original(typed, masks), [*slack])
        cuts = find_cuts(typed, masked, pruned)
    return (None if cuts.left else Sections(typed, masks, masked, pruned, cuts, slack)), cuts.left


def _by_section(sections: Sections, feeds: Sequence[Feeds], error: float) -> SurgeryCheck:
    """The verdict of the sections; `error` is that of whole runs."""
    found = sections.check(feeds)
    passed = bool(found.error <= found.tolerance)
    told = f"section by section ({len(sections.cuts.entries)} cuts)"
    if error > found.tolerance:
        told += f"; in whole, ties move outputs by {error:.1e}"
    return SurgeryCheck(passed, float(found.error), found.tolerance, told if passed else found.detail)


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


def _noise(
    model: Program,
    feeds: Sequence[Feeds],
    want: Sequence[Sequence[Any]],
    slack: dict[str, Slack],
) -> float:
    """How far rounding alone moves the outputs: without optimisations, and with inputs off by one part in 2^23."""
    names, stepless = [*slack], {n: replace(s, step=0.0) for n, s in slack.items()}
    plain, _ = _largest(want, _outputs(model, names, feeds, optimise=False), stepless)
    moved, _ = _largest(want, _reference_outputs(model, names, [nudged(f) for f in feeds]), stepless)
    return max(plain, moved)


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


def _largest(want: Sequence[Sequence[Any]], got: Sequence[Sequence[Any]], slack: dict[str, Slack]) -> tuple[float, str]:
    rows = [
        (relative_error(a, b, allowed), f"output {name!r}, input {k}")
        for k, (left, right) in enumerate(zip(want, got, strict=True))
        for (name, allowed), a, b in zip(slack.items(), left, right, strict=True)
    ]
    return max(rows, key=lambda r: r[0], default=(0.0, ""))
