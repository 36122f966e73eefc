"""prune: options in pipeline text, what is written for each kind of edit, weights that several nodes use."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.errors import InputError
from onnxprune.graph import outline
from onnxprune.manager import State, parse
from onnxprune.passes import PASSES
from onnxprune.passes.prune import Prune
from onnxprune.plan import Plan
from onnxprune.reading import load
from tests.common import build, typed_model
from tests.passes.cases import lines, passed

HALF = "prune(ratio=0.5, scope='local')"
X = "(float[N,4] x) => (float[N,3] y) "
PRODUCTS = X + "<float[4,8] A, float[8,3] B> { h = MatMul(x, A) y = MatMul(h, B) }"
SPLIT = (
    X
    + """<float[4,8] A, float[4,3] B, float[4,3] C> {
  h = MatMul(x, A) p, q = Split <axis = 1, num_outputs = 2> (h) r = MatMul(p, B) s = MatMul(q, C) y = Add(r, s) }"""
)
SHARED = (
    X
    + """<float[4,8] A, float[8] z, float[8,8] B, float[8,3] C> {
  h = MatMul(x, A) p = Add(h, z) r = Relu(p) g = MatMul(r, B) q = Add(g, z) y = MatMul(q, C) }"""
)
# title, model, constants and nodes after half of every dim went
CASES = [
    (
        "two products",
        PRODUCTS,
        """const A: float[4, 4]
        const B: float[4, 3]
        h = MatMul(x, A)
        y = MatMul(h, B)""",
    ),
    (
        "a target of Reshape with heads",
        "(float[N,5,4] x) => (float[N,5,3] y) "
        "<float[4,8] A, int64[4] t = {0, 0, 2, 4}, int64[3] u = {0, 0, 8}, float[8,3] B> {"
        "h = MatMul(x, A) r = Reshape(h, t) f = Reshape(r, u) y = MatMul(f, B) }",
        """const A: float[4, 2]
        const B: float[2, 3]
        const t.pruned: int64[4]
        const u.pruned: int64[3]
        h = MatMul(x, A)
        r = Reshape(h, t.pruned)
        f = Reshape(r, u.pruned)
        y = MatMul(f, B)""",
    ),
    (
        "a grouped convolution",
        "(float[N,2,6,6] x) => (float[N,3,6,6] y) <float[8,2,1,1] A, float[8,1,1,1] D, float[3,8,1,1] B> {"
        "h = Conv(x, A) d = Conv <group = 8> (h, D) y = Conv(d, B) }",
        """const A: float[4, 2, 1, 1]
        const D: float[4, 1, 1, 1]
        const B: float[3, 4, 1, 1]
        h = Conv(x, A)
        d = Conv(h, D) {group = 4}
        y = Conv(d, B)""",
    ),
    (
        "an LSTM",
        "(float[5,N,4] x) => (float[5,1,N,8] z, float[N,3] y) "
        "<float[1,32,4] W, float[1,32,8] R, float[8,3] B, int64[1] o = {0}> {"
        "z, h = LSTM <hidden_size = 8> (x, W, R) s = Squeeze(h, o) y = MatMul(s, B) }",
        None,
    ),
]


@pytest.mark.parametrize(("text", "want"), [c[1:] for c in CASES], ids=[c[0].replace(" ", "-") for c in CASES])
def test_case(text: str, want: str | None) -> None:
    """`None`: nothing may go, the hidden units are an output."""
    model = build(text)
    graph, results = passed(model, f"{HALF},remove-dead")
    assert results[0].modified == (want is not None)
    assert lines(graph) == (lines(load(model)) if want is None else [line.strip() for line in want.splitlines()])
    onnx.checker.check_model(graph.to_proto(), full_check=True)


def test_split_without_sizes_still_splits_where_it_did() -> None:
    model = build(SPLIT)
    keep = np.array([1, 1, 1, 0, 0, 0, 0, 1], bool)
    name = {d.name: d for d in typed_dims(model)}
    plan = Plan({n: keep if d.dim.size == 8 else keep[: d.dim.size] for n, d in name.items()})
    made = onnxprune.apply(model, plan).model.graph
    split = next(n for n in made.node if n.op_type == "Split")
    assert len(split.input) == 2 and not [a for a in split.attribute if a.name == "num_outputs"]
    sizes = onnx.numpy_helper.to_array(next(t for t in made.initializer if t.name == split.input[1]))
    assert sizes.sum() == sum(int(m.sum()) for m in plan.keep.values())


def typed_dims(model: onnx.ModelProto) -> Any:
    return typed_model(model).prunable


def test_a_shared_bias_is_cut_for_each_use() -> None:
    """One tensor while the cuts agree, two where they do not; the original goes where nothing uses it."""
    model = build(SHARED)
    first, second = (d.name for d in typed_dims(model))
    apart = onnxprune.apply(model, Plan({first: np.arange(8) < 4, second: np.arange(8) >= 2})).model.graph
    assert sorted((t.name, list(t.dims)) for t in apart.initializer if t.name.startswith("z")) == [
        ("z.pruned", [4]), ("z.pruned1", [6]),
    ]  # fmt: skip
    together = onnxprune.apply(model, Plan({first: np.arange(8) < 4, second: np.arange(8) < 4})).model.graph
    assert [(t.name, list(t.dims)) for t in together.initializer if t.name.startswith("z")] == [("z", [4])]
    one = onnxprune.apply(model, Plan({first: np.arange(8) < 4})).model.graph
    assert sorted((t.name, list(t.dims)) for t in one.initializer if t.name.startswith("z")) == [
        ("z", [8]), ("z.pruned", [4]),
    ]  # fmt: skip


def test_a_dry_run_decides_and_does_nothing() -> None:
    model = build(PRODUCTS)
    state = State(load(model), dry_run=True)
    (step,) = parse(HALF, PASSES)
    assert step.run(state) is state.graph and state.cuts[0].plan.removed == 4
    assert outline(state.graph) == outline(load(model))


def test_options_are_the_fields_of_a_budget() -> None:
    text = "prune(ratio=0.5, scope='local', criterion='l1', round_to=4)"
    assert parse(text, PASSES) == (Prune(ratio=0.5, scope="local", criterion="l1", round_to=4),)


def test_without_any_budget() -> None:
    with pytest.raises(InputError, match="exactly one budget"):
        passed(build(PRODUCTS), "prune")
