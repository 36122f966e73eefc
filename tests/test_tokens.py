"""Which tokens count: a mask is believed only if the model does not look at what it hides."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import sessions
from onnxprune.budget import Budget
from onnxprune.calibration import Calibration
from onnxprune.graph import Graph
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import PASSES, in_steps
from onnxprune.reading import load
from onnxprune.sessions import Feeds
from onnxprune.sizing import running_pair
from onnxprune.tokens import counted, meant, token_mask
from tests.common import build

# embeddings, a hidden layer, and the mean over what the mask lets through
POOLED = """(int64[n,l] ids, int64[n,l] mask) => (float[n,4] y) <float[50,12] e, float[12,16] a, float[16,12] b,
    float[12,4] c, int64[1] two = {2}, int64[1] one = {1}> {
    x = Gather(e, ids) m = Cast<to = 1>(mask) w = Unsqueeze(m, two)
    h = MatMul(x, a) r = Relu(h) s = MatMul(r, b) t = Tanh(s) z = MatMul(t, c)
    k = Mul(z, w) p = ReduceSum<keepdims = 0>(k, one) y = Identity(p) }"""
SEEN = POOLED.replace("k = Mul(z, w)", "g = Sigmoid(w) k = Mul(z, g)")


def feeds(count: int, hidden: float = 0.75, seed: int = 0) -> list[Feeds]:
    """Sentences of 16 tokens, the last of which are masked; there, other words are used than elsewhere."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((32, 16), np.int64)
    mask[:, : int(16 * (1 - hidden))] = 1
    made = []
    for _ in range(count):
        ids = np.where(mask == 1, rng.integers(1, 25, mask.shape), rng.integers(25, 50, mask.shape))
        made.append({"ids": ids, "mask": mask})
    return made


def test_a_mask_is_found_by_what_it_hides() -> None:
    assert token_mask(load(build(POOLED)), feeds(1)) == "mask"


@pytest.mark.parametrize(
    "feed",
    (
        {**feeds(1)[0], "mask": np.ones((32, 16), np.int64)},  # hides nothing
        {**feeds(1)[0], "mask": feeds(1)[0]["mask"] * 2},  # is no mask
        {**feeds(1)[0], "mask": np.roll(feeds(1)[0]["mask"], 1, 0) * (np.arange(32) > 0)[:, None]},  # an empty sentence
    ),
    ids=("whole", "numbers", "empty"),
)
def test_other_inputs_are_no_masks(feed: Feeds) -> None:
    assert token_mask(load(build(POOLED)), [feed]) == ""


def test_a_mask_that_lets_something_through_is_none() -> None:
    assert token_mask(load(build(SEEN)), feeds(1)) == ""


def test_positions_that_count_are_told_by_shape() -> None:
    mask = np.array([[True, False, True], [True, True, False]])
    assert counted(mask, (2, 3, 8), 3) is not None and counted(mask, (2, 4, 8), 4) is None
    flat = counted(mask, (6, 8), 1)
    assert flat is not None and flat[:, 0].tolist() == mask.reshape(-1).tolist()
    assert meant(np.arange(6).reshape(2, 3), mask).tolist() == [0, 2, 3, 4]
    assert meant(np.arange(8).reshape(2, 4), mask).shape == (2, 4)


def test_statistics_are_those_of_the_tokens_that_count() -> None:
    graph = load(build(POOLED))
    pair = running_pair(graph, 0, {n: a.shape for n, a in feeds(1)[0].items()})
    state = State(graph, pair)
    calibration = Calibration(state.typed, feeds(5), 160)
    first = next(x for x in calibration.linears.values() if x.weight == "a")
    gram = calibration.grams([first])[first.key]
    rows = np.concatenate([graph.array("e")[f["ids"][:, :4]].reshape(-1, 12) for f in feeds(5)])
    np.testing.assert_allclose(gram.covariance[0], np.cov(rows.T, bias=True), atol=1e-5)
    np.testing.assert_allclose(gram.mean[0], rows.mean(0), atol=1e-6)


def test_refits_serve_the_tokens_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a quarter of the tokens that count, a refit to all of them is worse."""
    graph, fresh = load(build(POOLED)), feeds(4, seed=9)

    def error() -> float:
        state = State(graph, running_pair(graph, 0, {n: a.shape for n, a in fresh[0].items()}), Budget(macs=0.6))
        state.data, state.samples = feeds(8), 256
        PassManager(parse(in_steps(1, True), PASSES)).run(state)
        return distance(graph, state.graph, fresh)

    knowing = error()
    for module in ("calibration", "recovery", "guard"):
        monkeypatch.setattr(f"onnxprune.{module}.token_mask", lambda *given: "")
    assert knowing < 0.9 * error()


def distance(before: Graph, after: Graph, data: list[Feeds]) -> float:
    pairs = [tuple(sessions.run(g.to_proto(), f)["y"] for g in (before, after)) for f in data]
    return float(sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(a).sum() for a, _ in pairs))
