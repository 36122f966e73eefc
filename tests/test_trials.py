"""Choices that are made by trying them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxprune
from onnxprune.budget import Budget
from onnxprune.graph import Graph
from onnxprune.manager import Pass, State
from onnxprune.plan import Plan
from onnxprune.reading import load
from onnxprune.recovery import _same, recover
from onnxprune.trials import Outcome, outer_factors, rivals
from tests.common import typed_model

MODELS = Path(__file__).resolve().parent.parent / "models"
GRU = MODELS / "langid_gru.onnx"


def test_directions_are_outer_factors_of_hidden_units() -> None:
    typed = typed_model(load(GRU).to_proto())
    dims = {d.name: d.dim for d in typed.prunable}
    directions = {d for n, d in dims.items() if d.size == 2}
    assert len(directions) == 2
    assert outer_factors(typed, dims.values()) == directions
    assert outer_factors(typed, directions) == directions
    assert outer_factors(typed, set(dims.values()) - directions) == set()


def test_of_an_allocation_that_cuts_factors_of_one_axis_and_its_rival_the_better_is_kept() -> None:
    made = onnxprune.prune(GRU, params=0.6, data=MODELS / "langid_gru.calib.npz", check=False)
    assert not any(m.size == 2 for m in made.plan.keep.values())
    told = next(n for n in made.report.notes if n.startswith("widths were tried"))
    curves, whole, even = (float(part.split()[0]) for part in told.split(": ")[1].split(", "))
    assert whole < min(curves, even)


def test_the_same_share_of_every_dim_is_tried_where_data_are_not_too_large() -> None:
    graph = load(MODELS / "mnist_cnn.onnx")
    state = State(graph, data=[{"image": np.zeros((8, 1, 28, 28), np.float32)}], samples=8)
    budget = Budget(macs=0.5)
    assert [b.scope for b in rivals(state, budget, ()).values()] == ["local"]
    state.samples = 10**9
    assert not rivals(state, budget, ())


def test_of_all_widths_that_were_tried_the_best_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def even_is_best(state: State, passes: Sequence[Pass], plan: Plan) -> Outcome:
        return Outcome(float(np.std([m.mean() for m in plan.keep.values()])), None)

    monkeypatch.setattr("onnxprune.passes.prune.outcome", even_is_best)
    options = {"macs": 0.5, "data": MODELS / "mnist_cnn.calib.npz", "check": False}
    made = onnxprune.prune(MODELS / "mnist_cnn.onnx", **options)
    even = onnxprune.prune(MODELS / "mnist_cnn.onnx", scope="local", **options)
    assert made.plan.to_json() == even.plan.to_json()


def test_what_the_best_trial_recovered_is_not_recovered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bytes] = []

    def counted(graph: Graph, *arguments: Any, **options: Any) -> Any:
        calls.append(graph.to_proto().SerializeToString())
        return recover(graph, *arguments, **options)

    monkeypatch.setattr("onnxprune.recovery.recover", counted)
    model, data = MODELS / "mnist_cnn.onnx", MODELS / "mnist_cnn.calib.npz"
    made = onnxprune.prune(model, macs=0.5, data=data, check=False)
    assert len(calls) == len(set(calls)) == 2
    again = onnxprune.apply(model, made.plan, data=data, check=False)
    assert len(calls) == 3 and again.model == made.model


def test_graphs_above_2_gb_are_recovered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = load(MODELS / "mnist_cnn.onnx")
    assert _same(graph, graph)
    monkeypatch.setattr(Graph, "is_large", property(lambda self: True))
    assert not _same(graph, graph)
