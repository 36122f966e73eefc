"""Concrete shapes and values at two bindings: what is static, what is dynamic, which sizes are tried."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune.errors import InputError
from onnxprune.feeds import batch_size, random_feeds
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import PASSES, PREPARE
from onnxprune.reading import load
from onnxprune.sizing import IMAGE_SIZES, LENGTH_SIZES, bindings, running_pair, running_shapes
from onnxprune.trace import trace
from tests.common import build, free_dims

FIRST_LENGTH, FIRST_IMAGE = LENGTH_SIZES[0], IMAGE_SIZES[0]
# the inputs of a model, their shapes at the first two bindings
BINDINGS: list[tuple[str, list[list[int]], list[list[int]]]] = [
    ("float[2,3] x", [[2, 3]], [[2, 3]]),
    ("float x", [[]], [[]]),
    ("float[N,3] x", [[2, 3]], [[3, 3]]),
    ("float[N,L,8] x", [[2, FIRST_LENGTH[0], 8]], [[3, FIRST_LENGTH[1], 8]]),
    ("float[N,3,H,W] x", [[2, 3, FIRST_IMAGE[0], FIRST_IMAGE[0]]], [[3, 3, FIRST_IMAGE[1], FIRST_IMAGE[1]]]),
    ("float[N,L] x, float[N,L] z", [[2, 11], [2, 11]], [[3, 13], [3, 13]]),
    ("float[N] x, float[N,4] z", [[2], [2, 4]], [[3], [3, 4]]),
    ("float[?,4] x, float[?,4] z", [[2, 4], [2, 4]], [[3, 4], [3, 4]]),
]


@pytest.mark.parametrize(("inputs", "first", "second"), BINDINGS, ids=[b[0] for b in BINDINGS])
def test_bindings(inputs: str, first: list[list[int]], second: list[list[int]]) -> None:
    graph = load(build(f"({inputs}) => (float y) {{ y = ReduceSum <keepdims = 0> (x) }}"))
    pair = next(bindings(graph))
    assert [[list(s) for s in b.shapes.values()] for b in pair] == [first, second]


def test_sizes_are_tried_until_one_fits() -> None:
    """A free axis that must be 24 long, since a weight of that length is added."""
    graph = load(build("(float[N,L] x) => (float[N,24] y) <float[24] A> { y = Add(x, A) }"))
    assert trace(graph).shapes["x"][1] in (24, 1)
    assert running_shapes(graph, 0)["x"] in {(2, 1), (2, 24)}


def test_a_model_that_runs_nowhere() -> None:
    graph = load(build("(float[N,3] x) => (float[N,24] y) <float[24] A> { y = Add(x, A) }"))
    with pytest.raises(InputError, match=r"does not (run|load) the model as it is"):
        running_shapes(graph, 0)


# body, tensor, shape at the first binding, dynamic axes, static value or None
BODY = "(float[N,4] x) => (float[N,4] y) <int64 zero = {0}, int64 one = {1}, int64 three = {3}, int64[1] axis = {0}>"
FACTS: list[tuple[str, str, tuple[int, ...], list[int], Any]] = [
    ("y = Relu(x)", "y", (2, 4), [0], None),
    ("s = Shape(x) y = Relu(x)", "s", (2,), [], None),
    ("s = Shape <start = 1> (x) y = Relu(x)", "s", (1,), [], [4]),
    ("s = Shape(x) c = Gather(s, one) y = Relu(x)", "c", (), [], 4),
    ("s = Shape(x) n = Gather(s, zero) y = Relu(x)", "n", (), [], None),
    ("n = Size(x) y = Relu(x)", "n", (), [], None),
    ("s = Shape(x) z = ConstantOfShape(s) y = Add(x, z)", "z", (2, 4), [0], None),
    (
        "s = Shape(x) c = Gather(s, one) u = Unsqueeze(c, axis) r = Range(zero, c, one) y = Relu(x)",
        "r",
        (4,),
        [],
        [0, 1, 2, 3],
    ),
    ("t = Transpose(x) y = Relu(x)", "t", (4, 2), [1], None),
    ("k = NonZero(x) y = Relu(x)", "k", (2, 8), [1], None),
    ("k = NonZero(x) s = Shape(k) n = Gather(s, one) m = Min(n, three) y = Relu(x)", "m", (), [], None),
]


@pytest.mark.parametrize(("nodes", "name", "shape", "dynamic", "value"), FACTS, ids=[f[0] for f in FACTS])
def test_facts(nodes: str, name: str, shape: tuple[int, ...], dynamic: list[int], value: Any) -> None:
    facts = trace(load(build(f"{BODY} {{ {nodes} }}")))
    assert facts.shapes[name] == shape
    assert [k for k in range(len(shape)) if facts.dynamic(name, k)] == dynamic
    known = facts.static(name)
    assert (known is None) == (value is None) and (value is None or np.array_equal(known, value))


NO_NUMBERS = (
    "m = Div(one, zero)",
    "m = Mod(one, zero)",
    "f = Cast <to = 1> (zero) g = Div(f, f) m = Cast <to = 7> (g)",
)


@pytest.mark.parametrize("nodes", NO_NUMBERS)
def test_what_is_no_number_is_not_known(nodes: str) -> None:
    """Nor does NumPy warn of it."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        facts = trace(load(build(f"{BODY} {{ {nodes} y = Relu(x) }}")), ask=False)
    assert facts.static("m") is None and not told


def test_a_stale_value_info_is_not_read() -> None:
    model = build("(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8,3] B> { h = MatMul(x, A) y = MatMul(h, B) }")
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.DOUBLE, [99]))
    facts = trace(load(model))
    assert facts.shapes["h"] == (2, 8) and facts.dtypes["h"] == TensorProto.FLOAT


def test_an_unknown_operator_leaves_its_output_open() -> None:
    facts = trace(load(build("(float[N,4] x) => (float[N,4] y) { h = com.example.Mystery(x) y = Relu(h) }")))
    assert "h" not in facts.shapes and "x" in facts.shapes


@pytest.mark.parametrize("shape, size", [("N,4", 2), ("3,4", 1), ("N,L", 2)])
def test_batch_size(shape: str, size: int) -> None:
    graph = load(build(f"(float[{shape}] x) => (float y) {{ y = ReduceSum <keepdims = 0> (x) }}"))
    assert batch_size(graph, trace(graph).binding) == size


# random inputs
def test_random_indices_stay_in_the_table() -> None:
    text = """(int64[N,5] x) => (float[N,5,3] y) <float[7,3] A> { c = Cast <to = 6> (x) y = Gather(A, c) }"""
    graph = load(build(text))
    (binding, _) = next(bindings(graph))
    feeds = random_feeds(graph, binding, 0)["x"]
    assert feeds.dtype == np.int64 and feeds.min() >= 0 and feeds.max() <= 6 and len(np.unique(feeds)) > 2


def test_random_inputs_are_seeded_and_typed() -> None:
    graph = load(build("(float16[N,4] x, bool[N] b, int32[N] i) => (float16[N,4] y) { y = Relu(x) }"))
    (binding, _) = next(bindings(graph))
    one, same, other = (random_feeds(graph, binding, seed) for seed in (1, 1, 2))
    assert {n: str(a.dtype) for n, a in one.items()} == {"x": "float16", "b": "bool", "i": "int32"}
    assert all(np.array_equal(one[n], same[n]) for n in one) and not np.array_equal(one["x"], other["x"])


def test_inputs_too_large_to_make_up() -> None:
    graph = load(build("(float[N,1048576,1048576] x) => (float[N,1048576,1048576] y) { y = Relu(x) }"))
    with pytest.raises(InputError, match="too large"):
        random_feeds(graph, next(bindings(graph))[0])
    assert trace(graph).shapes["y"][1:] == (1048576, 1048576)


def test_the_model_is_not_changed() -> None:
    model = build("(float[N,4] x) => (float[N,3] y) <float[4,3] A> { h = com.example.Mystery(x) y = MatMul(h, A) }")
    before = onnx.ModelProto.FromString(model.SerializeToString())
    trace(load(model))
    assert model == before


def test_a_branch_that_does_not_fit_the_second_sizes() -> None:
    """A script squeezed an axis, whatever its length; where it is not 1, what follows fails."""
    text = """(float[N,1,L] x, bool c) => (float[N,5] y)
        <float[8,1,4] A, float[8,5] B, float[6,1,4] C, float[6,5] D, int64[1] one = {1}, int64[1] last = {2}> {
        y = If <then_branch = yes () => (float[N,5] a) {
            h = Conv <strides = [32], auto_pad = "SAME_UPPER"> (x, A) m = ReduceMean <keepdims = 0> (h, last)
            a = MatMul(m, B)
        }, else_branch = no () => (float[N,5] b) {
            k = Conv <strides = [32], auto_pad = "SAME_UPPER"> (x, C) s = Shape <start = 2> (k) e = Equal(s, one)
            z = If <then_branch = squeezed () => (float[N,6] u) { u = Squeeze(k, last) },
                    else_branch = same () => (float[N,6,T] v) { v = Identity(k) }> (e)
            b = MatMul(z, D)
        }> (c) }"""
    graph = load(build(text))
    pair = running_pair(graph, 0)
    facts = trace(graph, pair)
    assert facts.shapes["b"] == (2, 5) and facts.other_shapes["b"] == (3, 5)
    assert facts.static("e") == np.array([True])
    assert facts.other_shapes["h"] == (3, 8, 501)  # the branch that is taken is known at the second sizes
    state = State(graph, pair)
    PassManager(parse(PREPARE, PASSES)).run(state)
    assert free_dims(state.typed) == "A:0=8 C:0=6"


def test_a_scan_over_slices_of_unknown_rank() -> None:
    """The shape that a Reshape is given may have any number of entries: inference leaves the rank open."""
    model = build(
        "(float[N,4] x, int64[M] s) => (float[?,?] y) { r = Reshape(x, s)"
        " y = Scan <num_scan_inputs = 1, body = b (e) => (f) { f = Relu(e) }> (r) }"
    )
    assert "y" not in trace(load(model), ask=False).shapes
