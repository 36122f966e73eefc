"""drop-layers: what goes past a layer computes what the whole graph computes with the layer switched off."""

from __future__ import annotations

from random import Random

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.data import DataLike
from onnxprune.errors import InputError
from onnxprune.inference import TypedGraph
from onnxprune.layers import Layer, find, without
from onnxprune.passes.drop_layers import drop
from onnxprune.plan import Plan
from onnxprune.sessions import run
from onnxprune.validate.surgery_check import SurgeryCheck, surgery_check
from tests.common import build, feeds_for, typed_model
from tests.layers.nets import branch, random_net, tokens
from tests.passes.cases import lines, passed

A, A_WEIGHTS = branch("ffn", "x", "a")
B, B_WEIGHTS = branch("ffn", "s", "b")
TWO = tokens(f"{A} s = Add (x, ad) {B} y = Add (s, bd)", f"{A_WEIGHTS}, {B_WEIGHTS}")


def dropped(typed: TypedGraph, layers: list[Layer], off: list[Layer] | None = None) -> SurgeryCheck:
    """The graph without `layers` against the one with `layers`, or others, switched `off`."""
    made = drop(typed.graph, layers).to_proto()
    if not any(n.domain or n.op_type.startswith("Simplified") for n in made.graph.node):  # which the checker lacks
        onnx.checker.check_model(made)
    reference = without(typed.graph, layers if off is None else off, typed.facts.dtypes)
    return surgery_check(typed, {}, made, feeds_for(typed), reference)


@pytest.mark.parametrize("seed", range(24))
def test_random_networks(seed: int) -> None:
    typed = typed_model(build(random_net(seed), seed=seed))
    found = list(find(typed))
    assert found
    rng = Random(seed)
    some = sorted(rng.sample(range(len(found)), (len(found) + 1) // 2))
    for layers in (*([x] for x in found), found, [found[k] for k in some]):
        result = dropped(typed, layers)
        assert result.passed, f"{result} without {[x.name for x in layers]}"


@pytest.mark.parametrize("seed", range(6))
def test_layers_and_widths_in_one_run(seed: int) -> None:
    model = build(random_net(seed), seed=seed)
    names = [x.name for x in find(typed_model(model))]
    for name in names[:2]:
        result = onnxprune.prune(model, drop_layers=name, ratio=0.5, scope="local")
        assert result.report.surgery_check and result.report.surgery_check.passed
        assert result.plan.layers == (name,)
        again = onnxprune.apply(model, Plan.from_json(result.plan.to_json()), check=False)
        assert lines(again.graph) == lines(result.graph)


def test_another_layer_does_not_pass() -> None:
    typed = typed_model(build(TWO))
    first, second = find(typed)
    assert not dropped(typed, [first], off=[second]).passed
    assert not dropped(typed, [first], off=[]).passed


def test_outline() -> None:
    graph, results = passed(build(TWO), "drop-layers(layers='s/*')")
    want = ["const bA: float[6, 8]", "const bB: float[8, 6]", "const Z: float[6, 4]", "bh = MatMul(x, bA)"]
    assert lines(graph) == [*want, "br = Relu(bh)", "bd = MatMul(br, bB)", "y = Add(x, bd)", "z = MatMul(y, Z)"]
    assert results[-1].modified


def test_an_exit_that_is_an_output_keeps_its_name() -> None:
    text = f"(float[N,3,6] x) => (float[N,3,6] s, float[N,3,6] y) <{A_WEIGHTS}, {B_WEIGHTS}> {{ {A} s = Add (x, ad) "
    model = build(text + f"{B} y = Add (s, bd) }}")
    typed = typed_model(model)
    assert dropped(typed, list(find(typed))).passed
    assert lines(drop(typed.graph, find(typed))) == ["s = Identity(x)", "y = Identity(x)"]


@pytest.mark.parametrize("kind", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
@pytest.mark.parametrize("form", ["with the sum", "norm only"])
def test_fused_sums(kind: str, form: str) -> None:
    shift = ", H" if kind == "SkipLayerNormalization" else ""
    made, rest = ("n, , , t", "y = Add (n, t)") if form == "with the sum" else ("y", "")
    nodes = f"{A} {made} = com.microsoft.{kind} <epsilon = 0.00001> (x, ad, G{shift}, O) {rest}"
    model = build(tokens(nodes, f"{A_WEIGHTS}, float[6] G, float[6] H, float[6] O"), 18)
    typed = typed_model(model)
    for layer in find(typed):
        assert dropped(typed, [layer]).passed, layer.name


def test_old_opsets() -> None:
    """Before opset 9 there is no Where to switch with."""
    typed = typed_model(build(TWO, 7))
    for layer in find(typed):
        assert dropped(typed, [layer]).passed


def test_a_branch_of_zeros_changes_no_bit() -> None:
    model = build(TWO)
    weight = next(t for t in model.graph.initializer if t.name == "aB")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((8, 6), np.float32), "aB"))
    typed = typed_model(model)
    feed = feeds_for(typed)[0]
    made = drop(typed.graph, find(typed)[:1]).to_proto()
    assert np.array_equal(run(made, feed)["z"], run(model, feed)["z"])


def data(rows: int = 32) -> DataLike:
    return {"x": np.random.default_rng(0).standard_normal((rows, 3, 6)).astype(np.float32)}


def test_the_least_important_by_data() -> None:
    """The branch that adds least to the outputs goes; the report says what it held and what it was worth."""
    model = build(TWO)
    weight = next(t for t in model.graph.initializer if t.name == "bB")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) / 100, "bB"))
    result = onnxprune.prune(model, drop_layers=1, data=data())
    (row,) = result.report.layers
    assert (row.layer, row.kind, row.params) == ("y/ffn", "ffn", 96)
    assert row.error is not None and row.influence is not None and row.error < 1e-2 and row.influence < 1e-3
    assert result.report.params.after == result.report.params.before - 96 + 6  # the bias of the sum before is new
    assert result.report.to_dict()["dropped_layers"][0]["layer"] == "y/ffn"


def test_recovery_takes_up_the_mean_and_more() -> None:
    """The product that feeds the stream before the layer aims at the stream behind it."""
    model = build(TWO)
    weight = next(t for t in model.graph.initializer if t.name == "bA")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.abs(onnx.numpy_helper.to_array(weight)), "bA"))
    given = data(256)
    errors = [
        onnxprune.prune(model, drop_layers="y/ffn", data=given, recover=mend).report.numerics["z"]["rel_l2"]
        for mend in (True, False)
    ]
    assert errors[0] is not None and errors[1] is not None and errors[0] < 0.8 * errors[1]


def test_without_data_it_says_how_it_chose() -> None:
    report = onnxprune.prune(build(TWO), drop_layers=1).report
    assert len(report.layers) == 1 and report.layers[0].error is None
    assert any("norms of their weights" in note for note in report.notes)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("nothing*", "pattern 'nothing*' matches no layer"),
        (3, "3 layers cannot be dropped: the model has 2"),
        (("2", "y/*"), "takes a number"),
    ],
)
def test_refusals(wanted: int | str | tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("*", r"\*")):
        onnxprune.prune(build(TWO), drop_layers=wanted, check=False)


def test_plans() -> None:
    model = build(TWO)
    plan = onnxprune.prune(model, drop_layers="s/ffn", ratio=0.75, scope="local", check=False).plan
    assert plan.layers == ("s/ffn",) and list(plan.keep) == ["bA:1"]
    with pytest.raises(InputError, match="drops 'q/ffn', which is no layer"):
        onnxprune.apply(model, Plan({}, layers=("q/ffn",)), check=False)
    old = '{"version": 1, "model": "", "dims": {"bA:1": {"size": 8, "removed": [0]}}}'
    assert Plan.from_json(old).layers == () and Plan.from_json(old).removed == 1


def test_layers_come_first() -> None:
    with pytest.raises(InputError, match="put it before"):
        passed(build(TWO), "prune(ratio=0.5, scope='local'),drop-layers(layers='1')")
    graph, _ = passed(build(TWO), "drop-layers(layers='1'),drop-layers(layers='1')")
    assert lines(graph)[-1] == "z = MatMul(x, Z)"
