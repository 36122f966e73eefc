"""Optimal brain surgery: what a sweep says against least squares solved anew."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from onnxprune.criteria.second_order import DAMPING, Reader, error_of, reader, swap, sweep


def made(
    size: int, area: int, outputs: int, seed: int, others: int = 0
) -> tuple[Reader, np.ndarray, np.ndarray, np.ndarray]:
    """A reader of correlated units, with its covariance, weights and units."""
    rng = np.random.default_rng(seed)
    k = (size + others) * area
    mix = rng.normal(size=(k, k)) * rng.random(k)[:, None] ** 2
    covariance = (mix @ mix.T)[None]
    weights = rng.normal(size=(1, k, outputs))
    rows = np.repeat(np.concatenate([np.arange(size), np.full(others, -1)]), area)
    return reader(covariance, weights, rows), covariance, weights, rows


def refitted_error(covariance: np.ndarray, weights: np.ndarray, rows: np.ndarray, gone: set[int]) -> float:
    """The same by definition: what is left of the output's variance when the kept inputs do their best."""
    c = covariance[0] + DAMPING * np.trace(covariance[0]) / len(rows) * np.eye(len(rows))
    out = np.isin(rows, list(gone))
    schur = c[out][:, out] - c[out][:, ~out] @ np.linalg.solve(c[~out][:, ~out], c[~out][:, out])
    energy = np.einsum("ko,ko->", covariance[0] @ weights[0], weights[0])
    return float(np.einsum("ko,ko->", schur @ weights[0][out], weights[0][out]) / energy)


@pytest.mark.parametrize(("area", "others"), ((1, 0), (3, 0), (2, 4)))
def test_errors_are_those_of_the_best_refit(area: int, others: int) -> None:
    found, covariance, weights, rows = made(7, area, 4, 0, others)
    curve = sweep([found], 7)
    assert sorted(curve.order) == list(range(7)) and curve.errors[0] == 0
    for k in range(1, 7):
        want = refitted_error(covariance, weights, rows, set(curve.order[:k].tolist()))
        assert curve.errors[k] == pytest.approx(want, rel=1e-6)


def test_the_first_to_go_is_the_cheapest() -> None:
    found, covariance, weights, rows = made(9, 2, 3, 1)
    costs = [refitted_error(covariance, weights, rows, {u}) for u in range(9)]
    assert sweep([found], 9).order[0] == int(np.argmin(costs))


def test_units_that_are_read_unevenly() -> None:
    """A consumer of a concatenation may read a unit several times, another once."""
    rng = np.random.default_rng(3)
    covariance, weights = np.eye(5)[None] * rng.random(5), rng.normal(size=(1, 5, 2))
    rows = np.array([0, 0, 1, 2, 2])
    curve = sweep([reader(covariance, weights, rows)], 3)
    for k in (1, 2):
        want = refitted_error(covariance, weights, rows, set(curve.order[:k].tolist()))
        assert curve.errors[k] == pytest.approx(want)


def test_copies_cost_nothing() -> None:
    rng = np.random.default_rng(4)
    mix = rng.normal(size=(4, 50))
    x = np.concatenate([mix, mix])  # units 4 to 7 are copies
    found = reader(np.cov(x)[None], rng.normal(size=(1, 8, 3)), np.arange(8))
    curve = sweep([found], 8)
    assert curve.errors[4] < 0.02 and {int(u) % 4 for u in curve.order[4:]} == {0, 1, 2, 3}
    assert curve.errors[5] > 3 * curve.errors[4]


def test_several_readers_add_up() -> None:
    (a, *first), (b, *second) = made(6, 1, 3, 5), made(6, 2, 2, 6)
    curve = sweep([a, b], 6)
    gone = set(curve.order[:3].tolist())
    assert curve.errors[3] == pytest.approx(refitted_error(*first, gone) + refitted_error(*second, gone))


def test_swaps_never_make_it_worse_and_find_better_sets() -> None:
    better = 0
    for seed in range(20):
        found, covariance, weights, rows = made(8, 1, 2, 10 + seed)
        gone = np.zeros(8, bool)
        gone[np.random.default_rng(seed).permutation(8)[:4]] = True
        start, end = error_of([found], gone), error_of([found], swap([found], gone))
        best = min(refitted_error(covariance, weights, rows, set(c)) for c in combinations(range(8), 4))
        assert best - 1e-9 <= end <= start + 1e-12
        better += end < 0.9 * start
    assert better > 10


def test_large_dims_lose_several_units_at_a_time() -> None:
    found, *rest = made(300, 1, 2, 7)
    curve = sweep([found], 300)
    assert sorted(curve.order) == list(range(300)) and (np.diff(curve.errors) >= 0).all()
    assert curve.errors[200] == pytest.approx(refitted_error(*rest, set(curve.order[:200].tolist())), rel=1e-4)


def test_uncorrelated_inputs_cost_what_they_carry() -> None:
    """Variances alone say the same as a covariance that has nothing else."""
    rng = np.random.default_rng(8)
    variances, weights, rows = rng.random((1, 12)), rng.normal(size=(1, 12, 3)), np.repeat(np.arange(6), 2)
    few, full = (reader(c, weights, rows) for c in (variances, np.diag(variances[0])[None]))
    one, other = sweep([few], 6), sweep([full], 6)
    assert one.order.tolist() == other.order.tolist()
    np.testing.assert_allclose(one.errors, other.errors)
    gone = np.arange(6) < 3
    assert error_of([few], gone) == pytest.approx(error_of([full], gone))
    assert swap([few], gone).tolist() == swap([full], gone).tolist()


def test_many_rows_in_single_precision() -> None:
    found, *rest = made(200, 6, 2, 9)
    assert found.inverse.dtype == np.float32
    curve = sweep([found], 200)
    gone = set(curve.order[:96].tolist())  # whole steps: within one, errors are shared out
    assert curve.errors[96] == pytest.approx(refitted_error(*rest, gone), rel=1e-3)


def test_a_sweep_ends_where_costs_are_no_numbers() -> None:
    found, *_ = made(8, 1, 2, 10)
    broken = replace(found, weights=np.full_like(found.weights, np.nan))
    assert sorted(sweep([broken], 8).order) == list(range(8))
