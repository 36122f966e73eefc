"""Comparing units of different dims: what a score is divided by, and which dims are ranked together.

    scale     mean, max or sum of the dim's scores, or none: divided by it, so that no dim is emptied by scale alone
    scope     local: every dim by itself; global: all units together; isomorphic: dims of one size and structure
              (Fang et al. 2024, "Isomorphic pruning for vision models", who leave the size out)

An amount between 0 and 1 is the share of units that leave each pool of dims that are ranked together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.criteria import Scores
from onnxprune.dims import Dim
from onnxprune.inference import DimInfo

SCOPES = ("global", "local", "isomorphic")
SCALES: Mapping[str, Callable[[NDArray[np.float64]], float]] = {
    "mean": lambda s: float(s.mean()),
    "max": lambda s: float(s.max()),
    "sum": lambda s: float(s.sum()),
    "none": lambda s: 1.0,
}
COMPARABLE = ("lamp", "taylor", "fisher")  # on one scale as they are, by construction


def scaled(scores: Scores, scale: str) -> Scores:
    """Scores over the dim's mean, max or sum; dims of zeros stay zero."""
    return {d: s / (SCALES[scale](s) or 1.0) for d, s in scores.items()}


def pools(infos: Sequence[DimInfo], scope: str) -> list[list[Dim]]:
    """Dims that are ranked together."""
    found: dict[object, list[Dim]] = {}
    for info in infos:
        key = _structure(info) if scope == "isomorphic" else info.dim if scope == "local" else None
        found.setdefault(key, []).append(info.dim)
    return list(found.values())


def _structure(info: DimInfo) -> object:
    return info.kind, info.dim.size, tuple(sorted((p.operator, p.axis) for p in info.places))


def counter(
    scores: Scores, together: Sequence[Sequence[Dim]], multiples: Mapping[Dim, int]
) -> Callable[[float], dict[Dim, int]]:
    """A function from an amount to the number of units that leave each dim, a multiple of its number in `multiples`
    staying.
    """
    ordered = {d: np.sort(s) for d, s in scores.items()}
    sorted_pools = [np.sort(np.concatenate([ordered[d] for d in dims])) for dims in together]

    def count(amount: float) -> dict[Dim, int]:
        gone: dict[Dim, int] = {}
        for dims, pool in zip(together, sorted_pools, strict=True):
            gone |= _lowest(ordered, dims, pool, math.floor(amount * pool.size + 1e-9))
        return {d: rounded(d.size, gone[d], multiples.get(d, 1)) for d in scores}

    return count


def _lowest(ordered: Scores, dims: Sequence[Dim], pool: NDArray[np.float64], total: int) -> dict[Dim, int]:
    """How many of the `total` lowest units of a pool each dim has; of those that tie, the first."""
    if not total:
        return dict.fromkeys(dims, 0)
    limit, left = pool[total - 1], total
    gone = {d: int(np.searchsorted(ordered[d], limit, "left")) for d in dims}
    left -= sum(gone.values())
    for d in dims:
        ties = min(left, int(np.searchsorted(ordered[d], limit, "right")) - gone[d])
        gone[d] += ties
        left -= ties
    return gone


def rounded(size: int, gone: int, step: int) -> int:
    """How many units may go so that the rest is a multiple of `step`, and at least `step` (or all, where the dim is
    smaller).
    """
    kept = max(1, size - gone)
    return size - min(size, math.ceil(kept / step) * step)
