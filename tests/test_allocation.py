"""Widths from error curves: against every combination on small problems."""

from __future__ import annotations

from itertools import pairwise, product
from math import prod

import numpy as np
import pytest

from onnxprune.allocation import Allocation, choices, order_masks
from onnxprune.cost import Polynomial, Term
from onnxprune.dims import Dim
from onnxprune.errors import InputError
from onnxprune.unification import Space

SLACK = 1.25  # of the best error: steps of whole units leave gaps between the prices


def term(owner: str, factor: int, *dims: Dim) -> Term:
    return Term(owner, factor, dims, factor * prod(d.size for d in dims))


def problem(seed: int, count: int, step: int = 1) -> tuple[Polynomial, dict[Dim, np.ndarray], list[Dim]]:
    """A chain of layers, whose costs are products of neighbours, with rising error curves."""
    rng, space = np.random.default_rng(seed), Space()
    dims = [space.dim(int(rng.integers(4, 9))) for _ in range(count)]
    terms = [term("first", 3, dims[0]), term("last", 5, dims[-1]), term("fixed", 7)]
    terms += [term(f"t{k}", int(rng.integers(1, 5)), a, b) for k, (a, b) in enumerate(pairwise(dims))]
    errors = {d: np.cumsum(np.concatenate([[0], np.sort(rng.random(d.size) ** 3 * rng.random())])) for d in dims}
    return Polynomial(tuple(terms)), errors, dims


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("wanted", (0.8, 0.5, 0.3))
def test_it_comes_close_to_the_best_of_all(seed: int, wanted: float) -> None:
    poly, errors, dims = problem(seed, 3)
    options = {d: choices(errors[d], d.size, 1) for d in dims}
    gone = Allocation(poly, options).solve(wanted, "MACs")
    limit = wanted * poly.at({})
    assert poly.at({d: d.size - n for d, n in gone.items()}) <= limit
    best = min(
        sum(errors[d][k] for d, k in zip(dims, tried, strict=True))
        for tried in product(*(range(d.size) for d in dims))
        if poly.at({d: d.size - k for d, k in zip(dims, tried, strict=True)}) <= limit
    )
    assert sum(errors[d][n] for d, n in gone.items()) <= SLACK * best + 1e-9


def test_widths_are_multiples_of_the_step() -> None:
    poly, errors, dims = problem(1, 4)
    gone = Allocation(poly, {d: choices(errors[d], d.size, 4) for d in dims}).solve(0.7, "MACs")
    assert all((d.size - n) % 4 == 0 or n == 0 for d, n in gone.items())


def test_what_cannot_be_reached_is_said() -> None:
    poly, errors, dims = problem(2, 3)
    with pytest.raises(InputError, match=r"0\.01 of the MACs cannot be reached: the least .* leaves 0\.\d"):
        Allocation(poly, {d: choices(errors[d], d.size, 4) for d in dims}).solve(0.01, "MACs")


def test_masks_take_the_first_of_each_order() -> None:
    d = Space().dim(4)
    assert order_masks({d: np.array([2, 0, 3, 1])}, {d: 2})[d].tolist() == [False, True, False, True]
