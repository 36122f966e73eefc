"""The standard Attention operator: key-value heads, query heads per group, query-key channels and value channels are
dims.
"""

from __future__ import annotations

from onnxprune.dims import ONE, product
from onnxprune.rules.rule import Axes, Node, Table


def attention(node: Node) -> None:
    """Attention (opset 23-25): Q (N, Hq*D, ...), K, V with fewer heads shared by groups of query heads.

    4-D: Q (N, Hq, S, D), K (N, Hk, T, D), V (N, Hk, T, Dv), Y (N, Hq, S, Dv); 3-D: Q (N, S, Hq*D) and so on, heads by
    attribute. Dims: key-value heads, query heads per group, query-key channels, value channels; queries too, unless
    their places count (causal, windows, lengths by sample).
    """
    q, k, v = (_heads(node, i, name) for i, name in enumerate(("q_num_heads", "kv_num_heads", "kv_num_heads")))
    flat = node.rank(0) == 3
    groups, _ = node.space.factor(q[1], q[1].size // k[1].size)
    node.unify(groups, k[1])
    for a, b in ((q[3], k[3]), (q[0], k[0]), (k[0], v[0]), (k[1], v[1])):
        node.unify(a, b)
    node.freeze(k[2], "normalised")
    node.freeze(v[2], "normalised")
    windows = [int(node.attr(f"{side}_window_size", -1)) for side in ("left", "right")]
    if node.attr("is_causal", 0) or max(windows) >= 0 or node.has(6):
        node.freeze(q[2], "index")
    if node.has(6):
        node.unify(node.axes(6)[0], q[0])
    if node.has(3):
        node.broadcast([[q[0], q[1], q[2], node.fixed(_key_length(node, k), "normalised")], _mask(node)])
    _caches(node, k, v)
    node.out([q[0], q[2], product(q[1], v[3])] if flat else [q[0], q[1], q[2], v[3]])
    if len(node.outputs) > 3:
        node.out([q[0], q[1], q[2], node.fixed(_key_length(node, k), "normalised")], 3)
    if flat:
        node.edit("q_num_heads", q[1], scalar=True)
        node.edit("kv_num_heads", k[1], scalar=True)
    if "scale" not in node.attrs:
        node.edit("scale", float(q[3].size) ** -0.5, scalar=True, when=(q[3],))
    node.read(0, 2 if flat else 3, partner=(1, 2 if flat else 3), expr=q[3])


def _heads(node: Node, i: int, attribute: str) -> Axes:
    """Axes (N, H, S, D) of Q, K or V in either form."""
    x = node.axes(i)
    if len(x) == 4:
        return x
    heads, channels = node.space.factor(x[2], x[2].size // int(node.attr(attribute)))
    return [x[0], heads, x[1], channels]


def _key_length(node: Node, k: Axes) -> int:
    return k[2].size + (node.shape(4)[2] if node.has(4) else 0)


def _mask(node: Node) -> Axes:
    """The mask's axes, its last one cut to what the operator pads it to."""
    axes = list(node.axes(3))
    node.freeze(axes[-1], "normalised")
    return [*axes[:-1], ONE]


def _caches(node: Node, k: Axes, v: Axes) -> None:
    for i, side, out in ((4, k, 1), (5, v, 2)):
        if node.has(i):
            past = node.axes(i)
            for a, b in ((past[0], side[0]), (past[1], side[1]), (past[3], side[3])):
                node.unify(a, b)
            node.freeze(past[2], "normalised")
        if out < len(node.outputs) and node.outputs[out]:
            node.out([side[0], side[1], node.fixed(node.out_shape(out)[2], "normalised"), side[3]], out)


def rotary_embedding(node: Node) -> None:
    """RotaryEmbedding (opset 23): X (N, H, S, D) or (N, S, H*D), caches (M, r/2) with positions (N, S), or (N, S, r/2),
    r the rotated channels of D.

    Pairs of channels turn together: halves are (2, r/2), interleaved ones (r/2, 2); the pairs are a dim, what is not
    rotated another.
    """
    x = _heads(node, 0, "num_heads")
    flat = node.rank(0) == 3
    rotated = int(node.attr("rotary_embedding_dim", 0)) or x[3].size
    turned, _ = node.space.split(x[3], rotated)
    if node.attr("interleaved", 0):
        pairs, two = node.space.factor(turned, 2)
    else:
        two, pairs = node.space.factor(turned, rotated // 2)
    node.freeze(two, "structure", "the two halves of a rotation")
    for i in (1, 2):
        cache = node.axes(i)
        node.unify(cache[-1], pairs)
        if len(cache) == 2:
            node.freeze(cache[0], "index")
    for i in (1, 2, 3):
        if node.has(i) and (i == 3 or node.rank(i) == 3):
            node.unify(node.axes(i)[0], x[0])
            node.unify(node.axes(i)[1], x[2])
    node.out(list(node.axes(0)))
    if flat:
        node.edit("num_heads", x[1], scalar=True)
    if rotated < x[3].size:
        node.edit("rotary_embedding_dim", turned, scalar=True)


TABLE: Table = {"Attention": attention, "RotaryEmbedding": rotary_embedding}
