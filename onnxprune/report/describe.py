"""What a run did, as a report: sizes before and after, what went, what stayed and why. What is proved and measured is
added later (`proof`).
"""

from __future__ import annotations

from onnxprune import cost
from onnxprune.feeds import batch_size
from onnxprune.graph import Graph
from onnxprune.manager import PassResult, State
from onnxprune.plan import bind
from onnxprune.report.anatomy import BeforeAfter, anatomy
from onnxprune.report.report import Report, cut_rows, dim_counts, frozen_rows, layer_rows


def describe(graph: Graph, state: State, results: list[PassResult], notes: list[str]) -> Report:
    """The report of the passes that `results` tells of, from the `graph` that was read to the one of `state`."""
    typed = state.cuts[0].typed if state.cuts else state.typed
    batch = batch_size(graph, state.cuts[0].typed.facts.binding if state.cuts else state.facts.binding)
    macs = cost.macs(typed)
    last = state.cuts[-1].typed if state.cuts and not state.cuts[-1].dropped.layers else state.typed
    left = {d: int(m.sum()) for c in state.cuts[-1:] for d, m in bind(c.plan, c.typed).items()}
    plan = state.done
    made = (state.graph.params(), state.graph.size_bytes())
    if state.dry_run:  # what the plan would leave
        made = (cost.params(last).at(left), cost.bits(last).at(left) // 8)
    report = Report(
        params=BeforeAfter(graph.params(), made[0]),
        macs=BeforeAfter(macs.at({}) // batch, (macs if last is typed else cost.macs(last)).at(left) // batch),
        bytes=BeforeAfter(graph.size_bytes(), made[1]),
        dry_run=state.dry_run,
        anatomy=anatomy(typed, last, left, batch),
        dims=dim_counts(typed, [plan]),
        passes=results,
        cuts=cut_rows(plan),
        layers=[row for c in state.cuts for row in layer_rows(c, batch)],
        frozen=frozen_rows(typed),
        refused=list(plan.refused),
        recovery=[m for r in state.recoveries for m in r.mended],
        unrecovered=[left for r in state.recoveries for left in r.left],
        notes=notes,
        rotated={n: b.shape[1] for n, b in plan.bases.items()},
    )
    shapes = typed.facts.binding.shapes
    report.macs_shapes = {n: [s[0] // batch, *s[1:]] if s else [] for n, s in shapes.items()}
    report.options = state.budget.options() if state.budget else {}
    report.notes += state.notes
    if any(c.dropped.by_norm for c in state.cuts):
        report.notes.append("layers were chosen by the norms of their weights, which say little: give --data")
    if not report.cuts and not report.layers:
        report.notes.append("nothing was removed")
    return report
