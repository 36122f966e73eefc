"""Random graphs against the masked original: whatever inference leaves free can be cut, in any way.

The graphs are made of every ruled operator (`tests/random_graphs`). Where one rounds, compares or picks, a sum that is
taken in another order may move the result by a step: then one of three sets of inputs must pass.
"""

from __future__ import annotations

from random import Random

import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from onnxprune.budget import Budget
from onnxprune.dims import Dim, Mask, atoms
from onnxprune.feeds import random_feeds
from onnxprune.inference import TypedGraph
from onnxprune.manager import PassManager, State, parse
from onnxprune.nodes import captured, operator
from onnxprune.passes import DEFAULT, PASSES
from onnxprune.plan import bind
from onnxprune.reading import load
from onnxprune.rules import RULES
from onnxprune.rules.deliberate import Deliberate
from onnxprune.sessions import Feeds, run, session
from onnxprune.validate.closeness import NOISE_FACTOR, NOISE_LIMIT, TOLERANCE, relative_error
from onnxprune.validate.surgery_check import surgery_check
from tests.common import check_cut, cut, feeds_for, plans, plant, typed_model
from tests.oracles import check_by_reference, tries
from tests.random_graphs.builder import REFERENCE_OPSET, Builder
from tests.random_graphs.table import LEFT_OUT, MOVES, graph_with, random_graph
from tests.test_lossless import lossless

SEEDS = st.integers(0, 1 << 30)
PLANS = 2  # of each graph
SINGLE_SEEDS = 8  # graphs of each operator that are looked at until one has a free dim
BRACKETS = {"BodyEnter", "BodyLeave"}
FIXED = {  # operators that make tensors of which nothing can go
    "Constant": "it has no inputs, and is a constant to its readers",
    **dict.fromkeys(("Range", "BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"), "it counts entries"),
}


def some(typed: TypedGraph, seed: int) -> list[dict[Dim, Mask]]:
    """A few of the plans."""
    found = list(plans(typed, seed))
    return Random(seed).sample(found, min(PLANS, len(found)))


def check(b: Builder, seed: int) -> TypedGraph:
    """Cut a graph in a few ways; every oracle looks at the results."""
    model = b.model()
    if b.valid:
        onnx.checker.check_model(model)
    typed = typed_model(model)
    if is_broken(b, model):
        return typed
    runs = b.opset < REFERENCE_OPSET
    for masks in some(typed, seed):
        try:
            pruned = check_cut(typed, masks, runs, b.valid, tries(model))
        except AssertionError as error:
            if "refuses the pruned model" in str(error) and is_broken(b, cut(typed, masks).to_proto()):
                continue
            raise
        if not runs:
            check_by_reference(typed, masks, pruned)
    return typed


def is_broken(b: Builder, model: ModelProto) -> bool:
    """Whether ONNX Runtime's optimisations make a graph that it refuses of one that it runs without them (int8 and
    uint8 around a Reshape or Transpose were met): nobody can use such a model, nor is it pruned, or saved.
    """
    if b.opset >= REFERENCE_OPSET:
        return False
    if aborts(model):
        return True
    session(model, optimise=False)
    try:
        session(model)
    except Exception:  # ONNX Runtime's own exceptions share no base class
        return True
    return False


def aborts(model: ModelProto) -> bool:
    """Whether a body takes the Transpose of a DequantizeLinear from outside: optimising that ends the process (ONNX
    Runtime 1.31, "Assertion '__n < this->size()' failed").
    """
    made = {name: node for node in model.graph.node for name in node.output}
    taken = (made.get(name) for node in model.graph.node for name in captured(node))
    turned = (made.get(node.input[0]) for node in taken if node is not None and node.op_type == "Transpose")
    return any(node is not None and node.op_type == "DequantizeLinear" for node in turned)


def test_every_ruled_operator_is_covered() -> None:
    """By a move, or left out for a reason."""
    typed = {op for op, rule in RULES.items() if not isinstance(rule, Deliberate)} - BRACKETS
    assert set(MOVES) | set(LEFT_OUT) == typed
    assert not set(MOVES) & set(LEFT_OUT)


@pytest.mark.parametrize("op", MOVES)
def test_operator(op: str) -> None:
    """A move builds its operator, with an axis that may go in at least one graph, which is then cut."""
    for seed in range(SINGLE_SEEDS):
        typed = typed_model(graph_with(op, Random(seed)).model())
        assert any(operator(n) == op for n in typed.graph.nodes)
        if op in FIXED or any(_is_free(s.inputs + s.outputs) for s in _signatures(typed, op)):
            check(graph_with(op, Random(seed)), seed)
            return
    raise AssertionError(f"no axis of {op} was free in {SINGLE_SEEDS} graphs")


def _signatures(typed: TypedGraph, op: str) -> list:
    return [s for n, s in zip(typed.graph.nodes, typed.signatures, strict=True) if operator(n) == op]


def _is_free(axes: list) -> bool:
    return any(not d.frozen and d.size > 1 for given in axes for e in given or [] for d in atoms(e))


@given(SEEDS)
@example(700087109)  # a kernel whose result must not lie in a buffer used before, in sections too
@example(78172573)  # ONNX Runtime's optimisations break it
@example(131689)  # as above, with a buffer that no input of the kernel is in
def test_what_is_free_can_be_cut(seed: int) -> None:
    check(random_graph(Random(seed)), seed)


@settings(max_examples=settings().max_examples // 2)
@given(SEEDS)
def test_default_pipeline(seed: int) -> None:
    """Folded, cut by half and cleaned up; compared with the graph as it was."""
    b = random_graph(Random(seed))
    if b.opset >= REFERENCE_OPSET:
        return
    model = b.model()
    if is_broken(b, model):
        return
    state = State(load(model), budget=Budget(ratio=0.5, scope="local"))
    PassManager(parse(DEFAULT, PASSES)).run(state)
    done = state.cuts[0]
    for k in range(tries(model)):
        feeds = feeds_for(done.typed, first=2 * k)
        result = surgery_check(done.typed, bind(done.plan, done.typed), state.graph, feeds, load(model))
        if result.passed:
            return
    raise AssertionError(result)


@settings(max_examples=settings().max_examples // 2)
@given(SEEDS)
def test_lossless_changes_nothing(seed: int) -> None:
    rng = Random(seed)
    b = random_graph(rng)
    if b.opset >= REFERENCE_OPSET:
        return
    model = plant(b.model(), rng)
    state = lossless(model)
    pruned = state.graph.to_proto()
    if b.valid:
        onnx.checker.check_model(pruned)
    facts = state.cuts[0].typed.facts
    for k in range(tries(model)):
        feeds = [random_feeds(load(model), binding, k) for binding in (facts.binding, facts.other)]
        worst = max((off(model, pruned, f) for f in feeds), key=lambda e: e[0] - e[1])
        if worst[0] <= worst[1]:
            return
    raise AssertionError(f"off by {worst[0]:.2g}, limit {worst[1]:.2g}")


def off(model: ModelProto, pruned: ModelProto, feeds: Feeds) -> tuple[float, float]:
    """How far two models are apart, and how far they may be: by the rounding noise of the first."""
    want, got = run(model, feeds), run(pruned, feeds)
    error = distance(want, got)
    if error <= TOLERANCE:
        return error, TOLERANCE
    moved = {n: (a * (1 + 2.0**-23)).astype(a.dtype) if a.dtype.kind == "f" else a for n, a in feeds.items()}
    optimised = dict(zip(want, session(model).run(None, feeds), strict=True))
    noise = max(distance(want, run(model, moved)), distance(want, optimised))
    return error, max(TOLERANCE, min(NOISE_LIMIT, NOISE_FACTOR * noise))


def distance(want: dict, got: dict) -> float:
    return max((relative_error(want[n], got[n]) for n in want), default=0.0)
