"""How many slices of an output differ: the surgery check of roundings that cannot be cut off (`sections`), inside of
bodies of control flow.

Ties are rare, and mistakes are everywhere: what is off is judged by its share, over many inputs. What moves the result
by less than a step, such as a wrong scale of the last bias, is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARE = 0.1  # of an output's slices that may differ: ties were met in up to 4 % of the slices of 8-bit models; kernels
# and scales that were one unit off changed 69 % and more, scales of a bias less than ties do
LIMIT = 0.2  # how far such a slice may be off: one step of 8 bits in 1/127, several layers deep up to 0.07
FEEDS = 16  # further random inputs to tell ties from mistakes


def share_off(want: Sequence[Sequence[Any]], got: Sequence[Sequence[Any]], tolerance: float) -> float:
    """The share of slices along axis 0 that differ by more than the tolerance, in the output where it is largest.
    Outputs are listed by feed, then by name.
    """
    shares = []
    for columns in zip(*(zip(left, right, strict=True) for left, right in zip(want, got, strict=True)), strict=True):
        off = np.concatenate([_slices_off(a, b, tolerance) for a, b in columns])
        shares.append(float(off.mean()) if off.size else 0.0)
    return max(shares, default=0.0)


def _slices_off(want: Any, got: Any, tolerance: float) -> NDArray[np.bool_]:
    if not isinstance(want, np.ndarray) or not np.issubdtype(want.dtype, np.number):
        return np.zeros(0, bool)
    a, b = (np.nan_to_num(np.atleast_1d(x).astype(np.float64), posinf=0, neginf=0) for x in (want, got))
    largest = np.abs(a).max(initial=0) if want.dtype.kind == "f" else 0.0
    return np.asarray((np.abs(a - b) > tolerance * largest).reshape(len(a), -1).any(axis=1))
