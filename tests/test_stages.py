"""A graph that is run in pieces gives what it gives in one run, whatever is held in between."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from onnxprune import sessions
from onnxprune.feeds import random_feeds
from onnxprune.reading import load
from onnxprune.sessions import watched
from onnxprune.stages import Room, Stages
from onnxprune.trace import trace
from tests.common import build

CHAIN = """(float[2,6] x) => (float[2,4] y) <float[6,8] a, float[8,8] b, float[8,4] c> {
    h = MatMul(x, a) r = Relu(h) k = MatMul(r, b) s = Add(k, r) y = MatMul(s, c) }"""
BRANCHES = """(float[2,6] x, bool c) => (float[2,4] y) <float[6,8] a, float[8,8] b, float[8,4] d> {
    h = MatMul(x, a)
    r = If(c) <then_branch = one () => (float[2,8] t) { t = MatMul(h, b) },
               else_branch = two () => (float[2,8] u) { u = Relu(h) }>
    s = Add(r, h) y = MatMul(s, d) }"""


@pytest.mark.parametrize("limit", (0, 100, 1 << 20))
@pytest.mark.parametrize(("text", "order"), ((CHAIN, ("h", "r", "k", "s", "y")), (BRANCHES, ("h", "r", "s", "y"))))
def test_pieces_give_what_the_whole_gives(text: str, order: tuple[str, ...], limit: int) -> None:
    graph = load(build(text))
    facts = trace(graph)
    feeds = [random_feeds(graph, facts.binding, k) for k in range(3)]
    stages = Stages(graph, facts, feeds, Room(limit))
    whole = [sessions.run(watched(graph, list(order)).to_proto(), f) for f in feeds]
    for name in order:
        for got, want in zip(stages.run([name]), whole, strict=True):
            assert set(got) == {name}
            np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)


def test_what_is_held_is_not_run_again() -> None:
    graph = load(build(CHAIN))
    facts = trace(graph)
    feeds = [random_feeds(graph, facts.binding, k) for k in range(3)]
    runs = {}
    for limit in (0, 1 << 20):
        stages = Stages(graph, facts, feeds, Room(limit))
        for name in ("h", "k", "y"):
            list(stages.run([name]))
        runs[limit] = stages.runs
    assert runs[1 << 20] == len(graph.nodes) < runs[0]


def test_what_others_hold_is_not_there_for_all() -> None:
    graph = load(build(CHAIN))
    facts = trace(graph)
    feeds = [random_feeds(graph, facts.binding, k) for k in range(3)]
    frontier = 3 * 2 * 8 * 4  # r, and behind it s, of three feeds: x is needed no more
    for total, taken, held in ((2 * frontier, 0, 2), (2 * frontier, 1, 1), (frontier, 0, 1), (frontier - 1, 0, 0)):
        room = Room(total)
        room.taken = taken
        both = [Stages(graph, facts, feeds, room) for _ in range(2)]
        for names in (["h"], ["s"]):
            for _ in zip(*(s.run(names) for s in both), strict=True):
                pass
        assert [s.held is not None for s in both] == [held > 0, held > 1]
        assert sum(room.held.values()) == held * frontier <= total - taken
        assert all(a.flags.owndata for s in both for f in s.held or [] for a in f.values())
        assert [sum(a.nbytes for f in s.held or [] for a in f.values()) for s in both] == [room.held[s] for s in both]


def test_what_is_held_goes_with_the_stages() -> None:
    """At once: the command line collects cycles rarely."""
    graph = load(build(CHAIN))
    facts = trace(graph)
    room = Room()
    stages = Stages(graph, facts, [random_feeds(graph, facts.binding, 0)], room)
    list(stages.run(["r"]))
    assert stages.held is not None
    array = weakref.ref(stages.held[0]["r"])
    gc.disable()
    try:
        del stages
        assert array() is None and not room.held
    finally:
        gc.enable()


def test_a_later_stage_sees_weights_that_changed() -> None:
    graph = load(build(CHAIN))
    facts = trace(graph)
    stages = Stages(graph, facts, [random_feeds(graph, facts.binding, 0)])
    list(stages.run(["r"]))
    zero = graph.tensors["b"]
    made = type(zero)()
    made.CopyFrom(zero)
    made.raw_data = bytes(len(zero.raw_data))
    stages.graph = graph.replace(tensors={**graph.tensors, "b": made})
    (got,) = stages.run(["k"])
    assert not got["k"].any()


@pytest.mark.parametrize("limit", (0, 1 << 20))
@pytest.mark.parametrize("text", (CHAIN, BRANCHES))
def test_the_rest_of_a_graph_makes_its_outputs_from_any_node_on(text: str, limit: int) -> None:
    graph = load(build(text))
    facts = trace(graph)
    feeds = [random_feeds(graph, facts.binding, k) for k in range(3)]
    stages = Stages(graph, facts, feeds, Room(limit))
    whole = [sessions.run(graph.to_proto(), f) for f in feeds]
    sizes = []
    for first in range(len(graph.nodes)):
        rest, starts = stages.rest(first)
        sizes.append(len(rest.nodes))
        for start, want in zip(starts, whole, strict=True):
            taken = {i.name for i in rest.inputs}
            got = sessions.run(rest.to_proto(), {n: a for n, a in start.items() if n in taken})
            np.testing.assert_allclose(got["y"], want["y"], rtol=1e-5, atol=1e-6)
    assert sizes[-1] < sizes[0] if limit else sizes[-1] == sizes[0]
