"""Deciding what to remove: budgets and scores in, a Plan out. A Plan is data: it prints, saves, and is the only bridge
to surgery.

ratio           floor(r * N) of the N units of each pool (`ranking`), the least important by their scores (`criteria`)
macs, params,   the smallest removal, in that order, whose cost polynomial is at most that fraction of the whole
bytes
latency,        the same with the time as it was measured on this machine (`timing`), in widths that are worth having
latency_ms      there; what comes of it is measured and corrected by `search`
lossless        what `lossless` proves to be without effect

With the criterion `obs` (calibration data needed) scores are error curves. A global budget is then met by the widths
that cost the least error (`allocation`), and the units of each dim are improved by exchanges.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from onnxprune import cost, ranking, sensitivity
from onnxprune.allocation import Allocation, choices, order_masks
from onnxprune.calibration import Calibration
from onnxprune.criteria import OBS, Criterion, Scores, label, resolve, score
from onnxprune.criteria.second_order import Curve
from onnxprune.dims import Dim, Mask
from onnxprune.errors import InputError
from onnxprune.inference import DimInfo, TypedGraph
from onnxprune.layers import Layer, check_wanted
from onnxprune.lossless import removable

COSTS = ("ratio", "macs", "params", "bytes", "latency", "latency_ms")
AUTO = "auto"  # round_to: whatever is best on this machine; layers: as many as are
NS_IN_MS = 1_000_000
VERSION = 2  # 1: without layers
LAYERS = "layers"  # the word of a schedule
SLACK = 0.98  # of a cost budget: what comes closer is not refilled


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
        whole, left = (_cost(t, self, _infos(t, self), clock)[0].at({}) for t in (first, now))
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


@dataclass(frozen=True)
class Plan:
    """Keep-masks by dim name, and the dims that were asked for but refused, with reasons. `layers`: those that go as a
    whole, by name, before widths are cut.
    """

    keep: dict[str, Mask]
    model: str = ""
    kinds: dict[str, str] = field(default_factory=dict)
    refused: tuple[tuple[str, str], ...] = ()
    layers: tuple[str, ...] = ()

    @property
    def removed(self) -> int:
        """Number of units that go."""
        return sum(int((~m).sum()) for m in self.keep.values())

    def to_json(self) -> str:
        """Text that `from_json` reads; removed units by number."""
        dims = {
            n: {"kind": self.kinds.get(n, "units"), "size": int(m.size), "removed": np.flatnonzero(~m).tolist()}
            for n, m in self.keep.items()
        }
        refused = [{"dim": n, "reason": r} for n, r in self.refused]
        made = {"version": VERSION, "model": self.model, "layers": self.layers, "dims": dims, "refused": refused}
        return json.dumps(made, indent=1)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a saved plan; InputError if it is not one."""
        try:
            data = json.loads(text)
            if data["version"] not in range(1, VERSION + 1):
                raise InputError(f"the plan has version {data['version']}, this onnxprune reads up to {VERSION}")
            keep = {}
            for name, row in data["dims"].items():
                keep[name] = np.ones(int(row["size"]), bool)
                keep[name][np.asarray(row["removed"], int)] = False
            kinds = {n: str(row.get("kind", "units")) for n, row in data["dims"].items()}
            refused = tuple((r["dim"], r["reason"]) for r in data.get("refused", []))
            layers = tuple(map(str, data.get("layers", ())))
            return Plan(keep, str(data["model"]), kinds, refused, layers)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"not a plan of onnxprune: {type(error).__name__}: {error}") from error


def compose(plans: Sequence[Plan], model: str = "") -> Plan:
    """Several plans, each made for what the last one left, as one plan for the first graph."""
    if len(plans) == 1:
        return plans[0]
    keep: dict[str, Mask] = {}
    kinds: dict[str, str] = {}
    for plan in plans:
        kinds = {**plan.kinds, **kinds}
        for name, mask in plan.keep.items():
            made = keep.get(name, np.ones(mask.size, bool)).copy()
            made[made] = mask
            keep[name] = made
    refused = plans[-1].refused if plans else ()
    layers = tuple(dict.fromkeys(n for p in plans for n in p.layers))
    return Plan(keep, model, kinds, tuple((n, reason) for n, reason in refused if n not in keep), layers)


def bind(plan: Plan, typed: TypedGraph) -> dict[Dim, Mask]:
    """Keep-masks by Dim for surgery; InputError if the plan was not made for this graph."""
    known = {d.name: d for d in typed.prunable}
    bound: dict[Dim, Mask] = {}
    for name, mask in plan.keep.items():
        info = known.get(name)
        if info is None:
            raise InputError(
                f"the plan cuts {name!r}, which is no prunable dim of this model: was it made for another file?"
            )
        if info.dim.size != mask.size:
            raise InputError(f"the plan has {mask.size} units for {name!r}, the model {info.dim.size}")
        if not mask.any():
            raise InputError(f"the plan leaves no unit of {name!r}: keep at least one")
        if not mask.all():
            bound[info.dim] = mask
    return bound


def bind_layers(plan: Plan, found: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers of a plan among those of a graph, in its order; InputError if one is not there."""
    known = {x.name for x in found}
    if missing := next((n for n in plan.layers if n not in known), None):
        raise InputError(f"the plan drops {missing!r}, which is no layer of this model: was it made for another file?")
    return tuple(x for x in found if x.name in plan.layers)


def make_plan(
    typed: TypedGraph,
    budget: Budget,
    model: str = "",
    calibration: Calibration | None = None,
    curves: Mapping[str, Curve] | None = None,
    seed: int = 0,
    clock: cost.Clock | None = None,
) -> Plan:
    """Choose the units to remove. `curves` are error curves by dim name that were measured before; `seed` is that of
    random scores; `clock` is needed where the budget `needs_clock`. Raises InputError for a pattern without match, a
    budget that cannot be reached, or a criterion that needs calibration data where there is none.
    """
    infos = _infos(typed, budget)
    multiples = budget.multiples(typed, infos, clock)
    refused: list[tuple[str, str]] = []
    criterion = budget.criterion or ("l2" if calibration is None and curves is None else OBS)
    if budget.lossless:
        keep = {d: ~gone for d, gone in removable(typed, infos, multiples).items()}
    else:
        if criterion == OBS:
            keep = _by_curve(typed, budget, infos, multiples, calibration, curves, clock)
        else:
            scores, silent = score(typed, infos.values(), criterion, calibration, seed)
            refused += [(infos[d].name, reason) for d, reason in silent.items()]
            listed = [i for d, i in infos.items() if d in scores]
            keep = _by_score(typed, budget, listed, multiples, scores, clock)
        for d, mask in keep.items():
            if mask.all():
                step = f" in steps of {multiples[d]} units" if multiples.get(d, 1) > 1 else ""
                refused.append((infos[d].name, f"nothing goes at this budget{step}"))
    cut = {infos[d].name: m for d, m in keep.items() if not m.all()}
    return Plan(cut, model, {infos[d].name: infos[d].kind for d in infos}, tuple(refused))


def _infos(typed: TypedGraph, budget: Budget) -> dict[Dim, DimInfo]:
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


def _by_score(
    typed: TypedGraph,
    budget: Budget,
    infos: Sequence[DimInfo],
    multiples: Mapping[Dim, int],
    scores: Scores,
    clock: cost.Clock | None,
) -> dict[Dim, Mask]:
    relative = ranking.scaled({i.dim: scores[i.dim] for i in infos}, budget.scale)
    ranked = {d: np.argsort(np.argsort(s, kind="stable"), kind="stable") for d, s in relative.items()}
    counts = ranking.counter(relative, ranking.pools(infos, budget.scope), multiples)

    def masks(amount: float) -> dict[Dim, Mask]:
        return {d: ranked[d] >= gone for d, gone in counts(amount).items()}

    if budget.ratio is not None:
        return masks(budget.ratio)
    poly, wanted, name = _cost(typed, budget, relative, clock)
    gone = _refilled(poly, wanted, counts(_solve(poly, wanted, name, counts)), relative, multiples)
    return {d: ranked[d] >= n for d, n in gone.items()}


def _cost(
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


def _by_curve(
    typed: TypedGraph,
    budget: Budget,
    infos: Mapping[Dim, DimInfo],
    multiples: Mapping[Dim, int],
    calibration: Calibration | None,
    curves: Mapping[str, Curve] | None,
    clock: cost.Clock | None,
) -> dict[Dim, Mask]:
    """Widths by the error curves of optimal brain surgery, then the units of each width."""
    found = _curves(budget, infos, calibration) if curves is None else _known(curves, infos)
    if budget.scope == "local":
        gone = _uniform(typed, budget, list(infos), multiples, clock)
    else:
        options = {d: choices(c.errors, d.size, multiples.get(d, 1)) for d, c in found.items()}
        poly, wanted, name = _cost(typed, budget, infos, clock)
        gone = Allocation(poly, options).solve(wanted, name)
    keep = order_masks({d: c.order for d, c in found.items()}, gone)
    return keep if calibration is None else sensitivity.exchange(calibration, keep)


def _curves(budget: Budget, infos: Mapping[Dim, DimInfo], calibration: Calibration | None) -> dict[Dim, Curve]:
    """Curves from calibration data; their heights only count where widths are compared."""
    if calibration is None:
        raise InputError(f"the criterion {OBS} needs calibration data: give --data")
    found = sensitivity.curves(calibration, infos)
    if budget.scope == "local":
        return found
    return {d: curve for d, (curve, _) in sensitivity.measure(calibration, found).items()}


def _known(curves: Mapping[str, Curve], infos: Mapping[Dim, DimInfo]) -> dict[Dim, Curve]:
    """Curves that were measured before, by dim. InputError if they are of another model."""
    for d, info in infos.items():
        if info.name not in curves or len(curves[info.name].order) != d.size:
            raise InputError(f"the sensitivities do not fit: they have no curve of {d.size} units for {info.name!r}")
    return {d: curves[info.name] for d, info in infos.items()}


def _uniform(
    typed: TypedGraph, budget: Budget, dims: list[Dim], multiples: Mapping[Dim, int], clock: cost.Clock | None
) -> dict[Dim, int]:
    """The same share of every dim."""
    nothing: Scores = {d: np.zeros(d.size) for d in dims}
    counts = ranking.counter(nothing, [[d] for d in dims], multiples)
    if budget.ratio is not None:
        return counts(budget.ratio)
    poly, wanted, name = _cost(typed, budget, dims, clock)
    return _refilled(poly, wanted, counts(_solve(poly, wanted, name, counts)), nothing, multiples)


def _refilled(
    poly: cost.Cost, wanted: float, gone: dict[Dim, int], scores: Scores, multiples: Mapping[Dim, int]
) -> dict[Dim, int]:
    """Where the last cut was a coarse one (a head, a direction) and overshot, units go back while the budget holds:
    dims in the order of the score of the best unit that they lost, each as far as it can.
    """
    limit = wanted * poly.at({})

    def fits(counts: dict[Dim, int]) -> bool:
        return poly.at({d: d.size - n for d, n in counts.items()}) <= limit

    if poly.at({d: d.size - n for d, n in gone.items()}) >= SLACK * limit:
        return gone
    relative = {d: np.sort(scores[d]) for d, n in gone.items() if n}
    for d in sorted(relative, key=lambda d: -relative[d][gone[d] - 1]):
        low, high, step = 0, gone[d], multiples.get(d, 1)  # the fewest that must go
        while low < high:
            mid = (low + high) // 2
            low, high = (low, mid) if fits({**gone, d: ranking.rounded(d.size, mid, step)}) else (mid + 1, high)
        gone = {**gone, d: ranking.rounded(d.size, high, step)}
    return gone


def _solve(poly: cost.Cost, wanted: float, name: str, counts: Callable[[float], dict[Dim, int]]) -> float:
    """The smallest amount whose cost is at most `wanted` of the whole, by bisection to one part in 2^20."""

    def at(amount: float) -> int:
        return poly.at({d: d.size - gone for d, gone in counts(amount).items()})

    whole = poly.at({})
    if not whole:
        raise InputError(f"the model has no {name} to save")
    if at(1.0) > wanted * whole:
        raise InputError(
            f"{wanted:.3g} of the {name} cannot be reached: one unit in every dim still leaves {at(1.0) / whole:.3g}"
        )
    low, high = 0.0, 1.0
    for _ in range(20):
        mid = (low + high) / 2
        low, high = (low, mid) if at(mid) <= wanted * whole else (mid, high)
    return high
