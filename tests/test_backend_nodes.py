"""Every node test that the onnx package can generate: read, typed, prepared and written again. Their inputs and outputs
are the graph's, so nothing in them is free; what is looked for is a rule that does not fit its operator, and a model
that is not the one read. And whether floats say sizes to onnx's inference where we think that they do not.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper, shape_inference

from onnxprune.graph import from_proto, outline
from onnxprune.kinds import FLOATS_READ, says_sizes
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import PASSES, PREPARE
from onnxprune.reading import load


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the generators: divisions by zero, deprecated calls
        from onnx.backend.test.case.node import collect_testcases

        return [c for c in collect_testcases(None) if c.model is not None]


@pytest.fixture(scope="module")
def models(cases: list[Any]) -> list[tuple[str, ModelProto]]:
    return [(c.name, c.model) for c in cases]


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


def test_floats_say_sizes_where_we_look_at_them_and_nowhere_else(cases: list[Any]) -> None:
    """onnx's inference finds the same with the values that `says_sizes` lets through as with all of them; not without
    the floats that it lets through.
    """
    compared, needed = set[str](), set[str]()
    for case in cases:
        if len(case.model.graph.node) != 1 or case.model.graph.node[0].domain:
            continue
        (node,) = case.model.graph.node
        inputs = zip(case.model.graph.input, case.data_sets[0][0], strict=True)
        arrays = {v.name: np.asarray(a) for v, a in inputs if isinstance(a, (np.ndarray, np.generic))}
        values = {n: a for n, a in arrays.items() if a.dtype.kind in "iubf"}
        shown = {n: a for n, a in values.items() if says_sizes(node.op_type, a)}
        found = _inferred(case.model, shown)
        assert found == _inferred(case.model, values), case.name
        if found != _inferred(case.model, {n: a for n, a in shown.items() if a.dtype.kind != "f"}):
            needed.add(node.op_type)
        compared.add(node.op_type)
    assert len(compared) > 150 and needed == set(FLOATS_READ)


def _inferred(model: ModelProto, values: dict[str, Any]) -> dict[str, bytes] | None:
    (node,) = model.graph.node
    types = {v.name: v.type for v in model.graph.input}
    data = {n: numpy_helper.from_array(a) for n, a in values.items()}
    opsets = {o.domain: o.version for o in model.opset_import}
    schema = onnx.defs.get_schema(node.op_type, opsets[""], "")
    try:
        made = shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=model.opset_import)
    except Exception:
        return None
    return {n: kind.SerializeToString(deterministic=True) for n, kind in made.items()}
