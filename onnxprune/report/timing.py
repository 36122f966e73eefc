"""What the latency model found, for reports: which widths are worth having here, how long the largest kernels take at
each width, and how well what it predicted agrees with what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.dims import Dim
from onnxprune.manager import Cut
from onnxprune.timing import Attempt, Clock
from onnxprune.timing.steps import Found
from onnxprune.timing.tables import NS, KernelTerm, Table

CURVES = 8  # kernels whose tables are told
DIGITS = 6  # of milliseconds and ratios


@dataclass(frozen=True)
class Widths:
    """How long a kernel takes at some widths of one dim, the others whole."""

    kernel: str
    kind: str
    dim: str
    size: int
    kept: tuple[int, ...]
    ms: tuple[float, ...]


@dataclass(frozen=True)
class Timing:
    """`whole_ms`: of the model, by its kernels; `predicted`: of the result, as a share of it; `attempts`: tries at a
    latency; `measured`, `known`: micro-models that were timed, and known from before.
    """

    whole_ms: float
    predicted: float | None
    steps: Mapping[str, Found]
    attempts: tuple[Attempt, ...]
    curves: tuple[Widths, ...]
    measured: int
    known: int

    @staticmethod
    def of(clock: Clock, cuts: Sequence[Cut]) -> Timing | None:
        """What a clock knows of the first graph that it saw, and of what cuts left of it."""
        if clock.first is None:
            return None
        typed, model = clock.first
        names = {d.dim: d.name for d in typed.dims}
        tables = {id(t.table): t for t in model.terms if isinstance(t, KernelTerm) and t.table is not None}
        largest = sorted(tables.values(), key=lambda t: -t.whole)[:CURVES]
        curves = tuple(w for t in largest if t.table for w in _curves(t, t.table, names))
        predicted = clock.predicted(cuts)
        return Timing(model.at({}) / NS, predicted, model.steps, clock.attempts, curves, clock.measured, clock.known)

    def to_dict(self) -> dict[str, Any]:
        return {
            "whole_ms": round(self.whole_ms, DIGITS),
            "predicted": None if self.predicted is None else round(self.predicted, DIGITS),
            "steps": [
                {
                    "kind": k,
                    "step": f.step,
                    "kernels": f.kernels,
                    "excess": None if f.excess is None else round(f.excess, 4),
                }
                for k, f in self.steps.items()
            ],
            "attempts": [
                {
                    "asked": round(a.asked, DIGITS),
                    "predicted": round(a.predicted, DIGITS),
                    "measured": round(a.measured, DIGITS),
                    "ci95": [round(x, DIGITS) for x in a.ci95],
                }
                for a in self.attempts
            ],
            "kernels": [
                {
                    "kernel": w.kernel,
                    "kind": w.kind,
                    "dim": w.dim,
                    "size": w.size,
                    "kept": list(w.kept),
                    "ms": [round(x, DIGITS) for x in w.ms],
                }
                for w in self.curves
            ],
            "micro_models": {"measured": self.measured, "known": self.known},
        }


def _curves(term: KernelTerm, table: Table, names: Mapping[Dim, str]) -> Iterator[Widths]:
    """A kernel's table along each of its widths."""
    if table.grid.together:
        return
    for c, points in zip(term.group.coordinates, table.grid.axes, strict=True):
        if len(points) > 1 and c.dims[0] in names:
            d = c.dims[0]
            ms = tuple(term.at(dict(zip(c.dims, p, strict=True))) / NS for p in points)
            yield Widths(term.group.name, term.group.kind, names[d], d.size, tuple(p[0] for p in points), ms)
