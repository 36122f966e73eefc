"""onnx's inference is asked each question once - and questions that differ anywhere are different ones."""

from __future__ import annotations

from typing import Any

import pytest
from onnx import TensorProto, shape_inference

from onnxprune.budget import Budget
from onnxprune.graph import from_proto
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import DEFAULT, PASSES
from onnxprune.reading import load
from onnxprune.trace import trace
from tests.common import build

INPUTS = "(float[2,3,4] x, float16[2,3,4] h, float[3,2,4] t) => (float y)"
CONSTANTS = """<int64[2] flat = {6, 4}, int64[2] wide = {2, 12}, int64[1] one = {1}, int64[1] two = {2},
  int64[1] zero = {0}, float[3] same = {1.0, 1.0, 1.0}, float[3] twice = {1.0, 1.0, 2.0}>"""
# two nodes that differ in one part of the question, and their outputs' shapes
PAIRS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "attribute": ("a = Transpose <perm = [1, 0, 2]> (x) b = Transpose <perm = [0, 2, 1]> (x)", (3, 2, 4), (2, 4, 3)),
    "operator": (
        "a = ArgMax <axis = 1, keepdims = 0> (x) b = ReduceMean <axes = [1], keepdims = 0> (x)",
        (2, 4),
        (2, 4),
    ),
    "shape": ("a = Flatten(x) b = Flatten(t)", (2, 12), (3, 8)),
    "integers": ("a = Reshape(x, flat) b = Reshape(x, wide)", (6, 4), (2, 12)),
    "floats": ("a = Resize(x, , same) b = Resize(x, , twice)", (2, 3, 4), (2, 3, 8)),
    "place of an operand": ("a = Slice(x, zero, two, one) b = Slice(x, zero, two, , one)", (2, 2, 4), (2, 3, 4)),
    "outputs": ("a = Dropout(x) c, b = Dropout(x)", (2, 3, 4), (2, 3, 4)),
}


@pytest.mark.parametrize("title", PAIRS)
def test_questions_that_differ(title: str) -> None:
    nodes, first, second = PAIRS[title]
    facts = trace(load(build(f"{INPUTS} {CONSTANTS} {{ {nodes} y = ReduceMax <keepdims = 0> (x) }}", opset=17)))
    assert (facts.shapes["a"], facts.shapes["b"]) == (first, second)


def test_types_that_differ() -> None:
    facts = trace(
        load(build(f"{INPUTS} {{ a = Relu(x) b = Relu(h) c, d = Dropout(x) y = ReduceMax <keepdims = 0> (x) }}"))
    )
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.BOOL)
    assert tuple(facts.dtypes[n] for n in "abcd") == kinds


def blocks(count: int) -> str:
    """A stack of blocks with weights and biases of their own, small ones among them."""
    weights = ", ".join(f"float[4,4] W{k}, float[4] b{k}" for k in range(count))
    nodes = " ".join(
        f"m{k} = MatMul({f'z{k - 1}' if k else 'x'}, W{k}) a{k} = Add(m{k}, b{k}) r{k} = Relu(a{k})"
        f" t{k} = Transpose <perm = [0, 2, 1]> (r{k}) z{k} = Transpose <perm = [0, 2, 1]> (t{k})"
        for k in range(count)
    )
    return f"(float[N,3,4] x) => (float[N,3,4] y) <{weights}> {{ {nodes} y = Relu(z{count - 1}) }}"


def test_blocks_that_repeat_are_asked_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    infer = shape_inference.infer_node_outputs

    def counted(schema: Any, node: Any, *args: Any, **options: Any) -> Any:
        asked.append(node.op_type)
        return infer(schema, node, *args, **options)

    monkeypatch.setattr(shape_inference, "infer_node_outputs", counted)
    for count in (2, 30):
        asked.clear()
        facts = trace(load(build(blocks(count))))
        assert facts.shapes[f"z{count - 1}"] == (2, 3, 4) and facts.dynamic("y", 0)
        # at each of two batch sizes; perm (0, 2, 1) is asked for (N, 3, 4) and for (N, 4, 3)
        assert sorted(asked) == sorted(["MatMul", "Add", "Relu", "Transpose", "Transpose"] * 2)


def test_names_are_those_of_the_nodes_after_every_pass() -> None:
    """Graphs hand the names on to the graphs that are made of them."""
    graph = load(build(blocks(3)))
    state = State(graph, budget=Budget(ratio=0.5))
    for step in parse(DEFAULT, PASSES):
        PassManager((step,)).run(state)
        assert state.graph.wires == from_proto(state.graph.to_proto()).wires
    assert state.graph.params() < graph.params()
