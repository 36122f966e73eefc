"""Input sizes are found by running: what fits is told apart from what the inputs say, and both sizes are checked."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

import onnxprune
from onnxprune import sizing
from onnxprune.data import fitting
from onnxprune.errors import InputError
from onnxprune.feeds import Binding, random_feeds
from onnxprune.graph import Graph
from onnxprune.reading import load
from onnxprune.sessions import Feeds, run
from onnxprune.sizing import bindings, pair_if_it_runs, running_pair
from tests.common import build

MLP = "<float[8,6] A, float[6,5] B> { h = MatMul(x, A) r = Relu(h) y = MatMul(r, B) }"
PAST = "<float[8,6] A, float[6,8] B> { k = MatMul(x, A) v = MatMul(k, B) u = Unsqueeze(v, one)"
# title: model, the input that tells, its first shape, its second
CASES: dict[str, tuple[str, str, tuple[int, ...], tuple[int, ...]]] = {
    "all free": (f"(float[N,L,8] x) => (float[N,L,5] y) {MLP}", "x", (2, 11, 8), (3, 171, 8)),
    "one sample at a time": (
        "(float[N,L,8] x) => (float[L,5] y) <float[8,6] A, float[6,5] B, int64[1] first = {0}>"
        "{ z = Squeeze(x, first) h = MatMul(z, A) r = Relu(h) y = MatMul(r, B) }",
        "x", (1, 11, 8), (1, 171, 8),
    ),
    "multiples of 16": (
        "(float[N,L,8] x) => (float[N,P,5] y) <float[128,6] A, float[6,5] B, int64[3] s = {0,-1,128}>"
        "{ z = Reshape(x, s) h = MatMul(z, A) r = Relu(h) y = MatMul(r, B) }",
        "x", (2, 16, 8), (3, 176, 8),
    ),
    "at least 300": (
        "(float[N,1,L] x) => (float[N,5,P] y) <float[6,1,300] A, float[5,6,1] B>"
        "{ h = Conv(x, A) r = Relu(h) y = Conv(r, B) }",
        "x", (2, 1, 512), (3, 1, 16512),
    ),
    "fits one length": (
        "(float[N,L,8] x) => (float[N,24,5] y) <float[24,8] c, float[8,6] A, float[6,5] B>"
        "{ z = Add(x, c) h = MatMul(z, A) r = Relu(h) y = MatMul(r, B) }",
        "x", (2, 24, 8), (3, 24, 8),
    ),
    "at most 8": (
        "(float[N,L,8] x) => (float[N,L,5] y) <float[8,8] c, float[8,6] A, float[6,5] B, int64[1] zero = {0}>"
        "{ n = Shape <start = 1, end = 2> (x) s = Slice(c, zero, n) z = Add(x, s) h = MatMul(z, A) r = Relu(h)"
        " y = MatMul(r, B) }",
        "x", (2, 8, 8), (3, 5, 8),
    ),
    "a mask as long as the past and the present": (
        f"(float[N,L,8] x, float[N,1,P,8] past, float[N,T] mask) => (float[N,1,T,8] y) {PAST}"
        " c = Concat <axis = 2> (past, u) w = Unsqueeze(mask, ends) y = Mul(c, w) }"
        .replace("float[6,8] B", "float[6,8] B, int64[1] one = {1}, int64[2] ends = {1,3}"),
        "mask", (2, 22), (3, 342),
    ),
    "a volume": (
        "(float[N,1,D,H,W] x) => (float[N,5] y) <float[6,1,1,1,1] A, float[6,5] B>"
        "{ h = Conv(x, A) r = Relu(h) m = GlobalAveragePool(r) f = Flatten(m) y = MatMul(f, B) }",
        "x", (2, 1, 64, 64, 64), (3, 1, 96, 96, 96),
    ),
    "no past": (
        f"(float[N,L,8] x, float[N,1,P,8] past, float[N,L] mask) => (float[N,1,T,8] y) {PAST}"
        " c = Concat <axis = 2> (past, u) w = Unsqueeze(mask, ends) y = Mul(c, w) }"
        .replace("float[6,8] B", "float[6,8] B, int64[1] one = {1}, int64[2] ends = {1,3}"),
        "past", (2, 1, 0, 8), (3, 1, 0, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("title", CASES)
def test_sizes_found(title: str) -> None:
    text, name, first, second = CASES[title]
    pair = running_pair(load(build(text)), 0)
    assert [b.shapes[name] for b in pair] == [first, second]


@pytest.mark.parametrize("title", CASES)
def test_pruned_at_both_sizes(title: str) -> None:
    """The result has what the original has at both sizes, and the surgery check saw both."""
    model = build(CASES[title][0])
    result = onnxprune.prune(model, ratio=0.5, scope="local")
    assert result.report.params.after < result.report.params.before
    for binding in running_pair(load(model), 0):
        feeds = random_feeds(load(model), binding, 0)
        before, after = run(model, feeds), run(result.model, feeds)
        assert {n: a.shape for n, a in before.items()} == {n: a.shape for n, a in after.items()}


def test_sizes_named_by_sums() -> None:
    """Exporters write such names; the parser of ONNX text does not take them."""
    model = named(build(CASES["a mask as long as the past and the present"][0]), "T", "P + L")
    assert next(bindings(load(model)))[0].shapes["mask"] == (2, 22)


def test_stand_ins_are_no_names() -> None:
    """Paddle writes `?` for every axis that it leaves free: the height here is fixed, the width is not."""
    text = """(float[N,3,H,W] x) => (float[N,5,1,P] y) <float[6,3,16,1] A, float[5,6,1,1] B, int64[4] s = {0,5,1,-1}> {
        h = Conv(x, A) r = Relu(h) z = Conv(r, B) a = Squeeze(z, k) y = Reshape(z, s) }"""
    model = build(text.replace("int64[4] s", "int64[1] k = {2}, int64[4] s").replace("16,1]", "48,1]"))
    first, second = running_pair(load(named(named(model, "H", "?"), "W", "?")), 0)
    assert (first.shapes["x"], second.shapes["x"]) == ((2, 3, 48, 48), (3, 3, 48, 72))


def test_small_images_are_tried_before_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "(float[N,3,H,W] x) => (float[N,3,48,48] y) <float[3,48,48] A> { y = Add(x, A) }"
    seen: list[int] = []

    def feeds(graph: Graph, binding: Binding, seed: int) -> Feeds:
        seen.append(max(binding.shapes["x"]))
        return random_feeds(graph, binding, seed)

    monkeypatch.setattr(sizing, "random_feeds", feeds)
    running_pair(load(build(text)), 0)
    assert max(seen) <= 48 + sizing.FAR_IMAGE[0]


def named(model: ModelProto, old: str, new: str) -> ModelProto:
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == old:
                dim.dim_param = new
    return model


def test_sizes_of_data_stay_first() -> None:
    graph = load(build(CASES["multiples of 16"][0]))
    first, second = running_pair(graph, 0, {"x": (4, 80, 8)})
    assert (first.shapes["x"], second.shapes["x"]) == ((4, 80, 8), (5, 240, 8))


@pytest.mark.parametrize(("stride", "length"), [(16, 100), (320, 2000)])
def test_lengths_that_are_alike_once_they_are_cut_down(stride: int, length: int) -> None:
    """11 and 13 are one step of 16 each, 11 and 171 one frame of sound: what is static there need not be."""
    text = """(float[N,1,L] x) => (float[N,P,5] y)
        <float[6,1,16] A, float[6,5] B, int64 o = {0}, int64 w = {2}, int64[1] c = {6}, int64[1] a = {0}> {
        h = Conv <strides = [STRIDE], auto_pad = "SAME_UPPER"> (x, A) s = Shape(h) n = Gather(s, o) l = Gather(s, w)
        p = Unsqueeze(n, a) q = Unsqueeze(l, a) e = Concat <axis = 0> (p, q, c)
        t = Transpose <perm = [0,2,1]> (h) z = Reshape(t, e) y = MatMul(z, B) }"""
    model = build(text.replace("STRIDE", str(stride)))
    result = onnxprune.prune(model, ratio=0.5, scope="local")
    feeds = random_feeds(load(model), Binding({"x": (4, 1, length)}), 0)
    assert run(result.model, feeds)["y"].shape == (4, 7, 5)


def test_a_mask_of_floats_beside_tokens_is_no_signal() -> None:
    """Signals are tried far longer than texts."""
    text = f"(float[N,L,8] x, float[N,M] mask) => (float[N,L,5] y, float[N,M] z) {MLP}"
    graph = load(build(text.replace("}", "z = Neg(mask) }")))
    assert running_pair(graph, 0)[1].shapes == {"x": (3, 171, 8), "mask": (3, 171)}


def test_sizes_with_outputs_that_are_numbers_come_first() -> None:
    """A length less 11 is divided by: at the first length of the table nothing is finite."""
    text = f"(float[N,L,8] x) => (float[N,L,5] y) {MLP}".replace(
        "y = MatMul(r, B)",
        "g = MatMul(r, B) s = Shape(x) l = Gather(s, o) m = Sub(l, e) d = Cast <to = 1> (m) y = Div(g, d)",
    )
    graph = load(build(text.replace("float[6,5] B", "float[6,5] B, int64 o = {1}, int64 e = {11}")))
    assert running_pair(graph, 0)[0].shapes["x"] == (2, 16, 8)


def test_nothing_runs() -> None:
    graph = load(build("(float[N,3] x) => (float[N,24] y) <float[24] A> { y = Add(x, A) }"))
    assert pair_if_it_runs(graph) is None
    with pytest.raises(InputError, match=r"does not (run|load)"):
        running_pair(graph, 0)


def test_data_is_fed_one_by_one_where_the_model_takes_no_more() -> None:
    model = build(CASES["one sample at a time"][0])
    data = {"x": np.random.default_rng(0).normal(size=(6, 11, 8)).astype(np.float32)}
    assert [f["x"].shape for f in fitting(load(model), data)] == [(1, 11, 8)] * 6
    result = onnxprune.prune(model, ratio=0.5, data=data)
    assert result.report.params.after < result.report.params.before
    assert [f["x"].shape for f in fitting(load(build(CASES["all free"][0])), data)] == [(6, 11, 8)]
