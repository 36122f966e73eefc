"""Matched statistics, against NumPy's mean and variance."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.matching import SCALES, Matching

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(2, 3, 4))
BIAS = RNG.normal(size=(2, 4))


def rows(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """x (n, 2, 5, 3) and targets (n, 2, 5, 4) of means and deviations of their own."""
    rng = np.random.default_rng(seed)
    x = rng.normal(2, 1, (n, 2, 5, 3))
    y = x @ WEIGHT + BIAS[:, None]
    return x, 0.5 * y + 3 + rng.normal(size=y.shape)


def outputs(found: object, x: np.ndarray) -> np.ndarray:
    return x @ found.weight + found.bias[:, None]  # type: ignore[attr-defined]


@pytest.mark.parametrize("scale", (False, True))
def test_mean_and_deviation_are_those_of_the_targets(scale: bool) -> None:
    x, t = rows(200)
    made = Matching(WEIGHT, BIAS, scale=scale)
    for k in range(0, 200, 50):
        made.add(x[k : k + 50], t[k : k + 50], k)
    found = made.solve()
    y = outputs(found, x)
    np.testing.assert_allclose(y.mean((0, 2)), t.mean((0, 2)), atol=1e-4)
    if scale:
        np.testing.assert_allclose(y.std((0, 2)), t.std((0, 2)), rtol=1e-3)
    else:
        np.testing.assert_allclose(found.weight, WEIGHT)
    assert found.after < found.before


def test_without_a_bias_only_deviations_can_match() -> None:
    x, t = rows(200)
    made = Matching(WEIGHT, np.zeros((2, 4)), biased=False)
    made.add(x, t, 0)
    found = made.solve()
    assert not found.bias.any()
    np.testing.assert_allclose((x @ found.weight).std((0, 2)), t.std((0, 2)), rtol=1e-3)


def test_scales_stay_within_bounds() -> None:
    x, t = rows(50)
    made = Matching(WEIGHT, BIAS)
    made.add(x, 1000 * t, 0)
    np.testing.assert_allclose(made.solve().weight, SCALES[1] * WEIGHT, rtol=1e-6)


def test_chance_is_not_followed() -> None:
    """Targets that are already met, but for noise that differs from fold to fold."""
    x = RNG.normal(size=(10, 2, 1, 3))
    t = x @ WEIGHT + BIAS[:, None]
    t[4::5] += 0.1
    t[~(np.arange(10) % 5 == 4)] -= 0.1
    made = Matching(WEIGHT, BIAS, scale=False)
    made.add(x, t, 0)
    found = made.solve()
    assert found.weight is WEIGHT and found.bias is BIAS


@pytest.mark.parametrize("bad", (np.nan, np.inf, 1e30))
def test_rows_that_are_no_numbers_do_not_count(bad: float) -> None:
    x, t = rows(40)
    clean = Matching(WEIGHT, BIAS)
    clean.add(np.delete(x, 3, 0)[:, :, :, :], np.delete(t, 3, 0), 0)
    x[3] = bad
    dirty = Matching(WEIGHT, BIAS)
    dirty.add(x, t, 0)
    assert dirty.folds[0].n + dirty.folds[1].n == clean.folds[0].n + clean.folds[1].n
    assert np.isfinite(dirty.solve().weight).all()


def test_no_rows_change_nothing() -> None:
    found = Matching(WEIGHT, BIAS).solve()
    assert found.weight is WEIGHT and found.bias is BIAS
