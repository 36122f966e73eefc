"""How many units each dim loses: the least error for a cost, over error curves and cost polynomials or measured
times.

    minimise  sum over dims of error_d(k_d)     subject to  cost(sizes) <= wanted

Costs are products of sizes, so a dim's price depends on the others'. With a price per unit of cost (a Lagrange
multiplier) each dim has a best width given the others' widths; going round until nothing changes solves the problem for
that price, bisection finds the price that meets the budget, and what is left of the budget goes back to where it lowers
the error most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.cost import Cost, Part
from onnxprune.dims import Dim, atoms
from onnxprune.errors import InputError

ROUNDS = 12  # over all dims, for one price
HALVINGS = 40  # of the price


@dataclass(frozen=True)
class Choice:
    """What a dim may lose: `gone` (n,) numbers of units, rising from 0, and the `error` (n,) of each."""

    gone: NDArray[np.int64]
    error: NDArray[np.float64]


class Allocation:
    """The problem: choices per dim and a cost."""

    def __init__(self, poly: Cost, choices: Mapping[Dim, Choice]) -> None:
        self.poly, self.choices = poly, choices
        self._terms: dict[Dim, list[Part]] = {d: [] for d in choices}
        for term in poly.terms:
            for d in {d for e in term.axes for d in atoms(e)} & set(choices):
                self._terms[d].append(term)

    def solve(self, wanted: float, name: str) -> dict[Dim, int]:
        """Units that leave each dim, so that the cost is at most `wanted` of the whole. InputError if it cannot be."""
        whole = self.poly.at({})
        limit = wanted * whole
        least = self._least()
        if self._cost(least) > limit:
            raise InputError(
                f"{wanted:.3g} of the {name} cannot be reached: the least that may be kept still leaves"
                f" {self._cost(least) / whole:.3g}"
            )
        low, high = self._bracket(limit)
        for _ in range(HALVINGS):
            mid = np.sqrt(low * high)
            low, high = (low, mid) if self._cost(self._at_price(mid)) <= limit else (mid, high)
        found = self._at_price(high)
        return self._refilled(found if self._cost(found) <= limit else least, limit)

    def _least(self) -> dict[Dim, int]:
        return {d: int(c.gone[-1]) for d, c in self.choices.items()}

    def _cost(self, gone: Mapping[Dim, int]) -> int:
        return self.poly.at({d: d.size - n for d, n in gone.items()})

    def _bracket(self, limit: float) -> tuple[float, float]:
        """Prices, as errors per whole cost, on both sides of the budget."""
        low, high = 1e-12, 1.0
        while self._cost(self._at_price(high)) > limit and high < 1e18:
            high *= 8
        return low, high

    def _at_price(self, price: float) -> dict[Dim, int]:
        whole = max(self.poly.at({}), 1)
        at = dict.fromkeys(self.choices, 0)
        for _ in range(ROUNDS):
            before = dict(at)
            sizes: dict[Dim, NDArray[np.float64] | int] = {
                d: d.size - k for d, k in ((d, int(self.choices[d].gone[i])) for d, i in at.items())
            }
            for d, choice in self.choices.items():
                total = choice.error + price / whole * self._costs(d, sizes)
                at[d] = int(np.argmin(total))
                sizes[d] = d.size - int(choice.gone[at[d]])
            if at == before:
                break
        return {d: int(self.choices[d].gone[i]) for d, i in at.items()}

    def _costs(self, d: Dim, sizes: Mapping[Dim, NDArray[np.float64] | int]) -> NDArray[np.float64]:
        """Cost of the terms that d takes part in, at each of its choices."""
        own = {**sizes, d: (d.size - self.choices[d].gone).astype(np.float64)}
        total = np.zeros(len(self.choices[d].gone))
        for term in self._terms[d]:
            total = total + term.at(own)  # type: ignore[arg-type]
        return total

    def _refilled(self, gone: dict[Dim, int], limit: float) -> dict[Dim, int]:
        """Give units back, the best error per cost first, while the budget holds."""
        while True:
            best, gain = None, 0.0
            cost = self._cost(gone)
            for d, choice in self.choices.items():
                i = int(np.searchsorted(choice.gone, gone[d]))
                if i == 0:
                    continue
                tried = {**gone, d: int(choice.gone[i - 1])}
                added = self._cost(tried) - cost
                if cost + added <= limit:
                    rate = (choice.error[i] - choice.error[i - 1]) / max(added, 1)
                    if best is None or rate > gain:
                        best, gain = tried, rate
            if best is None:
                return gone
            gone = best


def choices(errors: NDArray[np.float64], size: int, step: int, least: int = 1) -> Choice:
    """The numbers of units that a dim of `size` may lose where a multiple of `step` must stay, at least `least`."""
    kept = np.arange(size, 0, -1)
    fits = (kept == size) | ((kept % step == 0) & (kept >= least))
    gone = size - kept[fits]
    return Choice(gone, errors[gone])


def total_error(curves: Mapping[Dim, NDArray[np.float64]], gone: Mapping[Dim, int]) -> float:
    """Sum of the errors at some numbers of removed units."""
    return float(sum(curves[d][n] for d, n in gone.items()))


def order_masks(order: Mapping[Dim, NDArray[np.int64]], gone: Mapping[Dim, int]) -> dict[Dim, NDArray[np.bool_]]:
    """Keep-masks that take out the first units of each order."""
    made = {}
    for d, n in gone.items():
        made[d] = np.ones(d.size, bool)
        made[d][order[d][:n]] = False
    return made


__all__: Sequence[str] = ("Allocation", "Choice", "choices", "order_masks", "total_error")
