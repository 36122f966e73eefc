"""One dim as a criterion sees it.

    view.members                the constants that carry its units, each as a matrix (size, m)
    view.sums(power)            sum of power(w) per unit over all weights, in bounded memory
    view.statistics             mean, variance, ... of its units wherever they are read
    view.readings               where they are read, and with which weights
    view.consumers, grams()     the products that sum over them, with the second moments of their inputs
    view.gradients()            of a loss with respect to a gate on each unit

A criterion is a function from a view to scores (size,), larger for units that matter more, at least 0. All but members
and sums look at data. What is gathered from data is gathered for all dims at once, when the first view is asked.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration import Consumer, Gram, Statistics
from onnxprune.criteria.evidence import POINTWISE, PRODUCING, Covariance, Entry, Evidence, Reading, by_unit, per_unit
from onnxprune.dims import Dim
from onnxprune.errors import Silent
from onnxprune.inference import DimInfo

Array = NDArray[Any]
Criterion = Callable[["UnitView"], Any]


@dataclass(frozen=True)
class Member:
    """A constant that carries the units. `role`: "producing" (its rows make them), "consuming" (its columns sum over
    them) or "pointwise" (a bias, scale or mask). `logits`: it only makes the logits of a gate that multiplies them.
    `node`, `operator`, `input`: where it is used.
    """

    tensor: str
    node: str
    operator: str
    input: int
    role: str
    logits: bool
    _entry: Entry
    _evidence: Evidence
    _dim: Dim

    def matrix(self, effective: bool = True) -> Array:
        """(size, m): one row per unit; `effective`: times a BatchNormalization or vector that scales its outputs."""
        array = self._evidence.array(self._entry, effective)
        flat = np.moveaxis(array, self._entry.axis, -1)
        units = by_unit(flat, self._entry.use.axes[self._entry.axis], self._dim)
        return np.moveaxis(units, -2, 0).reshape(self._dim.size, -1)


class UnitView:
    """A dim and what is known of its units: its `name` and `kind`, `size` (how many units there are), and what the
    methods tell.
    """

    def __init__(self, info: DimInfo, evidence: Evidence) -> None:
        self.info, self._evidence = info, evidence
        self.name, self.kind, self.size = info.name, info.kind, info.dim.size

    @cached_property
    def rng(self) -> np.random.Generator:
        """Random numbers that depend on the seed and the dim's name only."""
        return np.random.default_rng([self._evidence.seed, zlib.crc32(self.name.encode())])

    # weights
    @cached_property
    def _entries(self) -> Sequence[Entry]:
        return self._evidence.entries[self.info.dim]

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """All constants that carry the dim, in the order of the graph; their numbers are read when asked for."""
        nodes = self._evidence.typed.graph.nodes
        return tuple(
            Member(
                e.use.tensor, n.name or n.output[0], n.op_type, j, e.role, e.logits, e, self._evidence, self.info.dim
            )
            for e in self._entries
            for n, j in ((nodes[e.product[0]], e.product[1]),)
        )

    @cached_property
    def producers(self) -> tuple[Member, ...]:
        """The members whose rows make the units, without those that make the logits of a gate (unless there are no
        others); all weights where none makes them, and what is pointwise where there are no weights.
        """
        weights = [m for m in self.members if m.role != POINTWISE]
        made = [m for m in weights if m.role == PRODUCING]
        return tuple([m for m in made if not m.logits] or made or weights or self.members)

    def sums(self, power: np.ufunc) -> Array:
        """Sum of power(w) over all effective weights of each unit, (size,). Constants that work entry by entry (biases,
        scales, masks) count only for dims that no weight carries, logits of gates not at all.
        """
        weights = [e for e in self._entries if e.role != POINTWISE]
        counted = [e for e in weights if not e.logits] or weights or self._entries
        found: Array | None = None
        for e in counted:
            value = self._evidence.sums(e, self.info.dim, power)
            found = value if found is None else found + value
        return np.zeros(self.size) if found is None else found

    # activations
    @cached_property
    def readings(self) -> Sequence[Reading]:
        """Where activations are combined over the units; Silent if that is nowhere."""
        found = self._evidence.readings[self.info.dim]
        if not found:
            raise Silent("its units are on no activation that an operator combines")
        return found

    @cached_property
    def statistics(self) -> tuple[Statistics, ...]:
        """Of the units, (size,) each, at every place where they are read: means over a unit's entries."""
        self._evidence.calibrated()
        first = {r.place: r for r in self.readings}
        return tuple(self._of_units(self._evidence.statistics(p), r) for p, r in first.items())

    def _of_units(self, found: Statistics, reading: Reading) -> Statistics:
        def mean(values: Array) -> Array:
            return per_unit(values, reading.expr, self.info.dim, np.mean)

        largest = per_unit(found.largest, reading.expr, self.info.dim, np.maximum.reduce)
        rest = mean(found.variance), mean(found.magnitude), mean(found.zeros)
        return Statistics(found.n, mean(found.mean), *rest, largest)

    def weighed(self, power: np.ufunc, of: Callable[[Statistics], Array]) -> Array:
        """Sum over all readings of power(w) * of(statistics of the activation that w multiplies), (size,). Where the
        partner is an activation too (attention), its own `of` stands for the weights.
        """
        self._evidence.calibrated()
        total = np.zeros(self.size)
        for r in self.readings:
            value = of(self._evidence.statistics(r.place))
            other = self._evidence.other(r)
            found = (of(self._evidence.statistics(other)), None) if other else self._evidence.norms(r, power)
            total += self._matched(r, value, found)
        return total

    def _matched(self, r: Reading, value: Array, found: tuple[Array, Any] | None) -> Array:
        """The product with weights along the same axis; unit by unit where the axes differ."""
        d = self.info.dim
        if found is None:
            return per_unit(value, r.expr, d)
        weights, expr = found
        if weights.size == value.size:
            return per_unit(value * weights, r.expr, d)
        mean = per_unit(value, r.expr, d, np.mean)
        return mean * per_unit(weights, expr, d) if expr is not None and weights.size == expr.size else mean

    @property
    def consumers(self) -> Sequence[Consumer]:
        """The products that sum over the units."""
        return self._evidence.consumers(self.info.dim)

    def grams(self) -> Iterator[tuple[Consumer, Gram]]:
        """Second moments of the inputs of the products that sum over the units: one run over the data per dim."""
        return self._evidence.grams(self.info.dim)

    @property
    def covariances(self) -> Sequence[Covariance]:
        """Between the channels of each tensor that products read. Silent where no product reads the units."""
        found = self._evidence.covariances[self.info.dim]
        if not found:
            raise Silent("no product reads it")
        return found

    def gradients(self, curvature: bool = False) -> tuple[Array, NDArray[np.int64]]:
        """Derivatives of the loss of each sample with respect to a gate on each unit, (samples, size), and the feed of
        each sample. See `gradients` for the loss.
        """
        self._evidence.calibrated()
        first = {r.place: r for r in self.readings}
        found = self._evidence.gradients(curvature)
        total: Array = np.zeros((found.feeds.size, self.size))
        for place, r in first.items():
            total += by_unit(found.values[place], r.expr, self.info.dim).sum(2, dtype=np.float64)
        return total, found.feeds
