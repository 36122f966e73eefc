"""rotate-units: other constants, the same nodes and outputs; nothing without data, nothing twice."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import InputError
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import PASSES
from onnxprune.reading import load
from tests.common import build
from tests.passes.cases import lines, same_outputs

TEXT = """(float[n,6] x) => (float[n,4] y) <float[6,8] a, float[8] v, float[8,4] b> {
    h = MatMul (x, a) k = Add (h, v) y = MatMul (k, b) }"""
ROTATE = parse("rotate-units", PASSES)


def test_the_constants_change_and_the_outputs_do_not() -> None:
    model = build(TEXT)
    data = [{"x": np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)} for _ in range(4)]
    state = State(load(model), data=data, samples=128)
    assert PassManager(ROTATE).run(state)[0].modified
    assert lines(state.graph) == lines(load(model))
    assert all(not np.allclose(state.graph.array(n), load(model).array(n)) for n in "avb")
    same_outputs(model, state.graph.to_proto())
    assert not PassManager(ROTATE).run(state)[0].modified


def test_it_needs_data() -> None:
    with pytest.raises(InputError, match="needs calibration data"):
        PassManager(ROTATE).run(State(load(build(TEXT))))
