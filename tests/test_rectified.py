"""Refits behind an activation: what counts, and that every round lowers what lies behind it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxprune import rectified
from onnxprune.reading import load
from onnxprune.rectified import Rows, Window, window_behind
from onnxprune.regression import Regression
from tests.common import build

BEHIND = {
    "y = Relu (h)": Window(0.0, math.inf),
    "y = Clip (h, low, high)": Window(-1.0, 2.0),
    "y = Clip (h, low)": Window(-1.0, math.inf),
    "y = Clip (h, , high)": Window(-math.inf, 2.0),
    "y = Sigmoid (h)": None,
    "r = Relu (h) y = Add (r, h)": None,
}


@pytest.mark.parametrize(("text", "window"), BEHIND.items())
def test_windows(text: str, window: Window | None) -> None:
    weights = "<float[4,3] a, float low, float high>"
    model = build(f"(float[n,4] x) => (float[n,3] y) {weights} {{ h = MatMul (x, a) {text} }}")
    for t in model.graph.initializer:
        if not t.dims:
            t.raw_data = np.float32({"low": -1, "high": 2}[t.name]).tobytes()
    assert window_behind(load(model), "h") == window


def test_beyond_a_bound_only_its_side_counts() -> None:
    p, t = np.array([-3.0, 1.0, 0.5, 7.0, 5.0]), np.array([-1.0, -1.0, 2.0, 9.0, 9.0])
    assert Window(0, 6).wanted(p, t).tolist() == [-3, 0, 2, 7, 6]
    assert Window(0, 6).error(p, t) == 1 + 1.5**2 + 1


def product(window: Window | None, offset: float = 0.0) -> float:
    """What is gone makes targets very negative, now and then, which no activation lets through; the error behind it
    after the refit, on fresh rows.
    """
    rng = np.random.default_rng(3)
    w = rng.normal(size=(3, 5))

    def rows() -> tuple[np.ndarray, np.ndarray]:
        x = rng.normal(size=(400, 3))
        return x, x @ w + 0.5 - 20 * np.maximum(rng.normal(size=(400, 1)) + 2 * x[:, :1] - 1, 0)

    (x, t), (fresh, wanted) = rows(), rows()
    old = w[None], np.zeros((1, 5))
    found = Regression(*old)
    x4, t4 = x[:, None, None], (t - offset)[:, None, None]
    found.add(x4, t4, 0)
    made = found.solve()
    if window:
        kept = Rows.some(window, 400, (1, 3, 5))
        kept.add(x4, t4, 0, np.full_like(t4, offset) if offset else None)
        made = kept.polish(old, made, lambda m: m)
        assert made.after <= made.before
    return Window(0, math.inf).error(fresh @ made.weight[0] + made.bias[0] + offset, wanted)


@pytest.mark.parametrize("offset", (0.0, 2.0))
def test_the_error_behind_the_activation_falls(offset: float) -> None:
    assert product(Window(0.0, math.inf), offset) < 0.9 * product(None, offset)


def test_a_window_that_lets_all_through_changes_little() -> None:
    assert product(Window(-math.inf, math.inf)) == pytest.approx(product(None), rel=1e-3)


def test_rounds_that_the_rows_of_both_folds_are_too_many_for_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = []
    for work in (
        11_000,
        12_000,
        14_000,
    ):  # a round takes 11,067 with the 320 rows of the first fold, 13,827 with all 400
        monkeypatch.setattr(rectified, "WORK", work)
        errors.append(product(Window(0.0, math.inf)))
    assert errors[0] == errors[1] > errors[2]


def test_few_of_many_rows_are_kept() -> None:
    rows = Rows.some(Window(0, 6), 1 << 20, (1, 1000, 1000))
    x = np.zeros((500, 1, 2, 2))
    rows.add(x, x, 0)
    assert rows.every > 90
    assert [len(kept[0]) for _, kept, _, _ in rows.kept] == [-(-n // rows.every) for n in (800, 200)]


def test_rows_that_are_not_finite_are_left_out() -> None:
    rows = Rows.some(Window(0, 6), 100, (1, 2, 2))
    rows.add(np.full((2, 1, 1, 2), np.nan), np.zeros((2, 1, 1, 2)), 0)
    assert not rows.kept
