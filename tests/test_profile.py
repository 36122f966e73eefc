"""Profiles: kernels are traced back to the nodes that they stand for, whatever ONNX Runtime made of them, and those of
two models are joined.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import InputError
from onnxprune.feeds import Binding, random_feeds
from onnxprune.graph import Graph
from onnxprune.reading import load
from onnxprune.sessions import CPU, Settings
from onnxprune.sizing import running_shapes
from onnxprune.validate.kernels import partners
from onnxprune.validate.profile import BETWEEN, NodeRow, Profile, profile, run_times
from tests.common import build

MODELS = Path(__file__).resolve().parent.parent / "models"
CNN, VIT, GRU = (MODELS / f"{name}.onnx" for name in ("mnist_cnn", "mnist_vit", "langid_gru"))
ONE = Settings(threads=1)
MLP = """(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8] a, float[8,3] B> {
  h = MatMul(x, A) b = Add(h, a) r = Relu(b) y = MatMul(r, B) }"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.validate.profile.SESSIONS", 2)


def profiled(*models: object, settings: Settings = ONE) -> Profile:
    graphs = [load(m) for m in models]
    feeds = random_feeds(graphs[0], Binding(running_shapes(graphs[0], 0)), 0)
    return profile(graphs, feeds, settings, seconds=0.2)


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """With a name for every node: its output's, in capitals."""
    for node in model.graph.node:
        node.name = node.output[0].upper()
    return model


def by_node(rows: tuple[NodeRow, ...]) -> dict[str, NodeRow]:
    return {r.node: r for r in rows}


# the model, and a node with those that run together with it, itself included
FUSED = [
    ("MatMul, Add and Relu", MLP, "R", "MatMul+Add+Relu"),
    ("Conv, Add and Relu", """(float[N,4,9,9] x) => (float[N,8,9,9] y) <float[8,4,3,3] W, float[8,4,1,1] V> {
        a = Conv<pads=[1,1,1,1]>(x, W) b = Conv(x, V) s = Add(a, b) y = Relu(s) }""", "A", "Conv+Add+Relu"),
    ("Conv and BatchNormalization", """(float[N,4,9,9] x) => (float[N,8,9,9] y)
        <float[8,4,1,1] W, float[8] s, float[8] b, float[8] m, float[8] v_pos> {
        c = Conv(x, W) y = BatchNormalization(c, s, b, m, v_pos) }""", "C", "Conv+BatchNormalization"),
    ("a product with its scale", """(float[N,4,4] x) => (float[N,4,4] y) {
        k = Constant<value=float {0.5}>() s = Mul(x, k) t = Transpose<perm=[0,2,1]>(x) y = MatMul(s, t) }""",
        "Y", "Mul+Transpose+MatMul"),
    ("a folded weight", """(float[N,4] x) => (float[N,8] y) <float[8,4] A> {
        t = Transpose<perm=[1,0]>(A) y = MatMul(x, t) }""", "Y", "MatMul"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "node", "want"), [f[1:] for f in FUSED], ids=[f[0] for f in FUSED])
def test_fused_kernels_are_told_by_their_nodes(text: str, node: str, want: str) -> None:
    model = named(build(text))
    found = profiled(model, model)
    row = by_node(found.nodes[0])[node]
    assert want in [k.rpartition(" = ")[2] for k in row.before], row
    assert all(r.before == r.after for r in found.nodes[0])
    check_complete(found, 1)


def check_complete(found: Profile, other: int) -> None:
    """Rows and operators hold every kernel once: their times and counts add up."""
    counts = [sum(r.kernels[k] for r in found.operators) for k in (0, other)]
    rows = found.nodes[other - 1]
    assert counts == [sum(len(r.before) for r in rows), sum(len(r.after) for r in rows)]
    for k in (0, other):
        assert found.total_ms[k] == pytest.approx(sum(r.ms[k] for r in found.operators))
    assert len({r.node for r in rows}) == len(rows)


@pytest.mark.parametrize("model", [CNN, VIT, GRU], ids=lambda m: m.stem)
@pytest.mark.parametrize("options", [{"ratio": 0.5, "round_to": 8}, {"ratio": 0.5}, {"ratio": 0.3, "scope": "local"}])
def test_kernels_of_a_pruned_model_find_their_partners(model: Path, options: dict[str, object]) -> None:
    pruned = onnxprune.prune(model, check=False, **options).model
    found = profiled(model, pruned)
    check_complete(found, 1)
    heavy = ("Conv", "MatMul", "Gemm", "GRU")
    joined = [r for r in found.nodes[0] if r.before and r.after]
    alone = [r for r in found.nodes[0] if not (r.before and r.after)]
    assert sum(any(w in k for w in heavy for k in r.before) for r in joined) >= 3
    assert not any(w in k for w in heavy for r in alone for k in (*r.before, *r.after)), alone
    original = {n.name for n in load(model).nodes}
    assert all(r.node in original for r in joined)


def test_groups_stay_small() -> None:
    """Blocked kernels may do more than their name says; a chain of residual blocks must not become one group."""
    pruned = onnxprune.prune(CNN, ratio=0.5, check=False).model
    (rows,) = profiled(CNN, pruned).nodes
    assert max(len(r.before) for r in rows) <= 3
    assert sum("Conv" in r.node for r in rows) == sum(n.op_type == "Conv" for n in load(CNN).nodes)


def test_every_optimization_level() -> None:
    for level in ("extended", "basic", "disabled"):
        found = profiled(CNN, CNN, settings=Settings(1, CPU, level))
        check_complete(found, 1)
        assert not any("nchwc" in r.operator for r in found.operators)
    plain = {n.op_type for n in load(CNN).nodes}
    assert {r.operator for r in found.operators} <= plain


def test_fusion_that_one_model_lacks_is_one_row() -> None:
    """The same product and bias, once with a Relu between that keeps them apart in the second model."""
    other = MLP.replace("b = Add(h, a)", "k = Relu(h) b = Add(k, a)")
    (rows,) = profiled(named(build(MLP)), named(build(other))).nodes
    row = by_node(rows)["R"]
    assert len(row.before) == 1 and row.before[0].endswith(" = MatMul+Add+Relu")
    assert row.after == ("MatMul", "Add", "Relu") and by_node(rows)["K"].before == ()


def test_what_got_faster_and_what_did_not() -> None:
    """One product cut to a sixteenth, the other left."""
    text = """(float[N,512] x) => (float[N,512] y) <float[512,{0}] A, float[{0},512] B, float[512,512] C> {{
      h = MatMul(x, A) r = Relu(h) g = MatMul(r, B) s = Relu(g) y = MatMul(s, C) }}"""
    graphs = [load(named(build(text.format(n)))) for n in (2048, 128)]
    x = np.random.default_rng(0).standard_normal((32, 512)).astype(np.float32)
    found = profile(graphs, {"x": x}, ONE, seconds=1)
    rows = by_node(found.nodes[0])
    assert rows["H"].after_ms < rows["H"].before_ms / 3 and rows["H"].saved_ms > 0
    assert rows["G"].saved_ms > rows["Y"].saved_ms and rows["H"].saved_ms > rows["Y"].saved_ms
    low, high = rows["H"].range_ms
    assert low <= rows["H"].saved_ms <= high and rows["H"].verdict == ("faster" if low > 0 else "no difference shown")
    assert [r.saved_ms for r in found.nodes[0]] == sorted((r.saved_ms for r in found.nodes[0]), reverse=True)


BRANCHES = """(float[4,4] x, bool c) => (float[4,4] y) {
  y = If(c) <then_branch = yes () => (float[4,4] t) { a = Exp(x) t = Relu(a) },
             else_branch = no () => (float[4,4] e) { b = Neg(x) e = Tanh(b) }> }"""


def test_kernels_inside_a_branch() -> None:
    """The body's kernels are rows of their own; those of the branch that is not taken do not run."""
    model = build(BRANCHES)
    graph = load(model)
    x = np.ones((4, 4), np.float32)
    found = profile([graph, graph], {"x": x, "c": np.array(True)}, ONE, seconds=0.1)
    assert {"If", "Exp", "Relu"} <= {r.operator for r in found.operators}
    assert not {"Neg", "Tanh"} & {r.operator for r in found.operators}
    assert all(r.before == r.after for r in found.nodes[0])


def test_model_functions_are_looked_into() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
      agraph (float[N,4] x) => (float[N,4] y) { y = my.twice(x) }
      <domain: "my", opset_import: ["" : 17]> twice (a) => (b) { c = Exp(a) b = Tanh(c) }""")
    found = profiled(model, model)
    assert {r.operator for r in found.operators} == {"Exp", "Tanh"}


def test_three_models() -> None:
    found = profiled(CNN, CNN, onnxprune.prune(CNN, ratio=0.5, round_to=8, check=False).model)
    assert len(found.nodes) == 2 and len(found.total_ms) == 3
    check_complete(found, 1)
    check_complete(found, 2)


def test_other_providers_are_refused() -> None:
    other = Settings(threads=1)
    object.__setattr__(other, "provider", "CUDAExecutionProvider")
    with pytest.raises(InputError, match="profile needs provider CPU"):
        profiled(CNN, CNN, settings=other)


# which nodes are the same
def test_nodes_are_the_same_by_tensor_then_by_name() -> None:
    first = named(build(MLP))
    second = named(build(MLP))
    second.graph.node[0].output[0] = second.graph.node[1].input[0] = "other"  # H keeps its name
    second.graph.node[2].name = "renamed"  # r keeps its tensor
    assert partners(load(first), load(second)) == {0: 0, 1: 1, 2: 2, 3: 3}
    second.graph.node[0].name = ""
    assert partners(load(first), load(second)) == {1: 1, 2: 2, 3: 3}


def test_names_that_are_not_unique_say_nothing() -> None:
    def same(tensor: str) -> Graph:
        model = build(MLP.replace("h ", f"{tensor} ").replace("(h,", f"({tensor},"))
        for node in model.graph.node:
            node.name = "node"
        return load(model)

    assert partners(same("h"), same("k")) == {1: 1, 2: 2, 3: 3}


# the profiler's events
def event(name: str, ts: int, dur: int, cat: str = "Node") -> dict[str, object]:
    return {"cat": cat, "name": name, "ts": ts, "dur": dur}


def test_times_per_run_without_what_runs_inside() -> None:
    events = [
        event("session_initialization", 0, 90, "Session"),
        event("model_run", 100, 60, "Session"), event("model_run", 200, 60, "Session"),
        event("loop_kernel_time", 100, 50), event("a_kernel_time", 110, 10), event("a_kernel_time", 125, 5),
        event("b_kernel_time", 150, 9), event("loop_kernel_time", 200, 40), event("a_kernel_time", 205, 30),
        event("a_fence_before", 210, 3), {"cat": "Node", "name": "x", "ts": 0},
    ]  # fmt: skip
    found = run_times(reversed(events))
    assert {n: t.tolist() for n, t in found.items()} == {"loop": [35, 10], "a": [15, 30], "b": [9, 0], BETWEEN: [1, 20]}


def test_json_is_plain() -> None:
    import json

    found = profiled(CNN, CNN).to_dict()
    again = json.loads(json.dumps(found, allow_nan=False))
    assert set(again) == {"runs", "sessions", "total_ms", "operators", "nodes"}
    assert set(again["nodes"][0][0]) == {"node", "before", "after", "saved_ms", "range_ms", "verdict"}
