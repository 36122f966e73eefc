"""One Report object: everything that a run found, with stable keys for JSON. Rendering is elsewhere."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime

from onnxprune.gates import GateResult
from onnxprune.inference import TypedGraph
from onnxprune.layers import Score
from onnxprune.manager import Cut, Mended, PassResult
from onnxprune.metrics import Reading
from onnxprune.plan import Plan
from onnxprune.report.about import UNTOLD, About
from onnxprune.report.anatomy import Anatomy, BeforeAfter
from onnxprune.report.timing import Timing
from onnxprune.sensitivity import Sensitivity
from onnxprune.validate.latency import Comparison
from onnxprune.validate.profile import Profile
from onnxprune.validate.surgery_check import SurgeryCheck
from onnxprune.version import __version__

FORMAT, VERSION = "onnxprune report", 1  # what a saved report says that it is
MAX_CURVES, CURVE_POINTS = 100, 33  # sensitivities kept: dims, and widths of each
MAX_PROFILED = 25  # nodes that gained most, and that gained least
EXAMPLES = 3  # frozen dims named for each reason


@dataclass(frozen=True)
class Frozen:
    """A dim that weights carry and that cannot be pruned."""

    dim: str
    reason: str
    where: str
    size: int


@dataclass(frozen=True)
class Cutting:
    """A dim that was cut: units before and after."""

    dim: str
    kind: str
    before: int
    after: int


@dataclass(frozen=True)
class DroppedLayer:
    """A layer that went as a whole, with what it held. `influence`, `change` and `error` are those of
    `onnxprune.layers.Score`, None where they were not measured.
    """

    layer: str
    kind: str
    nodes: int
    params: int
    macs: int
    influence: float | None = None
    change: float | None = None
    error: float | None = None


@dataclass
class Report:
    """What happened. `params`: float elements stored; `macs`: multiply-accumulates at `macs_shapes`; `bytes`: size of
    the ONNX file. `failure`: why the result must not be used, if it must not.
    """

    params: BeforeAfter
    macs: BeforeAfter
    bytes: BeforeAfter
    dims: dict[str, int]
    options: dict[str, Any] = field(default_factory=dict)
    macs_shapes: dict[str, list[int]] = field(default_factory=dict)
    rotated: dict[str, int] = field(default_factory=dict)
    rotation_check: SurgeryCheck | None = None
    surgery_check: SurgeryCheck | None = None
    numerics: dict[str, dict[str, float | None]] = field(default_factory=dict)
    numerics_on: str = ""
    metrics: list[Reading] = field(default_factory=list)
    latency_ms: Comparison | None = None
    gates: list[GateResult] = field(default_factory=list)
    passes: list[PassResult] = field(default_factory=list)
    cuts: list[Cutting] = field(default_factory=list)
    layers: list[DroppedLayer] = field(default_factory=list)
    frozen: list[Frozen] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    recovery: list[Mended] = field(default_factory=list)
    unrecovered: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    about: About = UNTOLD
    dry_run: bool = False
    failure: str = ""
    anatomy: Anatomy = field(default_factory=Anatomy)
    sensitivity: Sensitivity | None = None
    profile: Profile | None = None
    timing: Timing | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON report; keys are stable, absent measurements are null."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "outcome": "failed" if self.failure else "dry run" if self.dry_run else "done",
            "failure": self.failure or None,
            **asdict(self.about),
            "params": self.params.to_dict(),
            "macs": {**self.macs.to_dict(), "input_shapes": self.macs_shapes},
            "bytes": self.bytes.to_dict(),
            "dims": self.dims,
            "options": self.options,
            "rotated": [{"dim": n, "size": size} for n, size in self.rotated.items()],
            "rotation_check": self.rotation_check.to_dict() if self.rotation_check else None,
            "surgery_check": self.surgery_check.to_dict() if self.surgery_check else None,
            "numerics": finite(self.numerics),
            "numerics_on": self.numerics_on,
            "metrics": finite([asdict(m) for m in self.metrics]),
            "latency_ms": _latency(self.latency_ms) if self.latency_ms else None,
            "gates": [g.to_dict() for g in self.gates],
            "passes": [{"name": p.name, "modified": p.modified, "seconds": round(p.seconds, 6)} for p in self.passes],
            "cuts": [{"dim": c.dim, "kind": c.kind, "before": c.before, "after": c.after} for c in self.cuts],
            "dropped_layers": finite([asdict(x) for x in self.layers]),
            "frozen": [{"dim": f.dim, "reason": f.reason, "where": f.where, "size": f.size} for f in self.frozen],
            "frozen_reasons": frozen_reasons(self.frozen),
            "refused": [{"dim": d, "reason": r} for d, r in self.refused],
            "recovery": finite([asdict(m) for m in self.recovery]),
            "unrecovered": [{"node": n, "reason": r} for n, r in self.unrecovered],
            **self.anatomy.to_dict(),
            "sensitivity": finite(_sensitivity(self.sensitivity)) if self.sensitivity else None,
            "profile": _profile(self.profile) if self.profile else None,
            "timing": self.timing.to_dict() if self.timing else None,
            "notes": self.notes,
            "versions": versions(),
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def to_html(self) -> str:
        """The report as a page of its own, the same that is made of `to_json()`."""
        from onnxprune.report.html import page  # which reads what is written here

        return page(self.to_json())


def finite(value: Any) -> Any:
    """Nested dicts and lists with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _latency(found: Comparison) -> dict[str, Any]:
    """Medians of the original and the result, `speedup` = before / after with its interval, and the times of all
    rounds.
    """
    before, after = found.timings
    return {
        "before": before.median_ms,
        "after": after.median_ms,
        "speedup": after.speedup,
        "ci95": list(after.speedup_ci95),
        "verdict": after.verdict,
        **found.to_dict(),
        "times": {"before": before.to_dict()["times_ms"], "after": after.to_dict()["times_ms"]},
    }


def _sensitivity(found: Sensitivity) -> dict[str, Any]:
    """Curves of the dims that lose most with half of their units gone, each at some of its widths."""
    half = {n: float(c.errors[len(c.order) // 2]) for n, c in found.curves.items()}
    rows = []
    for name in sorted(half, key=lambda n: -half[n])[:MAX_CURVES]:
        curve, probe = found.curves[name], found.probes[name]
        size = len(curve.order)
        gone = sorted({*np.linspace(0, size, CURVE_POINTS).astype(int).tolist(), probe.gone})
        rows.append(
            {
                "dim": name,
                "kind": found.kinds[name],
                "size": size,
                "kept": [size - k for k in gone],
                "errors": [float(curve.errors[k]) for k in gone],
                "measured": {"kept": size - probe.gone, "error": probe.output},
            }
        )
    return {"samples": found.samples, "left_out": len(half) - len(rows), "dims": rows}


def _profile(found: Profile) -> dict[str, Any]:
    """With the nodes of the result that gained most and least."""
    rows = found.nodes[0] if found.nodes else ()
    kept = rows if len(rows) <= 2 * MAX_PROFILED else (*rows[:MAX_PROFILED], *rows[-MAX_PROFILED:])
    return {**found.to_dict(), "nodes": [r.to_dict() for r in kept], "nodes_left_out": len(rows) - len(kept)}


def plain_reason(text: str) -> str:
    """A reason without the operator or numbers in brackets."""
    return text.split(" (")[0]


def frozen_reasons(rows: Sequence[Frozen]) -> list[dict[str, Any]]:
    """Frozen dims by reason, the most frequent first, with examples."""
    groups: dict[str, list[Frozen]] = {}
    for row in rows:
        groups.setdefault(plain_reason(row.reason), []).append(row)
    return [
        {
            "reason": reason,
            "dims": len(found),
            "units": sum(f.size for f in found),
            "examples": [{"dim": f.dim, "where": f.where, "size": f.size} for f in found[:EXAMPLES]],
        }
        for reason, found in sorted(groups.items(), key=lambda pair: -len(pair[1]))
    ]


def versions() -> dict[str, str]:
    """What the result was made with."""
    return {
        "onnxprune": __version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def cut_rows(plan: Plan) -> list[Cutting]:
    """Cut dims in the plan's order."""
    cut = {n: m for n, m in plan.keep.items() if not m.all()}
    return [Cutting(n, plan.kinds.get(n, "units"), int(m.size), int(m.sum())) for n, m in cut.items()]


def layer_rows(cut: Cut, batch: int) -> list[DroppedLayer]:
    """The layers that a cut dropped, in the order of the graph; MACs of one sample."""
    rows = []
    for name, x in zip(cut.plan.layers, cut.dropped.layers, strict=True):
        score = asdict(cut.dropped.scores.get(x.name, Score()))
        rows.append(DroppedLayer(name, x.kind, len(x.nodes), x.params, x.macs // batch, **finite(score)))
    return rows


def frozen_rows(typed: TypedGraph) -> list[Frozen]:
    """Dims of two or more units that a weight carries and that may not be pruned, each with its reason."""
    return [
        Frozen(d.name, str(d.dim.frozen), d.dim.frozen.where, d.dim.size)
        for d in typed.dims
        if d.dim.frozen and d.places and d.dim.size > 1
    ]


def dim_counts(typed: TypedGraph, plans: Sequence[Plan]) -> dict[str, int]:
    carried = [d for d in typed.dims if d.dim.size > 1 and (d.places or not d.dim.frozen)]
    pruned = {row.dim for plan in plans for row in cut_rows(plan)}
    return {"total": len(carried), "prunable": len(typed.prunable), "pruned": len(pruned)}
