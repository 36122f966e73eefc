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
from onnxprune.manager import Mended, PassResult
from onnxprune.metrics import Reading
from onnxprune.plan import Plan
from onnxprune.validate.latency import Comparison
from onnxprune.validate.surgery_check import SurgeryCheck
from onnxprune.version import __version__


@dataclass(frozen=True)
class BeforeAfter:
    before: int
    after: int

    def to_dict(self) -> dict[str, int]:
        return {"before": self.before, "after": self.after}


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


@dataclass
class Report:
    """What happened. `params`: float elements stored; `macs`: multiply-accumulates at `macs_shapes`; `bytes`: size of
    the ONNX file.
    """

    params: BeforeAfter
    macs: BeforeAfter
    bytes: BeforeAfter
    dims: dict[str, int]
    options: dict[str, Any] = field(default_factory=dict)
    macs_shapes: dict[str, list[int]] = field(default_factory=dict)
    surgery_check: SurgeryCheck | None = None
    numerics: dict[str, dict[str, float | None]] = field(default_factory=dict)
    numerics_on: str = ""
    metrics: list[Reading] = field(default_factory=list)
    latency_ms: Comparison | None = None
    gates: list[GateResult] = field(default_factory=list)
    passes: list[PassResult] = field(default_factory=list)
    cuts: list[Cutting] = field(default_factory=list)
    frozen: list[Frozen] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    recovery: list[Mended] = field(default_factory=list)
    unrecovered: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The JSON report; keys are stable, absent measurements are null."""
        return {
            "params": self.params.to_dict(),
            "macs": {**self.macs.to_dict(), "input_shapes": self.macs_shapes},
            "bytes": self.bytes.to_dict(),
            "dims": self.dims,
            "options": self.options,
            "surgery_check": self.surgery_check.to_dict() if self.surgery_check else None,
            "numerics": finite(self.numerics),
            "numerics_on": self.numerics_on,
            "metrics": finite([asdict(m) for m in self.metrics]),
            "latency_ms": _latency(self.latency_ms) if self.latency_ms else None,
            "gates": [g.to_dict() for g in self.gates],
            "passes": [{"name": p.name, "modified": p.modified, "seconds": round(p.seconds, 6)} for p in self.passes],
            "cuts": [{"dim": c.dim, "kind": c.kind, "before": c.before, "after": c.after} for c in self.cuts],
            "frozen": [{"dim": f.dim, "reason": f.reason, "where": f.where, "size": f.size} for f in self.frozen],
            "refused": [{"dim": d, "reason": r} for d, r in self.refused],
            "recovery": finite([asdict(m) for m in self.recovery]),
            "unrecovered": [{"node": n, "reason": r} for n, r in self.unrecovered],
            "notes": self.notes,
            "versions": versions(),
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)


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
