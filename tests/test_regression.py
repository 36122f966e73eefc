"""Ridge regression from sums: against NumPy's least squares, and the choice that held-out samples make."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import regression
from onnxprune.regression import Regression

RNG = np.random.default_rng(0)


def rows(n: int, k: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples (n, 1, 4, k) with targets made by a hidden matrix (k, 3) and a bias."""
    rng = np.random.default_rng(seed)
    x = rng.normal(3, 1, (n, 1, 4, k)) @ rng.normal(size=(k, k))
    hidden = rng.normal(size=(k, 3))
    return x, x @ hidden + 5 + noise * rng.normal(size=(n, 1, 4, 3)), hidden


@pytest.mark.parametrize("dual", (False, True))
def test_it_finds_the_matrix_and_the_bias(monkeypatch: pytest.MonkeyPatch, dual: bool) -> None:
    if dual:
        monkeypatch.setattr(regression, "GRAM_LIMIT", 5)
    x, t, hidden = rows(200, 6, 0.0)
    found = Regression(np.zeros((1, 6, 3)), np.zeros((1, 3)))
    assert found.dual == dual
    for k in range(0, 200, 50):
        found.add(x[k : k + 50], t[k : k + 50], k)
    solution = found.solve()
    assert solution.after < 1e-3 * solution.before
    np.testing.assert_allclose(solution.weight[0], hidden, atol=2e-2)
    np.testing.assert_allclose(x[:, 0] @ solution.weight[0] + solution.bias[0], t[:, 0], atol=0.05)


def test_both_forms_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x, t, _ = rows(40, 6, 1.0)
    made = []
    for limit in (1, 100):
        monkeypatch.setattr(regression, "GRAM_LIMIT", limit)
        found = Regression(np.ones((1, 6, 3)), np.zeros((1, 3)))
        found.add(x, t, 0)
        made.append(found.solve())
    assert made[0].penalty == made[1].penalty
    np.testing.assert_allclose(made[0].weight, made[1].weight, atol=2e-3)
    np.testing.assert_allclose(made[0].bias, made[1].bias, atol=2e-2)


def test_weights_that_are_right_are_left_alone() -> None:
    x, t, hidden = rows(30, 6, 0.0)
    found = Regression(hidden[None], np.full((1, 3), 5.0))
    found.add(x, t, 0)
    np.testing.assert_allclose(found.solve().weight[0], hidden, atol=1e-3)


def test_noise_is_not_fitted() -> None:
    """Where the targets are noise about the present output, few samples and many inputs, only little may change."""
    rng = np.random.default_rng(1)
    x, weight = rng.normal(size=(30, 1, 1, 25)), rng.normal(size=(25, 3))
    found = Regression(weight[None], np.zeros((1, 3)))
    found.add(x, x @ weight + 3 * rng.normal(size=(30, 1, 1, 3)), 0)
    solution = found.solve()
    fresh = rng.normal(size=(500, 25))
    change = np.square(fresh @ (solution.weight[0] - weight) + solution.bias[0]).mean()
    exact = np.linalg.lstsq(x[:, 0, 0], (x @ weight)[:, 0, 0] + 3 * rng.normal(size=(30, 3)), rcond=None)[0]
    assert change < 0.2 * np.square(fresh @ (exact - weight)).mean()


def test_groups_are_solved_apart() -> None:
    x = RNG.normal(size=(50, 4, 2, 3))
    hidden = RNG.normal(size=(4, 3, 2))
    found = Regression(np.zeros((4, 3, 2)), np.zeros((4, 2)))
    found.add(x, x @ hidden, 0)
    np.testing.assert_allclose(found.solve().weight, hidden, atol=1e-2)


def test_no_rows_change_nothing() -> None:
    found = Regression(np.ones((1, 3, 2)), np.ones((1, 2))).solve()
    assert (found.weight == 1).all() and (found.bias == 1).all()
