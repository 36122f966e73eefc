"""The terminal's view of `onnxprune bench`: models, then operators and nodes where they were profiled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from onnxprune.benchmark import Benchmark
from onnxprune.report.terminal import change, count, shows, speed_up
from onnxprune.sessions import Settings
from onnxprune.validate.footprint import ROUNDS
from onnxprune.validate.profile import NodeRow, Profile

TOP_OPERATORS, TOP_NODES = 12, 8


def table(*names: str, left: int = 1) -> Table:
    """A plain table, the columns after the first `left` ones to the right."""
    made = Table(*names, box=None, pad_edge=False, header_style="dim")
    for column in made.columns[left:]:
        column.justify = "right"
    made.columns[0].overflow = "fold"
    return made


def show_benchmark(out: Console, found: Benchmark) -> None:
    """One row per model: latency, its ratio to the first one's, load time and memory; then how it was measured."""
    view = table("model", "latency", "speed-up (95 %)", "", "load", "memory to load", "to run")
    view.columns[3].justify = "left"
    comparison = found.comparison
    for k, (name, timing, prints) in enumerate(zip(found.names, comparison.timings, found.footprints, strict=True)):
        speed = (speed_up(timing), shows(timing)) if k else ("reference", "")
        memory = (_bytes(prints.load_peak_bytes), _bytes(prints.run_peak_bytes))
        view.add_row(name, f"{timing.median_ms:.3f} ms", *speed, f"{prints.load_ms:.1f} ms", *memory)
    out.print(view)
    shapes = ", ".join(f"{n} {'x'.join(map(str, s)) or 'scalar'}" for n, s in found.shapes.items())
    aside = f", {comparison.left_aside} interrupted ones left aside" if comparison.left_aside else ""
    out.print(f"input {shapes}; {_settings(comparison.settings)}")
    out.print(f"medians of {comparison.rounds} shuffled rounds in {comparison.sessions} sets of sessions{aside}")
    out.print(
        f"load: a session on the file; memory: the largest resident set above the imports; both in fresh processes,"
        f" medians of {ROUNDS}"
    )
    if comparison.busy:
        told = ", with the time that the thread had the CPU" if comparison.on_cpu else ""
        out.print(f"the machine is busy: other processes interrupted most rounds, all of them are used{told}")
    if any(t.is_wide for t in comparison.timings[1:]):
        out.print("a wide interval says little: give more --seconds, or a machine with less to do")
    if found.profile:
        show_profile(out, found.names, found.profile)


def _settings(settings: Settings) -> str:
    threads = settings.threads or "as ONNX Runtime chooses"
    return f"threads {threads}; {settings.provider}, optimization {settings.optimization}"


def _bytes(n: int | None) -> str:
    return "-" if n is None else count(n, "B")


def show_profile(out: Console, names: Sequence[str], found: Profile) -> None:
    """Operators of all models, then per model the nodes that gained and lost most."""
    out.print()
    view = table(f"operator ({found.runs} runs, {found.sessions} sessions)", *names)
    for row in found.operators[:TOP_OPERATORS]:
        view.add_row(row.operator, *map(_cell, row.ms, row.kernels))
    rest = found.operators[TOP_OPERATORS:]
    if rest:
        columns = zip(*(zip(r.ms, r.kernels, strict=True) for r in rest), strict=True)
        view.add_row(f"{len(rest)} more", *(_cell(sum(ms for ms, _ in c), sum(n for _, n in c)) for c in columns))
    view.add_row("all kernels", *(f"{ms:.3f} ms" for ms in found.total_ms))
    out.print(view)
    for name, rows in zip(names[1:], found.nodes, strict=True):
        show_nodes(out, name, rows)


def _cell(ms: float, kernels: int) -> str:
    return f"{ms:.3f} ms in {kernels}" if kernels else "-"


def show_nodes(out: Console, name: str, rows: Sequence[NodeRow]) -> None:
    """Nodes that gained and lost most, by what was saved; the rest as counts."""
    gained = [r for r in rows if r.verdict == "faster"][:TOP_NODES]
    lost = [r for r in reversed(rows) if r.verdict == "slower"][:TOP_NODES]
    out.print()
    for title, listed in ((f"faster in {name}", gained), (f"slower in {name}", lost)):
        if listed:
            out.print(_nodes(title, listed))
    verdicts = Counter(r.verdict for r in rows)
    out.print(f"groups of nodes: {len(rows)}, " + ", ".join(f"{n} {v}" for v, n in verdicts.most_common()))


def _nodes(title: str, rows: Sequence[NodeRow]) -> Table:
    view = table(title, "runs as", "before", "after", "saved (range)", "", left=2)
    view.columns[1].overflow = "fold"
    for r in rows:
        low, high = r.range_ms
        was, now = _kernels(r.before), _kernels(r.after)
        runs = was if was == now else f"{was} -> {now}"
        saved = f"{r.saved_ms * 1e3:.0f} us ({low * 1e3:.0f} to {high * 1e3:.0f})"
        after = f"{r.after_ms * 1e3:.0f} us"
        view.add_row(r.node, runs, f"{r.before_ms * 1e3:.0f} us", after, saved, change(r.before_ms, r.after_ms))
    return view


def _kernels(told: Sequence[str]) -> str:
    return ", ".join(told) or "nothing"
