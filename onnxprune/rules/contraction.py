"""Operators that multiply by weights and sum: convolutions, matrix products, Einsum.

The summed axis of the data and of the weights are one expression (`read`), the weights' other axis is the output's.
"""

from __future__ import annotations

import math

from onnxprune.dims import Expr
from onnxprune.errors import Barrier
from onnxprune.feeds import Shape
from onnxprune.rules.rule import Axes, Node, Table


def conv(node: Node, weight: int = 1, bias: int = 2, last: bool = False) -> None:
    """Conv (opset 1-22): X (N, g*I, *S), W (g*O, I, *K), B (g*O) -> Y (N, g*O, *S'). Other convolutions have their
    weights and bias elsewhere, or their channels `last`: X (N, *S, g*I) -> Y (N, *S', g*O).
    """
    x, w, shape = node.axes(0), node.axes(weight), node.out_shape()
    at = len(x) - 1 if last else 1
    x, shape = [x[0], x[at], *x[1:at], *x[at + 1 :]], (shape[0], shape[at], *shape[1:at], *shape[at + 1 :])
    inner = _group_inputs(node, x, w[0], w[1].size)
    node.unify(inner, w[1])
    first, channels, *rest = _finish(node, x, w[0], w, shape, bias)
    node.out([first, *rest[: at - 1], channels, *rest[at - 1 :]])
    node.read(0, at, partner=(weight, 1), expr=inner)


def conv_transpose(node: Node) -> None:
    """ConvTranspose (opset 1-22): X (N, g*I, *S), W (g*I, O, *K), B (g*O) -> Y (N, g*O, *S')."""
    x, w = node.axes(0), node.axes(1)
    g = int(node.attr("group", 1))
    node.unify(x[1], w[0])
    out, inner = w[1], w[0]
    if g > 1:
        outer, inner = node.space.factor(w[0], w[0].size // g)
        node.edit("group", outer, scalar=True)
        out = node.space.dim(g * w[1].size)
        rows, low = node.space.factor(out, w[1].size)
        node.unify(rows, outer)
        node.unify(low, w[1])
    node.out(_finish(node, x, out, w, node.out_shape()))
    node.read(0, 1, partner=(1, 0), expr=inner)


def _group_inputs(node: Node, x: Axes, out: Expr, per_group: int) -> Expr:
    """The input channels that one group sums over; channels are factored, x by groups x inputs, out by groups x
    outputs.
    """
    g = int(node.attr("group", 1))
    if g == 1:
        return x[1]
    outer, inner = node.space.factor(x[1], per_group)
    outer_out, _ = node.space.factor(out, out.size // g)
    node.unify(outer, outer_out)
    node.edit("group", outer, scalar=True)
    return inner


def _finish(node: Node, x: Axes, channels: Expr, w: Axes, shape: Shape, bias: int = 2) -> Axes:
    """Bias and kernel axes, and those of the output; an axis under a kernel of extent 1 that neither strides nor pads
    goes through. Channels are second in `x` and `shape`.
    """
    if node.has(bias):
        node.unify(node.axes(bias)[0], channels)
    rank = len(x) - 2
    strides, pads = node.attr("strides", [1] * rank), node.attr("pads", [0] * 2 * rank)
    padded = node.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    out: Axes = [x[0], channels]
    for k in range(rank):
        node.freeze(w[2 + k], "kernel")
        pointwise = w[2 + k].size == strides[k] == 1 and pads[k] == pads[k + rank] == 0
        if pointwise and not padded and shape[2 + k] == x[2 + k].size:
            out.append(x[2 + k])
        else:
            node.freeze(x[2 + k], "spatial")
            out.append(node.fixed(shape[2 + k], "spatial"))
    return out


def gemm(node: Node, weight: int = 1, bias: int = 2) -> None:
    """Gemm (opset 1-13): A' (M, K) x B' (K, N) + C (broadcast to M, N), A and B transposed by attribute."""
    a, b = node.axes(0), node.axes(weight)
    ka, kb = (0 if node.attr("transA", 0) else 1), (1 if node.attr("transB", 0) else 0)
    node.unify(a[ka], b[kb])
    out = [a[1 - ka], b[1 - kb]]
    if node.has(bias):
        node.broadcast([out, node.axes(bias)])
    node.out(out)
    node.read(0, ka, partner=(weight, kb))


def matmul(node: Node, weight: int = 1) -> None:
    """MatMul (opset 1-13): (*B, M, K) x (*B, K, N) -> (*B, M, N) with NumPy's rules for vectors and batches."""
    a, b = node.axes(0), node.axes(weight)
    ka, kb = len(a) - 1, max(len(b) - 2, 0)
    node.unify(a[ka], b[kb])
    batch = node.broadcast([a[:-2], b[:-2]]) if len(a) > 2 or len(b) > 2 else []
    node.out(batch + (a[-2:-1] if len(a) > 1 else []) + (b[-1:] if len(b) > 1 else []))
    node.read(0, ka, partner=(weight, kb))


def einsum(node: Node) -> None:
    """Einsum (opset 12): one axis per letter, `...` broadcasts; letters that the output lacks are summed over."""
    left, _, right = str(node.attr("equation")).replace(" ", "").partition("->")
    terms = left.split(",")
    if not right and "->" not in str(node.attr("equation")):
        right = "".join(sorted(c for c in set(left) if left.count(c) == 1 and c.isalpha()))
        right = ("..." if "..." in left else "") + right
    axes: dict[str, Expr] = {}
    dots: list[Axes] = []
    places: dict[str, list[tuple[int, int]]] = {}
    for i, term in enumerate(terms):
        letters, ellipsis = _letters(term, node.axes(i))
        if len(set(letters.values())) < len(letters):
            raise Barrier("barrier", "Einsum takes a diagonal")
        dots += [ellipsis] if "..." in term else []
        for k, c in letters.items():
            expr = node.axes(i)[k]
            if axes.setdefault(c, expr).size == 1:
                axes[c] = expr
            elif expr.size > 1:
                node.unify(axes[c], expr)
            places.setdefault(c, []).append((i, k))
    for c, found in places.items():
        if c not in right:
            node.read(*found[0], partner=found[1] if len(found) == 2 else None)
    middle = node.broadcast(dots) if dots else []
    if dots and "..." not in right:
        raise Barrier("barrier", "Einsum sums over an ellipsis")
    head, _, tail = right.partition("...")
    node.out([axes[c] for c in head] + middle + [axes[c] for c in tail])


def _letters(term: str, axes: Axes) -> tuple[dict[int, str], Axes]:
    """Axis number -> letter, and the axes under the ellipsis."""
    head, _, tail = term.partition("...")
    cut = len(axes) - len(tail)
    letters = dict(enumerate(head)) | {cut + k: c for k, c in enumerate(tail)}
    return letters, axes[len(head) : cut]


def deform_conv(node: Node) -> None:
    """DeformConv (opset 19-22): as Conv, with offsets (N, 2*og*K, *S') and a mask (N, og*K, *S') that carry no
    channels.
    """
    if int(node.attr("offset_group", 1)) != 1:
        raise Barrier("barrier", "DeformConv with groups of offsets")
    x, w = node.axes(0), node.axes(1)
    inner = _group_inputs(node, x, w[0], w[1].size)
    node.unify(inner, w[1])
    if node.has(3):
        node.unify(node.axes(3)[0], w[0])
    for e in (*x[2:], *w[2:]):
        node.freeze(e, "spatial")
    node.out([x[0], w[0], *(node.fixed(n, "spatial") for n in node.out_shape()[2:])])
    node.read(0, 1, partner=(1, 1), expr=inner)


def causal_conv(node: Node) -> None:
    """CausalConvWithState (opset 27): depthwise, X (N, C, L), W (C, 1, k), B (C,), states (N, C, k-1)."""
    x, w = node.axes(0), node.axes(1)
    node.unify(x[1], w[0])
    for e in (x[2], w[2]):
        node.freeze(e, "kernel")
    if node.has(2):
        node.unify(node.axes(2)[0], x[1])
    if node.has(3):
        for a, b in zip(node.axes(3)[:2], x[:2], strict=True):
            node.unify(a, b)
        node.freeze(node.axes(3)[2], "kernel")
    node.out(list(x))
    if len(node.outputs) > 1:
        node.out([x[0], x[1], node.fixed(node.out_shape(1)[2], "kernel")], 1)


def col2im(node: Node) -> None:
    """Col2Im (opset 18): X (N, C*blocks, L) -> Y (N, C, *image)."""
    block = node.ints("block_shape", 2)
    if block is None:
        raise Barrier("operand", "block_shape")
    x = node.axes(0)
    channels, entries = node.space.factor(x[1], math.prod(block))
    for e in (entries, x[2]):
        node.freeze(e, "spatial")
    node.out([x[0], channels, *(node.fixed(n, "spatial") for n in node.out_shape()[2:])])


TABLE: Table = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DeformConv": deform_conv,
    "CausalConvWithState": causal_conv,
    "Col2Im": col2im,
    "Gemm": gemm,
    "MatMul": matmul,
    "Einsum": einsum,
}
