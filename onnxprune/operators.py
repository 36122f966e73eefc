"""What is decided for each operator: typed by a rule, or a deliberate barrier. One table for `onnxprune ops`, the docs
and the tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx

from onnxprune.rules import RULES
from onnxprune.rules.deliberate import Deliberate


@dataclass(frozen=True)
class Operator:
    """`name` carries its domain where that is not the default; `opsets` are the versions that changed it."""

    name: str
    opsets: tuple[int, ...]
    typed: bool
    behaviour: str


def operators() -> Iterator[Operator]:
    """All operators of the default domain, and those of other domains that have a rule, by name."""
    versions: dict[str, set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            versions.setdefault(schema.name, set()).add(schema.since_version)
    internal = {"BodyEnter", "BodyLeave"}
    for name in sorted((set(versions) | set(RULES)) - internal, key=str.lower):
        rule = RULES.get(name)
        typed = rule is not None and not isinstance(rule, Deliberate)
        yield Operator(name, tuple(sorted(versions.get(name, ()))), typed, behaviour(rule))


def behaviour(rule: Any) -> str:
    """The first sentence of a rule's documentation, or the reason of a barrier."""
    if rule is None:
        return "no rule: what it touches is frozen"
    if isinstance(rule, Deliberate):
        return f"barrier: {rule.detail}"
    text = (rule.func if isinstance(rule, partial) else rule).__doc__ or ""
    line = " ".join(text.split("\n\n")[0].split())
    _, colon, rest = line.partition("): ") if "(opset" in line[:60] else line.partition(": ")
    said = (rest if colon else line).split(". ")[0].rstrip(".")
    return said[:1].lower() + said[1:] if said[1:2].islower() else said


def markdown() -> str:
    """The table as a page of the documentation."""
    found = list(operators())
    rows = [f"| {o.name} | {', '.join(map(str, o.opsets)) or '-'} | {o.behaviour.replace('|', '/')} |" for o in found]
    typed = sum(o.typed for o in found)
    head = f"""# Operators

What is decided for each operator: {typed} are typed, {len(found) - typed} are deliberate barriers: what they touch is
frozen, with this reason. Versions are the opsets that changed the operator; a rule covers all of them.
Made by `onnxprune ops --markdown`.

| operator | opsets | behaviour |
|---|---|---|
"""
    return head + "\n".join(rows) + "\n"
