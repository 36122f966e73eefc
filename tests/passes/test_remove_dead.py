"""remove-dead: what no output needs goes; the model's inputs stay."""

from __future__ import annotations

import pytest
from onnx import helper, numpy_helper

from tests.common import build
from tests.passes.cases import Case, check, passed

LIVE = "y = Relu(x)"
CASES = [
    Case("nothing dead", f"(float[N,4] x) => (float[N,4] y) {{ {LIVE} }}"),
    Case(
        "a dead chain and its weight",
        f"(float[N,4] x) => (float[N,4] y) <float[4,4] A> {{ d = MatMul(x, A) e = Tanh(d) {LIVE} }}",
        LIVE,
    ),
    Case("a weight of nobody", f"(float[N,4] x) => (float[N,4] y) <float[4,4] A> {{ {LIVE} }}", LIVE),
    Case(
        "one dead output of two",
        "(float[N,4] x) => (float[N,2] y) { y, z = Split <axis = 1, num_outputs = 2> (x) }",
    ),
    Case(
        "dead and live uses of one weight",
        "(float[N,4] x) => (float[N,4] y) <float[4] A> { d = Add(x, A) y = Mul(x, A) }",
        "const A: float[4]\ny = Mul(x, A)",
    ),
    Case("an input that nothing reads stays", f"(float[N,4] x, float[N] z) => (float[N,4] y) {{ {LIVE} }}"),
    Case("an input that is an output", "(float[N,4] x) => (float[N,4] x) { d = Relu(x) }", "", same=False),
    Case(
        "a capture keeps its tensor",
        """(float[N,4] x, bool c) => (float[N,4] y) <float[4] A> { h = Add(x, A)
        y = If (c) <then_branch = t () => (float[N,4] p) { p = Relu(h) },
                    else_branch = e () => (float[N,4] q) { q = Tanh(h) }> }""",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    check(case, "remove-dead")


def test_stale_value_info_goes_and_the_rest_stays() -> None:
    model = build(
        "(float[N,4] x) => (float[N,4] y) <float[N,4] d, float[N,4] h> { d = Tanh(x) h = Neg(x) y = Relu(h) }"
    )
    model.graph.quantization_annotation.add(tensor_name="d")
    model.graph.quantization_annotation.add(tensor_name="h").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="s"
    )
    model.graph.initializer.append(numpy_helper.from_array(numpy_helper.np.float32(1), "s"))
    made = passed(model, "remove-dead")[0].to_proto().graph
    assert [v.name for v in made.value_info] == ["h"]
    assert [a.tensor_name for a in made.quantization_annotation] == ["h"]
    assert [t.name for t in made.initializer] == ["s"]


def test_initialisers_that_ir_version_3_lists_as_inputs_go_from_both() -> None:
    model = build("(float[N,4] x) => (float[N,4] y) <float[4] A> { d = Add(x, A) y = Relu(x) }", 8)
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("A", 1, [4]))
    made = passed(model, "remove-dead")[0].to_proto().graph
    assert [i.name for i in made.input] == ["x"] and not made.initializer
