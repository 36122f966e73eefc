"""Normalisations as products: columns * gamma + beta is what ONNX Runtime computes."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import sessions
from onnxprune.feeds import random_feeds
from onnxprune.norms import norms
from onnxprune.reading import load
from onnxprune.trace import trace
from tests.common import build

CASES = {
    "layer": ("[2,3,6]", "[6] g, float[6] b", "LayerNormalization(x, g, b)"),
    "layer, last axis by number": ("[2,3,6]", "[6] g", "LayerNormalization<axis=2, epsilon=0.1>(x, g)"),
    "root mean square": ("[2,3,6]", "[6] g", "RMSNormalization(x, g)"),
    "batch": (
        "[2,6,4,3]",
        "[6] g, float[6] b, float[6] m, float[6] v_pos",
        "BatchNormalization(x, g, b, m, v_pos)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_columns_times_scale_is_the_output(case: str) -> None:
    given, weights, call = CASES[case]
    text = f"(float{given} x) => (float{[1] * (given.count(',') + 1)} y) <float{weights}> {{ y = {call} }}"
    graph = load(build(text, opset=23))
    facts = trace(graph)
    (norm,) = norms(graph, facts.shapes).values()
    feeds = random_feeds(graph, facts.binding, 0)
    y = sessions.run(graph.to_proto(), feeds)["y"]
    picks = np.arange(norm.positions(y.shape))[1:]
    bias = graph.array("b").reshape(-1, 1, 1) if "b" in graph.constants else 0
    made = norm.columns(feeds["x"], y.shape, picks) @ norm.matrix(graph.array("g")) + bias
    np.testing.assert_allclose(made, norm.rows(y, picks), atol=1e-4)
    assert np.array_equal(norm.unmatrix(norm.matrix(graph.array("g"))), graph.array("g"))


@pytest.mark.parametrize(
    "call",
    (
        "LayerNormalization<axis=1>(x, w)",
        "InstanceNormalization(x, g, g)",
        "BatchNormalization<training_mode=1>(x, g, g, g, g)",
    ),
)
def test_what_is_no_scale_per_channel_is_left_out(call: str) -> None:
    graph = load(build(f"(float[2,3,6] x) => (float[2,3,6] y) <float[3] g, float[3,6] w> {{ y = {call} }}"))
    assert not norms(graph, trace(graph).shapes)
