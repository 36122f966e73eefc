"""What the pass does in a pipeline; what it does to weights is in `tests/test_recovery.py`."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.budget import Budget
from onnxprune.errors import InputError
from onnxprune.feeds import Binding
from onnxprune.graph import outline
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import PASSES, in_steps
from onnxprune.reading import load
from tests.common import build

TEXT = """(float[n,6] x) => (float[n,4] y) <float[6,8] a, float[8] b, float[8,4] c, float[4] d> {
    h = Gemm(x, a, b) r = Relu(h) y = Gemm(r, c, d) }"""
FEEDS = [{"x": np.random.default_rng(k).normal(size=(32, 6)).astype(np.float32)} for k in range(4)]

PAIR = Binding({"x": (32, 6)}), Binding({"x": (33, 6)})


def state(**options: object) -> State:
    return State(
        load(build(TEXT)),
        PAIR,
        Budget(ratio=0.5),
        data=FEEDS,
        samples=128,
        **options,
    )  # type: ignore[arg-type]


def modified(pipeline: str, run: State) -> list[bool]:
    return [r.modified for r in PassManager(parse(pipeline, PASSES), verify_each=True).run(run) if "refit" in r.name]


def test_it_changes_weights_and_no_structure() -> None:
    run = state()
    assert modified("prune,refit-least-squares", run) == [True]
    (found,) = run.recoveries
    assert outline(found.before) == outline(found.after) and found.name == "refit-least-squares"
    assert [m.node for m in found.mended] == ["y"]
    assert np.array_equal(found.before.array("a"), found.after.array("a"))
    assert not np.allclose(found.before.array("c"), found.after.array("c"))


def test_without_a_cut_there_is_nothing_to_do() -> None:
    run = state()
    assert modified("remove-dead,refit-least-squares", run) == [False] and not run.recoveries


def test_a_dry_run_mends_nothing() -> None:
    assert modified("prune,refit-least-squares", state(dry_run=True)) == [False]


def test_each_step_recovers() -> None:
    run = state()
    run.budget = Budget(ratio=0.5, steps=2)
    assert modified(in_steps(2, True), run) == [True, True]
    assert [r.cuts for r in run.recoveries] == [1, 2]
    assert run.graph.array("c").shape == (4, 4) and run.done.removed == 4


def test_it_needs_data() -> None:
    run = state()
    run.data, run.budget = None, Budget(ratio=0.5, criterion="l2")
    with pytest.raises(InputError, match="refit-least-squares needs calibration data"):
        modified("prune,refit-least-squares", run)
