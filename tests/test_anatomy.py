"""Layers, operators and blocks of a network before and after; how blocks are joined, and where they are drawn.

The oracle for "after" is the pruned model itself, read as if it were an original.
"""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune import cost
from onnxprune.dims import Dim, Mask
from onnxprune.inference import TypedGraph, infer
from onnxprune.passes.prune import cut
from onnxprune.reading import load
from onnxprune.report import anatomy as module
from onnxprune.report.anatomy import Anatomy, BeforeAfter, anatomy, clipped
from onnxprune.report.condense import Blocks
from onnxprune.report.drawing import COLUMNS, draw, essential
from onnxprune.trace import trace
from tests.common import build, typed_model

MODELS = Path(__file__).resolve().parent.parent / "models"
RESIDUAL = """(float[N,8] x) => (float[N,3] y)
  <float[8,16] A, float[16] a, float[16,16] B, float[16,16] C, float[16,3] D, float[1] scale> {
  h = MatMul(x, A) b = Add(h, a) r = Relu(b)
  f = MatMul(r, B) s = Relu(f) g = MatMul(s, C)
  j = Add(r, g) t = Mul(j, scale) y = MatMul(t, D) }"""


def half(typed: TypedGraph) -> dict[Dim, Mask]:
    return {d.dim: np.arange(d.dim.size) < (d.dim.size + 1) // 2 for d in typed.prunable}


def of(typed: TypedGraph, masks: dict[Dim, Mask] | None = None, batch: int = 1) -> Anatomy:
    return anatomy(typed, typed, {d: int(m.sum()) for d, m in (masks or {}).items()}, batch)


def read(name: str) -> TypedGraph:
    graph = load(MODELS / f"{name}.onnx")
    return infer(graph, trace(graph))


def test_a_residual_network_layer_by_layer() -> None:
    """Biases and activations belong to the product before them; where branches meet there is a block, but no layer."""
    typed = typed_model(build(RESIDUAL))
    found = of(typed, half(typed), batch=2)
    assert [(x.operator, x.fused, x.width, x.params, x.macs) for x in found.layers] == [
        ("MatMul", ("Add", "Relu"), BeforeAfter(16, 8), BeforeAfter(144, 72), BeforeAfter(128, 64)),
        ("MatMul", ("Relu",), BeforeAfter(16, 8), BeforeAfter(256, 64), BeforeAfter(256, 64)),
        ("MatMul", (), BeforeAfter(16, 8), BeforeAfter(256, 64), BeforeAfter(256, 64)),
        ("MatMul", (), BeforeAfter(3, 3), BeforeAfter(48, 24), BeforeAfter(48, 24)),
    ]
    assert found.layers[0].shape == {"before": [1, 16], "after": [1, 8]}
    assert [(b.kind, b.operators, b.layers) for b in found.blocks] == [
        ("input", (), 0),
        ("layer", ("MatMul", "Add", "Relu"), 1),
        ("layer", ("MatMul", "Relu"), 1),
        ("layer", ("MatMul",), 1),
        ("join", ("Add", "Mul"), 0),
        ("layer", ("MatMul",), 1),
        ("output", (), 0),
    ]
    assert found.edges == ((0, 1), (1, 2), (1, 4), (2, 3), (3, 4), (4, 5), (5, 6))
    assert found.blocks[0].shape == {"before": [1, 8], "after": [1, 8]}


def test_operators_before_and_after() -> None:
    typed = typed_model(build(RESIDUAL))
    rows = {x.operator: x for x in of(typed, half(typed), batch=2).operators}
    assert list(rows) == ["MatMul", "Add", "Mul", "Relu"]  # by MACs, weights, activations
    assert rows["MatMul"].nodes == BeforeAfter(4, 4) and rows["MatMul"].macs == BeforeAfter(688, 216)
    assert rows["Relu"].activations == BeforeAfter(32, 16) and rows["Add"].params == BeforeAfter(16, 8)


@pytest.mark.parametrize("name", ("mnist_cnn", "mnist_vit", "langid_gru"))
def test_after_is_what_the_pruned_model_is_before(name: str) -> None:
    typed = read(name)
    masks = half(typed)
    made = infer(pruned := cut(typed, masks), trace(pruned))
    found, again = of(typed, masks), of(made)
    assert [(x.node, x.operator, x.width.after, x.params.after, x.macs.after) for x in found.layers] == [
        (x.node, x.operator, x.width.before, x.params.before, x.macs.before) for x in again.layers
    ]
    assert [x.shape["after"] for x in found.layers] == [x.shape["before"] for x in again.layers]
    assert [b.width.after for b in found.blocks] == [b.width.before for b in again.blocks]
    rows = {x.operator: x for x in again.operators}
    for row in found.operators:
        assert row.activations.after == rows[row.operator].activations.before, row.operator


@pytest.mark.parametrize("name", ("mnist_cnn", "mnist_vit", "langid_gru"))
def test_every_product_and_weight_is_in_one_place(name: str) -> None:
    typed = read(name)
    sizes = {d: int(m.sum()) for d, m in half(typed).items()}
    found = anatomy(typed, typed, sizes)
    macs, params = cost.macs(typed), cost.params(typed)
    for rows in (found.layers, found.operators, found.blocks):
        assert sum(x.macs.before for x in rows) == macs.at({})
        assert sum(x.macs.after for x in rows) == macs.at(sizes)
    assert sum(x.params.before for x in found.operators) == sum(b.params.before for b in found.blocks)
    assert sum(x.params.before for x in found.operators) == pytest.approx(params.at({}), rel=0.02)  # shared by accident
    assert sum(x.params.after for x in found.operators) == pytest.approx(params.at(sizes), rel=0.02)


def test_what_is_gone_in_the_last_graph_is_nothing_after() -> None:
    first = typed_model(build(RESIDUAL))
    last = typed_model(build(RESIDUAL.replace("g = MatMul(s, C)", "k = MatMul(s, C) g = Neg(k)")))
    gone = anatomy(first, last, {}).layers[2]
    assert (gone.width, gone.macs.after, gone.params.after) == (BeforeAfter(16, 16), 0, 0)
    missing = typed_model(build(RESIDUAL.replace("f = MatMul(r, B) s = Relu(f) g = MatMul(s, C)", "g = Relu(r)")))
    second = anatomy(first, missing, {}).layers[1]
    assert (second.width.after, second.shape["after"], second.macs.after) == (0, [], 0)


def test_shapes_are_those_of_one_sample() -> None:
    """The batch axis is the one that grows with the inputs' first, wherever it stands: a GRU has time first."""
    found = of(read("langid_gru"), batch=2)
    assert [x.shape["before"] for x in found.layers] == [[1, 48, 32], [48, 2, 1, 64], [48, 2, 1, 64], [1, 16]]


def test_few_rows_of_large_models(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = read("mnist_vit")
    whole = of(typed)
    monkeypatch.setattr(module, "MAX_LAYERS", 5)
    monkeypatch.setattr(module, "MAX_BLOCKS", 7)
    few = of(typed)
    count, params, macs = few.more
    assert len(few.layers) == 5 and count == len(whole.layers) - 5 and len(few.blocks) <= 7
    assert sum(x.macs.before for x in few.layers) + macs.before == sum(x.macs.before for x in whole.layers)
    assert sum(x.params.before for x in few.layers) + params.before == sum(x.params.before for x in whole.layers)
    assert min(x.macs.before for x in few.layers) > 0
    assert sum(b.layers for b in few.blocks) == sum(b.layers for b in whole.blocks)
    assert sum(b.macs.before for b in few.blocks) == sum(b.macs.before for b in whole.blocks)
    assert few.to_dict()["layers_left_out"]["layers"] == count


def test_long_names_lose_their_middle() -> None:
    assert clipped("short") == "short" and clipped("a" * 50 + "b" * 50, 11) == "aaaaa…bbbbb"


# joining and drawing
@st.composite
def networks(draw_: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    count = draw_(st.integers(1, 24))
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda e: e[0] < e[1])
    return count, draw_(st.lists(pairs, max_size=60, unique=True)) if count > 1 else []


@given(networks(), st.integers(1, 10), st.data())
def test_joined_blocks_are_a_network_again(
    network: tuple[int, list[tuple[int, int]]], limit: int, data: st.DataObject
) -> None:
    count, edges = network
    weights = data.draw(st.lists(st.floats(0, 1), min_size=count, max_size=count))
    blocks = Blocks(weights, edges)
    blocks.shrink(limit)
    members, joined = blocks.ordered()
    assert len(members) <= limit
    assert sorted(n for block in members for n in block) == list(range(count))
    home = {n: k for k, block in enumerate(members) for n in block}
    assert set(joined) == {(home[u], home[v]) for u, v in edges if home[u] != home[v]}
    assert all(u < v for u, v in joined)  # in this order there is no cycle


@given(networks(), st.data())
def test_plain_nodes_go_to_their_only_source(network: tuple[int, list[tuple[int, int]]], data: st.DataObject) -> None:
    count, edges = network
    plain = data.draw(st.sets(st.integers(0, count - 1)))
    blocks = Blocks([1.0] * count, edges)
    blocks.absorb(plain)
    members, joined = blocks.ordered()
    assert sorted(n for block in members for n in block) == list(range(count))
    assert all(u < v for u, v in joined)
    for name, nodes in blocks.members.items():
        assert len([n for n in nodes if n not in plain]) <= 1
        if name in plain and all(n in plain for n in nodes) and blocks.after[name]:
            assert len(blocks.before[name]) > 1  # where branches meet


def test_the_lightest_are_joined_first() -> None:
    blocks = Blocks([5, 1, 1, 5], [(0, 1), (1, 2), (2, 3)])
    blocks.shrink(3)
    assert blocks.ordered() == ([[0], [1, 2], [3]], [(0, 1), (1, 2)])
    crossed = Blocks([1, 2, 3, 4], [(0, 2), (0, 3), (1, 2), (1, 3)])  # no pair that makes no cycle
    crossed.shrink(3)
    assert crossed.ordered()[0] == [[0, 1], [2], [3]]


@given(networks())
def test_blocks_are_drawn_apart_from_left_to_right(network: tuple[int, list[tuple[int, int]]]) -> None:
    count, edges = network
    drawing = draw([2**k for k in range(count)], edges)
    boxes = drawing.places
    for k, a in enumerate(boxes):
        assert a.x >= 0 and a.y >= 0 and a.x + a.width <= drawing.width and a.y + a.height <= drawing.height
        for b in boxes[:k]:
            assert a.x + a.width < b.x or b.x + b.width < a.x or a.y + a.height < b.y or b.y + b.height < a.y
    for u, v in edges:
        assert boxes[u].x < boxes[v].x or boxes[u].y < boxes[v].y
    assert len(drawing.paths) == len(edges) and all(p.startswith("M") for p in drawing.paths)


def test_long_networks_are_broken_into_even_lines() -> None:
    count = COLUMNS + 2
    drawing = draw([8] * count, [(k, k + 1) for k in range(count - 1)])
    lines = {p.y for p in drawing.places}
    assert [sum(p.y == y for p in drawing.places) for y in sorted(lines)] == [count // 2, count // 2]


def test_edges_that_others_imply_are_found() -> None:
    assert essential(4, [(0, 1), (1, 2), (0, 2), (2, 3), (0, 3)]) == [(0, 1), (1, 2), (2, 3)]
    assert nx.is_directed_acyclic_graph(nx.DiGraph(essential(3, [(0, 2)])))
