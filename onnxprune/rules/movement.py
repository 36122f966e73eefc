"""Operators that move entries without changing them: reshapes, transposes, concatenation, cutting, padding,
repetition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnxprune.dims import ONE, Expr, is_frozen, product, total
from onnxprune.errors import Barrier
from onnxprune.evaluate import slice_index
from onnxprune.rules.rule import Axes, Bound, Node, Table, frozen_all


def reshape(node: Node) -> None:
    """Reshape (opset 1-25): runs of input axes and runs of output axes with equal products are the same row-major
    product.
    """
    node.out(regroup(node, node.axes(0), node.out_shape()))
    if "shape" in node.attrs:
        want = node.attrs["shape"]
        node.edit("shape", *(e if n > 0 else None for e, n in zip(node.signature.outputs[0] or [], want, strict=True)))
    else:
        node.sized(1, node.signature.outputs[0] or [])


def regroup(node: Node, axes: Axes, shape: Sequence[int]) -> Axes:
    """Axes of `shape` over the same entries as `axes`, aligned in the smallest runs of equal product."""
    if math.prod(shape) != math.prod(e.size for e in axes):
        raise Barrier("rule-mismatch", f"{[e.size for e in axes]} to {list(shape)}")
    if not math.prod(shape):
        raise Barrier("barrier", "an empty tensor")
    out = [node.fresh(n) for n in shape]
    left, right = [e for e in axes if e.size > 1], [e for e in out if e.size > 1]
    while left:
        a, b = [left.pop(0)], [right.pop(0)]
        while (p := math.prod(e.size for e in a)) != (q := math.prod(e.size for e in b)):
            (a.append(left.pop(0)) if p < q else b.append(right.pop(0)))
        node.unify(product(*a), product(*b))
    return out


def flatten(node: Node) -> None:
    """Flatten (opset 1-25): (product of the axes before `axis`, product of the rest)."""
    x = node.axes(0)
    at = int(node.attr("axis", 1))
    at += len(x) if at < 0 else 0
    node.out([product(*x[:at]), product(*x[at:])])


def squeeze(node: Node) -> None:
    """Squeeze (opset 1-25). Without `axes` all of size 1 go; they are named before pruning makes more of them."""
    x = node.axes(0)
    axes = node.ints("axes", 1)
    gone = {a % len(x) for a in axes} if axes is not None else {k for k, e in enumerate(x) if e.size == 1}
    rest = {k: e for k, e in enumerate(x) if k not in gone}
    node.out(list(rest.values()))
    if axes is None and gone:
        node.edit("axes" if node.opset < 13 else 1, *sorted(gone), when=tuple(rest.values()))
    elif axes is None:  # an empty list means all of size 1 again
        frozen_all(node, list(rest.values()), "structure")


def unsqueeze(node: Node) -> None:
    """Unsqueeze (opset 1-25)."""
    x = list(node.axes(0))
    axes = node.ints("axes", 1) or []
    rank = len(x) + len(axes)
    for a in sorted(a % rank for a in axes):
        x.insert(a, ONE)
    node.out(x)


def transpose(node: Node) -> None:
    """Transpose (opset 1-25)."""
    x = node.axes(0)
    node.out([x[p] for p in node.attr("perm", range(len(x))[::-1])])


def concat(node: Node) -> None:
    """Concat (opset 1-13): the axis is the Sum of the inputs' axes, the others agree."""
    parts = [node.axes(i) for i in range(len(node.inputs))]
    at = int(node.attr("axis", 1)) % len(parts[0])
    for other in parts[1:]:
        for k, e in enumerate(parts[0]):
            if k != at:
                node.unify(e, other[k])
    node.out([total(*(p[at] for p in parts)) if k == at else e for k, e in enumerate(parts[0])])


def split(node: Node) -> None:
    """Split (opset 1-18): sizes by attribute, input or even; afterwards sizes are always explicit."""
    x, at = node.axes(0), node.axis(0)
    rest, sizes = x[at], []
    for k in range(len(node.outputs)):
        part, rest = node.space.split(rest, node.out_shape(k)[at])
        sizes.append(part)
        node.out([part if j == at else e for j, e in enumerate(x)], k)
    if node.opset < 13:
        node.edit("split", *sizes)
    else:
        node.edit(1, *sizes, drop=("num_outputs",))


def slice_(node: Node) -> None:
    """Slice (opset 1-13): a contiguous cut of an axis is a part of its Sum; a step cuts its inner factor."""
    x = node.axes(0)
    if not node.has(1) and "starts" not in node.attrs:
        raise Barrier("operand", "starts")
    if ("starts" not in node.attrs and node.static(1) is None) or ("ends" not in node.attrs and node.static(2) is None):
        return _slice_unknown(node, x)
    operands = [None, *(node.static(i) for i in range(1, 5))]
    axes = node.ints("axes", 3)
    cuts = slice_index([e.size for e in x], operands, node.attrs)
    order = [a % len(x) for a in axes] if axes is not None else list(range(len(node.ints("starts", 1) or [])))
    out, starts, ends = list(x), {}, {}
    for k in order:
        out[k] = _cut(node, x[k], cuts[k], node.out_shape()[k])
        if (cuts[k].step or 1) == 1:
            starts[k], ends[k] = Bound(x[k], cuts[k].start), Bound(x[k], cuts[k].stop)
        elif cuts[k].step > 1:  # the place within a step stays
            ends[k] = Bound(x[k], x[k].size)
    node.out(out)
    changing = tuple(x[k] for k in order)
    legacy = "starts" in node.attrs
    node.edit("starts" if legacy else 1, *(starts.get(k) for k in order), when=changing)
    return node.edit("ends" if legacy else 2, *(ends.get(k) for k in order), when=changing)


def _slice_unknown(node: Node, x: Axes) -> None:
    axes = node.ints("axes", 3)
    starts = node.traced(1)
    if axes is None and starts is None:
        raise Barrier("operand", "starts, axes")
    out = list(x)
    for k in [a % len(x) for a in axes] if axes is not None else range(starts.size if starts is not None else 0):
        node.freeze(x[k], "operand")
        out[k] = node.fixed(node.out_shape()[k], "operand")
    node.out(out)


def _cut(node: Node, axis: Expr, cut: slice, size: int) -> Expr:
    """The part of an axis that a Python slice takes; `size` is its length."""
    step = cut.step or 1
    if size == axis.size and step == 1:
        return axis
    if step == 1:
        return node.space.split(node.space.split(axis, cut.start)[1], size)[0]
    if step > 1 and axis.size == size * step and cut.start < step and not is_frozen(axis):
        outer, inner = node.space.factor(axis, step)
        node.freeze(inner, "picked")
        return outer
    node.freeze(axis, "picked", f"Slice with step {step}")
    return node.fixed(size, "picked")


def pad(node: Node) -> None:
    """Pad (opset 1-25): constant padding adds parts of its own to the axis; other modes copy neighbours, which freezes
    it.
    """
    x = node.axes(0)
    name = "paddings" if "paddings" in node.attrs else "pads"
    pads = node.ints(name, 1) if node.static(1) is not None or name in node.attrs else None
    if pads is None:
        return _pad_unknown(node, x)
    axes = [a % len(x) for a in node.ints("axes", 3) or range(len(x))]
    before, after = dict(zip(axes, pads, strict=False)), dict(zip(axes, pads[len(axes) :], strict=True))
    out, edits = list(x), dict[int, tuple[Expr, Expr]]()
    for k in axes:
        if before[k] == after[k] == 0:
            continue
        constant = node.attr("mode", "constant") == "constant" and min(before[k], after[k]) >= 0
        if not constant or is_frozen(x[k]):
            node.freeze(x[k], "spatial")
            out[k] = node.fixed(node.out_shape()[k], "spatial")
            continue
        edits[k] = node.space.dim(before[k]), node.space.dim(after[k])
        out[k] = total(edits[k][0], x[k], edits[k][1])
    node.out(out)
    if edits:
        nothing: tuple[Expr | None, Expr | None] = (None, None)
        node.edit(name if name in node.attrs else 1, *(edits.get(k, nothing)[side] for side in (0, 1) for k in axes))
    return None


def _pad_unknown(node: Node, x: Axes) -> None:
    """Padding computed at run time: an axis that it changed at the traced sizes is frozen; so is one that it might
    change.
    """
    value, axes = node.traced(1), node.ints("axes", 3)
    if value is None and axes is None:
        raise Barrier("operand", "pads")
    touched = [a % len(x) for a in axes] if axes is not None else range(len(x))
    other = node.facts.other_values.get(node.inputs[1])
    out = list(x)
    for j, k in enumerate(touched):
        fixed = (
            value is not None
            and other is not None
            and not any(v[j + s * len(touched)] for v in (value, other) for s in (0, 1))
        )
        if not fixed:
            node.freeze(x[k], "operand")
            out[k] = node.fixed(node.out_shape()[k], "operand")
    node.out(out)


def expand(node: Node) -> None:
    """Expand (opset 8-13): axes of size 1 become new axes of the wanted size."""
    x, shape = node.axes(0), node.out_shape()
    lead = len(shape) - len(x)
    out = [x[k - lead] if k >= lead and x[k - lead].size == n else node.fresh(n) for k, n in enumerate(shape)]
    value = node.traced(1)
    if value is None:
        node.sized(1, out)
    else:
        skip = len(out) - value.size
        node.edit(1, *(e if int(v) > 1 else None for e, v in zip(out[skip:], value.reshape(-1), strict=True)))
    node.out(out)


def tile(node: Node) -> None:
    """Tile (opset 6-13): each axis becomes repeats x axis."""
    x = node.axes(0)
    value = node.traced(1)
    if value is None or value.size != len(x):
        raise Barrier("operand", "repeats")
    repeats = [node.fresh(int(r)) for r in value.reshape(-1)]
    node.edit(1, *(r if r.size > 1 else None for r in repeats))
    node.out([product(r, e) for r, e in zip(repeats, x, strict=True)])


def depth_to_space(node: Node) -> None:
    """DepthToSpace (opset 1-13): channels are (b, b, C') in DCR mode, (C', b, b) in CRD mode."""
    x, b = node.axes(0), int(node.attr("blocksize"))
    if node.attr("mode", "DCR") == "DCR":
        blocks, depth = node.space.factor(x[1], x[1].size // (b * b))
    else:
        depth, blocks = node.space.factor(x[1], b * b)
    for e in (blocks, *x[2:]):
        node.freeze(e, "spatial")
    node.out([x[0], depth, *(node.fixed(n, "spatial") for n in node.out_shape()[2:])])


def space_to_depth(node: Node) -> None:
    """SpaceToDepth (opset 1-28): channels become (b, b, C) in DCR mode, (C, b, b) in CRD mode."""
    x, b = node.axes(0), int(node.attr("blocksize"))
    block = node.fixed(b * b, "spatial")
    channels = product(block, x[1]) if node.attr("mode", "DCR") == "DCR" else product(x[1], block)
    for e in x[2:]:
        node.freeze(e, "spatial")
    node.out([x[0], channels, *(node.fixed(n, "spatial") for n in node.out_shape()[2:])])


def resize(node: Node) -> None:
    """Resize (opset 10-19), Upsample (opset 7-9): an axis whose size stays goes through, the others are
    interpolated.
    """
    x, shape = node.axes(0), node.out_shape()
    axes = [a % len(x) for a in node.attr("axes", range(len(x)))]
    out = list(x)
    for k in axes:
        if shape[k] != x[k].size or not _identity_scale(node, axes.index(k), x[k]):
            node.freeze(x[k], "spatial")
            out[k] = node.fixed(shape[k], "spatial")
    if node.has(3):
        value = node.traced(3)
        if value is None:
            node.sized(3, out)
        else:
            node.edit(3, *(out[k] for k in axes))
    node.out(out)


def _identity_scale(node: Node, position: int, axis: Expr) -> bool:
    if is_frozen(axis) or node.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        return False
    i = 1 if len(node.inputs) == 2 else 2
    scales = node.traced(i) if i < len(node.inputs) else None
    if "scales" in node.attrs:
        return bool(node.attrs["scales"][position] == 1)
    if scales is not None and scales.size > position:
        return bool(scales.reshape(-1)[position] == 1)
    return node.has(3)


TABLE: Table = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Transpose": transpose,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Pad": pad,
    "Expand": expand,
    "Tile": tile,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Resize": resize,
    "Upsample": resize,
}
