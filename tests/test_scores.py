"""Scores of queries and keys that lost channels come back as far as fewer channels can give them."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.budget import Budget
from onnxprune.graph import Graph
from onnxprune.reading import load
from onnxprune.scores import alternate
from tests.common import build
from tests.test_recovery import error, run

SEPARATE = """(float[n,5,6] x) => (float[n,5,6] y) <float[6,8] wq, float[6,8] wk, float[6,8] wv, float[8,6] wo,
    float[8] bq, int64[4] heads, int64[3] flat, float s_pos> {
    q0 = MatMul(x, wq) q1 = Add(q0, bq) k1 = MatMul(x, wk) v1 = MatMul(x, wv)
    q2 = Reshape(q1, heads) k2 = Reshape(k1, heads) v2 = Reshape(v1, heads)
    q3 = Transpose<perm=[0,2,1,3]>(q2) q = Mul(q3, s_pos) k = Transpose<perm=[0,2,3,1]>(k2)
    v = Transpose<perm=[0,2,1,3]>(v2)
    z = MatMul(q, k) p = Softmax(z) a = MatMul(p, v) b = Transpose<perm=[0,2,1,3]>(a) c = Reshape(b, flat)
    y = MatMul(c, wo) }"""
FUSED = """(float[n,5,6] x) => (float[n,5,6] y) <float[6,24] w, float[24] bq, float[8,6] wo, int64[5] heads,
    int64[3] flat, int64 i0, int64 i1, int64 i2> {
    h = MatMul(x, w) g = Add(h, bq) r = Reshape(g, heads) t = Transpose<perm=[2,0,3,1,4]>(r)
    q = Gather(t, i0) k3 = Gather(t, i1) v = Gather(t, i2) k = Transpose<perm=[0,1,3,2]>(k3)
    z = MatMul(q, k) p = Softmax(z) a = MatMul(p, v) b = Transpose<perm=[0,2,1,3]>(a) c = Reshape(b, flat)
    y = MatMul(c, wo) }"""
ROTATED = SEPARATE.replace("q = Mul(q3, s_pos)", "qs = Mul(q3, s_pos) q = Mul(qs, angles)").replace(
    "float s_pos", "float s_pos, float[5,4] angles"
)
VALUES = {"heads": [0, 5, 2, 4], "flat": [0, 5, 8], "i0": 0, "i1": 1, "i2": 2}


def attention(text: str, redundant: bool = False) -> Graph:
    """Two heads of four channels; where they are `redundant`, the last two query channels repeat the first two."""
    model = build(text)
    for tensor in model.graph.initializer:
        if tensor.name in VALUES:
            value = [0, 5, 3, 2, 4] if tensor.name == "heads" and "w, float[24]" in text else VALUES[tensor.name]
            tensor.raw_data = np.array(value, np.int64).tobytes()
            continue
        array = np.frombuffer(tensor.raw_data, np.float32).reshape(tensor.dims).copy()
        if redundant and tensor.name in ("wq", "bq"):
            heads = array.reshape(*array.shape[:-1], 2, 4)
            heads[..., 2:] = heads[..., :2]
        tensor.raw_data = (0.5 * array).tobytes()
    return load(model)


def feeds(count: int) -> list[dict[str, np.ndarray]]:
    return [{"x": np.random.default_rng(k).normal(size=(32, 5, 6)).astype(np.float32)} for k in range(count)]


def test_scores_that_fewer_channels_can_give_come_back() -> None:
    graph = attention(SEPARATE, redundant=True)
    state = run(graph, feeds(8), Budget(ratio=0.5, criterion="l2", include=("wq",), exclude=("kind:heads",)))
    (found,) = state.recoveries
    assert state.graph.array("wq").shape == (6, 4) and not found.left
    assert error(graph, found.before, feeds(2)) > 0.05
    assert error(graph, state.graph, feeds(2)) < 5e-3


@pytest.mark.parametrize("text", (SEPARATE, FUSED), ids=("separate", "fused"))
def test_scores_come_closer(text: str) -> None:
    graph = attention(text)
    include = ("wq",) if text is SEPARATE else ("kind:head-channels",)
    state = run(graph, feeds(8), Budget(ratio=0.25, criterion="l2", include=include, exclude=("kind:heads",)))
    (found,) = state.recoveries
    assert not found.left and state.graph is not found.before
    assert error(graph, state.graph, feeds(2)) < 0.8 * error(graph, found.before, feeds(2))


def test_what_does_more_than_move_columns_is_left_alone() -> None:
    graph = attention(ROTATED)
    state = run(graph, feeds(8), Budget(ratio=0.25, criterion="l2", include=("wq",), exclude=("kind:heads",)))
    assert ("z", "both sides are activations") in state.recoveries[0].left


def test_solving_in_turn_comes_near_the_best_of_that_rank() -> None:
    """The best is cut off the singular values of S_q^(1/2) S_k^(1/2)."""
    rng = np.random.default_rng(0)
    queries, keys = (np.stack([m @ m.T for m in rng.normal(size=(3, 6, 9))]) for _ in range(2))
    kept = np.array([1, 1, 0, 1, 0, 1], bool)
    a, b = alternate(queries, keys, kept)
    roots = [np.stack([_root(m) for m in s]) for s in (queries, keys)]
    product = roots[0] @ roots[1]
    made = np.linalg.norm(product - roots[0] @ a.swapaxes(1, 2) @ b @ roots[1], axis=(1, 2))
    select = np.diag(kept.astype(float))
    selected = np.linalg.norm(product - roots[0] @ select @ roots[1], axis=(1, 2))
    best = np.sqrt(np.square(np.linalg.svd(product, compute_uv=False)[:, kept.sum() :]).sum(1))
    assert (made >= best - 1e-6).all() and (made <= 1.2 * best).all() and (selected > 1.5 * best).all()


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)
