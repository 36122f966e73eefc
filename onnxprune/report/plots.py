"""Pictures as SVG text, drawn by matplotlib, the same bytes for the same numbers.

They are drawn in marks for colours, which then become real ones: of paper for a file, or those of the page, which may
be light or dark (`Theme`). Names are never read as formulas.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from onnxprune.sensitivity import Sensitivity

COLUMNS = 4
PANEL_INCHES = (2.6, 1.9)
BINS = (8, 40)  # of a histogram, at least and at most
INK, MUTED, GRID, BEFORE, AFTER = (f"#01020{k}" for k in range(5))  # marks
Theme = Mapping[str, str]
PAPER: Theme = {INK: "#000000", MUTED: "#555555", GRID: "#cccccc", BEFORE: "#7f7f7f", AFTER: "#1f77b4"}
PAGE: Theme = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    BEFORE: "var(--before)",
    AFTER: "var(--after)",
}
STYLE: Any = {
    "svg.hashsalt": "onnxprune",
    "svg.fonttype": "none",
    "font.size": 8,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.titlecolor": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": GRID,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_drawing = threading.Lock()  # matplotlib's settings are those of the process


@dataclass(frozen=True)
class Panel:
    """One curve: the error of the outputs at some widths, where it was measured, and the width that was chosen."""

    title: str
    size: int
    kept: Sequence[int]
    errors: Sequence[float]
    measured: tuple[int, float]
    chosen: int | None = None


def curves_svg(found: Sensitivity) -> str:
    """A panel for each dim: units kept against the error of the outputs, and where it was measured, or a metric."""
    if found.metric:
        whole = {n: (len(c.order), found.metric.whole) for n, c in found.curves.items()}
        drawn = []
        for n, values in found.metric.values.items():
            points = [p for p in (whole[n], *values) if math.isfinite(p[1])]  # decibels without noise are not
            drawn.append(Times(f"{short(n)}\n{found.kinds[n]}", [k for k, _ in points], [v for _, v in points]))
        return times_svg(drawn, PAPER, found.metric.name)
    panels = []
    for name, curve in found.curves.items():
        size, probe = len(curve.order), found.probes[name]
        kept = range(size, -1, -1)
        title = f"{short(name)}\n{found.kinds[name]}"
        panels.append(Panel(title, size, kept, curve.errors.tolist(), (size - probe.gone, probe.output)))
    return panels_svg(panels, PAPER)


def panels_svg(panels: Sequence[Panel], theme: Theme) -> str:
    """Curves side by side, all with the same scale of errors."""
    columns = max(1, min(COLUMNS, len(panels)))
    rows = max(1, -(-len(panels) // columns))

    def draw(figure: Any) -> None:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for ax in grid.flat[len(panels) :]:
            ax.set_axis_off()
        for panel, ax in zip(panels, grid.flat, strict=False):
            _curve(ax, panel)
        for ax in grid[:, 0]:
            ax.set_ylabel("output error")

    return _svg(draw, (columns * PANEL_INCHES[0], rows * PANEL_INCHES[1]), theme)


def _curve(ax: Any, panel: Panel) -> None:
    ax.plot(panel.kept, panel.errors, linewidth=1.4, color=AFTER)
    ax.plot(*panel.measured, "o", markersize=3.5, color=INK)
    if panel.chosen is not None:
        ax.axvline(panel.chosen, color=INK, linewidth=1, linestyle=(0, (3, 2)))
    ax.set_yscale("symlog", linthresh=1e-3)
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_ylim(bottom=0)
    ax.set_xlim(panel.size, 0)
    ax.set_title(panel.title, fontsize=8)
    ax.set_xlabel("units kept")
    ax.grid(linewidth=0.5)
    ax.minorticks_off()


@dataclass(frozen=True)
class Times:
    """How long a kernel takes at the widths where it was measured (or what else was), and the width that was chosen."""

    title: str
    kept: Sequence[float]
    ms: Sequence[float]
    chosen: int | None = None


def times_svg(panels: Sequence[Times], theme: Theme, label: str = "milliseconds") -> str:
    """Kernels side by side, each on a scale of its own."""
    columns = max(1, min(COLUMNS, len(panels)))
    rows = max(1, -(-len(panels) // columns))

    def draw(figure: Any) -> None:
        grid = figure.subplots(rows, columns, squeeze=False)
        for ax in grid.flat[len(panels) :]:
            ax.set_axis_off()
        for panel, ax in zip(panels, grid.flat, strict=False):
            ax.plot(panel.kept, panel.ms, "o-", linewidth=1.4, markersize=3, color=AFTER)
            if panel.chosen is not None:
                ax.axvline(panel.chosen, color=INK, linewidth=1, linestyle=(0, (3, 2)))
            ax.set_xlim(0, 1.04 * max(panel.kept, default=1))
            ax.set_ylim(min(0, *panel.ms), 1.08 * max(0, *panel.ms) or 1)
            ax.set_title(panel.title, fontsize=8)
            ax.set_xlabel("units kept")
            ax.grid(linewidth=0.5)
        for ax in grid[:, 0]:
            ax.set_ylabel(label)

    return _svg(draw, (columns * PANEL_INCHES[0], rows * PANEL_INCHES[1]), theme)


def latency_svg(before: Sequence[float], after: Sequence[float], ci95: tuple[float, float], theme: Theme) -> str:
    """How long a run of each model took, and how much faster the result was in each round; the interval shaded."""
    import numpy as np

    old, new = np.asarray(before, float), np.asarray(after, float)
    low, high = min(old.min(), new.min()), max(np.percentile(old, 99), np.percentile(new, 99))

    def draw(figure: Any) -> None:
        times, ratios = figure.subplots(1, 2, width_ratios=[3, 2])
        bins = int(np.clip(len(old) ** 0.5 * 2, *BINS))
        edges = np.linspace(low, high + 1e-9 + 0.02 * (high - low), bins + 1)
        for values, color, name in ((old, BEFORE, "before"), (new, AFTER, "after")):
            _histogram(times, np.minimum(values, edges[-1]), edges, color)
            median = float(np.median(values))
            times.axvline(median, color=color, linewidth=1.5)
            times.annotate(
                f"{name} {median:.3g} ms", (median, 1), (3, -2), xycoords=("data", "axes fraction"), va="top",
                textcoords="offset points", fontsize=8,
            )  # fmt: skip
        times.set_ylim(top=times.get_ylim()[1] * 1.25)
        times.set_xlabel("milliseconds for a run")
        times.set_ylabel("rounds")
        speed = np.clip(old / new, *np.percentile(old / new, [1, 99]))
        _histogram(ratios, speed, np.linspace(min(speed.min(), 0.98), speed.max() * 1.02, bins + 1), AFTER)
        ratios.axvspan(*ci95, color=INK, alpha=0.18, linewidth=0)
        ratios.axvline(1, color=INK, linewidth=1, linestyle=(0, (3, 2)))
        ratios.set_xlabel("times as fast as before, round by round")

    return _svg(draw, (9, 2.4), theme)


def _histogram(ax: Any, values: Any, edges: Any, color: str) -> None:
    import numpy as np

    counts, _ = np.histogram(values, edges)
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.stairs(counts, edges, fill=True, color=color, alpha=0.75, linewidth=0)


def _svg(draw: Any, inches: tuple[float, float], theme: Theme) -> str:
    from matplotlib import rc_context  # takes half a second, and is rarely wanted
    from matplotlib.figure import Figure

    out = io.StringIO()
    with _drawing, rc_context(STYLE):
        figure = Figure(figsize=inches, layout="constrained")
        figure.patch.set_visible(theme is PAPER)
        draw(figure)
        for ax in figure.axes:
            ax.patch.set_visible(False)
        figure.savefig(out, format="svg", metadata={"Date": None})
    svg = re.sub("#01020[0-4]", lambda mark: theme[mark[0]], out.getvalue())
    return svg if theme is PAPER else embedded(svg)


def embedded(svg: str) -> str:
    """An SVG file as an element of a page: without prologue, style sheet, name spaces, fonts and what nothing refers
    to. Names of its parts start with a hash of the whole, so that several fit into one page.
    """
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag.rpartition("}")[2] in ("metadata", "style")]:
            parent.remove(child)
    own = f"p{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        made = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib.clear()
        for name, value in made.items():
            if name == "id" and element.tag not in ("clipPath", "path"):
                continue
            value = f"{own}{value}" if name == "id" else value.replace("#", f"#{own}")
            element.set(name, re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", value))
        if element.tag == "text":
            element.set("style", re.sub(r"font: ([\d.]+px)[^;]*|font-family: [^;]*;?", _size, element.get("style", "")))
        else:
            element.text = None
        element.tail = None
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    return ElementTree.tostring(root, encoding="unicode")


def _size(font: re.Match[str]) -> str:
    return f"font-size: {font[1]}" if font[1] else ""


def short(name: str, limit: int = 34) -> str:
    return name if len(name) <= limit else "..." + name[3 - limit :]
