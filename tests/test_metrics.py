"""Metrics: their values by hand, what they refuse, users' own, and what a run records of them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxprune
from onnxprune import metrics, pruning
from onnxprune.data import Samples
from onnxprune.errors import InputError
from onnxprune.metrics import METRICS, Metric, Yardstick, find_metric
from onnxprune.reading import load
from onnxprune.sessions import program
from onnxprune.validate import numerics
from onnxprune.validate.numerics import Comparison, Original
from tests.common import build

FOLDER = Path(__file__).resolve().parent.parent / "models"
ACCURACIES = [("mnist_cnn", 497, 500), ("mnist_vit", 490, 500), ("langid_gru", 481, 522)]  # of models/README.md
IDENTITY = load(build("(float[N,4] x) => (float[N,4] y) { y = Identity(x) }"))
DOUBLE = load(build("(float[N,4] x) => (float[N,4] y) { y = Add(x, x) }"))
NEGATED = load(build("(float[N,4] x) => (float[N,4] y) { y = Neg(x) }"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency of a few rounds: it is not what these tests are about."""
    monkeypatch.setattr("onnxprune.validate.latency.MIN_SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr("onnxprune.validate.latency.MAX_ROUNDS", 9)


def tallied(name: str, want: Any, got: Any, **labels: Any) -> float:
    """A built-in metric over two feeds: the first row, then the others. Outputs are arrays or dicts of them."""
    tally = METRICS[name].tally
    assert tally is not None
    made = tally()
    want, got = (x if isinstance(x, dict) else {"y": x} for x in (want, got))
    for part in (slice(0, 1), slice(1, None)):
        a, b, c = ({n: np.asarray(v)[part] for n, v in d.items()} for d in (want, got, labels))
        made.add(a, b, c)
    return made.value()


def scores(*best: int, classes: int = 6) -> np.ndarray[Any, Any]:
    """Rows that have their largest entry at `best`, the others falling from class 0 on."""
    rows = np.tile(-np.arange(classes, dtype=np.float32), (len(best), 1))
    rows[np.arange(len(best)), best] = 5
    return rows


ONES = np.ones((4, 5), np.float32)
LABELS = np.array([0, 1, 2, 3])
# metric, original, other, labels, value by hand
VALUES: list[tuple[str, Any, Any, dict[str, Any], float]] = [
    ("rel-l2", ONES, ONES * 1.5, {}, 0.5),
    ("rel-l2", {"a": ONES, "b": ONES}, {"a": ONES, "b": ONES * 1.5}, {}, 0.25),
    ("rel-l2", {"a": ONES, "b": ONES.astype(int)}, {"a": ONES * 3, "b": ONES.astype(int)}, {}, 2.0),
    ("rel-l2", ONES, ONES, {}, 0.0),
    ("rel-l2", ONES * 0, ONES, {}, math.inf),
    ("rel-l2", ONES, ONES * np.nan, {}, math.inf),
    ("rel-l2", ONES * np.nan, ONES, {}, 0.0),
    ("cosine", ONES, ONES * 7, {}, 1.0),
    ("cosine", ONES, -ONES, {}, -1.0),
    ("cosine", ONES, ONES * 0, {}, 0.0),
    ("cosine", ONES, ONES * np.inf, {}, 0.0),
    ("sqnr-db", ONES, ONES * 0.5, {}, 20 * math.log10(2)),
    ("sqnr-db", ONES, ONES, {}, math.inf),
    ("top1-agreement", scores(0, 1, 2, 3), scores(0, 1, 2, 4), {}, 0.75),
    ("top1-agreement", LABELS, LABELS[::-1], {}, 0.0),
    ("top1-agreement", scores(0, 0), np.full((2, 6), np.nan, np.float32), {}, 0.0),
    ("top1", ONES, scores(0, 1, 2, 4), {"labels": LABELS}, 0.75),
    ("top1", ONES, scores(0, 1, 2, 4)[:, :, None, None], {"y": LABELS[:, None]}, 0.75),
    ("top1", ONES, {"a": np.zeros((4, 2, 3)), "b": scores(3, 1, 2, 3)}, {"targets": LABELS}, 0.75),
    ("top1", ONES, ONES, {"label": LABELS}, 0.25),  # ties: the first class
    ("top1", ONES, ONES * np.nan, {"label": LABELS * 0}, 0.0),
    ("top5", ONES, scores(5, 5, 5, 5), {"labels": np.array([5, 3, 4, 0])}, 0.75),
    ("kl", scores(0, 1), scores(0, 1) + 7, {}, 0.0),
    ("kl", np.log([[0.5, 0.5]] * 2), np.log([[0.25, 0.75]] * 2), {}, 0.5 * math.log(2) + 0.5 * math.log(2 / 3)),
    ("kl", np.array([[0.5, 0.5]] * 2), np.array([[0.25, 0.75]] * 2), {}, 0.5 * math.log(2) + 0.5 * math.log(2 / 3)),
    ("kl", np.array([[1.0, 0.0]] * 2), np.array([[0.5, 0.5]] * 2), {}, math.log(2)),
    ("kl", np.array([[3.0, -np.inf]] * 2), np.array([[0.0, 0.0]] * 2), {}, math.log(2)),
    ("kl", scores(0, 1), scores(0, 1) * np.nan, {}, math.inf),
]  # fmt: skip


@pytest.mark.parametrize(("name", "want", "got", "labels", "value"), VALUES)
def test_values_by_hand(name: str, want: Any, got: Any, labels: dict[str, Any], value: float) -> None:
    assert tallied(name, want, got, **labels) == pytest.approx(value, abs=1e-6)


def test_every_built_in_metric_has_a_value_by_hand() -> None:
    assert {name for name, *_ in VALUES} == set(METRICS)


# metric, outputs, labels, a word of the message
MISFITS: list[tuple[str, Any, dict[str, Any], str]] = [
    ("top1", ONES, {}, "labels or label or y or targets"),
    ("top1", ONES, {"names": LABELS}, "names"),
    ("top1", ONES, {"labels": LABELS.astype(float)}, "whole number"),
    ("top1", ONES, {"labels": np.zeros((4, 3), int)}, "whole number"),
    ("top1", ONES, {"labels": LABELS + 2}, "5 classes"),
    ("top1", ONES, {"labels": LABELS - 1}, "-1"),
    ("top1", np.zeros((4, 5, 6)), {"labels": LABELS}, "class scores"),
    ("kl", np.zeros((4, 1)), {}, "class scores"),
    ("rel-l2", LABELS, {}, "rel_l2"),
    ("top1-agreement", np.zeros((4, 5, 6)), {}, "top1_agreement"),
]


@pytest.mark.parametrize(("name", "outputs", "labels", "word"), MISFITS)
def test_what_a_metric_does_not_fit(name: str, outputs: Any, labels: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        tallied(name, outputs, outputs, **labels)


# higher is better, before, after, the drop
DROPS = [
    (True, 0.8, 0.6, 0.25),
    (True, 0.8, 0.8, 0.0),
    (True, 0.8, 1.0, -0.25),
    (True, -2.0, -3.0, 0.5),
    (True, 0.0, -0.5, 0.5),
    (False, 4.0, 5.0, 0.25),
    (False, 0.0, 0.3, 0.3),
    (True, math.inf, 20.0, 0.1),
    (True, math.inf, math.inf, 0.0),
    (True, 0.8, math.nan, math.inf),
    (False, 4.0, math.inf, math.inf),
]


@pytest.mark.parametrize(("higher", "before", "after", "drop"), DROPS)
def test_drop(higher: bool, before: float, after: float, drop: float) -> None:
    assert Metric("m", higher).drop(before, after) == pytest.approx(drop)


# comparisons
def test_comparison_over_feeds_is_that_of_all_at_once() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 10, 7))
    whole, parts = Comparison(), Comparison()
    whole.add({"y": a}, {"y": b}, {})
    for k in range(0, 10, 3):
        parts.add({"y": a[k : k + 3]}, {"y": b[k : k + 3]}, {})
    row = whole.table()["y"]
    assert parts.table()["y"] == pytest.approx(row)
    assert row["rel_l2"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))
    assert row["cosine"] == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert (row["max_abs"], row["top1_agreement"]) == (np.abs(a - b).max(), np.mean(a.argmax(1) == b.argmax(1)))


def test_outputs_of_other_shapes_are_not_compared() -> None:
    made = Comparison()
    made.add({"y": ONES, "z": ONES}, {"y": ONES, "other": ONES[:, :2]}, {})
    assert list(made.table()) == ["y"]


@pytest.mark.parametrize("kept", [0, 2**28])
def test_the_original_is_run_once_where_its_outputs_can_be_kept(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "KEPT_BYTES", kept)
    runs = []
    monkeypatch.setattr(numerics, "session", lambda *a, plain=numerics.session: (runs.append(1), plain(*a))[1])
    data = Samples(IDENTITY, {"x": ONES[:, :4]})
    original = Original(lambda: program(IDENTITY), data.labelled)
    for _ in range(3):
        assert [want["y"].tolist() for _, _, want in original] == [ONES[:, :4].tolist()]
    assert len(runs) == (1 if kept else 3) and original.samples == 4


# on models
@pytest.mark.parametrize(("name", "right", "count"), ACCURACIES)
def test_top1_is_the_accuracy_that_was_published(name: str, right: int, count: int) -> None:
    graph = load(FOLDER / f"{name}.onnx")
    data = Samples(graph, FOLDER / f"{name}.heldout.npz", None)
    scale = Yardstick(Original(lambda: program(graph), data.labelled))
    reading = scale.read("original")
    assert (reading.name, reading.value, reading.samples, reading.drop) == ("top1", right / count, count, 0.0)


def yardstick(metric: metrics.MetricLike | None, **labels: Any) -> Yardstick:
    x = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    data = Samples(IDENTITY, {"x": x, **labels})
    return Yardstick(Original(lambda: program(IDENTITY), data.labelled), metric)


def test_readings_of_other_models() -> None:
    scale = yardstick("rel-l2")
    seen = Comparison()
    double = scale.read("step 1", program(DOUBLE), [seen])
    assert (double.stage, double.value, double.drop, double.samples) == ("step 1", 1.0, 1.0, 50)
    assert seen.table()["y"]["rel_l2"] == 1.0
    assert scale.read("again", program(IDENTITY)).value == 0.0
    assert yardstick("top1-agreement").read("x", program(NEGATED)).value == 0.0


# labels, the default
DEFAULTS: list[tuple[dict[str, Any], str]] = [
    ({}, "rel-l2"),
    ({"labels": np.arange(50) % 4}, "top1"),
    ({"labels": np.arange(50)}, "rel-l2"),  # more than there are classes
    ({"targets": np.linspace(0, 1, 50)}, "rel-l2"),
]


@pytest.mark.parametrize(("labels", "name"), DEFAULTS)
def test_default(labels: dict[str, Any], name: str) -> None:
    assert yardstick(None, **labels).metric.name == name


def test_default_of_models_that_give_whole_numbers() -> None:
    graph = load(build("(float[N,4] x) => (int64[N,1] y) { y = ArgMax<axis = 1>(x) }"))
    data = Samples(graph, {"x": np.eye(4, dtype=np.float32)})
    assert Yardstick(Original(lambda: program(graph), data.labelled)).metric.name == "top1-agreement"


# users' own
def share_positive(run: Any, data: Any) -> np.float32:
    """Two walks over the data, outputs by name, labels by name."""
    assert sum(len(labels["weight"]) for _, labels in data) == 50
    return np.mean(np.concatenate([run(feeds)["y"].reshape(-1) > 0 for feeds, _ in data]))


def largest(run: Any, data: Any) -> Any:
    return max(run(feeds)["y"].max() for feeds, _ in data)


largest.higher_is_better = False  # type: ignore[attr-defined]


def test_a_function() -> None:
    scale = yardstick(share_positive, weight=np.ones(50))
    assert (scale.metric.name, scale.metric.higher_is_better) == ("share_positive", True)
    assert 0.4 < scale.before < 0.6 and scale.read("x", program(DOUBLE)).drop == 0.0
    scale = yardstick(largest)
    assert scale.read("x", program(DOUBLE)).drop == pytest.approx(1.0) and not scale.metric.higher_is_better


def test_a_function_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imported from the current folder, together with what lies beside it, also while it runs."""
    (tmp_path / "beside_it.py").write_text("HALF = 0.5\n")
    text = "def half(run, data):\n    from beside_it import HALF\n    return HALF * len(list(data))\n"
    (tmp_path / "measures_a.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert yardstick("measures_a:half").before == 1.0
    assert str(tmp_path) not in sys.path


# text of the module measures, the metric, a word of the message
BROKEN = [
    ("", "unknown", "rel-l2, cosine"),
    ("", ":f", "module:function"),
    ("", "f:", "module:function"),
    ("", "there_is_none:f", "there_is_none"),
    ("def f(:\n", "NAME:f", "SyntaxError"),
    ("import there_is_none\n", "NAME:f", "there_is_none"),
    ("raise SystemExit(0)\n", "NAME:f", "SystemExit"),
    ("f = 3\n", "NAME:f", "no function 'f'"),
    ("def f():\n    return 1\n", "NAME:f", "TypeError"),
    ("def f(run, data):\n    return 1 / 0\n", "NAME:f", r"ZeroDivisionError.*line 2"),
    ("def f(run, data):\n    raise SystemExit(0)\n", "NAME:f", "SystemExit"),
    ("def f(run, data):\n    return None\n", "NAME:f", "NoneType"),
    ("def f(run, data):\n    return [1, 2]\n", "NAME:f", "list"),
    ("def f(run, data):\n    return run({})\n", "NAME:f", "does not run"),
]


@pytest.mark.parametrize(("text", "metric", "word"), BROKEN)
def test_metrics_that_cannot_be_used(
    text: str, metric: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"measures_{BROKEN.index((text, metric, word))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=word):
        yardstick(metric.replace("NAME", name))


@pytest.mark.parametrize("given", [3, Metric("empty")])
def test_what_is_no_metric(given: Any) -> None:
    with pytest.raises(InputError, match="metric"):
        yardstick(given)
    assert find_metric(METRICS["kl"]) is METRICS["kl"]


# in a run
def test_a_run_measures_before_and_after(tmp_path: Path) -> None:
    """On all of the test data; calibration data is another file."""
    given = np.load(FOLDER / "mnist_cnn.heldout.npz")
    model, calibration, tests = FOLDER / "mnist_cnn.onnx", FOLDER / "mnist_cnn.calib.npz", tmp_path / "t.npz"
    np.savez(tests, image=given["image"][::5], label=given["labels"][::5])
    report = onnxprune.prune(model, ratio=0.1, data=calibration, test_data=tests, samples=64).report
    before, after, _ = report.metrics
    assert [(m.stage, m.name, m.samples) for m in report.metrics] == [
        (s, "top1", 100) for s in ("original", "removed", "recovered")
    ]
    assert before.value >= 0.98 and after.drop == pytest.approx(1 - after.value / before.value)
    shown = json.loads(report.to_json())["metrics"]
    assert shown[1] == {
        "stage": "removed", "name": "top1", "value": after.value, "drop": after.drop, "higher_is_better": True,
        "samples": 100,
    }  # fmt: skip
    report.metrics.append(metrics.Reading("another", "top1", math.nan, math.inf, True, 100))
    assert json.loads(report.to_json())["metrics"][3]["value"] is None


def test_a_run_without_data_measures_nothing() -> None:
    graph = build("(float[N,4] x) => (float[N,4] y) <float[4,8] A, float[8,4] B> { h = MatMul(x, A) y = MatMul(h, B) }")
    assert onnxprune.prune(graph, ratio=0.5).report.metrics == []
    with pytest.raises(InputError, match="needs data"):
        onnxprune.prune(graph, ratio=0.5, metric="rel-l2")
    report = onnxprune.prune(graph, ratio=0.5, data="random", samples=8).report
    assert [m.samples for m in report.metrics] == [8, 8, 8] and report.numerics_on == "random inputs"
    assert any("poor choice" in note for note in report.notes)


def test_metrics_fail_before_anything_is_done() -> None:
    called: list[Callable[..., object]] = []
    with pytest.raises(InputError, match="ZeroDivisionError"):
        pruning.run(
            load(FOLDER / "mnist_cnn.onnx"), data=FOLDER / "mnist_cnn.calib.npz", metric=lambda run, data: 1 / 0,
            passes="fold-constants", progress=called.append,  # type: ignore[arg-type]
        )  # fmt: skip
    assert called == ["running the original"]
