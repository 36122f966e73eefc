"""Gates: limits on what was measured, for builds that must fail loudly. A result that misses one is not saved.

Each gate takes the pessimist's number: over several outputs the worst one, and for the latency the upper end of the
95 % interval of after/before, so that a build does not pass by luck. Where that interval is wide, measure longer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from onnxprune.errors import InputError
from onnxprune.validate.latency import Comparison

Numerics = Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class GateResult:
    """A gate that was tried: the number it was held to (it may be infinite), the limit, and what the number is."""

    gate: str
    value: float
    limit: float
    passed: bool
    detail: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "gate": self.gate,
            "value": self.value if math.isfinite(self.value) else None,
            "limit": self.limit,
            "passed": self.passed,
            "detail": self.detail,
        }

    def __str__(self) -> str:
        sign = ("<=" if self.passed else ">") if self.gate.startswith("max") else (">=" if self.passed else "<")
        return f"{option(self.gate)} {_text(self.value)} {sign} {_text(self.limit)} ({self.detail})"


def _limit(text: str, low: float, high: float = math.inf, metavar: str = "X") -> Any:
    """A field with its range, and its option on the command line."""
    return field(default=None, metadata={"low": low, "high": high, "option": {"help": text, "metavar": metavar}})


@dataclass(frozen=True)
class Gates:
    """Limits by gate; None is no limit. InputError for a limit that is out of range."""

    max_latency_ratio: float | None = _limit(
        "Time of the result over that of the original: the upper end of the 95 % interval.", 0
    )
    max_rel_l2: float | None = _limit("Relative L2 error against the original, of the worst output.", 0)
    min_cosine: float | None = _limit("Cosine with the original's outputs, of the worst output.", -1, 1)
    min_top1_agreement: float | None = _limit("Share of samples with the original's largest class.", 0, 1)
    max_bytes: int | None = _limit("Size of the ONNX file, in bytes.", 0, metavar="N")

    def __post_init__(self) -> None:
        for f in fields(self):
            value, low, high = getattr(self, f.name), f.metadata["low"], f.metadata["high"]
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if value is not None and not (number and low <= value <= high):
                bounds = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
                raise InputError(f"gate {option(f.name)} must be a number {bounds}, got {value!r}")

    @classmethod
    def of(cls, given: Gates | Mapping[str, float] | None) -> Gates:
        """Gates from a mapping by name."""
        if isinstance(given, Gates):
            return given
        known = [f.name for f in fields(cls)]
        if unknown := [n for n in given or {} if n not in known]:
            raise InputError(f"unknown gate {unknown[0]!r}: choose from {', '.join(known)}")
        return cls(**(given or {}))  # type: ignore[arg-type]

    @property
    def given(self) -> dict[str, float]:
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def require_measured(self, why_not: str) -> None:
        """InputError if a gate is given that needs a run of the models, which is not done because of `why_not`."""
        unmeasured = [option(n) for n in self.given if n != "max_bytes"]
        if unmeasured:
            raise InputError(f"cannot try {', '.join(unmeasured)}: nothing is measured with {why_not}")

    def results(self, latency: Comparison | None, numerics: Numerics, size_bytes: int) -> list[GateResult]:
        """Every gate against what was measured; InputError where the model has nothing to measure."""
        found: list[GateResult] = []
        for gate, limit in self.given.items():
            value, detail = _measured(gate, latency, numerics, size_bytes)
            passed = value <= limit if gate.startswith("max") else value >= limit
            found.append(GateResult(gate, value, limit, passed, detail))
        return found


GatesLike = Gates | Mapping[str, float]


def _text(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:.6g}"


def option(gate: str) -> str:
    """The gate as it is written on the command line."""
    return "--" + gate.replace("_", "-")


def _measured(gate: str, latency: Comparison | None, numerics: Numerics, size_bytes: int) -> tuple[float, str]:
    if gate == "max_bytes":
        return size_bytes, "bytes of the file"
    if gate == "max_latency_ratio":
        if latency is None:
            raise InputError(f"cannot try {option(gate)}: the latency was not measured")
        timing = latency.timings[-1]
        return timing.ci95[1], f"upper end of the 95 % interval, median {timing.ratio:.6g}, {latency.rounds} rounds"
    key = gate.removeprefix("max_").removeprefix("min_")
    rows = {n: value for n, row in numerics.items() if (value := row[key]) is not None}
    if not rows:
        raise InputError(f"cannot try {option(gate)}: no output of this model has a {key}")
    name = (max if gate.startswith("max") else min)(rows, key=lambda n: rows[n])
    return rows[name], f"output {name!r}"
