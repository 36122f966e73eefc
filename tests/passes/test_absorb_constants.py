"""absorb-constants: a unit that holds a constant goes into the next bias, and its weights become zero."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from tests.common import build
from tests.passes.cases import lines, passed, same_outputs

GEMM = """(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8] a, float[8,3] B, float[3] b> {
  h = MatMul(x, A) s = Add(h, a) r = Relu(s) y = Gemm(r, B, b) }"""
MATMUL = """(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8] a, float[8,3] B> {
  h = MatMul(x, A) s = Add(h, a) r = Relu(s) y = MatMul(r, B) }"""
CONV = """(float[N,4,5,5] x) => (float[N,3,P,Q] y) <float[8,4,3,3] A, float[8] a, float[3,8,K,K] B> {
  h = Conv(x, A, a) r = Relu(h) y = Conv(r, B) }"""
PADDED = CONV.replace("Conv(r, B)", "Conv <pads = [1, 1, 1, 1]> (r, B)")
SIGMOID = MATMUL.replace("Relu", "Sigmoid")
DEAD = (1, 4)  # units whose input weights are zero: they hold act(bias)


def planted(text: str, unit_axis: int, value: float = 2.0) -> ModelProto:
    model = build(text)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name == "A":
            np.moveaxis(array, unit_axis, 0)[list(DEAD)] = 0
        elif tensor.name == "a":
            array[list(DEAD)] = value
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


# title, model, axis of the units in A, the axis that reads them in B; the bias of the planted units
CASES = [
    ("Gemm with a bias", GEMM, 1, 0, 2.0),
    ("MatMul without one", MATMUL, 1, 0, 2.0),
    ("through Sigmoid a zero becomes a half", SIGMOID, 1, 0, 0.0),
    ("Conv without padding", CONV.replace("K,K", "3,3"), 0, 1, 2.0),
]


@pytest.mark.parametrize(("text", "made_by", "read_by", "value"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_absorbed(text: str, made_by: int, read_by: int, value: float) -> None:
    model = planted(text, made_by, value)
    graph, results = passed(model, "absorb-constants,remove-dead")
    assert results[0].modified and set(graph.tensors) == {t.name for t in model.graph.initializer} - {"b"} | {
        "y.absorbed"
    }
    weight = np.moveaxis(graph.array("B"), read_by, 0)
    assert not weight[list(DEAD)].any() and weight[[0, 2, 3, 5, 6, 7]].any()
    same_outputs(model, graph.to_proto())
    _, results = passed(graph.to_proto(), "absorb-constants")
    assert not results[0].modified


# what is not exact, or has nothing to absorb, is left as it is
LEFT = [
    ("padding", PADDED.replace("K,K", "3,3"), 0, 2.0),
    ("zero units", MATMUL, 1, -1.0),
    ("a scaled bias", GEMM.replace("Gemm(", "Gemm <beta = 0.5> ("), 1, 2.0),
    (
        "weights that are computed",
        MATMUL.replace("y = MatMul(r, B)", "m = ReduceMax(x) v = Mul(B, m) y = MatMul(r, v)"),
        1,
        2.0,
    ),
]


@pytest.mark.parametrize(("text", "made_by", "value"), [c[1:] for c in LEFT], ids=[c[0] for c in LEFT])
def test_left_alone(text: str, made_by: int, value: float) -> None:
    model = planted(text, made_by, value)
    graph, results = passed(model, "absorb-constants")
    assert not results[0].modified and graph.to_proto() == model


def test_outline() -> None:
    graph, _ = passed(planted(MATMUL, 1), "absorb-constants,remove-dead")
    assert lines(graph)[-2:] == ["y.unbiased = MatMul(r, B)", "y = Add(y.unbiased, y.absorbed)"]
