"""How much to remove, as it is asked for: budgets, the dims that patterns pick, and the cost that a budget limits.

ratio           a fraction of the units
macs, params,   the fraction of a cost polynomial (`cost`) that may be kept
bytes
latency,        the same with the time as it was measured on this machine (`timing`), in widths that are worth having
latency_ms      there
max_drop        the largest loss of the metric: `search` turns it into MACs
lossless        what has no effect
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from onnxprune import cost, ranking
from onnxprune.criteria import OBS, Criterion, label, resolve
from onnxprune.dims import Dim
from onnxprune.errors import InputError
from onnxprune.inference import DimInfo, TypedGraph
from onnxprune.layers import check_wanted

COSTS = ("ratio", "macs", "params", "bytes", "latency", "latency_ms")
AUTO = "auto"  # round_to: whatever is best on this machine; layers: as many as are
NS_IN_MS = 1_000_000
BLOCK = 8  # channels that ONNX Runtime's kernels for CPUs take together
LAYERS = "layers"  # the word of a schedule


@dataclass(frozen=True)
class Budget:
    """How much to remove: exactly one of ratio, macs, params, bytes, latency (fractions between 0 and 1), latency_ms
    (milliseconds) and lossless; and how to choose. Without a criterion: `obs` where there is calibration data, else
    `l2`. `max_drop` is the largest loss of the metric, as a fraction, and the MACs are then made as few as it allows;
    `steps`: cuts on the way, each recovered from; `round_to`: a number of units, or "auto". `drop_layers`: whole layers
    that go first, as `onnxprune.layers.choose` reads it; a budget of its own, too.
    `schedule`: cuts in order, "layers,global,local": layers first, then widths by these scopes, in equal parts.
    """

    ratio: float | None = None
    macs: float | None = None
    params: float | None = None
    bytes: float | None = None
    latency: float | None = None
    latency_ms: float | None = None
    lossless: bool = False
    scope: str = "global"
    criterion: str | Criterion = ""
    normalise: str | None = None
    round_to: int | str = 1
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    steps: int = 1
    max_drop: float | None = None
    drop_layers: tuple[str, ...] = ()
    schedule: str = ""

    def __post_init__(self) -> None:
        given = [n for n in (*COSTS, "max_drop") if getattr(self, n) is not None] + ["lossless"] * bool(self.lossless)
        check_wanted(self.drop_layers)
        if len(given) != 1 and not (self.drops_only and not given):
            raise InputError(
                f"give exactly one budget of {', '.join(COSTS)}, max_drop, lossless; got {', '.join(given) or 'none'}"
            )
        for name in given:
            _check_amount(name, getattr(self, name))
        if self.scope not in ranking.SCOPES:
            raise InputError(f"unknown scope {self.scope!r}: choose {', '.join(ranking.SCOPES)}")
        if not isinstance(self.criterion, str) or self.criterion not in ("", OBS):
            resolve(self.criterion)
        if self.normalise is not None and self.normalise not in ranking.SCALES:
            raise InputError(f"unknown normalise {self.normalise!r}: choose {', '.join(ranking.SCALES)}")
        if self.round_to != AUTO and not (isinstance(self.round_to, int) and self.round_to >= 1):
            raise InputError(f"round_to must be a whole number of at least 1, or {AUTO}, got {self.round_to}")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise InputError(f"steps must be a whole number of at least 1, got {self.steps}")
        self._check_schedule()

    def _check_schedule(self) -> None:
        known = f"{LAYERS!r} first or not at all, then any of {', '.join(ranking.SCOPES)}"
        if wrong := next((w for w in self.scopes if w not in ranking.SCOPES), None):
            raise InputError(f"the schedule {self.schedule!r} has {wrong!r}: write {known}, with commas between")
        if self.schedule and (self.steps > 1 or self.lossless):
            raise InputError("a schedule says itself in how many steps the budget is met: leave out steps and lossless")

    @property
    def scopes(self) -> list[str]:
        """The scope of each cut of widths."""
        words = [w.strip() for w in self.schedule.split(",")] if self.schedule else []
        return words[words[:1] == [LAYERS] :] or [self.scope] * (self.steps if not words else 1)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that go first, as they were asked for; whatever suits where a schedule only says that some do."""
        return self.drop_layers or ((AUTO,) if self.schedule.split(",")[0].strip() == LAYERS else ())

    @property
    def in_time(self) -> bool:
        """Whether it limits the time that the model takes."""
        return self.latency is not None or self.latency_ms is not None

    @property
    def needs_clock(self) -> bool:
        """Whether it takes measurements of this machine to meet it."""
        return self.in_time or self.round_to == AUTO

    @property
    def weighs_errors(self) -> bool:
        """Whether dims are weighed against each other by error curves, where there is data."""
        return self.scope == "global" and self.criterion in ("", OBS) and not (self.lossless or self.in_time)

    @property
    def for_speed(self) -> bool:
        """Whether it is there to make the model faster, not just smaller."""
        return self.needs_clock or self.macs is not None or self.max_drop is not None

    def multiples(self, typed: TypedGraph, dims: Iterable[Dim], clock: cost.Clock | None) -> Mapping[Dim, int]:
        """Of what number each dim is to keep a multiple: as given; or what is best on this machine, also where the time
        is limited and nothing is said.
        """
        if isinstance(self.round_to, int) and (self.round_to > 1 or not self.in_time):
            return dict.fromkeys(dims, self.round_to)
        return _present(clock).multiples(typed)

    @property
    def in_blocks(self) -> Budget | None:
        """The same in widths that suit most processors, for one in MACs that says nothing of widths."""
        return replace(self, round_to=BLOCK) if self.macs is not None and self.round_to == 1 else None

    @property
    def drops_only(self) -> bool:
        """Whether layers go and no width is cut."""
        rest = [getattr(self, n) for n in (*COSTS, "max_drop")]
        return bool(self.layers) and not self.lossless and rest == [None] * len(rest)

    @property
    def scale(self) -> str:
        """What scores are divided by, per dim: `normalise`, or what suits the criterion."""
        return self.normalise or ("none" if self.criterion in ranking.COMPARABLE else "mean")

    def options(self) -> dict[str, object]:
        """All fields as plain data, for reports."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"criterion": label(self.criterion)}

    def at_step(self, first: TypedGraph, now: TypedGraph, done: int, clock: cost.Clock | None = None) -> Budget | None:
        """The budget of the next cut of widths after `done` ones: costs fall by equal factors, measured on the `first`
        graph. None where nothing has to go any more.
        """
        if self.drops_only:
            return None
        steps = len(self.scopes)
        if self.lossless or self.latency_ms is not None or (steps == 1 and now is first):
            return replace(self, scope=self.scopes[0], steps=1, schedule="")
        name = next(n for n in COSTS if getattr(self, n) is not None)
        kept = 1 - self.ratio if self.ratio is not None else float(getattr(self, name))
        whole, left = (limited_cost(t, self, picked_dims(t, self), clock)[0].at({}) for t in (first, now))
        wanted = kept ** (min(done + 1, steps) / steps) * whole / max(left, 1)
        if wanted >= 1:
            return None
        wanted = float(np.clip(wanted, 1e-6, 1 - 1e-6))
        changed: dict[str, Any] = {name: 1 - wanted if self.ratio is not None else wanted, "steps": 1, "schedule": ""}
        changed["scope"] = self.scopes[min(done, steps - 1)]
        return replace(self, **changed)


def _check_amount(name: str, value: object) -> None:
    """InputError if a budget is out of range."""
    if name == "lossless":
        return
    most, range_ = (
        (math.inf, "of milliseconds above 0") if name == "latency_ms" else (1, "between 0 and 1 (both excluded)")
    )
    if not (isinstance(value, (int, float)) and 0 < value < most):
        raise InputError(f"{name} must be a number {range_}, got {value}")


def picked_dims(typed: TypedGraph, budget: Budget) -> dict[Dim, DimInfo]:
    return {d.dim: d for d in select(typed.prunable, budget.include, budget.exclude, typed.dims)}


def select(
    prunable: Sequence[DimInfo], include: Iterable[str], exclude: Iterable[str], known: Sequence[DimInfo]
) -> list[DimInfo]:
    """Dims that match some include pattern (all, if there is none) and no exclude pattern, in order."""
    for pattern in (*include, *exclude):
        if not any(matches(d, pattern) for d in known):
            raise InputError(
                f"pattern {pattern!r} matches no dim, node or tensor: see `onnxprune inspect` for their names"
            )
    picked = [d for d in prunable if not include or any(matches(d, p) for p in include)]
    return [d for d in picked if not any(matches(d, p) for p in exclude)]


def matches(info: DimInfo, pattern: str) -> bool:
    """`kind:NAME`, or a wildcard pattern over the dim's name and the nodes and tensors that carry it."""
    if pattern.startswith("kind:"):
        return fnmatchcase(info.kind, pattern[5:])
    names = {info.name} | {p.node for p in info.places} | {p.tensor for p in info.places}
    return any(fnmatchcase(n, pattern) for n in names)


def limited_cost(
    typed: TypedGraph, budget: Budget, infos: Collection[Dim], clock: cost.Clock | None
) -> tuple[cost.Cost, float, str]:
    """The cost that a budget limits, the fraction that may be kept, and what the cost is called."""
    if budget.macs is not None:
        return cost.macs(typed), budget.macs, "MACs"
    if budget.params is not None:
        return cost.params(typed), budget.params, "parameters"
    if budget.bytes is not None:
        return cost.bits(typed), budget.bytes, "bytes"
    if budget.in_time:
        time = _present(clock).cost(typed)
        return time, budget.latency or (budget.latency_ms or 0.0) * NS_IN_MS / max(time.at({}), 1), "latency"
    total = sum(d.size for d in infos)
    left = total - math.floor((budget.ratio or 0.0) * total + 1e-9)
    return cost.units(infos), (left + 0.5) / max(total, 1), "units"


def _present(clock: cost.Clock | None) -> cost.Clock:
    if clock is None:
        raise InputError(
            f"latency, latency_ms and round_to {AUTO} need measurements: options of the call, not of a pass, and"
            " operators that ONNX Runtime has"
        )
    return clock
