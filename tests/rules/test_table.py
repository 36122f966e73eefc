"""The rows as a whole: every rule has one, every reason is produced by one, all survive the default pipeline."""

from __future__ import annotations

import importlib
import pkgutil
from random import Random

import pytest

from onnxprune.budget import Budget
from onnxprune.dims import REASONS
from onnxprune.graph import outline
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import DEFAULT, PASSES
from onnxprune.passes.prune import cut
from onnxprune.plan import bind
from onnxprune.reading import load
from onnxprune.rules import RULES
from onnxprune.rules.deliberate import Deliberate
from onnxprune.validate.surgery_check import surgery_check
from tests import rules
from tests.common import Row, build, check_row, feeds_for, free_dims, plant, reason_code, typed_model, vector
from tests.test_lossless import check_lossless

FAMILIES = [importlib.import_module(f"tests.rules.{m.name}") for m in pkgutil.iter_modules(rules.__path__)
            if m.name.startswith("test_") and m.name != "test_table"]  # fmt: skip
ROWS = [row for family in FAMILIES for row in family.ROWS]
BRACKETS = {"BodyEnter", "BodyLeave"}  # of the bodies of If, Loop and Scan, whose rows go through them
DELIBERATE = {op: rule for op, rule in RULES.items() if isinstance(rule, Deliberate)}
OTHER_REASONS = [
    Row("MatMul", "graph output", "(float[N,4] x) => (float[N,8] y) <float[4,8] A> { y = MatMul(x, A) }", "",
        "A:1=graph-output"),
    Row("MatMul", "dynamic", "(float[N,4] x) => (float[M] y) <float[4,1] A> { h = MatMul(x, A) y = Reshape(h, s) }"
        .replace("<float[4,1] A>", "<float[4,1] A, int64[1] s = {-1}>"), "", "y:0=dynamic"),
    Row("Foo", "custom operator", vector("f = com.example.Foo(h) k = MatMul(x, C) g = Add(k, f)", "float[4,8] C"), "",
        "A:1=no-rule C:1=shape-unknown", runs=False),
    Row("Concat", "single units", "(float[N,4] x) => (float[N,3] y) <float[4,1] A, float[4,1] B, float[2,3] C>"
        "{ a = MatMul(x, A) b = MatMul(x, B) c = Concat <axis = 1> (a, b) y = MatMul(c, C) }", "", "C:0=single"),
    Row("MatMul", "broken model", vector("g = Identity(h)").replace("[8,3] B", "[6,3] B"), "", "A:1=rule-mismatch",
        runs=False),
]  # fmt: skip


@pytest.mark.parametrize("row", OTHER_REASONS, ids=str)
def test_reason(row: Row) -> None:
    check_row(row)


def test_every_rule_has_a_row() -> None:
    assert {row.op for row in ROWS} | BRACKETS | set(DELIBERATE) == set(RULES)


@pytest.mark.parametrize("op", sorted(DELIBERATE))
def test_deliberately_untyped(op: str) -> None:
    """All that such a node touches is frozen, for the reason given."""
    typed = typed_model(build(vector(f"g = {op}(h)"), 24))
    assert free_dims(typed) == ""
    assert reason_code(typed, "A:1") == DELIBERATE[op].code


def test_every_row_has_its_operator_and_a_name_of_its_own() -> None:
    assert not [row for row in ROWS if f"{row.op}(" not in row.text.replace(" ", "") and f"{row.op} " not in row.text]
    assert len({str(row) for row in ROWS}) == len(ROWS)


def test_every_reason_is_produced() -> None:
    produced = {entry.split("=")[1] for row in [*ROWS, *OTHER_REASONS] for entry in row.frozen.split()}
    assert produced - {"free"} | {rule.code for rule in DELIBERATE.values()} == set(REASONS)


@pytest.mark.parametrize("row", [r for r in ROWS if r.free and r.runs], ids=str)
def test_default_pipeline(row: Row) -> None:
    """Half of every dim goes, after folding; what is left equals the masked original."""
    state = State(load(build(row.text, row.opset)), budget=Budget(ratio=0.5, scope="local"))
    PassManager(parse(DEFAULT, PASSES)).run(state)
    done = state.cuts[0]
    feeds = feeds_for(done.typed)
    assert done.plan.removed or row.free.endswith("=1")
    result = surgery_check(done.typed, bind(done.plan, done.typed), state.graph.to_proto(), feeds)
    assert result.passed, result


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("row", [r for r in ROWS if r.runs and r.valid and r.op != "Resize"], ids=str)
def test_lossless_changes_nothing(row: Row, seed: int) -> None:
    """Whatever is zero in the weights; scales of Resize are no weights."""
    check_lossless(plant(build(row.text, row.opset, seed), Random(seed)))


@pytest.mark.parametrize("row", ROWS[::7], ids=str)
def test_removing_nothing_changes_nothing(row: Row) -> None:
    typed = typed_model(build(row.text, row.opset))
    whole = cut(typed, {})
    assert outline(whole) == outline(typed.graph)
    assert whole.to_proto() == typed.graph.to_proto()
