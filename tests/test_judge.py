"""How sure a loss is: standard errors by hand, for metrics that are summed up and for users' own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from onnxprune.data import Samples
from onnxprune.graph import Graph
from onnxprune.judge import FEWEST, GROUPS, Judge
from onnxprune.metrics import MetricLike, Yardstick
from onnxprune.reading import load
from onnxprune.sessions import program
from onnxprune.validate.numerics import Original
from tests.common import build

COUNT = 96  # three samples a group
TEXT = "(float[{n},4] x) => (float[{n},4] y) <float[4,4] w> {{ y = MatMul(x, w) }}"
EXACT, OFF = (np.eye(4, dtype=np.float32) for _ in range(2))
OFF[0, 1] = 1.2  # what is class 0 becomes class 1


def model(weight: Any, batch: str = "N") -> Graph:
    proto = build(TEXT.format(n=batch))
    proto.graph.initializer[0].raw_data = weight.tobytes()
    return load(proto)


CLASSES = np.random.default_rng(0).integers(0, 4, COUNT)
X = np.eye(4, dtype=np.float32)[CLASSES]
LOST = CLASSES == 0  # by OFF


def judge(metric: MetricLike, batch: str = "N", count: int = COUNT, **more: Any) -> Judge:
    original = model(EXACT, batch)
    data = Samples(original, {"x": X[:count], "labels": CLASSES[:count], **more}, None)
    return Judge(Yardstick(Original(lambda: program(original), data.labelled), metric))


def by_hand(lost: Any, groups: int = GROUPS) -> float:
    means = [lost[k::groups].mean() for k in range(groups)]
    return float(np.std(means, ddof=1) / math.sqrt(groups))


def accuracy(run: Any, data: Any) -> float:
    return float(np.concatenate([run(f)["y"].argmax(1) == labels["labels"] for f, labels in data]).mean())


@pytest.mark.parametrize("metric", ["top1", accuracy])
def test_the_error_of_an_accuracy(metric: MetricLike) -> None:
    """It is close to that of the mean of numbers that are drawn one by one."""
    loss = judge(metric).loss(program(model(OFF)))
    assert (loss.drop, loss.samples) == (pytest.approx(LOST.mean()), COUNT)
    assert loss.error == pytest.approx(by_hand(LOST))
    assert loss.error == pytest.approx(LOST.std() / math.sqrt(COUNT), rel=0.4)
    same = judge(metric).loss(program(model(EXACT)))
    assert (same.drop, same.error) == (0.0, 0.0)


def test_gains_and_losses_that_even_out_are_no_certainty() -> None:
    """The labels are such that as many samples become right as become wrong."""
    labels = np.where(LOST & (np.cumsum(LOST) % 2 == 0), 1, CLASSES)
    loss = judge("top1", labels=labels).loss(program(model(OFF)))
    assert abs(loss.drop) < 0.05 and loss.error is not None and loss.error > 0.03


def test_the_error_of_a_distance() -> None:
    """Relative to nothing: the original's own distance is 0; and of decibels, which are infinite for it."""
    found = {m: judge(m).loss(program(model(OFF))) for m in ("rel-l2", "sqnr-db")}
    assert all(loss.error is not None and 0 < loss.error < loss.drop for loss in found.values())
    assert found["sqnr-db"].drop == pytest.approx(found["rel-l2"].drop)


@pytest.mark.parametrize("metric", ["top1", accuracy])
def test_models_of_a_fixed_batch_size(metric: MetricLike) -> None:
    """For a user's function feeds go to groups as a whole."""
    loss = judge(metric, "6").loss(program(model(OFF, "6")))
    assert loss.error is not None and 0 < loss.error < loss.drop


def test_a_function_that_needs_many_samples_gets_larger_groups() -> None:
    def balanced(run: Any, data: Any) -> float:
        assert sum(len(labels["labels"]) for _, labels in data) >= 10
        return accuracy(run, data)

    assert judge(balanced).loss(program(model(OFF))).error == pytest.approx(by_hand(LOST, GROUPS // 4))


def test_an_error_that_cannot_be_told() -> None:
    def of_all(run: Any, data: Any) -> float:
        assert sum(len(labels["labels"]) for _, labels in data) == COUNT
        return accuracy(run, data)

    loss = judge(of_all).loss(program(model(OFF)))
    assert loss.error is None and loss.drop == pytest.approx(LOST.mean())
    assert judge(accuracy, count=FEWEST - 1).loss(program(model(OFF))).error is None
    assert judge("top1", count=1).loss(program(model(OFF))).error is None


def test_of_many_large_samples_the_first_ones_tell_a_function_s_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.judge.KEPT_BYTES", X[:64].nbytes)
    loss = judge(accuracy).loss(program(model(OFF)))
    assert loss.error == pytest.approx(by_hand(LOST[:64]) * math.sqrt(64 / COUNT))
