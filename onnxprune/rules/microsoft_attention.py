"""Attention as ONNX Runtime writes it: packed weights, key-value caches, rotary positions inside or beside it.

As for the standard operator, heads (key-value heads and the query heads of each), query-key channels and value channels
are dims of their own, unless a cache or the operator wants all channels alike.
"""

from __future__ import annotations

from onnxprune.dims import ONE, Expr, product, total
from onnxprune.errors import Barrier
from onnxprune.rules.rule import Axes, Node

ROW = 8  # GroupQueryAttention wants channels by the eight


def attention(node: Node) -> None:
    """com.microsoft.Attention: X (N, S, I), W (I, H*D + H*D + H*Dv), bias, mask, past (2, N, H, P, D), added scores
    (N, H, S, T) -> Y (N, S, H*Dv), present (2, N, H, P + S, D).
    """
    if node.has(6):
        raise Barrier("barrier", "past and present share a buffer")
    x, heads, size, value = _projected(node, 2, past=4)
    _masked(node, 3, x[0], x[1])
    _added_scores(node, 5, [x[0], heads, x[1]])
    if node.attr("do_rotary", 0):
        node.freeze(size, "structure", "rotary positions")
    whole = product(heads, size)
    node.edit("qkv_hidden_sizes", whole, whole, product(heads, value))
    node.read(1, 1, expr=size)
    if node.has(2):
        node.read(2, 0, expr=size)


def quantized_attention(node: Node) -> None:
    """com.microsoft.QAttention: Attention on 8-bit X and W; their scales and zero points at inputs 3, 4, 6, 7, those of
    W also per column. It has no `qkv_hidden_sizes`: all channels are alike.
    """
    x, _, size, value = _projected(node, 2, past=8)
    node.unify(size, value)
    _masked(node, 5, x[0], x[1])
    for i in (4, 7):
        if node.has(i) and node.shape(i) not in ((), (1,)):
            node.unify(node.axes(i)[0], node.axes(1)[1])
    if node.attr("do_rotary", 0):
        node.freeze(size, "structure", "rotary positions")
    node.read(1, 1, expr=size)
    node.read(2, 0, expr=size)


def _projected(node: Node, bias: int, past: int) -> tuple[Axes, Expr, Expr, Expr]:
    """What both forms share; returns the axes of X, heads, query-key channels and value channels."""
    x, w = node.axes(0), node.axes(1)
    count = int(node.attr("num_heads"))
    sizes = [int(n) for n in node.attr("qkv_hidden_sizes", [w[1].size // 3] * 3)]
    q, rest = node.space.split(w[1], sizes[0])
    k, v = node.space.split(rest, sizes[1])
    (heads, size), (k_heads, k_size), (v_heads, value) = (node.space.factor(e, e.size // count) for e in (q, k, v))
    for a, b in ((heads, k_heads), (heads, v_heads), (size, k_size), (x[2], w[0])):
        node.unify(a, b)
    if node.has(bias):
        node.unify(node.axes(bias)[0], w[1])
    if node.has(past) or _wanted(node, 1):
        node.unify(size, value)
    if _wanted(node, 1):
        node.out([node.fixed(2), x[0], heads, node.fixed(node.out_shape(1)[3], "normalised"), size], 1)
    if node.has(past):
        _cache(node, past, [x[0], heads, size])
    node.freeze(x[1], "normalised")
    node.out([x[0], x[1], product(heads, value)])
    node.edit("num_heads", heads, scalar=True)
    _scaled(node, size)
    node.read(0, 2, partner=(1, 0))
    return x, heads, size, value


def multi_head_attention(node: Node) -> None:
    """com.microsoft.MultiHeadAttention: Q (N, S, H*D), K (N, T, H*D) or a cache (N, H, T, D), V, bias (H*D + H*D +
    H*Dv), mask, added scores, past (N, H, P, D) twice -> Y (N, S, H*Dv), present (N, H, P + T, D) twice, scores.
    """
    if not node.has(1) or not node.has(2) or node.rank(0) != 3 or node.rank(1) == 5:
        raise Barrier("barrier", "queries, keys and values are packed head by head")
    if node.has(8) or node.has(9):
        raise Barrier("barrier", "past and present share a buffer")
    count = int(node.attr("num_heads"))
    (batch, heads, steps, size), k, v = (_by_head(node, i, count) for i in range(3))
    for a, b in ((batch, k[0]), (batch, v[0]), (heads, k[1]), (heads, v[1]), (k[2], v[2]), (size, k[3])):
        node.unify(a, b)
    node.freeze(k[2], "normalised")
    if node.has(6) or node.rank(1) == 4:
        node.unify(size, v[3])
    if node.has(3):
        node.unify(node.axes(3)[0], total(*[product(heads, size)] * 2, product(heads, v[3])))
        node.read(3, 0, expr=size)
    if node.attr("unidirectional", 0):
        node.freeze(steps, "index")
    _masked(node, 4, batch, steps)
    _added_scores(node, 5, [batch, heads, steps])
    for i, channels in ((6, size), (7, v[3])):
        if node.has(i):
            _cache(node, i, [batch, heads, channels])
        if _wanted(node, i - 5):
            node.out([batch, heads, node.fixed(node.out_shape(i - 5)[2], "normalised"), channels], i - 5)
    _scores(node, 3, [batch, heads, steps])
    node.out([batch, steps, product(heads, v[3])])
    node.edit("num_heads", heads, scalar=True)
    _scaled(node, size)
    node.read(0, 2, partner=(1, node.rank(1) - 1), expr=size)


def _by_head(node: Node, i: int, count: int) -> Axes:
    """Axes (N, H, S, D) of Q, K or V."""
    x = node.axes(i)
    if len(x) == 4:
        return x
    heads, channels = node.space.factor(x[2], x[2].size // count)
    return [x[0], heads, x[1], channels]


def group_query_attention(node: Node) -> None:
    """com.microsoft.GroupQueryAttention: Q (N, S, H*D), K and V (N, S, Hk*D), or all in one (N, S, (H + 2*Hk)*D); past
    (N, Hk, P, D) twice, lengths, cos and sin (P, R/2), positions, added scores, sinks (H) -> Y (N, S, H*D), present
    (N, Hk, T, D) twice, scores. All channels are alike, and go by the eight: the operator asks for that.
    """
    if node.has(12) or node.has(13):
        raise Barrier("barrier", "the key-value cache is quantised")
    (heads, size), (groups, k_size), (v_groups, v_size) = _grouped(node)
    outer, _ = node.space.factor(heads, heads.size // groups.size)
    for a, b in ((outer, groups), (groups, v_groups), (size, k_size), (size, v_size)):
        node.unify(a, b)
    x = node.axes(0)
    for i in (0, 1, 2):
        if node.has(i):
            node.freeze(node.axes(i)[0], "operand", "lengths by sample")
            node.freeze(node.axes(i)[1], "normalised")
    _channel_rows(node, size)
    _added_scores(node, 10, [x[0], heads, x[1]])
    if node.has(11):
        node.unify(node.axes(11)[0], heads)
    for i in (3, 4):
        if node.has(i):
            _cache(node, i, [x[0], groups, size])
        if _wanted(node, i - 2):
            node.out([x[0], groups, node.fixed(node.out_shape(i - 2)[2], "normalised"), size], i - 2)
    _scores(node, 3, [x[0], heads, x[1]])
    node.out([x[0], x[1], product(heads, size)])
    node.edit("num_heads", heads, scalar=True)
    node.edit("kv_num_heads", groups, scalar=True)
    _scaled(node, size)
    node.read(0, 2, partner=(1, 2) if node.has(1) else None, expr=size)


def _grouped(node: Node) -> tuple[tuple[Expr, Expr], ...]:
    """Heads and channels of queries, keys and values."""
    heads, groups = int(node.attr("num_heads")), int(node.attr("kv_num_heads"))
    whole = node.axes(0)[2]
    if node.has(1):
        parts: tuple[Expr, ...] = (whole, node.axes(1)[2], node.axes(2)[2])
    else:
        size = whole.size // (heads + 2 * groups)
        q, rest = node.space.split(whole, heads * size)
        parts = (q, *node.space.split(rest, groups * size))
    return tuple(node.space.factor(e, e.size // n) for e, n in zip(parts, (heads, groups, groups), strict=True))


def _channel_rows(node: Node, size: Expr) -> None:
    """Channels go by the eight, and by twice eight where halves of them are rotated."""
    if node.has(14) or node.has(15):
        node.freeze(size, "normalised", "norms of single heads")
    if not node.attr("do_rotary", 0):
        _rows(node, size, ROW)
        return
    cos, sin = node.axes(7), node.axes(8)
    half, rest = rotated(node, size, cos[1].size, bool(node.attr("rotary_interleaved", 0)))
    node.unify(half, cos[1])
    node.unify(half, sin[1])
    _rows(node, half, ROW)
    if rest.size:
        _rows(node, rest, 2 * ROW)
    for table in (cos, sin):
        node.freeze(table[0], "index")


def _rows(node: Node, expr: Expr, length: int) -> None:
    """Only whole rows of `length` units go."""
    _, inner = node.space.factor(expr, length)
    node.freeze(inner, "structure", f"units go {length} at a time")


def rotated(node: Node, size: Expr, half: int, interleaved: bool) -> tuple[Expr, Expr]:
    """Head channels as pairs that are rotated, and the rest: the pairs lie side by side (interleaved) or in halves."""
    first, rest = node.space.split(size, 2 * half)
    outer, inner = node.space.factor(first, 2 if interleaved else half)
    pairs, two = (outer, inner) if interleaved else (inner, outer)
    node.freeze(two, "structure", "the two halves of a rotation")
    return pairs, rest


def rotary_embedding(node: Node) -> None:
    """com.microsoft.RotaryEmbedding: X (N, S, H*D) or (N, H, S, D), positions (1) or (N, S), cos and sin (P, R/2)."""
    x, cos, sin = node.axes(0), node.axes(2), node.axes(3)
    flat, count, rotary = len(x) == 3, int(node.attr("num_heads", 0)), int(node.attr("rotary_embedding_dim", 0))
    if node.attr("is_packed_batching", 0):
        raise Barrier("barrier", "sequences are packed")
    width = (x[2].size // count if rotary else 2 * cos[1].size) if flat else x[3].size
    heads, size = node.space.factor(x[2], width) if flat else (x[1], x[3])
    pairs, _ = rotated(node, size, cos[1].size, bool(node.attr("interleaved", 0)))
    for table in (cos, sin):
        node.unify(pairs, table[1])
        node.freeze(table[0], "index")
    steps = x[1] if flat else x[2]
    if node.rank(1) == 2:
        _follow(node, 1, [x[0], steps])
    else:
        node.freeze(steps, "index")
    if count:
        node.edit("num_heads", heads, scalar=True)
    if rotary:
        node.edit("rotary_embedding_dim", product(node.fixed(2), pairs), scalar=True)
    node.out(list(x))


# operands
def _wanted(node: Node, k: int) -> bool:
    return k < len(node.outputs) and node.outputs[k] != ""


def _scaled(node: Node, size: Expr) -> None:
    """The scale that is taken from the number of channels by default stays what it was."""
    if not node.attr("scale", 0.0):
        node.edit("scale", float(size.size) ** -0.5, scalar=True, when=(size,))


def _follow(node: Node, i: int, axes: Axes) -> None:
    """Leading axes of input i are `axes` where the sizes agree; those that do not agree freeze both."""
    given = node.axes(i)
    for a, b in zip(given, axes, strict=False):
        if a.size == b.size:
            node.unify(a, b)
        else:
            node.freeze(a, "operand")
            node.freeze(b, "operand")
    for e in given[len(axes) :]:
        node.freeze(e, "operand")


def _masked(node: Node, i: int, batch: Expr, steps: Expr) -> None:
    """A mask: (N), (2*N), (3*N + 2), (N, T), (N, S, T) or (N, 1, M, M)."""
    if node.has(i):
        _follow(node, i, [batch, steps] if node.rank(i) == 3 else [batch])


def _added_scores(node: Node, i: int, axes: Axes) -> None:
    """What is added to the scores: (N or 1, H or 1, S, T)."""
    if node.has(i):
        added = node.axes(i)
        node.freeze(added[3], "normalised")
        node.broadcast([[*axes, ONE], [*added[:3], ONE]])


def _scores(node: Node, k: int, axes: Axes) -> None:
    if _wanted(node, k):
        node.out([*axes, node.fixed(node.out_shape(k)[3], "normalised")], k)


def _cache(node: Node, i: int, axes: Axes) -> None:
    """A cache (N, H, P, D), or with keys and values in one (2, N, H, P, D); `axes` are N, H, D."""
    past = node.axes(i)
    for a, b in zip([*past[-4:-2], past[-1]], axes, strict=True):
        node.unify(a, b)
    node.freeze(past[-2], "normalised")
    for e in past[:-4]:
        node.freeze(e, "structure", "keys and values of one cache")
