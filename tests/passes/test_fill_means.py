"""fill-means: with data from outputs, without from BatchNormalizations; exact where removed units are constant."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxprune.budget import Budget
from onnxprune.errors import InputError
from onnxprune.graph import Graph
from onnxprune.manager import PassManager, State, parse
from onnxprune.means import channel_means, quantiles
from onnxprune.passes import PASSES
from onnxprune.reading import load
from tests.common import build, typed_model
from tests.test_recovery import error

NORMAL = "float[8] g, float[8] b, float[8] m, float[8] v_pos"
CONV = f"""(float[n,3,7,6] x) => (float[n,4,p,q] y) <float[8,3,3,3] A, {NORMAL}, float[4,8,3,3] B> {{
    h = Conv(x, A) s = BatchNormalization(h, g, b, m, v_pos) r = Relu(s) y = Conv<PADS>(r, B) }}"""
DENSE = f"""(float[n,6] x) => (float[n,4] y) <float[6,8] A, {NORMAL}, float[8,4] B> {{
    h = MatMul(x, A) s = BatchNormalization(h, g, b, m, v_pos) r = Relu(s) y = MatMul(r, B) }}"""
FILL = "prune,fill-means"
SAMPLING = 4e-3  # 256 quantiles stand for a distribution


def state(text: str, constant: bool = False, data: list[dict[str, np.ndarray]] | None = None) -> State:
    """Half of the units are to go; with `constant`, those are the ones that hold a constant."""
    model = build(text)
    for tensor in model.graph.initializer:
        array = np.frombuffer(tensor.raw_data, np.float32).copy()
        if tensor.name == "g" and constant:
            array[:4] = 0
        if tensor.name == "b":
            array[:4] = 1.5
        tensor.raw_data = array.tobytes()
    return State(load(model), None, Budget(ratio=0.5, criterion="bn-scale"), data=data, samples=32)


def run(made: State, pipeline: str = FILL) -> Graph:
    PassManager(parse(pipeline, PASSES), verify_each=True).run(made)
    return made.graph


def feeds(shape: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    return [{"x": np.random.default_rng(k).normal(size=(16, *shape)).astype(np.float32)} for k in range(4)]


@pytest.mark.parametrize("with_data", (False, True))
@pytest.mark.parametrize(
    ("text", "shape"), ((CONV.replace("PADS", "pads=[0,0,0,0]"), (3, 7, 6)), (DENSE, (6,))), ids=("conv", "dense")
)
def test_constant_units_are_made_up_for_exactly(text: str, shape: tuple[int, ...], with_data: bool) -> None:
    data = feeds(shape)
    made = state(text, constant=True, data=data if with_data else None)
    before = made.graph
    graph = run(made)
    (found,) = made.recoveries
    assert error(before, found.before, data) > 0.1
    assert error(before, graph, data) < 1e-5
    assert [m.node for m in found.mended] == ["y"]


def test_padding_counts_for_the_share_of_positions_that_see_the_image() -> None:
    """The mean of the outputs is right, data or not; their edges cannot be."""
    made = state(CONV.replace("PADS", "pads=[1,1,1,1], strides=[2,2]"), constant=True)
    before, data = made.graph, feeds((3, 7, 6))
    graph = run(made)
    from onnxprune import sessions

    for feed in data:
        want, got = (sessions.run(g.to_proto(), feed)["y"].mean((0, 2, 3)) for g in (before, graph))
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_mean_of_a_rectified_gaussian() -> None:
    text = CONV.replace("PADS", "pads=[0,0,0,0]").replace("r = Relu(s)", "r = Relu(s) c = Sigmoid(s) z = Mul(s, c)")
    typed = typed_model(build(text))
    means = channel_means(typed)
    b, g = (typed.graph.array(n).astype(np.float64) for n in ("b", "g"))
    np.testing.assert_allclose(means["s"], b, atol=1e-6)
    density = np.exp(-np.square(b / g) / 2) / math.sqrt(2 * math.pi)
    share = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in b / np.abs(g)])
    np.testing.assert_allclose(means["r"], b * share + np.abs(g) * density, atol=SAMPLING)
    z = b[:, None] + np.abs(g)[:, None] * np.random.default_rng(0).normal(size=(1, 200_000))
    np.testing.assert_allclose(means["z"], (z / (1 + np.exp(-z))).mean(1), atol=3 * SAMPLING)
    assert "h" not in means and "y" not in means


def test_quantiles_are_standard() -> None:
    np.testing.assert_allclose([quantiles().mean(), quantiles().std()], [0, 1], atol=1e-6)


# what follows the BatchNormalization, and whether the means of `g` are still known
FOLLOWED = [
    ("g = GlobalAveragePool(s)", True),
    ("g = AveragePool<kernel_shape=[2,2]>(s)", True),
    ("g = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1>(s)", False),
    ("a = GlobalAveragePool(s) g = Flatten(a)", True),
    ("g = Flatten(s)", False),
    ("g = MaxPool<kernel_shape=[2,2]>(s)", False),
    ("g = Mul(s, vector)", True),
    ("g = Mul(s, image)", False),
    ("g = Add(s, h)", False),
    ("g = Add(s, s)", True),
    ("g = ReduceMean<keepdims=0>(s, axes)", False),
]


@pytest.mark.parametrize(("body", "known"), FOLLOWED, ids=[b for b, _ in FOLLOWED])
def test_how_far_the_means_are_known(body: str, known: bool) -> None:
    text = f"""(float[n,3,7,6] x) => (float y) <float[8,3,3,3] A, {NORMAL}, float[8,1,1] vector, float[8,5,4] image,
        int64[1] axes> {{ h = Conv(x, A) s = BatchNormalization(h, g0, b, m, v_pos) {body} y = ReduceSum(g) }}"""
    typed = typed_model(build(text.replace("float[8] g,", "float[8] g0,")))
    means = channel_means(typed)
    assert ("g" in means) == known
    if known and "vector" not in body:
        np.testing.assert_allclose(means["g"], typed.graph.array("b") * (2 if "Add" in body else 1), atol=1e-5)


def test_what_is_not_known_is_left_with_the_reason() -> None:
    text = DENSE.replace("s = BatchNormalization(h, g, b, m, v_pos)", "s = Add(h, b)")
    made = state(text)
    made.budget = Budget(ratio=0.5, criterion="l2")
    before = run(made, "prune")
    made = state(text)
    made.budget = Budget(ratio=0.5, criterion="l2")
    assert run(made).to_proto() == before.to_proto()
    assert [n for n, _ in made.recoveries[0].left] == ["y"] and "BatchNormalization" in made.recoveries[0].left[0][1]


def test_without_a_cut_there_is_nothing_to_do() -> None:
    made = state(DENSE)
    assert run(made, "fill-means") is made.graph and not made.recoveries


def test_other_recoveries_need_data() -> None:
    for name in ("match-statistics", "refit-least-squares"):
        with pytest.raises(InputError, match=f"{name} needs calibration data"):
            run(state(DENSE), f"prune,{name}")
