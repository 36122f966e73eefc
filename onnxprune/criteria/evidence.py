"""What criteria judge by, for all dims of a graph at once: which constants carry a dim, where its units are read, what
calibration data says there. Everything is made when it is first asked for.

Weights are looked at one constant at a time, in bounded working memory. Quantised weights count as the reals that they
stand for, their scales do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration import Calibration, Consumer, Gram, Statistics, units_along
from onnxprune.criteria.effective import gate_logits, output_scale
from onnxprune.criteria.gradients import Gradients, gate_gradients
from onnxprune.data import LABEL_NAMES, Samples
from onnxprune.dims import Dim, Expr, atoms, gather
from onnxprune.errors import InputError
from onnxprune.graph import FLOATS
from onnxprune.inference import TypedGraph, Use, is_pointwise
from onnxprune.quantization import is_scale, meant, quantised_use, real
from onnxprune.sessions import Feeds

Array = NDArray[Any]
CHUNK_ELEMENTS = 1 << 20  # working memory of a reduction, in elements
PRODUCING, CONSUMING, POINTWISE = "producing", "consuming", "pointwise"


@dataclass(frozen=True)
class Entry:
    """An axis of a constant that carries a dim. `product`: the node and input at which it is used at last, behind moves
    and DequantizeLinear; `role`: whether its entries make the units, sum over them, or work on them one by one;
    `logits`: it only makes the logits of a gate.
    """

    use: Use
    axis: int
    role: str
    product: tuple[int, int]
    logits: bool = False


@dataclass(frozen=True)
class Reading:
    """Input `input` of node `node`, an activation, is combined over the units on its axis `axis`, each of them times
    what stands on the axis `partner` of another input.
    """

    node: int
    input: int
    tensor: str
    axis: int
    expr: Expr
    partner: tuple[int, int] | None
    statistics: bool

    @property
    def place(self) -> tuple[str, int]:
        return self.tensor, self.axis


@dataclass(frozen=True)
class Covariance:
    """Of the I channels of a tensor, (G, I, I) for G groups; `units` (I,): the unit of each, -1 for other dims'."""

    matrix: Array
    units: NDArray[np.int64]


class Evidence:
    """Of a typed graph for the given dims. `seed`: of random scores and of the losses that gradients are taken of;
    `who`: the criterion that asks, for messages.
    """

    def __init__(
        self,
        typed: TypedGraph,
        dims: Iterable[Dim],
        calibration: Calibration | None = None,
        seed: int = 0,
        who: str = "",
    ) -> None:
        self.typed, self.calibration, self.seed, self.who = typed, calibration, seed, who
        self.dims = dict.fromkeys(dims)
        self._sums: dict[tuple[str, int, int, str], dict[int, dict[Dim, Array]]] = {}
        self._gradients: dict[bool, Gradients] = {}

    # weights
    @cached_property
    def entries(self) -> Mapping[Dim, Sequence[Entry]]:
        """The constants that carry each dim, each axis of a constant once."""
        found: dict[Dim, list[Entry]] = {d: [] for d in self.dims}
        logits = gate_logits(self.typed)
        for uses in self.typed.weights.values():
            seen: set[tuple[Dim, int]] = set()
            for use in uses:
                if not self._counts(use):
                    continue
                for axis, e in enumerate(use.axes):
                    for d in dict.fromkeys(atoms(e)):
                        if d in self.dims and (d, axis) not in seen:
                            seen.add((d, axis))
                            found[d].append(self._entry(use, axis, d, logits))
        return found

    def _counts(self, use: Use) -> bool:
        """Whether a constant's use has something to say: floats but for scales, and integers that stand for reals."""
        graph = self.typed.graph
        if graph.constants[use.tensor].data_type not in FLOATS:
            return quantised_use(graph, use.node, use.input) is not None
        return not is_scale(graph.nodes[use.node], use.input)

    def _entry(self, use: Use, axis: int, d: Dim, logits: set[int]) -> Entry:
        if len(use.axes) < 2 or self._pointwise(use.node):
            return Entry(use, axis, POINTWISE, (use.node, use.input))
        i, j, k = self._followed(use.node, use.input, axis, d)
        reads = self.typed.signatures[i].reads
        consumed = any((j, k) in ((r.input, r.axis), r.partner) and d in atoms(r.expr) for r in reads)
        return Entry(use, axis, CONSUMING if consumed else PRODUCING, (i, j), not consumed and i in logits)

    def _pointwise(self, i: int) -> bool:
        """Whether a constant that node i uses is a bias, scale or mask; one that is dequantised is what it is used
        as.
        """
        graph = self.typed.graph
        if graph.nodes[i].op_type != "DequantizeLinear":
            return is_pointwise(graph.nodes[i])
        users = [k for k, _ in graph.consumers.get(graph.nodes[i].output[0], [])]
        return bool(users) and all(is_pointwise(graph.nodes[k]) for k in users)

    def _followed(self, i: int, j: int, axis: int, d: Dim) -> tuple[int, int, int]:
        """Node, input and axis at which a constant's axis is used at last."""
        graph = self.typed.graph
        while graph.nodes[i].op_type in ("DequantizeLinear", "Transpose", "Cast", "Identity", "Reshape", "Squeeze"):
            tensor = graph.nodes[i].output[0]
            users = graph.consumers.get(tensor, [])
            axes = [k for k, e in enumerate(self.typed.axes.get(tensor, [])) if d in atoms(e)]
            if not users or users[0][1] < 0 or not axes:
                break
            (i, j), axis = users[0], axes[0]
        return i, j, axis

    def array(self, entry: Entry, effective: bool = True) -> Array:
        """The numbers of a constant, times the scale that follows it; integers whose zero point is not known count as
        they are.
        """
        use, graph = entry.use, self.typed.graph
        found = meant(graph, use.node, use.input)
        array = graph.array(use.tensor) if found is None else found
        scale = output_scale(self.typed, use.node, use.input) if effective and entry.role != POINTWISE else None
        return array if scale is None else array * scale.astype(np.float32)

    def sums(self, entry: Entry, d: Dim, power: np.ufunc) -> Array:
        """Sum of power(w) over a constant for each unit of d, (size,). All of its axes are summed when it is first
        looked at.
        """
        key = entry.use.tensor, entry.use.node, entry.use.input, power.__name__
        if key not in self._sums:
            array = self.array(entry)
            self._sums[key] = {
                axis: gather(e, axis_sums(array, axis, power), np.add.reduce)
                for axis, e in enumerate(entry.use.axes)
                if any(a in self.dims for a in atoms(e))
            }
        return self._sums[key][entry.axis][d]

    # activations
    def calibrated(self) -> Calibration:
        """The calibration; InputError without one."""
        if self.calibration is None:
            raise InputError(f"{self.who} needs --data: it looks at what the model does on real inputs")
        return self.calibration

    @cached_property
    def readings(self) -> Mapping[Dim, Sequence[Reading]]:
        """Where activations are combined over the units of each dim. Statistics (normalisations) count only for dims
        that nothing else reads: there the units stay apart and are read later.
        """
        found: dict[Dim, list[Reading]] = {d: [] for d in self.dims}
        for i, (node, signature) in enumerate(zip(self.typed.graph.nodes, self.typed.signatures, strict=True)):
            for r in signature.reads:
                tensor = node.input[r.input]
                axes = signature.inputs[r.input]
                if tensor in self.typed.graph.constants or axes is None or not self._is_float(tensor):
                    continue
                made = Reading(i, r.input, tensor, r.axis, axes[r.axis], r.partner, r.how == "stats")
                for d in dict.fromkeys(atoms(r.expr)):
                    if d in self.dims:
                        found[d].append(made)
        return {d: [r for r in rs if not r.statistics] or rs for d, rs in found.items()}

    def _is_float(self, tensor: str) -> bool:
        return self.typed.facts.dtypes.get(tensor, 0) in FLOATS

    def other(self, reading: Reading) -> tuple[str, int] | None:
        """The place that a reading's partner has, where that is an activation too."""
        if reading.partner is None:
            return None
        j, axis = reading.partner
        tensor = self.typed.graph.nodes[reading.node].input[j]
        known = tensor in self.typed.axes and self._is_float(tensor)
        return (tensor, axis) if known and self._weights(reading) is None else None

    def _weights(self, reading: Reading) -> Array | None:
        return real(self.typed.graph, reading.node, reading.partner[0]) if reading.partner else None

    def norms(self, reading: Reading, power: np.ufunc) -> tuple[Array, Expr] | None:
        """Sum of power(w) over the weights that a reading multiplies with, along an axis of the given expression; None
        if these are no constants.
        """
        if reading.partner is None:
            return None
        linear = self.calibrated().linears.get(reading.node)
        if linear is not None:
            scale = output_scale(self.typed, reading.node, 1)
            weight = self.typed.graph.array(linear.weight)
            matrix = linear.matrix(weight if scale is None else weight * scale)
            g, k, o = linear.size
            area = int(np.prod(linear.kernel)) if linear.kernel else 1
            total = axis_sums(matrix.reshape(g * k, o), 0, power)
            return total.reshape(-1, area).sum(1), reading.expr
        weights = self._weights(reading)
        j, axis = reading.partner
        axes = self.typed.signatures[reading.node].inputs[j]
        return None if weights is None or axes is None else (axis_sums(weights, axis, power), axes[axis])

    @cached_property
    def _statistics(self) -> Mapping[tuple[str, int], Statistics]:
        readings = [r for d in self.dims for r in self.readings[d]]
        places = [p for r in readings for p in (r.place, self.other(r)) if p is not None]
        return self.calibrated().statistics(sorted(set(places)))

    def statistics(self, place: tuple[str, int]) -> Statistics:
        """Of the entries along an axis of an activation, gathered for all dims in one go."""
        self.calibrated()
        return self._statistics[place]

    def consumers(self, d: Dim) -> Sequence[Consumer]:
        return self.calibrated().consumers.get(d, [])

    def grams(self, d: Dim) -> Iterator[tuple[Consumer, Gram]]:
        """Gram matrices of the inputs of the products that read d, in one pass over the data."""
        consumers = self.consumers(d)
        found = self.calibrated().grams([c.linear for c in consumers])
        for c in consumers:
            yield c, found[c.linear.key]

    @cached_property
    def covariances(self) -> Mapping[Dim, Sequence[Covariance]]:
        """Between the channels of every tensor that products read, the mean over the positions under a kernel; for
        products of two activations the second moments of both.
        """
        calibration = self.calibrated()
        made: dict[Dim, list[Covariance]] = {d: [] for d in self.dims}
        for group in calibration.grouped(self.dims):
            grams = calibration.grams([c.linear for d in group for c in self.consumers(d)])
            seconds = calibration.seconds([m for d in group for m in calibration.meetings.get(d, [])])
            for d in group:
                first = {c.linear.data: c for c in reversed(self.consumers(d))}  # one for each tensor
                made[d] += [Covariance(_of_channels(grams[c.linear.key], c.area), c.units) for c in first.values()]
                for m in calibration.meetings.get(d, []):
                    made[d] += [Covariance(x, m.units) for x in seconds[m.index]]
        return made

    # gradients
    def gradients(self, curvature: bool) -> Gradients:
        """Of a loss with respect to gates on everything that is read, for all dims in one go."""
        if curvature not in self._gradients:
            gates = {(r.node, r.input, r.axis) for d in self.dims for r in self.readings[d]}
            self._gradients[curvature] = gate_gradients(
                self.typed.graph, sorted(gates), self._labelled(), curvature, self.seed, self.who
            )
        return self._gradients[curvature]

    def _labelled(self) -> Iterator[tuple[Feeds, Array | None]]:
        """The feeds, with class numbers where the data has some beside the inputs."""
        feeds = self.calibrated().feeds
        for feed, beside in feeds.labelled if isinstance(feeds, Samples) else ((f, {}) for f in feeds):
            labels = next((beside[n] for n in LABEL_NAMES if n in beside), None)
            yield feed, labels if labels is not None and labels.dtype.kind in "iu" else None


def _of_channels(gram: Gram, area: int) -> Array:
    if gram.covariance.ndim == 2:  # too many summands: their diagonal
        g, k = gram.covariance.shape
        return np.asarray(gram.covariance.reshape(g, k // area, area).mean(2)[:, :, None] * np.eye(k // area))
    g, k, _ = gram.covariance.shape
    cells = gram.covariance.reshape(g, k // area, area, k // area, area)
    return np.asarray(np.einsum("giaja->gij", cells) / area)


def by_unit(values: Array, expr: Expr, d: Dim) -> Array:
    """Values along an axis, (..., size of expr), as (..., units of d, entries of each)."""
    units = units_along(expr, d)
    order = np.argsort(units, kind="stable")[int((units < 0).sum()) :]
    return values[..., order].reshape(*values.shape[:-1], d.size, -1)


def per_unit(values: Array, expr: Expr, d: Dim, reduce: Callable[..., Array] = np.add.reduce) -> Array:
    """Values along an axis, (size of expr,), as values of the units of d."""
    return gather(expr, values, reduce)[d]


def axis_sums(array: Array, axis: int, power: np.ufunc) -> NDArray[np.float64]:
    """Sum of power(w) over all other axes, shape (size of axis,), float64, in bounded working memory."""
    if array.size <= CHUNK_ELEMENTS:  # masks hold the lowest float, whose square needs more range
        others = tuple(k for k in range(array.ndim) if k != axis)
        return np.asarray(power(array, dtype=np.float64).sum(others))
    cube = array.reshape(int(np.prod(array.shape[:axis])), array.shape[axis], -1)
    total = np.zeros(array.shape[axis])
    step = max(1, CHUNK_ELEMENTS // max(1, cube.shape[1] * cube.shape[2]))
    for at in range(0, cube.shape[0], step):
        block = cube[at : at + step]
        if block[0].size <= 2 * CHUNK_ELEMENTS:
            total += power(block, dtype=np.float32).sum((0, 2), dtype=np.float64)
        else:
            rows = max(1, CHUNK_ELEMENTS // cube.shape[2])
            for r in range(0, cube.shape[1], rows):
                total[r : r + rows] += power(block[:, r : r + rows], dtype=np.float32).sum((0, 2), dtype=np.float64)
    return total
