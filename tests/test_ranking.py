"""Units of several dims compared: what scores are divided by, and which dims share a ranking."""

from __future__ import annotations

import numpy as np
import pytest

import onnxprune
from onnxprune import ranking
from onnxprune.budget import Budget
from onnxprune.criteria import CRITERIA
from onnxprune.errors import InputError
from onnxprune.unification import Space
from tests.common import build, typed_model

TWO = {"a": [1.0, 2, 3, 6], "b": [10.0, 20, 30, 60]}


def counts(scale: str, scope: str = "global", amount: float = 0.5, step: int = 1) -> list[int]:
    """Units that leave two dims with the same scores up to a factor."""
    space = Space()
    dims = [space.dim(4) for _ in TWO]
    scores = {d: np.array(s) for d, s in zip(dims, TWO.values(), strict=True)}
    together = [dims] if scope == "global" else [[d] for d in dims]
    gone = ranking.counter(ranking.scaled(scores, scale), together, dict.fromkeys(dims, step))(amount)
    return [gone[d] for d in dims]


@pytest.mark.parametrize(("scale", "want"), (("mean", [2, 2]), ("max", [2, 2]), ("sum", [2, 2]), ("none", [3, 0])))
def test_scales(scale: str, want: list[int]) -> None:
    assert counts(scale) == want


def test_a_dim_keeps_one_unit_and_a_multiple() -> None:
    assert counts("none", amount=0.5, step=2) == [2, 0]
    assert counts("none", "local", 0.75) == [3, 3]
    assert counts("none", amount=1.0) == [3, 3]


def test_zeros_stay_zero() -> None:
    d = Space().dim(3)
    assert ranking.scaled({d: np.zeros(3)}, "max")[d].tolist() == [0, 0, 0]


def test_isomorphic_dims_are_of_one_size_kind_and_structure() -> None:
    """Two hidden layers of 8 alike, one of 6, and one of 8 that is normalised."""
    text = """(float[N,4] x) => (float[N,4] y) <float[4,8] A, float[8,4] B, float[4,8] C, float[8,4] D, float[4,6] E,
        float[6,4] F, float[4,8] G, float[8] s, float[8,4] H> {
        a = MatMul(x, A) b = Relu(a) c = MatMul(b, B) d = MatMul(c, C) e = Relu(d) f = MatMul(e, D)
        g = MatMul(f, E) h = Relu(g) i = MatMul(h, F) j = MatMul(i, G) k = LayerNormalization(j, s)
        y = MatMul(k, H) }"""
    typed = typed_model(build(text))
    names = {d.dim: d.name for d in typed.prunable}
    layers = [d for d in typed.prunable if d.name in ("A:1", "C:1", "E:1", "G:1")]
    found = [[names[d] for d in pool] for pool in ranking.pools(layers, "isomorphic")]
    assert found == [["A:1", "C:1"], ["E:1"], ["G:1"]]
    result = onnxprune.prune(build(text), ratio=0.5, scope="isomorphic", criterion="l1", check=False)
    removed = {n: int((~m).sum()) for n, m in result.plan.keep.items()}
    assert removed["A:1"] + removed["C:1"] == 8 and removed["E:1"] == 3 and removed["G:1"] == 4


def test_what_scores_are_divided_by_suits_the_criterion() -> None:
    assert set(ranking.COMPARABLE) < set(CRITERIA)
    assert Budget(ratio=0.5, criterion="lamp").scale == "none" and Budget(ratio=0.5).scale == "mean"
    assert Budget(ratio=0.5, criterion="lamp", normalise="max").scale == "max"
    with pytest.raises(InputError, match="unknown normalise 'median': choose mean, max, sum, none"):
        Budget(ratio=0.5, normalise="median")
