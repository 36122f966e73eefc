"""Layers and widths in one budget: how many layers should go before widths are cut?

    error(k) = measured error without the first k layers + errors of the widths that then meet the budget

Layers are put in an order by what their loss costs at the outputs for each part of the budget that it saves, each given
those that went before (lazily: what was once found is looked at again only when its turn comes). Both terms are
errors of the outputs (`losses`), so the least sum is the best k, up to what recovery makes up for on either side:
that is what trials of the likely ones are for (`candidates`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from onnxprune import cost, probes, sensitivity
from onnxprune.allocation import Allocation, choices, total_error
from onnxprune.budget import Budget, select
from onnxprune.calibration import Calibration
from onnxprune.cost import Polynomial
from onnxprune.criteria.second_order import Curve
from onnxprune.dims import Dim
from onnxprune.errors import InputError
from onnxprune.inference import TypedGraph
from onnxprune.layers import Layer, find
from onnxprune.layers.choose import Measured, ways

COSTS = {"macs": cost.macs, "params": cost.params, "bytes": cost.bits}
ENOUGH = 4.0  # times the least sum so far: where the layers alone cost that much, no more are tried


class Prefix(NamedTuple):
    """The first layers of the order, their measured error, and that of the widths behind them."""

    layers: tuple[Layer, ...]
    error: float
    widths: float

    @property
    def total(self) -> float:
        return self.error + self.widths


def candidates(prefixes: Sequence[Prefix]) -> list[Prefix]:
    """No layers, the number with the least predicted error, and half as many again, which recovery may make the better
    one: what is worth a trial.
    """
    best = min(range(len(prefixes)), key=lambda k: prefixes[k].total)
    return [prefixes[k] for k in sorted({0, best, min(len(prefixes) - 1, best + max(1, (best + 1) // 2))})]


class Together:
    """The layers and dims of one graph, with what they cost and what their loss costs."""

    def __init__(
        self,
        typed: TypedGraph,
        budget: Budget,
        calibration: Calibration,
        curves: Mapping[str, Curve] | None = None,
        filled: bool = False,
    ) -> None:
        name = next((n for n in COSTS if getattr(budget, n) is not None), None)
        if name is None:
            raise InputError(f"drop_layers auto goes with a budget of {', '.join(COSTS)}: give a number or names")
        self.typed, self.name = typed, name
        self.poly = COSTS[name](typed)
        self._products = cost.macs_by_node(typed)
        self.limit = float(getattr(budget, name)) * self.poly.at({})
        self.measured = Measured(calibration, ways(find(typed)), filled)
        dims = select(typed.prunable, budget.include, budget.exclude, typed.dims)
        found = _curves(calibration, [d.dim for d in dims]) if curves is None else {d.dim: curves[d.name] for d in dims}
        self.curves = {d.name: found[d.dim] for d in dims}
        step = budget.round_to if isinstance(budget.round_to, int) else 1
        self._errors = {d: c.errors for d, c in found.items()}
        self._options = {d: choices(c.errors, d.size, step) for d, c in found.items()}

    def prefixes(self) -> list[Prefix]:
        """From no layer on, while it may be worth it."""
        found = [Prefix((), 0.0, self._widths(()))]
        for layers, error in self._order():
            if error > ENOUGH * min(p.total for p in found):
                break
            found.append(Prefix(layers, error, self._widths(layers)))
            if self._left(layers).at({}) <= self.limit:
                break
        return found

    def _order(self) -> Iterator[tuple[tuple[Layer, ...], float]]:
        """One layer more each time, and the error of all so far."""
        off: tuple[Layer, ...] = ()
        error = 0.0
        queue = [(self._rate(self.measured.errors[x.name], x), 0, k) for k, x in enumerate(self._best)]
        heapq.heapify(queue)
        while queue:
            rate, seen, k = heapq.heappop(queue)
            if seen < len(off):
                more = self.measured.error([*off, self._best[k]]) - error
                heapq.heappush(queue, (self._rate(more, self._best[k]), len(off), k))
                continue
            off, error = (*off, self._best[k]), error + rate * self._saved(self._best[k])
            yield off, error

    @cached_property
    def _best(self) -> list[Layer]:
        """The better way to drop each layer, of those that save anything."""
        best = [min(pool, key=lambda x: self.measured.errors[x.name]) for pool in self.measured.pool]
        return [x for x in best if self._saved(x) > 0]

    def _rate(self, error: float, layer: Layer) -> float:
        return error / self._saved(layer)

    def _saved(self, layer: Layer) -> int:
        return self.poly.at({}) - self._left([layer]).at({})

    def _left(self, layers: Sequence[Layer]) -> Polynomial:
        """The cost of what is left without some layers."""
        nodes = {i for x in layers for i in x.nodes}
        terms = [t for i, made in self._products.items() if i not in nodes for t in made]
        if self.name != "macs":
            graph = self.typed.graph
            used = {n for i in nodes for n in graph.wires[i].inputs}
            gone = {n for n in used if all(i in nodes for i, _ in graph.consumers.get(n, []))}
            terms = [t for t in self.poly.terms if t.owner not in gone]
        return Polynomial(tuple(terms))

    def _widths(self, layers: Sequence[Layer]) -> float:
        """The error of the widths that meet the budget without some layers; infinite if none do."""
        poly = self._left(layers)
        whole = poly.at({})
        if whole <= self.limit:
            return 0.0
        try:
            gone = Allocation(poly, self._options).solve(self.limit / whole, self.name)
        except InputError:
            return float("inf")
        return total_error(self._errors, gone)


def _curves(calibration: Calibration, dims: Sequence[Dim]) -> dict[Dim, Curve]:
    found = probes.measure(calibration, sensitivity.curves(calibration, dims))
    return {d: curve for d, (curve, _) in found.items()}
