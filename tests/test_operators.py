"""Every operator of the ONNX domains is decided: a rule, or a barrier with a reason; the documentation says so."""

from __future__ import annotations

from pathlib import Path

import onnx

from onnxprune.operators import markdown, operators
from onnxprune.rules import RULES

DOCS = Path(__file__).parents[1] / "docs" / "operators.md"
ML = "ai.onnx.ml"
FLOATS = {"tensor(float)", "tensor(float16)", "tensor(double)", "tensor(bfloat16)"}


def test_every_operator_of_every_opset_is_decided() -> None:
    schemas = onnx.defs.get_all_schemas_with_history()
    assert {s.name for s in schemas if s.domain == ""} <= set(RULES)
    assert {f"{ML}.{s.name}" for s in schemas if s.domain == ML} <= set(RULES)


def test_nine_of_ten_float_operators_are_typed() -> None:
    typed = {o.name: o.typed for o in operators()}
    floating = {s.name for s in onnx.defs.get_all_schemas() if s.domain == "" and _computes_floats(s)}
    assert sum(typed[n] for n in floating) >= 0.9 * len(floating) > 100


def _computes_floats(schema: onnx.defs.OpSchema) -> bool:
    """Float tensors in, float tensors out; sequences and random numbers are not computed."""
    values = [*schema.inputs[:1], *schema.outputs[:1]]
    return len(values) == 2 and all(FLOATS & set(v.types) and not any("seq(" in t for t in v.types) for v in values)


def test_every_behaviour_is_said_in_words() -> None:
    for row in operators():
        assert len(row.behaviour) > 10, row
        assert "unknown" not in row.behaviour


def test_documentation_is_current() -> None:
    assert DOCS.read_text(encoding="utf-8") == markdown(), "run: onnxprune ops --markdown > docs/operators.md"
