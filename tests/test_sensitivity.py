"""Curves of whole models: what is probed, and what a dim without products gets."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest
from joblib.parallel import ThreadingBackend
from onnx import numpy_helper

import onnxprune
from onnxprune import sessions
from onnxprune.calibration import Calibration
from onnxprune.errors import InputError
from onnxprune.graph import Graph
from onnxprune.inference import infer
from onnxprune.losses import output_error
from onnxprune.probes import measure
from onnxprune.reading import load
from onnxprune.report.plots import curves_svg
from onnxprune.sensitivity import Sensitivity, curves
from onnxprune.sessions import Feeds
from onnxprune.trace import trace
from tests.common import build
from tests.test_recovery import feeds_of

MODELS = Path(__file__).resolve().parent.parent / "models"
TWO = """(float[n,6] x) => (float[n,4] y) <float[6,8] a, float[8] b, float[8,10] c, float[10] d, float[10,4] e,
    float[4] f> {
    h = Gemm(x, a, b) r = Relu(h) k = Gemm(r, c, d) s = Relu(k) y = Gemm(s, e, f) }"""
DAMPED = 0.15  # a solution with a ridge, from the one without


def hidden(graph: Graph, feeds: Feeds) -> np.ndarray:
    """What the last product of TWO reads."""
    return sessions.run(sessions.watched(graph, ["s"]).to_proto(), feeds)["s"]


def calibrated(graph: Graph, feeds: list[Feeds]) -> Calibration:
    return Calibration(infer(graph, trace(graph)), feeds, sum(len(next(iter(f.values()))) for f in feeds))


def random_data(count: int) -> list[Feeds]:
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(32, 6)).astype(np.float32)} for _ in range(count)]


def test_a_probe_is_the_error_of_the_cut_model_with_refitted_readers() -> None:
    """The last hidden layer: units that are cut, and the product that reads them refitted, give the probe's error."""
    graph = load(build(TWO))
    calibration = calibrated(graph, random_data(8))
    found = measure(calibration, curves(calibration, [d.dim for d in calibration.typed.prunable]), samples=256)
    assert [d.size for d in found] == [8, 10]
    d = next(d for d in found if d.size == 10)
    curve, probe = found[d]
    mask = ~np.isin(np.arange(10), curve.order[: probe.gone])
    data = random_data(8)
    fitted, held = (np.concatenate([hidden(graph, data[k]) for k in ks]) for ks in ((0, 1, 2, 3, 5, 6, 7), (4,)))
    e, f = graph.array("e"), graph.array("f")
    kept = np.concatenate([fitted[:, mask], np.ones((len(fitted), 1))], 1)
    best = np.linalg.lstsq(kept, fitted @ e, rcond=None)[0]
    made = np.concatenate([held[:, mask], np.ones((len(held), 1))], 1) @ best
    plain, refitted = (output_error([[held @ e + f]], [[y + f]]) for y in (held[:, mask] @ e[mask], made))
    assert 0 < probe.output < plain
    assert probe.output == pytest.approx(refitted, rel=DAMPED)
    assert curve.errors[probe.gone] == pytest.approx(probe.output)


def test_probes_in_parallel_say_the_same() -> None:
    graph = load(build(TWO))
    said = []
    for jobs in (1, 2):
        calibration = calibrated(graph, random_data(2))
        made = measure(calibration, curves(calibration, [d.dim for d in calibration.typed.prunable]), jobs=jobs)
        said.append([probe for _, probe in made.values()])
    assert said[0] == said[1]


class _Collected(ThreadingBackend):  # type: ignore[misc]
    """A back end of joblib that gives lists only, as Ray's does."""

    supports_return_generator = False


def test_back_ends_without_generators_will_do() -> None:
    graph = load(build(TWO))
    calibration = calibrated(graph, random_data(2))
    found = curves(calibration, [d.dim for d in calibration.typed.prunable])
    heard: list[tuple[int, int]] = []
    joblib.register_parallel_backend("collected", _Collected)
    with joblib.parallel_config(backend="collected"):
        made = measure(calibration, found, jobs=2, tell=lambda done, total: heard.append((done, total)))
    assert {d: p for d, (_, p) in made.items()} == {d: p for d, (_, p) in measure(calibration, found).items()}
    assert heard == [(k, len(found)) for k in range(len(found) + 1)]


def test_a_metric_that_cannot_be_measured_is_told_first() -> None:
    heard: list[str] = []

    x = np.zeros((20, 6), np.float32)
    with pytest.raises(InputError, match="needs labels"):
        onnxprune.measure_sensitivity(
            build(TWO), {"x": x}, metric="top1", progress=lambda stage, *_: heard.append(stage)
        )
    assert heard and not any("sensitivity" in stage for stage in heard)


@pytest.mark.parametrize("name", ("mnist_vit", "langid_gru"))
def test_every_dim_of_real_models_has_a_curve(name: str) -> None:
    graph = load(MODELS / f"{name}.onnx")
    calibration = calibrated(graph, feeds_of(graph, f"{name}.calib.npz", 64))
    dims = [d.dim for d in calibration.typed.prunable]
    found = curves(calibration, dims)
    assert list(found) == dims
    for d, curve in found.items():
        assert sorted(curve.order) == list(range(d.size)) and len(curve.errors) == d.size + 1
        assert curve.errors[0] == 0 and (np.diff(curve.errors) >= 0).all() and curve.errors[-1] > 0


def test_products_of_activations_in_a_body() -> None:
    """What a body of control flow computes cannot be watched: its products say nothing, and nothing fails."""
    text = """(float[n,6] x) => (float[n,4] y) <float[6,8] a, float[8,8] r, float[8,4] e, int64 k = {2}, bool c = {1}> {
        h = MatMul(x, a)
        f, w = Loop <body = b (int64 i, bool p, float[n,8] s, float[8,8] m) => (bool q, float[n,8] t, float[8,8] v)
            { q = Identity(p) g = MatMul(s, m) t = Tanh(g) v = Identity(m) }> (k, c, h, r)
        y = MatMul(f, e) }"""
    graph = load(build(text))
    calibration = calibrated(graph, random_data(2))
    assert not calibration.meetings
    found = curves(calibration, [d.dim for d in calibration.typed.prunable])
    assert sorted(d.size for d in found) == sorted(d.dim.size for d in calibration.typed.prunable)


def test_products_that_see_the_same_rows_share_one_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """(float[n,6] x) => (float[n,3] y) <float[6,8] a, float[8,5] b, float[8,5] c, float[5,3] d> {
        h = MatMul(x, a) r = Relu(h) q = MatMul(r, b) k = MatMul(r, c) s = Mul(q, k) y = MatMul(s, d) }"""
    graph = load(build(text))
    feeds = random_data(5)
    calibration = calibrated(graph, feeds)
    both = [x for x in calibration.linears.values() if x.weight in "bc"]
    passes: list[set[str]] = []
    watch = calibration.watch
    monkeypatch.setattr(calibration, "watch", lambda names, *rest: passes.append(set(names)) or watch(names, *rest))
    found = calibration.grams(both)
    first, second = (found[x.key] for x in both)
    assert first is second and first.stored.size == 0 and first.folds is not None
    calibration.grams(list(calibration.linears.values()))
    assert calibration.grams(both)[both[0].key] is first
    assert passes == [{"r"}, {"x", "s"}, set()]
    rows = np.concatenate([np.maximum(f["x"] @ graph.array("a"), 0) for f in feeds])
    np.testing.assert_allclose(first.covariance[0], np.cov(rows.T, bias=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_metric_is_measured_at_some_widths_of_each_dim(jobs: int) -> None:
    """On samples that were held out; nothing is lost where units are copies."""
    graph = build(TWO)
    for name in ("c", "d", "e"):
        held = next(t for t in graph.graph.initializer if t.name == name)
        array = numpy_helper.to_array(held).copy()
        if name == "e":
            array[5:] = array[:5]
        else:
            array[..., 5:] = array[..., :5]
        held.CopyFrom(numpy_helper.from_array(array, name))
    x = np.random.default_rng(0).normal(size=(320, 6)).astype(np.float32)
    found = onnxprune.measure_sensitivity(graph, {"x": x}, metric="rel-l2", jobs=jobs)
    assert found.metric is not None and (found.metric.name, found.metric.samples) == ("rel-l2", 64)
    assert found.metric.whole == 0 and list(found.metric.values) == list(found.curves)
    values = {len(found.curves[n].order): dict(v) for n, v in found.metric.values.items()}
    assert {size: list(v) for size, v in values.items()} == {8: [7, 6, 4, 2], 10: [9, 8, 5, 2]}
    assert values[10][5] < 0.02 < values[10][2] and values[8][7] <= values[8][2]
    assert Sensitivity.from_json(found.to_json()).metric == found.metric
    assert "rel-l2" in curves_svg(found)
    decibels = replace(found.metric, name="sqnr-db", whole=math.inf)
    assert "sqnr-db" in curves_svg(replace(found, metric=decibels))


def test_a_metric_that_is_none_is_told_first() -> None:
    with pytest.raises(InputError, match="unknown metric 'luck'"):
        onnxprune.measure_sensitivity(build(TWO), {"x": np.zeros((9, 6), np.float32)}, metric="luck")


def test_curves_count_the_samples_that_there_are() -> None:
    """Rows are picked by it: of few samples more rows each."""
    model = build(
        "(float[N,6] x) => (float[N,2] y) <float[6,8] A, float[8,2] B>"
        " { a = MatMul(x, A) r = Relu(a) y = MatMul(r, B) }"
    )
    x = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    assert onnxprune.measure_sensitivity(model, {"x": x}).samples == 20
