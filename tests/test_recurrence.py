"""Recurrent layers as products: gates worked out from the states that ONNX Runtime makes give these very states."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune import sessions
from onnxprune.budget import Budget
from onnxprune.calibration import Calibration
from onnxprune.manager import State
from onnxprune.reading import load
from onnxprune.recurrence import Layer, Part, Steps, start, steps, targets
from onnxprune.sizing import running_pair
from tests.common import build
from tests.test_recovery import error, run

T, N, WIDTH, H = 5, 4, 3, 6
TOLERANCE = 1e-5  # of float32 over a few steps
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def layer_text(op: str, directions: int, attrs: str, more: str = "") -> str:
    rows = GATES[op] * H
    return f"""(float[t,n,{WIDTH}] x{more}) => (float[t,{directions},n,{H}] y)
        <float[{directions},{rows},{WIDTH}] w, float[{directions},{rows},{H}] r, float[{directions},{2 * rows}] b,
         float[{directions},{N},{H}] h0> {{
        y, yh = {op}<hidden_size={H}{attrs}>(x, w, r, b, {"lens" if more else ""}, h0) }}"""


CASES = {
    "RNN": ("RNN", 1, ""),
    "RNN backwards": ("RNN", 1, ', direction="reverse"'),
    "RNN both ways": ("RNN", 2, ', direction="bidirectional"'),
    "GRU": ("GRU", 1, ""),
    "GRU that resets after the product": ("GRU", 1, ", linear_before_reset=1"),
    "GRU both ways": ("GRU", 2, ', direction="bidirectional"'),
    "LSTM both ways": ("LSTM", 2, ', direction="bidirectional"'),
}


def sigmoid(z: NDArray[np.float32]) -> NDArray[np.float32]:
    return 1 / (1 + np.exp(-z))


def states(layer: Layer, d: int, seen: Steps) -> NDArray[np.float32]:
    """The states (N, T, H) that a layer's gates make."""
    if layer.node.op_type == "RNN":
        return np.tanh(targets(layer, layer.parts()[d], seen))
    if layer.node.op_type == "LSTM":
        i, o, f, c = np.split(targets(layer, layer.parts()[d], seen), 4, -1)
        cell, made = np.zeros_like(i[:, 0]), np.zeros_like(i)
        for t in range(T)[:: -1 if d else 1]:
            cell = sigmoid(f[:, t]) * cell + sigmoid(i[:, t]) * np.tanh(c[:, t])
            made[:, t] = sigmoid(o[:, t]) * np.tanh(cell)
        return made
    parts: list[Part] = [p for p in layer.parts() if p.direction == d]
    z, r = np.split(sigmoid(targets(layer, parts[0], seen)), 2, -1)
    made = [targets(layer, p, seen) for p in parts[1:]]
    new = np.tanh(made[0] + r * made[1] if len(made) == 2 else made[0])
    return (1 - z) * new + z * seen.h


@pytest.mark.parametrize("with_lengths", (False, True))
@pytest.mark.parametrize("case", CASES)
def test_the_gates_make_the_states(case: str, with_lengths: bool) -> None:
    op, directions, attrs = CASES[case]
    graph = load(build(layer_text(op, directions, attrs, ", int32[n] lens" if with_lengths else "")))
    rng = np.random.default_rng(0)
    feeds = {"x": rng.normal(size=(T, N, WIDTH)).astype(np.float32)}
    lengths = np.array([5, 2, 4, 3], np.int32) if with_lengths else None
    y = sessions.run(graph.to_proto(), feeds | ({} if lengths is None else {"lens": lengths}))["y"]
    layer = Layer.of(graph, graph.nodes[0])
    for d in range(directions):
        first = start(layer.node, {"h0": graph.array("h0")}, layer, d, N)
        seen = steps(layer, d, np.arange(T), feeds["x"], y, lengths, first)
        made, want = states(layer, d, seen), y[:, d].swapaxes(0, 1)
        if op == "LSTM" and with_lengths and d:
            continue  # the cell starts at the end of each sequence
        np.testing.assert_allclose(made[seen.valid], want[seen.valid], atol=TOLERANCE)


def copied(op: str, attrs: str, hidden: bool) -> State:
    """A recurrent layer of which half of the inputs, or of the hidden units, are copies; half of them are removed."""
    rows = GATES[op] * 8
    dims = "kind:hidden" if hidden else "h*"
    model = build(f"""(float[t,n,6] x) => (float[t,n,4] y) <float[6,8] a, float[1,{rows},8] w, float[1,{rows},8] r,
        float[1,{2 * rows}] b, int64[1] axes, float[8,4] c> {{
        h = MatMul(x, a) s = {op}<hidden_size=8{attrs}>(h, w, r, b) q = Squeeze(s, axes) y = MatMul(q, c) }}""")
    for tensor in model.graph.initializer:
        if tensor.name == "axes":
            tensor.raw_data = np.array([1], np.int64).tobytes()
            continue
        array = np.frombuffer(tensor.raw_data, np.float32).reshape(tensor.dims).copy() * 0.5
        if hidden and tensor.name in "wrb":
            blocks = array.reshape(1, -1, 8, *array.shape[2:])
            blocks[:, :, 4:] = blocks[:, :, :4]
        elif not hidden and tensor.name == "a":
            array[:, 4:] = array[:, :4]
        tensor.raw_data = array.tobytes()
    graph = load(model)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(7, 32, 6)).astype(np.float32)} for _ in range(6)]
    return run(graph, feeds, Budget(ratio=0.5, include=(dims,)))


@pytest.mark.parametrize("hidden", (False, True))
@pytest.mark.parametrize(("op", "attrs"), (("LSTM", ""), ("GRU", ""), ("GRU", ", linear_before_reset=1"), ("RNN", "")))
def test_copies_are_made_up_for(op: str, attrs: str, hidden: bool) -> None:
    state = copied(op, attrs, hidden)
    (found,) = state.recoveries
    assert state.cuts[0].result is not state.cuts[0].typed.graph
    rng = np.random.default_rng(9)
    fresh = [{"x": rng.normal(size=(7, 32, 6)).astype(np.float32)}]
    original = state.cuts[0].typed.graph
    assert error(original, found.before, fresh) > 0.1
    assert error(original, state.graph, fresh) < 2e-3


def test_states_that_the_model_does_not_show_are_looked_at_too() -> None:
    """A layer of which only the last states are read."""
    model = build("""(float[t,n,6] x) => (float[1,n,4] y)
        <float[6,8] a, float[1,24,8] w, float[1,24,8] r, float[1,48] b, float[8,4] c> {
        h = MatMul(x, a) s, z = GRU<hidden_size=8>(h, w, r, b) y = MatMul(z, c) }""")
    model.graph.node[1].output[0] = ""
    for tensor in model.graph.initializer:
        tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * np.float32(0.4)).tobytes()
    feeds = [{"x": np.random.default_rng(k).normal(size=(7, 32, 6)).astype(np.float32)} for k in range(7)]
    graph = load(model)
    state = run(graph, feeds[:6], Budget(ratio=0.3, criterion="l2"))
    (found,) = state.recoveries
    assert not found.left and state.graph.nodes[1].output[0] == ""
    assert len(found.mended) == 2
    assert error(graph, state.graph, feeds[6:]) < 0.9 * error(graph, found.before, feeds[6:])


def test_feeds_need_not_be_of_one_size() -> None:
    """A short last feed, and sequences of other lengths: all of their rows count."""
    model = build("""(float[t,n,6] x) => (float[t,d,n,8] y) <float[6,6] a, float[1,24,6] w, float[1,24,8] r> {
        h = MatMul(x, a) y = GRU<hidden_size=8>(h, w, r) }""")
    graph, rng = load(model), np.random.default_rng(0)
    sizes = ((7, 32), (9, 32), (7, 32), (5, 4), (6, 3))
    feeds: list[sessions.Feeds] = [{"x": rng.normal(size=(*s, 6)).astype(np.float32)} for s in sizes]
    state = State(graph, running_pair(graph, 0, {"x": feeds[0]["x"].shape}))
    calibration = Calibration(state.typed, feeds, 100)
    made = calibration.grams(calibration.linears.values())
    assert {g.n for g in made.values()} == {sum(t * n for t, n in sizes)}
    rows = np.concatenate([f["x"].reshape(-1, 6) for f in feeds])
    first = next(x for x in calibration.linears.values() if x.data == "x")
    np.testing.assert_allclose(made[first.key].covariance[0], np.cov(rows.T, bias=True), atol=1e-5)
