"""Which dims may change their basis, that the graph stays the same, and that cutting in it is the best cut in rank."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import sessions
from onnxprune.budget import Budget
from onnxprune.calibration import Calibration
from onnxprune.dims import Dim, Prod, Sum
from onnxprune.errors import InputError
from onnxprune.feeds import random_feeds
from onnxprune.graph import Graph
from onnxprune.inference import TypedGraph, infer
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import PASSES, in_steps
from onnxprune.plan import Plan, choose_bases
from onnxprune.reading import load
from onnxprune.rotation import _directions, bind_bases, obstacles, outer_dims, places, rotated
from onnxprune.sessions import Feeds
from onnxprune.trace import trace
from onnxprune.unification import Space
from onnxprune.validate.surgery_check import TOLERANCE, surgery_check
from tests.common import build

STREAM = """(float[n,3,6,6] x) => (float[n,4,3,3] y) <float[8,3,3,3] a, float[8] b, float[12,8,1,1] c,
    float[8,12,3,3] d, float[4,8,3,3] e> { s = Conv <pads = [1,1,1,1]> (x, a, b) h = Conv (s, c) r = Relu (h)
    p = Conv <pads = [1,1,1,1]> (r, d) t = Add (s, p) y = Conv <strides = [2,2], pads = [1,1,1,1]> (t, e) }"""
PAIR = """(float[n,6] x) => (float[n,4] y) <float[6,8] a, float[8,4] b, float[8] v, float[1] w> {
    h = MatMul (x, a) %s y = MatMul (k, b) }"""
ATTENTION = """(float[n,5,6] x) => (float[n,5,6] y) <float[6,8] q, float[6,8] k, float[6,8] u, float[8,6] o,
    int64[4] into, int64[3] back> { a = MatMul (x, q) b = MatMul (x, k) c = MatMul (x, u)
    a2 = Reshape (a, into) b2 = Reshape (b, into) c2 = Reshape (c, into) a3 = Transpose <perm = [0,2,1,3]> (a2)
    b3 = Transpose <perm = [0,2,3,1]> (b2) c3 = Transpose <perm = [0,2,1,3]> (c2) s = MatMul (a3, b3)
    m = Softmax <axis = 3> (s) z = MatMul (m, c3) z2 = Transpose <perm = [0,2,1,3]> (z) z3 = Reshape (z2, back)
    y = MatMul (z3, o) }"""

LINEAR = {
    "alone": "k = Identity (h)",
    "a bias": "k = Add (h, v)",
    "a factor for all": "k = Mul (h, w)",
    "a sum of two": "k = Add (h, h)",
    "reshaped": "z = Unsqueeze <axes = [1]> (h) k = Squeeze <axes = [1]> (z)",
}
BARRED = {
    "an activation": ("k = Relu (h)", "Relu"),
    "a factor for each": ("k = Mul (h, v)", "Mul"),
    "the same added to all": ("k = Add (h, w)", "Add"),
    "a square": ("k = Mul (h, h)", "Mul"),
    "one over": ("k = Div (w, h)", "Div"),
    "a norm over it": ("m = ReduceMean <axes = [1]> (h) k = Sub (h, m)", "ReduceMean"),
    "a softmax": ("k = Softmax <axis = 1> (h)", "Softmax"),
}


def typed(text: str, opset: int = 11) -> TypedGraph:
    model = build(text, opset)
    for tensor in model.graph.initializer:
        if tensor.name in ("into", "back"):
            tensor.raw_data = np.array({"into": [0, 0, 2, 4], "back": [0, 0, 8]}[tensor.name], np.int64).tobytes()
    graph = load(model)
    return infer(graph, trace(graph))


def dim(graph: TypedGraph, size: int) -> Dim:
    return next(d.dim for d in graph.prunable if d.dim.size == size)


def turn(graph: TypedGraph, d: Dim, seed: int = 0) -> np.ndarray:
    """Random bases, one for each copy."""
    copies = int(np.prod([o.size for o in outer_dims(graph, d)], dtype=int))
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(copies, d.size, d.size)))[0]


@pytest.mark.parametrize("middle", LINEAR.values(), ids=LINEAR)
def test_linear_middles_allow_it(middle: str) -> None:
    graph = typed(PAIR % middle)
    d = dim(graph, 8)
    assert obstacles(graph, [d]) == {d: ""}
    same(graph, rotated(graph, {d: turn(graph, d)}))


@pytest.mark.parametrize(("middle", "named"), BARRED.values(), ids=BARRED)
def test_others_say_what_bars_it(middle: str, named: str) -> None:
    graph = typed(PAIR % middle)
    for d, reason in obstacles(graph, [i.dim for i in graph.prunable]).items():
        assert f"({named})" in reason, (d, reason)
    assert not graph.prunable or all(obstacles(graph, [i.dim for i in graph.prunable]).values())


def test_depthwise_channels_keep_their_basis() -> None:
    graph = typed(
        """(float[n,3,6,6] x) => (float[n,4,6,6] y) <float[8,3,1,1] a, float[8,1,3,3] b, float[4,8,1,1] c> {
        h = Conv (x, a) k = Conv <group = 8, pads = [1,1,1,1]> (h, b) y = Conv (k, c) }"""
    )
    d = dim(graph, 8)
    assert "not linear" in obstacles(graph, [d])[d]


def same(graph: TypedGraph, other: Graph) -> None:
    """Both compute the same, on several inputs."""
    feeds = [random_feeds(graph.graph, graph.facts.binding, k) for k in range(3)]
    assert other is not graph.graph
    assert any(
        t.raw_data != graph.graph.tensors[n].raw_data for n, t in other.tensors.items() if n in graph.graph.tensors
    ) or set(other.tensors) - set(graph.graph.tensors)
    check = surgery_check(graph, {}, other, feeds, graph.graph)
    assert check.passed and check.max_rel_err < TOLERANCE / 10


def test_a_residual_stream_with_padded_kernels() -> None:
    graph = typed(STREAM)
    free = obstacles(graph, [d.dim for d in graph.prunable])
    assert {d.size: bool(reason) for d, reason in free.items()} == {8: False, 12: True}
    d = dim(graph, 8)
    same(graph, rotated(graph, {d: turn(graph, d)}))


def test_head_channels_have_a_basis_for_each_head() -> None:
    """Queries and keys turn together, values on their own."""
    graph = typed(ATTENTION)
    channels = [d.dim for d in graph.prunable if d.dim.size == 4]
    assert len(channels) == 2 and not any(obstacles(graph, channels).values())
    assert [[o.size for o in outer_dims(graph, d)] for d in channels] == [[2], [2]]
    same(graph, rotated(graph, {d: turn(graph, d, k) for k, d in enumerate(channels)}))


def test_shared_constants_are_turned_for_the_use_that_needs_it() -> None:
    """One vector is the bias of a linear product and of one with an activation behind it."""
    graph = typed(
        """(float[n,6] x) => (float[n,4] y) <float[6,8] a, float[8] v, float[8,8] b, float[8,4] c> {
        h = Gemm (x, a, v) k = Gemm (h, b, v) r = Relu (k) y = MatMul (r, c) }"""
    )
    (d,) = [d for d, reason in obstacles(graph, [i.dim for i in graph.prunable]).items() if not reason]
    made = rotated(graph, {d: turn(graph, d)})
    same(graph, made)
    assert made.tensors["v"] == graph.graph.tensors["v"] and "v.rotated" in made.tensors


def test_places_of_sums_and_products() -> None:
    space = Space()
    d, heads = space.dim(2), space.dim(3)
    expr = Sum((space.dim(1), Prod((heads, d, space.dim(2))), d))
    first, second = places(expr, d)
    assert first.units.tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]], [[9, 10], [11, 12]]] and first.outer == (heads,)
    assert second.units.tolist() == [[[13], [14]]] and second.outer == ()


def calibrated(text: str, count: int = 8) -> tuple[Calibration, list[Feeds]]:
    """Inputs that lie near a plane, so that few directions of the stream matter."""
    graph = typed(text)
    rng = np.random.default_rng(1)
    plane = rng.normal(size=(2, 6))
    feeds: list[Feeds] = [
        {"x": (rng.normal(size=(32, 2)) @ plane + 0.01 * rng.normal(size=(32, 6))).astype(np.float32)}
        for _ in range(count)
    ]
    return Calibration(graph, feeds, 32 * count), feeds


def test_the_first_directions_are_the_best_rank() -> None:
    """Keeping k rows of the basis loses what the best rank-k approximation of the readers' outputs loses."""
    calibration, feeds = calibrated(PAIR % "k = Identity (h)")
    graph = calibration.typed.graph
    (found,) = choose_bases(calibration.typed, None, calibration).values()
    h = np.concatenate([f["x"] for f in feeds]) @ graph.array("a")
    y = h @ graph.array("b")
    y = y - y.mean(0)
    values = np.linalg.svd(y)[1] ** 2
    for k in (1, 2, 3):
        kept = h @ found[0, :k].T
        kept = kept - kept.mean(0)
        lost = np.square(y - kept @ np.linalg.lstsq(kept, y, rcond=None)[0]).sum()
        assert lost == pytest.approx(values[k:].sum(), rel=0.05, abs=1e-3 * float(values.sum()))


def test_a_covariance_that_rounding_made_indefinite_has_directions() -> None:
    covariance = np.diag([1.0, 0.5, -1e-4, 0.0])
    found = _directions(covariance, np.eye(4))
    np.testing.assert_allclose(found @ found.T, np.eye(4), atol=1e-9)


def test_a_plan_brings_its_bases_along() -> None:
    calibration, feeds = calibrated(PAIR % "k = Identity (h)")
    graph = calibration.typed.graph
    state = State(graph, None, Budget(ratio=0.5), data=feeds, samples=256)
    PassManager(parse(in_steps(1, False, rotate=True), PASSES)).run(state)
    plan = Plan.from_json(state.done.to_json())
    again = State(graph, plan=plan)
    PassManager(parse(in_steps(1, False, rotate=True), PASSES)).run(again)
    assert plan.bases and again.graph.to_proto() == state.graph.to_proto()
    x = feeds[0]
    want, got = (sessions.run(g.to_proto(), x)["y"] for g in (graph, again.graph))
    assert np.square(want - got).sum() < 0.01 * np.square(want).sum()  # the plane holds all but noise


def test_bases_of_another_model_are_refused() -> None:
    graph = typed(PAIR % "k = Identity (h)")
    with pytest.raises(InputError, match="made for another file"):
        bind_bases({"nobody:0": np.eye(8)[None]}, graph)
    with pytest.raises(InputError, match="made for another file"):
        bind_bases({graph.prunable[0].name: np.eye(7)[None]}, graph)
