"""Which units hold one constant, whatever the input: a forward walk over the typed graph.

For every tensor and every free dim d on exactly one of its axes, `values[tensor][d]` has shape (d.size,): the number
that all entries of that unit equal, or NaN where that is not known. Zero filters give their bias, ReLU of a constant is
a constant, a product with zero is zero. Integers that stand for reals are held as they are stored; `at` subtracts the
zero point for the operators that do so. Operators fall into few behaviours, one table row each; an operator without a
row gives nothing, which is always right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.dims import Dim, Expr, atoms, gather, spread
from onnxprune.flow import LEAVE, carried
from onnxprune.inference import TypedGraph
from onnxprune.nodes import operator
from onnxprune.quantization import Operand, has, operand, real

Values = dict[Dim, NDArray[np.float64]]
ZERO_POINT = math.inf  # of an integer tensor: its zero point, which is known at run time only


Row = Callable[["Constancy", int], dict[int, Values]]


class Constancy:
    """The walk and its result. `node_values(i, j)`: constants of input j of node i; `values`: of tensors."""

    def __init__(self, typed: TypedGraph, table: Mapping[str, Row]) -> None:
        self.typed = typed
        self.values: dict[str, Values] = {}
        self._uniform: dict[str, float] = {}
        self._constants: dict[tuple[int, int], Values] = {}
        self.refuted: dict[str, dict[Dim, NDArray[np.bool_]]] = {}  # units of body inputs that change on the way
        self._walk(table)
        while self._refute():
            self._walk(table)

    def _walk(self, table: Mapping[str, Row]) -> None:
        """Constants of every tensor, if all that loops carry stays what it enters with, but for what is refuted."""
        self.values.clear()
        for i, node in enumerate(self.typed.graph.nodes):
            if self.typed.signatures[i].barrier is None and (row := table.get(operator(node))):
                for k, made in row(self, i).items():
                    known = {d: v for d, v in made.items() if not np.isnan(v).all()}
                    if known and k < len(node.output):
                        self.values[node.output[k]] = known

    def _refute(self) -> bool:
        """Note the units that a loop carries and does not leave as they were; True if there are new ones."""
        new = False
        for i, node in enumerate(self.typed.graph.nodes):
            for k, j in carried(node) if node.op_type == LEAVE else ():
                name, after = node.input[j], self.at(i, k)
                for d, before in self.values.get(name, {}).items():
                    moved = ~np.isnan(before) & ~(after.get(d, np.full(d.size, np.nan)) == before)
                    if moved.any():
                        known = self.refuted.setdefault(name, {})
                        known[d] = known.get(d, np.zeros(d.size, bool)) | moved
                        new = True
        return new

    def at(self, i: int, j: int) -> Values:
        """Constants of input j of node i; where the node takes it as quantised, with the zero point subtracted."""
        node, axes = self.typed.graph.nodes[i], self.typed.signatures[i].inputs[j] if j < self._arity(i) else None
        if not has(node, j) or axes is None:
            return {}
        if node.input[j] in self.values:
            found, values = operand(node, j), self.values[node.input[j]]
            return values if found is None else {d: self._less_zero(i, found, d, v) for d, v in values.items()}
        if (i, j) not in self._constants:
            array = real(self.typed.graph, i, j)
            self._constants[i, j] = {} if array is None else of_array(array, axes)
        return self._constants[i, j]

    def _arity(self, i: int) -> int:
        return len(self.typed.signatures[i].inputs)

    def _less_zero(self, i: int, found: Operand, d: Dim, stored: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(stored == ZERO_POINT, 0.0, stored - self.along(i, found.zero, d, 0.0))

    def along(self, i: int, j: int | None, d: Dim, absent: float) -> NDArray[np.float64]:
        """Scales or zero points, input j of node i, per unit of dim d; NaN where they are not known."""
        if j is None or not has(self.typed.graph.nodes[i], j):
            return np.full(d.size, absent)
        return self.at(i, j).get(d, np.full(d.size, self.uniform(i, j)))

    def uniform(self, i: int, j: int) -> float:
        """The number that every entry of input j equals, or NaN."""
        name = self.typed.graph.nodes[i].input[j]
        if name not in self._uniform:
            self._uniform[name] = math.nan
            if name in self.typed.graph.constants:
                array = self.typed.graph.array(name)
                if array.size and array.dtype.kind in "fiub" and (array.reshape(-1)[:1] == array).all():
                    self._uniform[name] = float(array.reshape(-1)[0])
        return self._uniform[name]

    def zero(self, i: int, j: int, axis: int) -> NDArray[np.bool_]:
        """Per index of an axis of input j: whether all its entries are known to be zero."""
        axes = self.typed.signatures[i].inputs[j] or []
        zeros = {d: v == 0 for d, v in self.at(i, j).items()}
        return spread(axes[axis], zeros, np.logical_or, False).astype(bool)

    def out_dims(self, i: int, k: int = 0) -> dict[Dim, int]:
        """Free dims that lie on one axis of output k only, with that axis."""
        return single_dims(self.typed.signatures[i].outputs[k] or [])


def single_dims(axes: Sequence[Expr]) -> dict[Dim, int]:
    """Free dims that lie on one axis only, with that axis."""
    found: dict[Dim, list[int]] = {}
    for axis, e in enumerate(axes):
        for d in set(atoms(e)):
            if not d.frozen and d.size > 1:
                found.setdefault(d, []).append(axis)
    return {d: places[0] for d, places in found.items() if len(places) == 1}


def of_array(array: NDArray[Any], axes: Sequence[Expr]) -> Values:
    """Constants of an array with the given axes."""
    if (array.dtype.kind not in "fiub" and array.dtype.itemsize > 2) or not array.size:
        return {}
    made: Values = {}
    by_axis: dict[int, list[Dim]] = {}
    for d, axis in single_dims(axes).items():
        by_axis.setdefault(axis, []).append(d)
    for axis, wanted in by_axis.items():
        others = tuple(k for k in range(array.ndim) if k != axis)
        low, high = (np.asarray(f(array, axis=others), np.float64) for f in (np.min, np.max))
        made.update({d: v for d, v in per_unit(axes[axis], low, high).items() if d in wanted})
    return made


def per_unit(expr: Expr, low: NDArray[Any], high: NDArray[Any]) -> Values:
    """Per-index bounds as per-unit constants: known where the bounds of all indices of a unit meet."""
    lows, highs = gather(expr, low, np.minimum.reduce), gather(expr, high, np.maximum.reduce)
    return {d: np.where(lows[d] == highs[d], lows[d], np.nan) for d in lows}
