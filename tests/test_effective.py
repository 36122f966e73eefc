"""Scores are of effective weights: times the scale that follows them, without the logits of gates."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from onnxprune.criteria import score
from onnxprune.criteria.effective import gate_logits
from tests.common import build, image, tokens, typed_model
from tests.test_criteria import put, scores_of

NORM = "float[8] s, float[8] b, float[8] m, float[8] v_pos"


@pytest.mark.parametrize(
    ("body", "weights"),
    (
        ("n = BatchNormalization(h, s, b, m, v_pos) g = Relu(n)", NORM),
        ("n = BatchNormalization <epsilon = 0.5> (h, s, b, m, v_pos) g = Relu(n)", NORM),
        ("a = Add(h, c) n = Mul(a, s) g = Relu(n)", "float[8,1,1] s, float[8,1,1] c"),
        ("n = Div(h, s_pos) g = Relu(n)", "float[1,8,1,1] s_pos"),
    ),
)
@pytest.mark.parametrize("criterion", ("l1", "l2", "fpgm"))
def test_scales_behind_a_product_count(body: str, weights: str, criterion: str) -> None:
    model = build(image(body, weights))
    held = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    if "v_pos" in held:
        scale = held["s"] / np.sqrt(held["v_pos"] + (0.5 if "0.5" in body else 1e-5))
    else:
        scale = held["s"].reshape(-1) if "s" in held else 1 / held["s_pos"].reshape(-1)
    folded = put(build(image("g = Relu(h)")), A=held["A"] * scale.reshape(8, 1, 1, 1), B=held["B"])
    (found,), (want,) = (scores_of(m, criterion) for m in (model, folded))
    np.testing.assert_allclose(found, want, rtol=1e-5)


@pytest.mark.parametrize(
    "body",
    (
        "n = Mul(h, q) g = Relu(n)",  # one number for all: no unit gains by it
        "n = BatchNormalization(h, s, b, m, v_pos) k = Relu(h) g = Add(n, k)",  # read without the scale too
        "r = Relu(h) g = BatchNormalization(r, s, b, m, v_pos)",  # behind an activation
    ),
)
def test_other_scales_do_not(body: str) -> None:
    model = build(image(body, f"float q_pos, float q, {NORM}"))
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    (found,) = scores_of(model, "l1")
    want = np.abs(held["A"]).sum((1, 2, 3)) + np.abs(held["B"]).sum((0, 2, 3))
    np.testing.assert_allclose(found, want, rtol=1e-5)


GATED = "p = GlobalAveragePool(h) r = Conv(p, C) k = Relu(r) z = Conv(k, D) {} g = Mul(h, t)"
SQUEEZE = "float[4,8,1,1] C, float[8,4,1,1] D"
CONSTANTS = "three = Constant <value = float {3.0}> () zero = Constant <value = float {0.0}> () "
SIX = "six = Constant <value = float {6.0}> () "


@pytest.mark.parametrize(
    "gate",
    (
        "t = Sigmoid(z)",
        "t = HardSigmoid(z)",
        f"{CONSTANTS}{SIX}u = Add(z, three) w = Clip(u, zero, six) t = Div(w, six)",
        "one = Constant <value = float[1] {0.5}> () e = Add(z, one) t = Sigmoid(e)",
    ),
)
def test_logits_of_a_gate_do_not_count(gate: str) -> None:
    text = image(GATED.format(gate), SQUEEZE)
    model = build(text)
    held = {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}
    before = scores_of(model, "l1")
    loud = held["D"] * np.arange(1, 9).reshape(8, 1, 1, 1)
    after = scores_of(put(build(text), D=loud), "l1")
    widths = [s.size for s in before]
    np.testing.assert_allclose(after[widths.index(8)], before[widths.index(8)])
    want = sum(np.abs(held[n]).sum((0, 2, 3)) for n in "BC") + np.abs(held["A"]).sum((1, 2, 3))
    np.testing.assert_allclose(before[widths.index(8)], want, rtol=1e-5)


@pytest.mark.parametrize(
    "body",
    (
        "t = Sigmoid(h) g = Mul(h, t)",  # Swish: the unit is its own gate
        f"{CONSTANTS}{SIX}u = Add(h, three) w = Clip(u, zero, six) v = Mul(h, w) g = Div(v, six)",  # HardSwish
        "g = Sigmoid(h)",  # an activation
        "t = Sigmoid(h) half = Constant <value = float {0.5}> () g = Mul(t, half)",
        "t = Relu(h) k = MatMul(x, C) g = Mul(t, k)",
    ),
)
def test_what_makes_the_units_counts(body: str) -> None:
    typed = typed_model(build(tokens(body, "float[4,8] C")))
    assert gate_logits(typed) == set()


def test_the_other_side_of_a_gated_unit_counts() -> None:
    typed = typed_model(build(tokens("k = MatMul(x, C) t = Sigmoid(k) g = Mul(h, t)", "float[4,8] C")))
    nodes = typed.graph.nodes
    assert [nodes[i].input[1] for i in gate_logits(typed)] == ["C"]


def test_a_gate_alone_is_scored_by_its_weights() -> None:
    """A unit that nothing but logits makes is scored by them."""
    text = """(float[N,5,8] x) => (float[N,5,8] y) <float[8,6] A, float[6,8] B> {
        h = MatMul(x, A) k = MatMul(h, B) t = Sigmoid(k) y = Mul(x, t) }"""
    typed = typed_model(build(text))
    found, _ = score(typed, typed.prunable, "l2")
    assert all((s > 0).all() for s in found.values())
