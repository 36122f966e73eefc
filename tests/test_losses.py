"""Errors of outputs without labels."""

import numpy as np
import pytest

from onnxprune.losses import REACH, Array, lenient_divergence, output_error

STEPS, CLASSES = 12, 5


def read(*classes: int) -> Array:
    """Probabilities (1, T, C) that favour a class at each step."""
    scores = np.full((1, STEPS, CLASSES), 0.01, np.float32)
    scores[0, range(STEPS), list(classes)] += 0.95
    return scores


def at(*places: tuple[int, int]) -> Array:
    found = dict(places)
    return read(*(found.get(k, 0) for k in range(STEPS)))


def error(want: Array, got: Array) -> float:
    return output_error([[want]], [[got]])


def test_where_a_class_comes_up_matters_less_than_which() -> None:
    want = at((3, 1), (8, 2))
    moved, other = at((3 + REACH, 1), (8, 2)), at((3, 4), (8, 2))
    assert lenient_divergence(want, moved) == pytest.approx(0, abs=1e-6)
    assert 0 < error(want, moved) < error(want, other) / 5


def test_what_is_missing_and_what_is_new_both_count() -> None:
    want = at((3, 1), (8, 2))
    missing, new, far = at((3, 1)), at((3, 1), (8, 2), (10, 4)), at((3, 1), (8 - REACH - 1, 2))
    lost, more, away = (lenient_divergence(want, got)[0] for got in (missing, new, far))
    assert lost > 0.1 and more > 0.1 and away == pytest.approx(lost + more, rel=0.2)


def test_scores_before_the_softmax_give_the_same() -> None:
    want, got = at((3, 1), (8, 2)), at((3, 4))
    before, other = 2 * np.log(want) + 3, 2 * np.log(got) - 1
    probabilities = [np.square(x) / np.square(x).sum(2, keepdims=True) for x in (want, got)]
    np.testing.assert_allclose(lenient_divergence(*probabilities), lenient_divergence(before, other), rtol=1e-4)
    assert error(before, 2 * np.log(at((3 + REACH, 1), (8, 2)))) < error(before, other) / 5


def test_features_with_one_large_entry_are_no_scores() -> None:
    rng = np.random.default_rng(0)
    want = rng.standard_normal((4, STEPS, CLASSES))
    want[..., 2] += 20
    got = want + 0.1 * rng.standard_normal(want.shape)
    assert error(want, got) == pytest.approx(np.square(want - got).sum() / np.square(want - want.mean(0)).sum())


def test_sequences_of_numbers_are_compared_step_by_step() -> None:
    rng = np.random.default_rng(0)
    want = rng.standard_normal((2, STEPS, CLASSES)).astype(np.float32)
    moved = np.roll(want, 1, 1)
    assert error(want, moved) == pytest.approx(
        np.square(want - moved).sum() / np.square(want - want.mean(0)).sum(), rel=1e-5
    )
    assert error(at((3, 1)), at((4, 1))) > 0  # a tenth of the error by steps is left


def test_half_precision_is_compared_in_single() -> None:
    rng = np.random.default_rng(0)
    want = np.eye(CLASSES)[rng.integers(0, CLASSES, 20)]
    got = 0.9 * want + 0.02
    halves = error(want.astype(np.float16), got.astype(np.float16))
    assert halves == pytest.approx(error(want, got), rel=1e-2)
