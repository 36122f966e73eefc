"""inline-functions: calls of model functions become their bodies."""

from __future__ import annotations

import onnx
import pytest

from onnxprune.reading import load
from tests.passes.cases import lines, passed, same_outputs

HEAD = '<ir_version: 10, opset_import: ["" : 21, "my" : 1]> main'
TWICE = """(float[N,4] x) => (float[N,4] y) { h = my.twice(x) y = Relu(h) }
<domain: "my", opset_import: ["" : 21]> twice (a) => (b) { b = Add(a, a) }"""
NESTED = """(float[N,4] x) => (float[N,4] y) { y = my.outer(x) }
<domain: "my", opset_import: ["" : 21, "my" : 1]> outer (a) => (c) { b = my.inner(a) c = Tanh(b) }
<domain: "my", opset_import: ["" : 21]> inner (a) => (b) { b = Neg(a) }"""
ATTRIBUTE = """(float[N,4] x) => (float[N,4] y) { y = my.soft<axis = 0>(x) }
<domain: "my", opset_import: ["" : 21]> soft <axis> (a) => (b) { b = Softmax<axis: int = @axis>(a) }"""
TWO_CALLS = """(float[N,4] x) => (float[N,4] y) { h = my.act(x) y = my.act(h) }
<domain: "my", opset_import: ["" : 21]> act (a) => (c) { b = Exp(a) c = Tanh(b) }"""
CASES = [
    ("a call", TWICE, [("Add", 2), ("Relu", 1)]),
    ("a call in a function", NESTED, [("Neg", 1), ("Tanh", 1)]),
    ("an attribute", ATTRIBUTE, [("Softmax", 1)]),
    ("two calls", TWO_CALLS, [("Exp", 1), ("Tanh", 1), ("Exp", 1), ("Tanh", 1)]),
]


@pytest.mark.parametrize(("text", "want"), [c[1:] for c in CASES], ids=[c[0].replace(" ", "-") for c in CASES])
def test_case(text: str, want: list[tuple[str, int]]) -> None:
    model = onnx.parser.parse_model(f"{HEAD} {text}")
    model.metadata_props.add(key="note", value="kept")
    graph, results = passed(model, "inline-functions")
    made = graph.to_proto()
    assert results[0].modified and not made.functions
    assert [(n.op_type, len(n.input)) for n in made.graph.node] == want
    assert made.metadata_props == model.metadata_props
    same_outputs(model, made)
    again, results = passed(made, "inline-functions")
    assert not results[0].modified and lines(again) == lines(graph)


def test_a_model_without_functions_is_left_alone() -> None:
    model = onnx.parser.parse_model(f"{HEAD} (float[N,4] x) => (float[N,4] y) {{ y = Relu(x) }}")
    graph, results = passed(model, "inline-functions")
    assert not results[0].modified and graph.to_proto() == model and lines(load(model)) == ["y = Relu(x)"]
