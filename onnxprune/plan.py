"""Deciding what to remove: budgets and scores in, a Plan out. A Plan is data: it prints, saves, and is the only bridge
to surgery.

A ratio takes floor(r * N) of the N units of each pool (`ranking`), the least important by their scores (`criteria`). A
budget in a cost takes the smallest removal, in that order, whose cost is at most that fraction of the whole. A lossless
one takes what `lossless` proves to be without effect.

With the criterion `obs` (calibration data needed) scores are error curves. A global budget is then met by the widths
that cost the least error (`allocation`), and the units of each dim are improved by exchanges.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune import cost, probes, ranking, rotation, sensitivity
from onnxprune.allocation import Allocation, choices, order_masks
from onnxprune.budget import Budget, limited_cost, picked_dims
from onnxprune.calibration import Calibration
from onnxprune.criteria import OBS, Scores, score
from onnxprune.criteria.second_order import Curve
from onnxprune.dims import Dim, Mask
from onnxprune.errors import InputError
from onnxprune.inference import DimInfo, TypedGraph
from onnxprune.layers import Layer
from onnxprune.lossless import removable
from onnxprune.rotation import Bases, obstacles, packed, unpacked

VERSION = 2  # 1: without layers
SLACK = 0.98  # of a cost budget: what comes closer is not refilled


@dataclass(frozen=True)
class Plan:
    """Keep-masks by dim name, and the dims that were asked for but refused, with reasons. `layers`: those that go as a
    whole, by name, before widths are cut. `bases`: the dims whose units are directions of another basis (`rotation`),
    and that basis, (copies, n, n) in float32.
    """

    keep: dict[str, Mask]
    model: str = ""
    kinds: dict[str, str] = field(default_factory=dict)
    refused: tuple[tuple[str, str], ...] = ()
    layers: tuple[str, ...] = ()
    bases: Bases = field(default_factory=dict)

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
        return json.dumps(made | ({"bases": packed(self.bases)} if self.bases else {}), indent=1)

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
            return Plan(keep, str(data["model"]), kinds, refused, layers, unpacked(data.get("bases", {})))
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
    infos = picked_dims(typed, budget)
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


def error_curves(typed: TypedGraph, budget: Budget, calibration: Calibration) -> dict[str, Curve]:
    """The curves that `make_plan` would measure, by dim name."""
    infos = picked_dims(typed, budget)
    return {infos[d].name: curve for d, curve in _curves(budget, infos, calibration).items()}


def choose_bases(typed: TypedGraph, budget: Budget | None, calibration: Calibration) -> Bases:
    """Bases for all dims that may be pruned and whose basis can change, by name."""
    picked = typed.prunable if budget is None else picked_dims(typed, budget).values()
    free = obstacles(typed, [i.dim for i in picked])
    found = rotation.bases(calibration, [i.dim for i in picked if not free[i.dim]])
    return {i.name: found[i.dim] for i in picked if i.dim in found}


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
    poly, wanted, name = limited_cost(typed, budget, relative, clock)
    gone = _refilled(poly, wanted, counts(_solve(poly, wanted, name, counts)), relative, multiples)
    return {d: ranked[d] >= n for d, n in gone.items()}


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
        poly, wanted, name = limited_cost(typed, budget, infos, clock)
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
    return {d: curve for d, (curve, _) in probes.measure(calibration, found).items()}


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
    poly, wanted, name = limited_cost(typed, budget, dims, clock)
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
