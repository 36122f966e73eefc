"""Criteria that look at weights alone: a unit matters as much as the weights that carry it, over all members of its dim
(groups as in Fang et al. 2023, "DepGraph").
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.criteria.view import UnitView
from onnxprune.errors import Silent

Array = NDArray[Any]
BLOCK_UNITS = 1024  # whose distances to all others are held at once


def l1(view: UnitView) -> Array:
    """Sum of |w| (Li et al. 2017, "Pruning filters for efficient convnets")."""
    return view.sums(np.abs)


def l2(view: UnitView) -> Array:
    """Square root of the sum of w^2."""
    return np.asarray(np.sqrt(view.sums(np.square)))


def lamp(view: UnitView) -> Array:
    """Squared norm over that of all units that are at least as large (Lee et al. 2021, "Layer-adaptive sparsity for the
    magnitude-based pruning"): the share of what is left that goes with a unit, comparable across dims.
    """
    squares = view.sums(np.square)
    order = np.argsort(squares, kind="stable")
    left = np.cumsum(squares[order][::-1])[::-1]
    made = np.empty(view.size)
    made[order] = squares[order] / np.where(left > 0, left, 1)
    return made


def fpgm(view: UnitView) -> Array:
    """Sum of the distances to all other units: those near the geometric median can be replaced by the rest (He et al.
    2019, "Filter pruning via geometric median"). Of the weights that make the units.
    """
    total = np.zeros(view.size)
    for at in range(0, view.size, BLOCK_UNITS):
        squares = np.zeros((min(BLOCK_UNITS, view.size - at), view.size))
        for m in view.producers:
            matrix = m.matrix().astype(np.float64)
            norms = np.square(matrix).sum(1)
            rows = slice(at, at + BLOCK_UNITS)
            squares += norms[rows, None] + norms[None] - 2 * (matrix[rows] @ matrix.T)
        total[at : at + BLOCK_UNITS] = np.sqrt(np.maximum(squares, 0)).sum(1)
    return total


def bn_scale(view: UnitView) -> Array:
    """Sum of |gamma| of the BatchNormalizations on the dim (Liu et al. 2017, "Learning efficient convolutional networks
    through network slimming").
    """
    found = [m for m in view.members if m.operator == "BatchNormalization" and m.input == 1]
    if not found:
        raise Silent("no BatchNormalization is on it: exporters fold them into convolutions")
    return np.asarray(np.sum([np.abs(m.matrix()).sum(1) for m in found], axis=0))


def random(view: UnitView) -> Array:
    """Uniform numbers that depend on the seed and the dim's name: what any other criterion has to beat."""
    return view.rng.random(view.size)
