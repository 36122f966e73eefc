"""The guard splits samples into two parts, and keeps the model that does better on the part that was held back."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.graph import Graph
from onnxprune.guard import Guard, Share, halfway
from onnxprune.reading import load
from onnxprune.storage import tensor
from onnxprune.trace import trace
from tests.common import build

TEXT = "(float[n,6] x) => (float[n,4] y) <float[6,4] w, float[4] b> { y = Gemm(x, w, b) }"
FEEDS = [{"x": np.random.default_rng(k).normal(size=(10, 6)).astype(np.float32)} for k in range(4)]
ORIGINAL = load(build(TEXT))


def moved(by: float) -> Graph:
    """The model with other weights."""
    made = {n: tensor(n, (ORIGINAL.array(n) + by).astype(np.float32)) for n in ("w", "b")}
    return ORIGINAL.replace(tensors=made)


def guard(samples: int = 40) -> Guard:
    return Guard(ORIGINAL, trace(ORIGINAL), FEEDS, samples)


@pytest.mark.parametrize("cuttable", (True, False))
def test_the_parts_make_the_whole(cuttable: bool) -> None:
    parts = [list(Share(FEEDS, 3, cuttable, chosen)) for chosen in (True, False)]
    rows = [{tuple(r) for f in part for r in f["x"]} for part in parts]
    assert not rows[0] & rows[1] and len(rows[0] | rows[1]) == 40
    assert len(rows[0]) == (13 if cuttable else 10)


def test_the_better_one_is_kept() -> None:
    near, far = moved(0.1), moved(0.5)
    assert guard().choose(far, near, {}) == (near, "")
    kept, note = guard().choose(near, far, {})
    assert kept is near and note.endswith("the weights were left as they are") and "held back" in note


def test_something_in_between_may_be_best() -> None:
    kept, note = guard().choose(moved(-0.5), moved(0.6), {})
    np.testing.assert_allclose(kept.array("w"), ORIGINAL.array("w") + 0.05, atol=1e-6)
    assert "half of the change was kept" in note
    best = moved(0.01)
    kept, note = guard().choose(moved(-0.5), moved(0.6), {"another": lambda: best})
    assert kept is best and "another was kept" in note


def test_what_is_not_finite_is_never_kept() -> None:
    broken = moved(np.nan)
    assert guard().errors([broken, ORIGINAL]) == [np.inf, 0.0]
    near = moved(0.1)
    assert guard().choose(near, broken, {})[0] is near


def test_a_single_feed_that_cannot_be_cut_is_used_twice() -> None:
    fixed = load(build(TEXT.replace("float[n,6]", "float[10,6]").replace("float[n,4]", "float[10,4]")))
    made = Guard(fixed, trace(fixed), FEEDS[:1], 10)
    assert not made.held_back and not made.alone and made.rest == FEEDS[:1]
    assert "fitted to" in made.choose(moved(0.1), moved(0.5), {})[1]


def test_one_sample_shows_nothing() -> None:
    assert Guard(ORIGINAL, trace(ORIGINAL), FEEDS[:1], 1).alone


def test_halfway() -> None:
    np.testing.assert_allclose(halfway(moved(0.0), moved(1.0)).array("b"), ORIGINAL.array("b") + 0.5, atol=1e-6)
