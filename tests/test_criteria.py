"""What criteria say about small networks worked out by hand, and what must hold for each of them: units without effect
score lowest, the order of units does not matter, and what is missing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

import onnxprune
from onnxprune.__main__ import main
from onnxprune.calibration import Calibration
from onnxprune.criteria import CRITERIA, UnitView, score
from onnxprune.criteria.evidence import Evidence
from onnxprune.data import Samples
from onnxprune.errors import InputError
from onnxprune.inference import TypedGraph
from tests.common import build, image, typed_model, vector

Array = NDArray[Any]
WEIGHTS = tuple(c for c in CRITERIA if c in ("l1", "l2", "lamp", "fpgm", "bn-scale", "random"))
DATA = tuple(c for c in CRITERIA if c not in WEIGHTS)
MLP = "(float[N,2] x) => (float[N,1] y) <float[2,3] A, float[3,1] B> { h = MatMul(x, A) g = Relu(h) y = MatMul(g, B) }"
A = np.array([[1, 0, 2], [0, 3, -2]], np.float32)
B = np.array([[1], [0.5], [-1]], np.float32)
X = np.array([[1, 0], [0, 1], [1, 1], [-1, 2]], np.float32)  # g: [1 0 2] [0 3 0] [1 3 0] [0 6 0], y: -1 1.5 2.5 3


def put(model: ModelProto, **arrays: Array) -> ModelProto:
    """The model with other constants."""
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            like = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(arrays[tensor.name], like.dtype), tensor.name))
    return model


def calibrated(typed: TypedGraph, x: Array, labels: Array | None = None) -> Calibration:
    beside = {} if labels is None else {"labels": labels}
    return Calibration(typed, Samples(typed.graph, {typed.graph.inputs[0].name: x, **beside}), len(x))


def scores_of(model: ModelProto, criterion: str | Callable[[UnitView], Any], x: Array | None = None) -> list[Array]:
    """Scores of every dim, in order."""
    typed = typed_model(model)
    found, _ = score(typed, typed.prunable, criterion, None if x is None else calibrated(typed, x))
    return [found[d.dim] for d in typed.prunable]


@pytest.mark.parametrize(
    ("criterion", "want"),
    (
        ("l1", [2, 3.5, 5]),
        ("l2", [2**0.5, 9.25**0.5, 3]),
        ("lamp", [2 / 20.25, 1, 9 / 18.25]),
        ("fpgm", [10**0.5 + 5**0.5, 10**0.5 + 29**0.5, 5**0.5 + 29**0.5]),
        ("activation-mean", [0.5, 3, 0.5]),
        ("activation-variance", [0.25, 4.5, 0.75]),
        ("apoz", [0.5, 0.75, 0.25]),
        ("wanda", [0.5**0.5, 0.5 * 13.5**0.5, 1]),
        ("flap", [0.25, 0.25 * 4.5, 0.75]),
        ("fisher", [(1 + 0.16) / 4, (1 + 0.36 + 1) / 4, 1]),  # of (gate's part of y / y)^2
    ),
)
def test_by_hand(criterion: str, want: Sequence[float]) -> None:
    (found,) = scores_of(put(build(MLP), A=A, B=B), criterion, X)
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_correlation_by_hand() -> None:
    """Two copies and a unit apart: one of the copies goes for nothing, then the cheaper of the two that are left."""
    model = put(build(MLP.replace("Relu", "Identity")), A=np.array([[1, 1, 0], [0, 0, 3]]))
    x = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
    (found,) = scores_of(model, "correlation", x)
    order = np.argsort(found)
    assert set(order[:2]) == {0, 1} and order[2] == 2 and found[order[0]] < 0.05 * found[order[1]]
    assert found[2] > 5 * found[order[1]]


def test_batch_normalization_by_its_scale() -> None:
    text = image(
        "n = BatchNormalization(h, s, b, m, v_pos) g = Relu(n)", "float[8] s, float[8] b, float[8] m, float[8] v_pos"
    )
    scale = np.array([0, -3, 1, 2, 0.5, 4, 6, 5])
    (found,) = scores_of(put(build(text), s=scale), "bn-scale")
    np.testing.assert_allclose(found, np.abs(scale))


def test_random_scores_depend_on_seed_and_name_alone() -> None:
    typed = typed_model(build(vector("g = Relu(h)")))
    (dim,) = typed.prunable
    first, again, other = (score(typed, [dim], "random", None, seed)[0][dim.dim] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


# properties
BLOCK = "(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8] b, float[8,3] B>"
NET = BLOCK + "{ h = Gemm(x, A, b) g = Relu(h) y = MatMul(g, B) }"
CLASSES = BLOCK + "{ h = Gemm(x, A, b) g = Relu(h) z = MatMul(g, B) y = Softmax(z) }"
DEAD = 5


def useless(criterion: str, rng: np.random.Generator) -> ModelProto:
    """A network whose unit DEAD does nothing, in the way that the criterion looks at."""
    a, b, c = rng.standard_normal((4, 8)), rng.standard_normal(8), rng.standard_normal((8, 3))
    if criterion in ("l1", "l2", "lamp"):
        a[:, DEAD] = c[DEAD] = 0
    elif criterion == "fpgm":
        a[:, DEAD] = np.delete(a, DEAD, 1).mean(1)
    elif criterion == "correlation":
        a, b = np.abs(a), np.abs(b) + 9  # no unit is at rest, so one is the sum of two others, less a constant
        a[:, DEAD] = 0.01 * (a[:, 0] + a[:, 1])
    elif criterion in ("wanda", "flap", "taylor", "fisher"):
        c[DEAD] = 0
    else:
        b[DEAD] = -99
    return put(build(CLASSES), A=a, b=b, B=c)


@pytest.mark.parametrize("criterion", [c for c in CRITERIA if c not in ("random", "bn-scale")])
def test_useless_units_score_lowest(criterion: str) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((64, 4)).astype(np.float32)
        (found,) = scores_of(useless(criterion, rng), criterion, x)
        margin = 1 if criterion == "fpgm" else 0.8  # distances to all others are never small
        assert found[DEAD] < margin * np.delete(found, DEAD).min()


@pytest.mark.parametrize("criterion", [c for c in CRITERIA if c not in ("random", "bn-scale")])
def test_the_order_of_units_does_not_matter(criterion: str) -> None:
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((4, 8)), rng.standard_normal(8), rng.standard_normal((8, 3))
    x, order = rng.standard_normal((64, 4)).astype(np.float32), rng.permutation(8)
    (first,) = scores_of(put(build(CLASSES), A=a, b=b, B=c), criterion, x)
    (second,) = scores_of(put(build(CLASSES), A=a[:, order], b=b[order], B=c[order]), criterion, x)
    np.testing.assert_allclose(second, first[order], rtol=1e-4)


@pytest.mark.parametrize("criterion", ("wanda", "flap", "activation-variance", "correlation"))
def test_units_of_several_channels_and_of_attention_are_scored(criterion: str) -> None:
    """Heads and head channels of attention: reads of activations by activations."""
    text = """(float[N,5,8] x) => (float[N,5,3] y) <float[8,8] Q, float[8,8] K, float[8,8] V, float[8,3] B> {
        q = MatMul(x, Q) k = MatMul(x, K) v = MatMul(x, V)
        s = Constant <value = int64[4] {0, 5, 2, 4}> () o = Constant <value = int64[3] {0, 5, 8}> ()
        q4 = Reshape(q, s) k4 = Reshape(k, s) v4 = Reshape(v, s)
        qt = Transpose <perm = [0, 2, 1, 3]> (q4) kt = Transpose <perm = [0, 2, 3, 1]> (k4)
        vt = Transpose <perm = [0, 2, 1, 3]> (v4)
        w = MatMul(qt, kt) p = Softmax(w) a = MatMul(p, vt) at = Transpose <perm = [0, 2, 1, 3]> (a)
        g = Reshape(at, o) y = MatMul(g, B) }"""
    rng = np.random.default_rng(0)
    b = np.ones((8, 3))
    b[:4] = 1e-3  # the first head is hardly read
    typed = typed_model(put(build(text), B=b))
    kinds = {d.kind: d for d in typed.prunable}
    found, silent = score(
        typed, typed.prunable, criterion, calibrated(typed, rng.standard_normal((16, 5, 8)).astype(np.float32))
    )
    assert set(kinds) == {"heads", "head-channels"} and not silent
    if criterion in ("wanda", "flap"):
        first, second = found[kinds["heads"].dim]
        assert first < 0.05 * second
    assert all(np.isfinite(s).all() and (s > 0).any() for s in found.values())


def test_a_view_says_what_it_is_of() -> None:
    typed = typed_model(put(build(MLP), A=A, B=B))
    view = UnitView(typed.prunable[0], Evidence(typed, [typed.prunable[0].dim], calibrated(typed, X)))
    assert (view.name, view.kind, view.size) == ("A:1", "neurons", 3)
    assert [(m.tensor, m.operator, m.role) for m in view.members] == [
        ("A", "MatMul", "producing"), ("B", "MatMul", "consuming"),
    ]  # fmt: skip
    assert view.members[0].matrix().tolist() == A.T.tolist() and view.members[1].matrix().tolist() == B.tolist()
    ((consumer, gram),) = view.grams()
    g = np.maximum(X @ A, 0)
    assert consumer.units.tolist() == [0, 1, 2]
    np.testing.assert_allclose(gram.covariance[0], np.cov(g.T, bias=True), atol=1e-6)
    (covariance,) = view.covariances
    np.testing.assert_allclose(covariance.matrix, gram.covariance)
    assert covariance.units.tolist() == [0, 1, 2]


# a user's own
def test_a_function_is_a_criterion() -> None:
    model = put(build(MLP), A=A, B=B)
    result = onnxprune.prune(model, ratio=0.4, criterion=lambda view: np.arange(view.size)[::-1], check=False)
    assert result.plan.keep["A:1"].tolist() == [True, True, False]
    assert result.report.options["criterion"] == "<lambda>"


def test_a_function_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "by_me.py").write_text("def last(view):\n    return range(view.size, 0, -1)\n")
    (tmp_path / "in.onnx").write_bytes(put(build(MLP), A=A, B=B).SerializeToString())
    monkeypatch.chdir(tmp_path)
    call = "prune in.onnx -o out.onnx --ratio 0.4 --criterion by_me:last --plan plan.json --no-check -q"
    assert main(call.split()) == 0
    assert '"removed": [\n    2\n   ]' in (tmp_path / "plan.json").read_text()


@pytest.mark.parametrize(
    ("criterion", "message"),
    (
        (lambda v: [1.0], r"scores of shape \(1,\) for dim 'A:1', it has 3 units"),
        (lambda v: np.full(v.size, np.nan), "below 0 or not finite"),
        (lambda v: -np.ones(v.size), "below 0 or not finite"),
        (lambda v: "many", "no numbers"),
        (lambda v: None, "says nothing: it returned nothing"),
        ("bn-scale", "says nothing: no BatchNormalization"),
        (None, "a criterion is a name, module:function or a function, got a NoneType"),
        (lambda v: 1 / 0, r"criterion '<lambda>' on 'A:1' failed: ZeroDivisionError"),
        ("luck", "unknown criterion 'luck': choose from obs, l1, l2, lamp"),
    ),
)
def test_what_is_no_score_is_refused(criterion: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        onnxprune.prune(build(MLP), ratio=0.4, criterion=criterion, check=False)


@pytest.mark.parametrize("criterion", DATA)
def test_data_is_asked_for(criterion: str) -> None:
    with pytest.raises(InputError, match=f"criterion '{criterion}' needs --data"):
        scores_of(build(NET), criterion)


def test_dims_that_a_criterion_says_nothing_about_stay_whole() -> None:
    """One layer has a BatchNormalization, the other has none."""
    text = """(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8] s_pos, float[8] b, float[8] m, float[8] v_pos,
        float[8,6] B, float[6,3] C> {
        h = MatMul(x, A) n = BatchNormalization(h, s_pos, b, m, v_pos) g = Relu(n)
        k = MatMul(g, B) r = Relu(k) y = MatMul(r, C) }"""
    plan = onnxprune.prune(build(text), ratio=0.5, criterion="bn-scale", check=False).plan
    assert list(plan.keep) == ["A:1"] and plan.removed == 4
    assert dict(plan.refused)["B:1"].startswith("criterion 'bn-scale' says nothing")
