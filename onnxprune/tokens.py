"""Which positions of padded sequences count.

Sentences of a batch are filled up to one length, and a mask beside the token numbers says which are meant. What a model
makes of the others is nobody's concern, but they can be most of the calibration data. An input is such a mask if it
holds zeros and ones only, lies beside token numbers of the same shape (N, L), and these can be changed where it is zero
without a change of the outputs anywhere else: that is tried, on one feed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph import Graph
from onnxprune.sessions import Feeds, program, session

Mask = NDArray[np.bool_]
EXACT = 1e-4  # of the largest output: a change below is none


def token_mask(graph: Graph, feeds: Iterable[Feeds]) -> str:
    """The input that is the mask of a graph's tokens; "" if there is none."""
    for feed in feeds:
        masks = [n for n, a in feed.items() if _is_mask(a)]
        numbers = {n: a for n, a in feed.items() if a.ndim == 2 and a.dtype.kind in "iu" and a.max(initial=0) > 1}
        masks = [n for n in masks if any(a.shape == feed[n].shape for a in numbers.values())]
        return next((n for n in masks if _is_silent(graph, feed, feed[n].astype(bool), numbers)), "") if masks else ""
    return ""


def _is_mask(array: NDArray[np.generic]) -> bool:
    """Whether an input has the form of one, with something in each row, and something masked."""
    if array.ndim != 2 or array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        return False
    return bool(array.any(1).all() and not array.all())


def _is_silent(graph: Graph, feed: Feeds, mask: Mask, numbers: Feeds) -> bool:
    """Whether token numbers do not matter where a mask is zero: they are exchanged for others of their kind."""
    changed = {n: np.where(mask, a, np.roll(a[mask], 1)[0]) for n, a in numbers.items() if a.shape == mask.shape}
    if all(np.array_equal(a, feed[n]) for n, a in changed.items()):
        return False
    job = session(program(graph))
    pairs = zip(job.run(None, feed), job.run(None, {**feed, **changed}), strict=True)
    return all(_is_same(a, b, mask) for a, b in pairs if isinstance(a, np.ndarray))


def _is_same(a: NDArray[np.generic], b: NDArray[np.generic], mask: Mask) -> bool:
    if a.shape != b.shape or a.dtype.kind not in "biuf":
        return False
    left, right = (meant(x, mask).astype(np.float64) for x in (a, b))
    with np.errstate(invalid="ignore"):
        return bool((np.abs(left - right) <= EXACT * np.abs(left).max(initial=0)).all())


def meant(array: NDArray[np.generic], mask: Mask | None) -> NDArray[np.generic]:
    """Of an array (N, L, ...) what stands at the tokens that count, (tokens, ...); other arrays as they are."""
    return array if mask is None or array.shape[:2] != mask.shape else array[mask]


def counted(mask: Mask | None, shape: Sequence[int], count: int) -> Mask | None:
    """Which of `count` positions in each sample count, for a tensor (N, L, K) or (N * L, K): (N, count); None if all
    do.
    """
    if mask is None or tuple(shape[:-1]) not in (mask.shape, (mask.size,)):
        return None
    return mask.reshape(shape[0], count)
