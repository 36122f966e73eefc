"""Gradients with respect to gates: against differences in double precision, for the losses that are stated; and what is
not differentiated is said.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune import adjoint
from onnxprune.calibration import Calibration, units_along
from onnxprune.criteria import UnitView, score
from onnxprune.criteria.evidence import CONSUMING, Evidence
from onnxprune.criteria.gradients import gate_gradients
from onnxprune.errors import InputError
from onnxprune.inference import TypedGraph, infer
from onnxprune.losses import loss_gradient
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import PASSES, PREPARE
from onnxprune.reading import load
from tests.common import build, image, tokens, typed_model, vector
from tests.test_criteria import calibrated, put

Array = NDArray[Any]
MODELS = Path(__file__).resolve().parent.parent / "models"
STEP = 1e-6  # of differences in double precision
CLOSE = 2e-3  # of the largest gradient: rounding of the float32 graph; a mistake is of the size of the gradient


def in_double(model: ModelProto) -> ModelProto:
    made = ModelProto()
    made.CopyFrom(model)
    for t in made.graph.initializer:
        if t.data_type == TensorProto.FLOAT:
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float64), t.name))
    for v in (*made.graph.input, *made.graph.output):
        if v.type.tensor_type.elem_type == TensorProto.FLOAT:
            v.type.tensor_type.elem_type = TensorProto.DOUBLE
    return made


def difference(typed: TypedGraph, view: UnitView, unit: int, x: Array, labels: Array) -> Array:
    """Change of each sample's cross entropy with the weights that read a unit, by symmetric differences."""
    model = in_double(typed.graph.to_proto())
    held = {t.name: t for t in model.graph.initializer}
    name = typed.graph.inputs[0].name
    losses = []
    for factor in (1 + STEP, 1 - STEP):
        for e in view._evidence.entries[view.info.dim]:
            if e.role == CONSUMING:
                array = numpy_helper.to_array(held[e.use.tensor]).copy()
                original = typed.graph.array(e.use.tensor).astype(np.float64)
                axes = e.use.axes[e.axis]
                mine = units_along(axes, view.info.dim) == unit
                moved = np.moveaxis(array, e.axis, 0)
                moved[mine] = np.moveaxis(original, e.axis, 0)[mine] * factor
                held[e.use.tensor].CopyFrom(numpy_helper.from_array(array, e.use.tensor))
        (z,) = ReferenceEvaluator(model).run(None, {name: x.astype(np.float64)})
        losses.append(np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), labels])
    return np.asarray((losses[0] - losses[1]) / (2 * STEP))


def test_gradients_are_those_of_the_loss_on_a_trained_network() -> None:
    """Gating a unit is scaling the weights that read it, for dims that nothing but weights read."""
    state = State(load(MODELS / "mnist_cnn.onnx"))
    PassManager(parse(PREPARE, PASSES)).run(state)
    typed = state.typed
    with np.load(MODELS / "mnist_cnn.calib.npz") as data:
        x = data[typed.graph.inputs[0].name][:3]
    labels = np.array([1, 7, 3])
    checked = 0
    evidence = Evidence(typed, [d.dim for d in typed.prunable], calibrated(typed, x, labels))
    for info in typed.prunable:
        view = UnitView(info, evidence)
        found, feed = view.gradients()
        assert found.shape == (3, view.size) and feed.tolist() == [0, 0, 0]
        unit = int(np.abs(found).max(0).argmax())
        want = difference(typed, view, unit, x, labels)
        np.testing.assert_allclose(found[:, unit], want, atol=CLOSE * np.abs(want).max())
        checked += 1
    assert checked == len(typed.prunable) > 5


CLASSES = (
    "(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8,3] B> { h = MatMul(x, A) g = Tanh(h) y = MatMul(g, B) }"
)


def by_hand(x: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Probabilities (N, 3) and the share of every unit in every class score (N, 8, 3)."""
    g = np.tanh(x @ a)
    z = g @ b
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True), g[:, :, None] * b


@pytest.mark.parametrize("probabilities", (False, True))
@pytest.mark.parametrize("given", (False, True))
def test_taylor_is_the_squared_mean_gradient_of_batches(
    probabilities: bool, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the formula: d loss / d gate = share * (p - chosen), in feeds of 5, 5 and 2."""
    text = CLASSES.replace("y = MatMul", "z = MatMul").replace(" }", " y = Softmax(z) }") if probabilities else CLASSES
    rng = np.random.default_rng(0)
    a, b, x = rng.standard_normal((4, 8)), rng.standard_normal((8, 3)), rng.standard_normal((12, 4))
    typed = typed_model(put(build(text), A=a, B=b))
    labels = rng.integers(0, 3, 12)
    (info,) = typed.prunable
    monkeypatch.setattr("onnxprune.data.samples.BATCH", 5)
    calibration = calibrated(typed, x.astype(np.float32), labels if given else None)
    found = score(typed, [info], "taylor", calibration)[0][info.dim]
    p, shares = by_hand(x, a, b)
    chosen = labels if given else p.argmax(1)
    each = np.einsum("nuc,nc->nu", shares, p - np.eye(3)[chosen])
    want = np.mean([each[k : k + 5].mean(0) ** 2 for k in (0, 5, 10)], 0)
    np.testing.assert_allclose(found, want, rtol=2e-3)


def test_graphs_of_old_opsets_are_differentiated() -> None:
    """Softmax over the last axis has another form there."""
    text = CLASSES.replace("y = MatMul", "z = MatMul").replace(" }", " y = Softmax <axis = 1> (z) }")
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    found = []
    for opset in (8, 11, 21):
        typed = typed_model(build(text, opset))
        (info,) = typed.prunable
        found.append(score(typed, [info], "taylor", calibrated(typed, x))[0][info.dim])
    np.testing.assert_allclose(found[0], found[2], rtol=1e-4)
    np.testing.assert_allclose(found[1], found[2], rtol=1e-4)


@pytest.mark.parametrize("probabilities", (False, True))
def test_fisher_without_labels_is_the_curvature_of_the_divergence(probabilities: bool) -> None:
    """On average over the noise: J' (diag p - p p') J."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 1)
    y = p if probabilities else np.log(p) + 2
    seeds = [loss_gradient({"y": y}, None, True, rng)["y"] for _ in range(4000)]
    want = np.diag(1 / p[0]) if probabilities else np.diag(p[0]) - np.outer(p, p)
    got = np.mean([s.T @ s for s in seeds], 0)
    np.testing.assert_allclose(got, want, atol=0.08 * np.abs(want).max())


def test_fisher_with_labels_squares_each_samples_gradient() -> None:
    rng = np.random.default_rng(0)
    a, b, x = rng.standard_normal((4, 8)), rng.standard_normal((8, 3)), rng.standard_normal((6, 4))
    typed = typed_model(put(build(CLASSES), A=a, B=b))
    labels = rng.integers(0, 3, 6)
    (info,) = typed.prunable
    found = score(typed, [info], "fisher", calibrated(typed, x.astype(np.float32), labels))[0][info.dim]
    p, shares = by_hand(x, a, b)
    each = np.einsum("nuc,nc->nu", shares, p - np.eye(3)[labels])
    np.testing.assert_allclose(found, (each**2).mean(0), rtol=2e-3)


@pytest.mark.parametrize(
    ("y", "kind"),
    (
        (np.array([[0.9, 0.8, 0.1]], np.float32), "projection"),  # several labels at once
        (np.array([[3.0]], np.float32), "projection"),
        (np.ones((1, 4, 5), np.float32), "projection"),
        (np.array([[3.0, -1.0]], np.float32), "classes"),
        (np.array([[0.7, 0.3]], np.float32), "classes"),
        (np.array([3.0, -1.0, 2.0], np.float32).reshape(1, 3, 1, 1), "classes"),
    ),
)
def test_which_outputs_are_class_scores(y: Array, kind: str) -> None:
    made = loss_gradient({"y": y}, None, False, np.random.default_rng(0))["y"]
    if kind == "projection":
        np.testing.assert_allclose(np.abs(made), 1 / np.linalg.norm(y), rtol=1e-6)
    else:
        assert made.reshape(-1)[y.argmax()] < 0 and made.shape == y.shape and made.dtype == y.dtype


CONVOLUTIONS = """(float[N,2,8,8] x) => (float[N,3,P,Q] y) <float[8,2,1,1] A, float[6,8,3,3] C, float[3,6,1,1] B> {
    h = Conv(x, A) k = Conv <HOW> (h, C) g = Tanh(k) y = Conv(g, B) }"""


@pytest.mark.parametrize(
    "how",
    (
        'auto_pad = "SAME_UPPER", strides = [2, 2]',
        'auto_pad = "SAME_LOWER", strides = [2, 2]',
        "pads = [0, 0, 1, 1], strides = [2, 2]",
        "pads = [1, 1, 1, 1], strides = [3, 3]",
        "pads = [2, 0, 0, 1]",
        "pads = [1, 1, 1, 1], strides = [2, 2], dilations = [2, 2]",
    ),
)
@pytest.mark.parametrize("opset", (10, 21))
def test_padding_of_every_kind_is_differentiated(how: str, opset: int) -> None:
    """What is compared on the spot with differences passes, and the scores are those of the network as it is."""
    typed = typed_model(build(CONVOLUTIONS.replace("HOW", how), opset))
    x = np.random.default_rng(0).standard_normal((4, 2, 8, 8)).astype(np.float32)
    found, silent = score(typed, typed.prunable, "fisher", calibrated(typed, x))
    assert len(found) == 2 and not silent and all((s > 0).all() for s in found.values())


@pytest.mark.parametrize(
    "how",
    (
        "kernel_shape = [3, 3], pads = [0, 0, 1, 1], strides = [2, 2]",
        "kernel_shape = [3, 3], pads = [0, 0, 1, 1], strides = [2, 2], count_include_pad = 1",
        'kernel_shape = [3, 3], auto_pad = "SAME_UPPER", strides = [2, 2]',
    ),
)
@pytest.mark.parametrize("pool", ("AveragePool", "MaxPool"))
def test_padding_of_pools_is_differentiated(how: str, pool: str) -> None:
    if pool == "MaxPool":
        how = how.replace(", count_include_pad = 1", "")
    text = image(f"t = Tanh(h) g = {pool} <{how}> (t)")
    typed = typed_model(build(text))
    x = np.random.default_rng(0).standard_normal((4, 2, 6, 6)).astype(np.float32)
    found, _ = score(typed, typed.prunable, "fisher", calibrated(typed, x))
    assert all((s > 0).all() for s in found.values())


def test_a_wrong_derivative_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One-sided padding that is not written out has a wrong derivative."""
    monkeypatch.setattr(adjoint, "with_plain_padding", lambda graph, facts: graph)
    typed = typed_model(build(CONVOLUTIONS.replace("HOW", "pads = [0, 0, 1, 1], strides = [2, 2]")))
    x = np.random.default_rng(0).standard_normal((4, 2, 8, 8)).astype(np.float32)
    with pytest.raises(InputError, match="criterion 'fisher' cannot be trusted for this model: at 'h'"):
        score(typed, typed.prunable, "fisher", calibrated(typed, x))


def test_gates_are_where_units_are_combined() -> None:
    """Not before a LayerNorm that the units survive, but where the product behind it sums over them."""
    text = tokens("n = LayerNormalization(h, s) m = MatMul(n, C) g = Add(h, m)", "float[8] s, float[8,8] C")
    typed = typed_model(build(text))
    (info,) = typed.prunable
    evidence = Evidence(typed, [info.dim])
    assert {r.tensor for r in evidence.readings[info.dim]} == {"n", "g"}


def test_recurrent_layers_are_differentiated() -> None:
    text = """(float[5,N,4] x) => (float[N,3] y) <float[1,24,4] W, float[1,24,8] R, float[8,3] B> {
        s, last = GRU <hidden_size = 8> (x, W, R) zero = Constant <value = int64[1] {0}> ()
        h = Squeeze(last, zero) y = MatMul(h, B) }"""
    typed = typed_model(build(text))
    (info,) = typed.prunable
    x = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32)
    found, _ = score(typed, [info], "fisher", Calibration(typed, [{"x": x}], 3))
    assert (found[info.dim] > 0).all()


def test_dims_without_a_gate_stay_whole() -> None:
    """Integers have no derivative: their units are read by products of integers."""
    text = """(float[N,4] x) => (float[N,3] y) <float[4,8] A, int8[8,3] B, float s_pos, float[3,6] C, float[6,3] D> {
        h = MatMul(x, A) q, qs, z = DynamicQuantizeLinear(h) m = MatMulInteger(q, B, z) f = Cast <to = 1> (m)
        n = Mul(f, qs) k = MatMul(n, C) r = Tanh(k) y = MatMul(r, D) }"""
    typed = typed_model(build(text))
    found, silent = score(typed, typed.prunable, "activation-variance", calibrated(typed, np.ones((4, 4), np.float32)))
    names = {d.dim: d.name for d in typed.prunable}
    assert {names[d] for d in found} >= {"C:1"} and all("no activation" in r for r in silent.values())


def test_masked_gradients_may_be_infinite() -> None:
    """The root's derivative at 0 is infinite, and Clip lets nothing of it through."""
    text = """(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8,3] B, float low = {0}> {
        h = MatMul(x, A) r = Clip(h, low) g = Sqrt(r) y = MatMul(g, B) }"""
    graph = load(build(text))
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    made = gate_gradients(graph, [(1, 0, 1)], [({"x": x}, None)])
    h = x @ graph.array("A")
    assert (h < 0).any() and np.isfinite(made.values["h", 1]).all() and not made.values["h", 1][h < 0].any()


# what cannot be done is said
def test_operators_without_a_derivative_are_named() -> None:
    typed = typed_model(build(vector("k = MatMul(h, C) g = com.microsoft.QuickGelu(k)", "float[8,8] C")))
    with pytest.raises(InputError, match=r"onnx-ad cannot differentiate this model: .*QuickGelu.*such as wanda"):
        score(typed, typed.prunable, "taylor", calibrated(typed, np.ones((4, 4), np.float32)))


def test_gradients_come_sample_by_sample_for_any_batch() -> None:
    """One feed or several give the same gradients; those of a fixed batch are sums."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 4)).astype(np.float32)
    free = load(build(CLASSES))
    gate = [(2, 0, 1)]
    labels = np.zeros(6, int)
    one = gate_gradients(free, gate, [({"x": x}, labels)])
    more = gate_gradients(free, gate, [({"x": x[:2]}, labels[:2]), ({"x": x[2:]}, labels[2:])])
    np.testing.assert_allclose(one.values["g", 1], more.values["g", 1], rtol=1e-6)
    assert one.feeds.tolist() == [0] * 6 and more.feeds.tolist() == [0, 0, 1, 1, 1, 1]
    fixed = load(build(CLASSES.replace("N,", "6,")))
    whole = gate_gradients(fixed, gate, [({"x": x}, labels)])
    np.testing.assert_allclose(whole.values["g", 1][0], one.values["g", 1].sum(0), rtol=1e-4)


def test_the_graph_is_not_touched() -> None:
    graph = load(build(CLASSES))
    before = graph.to_proto().SerializeToString()
    typed = infer(graph, typed_model(build(CLASSES)).facts)
    score(typed, typed.prunable, "fisher", calibrated(typed, np.ones((4, 4), np.float32)))
    assert graph.to_proto().SerializeToString() == before
