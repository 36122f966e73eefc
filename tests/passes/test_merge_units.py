"""merge-units: without data, a kept unit stands in for a removed one that is like it."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.graph import outline
from onnxprune.manager import PassManager, State, parse
from onnxprune.merging import merges
from onnxprune.passes import PASSES
from onnxprune.plan import Plan
from onnxprune.reading import load
from tests.common import build
from tests.test_recovery import error

NORMAL = "float[8] g, float[8] b, float[8] m, float[8] v_pos"
CONV = f"""(float[n,3,7,6] x) => (float[n,4,p,q] y) <float[8,3,3,3] A, {NORMAL}, float[4,8,3,3] B> {{
    h = Conv(x, A) s = BatchNormalization(h, g, b, m, v_pos) r = ACT(s) y = Conv<pads=[1,1,1,1]>(r, B) }}"""
DENSE = """(float[n,3,7,6] x) => (float[n,4] y) <float[8,3,3,3] A, float[8] b, float[32,4] B, int64[2] shape> {
    h = Conv(x, A, b) r = ACT(h) p = AveragePool<kernel_shape=[5,1], strides=[1,1]>(r) f = Flatten(p)
    y = Gemm(f, B) }"""
UNITS = ("A", "b", "g", "m", "v_pos")
EXACT = 1e-5  # of float32


def state(text: str, factor: float) -> State:
    """Units 4 to 7, which go, are `factor` times units 0 to 3."""
    model = build(text)
    for tensor in model.graph.initializer:
        if tensor.name in UNITS:
            array = np.frombuffer(tensor.raw_data, np.float32).reshape(tensor.dims).copy()
            array[4:] = array[:4] * (factor if tensor.name in ("b", "g" if "g" in text.split("{")[0] else "A") else 1)
            tensor.raw_data = array.tobytes()
    graph = load(model)
    made = State(graph)
    (dim,) = made.typed.prunable
    made.plan = Plan({dim.name: np.arange(8) < 4}, graph.fingerprint())
    return made


def run(made: State) -> State:
    PassManager(parse("prune,merge-units", PASSES), verify_each=True).run(made)
    return made


FEEDS = [{"x": np.random.default_rng(k).normal(size=(8, 3, 7, 6)).astype(np.float32)} for k in range(2)]


@pytest.mark.parametrize(
    "text", (CONV, DENSE.replace("[24,4]", "[32,4]").replace("[5,2]", "[5,1]")), ids=("conv", "flat")
)
@pytest.mark.parametrize(("activation", "factor"), (("Relu", 1.0), ("Relu", 2.5), ("Sigmoid", 1.0), ("Identity", 0.5)))
def test_copies_are_made_up_for_exactly(text: str, activation: str, factor: float) -> None:
    made = run(state(text.replace("ACT", activation), factor))
    (found,) = made.recoveries
    original = made.cuts[0].typed.graph
    assert outline(found.before) == outline(found.after) and [m.node for m in found.mended] == ["y"]
    assert error(original, found.before, FEEDS) > 0.1
    assert error(original, made.graph, FEEDS) < EXACT


def test_a_scale_does_not_pass_through_a_sigmoid() -> None:
    made = run(state(CONV.replace("ACT", "Sigmoid"), 20.0))
    (found,) = made.recoveries
    assert found.after is found.before and not found.mended


def test_an_opposite_is_not_alike() -> None:
    made = state(CONV.replace("ACT", "Relu"), -1.0)
    (dim,) = made.typed.prunable
    found = merges(made.typed, {dim.dim: np.arange(8) < 4})
    assert all(m.scale > 0 and m.stays != m.gone - 4 for m in found.get(dim.dim, []))


def test_without_a_cut_there_is_nothing_to_do() -> None:
    made = state(CONV.replace("ACT", "Relu"), 1.0)
    PassManager(parse("merge-units", PASSES)).run(made)
    assert not made.recoveries
