"""Which units can go without any effect.

A unit may go if, wherever it is summed over, what it adds to the *remaining* units is zero: its activation is
constantly zero there, or the weights that read it are. All candidates are assumed to go together; each one found to
matter is put back, until nothing changes. What is left is the largest set that can go at once. Units under statistics
(LayerNorm, means, maxima) always matter: they change the others' values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.constancy import Constancy, constancy_of
from onnxprune.dims import Dim, Mask, atoms, gather, keep, spread
from onnxprune.inference import TypedGraph
from onnxprune.quantization import real
from onnxprune.rules.rule import Read

CONVOLUTIONS = ("Conv", "QLinearConv", "ConvInteger", "FusedConv")
RECURRENT = ("LSTM", "GRU", "RNN")
NO_MULTIPLES: Mapping[Dim, int] = {}


def removable(
    typed: TypedGraph, candidates: Collection[Dim], multiples: Mapping[Dim, int] = NO_MULTIPLES
) -> dict[Dim, Mask]:
    """True for units that can go, shape (d.size,) for each candidate, in their order; the number that stays is a
    positive multiple of the dim's number in `multiples`, or all.
    """
    constancy = constancy_of(typed)
    gone = {d: np.ones(d.size, bool) for d in candidates}
    checks = [
        (i, read, {d for d in atoms(read.expr) if d in candidates})
        for i, signature in enumerate(typed.signatures)
        for read in signature.reads
    ]
    checks = [c for c in checks if c[2]]
    while True:
        changed = False
        kept = {d: ~g for d, g in gone.items()}
        for i, read, dims in checks:
            if not any(gone[d].any() for d in dims):
                continue
            free = _unread(typed, constancy, i, read, kept)
            for d, ok in gather(
                (typed.signatures[i].inputs[read.input] or [])[read.axis], free, np.logical_and.reduce
            ).items():
                if d in dims and (gone[d] & ~ok).any():
                    gone[d] = gone[d] & ok
                    kept[d] = ~gone[d]
                    changed = True
        if not changed and not _put_back(gone, multiples):
            return gone


def _put_back(gone: dict[Dim, Mask], multiples: Mapping[Dim, int]) -> bool:
    """Keep further units, from the front, where too few stay; True if any was put back."""
    changed = False
    for d, mask in gone.items():
        stay, step = int((~mask).sum()), multiples.get(d, 1)
        want = min(d.size, -(-max(1, stay) // step) * step)
        if want > stay:
            mask[np.flatnonzero(mask)[: want - stay]] = False
            changed = True
    return changed


def _unread(typed: TypedGraph, constancy: Constancy, i: int, read: Read, kept: dict[Dim, Mask]) -> NDArray[np.bool_]:
    """Per index of the axis that is read: whether it adds nothing to what remains."""
    if read.how == "range":  # a range holds 0 anyway
        return constancy.zero(i, read.input, read.axis)
    if read.how not in ("sum", "norm"):
        return np.zeros((typed.signatures[i].inputs[read.input] or [])[read.axis].size, bool)
    free = constancy.zero(i, read.input, read.axis) | _zero_weights(typed, constancy, i, (read.input, read.axis), kept)
    node = typed.graph.nodes[i]
    if read.partner is not None:
        other = constancy.zero(i, *read.partner) | _zero_weights(typed, constancy, i, read.partner, kept)
        if other.size != free.size:
            other = _matched_zero(typed, i, read, other, kept)
        free = free | other
    if node.op_type in RECURRENT and read.input == 2:
        hidden = constancy.values.get(node.output[0] or (node.output[1] if len(node.output) > 1 else ""), {})
        axes = (typed.signatures[i].inputs[2] or [])[2]
        zeros = {d: v == 0 for d, v in hidden.items()}
        free = free | spread(axes, zeros, np.logical_or, False).astype(bool)
    return free


def _zero_weights(
    typed: TypedGraph, constancy: Constancy, i: int, place: tuple[int, int], kept: dict[Dim, Mask]
) -> NDArray[np.bool_]:
    """Per index of a constant's axis: whether its entries are zero wherever they are used: at the remaining units of
    axes that the output has, and on axes that are summed over as well (Einsum) at all that are not multiplied with
    zero.
    """
    j, axis = place
    axes = typed.signatures[i].inputs[j] or []
    weights = real(typed.graph, i, j)
    if weights is None:
        return np.zeros(axes[axis].size, bool)
    w, summed = weights != 0, _partners(typed, i)
    for k, e in enumerate(axes):
        if k == axis:
            continue
        if (j, k) in summed:
            w = np.compress(~constancy.zero(i, *summed[j, k]), w, axis=k)
        elif any(d in kept for d in atoms(e)):
            w = np.compress(keep(e, kept), w, axis=k)
    return np.asarray(~w.any(axis=tuple(k for k in range(w.ndim) if k != axis)))


def _partners(typed: TypedGraph, i: int) -> dict[tuple[int, int], tuple[int, int]]:
    """Axes of node i that are multiplied and summed over, (input, axis), to those that they are multiplied with."""
    pairs = [((r.input, r.axis), r.partner) for r in typed.signatures[i].reads if r.partner is not None]
    return dict(pairs) | {b: a for a, b in pairs}


def _matched_zero(
    typed: TypedGraph, i: int, read: Read, other: NDArray[np.bool_], kept: dict[Dim, Mask]
) -> NDArray[np.bool_]:
    """Zeros of the partner per index of the axis that is read, where the two differ in size: a grouped convolution's
    weights (g*O, I), keys with fewer heads than there are queries.
    """
    (j, axis), inputs = read.partner or (0, 0), typed.signatures[i].inputs
    weights = real(typed.graph, i, j) if typed.graph.nodes[i].op_type in CONVOLUTIONS else None
    if weights is not None:
        return _grouped_zero(typed, i, read, weights, kept)
    units = gather((inputs[j] or [])[axis], other, np.logical_and.reduce)
    return spread((inputs[read.input] or [])[read.axis], units, np.logical_or, False).astype(bool)


def _grouped_zero(
    typed: TypedGraph, i: int, read: Read, weights: NDArray[Any], kept: dict[Dim, Mask]
) -> NDArray[np.bool_]:
    """Per input channel (g*I) of a grouped convolution: whether its group's remaining filters ignore it."""
    inputs, (j, _) = typed.signatures[i].inputs, read.partner or (0, 0)
    axes = inputs[j] or []
    w = (weights != 0).reshape(axes[0].size, axes[1].size, -1).any(axis=2)
    w = w & keep(axes[0], kept)[:, None]
    g = (inputs[read.input] or [])[read.axis].size // axes[1].size
    return np.asarray(~w.reshape(g, -1, axes[1].size).any(axis=1).reshape(-1))
