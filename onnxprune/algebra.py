"""Symmetric positive definite matrices, such as damped covariances, solved and inverted by Cholesky's factors: half the
cost of the general way. All are stacks, (G, K, K).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, lapack

Array = NDArray[Any]
SMALL = 64  # rows up to which a stack is solved in one call
FLOOR = 1e-12  # of a mean of variances


def damped(covariance: Array, share: float, kind: type[np.floating[Any]] = np.float64) -> Array:
    """Each matrix with a share of the mean of its diagonal added to that; a new array."""
    made: Array = covariance.astype(kind)
    np.einsum("gkk->gk", made)[:] += share * level(covariance)[:, None]
    return made


def level(covariance: Array) -> Array:
    """The mean of each diagonal, (G,)."""
    trace: Array = np.trace(covariance, axis1=1, axis2=2, dtype=np.float64)
    return np.asarray(np.maximum(trace / max(covariance.shape[1], 1), FLOOR))


def spd_solve(a: Array, b: Array) -> Array:
    """a^-1 b for b (G, K, O). LinAlgError if a matrix is singular."""
    if a.shape[1] <= SMALL:
        return np.linalg.solve(a, b)
    return np.stack([_solved(x, y) for x, y in zip(a, b, strict=True)])


def _solved(a: Array, b: Array) -> Array:
    try:
        return np.asarray(cho_solve(cho_factor(a, lower=True, check_finite=False), b, check_finite=False))
    except np.linalg.LinAlgError:  # rounding made it indefinite
        return np.linalg.solve(a, b)


def spd_inverse(a: Array) -> Array:
    """a^-1. LinAlgError if a matrix is singular."""
    if a.shape[1] <= SMALL:
        return np.linalg.inv(a)
    return np.stack([_inverse(x) for x in a])


def _inverse(a: Array) -> Array:
    try:
        factor, _ = cho_factor(a, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return np.linalg.inv(a)
    made, _ = (lapack.dpotri if factor.dtype == np.float64 else lapack.spotri)(factor, lower=1, overwrite_c=1)
    made = np.tril(made)
    return np.asarray(made + np.tril(made, -1).T)
