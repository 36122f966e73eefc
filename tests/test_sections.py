"""The surgery check section by section: ties do not matter, and whatever is wrong shows, however little it changes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from onnx import numpy_helper

from onnxprune.dims import ONE, Reason, product
from onnxprune.graph import Graph
from onnxprune.inference import TypedGraph
from onnxprune.passes.prune import cut
from onnxprune.sessions import Feeds
from onnxprune.unification import Space
from onnxprune.validate.closeness import TOLERANCE
from onnxprune.validate.masked import masked_original
from onnxprune.validate.sections import MADE, find_cuts, mask_of_length, sectioned
from onnxprune.validate.surgery_check import SurgeryCheck, surgery_check
from tests.common import build, check_cut, feeds_for, plans, typed_model

CHAIN = (
    "(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8,6] C, float[6,3] B, float[8] b, float s_pos, uint8 z> {"
    " h = MatMul(x, A) a = Add(h, b) q = QuantizeLinear(a, s_pos, z) d = DequantizeLinear(q, s_pos, z) m = MatMul(d, C)"
    " p, t, k = DynamicQuantizeLinear(m) g = DequantizeLinear(p, t, k) y = MatMul(g, B) }"
)
BRANCHES = (
    "(float[N,4] x, bool flag) => (float[N,3] y) <float[4,8] A, float[8,3] B, float s_pos, uint8 z> { h = MatMul(x, A)"
    " g = If(flag) <then_branch = one () => (float[N,8] u) { q = QuantizeLinear(h, s_pos, z)"
    " u = DequantizeLinear(q, s_pos, z) }, else_branch = two () => (float[N,8] v) { v = Relu(h) }> y = MatMul(g, B) }"
)


def first_half(text: str) -> tuple[TypedGraph, dict, Graph]:
    """A graph, the masks that remove half of every dim, and the result."""
    typed = typed_model(build(text))
    masks = next(plans(typed))
    return typed, masks, cut(typed, masks)


def changed(graph: Graph, name: str, array: np.ndarray) -> Graph:
    made = numpy_helper.from_array(np.ascontiguousarray(array), name)
    return graph.replace(tensors={**graph.tensors, name: made})


def verdict(typed: TypedGraph, masks: dict, pruned: Graph) -> SurgeryCheck:
    return surgery_check(typed, masks, pruned, feeds_for(typed))


def test_graphs_are_cut_where_values_are_rounded() -> None:
    typed, masks, pruned = first_half(CHAIN)
    cuts = find_cuts(typed, masked_original(typed, masks), pruned)
    assert cuts.entries == ("a", "m") and set(cuts.results) == {"q", "p", "t", "k"} and not cuts.left
    made = sectioned(pruned, cuts.entries, typed.facts.dtypes)
    assert [i.name for i in made.inputs] == ["x", "a", "m"]
    assert {MADE + "a", MADE + "m"} <= made.producer.keys() and not {"a", "m"} & made.producer.keys()


def at_a_tie(typed: TypedGraph, pruned: Graph) -> tuple[TypedGraph, Graph, Feeds]:
    """`a` is 2.5 steps in the original, and a rounding more in the pruned graph."""
    step = typed.graph.array("s_pos")
    feeds = {"x": np.zeros((2, 4), np.float32)}
    graph = changed(typed.graph, "b", np.full(8, 2.5, np.float32) * step)
    moved = changed(pruned, "b", np.full(4, 2.5, np.float32) * step * np.float32(1 + 1e-6))
    return TypedGraph(graph, typed.facts, typed.axes, typed.signatures), moved, feeds


def test_ties_do_not_matter() -> None:
    typed, masks, pruned = first_half(CHAIN)
    tied, moved, feeds = at_a_tie(typed, pruned)
    found = surgery_check(tied, masks, moved, [feeds])
    assert found.passed and found.max_rel_err < TOLERANCE and "ties move outputs by" in found.detail


def test_more_than_a_tie_is_seen() -> None:
    """What is off by more than the tolerance fails, although it rounds to the same integers."""
    typed, masks, pruned = first_half(CHAIN)
    graph = changed(typed.graph, "b", np.full(8, 2.2, np.float32) * typed.graph.array("s_pos"))
    typed = TypedGraph(graph, typed.facts, typed.axes, typed.signatures)
    feeds = {"x": np.zeros((2, 4), np.float32)}
    for off, right in ((1, True), (1 + 5 * TOLERANCE, False)):
        bias = np.full(4, 2.2, np.float32) * graph.array("s_pos") * np.float32(off)
        found = surgery_check(typed, masks, changed(pruned, "b", bias), [feeds])
        assert found.passed == right
        assert right or "'a'" in found.detail


def wrong(graph: Graph) -> Iterator[tuple[str, Graph]]:
    """Every constant of the pruned graph, moved on by one unit, or one step off."""
    for name in graph.tensors:
        array = graph.array(name)
        yield name, changed(graph, name, np.roll(array, 1, axis=0) if array.size > 1 else array + array.dtype.type(1))


def test_every_constant_matters() -> None:
    typed, masks, pruned = first_half(CHAIN)
    assert verdict(typed, masks, pruned).passed
    assert not [name for name, made in wrong(pruned) if verdict(typed, masks, made).passed]


def test_masks_of_another_cut_are_seen() -> None:
    """Tensors that do not fit are no error of the check, but of the graph."""
    typed, masks, pruned = first_half(CHAIN)
    for d in masks:
        found = verdict(typed, {k: m for k, m in masks.items() if k is not d}, pruned)
        assert not found.passed and not np.isfinite(found.max_rel_err)


def test_roundings_inside_of_bodies_are_judged_by_their_share() -> None:
    """They cannot be fed: the verdict names one, where outputs are not the same."""
    typed, masks, pruned = first_half(BRANCHES)
    cuts = find_cuts(typed, masked_original(typed, masks), pruned)
    assert not cuts.entries and len(cuts.left) == 1
    check_cut(typed, masks)
    feeds = [f | {"flag": np.array(True)} for f in feeds_for(typed)]
    for array in (np.roll(pruned.array("A"), 1, axis=1), pruned.array("A") * 2):
        found = surgery_check(typed, masks, changed(pruned, "A", array), feeds)
        assert not found.passed


@pytest.mark.parametrize(("batch", "length"), [(2, 8), (3, 12), (16, 64)])
def test_masks_fit_other_sizes(batch: int, length: int) -> None:
    """An axis of batch times heads, traced with a batch of two."""
    space = Space()
    first, heads = space.dim(2, Reason("dynamic", "x")), space.dim(4)
    masks = {heads: np.array([True, False, True, True])}
    for axis in (product(first, heads), product(heads, first)):
        found = mask_of_length(axis, masks, length)
        assert found.size == length and found.sum() == 3 * batch
    np.testing.assert_array_equal(mask_of_length(product(first, heads), masks, length)[:4], masks[heads])
    assert mask_of_length(ONE, masks, 1).all()
