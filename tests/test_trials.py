"""Choices that are made by trying them."""

from __future__ import annotations

from pathlib import Path

import onnxprune
from onnxprune.reading import load
from onnxprune.trials import outer_factors
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
    told = next(n for n in made.report.notes if n.startswith("widths were tried with"))
    first, second = map(float, told.rsplit(": ", 1)[1].split(" and "))
    assert second < first
