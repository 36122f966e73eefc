"""match-statistics: channels get their means and deviations back, with BatchNormalization and where it was folded."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import sessions
from onnxprune.budget import Budget
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import PASSES
from onnxprune.reading import load
from onnxprune.recovery import MATCH, recover
from onnxprune.sessions import watched
from tests.common import build
from tests.passes.test_fill_means import CONV, feeds

FOLDED = """(float[n,3,7,6] x) => (float[n,4,p,q] y)
    <float[8,3,3,3] A, float[8] a, float[4,8,3,3] B, float[4,4,1,1] C> {
    h = Conv(x, A, a) r = Relu(h) t = Conv(r, B) s = Relu(t) y = Conv(s, C) }"""
NORMALISED = """(float[n,5,6] x) => (float[n,5,4] y) <float[6,8] A, float[8] g, float[8,4] B> {
    h = MatMul(x, A) t = RMSNormalization(h, g) y = MatMul(t, B) }"""
SAMPLED = 1e-3  # of a deviation: statistics are sums in float64 of what the layers before really make


@pytest.mark.parametrize("text", (CONV.replace("PADS", "pads=[1,1,1,1]"), FOLDED), ids=("BatchNormalization", "folded"))
def test_means_and_deviations_come_back(text: str) -> None:
    data, last = feeds((3, 7, 6)), "t" if "t = " in text else "y"
    made = State(load(build(text)), None, Budget(ratio=0.5, criterion="l2", include=("A",)), data=data, samples=64)
    PassManager(parse("prune", PASSES)).run(made)
    graph, mended, left = recover(made.graph, made.facts, made.cuts, data, 64, MATCH)
    assert mended and not left
    want, removed, got = (
        np.concatenate([sessions.run(watched(g, [last]).to_proto(), f, [last])[last] for f in data])
        for g in (made.cuts[0].typed.graph, made.graph, graph)
    )
    assert np.abs(removed.mean((0, 2, 3)) - want.mean((0, 2, 3))).max() > 20 * SAMPLED * want.std()
    np.testing.assert_allclose(got.mean((0, 2, 3)), want.mean((0, 2, 3)), atol=SAMPLED * want.std())
    np.testing.assert_allclose(got.std((0, 2, 3)), want.std((0, 2, 3)), rtol=SAMPLED)


def test_the_scale_of_a_normalisation_is_matched() -> None:
    """What lost channels is normalised by less, and the scale makes up for it."""
    data = [{"x": np.random.default_rng(k).normal(size=(16, 5, 6)).astype(np.float32)} for k in range(4)]
    graph = load(build(NORMALISED, opset=23))
    made = State(graph, None, Budget(ratio=0.5, criterion="l2"), data=data, samples=64)
    PassManager(parse("prune,match-statistics", PASSES), verify_each=True).run(made)
    (found,) = made.recoveries
    assert [m.node for m in found.mended] == ["t", "y"]
    assert not np.allclose(found.before.array("g"), made.graph.array("g"))
