"""Entries that are picked by rank: ties are told from mistakes, on graphs whose scores are all but equal."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

import onnxprune
from onnxprune.inference import TypedGraph
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import PASSES
from onnxprune.passes.prune import cut
from onnxprune.reading import load
from onnxprune.validate.closeness import TOLERANCE, TOLERANCE_HALF
from onnxprune.validate.surgery_check import surgery_check
from tests.common import build, feeds_for, plans, typed_model

TIED = 1e-9  # of the weights that make scores: scores are one half and a rounding
HEAD = "(float[N,64,4] x) => (float[N,5,3] y) <float[4,8] A, float[8,1] S, float[8,3] B, int64[1] k = {5}"
BODY = "h = MatMul(x, A) r = Relu(h) l = MatMul(r, S) p = Sigmoid(l) v = MatMul(r, B)"
TOP = f"{HEAD}, int64[3] three = {{1,1,3}}> {{ {BODY} s, i = TopK <axis = 1> (p, k) e = Tile(i, three)" + (
    " y = GatherElements <axis = 1> (v, e) }"
)


def tied(text: str = TOP) -> TypedGraph:
    model = build(text)
    for t in model.graph.initializer:
        if t.name == "S":
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t) * np.float32(TIED), "S"))
    return typed_model(model)


def spoilt(model: ModelProto, name: str, factor: float = 1.01) -> ModelProto:
    for t in model.graph.initializer:
        if t.name == name:
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t) * np.float32(factor), name))
    return model


def test_ties_pass() -> None:
    typed = tied()
    masks = next(plans(typed))
    found = surgery_check(typed, masks, cut(typed, masks), feeds_for(typed, 4))
    assert found.passed


@pytest.mark.parametrize("name", ["B", "A"])
def test_mistakes_fail(name: str) -> None:
    """What comes after the choice is still compared."""
    typed = tied()
    masks = next(plans(typed))
    assert not surgery_check(typed, masks, spoilt(cut(typed, masks).to_proto(), name), feeds_for(typed)).passed


def test_scores_are_compared() -> None:
    """Scores of the wrong sign fail, although every choice is fed in."""
    typed = typed_model(build(TOP))
    masks = next(plans(typed))
    assert not surgery_check(typed, masks, spoilt(cut(typed, masks).to_proto(), "S", -1), feeds_for(typed)).passed


def test_lossless_with_ties() -> None:
    model = build(TOP)
    for t in model.graph.initializer:
        if t.name in ("A", "S"):
            array = numpy_helper.to_array(t).copy()
            array = array * np.float32(TIED) if t.name == "S" else np.where(np.arange(8) < 3, 0, array)
            t.CopyFrom(numpy_helper.from_array(array.astype(np.float32), t.name))
    report = onnxprune.prune(model, lossless=True).report
    assert report.surgery_check and report.surgery_check.passed and report.params.after < report.params.before


def test_a_choice_that_the_file_makes_inside_a_branch() -> None:
    """The branch is taken before anything is pruned, and only then the choice can be fed in."""
    top = "TopK <axis = 1> (p, k)"
    branches = f"then_branch = yes () => (t, j) {{ t, j = {top} }}, else_branch = no () => (u, l) {{ u, l = {top} }}"
    original = load(build(TOP.replace(top, f"If (c) <{branches}>").replace("}> {", "}, bool c = {1}> {")))
    state = State(original)
    PassManager(parse("take-branches", PASSES)).run(state)
    masks = next(plans(state.typed))
    pruned = cut(state.typed, masks)
    assert surgery_check(state.typed, masks, pruned, feeds_for(state.typed), original).passed


# nodes of a graph with float32 inputs and outputs, tolerance
PRECISIONS = [
    ("h = MatMul(x, A) r = Relu(h) y = MatMul(r, B)", TOLERANCE),
    ("W = Cast <to = 10> (A) V = Cast <to = 1> (W) h = MatMul(x, V) r = Relu(h) y = MatMul(r, B)", TOLERANCE),
    ("h = MatMul(x, A) c = Cast <to = 10> (h) r = Relu(c) f = Cast <to = 1> (r) y = MatMul(f, B)", TOLERANCE_HALF),
]


@pytest.mark.parametrize(("nodes", "tolerance"), PRECISIONS, ids=["single", "stored in halves", "computed in halves"])
def test_tolerance_is_that_of_the_activations(nodes: str, tolerance: float) -> None:
    """Whatever the type of the outputs."""
    typed = typed_model(build(f"(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8,3] B> {{ {nodes} }}"))
    masks = next(plans(typed))
    assert surgery_check(typed, masks, cut(typed, masks), feeds_for(typed)).tolerance == tolerance
