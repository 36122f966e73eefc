"""Symbolic sizes stay symbolic: what is pruned at the traced sizes equals the masked original at three others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from onnxprune.budget import Budget
from onnxprune.feeds import Binding, random_feeds
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import DEFAULT, PASSES
from onnxprune.plan import bind
from onnxprune.progress import silent
from onnxprune.proof import look
from onnxprune.reading import load
from onnxprune.sizing import running_pair
from onnxprune.validate.surgery_check import surgery_check
from tests.common import build

MODELS = Path(__file__).parents[1] / "models"
SIZED = {
    "attention with a scale from Shape, split and joined by run-time shapes": (
        "(float[N,T,8] x) => (float[N,T,3] y) <float[8,12] Q, float[8,12] K, float[8,12] V, float[12,3] O,"
        " int64[2] h = {3,4}, int64[1] w = {-1}> { s = Shape <start = 0, end = 2> (x) hs = Concat <axis = 0> (s, h)"
        " q = MatMul(x, Q) k = MatMul(x, K) v = MatMul(x, V) qr = Reshape(q, hs) kr = Reshape(k, hs) vr = Reshape(v,"
        " hs)"
        " qt = Transpose <perm = [0,2,1,3]> (qr) kt = Transpose <perm = [0,2,3,1]> (kr) vt = Transpose <perm ="
        " [0,2,1,3]> (vr) d = Shape <start = 3> (qt) df = Cast <to = 1> (d) r = Sqrt(df) a = MatMul(qt, kt)"
        " b = Div(a, r) p = Softmax <axis = -1> (b) z = MatMul(p, vt) zt = Transpose <perm = [0,2,1,3]> (z)"
        " js = Concat <axis = 0> (s, w) j = Reshape(zt, js) y = MatMul(j, O) }",
        [(1, 3), (2, 7), (5, 12)],
    ),
    "resize by sizes of another branch": (
        "(float[N,2,H,W] x) => (float[N,3,H,W] y) <float[8,2,1,1] A, float[6,8,2,2] C, float[3,14,1,1] B, int64[2] c ="
        " {6,6}> { h = Conv(x, A) l = Conv <strides = [2,2]> (h, C) n = Shape <end = 1> (h) f = Shape <start = 1, end ="
        " 2> (l) hw = Shape <start = 2> (h) s = Concat <axis = 0> (n, f, hw) u = Resize <mode = \"nearest\"> (l, , , s)"
        " g = Concat <axis = 1> (h, u) y = Conv(g, B) }",
        [(1, 4, 6), (2, 8, 8), (3, 10, 4)],
    ),
    "masks and zeros built from shapes": (
        "(float[N,T,4] x) => (float[N,T,3] y) <float[4,8] A, float[8,3] B, int64 o = {1}, int64 z = {0}, int64[1] e ="
        " {0}, int64 one = {1}> { h = MatMul(x, A) s = Shape(h) f = ConstantOfShape(s) t = Gather(s, one) r = Range(z,"
        " t, o) m = Unsqueeze(r, w) p = Cast <to = 1> (m) v = Expand(p, s) g = Add(h, f) k = Mul(g, v) y = MatMul(k,"
        " B) }".replace("int64 one = {1}", "int64 one = {1}, int64[2] w = {0,2}"),
        [(1, 3), (2, 6), (4, 11)],
    ),
}  # fmt: skip


def pruned(model: ModelProto | Path) -> tuple[State, ModelProto]:
    graph = load(model)
    state = State(graph, running_pair(graph, 0), Budget(ratio=0.5, scope="local"))
    PassManager(parse(DEFAULT, PASSES)).run(state)
    assert state.cuts[0].plan.removed
    return state, state.graph.to_proto()


def check(state: State, result: ModelProto, shapes: dict[str, tuple[int, ...]]) -> None:
    cut = state.cuts[0]
    feeds = [random_feeds(cut.typed.graph, Binding(shapes), seed) for seed in (0, 1)]
    assert surgery_check(cut.typed, bind(cut.plan, cut.typed), result, feeds).passed


@pytest.mark.parametrize("title", SIZED)
def test_three_sizes(title: str) -> None:
    text, sizes = SIZED[title]
    state, result = pruned(build(text))
    for size in sizes:
        free = iter(size)
        dims = state.cuts[0].typed.graph.inputs[0].type.tensor_type.shape.dim
        check(state, result, {"x": tuple(d.dim_value or next(free) for d in dims)})


STRIDED_VIEW = (
    "(float[N,2,4,4] x) => (float[N,3] y) <float[6,2,1,1] A, float[6,3] B, int64 z = {0}, int64 o = {1}, int64 c = {6},"
    " int64[1] w = {-1}, int64[2] hw = {2,3}, int64[3] u = {1,2,3}, int64[1,6,1,1] i = {0,1,2,3,4,5}> { h = Conv(x, A)"
    " p = ReduceMean(h, hw) f = Reshape(p, w) s = Shape(x) n = Gather(s, z) r = Range(z, n, o) m = Mul(r, c)"
    " e = Unsqueeze(m, u) k = Add(e, i) g = Gather(f, k) v = Flatten(g) y = MatMul(v, B) }"
)


def test_a_view_by_computed_indices_does_not_freeze_what_it_shows() -> None:
    state, result = pruned(build(STRIDED_VIEW))
    assert list(state.cuts[0].plan.keep) == ["A:0"]
    for n in (1, 2, 5):
        check(state, result, {"x": (n, 2, 4, 4)})


@pytest.mark.parametrize("name", ["mnist_cnn", "mnist_vit", "langid_gru"])
def test_three_batch_sizes_of_trained_models(name: str) -> None:
    state, result = pruned(MODELS / f"{name}.onnx")
    (value,) = state.cuts[0].typed.graph.inputs
    rest = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)[1:]
    for batch in (1, 4, 9):
        check(state, result, {value.name: (batch, *rest)})


def test_names_of_sizes_that_are_cut_go() -> None:
    """An axis of batch x heads may have a name of its own in `value_info`; ONNX Runtime plans memory by such names."""
    text = (
        "(float[N,5,8] x) => (float[N,5,3] y) <float[8,12] Q, float[12,3] O, int64[4] h = {0,5,4,3}, int64[3] f ="
        " {-1,5,3}, int64[4] u = {-1,4,5,3}, int64[3] j = {0,5,12}> { q = MatMul(x, Q) r = Reshape(q, h) t = Transpose"
        " <perm = [0,2,1,3]> (r) b = Reshape(t, f) k = Relu(b) v = Reshape(k, u) w = Transpose <perm = [0,2,1,3]> (v)"
        " z = Reshape(w, j) y = MatMul(z, O) }"
    )
    model = build(text)
    for name in ("b", "k"):
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["4*N", 5, 3]))
    model.graph.value_info.append(helper.make_tensor_value_info("q", TensorProto.FLOAT, ["N", 5, 12]))
    state, result = pruned(model)
    left = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in result.graph.value_info}
    assert left["q"] == ["N", 5, 4] and left["b"] == [0, 5, 2]
    check(state, result, {"x": (3, 5, 8)})


def test_a_count_of_entries_is_not_static() -> None:
    """How many entries are positive differs from input to input, though the model's sizes are all fixed."""
    text = (
        "(float[6,4] x) => (float[M,3] y) <float[4,8] A, float[8,3] B, float one = {1.0}, int64[1] u = {1}, float"
        " zero = {0.0}> { h = MatMul(x, A) g = Relu(h) f = ReduceSum <keepdims = 0> (x, u) c = Greater(f, zero)"
        " n = NonZero(c) t = Transpose(n) s = Shape <end = 1> (t) w = Concat <axis = 0> (s, e) o = ConstantOfShape(w)"
        " p = Squeeze(t, u) k = Gather(g, p) r = Add(k, o) y = MatMul(r, B) }"
    ).replace("float one = {1.0}", "int64[1] e = {8}")
    state, result = pruned(build(text))
    typed = state.cuts[0].typed
    feeds = [{"x": np.eye(6, 4, dtype=np.float32) * sign} for sign in (1, -1)]
    feeds.append({"x": np.ones((6, 4), np.float32)})
    assert surgery_check(typed, bind(state.cuts[0].plan, typed), result, feeds).passed


BRANCHES = (
    "(float[N,4] x, {0}) => (float[N,3] y) <float[4,8] A, float[8,3] B, float[8,3] C, int64 rate = {{16000}}> {{"
    " h = MatMul(x, A) {1} y = If <then_branch = yes () => (float[N,3] a) {{ a = MatMul(h, B) }},"
    " else_branch = no () => (float[N,3] b) {{ {2} }}> (t) }}"
)
DECIDED = {  # the input that decides, and the values of it that the surgery check sees
    "a flag": (BRANCHES.format("bool c", "t = Not(c)", "b = MatMul(h, C)"), {False, True}),
    "a rate": (BRANCHES.format("int64 c", "t = Equal(c, rate)", "b = MatMul(h, C)"), {16000, 16001}),
    "a rate, no other one is allowed": (
        BRANCHES.format("int64 c", "t = Equal(c, rate)", "g = Gather(h, c) k = MatMul(g, C) b = Add(k, k)"),
        {16000},
    ),
}


@pytest.mark.parametrize("title", DECIDED)
def test_the_surgery_check_takes_both_branches(title: str) -> None:
    text, values = DECIDED[title]
    graph = load(build(text))
    feeds = look(graph, running_pair(graph, 0), None, None, 0, silent).surgery_feeds()
    assert {f["c"].item() for f in feeds} == values
