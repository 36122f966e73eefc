"""Finding layers: one row per form of network, with every layer that must be found there, and no other."""

from __future__ import annotations

import pytest

from onnxprune.layers import find, leaves
from tests.common import build, typed_model
from tests.layers.nets import branch, tokens

A, A_WEIGHTS = branch("ffn", "x", "a")
B, B_WEIGHTS = branch("ffn", "s", "b")
P, P_WEIGHTS = branch("ffn", "x", "b")
ATT, ATT_WEIGHTS = branch("attention", "x", "a")
FFN = f"{ATT} s = Add (x, ad) {B} y = Add (s, bd)"
NORM = "LayerNormalization <axis = -1>"
ROWS = [
    ("one branch", tokens(f"{A} y = Add (x, ad)", A_WEIGHTS), "y/ffn:x>y"),
    ("the branch comes first", tokens(f"{A} y = Add (ad, x)", A_WEIGHTS), "y/ffn:x>y"),
    ("attention and what follows are a block", tokens(FFN, f"{ATT_WEIGHTS}, {B_WEIGHTS}"),
     "s/attention:x>s y/ffn:s>y y/block:x>y"),
    ("in parallel, summed before", tokens(f"{A} {P} c = Add (ad, bd) y = Add (x, c)", f"{A_WEIGHTS}, {P_WEIGHTS}"),
     "c/ffn:bd>c c/ffn#2:ad>c"),
    ("in parallel, summed one by one", tokens(f"{A} {P} c = Add (ad, x) y = Add (c, bd)", f"{A_WEIGHTS}, {P_WEIGHTS}"),
     "c/ffn:x>c y/ffn:c>y"),
    ("a branch within a branch",
     tokens(f"{A} s = Add (x, ad) {B} t = Add (s, bd) u = MatMul (t, U) y = Add (x, u)",
            f"{A_WEIGHTS}, {B_WEIGHTS}, float[6,6] U"), "s/ffn:x>s t/ffn:s>t y/ffn:x>y"),
    ("the norm behind the sum",
     tokens(f"{A} s = Add (x, ad) y = {NORM} (s, G)", f"{A_WEIGHTS}, float[6] G"), "s/ffn:x>s s/ffn+norm:x>y"),
    ("a norm of its own before it",
     tokens(f"n = {NORM} (x, G) {A.replace('(x', '(n')} s = Add (x, ad) y = {NORM} (s, G2)",
            f"{A_WEIGHTS}, float[6] G, float[6] G2"), "s/ffn:x>s"),
    ("a norm in parts",
     tokens(f"{A} s = Add (x, ad) m = ReduceMean <keepdims = 1> (s, last) c = Sub (s, m) q = Mul (c, c) "
            "v = ReduceMean <keepdims = 1> (q, last) e = Sqrt (v) w = Div (c, e) y = Mul (w, G)",
            f"{A_WEIGHTS}, float[6] G, int64[1] last = {{-1}}"), "s/ffn:x>s s/ffn+norm:x>y"),
    ("the stream behind a cast of its shape",
     tokens(f"f = Reshape (x, to) {A} s = Add (f, ad) y = Identity (s)", f"{A_WEIGHTS}, int64[3] to = {{0, 3, 6}}"),
     "s/ffn:f>s"),
    ("an equal width in a plain network",
     tokens("a = MatMul (x, A) r = Relu (a) b = MatMul (r, B) y = Relu (b)", "float[6,6] A, float[6,6] B"),
     "r/chain:x>r y/chain:r>y"),
    ("no equal width", tokens("a = MatMul (x, A) r = Relu (a) y = MatMul (r, B)", "float[6,8] A, float[8,6] B"), ""),
    ("neither is the stream", tokens(f"{A} b = MatMul (x, U) y = Add (ad, b)", f"{A_WEIGHTS}, float[6,6] U"),
     "b/chain:x>b"),
    ("nothing is learned", tokens("a = Sigmoid (x) y = Add (x, a)", "float[6,8] U"), ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "want"), [r[1:] for r in ROWS], ids=[r[0].replace(" ", "-") for r in ROWS])
def test_found(text: str, want: str) -> None:
    found = find(typed_model(build(text)))
    assert " ".join(f"{x.name}:{x.entry}>{x.exit}" for x in found) == want


def test_what_is_used_outside_is_no_layer() -> None:
    text = f"(float[N,3,6] x) => (float[N,3,6] y, float[N,3,8] ar) <{A_WEIGHTS}> {{ {A} y = Add (x, ad) }}"
    assert find(typed_model(build(text))) == ()


def test_sizes_tie_nothing() -> None:
    """The shape of an inner tensor, used by what comes later, is no use of its entries: the branch stays one."""
    nodes = f"{A} s = Add (x, ad) w = Shape (x) t = Reshape (s, w) {B.replace('(s', '(t')} y = Add (t, bd)"
    found = find(typed_model(build(tokens(nodes, f"{A_WEIGHTS}, {B_WEIGHTS}"))))
    assert [x.exit for x in found] == ["s", "y"]


def test_masks_may_come_from_outside() -> None:
    nodes = ATT.replace("Softmax <axis = -1> (as)", "Softmax <axis = -1> (am0)").replace(
        "ap =", "am0 = Add (as, mask) ap ="
    )
    text = f"""(float[N,3,6] x, float[N,3,3] mask) => (float[N,3,6] y) <{ATT_WEIGHTS}> {{ {nodes} y = Add (x, ad) }}"""
    assert [(x.name, x.entry) for x in find(typed_model(build(text)))] == [("y/attention", "x")]


def test_nothing_is_found_in_bodies() -> None:
    text = f"""(float[N,3,6] x, bool c) => (float[N,3,6] y) <{A_WEIGHTS}> {{ y = If (c) <
        then_branch = t () => (float[N,3,6] p) {{ {A} p = Add (x, ad) }},
        else_branch = e () => (float[N,3,6] q) {{ q = Relu (x) }}> }}"""
    assert find(typed_model(build(text))) == ()


def test_fused_sums() -> None:
    """With the sum as a further output the stream goes on in it; without, the norm is behind the sum."""
    fused = "com.microsoft.SkipLayerNormalization"
    open_, closed = (
        find(
            typed_model(
                build(tokens(f"{A} {made} = {fused} (x, ad, G, H) {rest}", f"{A_WEIGHTS}, float[6] G, float[6] H"))
            )
        )
        for made, rest in (("n, , , t", "y = Add (n, t)"), ("y", ""))
    )
    assert [(x.name, x.exit, x.operand) for x in open_] == [("t/ffn", "t", 1)]
    assert [(x.name, x.exit, x.operand) for x in closed] == [("y/ffn", "y", 1), ("y/ffn+norm", "y", -1)]


def test_costs_and_leaves() -> None:
    typed = typed_model(build(tokens(FFN, f"{ATT_WEIGHTS}, {B_WEIGHTS}")))
    attention, ffn, block = find(typed)
    assert (attention.params, ffn.params, block.params) == (120, 96, 216)
    assert block.macs == attention.macs + ffn.macs > 0
    assert leaves([attention, ffn, block]) == [attention, ffn]


def test_shared_weights_go_with_nobody() -> None:
    nodes = f"{A} s = Add (x, ad) {B} y = Add (s, bd)".replace("bA", "aA").replace("bB", "aB")
    assert [x.params for x in find(typed_model(build(tokens(nodes, A_WEIGHTS))))] == [0, 0]


def test_names_are_scopes() -> None:
    nodes, weights = branch("ffn", "x", "a")
    model = build(tokens(f"{nodes} y = Add (x, ad)", weights))
    for node, name in zip(model.graph.node, ("up", "act", "down", "Add"), strict=False):
        node.name = f"/blocks/blocks.0/mlp/{name}/MatMul"
    assert [x.name for x in find(typed_model(model))] == ["blocks.0.mlp/ffn"]
    for node in model.graph.node:
        node.name = ""
    for tensor in model.graph.initializer:
        old, tensor.name = tensor.name, f"encoder.layer.3.{tensor.name}.weight"
        for node in model.graph.node:
            node.input[:] = [tensor.name if n == old else n for n in node.input]
    assert [x.name for x in find(typed_model(model))] == ["encoder.layer.3/ffn"]
