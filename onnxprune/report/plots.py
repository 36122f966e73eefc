"""Pictures as SVG text, drawn by matplotlib, the same bytes for the same numbers."""

from __future__ import annotations

import io
from typing import Any

from onnxprune.sensitivity import Sensitivity

COLUMNS = 4
PANEL_INCHES = (2.6, 1.9)


def curves_svg(found: Sensitivity) -> str:
    """A panel for each dim: units kept against the error of the outputs, and where it was measured."""
    from matplotlib import rc_context  # takes half a second, and is rarely wanted
    from matplotlib.figure import Figure

    names = list(found.curves)
    columns = max(1, min(COLUMNS, len(names)))
    rows = max(1, -(-len(names) // columns))
    with rc_context({"svg.hashsalt": "onnxprune", "svg.fonttype": "none", "font.size": 7}):
        figure = Figure(figsize=(columns * PANEL_INCHES[0], rows * PANEL_INCHES[1]), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for ax in grid.flat[len(names) :]:
            ax.set_axis_off()
        for name, ax in zip(names, grid.flat, strict=False):
            _panel(ax, name, found)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _panel(ax: Any, name: str, found: Sensitivity) -> None:
    curve, probe = found.curves[name], found.probes[name]
    size = len(curve.order)
    kept = range(size, -1, -1)
    ax.plot(kept, curve.errors, linewidth=1.2)
    ax.plot([size - probe.gone], [probe.output], "o", markersize=3)
    ax.set_yscale("symlog", linthresh=1e-3)
    ax.set_xlim(size, 0)
    ax.set_title(f"{_short(name)}\n{found.kinds[name]}", fontsize=7)
    ax.set_xlabel("units kept")
    ax.set_ylabel("output error")
    ax.grid(alpha=0.3, linewidth=0.5)


def _short(name: str, limit: int = 34) -> str:
    return name if len(name) <= limit else "..." + name[3 - limit :]
