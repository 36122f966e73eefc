"""An exact change of basis for the units of a dim: where it is allowed, and in which basis cutting costs least.

Where everything that touches a dim is linear in its units, as in a stream between products without an activation,

    reader(x) = (W T') (T x)       T (n, n) orthogonal

what makes the units can give T x and what reads them take T off again. Only constants change: each axis that carries
the dim is multiplied by T. The first k rows of T span what predicts the readers' outputs best; then cutting units is
the best cut in rank, of which cutting channels is a special case (Ashkboos et al. 2024, "SliceGPT", for the streams of
transformers).

Units that are one factor of an axis, such as the channels of each head, get a basis for each index of the outer
factors, unless some tensor carries them without those. Left out: normalisations, which mix units in their own way.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from onnxprune.calibration import Calibration, Consumer, Gram, block
from onnxprune.dims import Dim, Expr, Sum, atoms, resolve
from onnxprune.errors import InputError
from onnxprune.graph import FLOATS, Graph
from onnxprune.inference import TypedGraph
from onnxprune.nodes import operator
from onnxprune.rules.rule import Axes, Signature
from onnxprune.storage import tensor

Array = NDArray[Any]
Bases = Mapping[str, Array]
FLOOR = 1e-6  # of the mean variance of a unit, added to each

# operators that are linear in a dim which they do not act on: what they say of other axes does not matter
_MOVES = """Identity Dropout Neg Transpose Reshape Flatten Squeeze Unsqueeze Concat Split Slice Expand Tile
GlobalAveragePool AveragePool"""
MOVES = frozenset(_MOVES.split())
ADDS = frozenset(("Add", "Sub", "Sum", "Mean"))
SCALES = frozenset(("Mul", "Div"))
REDUCES = frozenset(("ReduceSum", "ReduceMean"))
PRODUCTS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))


class Place(NamedTuple):
    """Where the units of a dim lie on an axis: `units` (copies, n, rest); `outer`: the dims that tell copies apart."""

    units: NDArray[np.int64]
    outer: tuple[Dim, ...]


def places(expr: Expr, dim: Dim) -> Iterator[Place]:
    """Every place of a dim on an axis."""
    expr = resolve(expr)
    return _places(expr, dim, np.arange(expr.size))


def _places(expr: Expr, dim: Dim, index: NDArray[np.int64]) -> Iterator[Place]:
    if expr is dim:
        yield Place(index.reshape(1, -1, 1), ())
    elif isinstance(expr, Sum):
        bounds = np.cumsum([p.size for p in expr.parts])[:-1]
        for part, piece in zip(expr.parts, np.split(index, bounds), strict=True):
            yield from _places(part, dim, piece)
    elif not isinstance(expr, Dim):
        for k, factor in enumerate(expr.factors):
            if factor is dim:
                before = expr.factors[:k]
                copies = math.prod(e.size for e in before)
                yield Place(index.reshape(copies, dim.size, -1), tuple(d for e in before for d in atoms(e)))


# where it is allowed
def obstacles(typed: TypedGraph, dims: Iterable[Dim]) -> dict[Dim, str]:
    """For each dim why its basis must stay; "" where it can change."""
    found = dict.fromkeys(dims, "")
    for i, signature in enumerate(typed.signatures):
        for d in _touched(signature) & set(found):
            found[d] = found[d] or _obstacle(typed, i, signature, d)
    return found


def _touched(signature: Signature) -> set[Dim]:
    return {d for axes in (*signature.inputs, *signature.outputs) for e in axes or [] for d in atoms(e)}


def _obstacle(typed: TypedGraph, i: int, s: Signature, d: Dim) -> str:
    """Why a node is not linear in the units of a dim; "" if it is."""
    graph, node = typed.graph, typed.graph.nodes[i]
    carried = [j for j, axes in enumerate(s.inputs) if _carries(axes, d)]
    constants = [j for j in carried if node.input[j] in graph.constants]
    if not all(_is_plain(graph, node.input[j]) for j in constants):
        return f"{node.name or node.op_type} has no plain float weights for it"
    moving = [j for j in carried if j not in constants]
    if s.measures or _is_linear(operator(node), s, d, carried, moving):
        return ""
    return f"{node.name or node.op_type} ({node.op_type}) is not linear in it"


def _is_linear(kind: str, s: Signature, d: Dim, carried: list[int], moving: list[int]) -> bool:
    """Whether an operator is linear in a dim that the inputs `carried` have, `moving` those that are computed."""
    if kind in PRODUCTS:
        return all(_is_multiplied(kind, s, j, d) for j in moving)
    if kind in ADDS:
        return all(_carries(axes, d) for axes in s.inputs if axes is not None)
    if kind in SCALES:
        return carried == moving and len(carried) == 1 and (kind == "Mul" or carried == [0])
    if kind in REDUCES:
        return not any(d in atoms(r.expr) for r in s.reads)
    return kind in MOVES or (kind == "Gather" and not moving and not s.edits)


def _carries(axes: Axes | None, d: Dim) -> bool:
    return any(d in atoms(e) for e in axes or [])


def _is_multiplied(kind: str, s: Signature, j: int, d: Dim) -> bool:
    """Whether a product sums over every axis of input j that carries the dim, or has it as its rows or columns."""
    sums = [r for r in s.reads if r.how == "sum" and r.partner is not None and d in atoms(r.expr)]
    free = {(r.input, r.axis) for r in sums} | {r.partner for r in sums}
    axes = s.inputs[j] or []
    if "Conv" not in kind:
        free |= {(j, k) for k in range(max(len(axes) - 2, 0), len(axes))}
    return all((j, k) in free for k, e in enumerate(axes) if d in atoms(e))


def _is_plain(graph: Graph, name: str) -> bool:
    return graph.constants[name].data_type in FLOATS and name in graph.tensors and name not in graph.sources


# which basis
def bases(calibration: Calibration, dims: Iterable[Dim]) -> dict[Dim, Array]:
    """The bases of dims that products read, (copies, n, n): rows in order of their use to the readers."""
    found: dict[Dim, Array] = {}
    for group in calibration.grouped(d for d in dims if d in calibration.consumers):
        grams = calibration.grams([c.linear for d in group for c in calibration.consumers[d]])
        found |= {d: _basis(calibration, d, grams) for d in group}
    return found


def outer_dims(typed: TypedGraph, d: Dim) -> tuple[Dim, ...]:
    """The dims for each of whose indices `d` can have a basis of its own; () for one basis."""
    forms = {p.outer for use in typed.uses for e in use.axes for p in places(e, d)}
    if len(forms) != 1:
        return ()
    outer = forms.pop()
    carriers = ([a for e in axes for a in atoms(e)] for axes in typed.axes.values() if _carries(axes, d))
    return outer if all(set(outer) <= set(dims) for dims in carriers) else ()


def _basis(calibration: Calibration, d: Dim, grams: Mapping[int, Gram]) -> Array:
    """What each direction counts for is the error at the readers, as a share of their output energy."""
    copies = math.prod(o.size for o in outer_dims(calibration.typed, d))
    covariance, use = np.zeros((2, copies, d.size, d.size))
    for c in calibration.consumers[d]:
        for k, (variance, weights) in enumerate(_blocks(calibration, c, d, grams[c.linear.key])):
            covariance[k % copies] += variance
            use[k % copies] += weights
    return np.stack([_directions(c, u) for c, u in zip(covariance, use, strict=True)]).astype(np.float32)


def _blocks(calibration: Calibration, c: Consumer, d: Dim, gram: Gram) -> Iterator[tuple[Array, Array]]:
    """For each copy of the units that a reader has: their covariance (n, n) and W W' (n, n), summed over the reader's
    groups and the entries of its kernel.
    """
    signature = calibration.typed.signatures[c.linear.index]
    expr = next(r.expr for r in signature.reads if r.input == 0 and r.partner)
    w = c.linear.matrix(calibration.typed.graph.array(c.linear.weight)).astype(np.float64)
    cov = gram.covariance
    made = cov @ w if cov.ndim == 3 else cov[:, :, None] * w
    energy = max(float(np.einsum("gko,gko->", made, w)), 1e-30)
    scale = float(np.square(w).mean()) / energy  # readers of streams that grow count alike
    for place in places(expr, d):
        rows = (place.units[..., None] * c.area + np.arange(c.area)).reshape(*place.units.shape[:2], -1)
        for taps in rows:
            blocks = [(block(cov, r).sum(0) * scale, np.einsum("gio,gjo->ij", w[:, r], w[:, r])) for r in taps.T]
            variance, weights = (np.sum(part, axis=0) for part in zip(*blocks, strict=True))
            yield variance, weights / energy


def _directions(covariance: Array, use: Array) -> Array:
    """Orthonormal rows, the first k of which span what predicts the readers' outputs best, for every k."""
    n = len(covariance)
    level = max(float(np.trace(covariance)) / n, 1e-30)
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 0) + FLOOR * level  # rounding makes some negative
    root, inverse = (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T
    _, best = np.linalg.eigh(root @ use @ root)
    q, _ = np.linalg.qr(inverse @ best[:, ::-1])
    return np.asarray(q.T)


# the graph in it
def rotated(typed: TypedGraph, found: Mapping[Dim, Array]) -> Graph:
    """The graph in other bases: the same function, up to rounding."""
    graph = typed.graph
    tensors, nodes = dict(graph.tensors), list(graph.nodes)
    for use in typed.uses:
        turned = [(k, d) for k, e in enumerate(use.axes) for d in dict.fromkeys(atoms(e)) if d in found]
        if not turned:
            continue
        stored = graph.array(use.tensor)
        array = stored.astype(np.float64)
        for axis, d in turned:
            array = _turned(array, axis, use.axes[axis], d, found[d])
        made = tensor(use.tensor, array.astype(stored.dtype), graph.tensors[use.tensor])
        if len(graph.consumers[use.tensor]) > 1:
            made.name = _free(use.tensor, made, tensors)
            nodes[use.node] = _reading(nodes[use.node], use.input, made.name)
        tensors[made.name] = made
    return graph.replace(nodes, tensors)


def _turned(array: Array, axis: int, expr: Expr, d: Dim, basis: Array) -> Array:
    """An array multiplied by a basis along one of its axes."""
    moved = np.moveaxis(array, axis, 0).copy()
    for place in places(expr, d):
        each = np.broadcast_to(basis, (len(place.units), d.size, d.size)).astype(np.float64)
        block = moved[place.units]  # (copies, n, rest, ...)
        moved[place.units] = (each @ block.reshape(*block.shape[:2], -1)).reshape(block.shape)
    return np.moveaxis(moved, 0, axis)


def _free(stem: str, made: TensorProto, tensors: Mapping[str, TensorProto]) -> str:
    """A name for a constant that others use as it was; equal ones share it."""
    k = 0
    while (name := f"{stem}.rotated{k or ''}") in tensors and tensors[name].raw_data != made.raw_data:
        k += 1
    return name


def _reading(node: NodeProto, slot: int, name: str) -> NodeProto:
    made = NodeProto()
    made.CopyFrom(node)
    made.input[slot] = name
    return made


# as data
def packed(found: Bases) -> dict[str, Any]:
    """Bases as JSON: shape, and float32 in base64."""
    return {
        n: {"shape": list(b.shape), "float32": base64.b64encode(b.astype("<f4").tobytes()).decode()}
        for n, b in found.items()
    }


def unpacked(rows: Mapping[str, Any]) -> dict[str, Array]:
    """What `packed` gave; ValueError, KeyError or TypeError if it is something else."""
    return {
        n: np.frombuffer(base64.b64decode(r["float32"]), "<f4").astype(np.float32).reshape(r["shape"])
        for n, r in rows.items()
    }


def bind_bases(found: Bases, typed: TypedGraph) -> dict[Dim, Array]:
    """Bases by Dim; InputError if they were made for another graph."""
    known = {d.name: d.dim for d in typed.prunable}
    bound: dict[Dim, Array] = {}
    for name, basis in found.items():
        d = known.get(name)
        copies = {1} if d is None else {1, math.prod(o.size for o in outer_dims(typed, d))}
        if d is None or basis.shape[1:] != (d.size, d.size) or len(basis) not in copies:
            raise InputError(f"the basis for {name!r} fits no dim of this model: was it made for another file?")
        bound[d] = basis
    return bound


__all__ = ["Bases", "bases", "bind_bases", "obstacles", "packed", "rotated", "unpacked"]
