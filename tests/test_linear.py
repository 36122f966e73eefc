"""Products as matrices: columns @ matrix + bias is what ONNX Runtime computes, for every form of product."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import sessions
from onnxprune.feeds import random_feeds
from onnxprune.linear import linears
from onnxprune.reading import load
from onnxprune.trace import trace
from tests.common import build

CASES = {
    "conv": ("[2,6,9,8]", "[4,6,3,3] w, float[4] b", "Conv(x, w, b)"),
    "conv without bias": ("[2,6,9,8]", "[4,6,3,2] w", "Conv(x, w)"),
    "strided, dilated, padded": (
        "[2,6,11,10]",
        "[4,6,3,3] w, float[4] b",
        "Conv<strides=[2,1], dilations=[1,2], pads=[1,0,2,3]>(x, w, b)",
    ),
    "grouped": ("[2,6,7,7]", "[9,2,3,3] w, float[9] b", "Conv<group=3>(x, w, b)"),
    "depthwise": ("[2,6,7,7]", "[6,1,3,3] w", "Conv<group=6, pads=[1,1,1,1]>(x, w)"),
    "same upper": ("[2,3,8,7]", "[4,3,3,3] w", 'Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)'),
    "same lower": ("[2,3,8,7]", "[4,3,4,4] w", 'Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w)'),
    "valid": ("[2,3,8,7]", "[4,3,4,4] w", 'Conv<auto_pad="VALID">(x, w)'),
    "one axis": ("[2,3,20]", "[4,3,5] w", "Conv<strides=[3]>(x, w)"),
    "three axes": ("[2,3,5,6,7]", "[4,3,2,3,2] w", "Conv<pads=[1,0,1,0,1,0]>(x, w)"),
    "transposed": ("[2,6,5,4]", "[6,4,3,3] w, float[4] b", "ConvTranspose(x, w, b)"),
    "transposed, strided, padded": (
        "[2,6,5,4]",
        "[6,4,3,3] w",
        "ConvTranspose<strides=[2,3], pads=[1,0,0,2], output_padding=[1,0], dilations=[2,1]>(x, w)",
    ),
    "transposed, grouped": (
        "[2,6,5,4]",
        "[6,2,3,3] w",
        "ConvTranspose<group=2, strides=[2,2], pads=[3,3,3,3]>(x, w)",
    ),
    "transposed, same": ("[2,6,5,4]", "[6,4,3,3] w", 'ConvTranspose<strides=[2,2], auto_pad="SAME_UPPER">(x, w)'),
    "gemm": ("[5,6]", "[6,4] w, float[4] b", "Gemm(x, w, b)"),
    "gemm, scaled": ("[5,6]", "[4,6] w, float[4] b", "Gemm<alpha=0.5, beta=3.0, transB=1>(x, w, b)"),
    "gemm, one bias for all": ("[5,6]", "[6,4] w, float[1] b", "Gemm(x, w, b)"),
    "matmul": ("[2,3,6]", "[6,4] w", "MatMul(x, w)"),
    "matmul of rank 4": ("[2,3,5,6]", "[6,4] w", "MatMul(x, w)"),
}


@pytest.mark.parametrize("case", CASES)
def test_columns_times_matrix_is_the_output(case: str) -> None:
    given, weights, call = CASES[case]
    graph = load(
        build(f"(float{given} x) => (float{[1] * (given.count(',') + 1)} y) <float{weights}> {{ y = {call} }}")
    )
    (linear,) = linears(graph).values()
    feeds = random_feeds(graph, trace(graph).binding, 0)
    y = sessions.run(graph.to_proto(), feeds)["y"]
    count = linear.positions(y.shape)
    picks = np.sort(np.random.default_rng(0).permutation(count)[: max(1, count // 2)])
    matrix = linear.matrix(graph.array("w"))
    g, _, o = linear.size
    assert matrix.shape == linear.size
    assert linear.result(feeds["x"].shape) == y.shape
    bias = graph.array("b").reshape(-1) * linear.beta if "b" in graph.constants else np.zeros(1)
    made = linear.columns(feeds["x"], y.shape, picks) @ matrix + np.broadcast_to(bias, g * o).reshape(g, 1, o)
    np.testing.assert_allclose(made, linear.rows(y, picks), atol=1e-4)
    np.testing.assert_allclose(linear.unmatrix(matrix), graph.array("w"), rtol=1e-6)


def test_the_bias_of_a_matmul_is_the_vector_added_to_it() -> None:
    text = "(float[2,6] x) => (float[2,4] y) <float[6,4] w, float[4] b> { h = MatMul(x, w) y = Add(b, h) }"
    (linear,) = linears(load(build(text))).values()
    assert (linear.bias, linear.adder, linear.out) == ("b", 1, "y")


def test_what_is_no_product_with_a_stored_float_is_left_out() -> None:
    text = """(float[2,6] x, float[6,6] z) => (float[2,6] y) <float[6,6] w, float[2,6] c> {
        a = MatMul(x, z) b = Gemm(a, w, c) y = Gemm<transA=1>(w, w) }"""
    assert not linears(load(build(text)))
