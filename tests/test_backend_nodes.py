"""Every node test that the onnx package can generate: read, typed, prepared and written again. Their inputs and outputs
are the graph's, so nothing in them is free; what is looked for is a rule that does not fit its operator, and a model
that is not the one read.
"""

from __future__ import annotations

import warnings

import onnx
import pytest
from onnx import ModelProto

from onnxprune.graph import from_proto, outline
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import PASSES, PREPARE
from onnxprune.reading import load


@pytest.fixture(scope="module")
def models() -> list[tuple[str, ModelProto]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the generators: divisions by zero, deprecated calls
        from onnx.backend.test.case.node import collect_testcases

        return [(c.name, c.model) for c in collect_testcases(None) if c.model is not None]


def test_rules_fit_every_node(models: list[tuple[str, ModelProto]]) -> None:
    assert len(models) > 1500
    wrong = []
    for name, model in models:
        state = State(load(model))
        PassManager(parse(PREPARE, PASSES)).run(state)
        barriers = [s.barrier for s in state.typed.signatures if s.barrier]
        wrong += [f"{name}: {b.detail}" for b in barriers if b.code in ("rule-mismatch", "no-rule")]
    assert not [w for w in wrong if "ai.onnx.ml" not in w and "ai.onnx.preview" not in w]


def test_nothing_is_lost(models: list[tuple[str, ModelProto]]) -> None:
    for name, model in models:
        again = load(model).to_proto()
        assert outline(from_proto(again)) == outline(from_proto(model)), name
        onnx.checker.check_model(again)
