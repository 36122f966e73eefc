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
    page = result.report.to_html()
    assert "1 whole layer was removed." in page and '<td class="name">y/ffn</td><td>ffn</td>' in page


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


def test_lossless_drops_branches_that_are_zero() -> None:
    model = build(TWO)
    weight = next(t for t in model.graph.initializer if t.name == "aB")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((8, 6), np.float32), "aB"))
    result = onnxprune.prune(model, lossless=True)
    assert result.plan.layers == ("s/ffn",)
    assert result.report.surgery_check and result.report.surgery_check.passed
    assert onnxprune.prune(build(TWO), lossless=True, check=False).plan.layers == ()


def deep() -> onnx.ModelProto:
    """Four branches, of which the third adds next to nothing."""
    parts = [branch("ffn", "x" if k == 0 else f"s{k}", f"b{k}") for k in range(4)]
    sums = [f"s{k + 1} = Add ({'x' if k == 0 else f's{k}'}, b{k}d)" for k in range(4)]
    nodes = " ".join(f"{made} {total}" for (made, _), total in zip(parts, sums, strict=True))
    model = build(tokens(f"{nodes} y = Identity (s4)", ", ".join(held for _, held in parts)))
    weight = next(t for t in model.graph.initializer if t.name == "b2B")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) / 1000, "b2B"))
    return model


def test_auto_weighs_layers_against_widths() -> None:
    """The layer that adds nothing is a better loss than a quarter of the units of all."""
    result = onnxprune.prune(deep(), macs=0.75, drop_layers="auto", data=data(128))
    assert result.plan.layers == ("s3/ffn",)
    assert result.report.macs.after <= 0.75 * result.report.macs.before
    assert any("layers were weighed against widths" in note for note in result.report.notes)
    error = result.report.numerics["z"]["rel_l2"]
    widths = onnxprune.prune(deep(), macs=0.75, data=data(128)).report.numerics["z"]["rel_l2"]
    assert error is not None and widths is not None and error < widths


def test_trials_of_layers_make_no_trials_of_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("onnxprune.passes.prune.rivals", lambda *given: asked.append(given) or {})
    made = onnxprune.prune(deep(), macs=0.75, drop_layers="auto", data=data(128), check=False)
    assert any("held back" in note for note in made.report.notes) and len(asked) == 1


def test_auto_says_so_where_no_layer_is_worth_it() -> None:
    result = onnxprune.prune(deep(), macs=0.99, drop_layers="auto", data=data(128), check=False)
    told = "layers were weighed against widths; to drop none is predicted to lose least by far"
    assert result.plan.layers == () and told in result.report.notes


def test_schedule() -> None:
    """Layers, then two cuts of widths; costs count from the whole model."""
    result = onnxprune.prune(deep(), params=0.5, drop_layers=1, schedule="layers,global,local", data=data(128))
    assert result.plan.layers == ("s3/ffn",) and len(result.plan.keep) == 3
    assert result.report.params.after <= 0.5 * result.report.params.before + 30  # biases that recovery adds
    names = [p.name for p in result.report.passes]
    assert (names.count("drop-layers"), names.count("prune")) == (1, 2)
    assert [m.stage for m in result.report.metrics][:3] == ["original", "step 1", "step 2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "global,layers", "macs": 0.5}, "has 'layers'"),
        ({"schedule": "layers,global", "macs": 0.5, "steps": 2}, "leave out steps"),
        ({"drop_layers": "auto", "macs": 0.5}, "needs calibration data"),
        ({"drop_layers": "auto", "ratio": 0.5, "data": data()}, "goes with a budget of macs"),
    ],
)
def test_schedules_that_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        onnxprune.prune(build(TWO), check=False, **options)  # type: ignore[arg-type]
