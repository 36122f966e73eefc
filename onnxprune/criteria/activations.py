"""Criteria that look at what units do on calibration data, wherever they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration import Statistics
from onnxprune.criteria.second_order import reader, sweep
from onnxprune.criteria.view import UnitView

Array = NDArray[Any]


def activation_mean(view: UnitView) -> Array:
    """Mean of |x|."""
    return _total([s.magnitude for s in view.statistics])


def activation_variance(view: UnitView) -> Array:
    """Variance of x: what is lost if a unit's mean goes into the next bias."""
    return _total([s.variance for s in view.statistics])


def apoz(view: UnitView) -> Array:
    """Share of entries that are not 0: 1 less the average percentage of zeros (Hu et al. 2016, "Network trimming")."""
    return _total([1 - s.zeros for s in view.statistics])


def wanda(view: UnitView) -> Array:
    """Sum of |w| * ||x|| over all weights that read a unit, ||x|| as a root mean square (Sun et al. 2023, "A simple and
    effective pruning approach for large language models").
    """
    return view.weighed(np.abs, _rms)


def flap(view: UnitView) -> Array:
    """Variance of x times the squared norm of the weights that read it (An et al. 2023, "Fluctuation-based adaptive
    structured pruning"): the error that is left once the mean is in the bias.
    """
    return view.weighed(np.square, _variance)


def _total(values: Sequence[Array]) -> Array:
    return np.asarray(np.sum(values, axis=0))


def _rms(found: Statistics) -> Array:
    return np.asarray(np.sqrt(found.variance + np.square(found.mean)))


def _variance(found: Statistics) -> Array:
    return found.variance


def correlation(view: UnitView) -> Array:
    """Variance that the remaining units cannot predict, by linear regression: units go one by one, the best predicted
    first, so that of two alike one stays. A unit's score is the loss once it and all before it are gone.
    """
    readers = [
        reader(c.matrix, np.broadcast_to(np.eye(c.units.size), c.matrix.shape), c.units) for c in view.covariances
    ]
    curve = sweep(readers, view.size)
    made = np.empty(view.size)
    made[curve.order] = curve.errors[1:]
    return made


def taylor(view: UnitView) -> Array:
    """Squared first-order change of the loss of whole batches: mean over feeds of (mean of gradient * activation)^2
    (Molchanov et al. 2019, "Importance estimation for neural network pruning").
    """
    gradients, feeds = view.gradients()
    return np.asarray(np.mean([np.square(gradients[feeds == k].mean(0)) for k in np.unique(feeds)], axis=0))


def fisher(view: UnitView) -> Array:
    """Mean over samples of (gradient * activation)^2: the loss that removal costs, to second order (Theis et al. 2018,
    "Faster gaze prediction with dense networks and Fisher pruning").
    """
    return np.asarray(np.square(view.gradients(curvature=True)[0]).mean(0))
