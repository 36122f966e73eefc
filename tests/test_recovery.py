"""Recovery brings the outputs back towards the original's, and leaves alone what it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxprune import sessions
from onnxprune.budget import Budget
from onnxprune.errors import InputError
from onnxprune.graph import Graph
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import PASSES, in_steps
from onnxprune.reading import load
from onnxprune.sessions import Feeds
from onnxprune.sizing import running_pair
from tests.common import build

RECOVER = in_steps(1, True)
MODELS = Path(__file__).resolve().parent.parent / "models"


def feeds_of(graph: Graph, file: str, count: int) -> list[Feeds]:
    with np.load(MODELS / file) as data:
        arrays = {i.name: data[i.name][:count] for i in graph.inputs}
    return [{n: a[k : k + 32] for n, a in arrays.items()} for k in range(0, count, 32)]


def run(graph: Graph, feeds: list[Feeds], budget: Budget, pipeline: str = RECOVER, samples: int | None = None) -> State:
    pair = running_pair(graph, 0, {n: a.shape for n, a in feeds[0].items()})
    state = State(graph, pair, budget, data=feeds, samples=samples or 32 * len(feeds))
    PassManager(parse(pipeline, PASSES)).run(state)
    return state


def error(before: Graph, after: Graph, feeds: list[Feeds]) -> float:
    """Relative L2 error of all outputs."""
    want, got = ([sessions.run(g.to_proto(), f) for f in feeds] for g in (before, after))
    pairs = [(a[n], b[n]) for a, b in zip(want, got, strict=True) for n in a]
    return float(np.sqrt(sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(a).sum() for a, _ in pairs)))


@pytest.mark.parametrize(("name", "limit"), (("mnist_cnn", 0.3), ("mnist_vit", 0.5)))
def test_the_outputs_come_back_on_other_data(name: str, limit: float) -> None:
    graph = load(MODELS / f"{name}.onnx")
    feeds, fresh = feeds_of(graph, f"{name}.calib.npz", 192), feeds_of(graph, f"{name}.heldout.npz", 128)
    state = run(graph, feeds, Budget(macs=0.7, scope="local", criterion="l2"))
    (found,) = state.recoveries
    removed, recovered = (error(graph, g, fresh) for g in (found.before, state.graph))
    assert recovered < limit * removed
    assert all(m.after <= m.before for m in found.mended)


def test_the_second_order_choice_beats_the_norms() -> None:
    graph = load(MODELS / "mnist_cnn.onnx")
    feeds, fresh = feeds_of(graph, "mnist_cnn.calib.npz", 192), feeds_of(graph, "mnist_cnn.heldout.npz", 128)
    norms = run(graph, feeds, Budget(macs=0.3, criterion="l2"))
    curves = run(graph, feeds, Budget(macs=0.3))
    assert error(graph, curves.graph, fresh) < 0.8 * error(graph, norms.graph, fresh)


def test_the_same_call_gives_the_same_bytes() -> None:
    graph = load(MODELS / "mnist_cnn.onnx")
    feeds = feeds_of(graph, "mnist_cnn.calib.npz", 64)
    first, second = (run(graph, feeds, Budget(macs=0.5)).graph.to_proto().SerializeToString() for _ in range(2))
    assert first == second


def test_removed_copies_are_made_up_for_exactly() -> None:
    """Half of the hidden units are copies of the others, which least squares takes over without a loss."""
    text = """(float[n,6] x) => (float[n,4] y) <float[6,8] a, float[8] b, float[8,4] c> {
        h = Gemm(x, a, b) r = Relu(h) y = MatMul(r, c) }"""
    model = build(text)
    for tensor in model.graph.initializer:
        if tensor.name in ("a", "b"):
            array = np.frombuffer(tensor.raw_data, np.float32).reshape(tensor.dims).copy()
            array[..., 4:] = array[..., :4]
            tensor.raw_data = array.tobytes()
    graph = load(model)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(32, 6)).astype(np.float32)} for _ in range(8)]
    state = run(graph, feeds, Budget(ratio=0.5))
    assert error(graph, state.graph, feeds) < 1e-3
    assert len(state.graph.nodes) == 3  # no Add for a bias of nothing


def test_a_missing_bias_is_added_where_it_helps() -> None:
    text = """(float[n,6] x) => (float[n,4] y) <float[6,8] a, float[8] b_pos, float[8,4] c> {
        h = Gemm(x, a, b_pos) r = Sigmoid(h) y = MatMul(r, c) }"""
    graph = load(build(text))
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(32, 6)).astype(np.float32)} for _ in range(8)]
    state = run(graph, feeds, Budget(ratio=0.5))
    assert [n.op_type for n in state.graph.nodes] == ["Gemm", "Sigmoid", "MatMul", "Add"]


SIAMESE = """(float[n,6] x, float[n,6] z) => (float[n,4] y) <float[6,8] a, float[8,4] c> {
    h = MatMul(x, a) k = MatMul(z, a) r = Relu(h) s = Relu(k) t = MatMul(r, c) u = MatMul(s, c) y = Add(t, u) }"""


def test_shared_weights_are_refitted_over_all_of_their_uses() -> None:
    graph = load(build(SIAMESE))
    rng = np.random.default_rng(0)
    feeds = [{n: rng.normal(size=(32, 6)).astype(np.float32) for n in "xz"} for _ in range(4)]
    state = run(graph, feeds, Budget(ratio=0.5, criterion="l2"))
    (found,) = state.recoveries
    assert [m.node for m in found.mended] == ["t"] and not found.left
    assert [n.input[1] for n in state.graph.nodes if n.op_type == "MatMul"] == ["a", "a", "c", "c"]
    fresh = [{n: rng.normal(size=(64, 6)).astype(np.float32) for n in "xz"}]
    assert error(graph, state.graph, fresh) < 0.9 * error(graph, found.before, fresh)


def test_a_weight_that_is_used_twice_in_a_row_sees_itself_mended() -> None:
    text = """(float[n,6] x) => (float[n,6] y) <float[6,8] a, float[8,6] c, float[6] d> {
        h = MatMul(x, a) r = Relu(h) t = Gemm(r, c, d) k = MatMul(t, a) s = Relu(k) y = Gemm(s, c, d) }"""
    graph = load(build(text))
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(32, 6)).astype(np.float32)} for _ in range(8)]
    state = run(graph, feeds, Budget(ratio=0.4, criterion="l2"))
    (found,) = state.recoveries
    assert "t" in [m.node for m in found.mended]
    assert error(graph, state.graph, feeds) <= error(graph, found.before, feeds)


LEFT = {
    "its weights are used by what is no product too": """u = Einsum<equation="ij,jk->ik">(r, c)""",
    "its weights are shared by products with other biases": "u = Gemm(r, c, e)",
    "both sides are activations": "m = Transpose(r) q = MatMul(r, m) u = MatMul(q, x)",
}


@pytest.mark.parametrize("reason", LEFT)
def test_what_is_left_alone_has_a_reason(reason: str) -> None:
    text = f"""(float[5,6] x) => (float[5,6] y, float[5,k] u) <float[6,6] a, float[6,6] c, float[6] d, float[6] e> {{
        h = MatMul(x, a) r = Relu(h) y = Gemm(r, c, d) {LEFT[reason]} }}"""
    graph = load(build(text))
    feeds = [{"x": np.random.default_rng(k).normal(size=(5, 6)).astype(np.float32)} for k in range(6)]
    state = run(graph, feeds, Budget(ratio=0.3, criterion="l2"))
    (found,) = state.recoveries
    assert reason in {why for _, why in found.left}


def test_quantised_weights_are_left_with_the_reason() -> None:
    text = """(float[n,6] x) => (float[n,4] y) <float[6,8] a, int8[8,4] c, float s_pos> {
        h = MatMul(x, a) r = Relu(h) w = DequantizeLinear(c, s_pos) y = MatMul(r, w) }"""
    graph = load(build(text))
    feeds = [{"x": np.random.default_rng(k).normal(size=(32, 6)).astype(np.float32)} for k in range(4)]
    state = run(graph, feeds, Budget(ratio=0.5, criterion="l2"))
    assert [why for r in state.recoveries for _, why in r.left] == ["its weights are quantised"]


def test_half_precision_is_fitted_in_single_and_stored_in_half() -> None:
    text = """(float16[n,6] x) => (float16[n,4] y) <float16[6,8] a, float16[8] b, float16[8,4] c, float16[4] d> {
        h = Gemm(x, a, b) r = Relu(h) y = Gemm(r, c, d) }"""
    graph = load(build(text))
    feeds = [{"x": np.random.default_rng(k).normal(size=(32, 6)).astype(np.float16)} for k in range(6)]
    state = run(graph, feeds, Budget(ratio=0.5, criterion="l2"))
    (found,) = state.recoveries
    assert state.graph.array("c").dtype == state.graph.array("d").dtype == np.float16
    fresh = [{"x": np.random.default_rng(9).normal(size=(64, 6)).astype(np.float16)}]
    assert error(graph, state.graph, fresh) < 0.9 * error(graph, found.before, fresh)


@pytest.mark.parametrize("count", (1, 2, 5, 16))
@pytest.mark.parametrize("name", ("mnist_cnn", "mnist_vit"))
def test_little_data_does_no_harm(name: str, count: int) -> None:
    graph = load(MODELS / f"{name}.onnx")
    with np.load(MODELS / f"{name}.calib.npz") as data:
        feeds = [{i.name: data[i.name][:count] for i in graph.inputs}]
    state = run(graph, feeds, Budget(macs=0.7, scope="local", criterion="l2"), samples=count)
    fresh = feeds_of(graph, f"{name}.heldout.npz", 128)
    (found,) = state.recoveries
    assert error(graph, state.graph, fresh) <= error(graph, found.before, fresh)


ODD = {
    "constant": lambda x: np.ones_like(x),
    "zero": lambda x: np.zeros_like(x),
    "one column": lambda x: np.broadcast_to(x[:, :1], x.shape).copy(),
    "huge": lambda x: 1e30 * x,
    "some not finite": lambda x: np.where(np.arange(x.size).reshape(x.shape) % 50 == 7, np.nan, x),
    "none finite": lambda x: np.full_like(x, np.inf),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("pipeline", ("refit-least-squares", "match-statistics", "fill-means"))
def test_odd_data_breaks_nothing(kind: str, pipeline: str) -> None:
    text = """(float[n,6] x) => (float[n,4] y) <float[6,8] a, float[8] b, float[8,4] c, float[4] d> {
        h = Gemm(x, a, b) r = Relu(h) y = Gemm(r, c, d) }"""
    graph = load(build(text))
    feeds = [{"x": ODD[kind](np.random.default_rng(k).normal(size=(32, 6))).astype(np.float32)} for k in range(4)]
    state = run(graph, feeds, Budget(ratio=0.5, criterion="l2"), f"prune,{pipeline}")
    assert all(np.isfinite(state.graph.array(n)).all() for n in "abcd")
    (found,) = state.recoveries
    if kind not in ("huge", "some not finite", "none finite"):  # of which there is no error to speak of
        assert error(graph, state.graph, feeds) <= error(graph, found.before, feeds)


@pytest.mark.parametrize("kind", ODD)
def test_odd_data_ends_in_a_choice(kind: str) -> None:
    """Also where one node makes numbers of finite data that are none."""
    text = """(float[n,6] x) => (float[n,4] y) <float[6,8] a, float[8] b, float[8,7] e, float[7,4] c, float[4] d> {
        h = Gemm(x, a, b) r = Relu(h) k = MatMul(r, e) l = Log(k) y = Gemm(l, c, d) }"""
    graph = load(build(text))
    feeds = [{"x": ODD[kind](np.random.default_rng(k).normal(size=(32, 6))).astype(np.float32)} for k in range(4)]
    state = run(graph, feeds, Budget(ratio=0.5))
    assert state.cuts and all(np.isfinite(state.graph.array(n)).all() for n in "abcde")


def test_it_needs_data() -> None:
    graph = load(MODELS / "mnist_cnn.onnx")
    with pytest.raises(InputError, match="refit-least-squares needs calibration data: give --data"):
        PassManager(parse(RECOVER, PASSES)).run(State(graph, None, Budget(ratio=0.5)))
