"""Every node test that the onnx package can generate: read, typed, prepared and written again. There their inputs and
outputs are the graph's, so nothing is free: what is looked for is a rule that does not fit its operator, and a model
that is not the one read. Between prunable neighbours (`tests/wrapped.py`) they are cut, and judged as all cuts are.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from onnxprune.graph import from_proto, outline
from onnxprune.inference import TypedGraph
from onnxprune.kinds import FLOATS_READ, says_sizes
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import PASSES, PREPARE
from onnxprune.reading import load
from onnxprune.sessions import Feeds, run
from tests.common import check_cut, feeds_for, plans, typed_model
from tests.oracles import check_by_reference, tries
from tests.wrapped import makeable, wrapped

CUT_BY_RUNTIME, CUT_BY_REFERENCE = 1190, 225  # tests that are cut at least, of 1,884 in onnx 1.23
PLANS = (1, 3)  # of each graph one: half of every dim, or random units


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the generators: divisions by zero, deprecated calls
        from onnx.backend.test.case.node import collect_testcases

        return [c for c in collect_testcases(None) if c.model is not None]


def test_rules_fit_every_node(cases: list[Any]) -> None:
    assert len(cases) > 1500
    wrong = []
    for case in cases:
        state = State(load(case.model))
        PassManager(parse(PREPARE, PASSES)).run(state)
        barriers = [s.barrier for s in state.typed.signatures if s.barrier]
        wrong += [f"{case.name}: {b.detail}" for b in barriers if b.code in ("rule-mismatch", "no-rule")]
    assert not [w for w in wrong if "ai.onnx.ml" not in w and "ai.onnx.preview" not in w]


def test_nothing_is_lost(cases: list[Any]) -> None:
    for case in cases:
        again = load(case.model).to_proto()
        assert outline(from_proto(again)) == outline(from_proto(case.model)), case.name
        onnx.checker.check_model(again)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of onnx's own implementation: overflows, divisions by zero
def test_between_prunable_neighbours(cases: list[Any]) -> None:
    """What is free is cut, and equals the masked original: in ONNX Runtime, or by onnx's own implementation."""
    found = Counter[str]()
    wrong = []
    for k, case in enumerate(cases):
        try:
            found[cut(case, PLANS[k % len(PLANS)])] += 1
        except Exception as error:
            wrong.append(f"{case.name}: {error}")
    assert not wrong
    assert found["ONNX Runtime"] >= CUT_BY_RUNTIME and found["reference"] >= CUT_BY_REFERENCE, found


def cut(case: Any, plan: int) -> str:
    """Cut one test by one plan; returns who judged it, or why it was not cut. Inputs are made by layers all together;
    where then nothing is free or runs, one after the other.
    """
    reason = "no input that a layer can make"
    for model in models(case):
        typed = typed_model(model)
        judge = running(typed, feeds_for(typed, 1)[0])
        if judge is None:
            reason = "it does not run, or gives no number"
        elif not typed.prunable:
            reason = "nothing is free"
        else:
            masks = list(plans(typed))[plan]
            pruned = check_cut(typed, masks, judge == "ONNX Runtime", tries=tries(model))
            if judge == "reference":
                check_by_reference(typed, masks, pruned)
            return judge
    return reason


def models(case: Any) -> Iterator[ModelProto]:
    inputs = makeable(case)
    for chosen in [inputs, *([k] for k in inputs if len(inputs) > 1)] if inputs else []:
        model = wrapped(case, chosen)
        if model is not None:
            onnx.checker.check_model(model)
            yield model


def running(typed: TypedGraph, feeds: Feeds) -> str | None:
    """Who runs a model, to finite numbers; None if nobody does."""
    model = typed.graph.to_proto()
    for name, runner in (("ONNX Runtime", _by_runtime), ("reference", _by_reference)):
        try:
            outputs = runner(model, feeds)
        except Exception:  # kernels that are missing, types that the reference does not know: the next may run it
            continue
        return name if all(np.isfinite(np.asarray(a, float)).all() for a in outputs) else None
    return None


def _by_runtime(model: ModelProto, feeds: Feeds) -> list[Any]:
    return list(run(model, feeds).values())


def _by_reference(model: ModelProto, feeds: Feeds) -> list[Any]:
    return list(ReferenceEvaluator(model).run(None, feeds))


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
