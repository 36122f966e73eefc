"""Choices that are made by trying them: a run goes on as it would, and its outputs are compared with the original's on
samples that were held back.

Error curves of dims are summed, which holds as long as what one dim loses is not what the readers of another make up
for its loss with. Factors of one axis (heads and their channels, directions and hidden units) are read by the same
products, so cutting both costs more than the sum; and an outer factor goes in few and large steps, each far from what
its curve knows of. Where an allocation cuts one, the one that leaves the outer factors whole is its rival. Another one
takes the same share of every dim, which says nothing of any curve; it is tried where data are not too large.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from glob import escape
from typing import Any, NamedTuple

from onnxprune.budget import Budget
from onnxprune.cost import pass_macs
from onnxprune.dims import Dim, Prod, atoms, children, resolve
from onnxprune.errors import InputError
from onnxprune.guard import Guard
from onnxprune.inference import TypedGraph
from onnxprune.manager import Pass, PassManager, Recovery, State

WORK = 1e12  # multiply-adds of a plain pass over the data, up to which widths are tried that no curve asks for


class Outcome(NamedTuple):
    """The error of the outputs on samples that were held back, infinite where the budget cannot be met; and what the
    last recovery did.
    """

    error: float
    recovery: Recovery | None


def outcome(state: State, passes: Sequence[Pass], **changes: Any) -> Outcome:
    """What comes of some passes of a run in which fields of the state are changed."""
    assert state.data is not None
    tried = replace(state, **changes)
    tried.cuts, tried.recoveries, tried.notes = list(state.cuts), list(state.recoveries), []
    try:
        PassManager(tuple(passes)).run(tried)
    except InputError:
        return Outcome(math.inf, None)
    original = state.cuts[0].typed.graph if state.cuts else state.graph
    error = Guard(original, state.facts, state.data, state.samples).errors([tried.graph])[0]
    return Outcome(error, tried.recoveries[-1] if len(tried.recoveries) > len(state.recoveries) else None)


def rivals(state: State, budget: Budget, cut: Collection[Dim]) -> dict[str, Budget]:
    """Budgets of the same cost that may do better than one whose widths are by the error curves, of which come the dims
    that are `cut`; by what to call them.
    """
    made: dict[str, Budget] = {}
    outer = outer_factors(state.typed, cut)
    names = tuple(sorted(d.name for d in state.typed.prunable if d.dim in outer))
    if names:
        made[f"with {', '.join(names)} whole"] = replace(budget, exclude=(*budget.exclude, *map(escape, names)))
    if state.data is not None and pass_macs(state.typed, next(iter(state.data)), state.samples) <= WORK:
        made["with the same share of every dim"] = replace(budget, scope="local")
    return made


def outer_factors(typed: TypedGraph, cut: Collection[Dim]) -> set[Dim]:
    """Those of the dims that stand left of another one that can be cut, in a product of factors."""
    found: set[Dim] = set()
    prunable = {d.dim for d in typed.prunable}
    for factors in _products(e for axes in typed.axes.values() for e in axes or ()):
        parts = [{d for d in atoms(f) if d in prunable} for f in factors]
        for k, part in enumerate(parts):
            found |= {d for d in part if d in cut and any(later - {d} for later in parts[k + 1 :])}
    return found


def _products(axes: Iterable[Any]) -> Iterable[Sequence[Any]]:
    """The factors of every product in some axes, also inside of sums."""
    seen: set[int] = set()
    waiting = [resolve(e) for e in axes]
    while waiting:
        expr = waiting.pop()
        if isinstance(expr, Dim) or id(expr) in seen:
            continue
        seen.add(id(expr))
        if isinstance(expr, Prod):
            yield expr.factors
        waiting += [resolve(e) for e in children(expr)]
