"""Calibration where data take one branch of an If, and not the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto

import onnxprune
from onnxprune.branches import along, path_of
from onnxprune.feeds import Binding
from onnxprune.reading import load
from onnxprune.sessions import run
from onnxprune.trace import trace
from tests.common import build

TEXT = """(float[N,6] x, bool c) => (float[N,4] y)
    <float[6,16] A, float[16] a, float[16,4] B, float[4] b, float[6,16] D, float[16,4] E> {
    y = If(c) <
        then_branch = one () => (float[N,4] t) { h = Gemm(x, A, a) r = Relu(h) t = Gemm(r, B, b) },
        else_branch = other () => (float[N,4] e) { k = Gemm(x, D, a) q = Relu(k) e = Gemm(q, E, b) }> }"""
RATES = """(float[N,L] x, bool c) => (float[N,4] y)
    <float[10,16] A, float[16,4] B, float[20,16] D, float[30,16] G, float[16,4] E, int64 w = {1}, int64 n = {20}> {
    y = If(c) <
        then_branch = one () => (float[N,4] t) { h = MatMul(x, A) r = Relu(h) t = MatMul(r, B) },
        else_branch = other () => (float[N,4] e) {
            s = Shape(x) l = Gather(s, w) f = Equal(l, n)
            k = If(f) <then_branch = fits () => (float[N,16] i) { i = MatMul(x, D) },
                       else_branch = not () => (float[N,16] j) { j = MatMul(x, G) }>
            q = Relu(k) e = MatMul(q, E) }> }"""


def data(c: bool, length: int = 6, feeds: int = 10) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((3, length))  # so that units can stand in for each other
    made = [(rng.standard_normal((16, 3)) @ mixed).astype(np.float32) for _ in range(feeds)]
    return [{"x": x, "c": np.array(c)} for x in made]


def cut(model: ModelProto, **options: Any) -> Any:
    return onnxprune.prune(model, ratio=0.5, scope="local", **options)


def error(model: ModelProto, other: ModelProto, c: bool) -> float:
    feed = data(c, feeds=12)[-1]
    want, got = (run(m, feed)["y"] for m in (model, other))
    return float(np.square(want - got).sum() / np.square(want).sum())


def test_the_branch_that_all_data_take() -> None:
    graph = load(build(TEXT))
    for c, branch in ((True, "then_branch"), (False, "else_branch")):
        path = path_of(graph, trace(graph), data(c))
        assert list(path.values()) == [branch]
        assert [n.op_type for n in along(graph, path).nodes].count("Gemm") == 2
    assert path_of(graph, trace(graph), data(True) + data(False)) == {}


def test_what_is_seen_is_recovered_and_the_rest_is_only_cut() -> None:
    model = build(TEXT)
    plain, made = cut(model), cut(model, data=data(True))
    assert error(model, made.model, True) < error(model, plain.model, True) / 10
    unmended = onnxprune.apply(model, made.plan)
    assert error(unmended.model, made.model, False) == 0  # the bias that both branches read is still as it was there
    assert any("the data never take the branch of an If that has D:1" in n for n in made.report.notes)


def test_a_dim_that_is_not_seen_is_taken_to_lose_what_others_do() -> None:
    found = onnxprune.measure_sensitivity(build(TEXT), data(True))
    seen, unseen = (found.curves[n] for n in ("A:1", "D:1"))
    assert seen.errors[-1] > 0
    np.testing.assert_allclose(unseen.errors, seen.errors)


def test_both_branches_count_where_both_are_seen() -> None:
    made = cut(build(TEXT), data=data(True) + data(False))
    assert not any("never take" in n for n in made.report.notes)


def test_a_branch_that_the_sizes_are_not_for_decides_nothing() -> None:
    model = build(RATES)
    made = cut(model, data=data(True, 10))
    assert made.report.surgery_check is not None and made.report.surgery_check.passed
    feed = {"x": np.ones((3, 20), np.float32), "c": np.array(False)}
    assert run(made.model, feed)["y"].shape == (3, 4)
    facts = trace(load(model), (Binding({"x": (2, 10), "c": ()}), Binding({"x": (3, 10), "c": ()})))
    assert facts.static("f") is None
