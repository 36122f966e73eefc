"""The terminal's view of a run: compact tables with units, no colour when piped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxprune.criteria.second_order import Curve
from onnxprune.metrics import Reading
from onnxprune.operators import Operator
from onnxprune.plan import Plan
from onnxprune.report.report import Report, plain_reason
from onnxprune.report.timing import Timing
from onnxprune.sensitivity import SHARES, Sensitivity
from onnxprune.timing.steps import Found
from onnxprune.validate import latency
from onnxprune.validate.latency import Comparison

TOP_CUTS = 8
TOP_NAMES = 3
STAGES = {"original": "before", "removed": "after removal", "recovered": "after recovery", "pruned": "after"}
UNITS = {"sqnr_db": "{:.4g} dB", "top1_agreement": "{:.1%}"}  # of metrics that have one
LONG_TABLE = 1000  # rows


def console(quiet: bool = False, stderr: bool = False) -> Console:
    """A console that never wraps tables to less than 100 columns when piped."""
    piped = not (os.isatty(2) if stderr else os.isatty(1))
    width = 140 if piped else None
    return Console(
        quiet=quiet, stderr=stderr, highlight=False, width=width, soft_wrap=piped, markup=False, emoji=False
    )  # names may hold brackets and colons


def count(n: float, unit: str = "") -> str:
    """A number of at most four digits with a decimal prefix: 11.7 M."""
    for step, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= step:
            return f"{n / step:.{1 if abs(n) >= 10 * step else 2}f} {prefix}{unit}"
    return f"{n:.0f} {unit}".strip()


def change(before: float, after: float) -> str:
    return f"{100 * (after - before) / before:+.1f} %" if before else "-"


def show_report(out: Console, report: Report, source: str, target: str, verbose: bool = False) -> None:
    """The result of `prune` and `apply`."""
    missed = [g for g in report.gates if not g.passed]
    arrow = (" (not saved)",) if missed else (" -> ", (target, "bold")) if target else (" (dry run)",)
    out.print(Text.assemble((source, "bold"), *arrow))
    out.print(_totals(report))
    if report.latency_ms and (words := shows(report.latency_ms.timings[-1])) != "faster":
        out.print(f"latency           {words}")
    if report.timing:
        _show_timing(out, report.timing, report.latency_ms)
    for title, check in (("rotation check", report.rotation_check), ("surgery check", report.surgery_check)):
        if check:
            verdict = ("passed", "green") if check.passed else ("failed", "red")
            numbers = f", largest error {check.max_rel_err:.1e} (limit {check.tolerance:.0e})"
            numbers += f", {check.detail}" if check.passed and check.detail else ""
            out.print(Text.assemble(f"{title:18}", verdict, numbers))
    for name, row in report.numerics.items():
        out.print(f"against original  {name}: {_numbers(row)} ({report.numerics_on})")
    show_metrics(out, report.metrics)
    for gate in report.gates:
        verdict = ("passed", "green") if gate.passed else ("failed", "red")
        out.print(Text.assemble("gate              ", verdict, f", {gate}"))
    show_layers(out, report)
    show_cuts(out, report, None if verbose else TOP_CUTS)
    _show_frozen(out, report)
    for note in report.notes:
        out.print(f"note: {note}")
    if verbose:
        out.print(
            "passes            "
            + ", ".join(f"{p.name} {p.seconds:.2f} s" + ("" if p.modified else " (no change)") for p in report.passes)
        )


def _show_timing(out: Console, timing: Timing, measured: Comparison | None) -> None:
    """The latency model: the useful steps, and how right it was."""
    steps = ", ".join(_step(kind, f) for kind, f in timing.steps.items())
    if steps:
        out.print(f"useful steps      {steps}")
    if timing.predicted is not None:
        words = [f"{timing.predicted:.3f} of the original's time predicted from its kernels"]
        words += [f"{measured.timings[-1].ratio:.3f} measured"] if measured else []
        words += [plural(len(timing.attempts), "try").replace("trys", "tries")] if timing.attempts else []
        out.print(f"latency model     {', '.join(words)}")


def _step(kind: str, found: Found) -> str:
    between = f" (between: {found.excess:+.0%} time)" if found.excess is not None else ""
    return f"{found.step} for {kind}{between}"


def _totals(report: Report) -> Table:
    table = Table("", "before", "after", "change", box=None, pad_edge=False, header_style="dim")
    for column in table.columns[1:]:
        column.justify = "right"
    rows = (("parameters", report.params, ""), ("MACs", report.macs, ""), ("size", report.bytes, "B"))
    for name, value, unit in rows:
        table.add_row(name, count(value.before, unit), count(value.after, unit), change(value.before, value.after))
    if report.latency_ms:
        before, after = report.latency_ms.timings
        table.add_row("latency", f"{before.median_ms:.3f} ms", f"{after.median_ms:.3f} ms", speed_up(after))
    return table


def speed_up(timing: latency.Timing) -> str:
    """With its interval: 1.88x (1.84 to 1.91)."""
    low, high = timing.speedup_ci95
    return f"{timing.speedup:.2f}x ({low:.2f} to {high:.2f})"


def shows(timing: latency.Timing) -> str:
    """What the interval of a speed-up shows."""
    return timing.verdict + (" (wide interval)" if timing.is_wide else "")


def print_table(out: Console, table: Table) -> None:
    """Print a table; a long one in plain columns that are not fitted to the terminal, since rich takes half a
    millisecond for each row.
    """
    if table.row_count <= LONG_TABLE:
        out.print(table)
        return
    columns = [[str(cell) for cell in (column.header, *column.cells)] for column in table.columns]
    widths = [max(map(len, cells)) for cells in columns]
    right = [column.justify == "right" for column in table.columns]
    for row in zip(*columns, strict=True):
        texts = [text.rjust(w) if r else text.ljust(w) for text, w, r in zip(row, widths, right, strict=True)]
        out.out("  ".join(texts).rstrip(), highlight=False)


def _numbers(row: Mapping[str, float | None]) -> str:
    words = {
        "rel_l2": "relative L2 error {:.3g}",
        "cosine": "cosine {:.4f}",
        "max_abs": "largest {:.3g}",
        "top1_agreement": "top-1 agreement {:.1%}",
    }
    return ", ".join(text.format(row[key]) for key, text in words.items() if row.get(key) is not None)


def show_metrics(out: Console, readings: Sequence[Reading]) -> None:
    """One line: the metric at each stage."""
    if readings:
        told = ", ".join(f"{STAGES.get(r.stage, r.stage)} {r.value:.4g}" for r in readings)
        last = readings[-1]
        out.print(f"metric            {last.name}: {told} ({plural(last.samples, 'sample')})")


def show_sensitivity(out: Console, found: Sensitivity) -> None:
    """`sensitivity`: the error of the outputs at some widths of each dim, those that cost most first, or a metric."""
    table = Table(
        "dim", "kind", "units", *(f"{s:.0%} kept" for s in SHARES), box=None, pad_edge=False, header_style="dim"
    )
    table.columns[0].overflow = "fold"
    for column in table.columns[2:]:
        column.justify = "right"
    half = {n: _at(c, 0.5) for n, c in found.curves.items()}
    for name in sorted(half, key=lambda n: -half[n]):
        curve = found.curves[name]
        values = dict(found.metric.values[name]) if found.metric else None
        cells = [f"{_at(curve, s):.2g}" if values is None else f"{values[_kept(curve, s)]:.4g}" for s in SHARES]
        table.add_row(name, found.kinds[name], str(len(curve.order)), *cells)
    what = "error of the outputs"
    if found.metric:
        what = f"{found.metric.name} ({found.metric.whole:.4g} whole, {plural(found.metric.samples, 'sample')})"
    out.print(f"{what} with that share of a dim's units kept, its readers refitted")
    out.print(table)


def _at(curve: Curve, share: float) -> float:
    return float(curve.errors[len(curve.order) - _kept(curve, share)])


def _kept(curve: Curve, share: float) -> int:
    return max(1, round(share * len(curve.order)))


def show_layers(out: Console, report: Report) -> None:
    """Layers that went as a whole."""
    if not report.layers:
        return
    table = Table("layers dropped", "kind", "params", "MACs", "influence", "error", box=None, pad_edge=False)
    table.header_style = "dim"
    for column in table.columns[2:]:
        column.justify = "right"
    for x in report.layers:
        scores = (_cell(value, "{:.2g}") for value in (x.influence, x.error))
        table.add_row(x.layer, x.kind, count(x.params), count(x.macs), *scores)
    out.print()
    print_table(out, table)


def show_cuts(out: Console, report: Report, limit: int | None) -> None:
    """Cut dims, those that lose most units first."""
    cuts = sorted(report.cuts, key=lambda c: c.after - c.before)
    if not cuts:
        return
    table = Table(
        "largest cuts" if limit else "cuts", "kind", "units", "", box=None, pad_edge=False, header_style="dim"
    )
    table.columns[2].justify = table.columns[3].justify = "right"
    for cut in cuts[:limit]:
        table.add_row(cut.dim, cut.kind, f"{cut.before} -> {cut.after}", change(cut.before, cut.after))
    out.print()
    print_table(out, table)
    if limit and len(cuts) > limit:
        out.print(f"... and {len(cuts) - limit} more of {report.dims['prunable']} prunable dims")


def _show_frozen(out: Console, report: Report) -> None:
    kinds = Counter(plain_reason(f.reason) for f in report.frozen)
    if kinds:
        out.print()
        out.print(
            "not prunable      " + "; ".join(f"{plural(n, 'dim')}: {reason}" for reason, n in kinds.most_common(6))
        )
    left = Counter(plain_reason(reason) for _, reason in report.unrecovered)
    if left:
        told = "; ".join(f"{plural(n, 'product')}: {reason}" for reason, n in left.most_common(6))
        out.print(f"not recovered     {told}")
    whole: dict[str, list[str]] = {}
    for name, reason in report.refused:
        whole.setdefault(reason, []).append(name)
    for reason, names in whole.items():
        more = f" and {len(names) - TOP_NAMES} more" if len(names) > TOP_NAMES else ""
        out.print(f"not cut           {', '.join(names[:TOP_NAMES])}{more}: {reason}")


def show_plan(out: Console, plan: Plan, typed_dims: Mapping[str, int]) -> None:
    layers = f"{plural(len(plan.layers), 'layer')} and " if plan.layers else ""
    out.print(
        f"plan: {layers}{plan.removed} units of {plural(len(plan.keep), 'dim')} go ({typed_dims['prunable']} are"
        " prunable); no model was written"
    )


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def show_operators(out: Console, rows: Sequence[Operator]) -> None:
    """`ops`: one row per operator."""
    table = Table("operator", "opsets", "behaviour", box=None, pad_edge=False, header_style="dim")
    for row in rows:
        table.add_row(row.name, ", ".join(map(str, row.opsets)), row.behaviour)
    out.print(table)
    typed = sum(r.typed for r in rows)
    out.print(f"{typed} typed, {plural(len(rows) - typed, 'deliberate barrier')}")


def show_numerics(out: Console, table: Mapping[str, Mapping[str, float | None]], on: str) -> None:
    """`check`: one row per output."""
    keys = ("max_abs", "rel_l2", "cosine", "sqnr_db", "top1_agreement")
    view = Table("output", *keys, box=None, pad_edge=False, header_style="dim")
    for column in view.columns[1:]:
        column.justify = "right"
    for name, row in table.items():
        view.add_row(name, *(_cell(row.get(k), UNITS.get(k, "{:.4g}")) for k in keys))
    out.print(view)
    out.print(f"on {on}")


def _cell(value: float | None, text: str) -> str:
    return "-" if value is None else text.format(value)
