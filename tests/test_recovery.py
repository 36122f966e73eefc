"""Recovery brings the outputs back towards the original's, and leaves alone what it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxprune import sessions
from onnxprune.errors import InputError
from onnxprune.graph import Graph
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import PASSES, in_steps
from onnxprune.plan import Budget
from onnxprune.reading import load
from onnxprune.sessions import Feeds
from onnxprune.sizing import running_pair
from onnxprune.trace import trace
from tests.common import build

RECOVER = in_steps(1, True)
MODELS = Path(__file__).resolve().parent.parent / "models"


def feeds_of(graph: Graph, file: str, count: int) -> list[Feeds]:
    with np.load(MODELS / file) as data:
        arrays = {i.name: data[i.name][:count] for i in graph.inputs}
    return [{n: a[k : k + 32] for n, a in arrays.items()} for k in range(0, count, 32)]


def run(graph: Graph, feeds: list[Feeds], budget: Budget, pipeline: str = RECOVER) -> State:
    state = State(
        graph,
        running_pair(graph, 0, {n: a.shape for n, a in feeds[0].items()}),
        budget,
        data=feeds,
        samples=32 * len(feeds),
    )
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


def test_shared_weights_are_left_alone() -> None:
    text = """(float[n,6] x, float[n,6] z) => (float[n,4] y) <float[6,8] a, float[8,4] c> {
        h = MatMul(x, a) k = MatMul(z, a) r = Relu(h) s = Relu(k) t = MatMul(r, c) u = MatMul(s, c) y = Add(t, u) }"""
    graph = load(build(text))
    rng = np.random.default_rng(0)
    feeds = [{n: rng.normal(size=(32, 6)).astype(np.float32) for n in "xz"} for _ in range(4)]
    state = run(graph, feeds, Budget(ratio=0.5, criterion="l2"))
    (found,) = state.recoveries
    assert not found.mended and {reason for _, reason in found.left} == {"its weights are shared"}
    assert state.graph is not graph and trace(state.graph)


def test_it_needs_data() -> None:
    graph = load(MODELS / "mnist_cnn.onnx")
    with pytest.raises(InputError, match="refit-least-squares needs calibration data: give --data"):
        PassManager(parse(RECOVER, PASSES)).run(State(graph, None, Budget(ratio=0.5)))
