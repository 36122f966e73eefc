"""Cases of a pass: a model as text before, the lines of its outline after, and what must hold for every pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto

from onnxprune.feeds import random_feeds
from onnxprune.graph import Graph, outline
from onnxprune.manager import PassManager, PassResult, State, parse
from onnxprune.passes import PASSES
from onnxprune.reading import load
from onnxprune.sessions import run
from onnxprune.trace import trace
from onnxprune.writing import serialize
from tests.common import build


@dataclass(frozen=True)
class Case:
    """`after`: constants and nodes of the outline; None for no change. `same`: outputs must not change."""

    title: str
    before: str
    after: str | None = None
    opset: int = 21
    same: bool = True

    def __str__(self) -> str:
        return self.title.replace(" ", "-")


def lines(graph: Graph) -> list[str]:
    return [line.strip() for line in outline(graph).splitlines() if not line.startswith(("in ", "out "))]


def passed(model: ModelProto, text: str) -> tuple[Graph, list[PassResult]]:
    """The graph that a pipeline makes, the model being left as it is."""
    before = serialize(model)
    state = State(load(model))
    results = PassManager(parse(text, PASSES)).run(state)
    assert serialize(model) == before
    return state.graph, results


def check(case: Case, text: str) -> None:
    """The outline is as stated, the checker agrees, outputs are the same, and a second run has nothing to do."""
    model = build(case.before, case.opset)
    onnx.checker.check_model(model)
    graph, results = passed(model, text)
    want = lines(load(model)) if case.after is None else [line.strip() for line in case.after.splitlines()]
    assert lines(graph) == want
    assert results[-1].modified == (case.after is not None)
    made = graph.to_proto()
    onnx.checker.check_model(made)
    if case.same:
        same_outputs(model, made)
    again, results = passed(made, text)
    assert not results[-1].modified and serialize(again.to_proto()) == serialize(made)


def same_outputs(before: ModelProto, after: ModelProto) -> None:
    """At both traced sizes."""
    graph = load(before)
    facts = trace(graph)
    for seed, binding in enumerate((facts.binding, facts.other)):
        feeds = random_feeds(graph, binding, seed)
        want, got = run(before, feeds), run(after, feeds)
        assert list(want) == list(got)
        for name, array in want.items():
            np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-5, err_msg=name)
