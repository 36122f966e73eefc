"""How far the pruned model's outputs are from the original's: the accuracy change, as opposed to the surgery check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.sessions import Feeds, Runnable, session


def outputs(model: Runnable, feeds: Iterable[Feeds]) -> tuple[list[str], list[list[Any]]]:
    """Output names, and the outputs for each feed."""
    made = session(model)
    return [o.name for o in made.get_outputs()], [list(made.run(None, f)) for f in feeds]


def compare(
    names: Sequence[str], before: Sequence[Sequence[Any]], after: Sequence[Sequence[Any]]
) -> dict[str, dict[str, float | None]]:
    """Per output, over all feeds: max_abs, rel_l2 (of the difference), cosine, sqnr_db, and top1_agreement where it
    looks like class scores.
    """
    table: dict[str, dict[str, float | None]] = {}
    for k, name in enumerate(names):
        pairs = [(row[k], other[k]) for row, other in zip(before, after, strict=True)]
        if all(isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.shape == b.shape for a, b in pairs):
            table[name] = _row(pairs)
    return table


def _row(pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> dict[str, float | None]:
    a, b = (np.concatenate([p[i].reshape(-1) for p in pairs]) for i in (0, 1))
    if a.dtype.kind not in "fV":
        same = float(np.mean(a == b)) if a.size else 1.0
        return {"max_abs": None, "rel_l2": None, "cosine": None, "sqnr_db": None, "top1_agreement": same}
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    lost = bool((np.isfinite(a) & ~finite).any())  # no number says how far off these are
    a, b = a[finite], b[finite]
    largest = float(np.abs(a - b).max()) if a.size else 0.0
    if lost:
        return {"max_abs": largest, "rel_l2": None, "cosine": None, "sqnr_db": None, "top1_agreement": _top1(pairs)}
    signal, noise, other = (float(np.sqrt(v @ v)) for v in (a, a - b, b))
    return {
        "max_abs": largest,
        "rel_l2": noise / signal if signal else (0.0 if not noise else None),
        "cosine": float(a @ b) / (signal * other) if signal and other else None,
        "sqnr_db": 20 * float(np.log10(signal / noise)) if signal and noise else None,
        "top1_agreement": _top1(pairs),
    }


def _top1(pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> float | None:
    """Share of rows with the same largest entry, for float outputs (N, classes)."""
    if any(a.ndim != 2 or a.shape[1] < 2 for a, _ in pairs):
        return None
    return float(np.mean(np.concatenate([a.argmax(1) == b.argmax(1) for a, b in pairs])))
