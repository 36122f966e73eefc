"""Rows that count: what the gradient says of positions, and what recovery makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnxprune import adjoint, sessions
from onnxprune.budget import Budget
from onnxprune.importance import Importance, drawn
from onnxprune.inference import TypedGraph
from onnxprune.reading import load
from onnxprune.sessions import Feeds
from tests.common import build, typed_model
from tests.test_recovery import RECOVER, error, run

POOLED = """(float[n,4,40] x) => (float[n,5] y) <
    float[12,4,3] a, float[24,12,3] b, float[24,5] c, float[1] s = {0.01}> {
    h = Conv <pads = [1, 1]> (x, a) r = Relu(h) k = Conv <pads = [1, 1]> (r, b) m = GlobalMaxPool(k)
    f = Flatten(m) z = MatMul(f, c) y = Mul(z, s) }"""


def sequences(count: int, seed: int = 0) -> list[Feeds]:
    """Few positions are unlike the others, and larger."""
    rng = np.random.default_rng(seed)
    scale = np.ones((4, 40))
    scale[:2, :4], scale[2:, :4] = 0, 3
    return [{"x": (rng.standard_normal((20, 4, 40)) * scale).astype(np.float32)} for _ in range(count)]


SEEN = POOLED.replace(
    "m = GlobalMaxPool(k)", "q = Slice(k, zero, four, two) e = Softplus(q) m = GlobalAveragePool(e)"
).replace("float[1] s", "int64[1] zero = {0}, int64[1] four = {4}, int64[1] two = {2}, float[1] s")


def found(typed: TypedGraph, feeds: list[Feeds]) -> list[dict[str, np.ndarray]]:
    made = Importance().of(typed, feeds, sum(len(f["x"]) for f in feeds))
    return [dict(m) for m in made]


def test_only_positions_that_a_maximum_lets_through_count() -> None:
    typed, feeds = typed_model(build(POOLED)), sequences(2)
    for feed, weights in zip(feeds, found(typed, feeds), strict=True):
        assert weights["k"].shape == weights["h"].shape == (20, 40)
        np.testing.assert_allclose(weights["k"].astype(float).mean(1), 1, rtol=0.01)
        k = np.asarray(sessions.run(sessions.watched(typed.graph, ["k"]).to_proto(), feed)["k"])
        for sample, row in zip(k, weights["k"], strict=True):
            assert set(np.flatnonzero(row)) == set(sample.argmax(1))


def test_what_has_no_derivative_counts_alike() -> None:
    text = """(float[n,4] x) => (float[n,3] y) <float[4,6] a, float[6,3] b> {
        h = MatMul(x, a) g = com.microsoft.QuickGelu(h) y = MatMul(g, b) }"""
    typed = typed_model(build(text))
    assert found(typed, [{"x": np.ones((4, 4), np.float32)}]) == []


def test_rows_count_alike_where_outputs_have_positions() -> None:
    typed = typed_model(build(POOLED.replace("float[n,5] y", "float[n,24,40] k")))
    assert found(typed, sequences(1)) == []


def test_positions_are_drawn_in_proportion() -> None:
    rng = np.random.default_rng(0)
    alike = drawn(np.ones((3, 7)), 7, rng)
    np.testing.assert_array_equal(alike, np.tile(np.arange(7), (3, 1)))
    weights = np.array([[0.0, 3.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    counts = np.stack([np.bincount(row, minlength=4) for row in drawn(weights, 400, rng)])
    np.testing.assert_allclose(counts[0], [10, 280, 100, 10], atol=1)
    np.testing.assert_array_equal(counts[1], [100] * 4)


def test_recovery_is_better_where_few_positions_count() -> None:
    graph, feeds, fresh = load(build(SEEN)), sequences(8), sequences(8, seed=1)
    errors = {}
    for way in ("", "(importance=False)"):
        pipeline = RECOVER.replace("refit-least-squares", f"refit-least-squares{way}")
        assert way in pipeline
        state = run(graph, feeds, Budget(ratio=0.4, criterion="l2", include=("h",)), pipeline, samples=160)
        errors[way] = error(graph, state.graph, fresh)
    assert errors[""] < 0.95 * errors["(importance=False)"]


@pytest.mark.parametrize(
    "attributes", ("pads = [1, 1]", "strides = [2]", "pads = [2, 2], dilations = [2]", "group = 4")
)
def test_transposed_convolutions_are_replaced_exactly(attributes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = "float[8,2,3] b" if "group" in attributes else "float[8,8,3] b"
    text = f"""(float[n,4,24] x) => (float[n,5] y) <float[8,4,3] a, {inner}, float[8,5] c> {{
        h = Conv(x, a) r = Relu(h) k = Conv <{attributes}> (r, b) m = GlobalAveragePool(k) f = Flatten(m)
        y = MatMul(f, c) }}"""
    typed = typed_model(build(text))
    feeds = [{"x": np.random.default_rng(0).standard_normal((8, 4, 24)).astype(np.float32)}]
    (fast,) = found(typed, feeds)
    monkeypatch.setattr(adjoint, "_simpler", lambda model, wanted, finite: model)
    (plain,) = found(typed, feeds)
    assert fast.keys() == plain.keys() and "h" in fast
    for name, weights in plain.items():
        np.testing.assert_allclose(fast[name], weights, rtol=2e-3, atol=1e-3)


def test_a_scalar_input_and_initialisers_among_the_inputs() -> None:
    model = build(
        """(float[n,4] x, float q) => (float[n,3] y) <float[4,6] a, float[6,3] b> {
        h = MatMul(x, a) g = Relu(h) k = MatMul(g, b) y = Mul(k, q) }"""
    )
    model.ir_version = 3
    model.graph.input.extend(helper.make_tensor_value_info(t.name, 1, t.dims) for t in model.graph.initializer)
    feeds = [{"x": np.ones((5, 4), np.float32), "q": np.ones((), np.float32)}]
    (weights,) = found(typed_model(model), feeds)
    assert weights["h"].shape == (5, 1)
