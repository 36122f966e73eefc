"""The surgery check (translation validation): the pruned model must equal the masked original, on random inputs and on
data.

Both compute the same numbers in another order, so they agree to rounding. How much rounding there is, is measured: the
masked original is run with and without ONNX Runtime's optimisations, which re-associate sums too. The tolerance is the
base, or a small multiple of that noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.dims import Dim, Mask
from onnxprune.graph import Graph
from onnxprune.inference import TypedGraph
from onnxprune.trace import Feeds, session
from onnxprune.validate.masked import masked_original

TOLERANCE = 1e-4  # of the largest output: float32 sums re-associate to about 1e-6 each, real mistakes are 1e-2 and more
TOLERANCE_HALF = 2e-2  # float16 and bfloat16 carry 11 and 8 bits
NOISE_FACTOR = 10  # over the measured rounding noise of the same graph
NOISE_LIMIT = 5e-3  # above this, noise is no excuse
LABEL_MISMATCH = 0.01  # share of integer outputs (labels, indices) that may flip where two scores tie


@dataclass(frozen=True)
class SurgeryCheck:
    """Largest error over all outputs and inputs tried, relative to the largest entry of the output."""

    passed: bool
    max_rel_err: float
    tolerance: float
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "max_rel_err": self.max_rel_err,
            "tolerance": self.tolerance,
            "detail": self.detail,
        }


def surgery_check(
    typed: TypedGraph, masks: dict[Dim, Mask], pruned: ModelProto, feeds: Sequence[Feeds], original: Graph | None = None
) -> SurgeryCheck:
    """Run both models on `feeds` and compare every output. `original`: the file as it was read, so that folding is
    checked too.
    """
    reference = masked_original(typed, masks, original).SerializeToString()
    want, got = _outputs(reference, feeds), _outputs(pruned.SerializeToString(), feeds)
    names = [o.name for o in typed.graph.outputs]
    error, worst = _largest(want, got, names)
    tolerance = _base(want)
    if tolerance < error <= NOISE_LIMIT:
        noise, _ = _largest(want, _outputs(reference, feeds, optimise=False), names)
        tolerance = max(tolerance, NOISE_FACTOR * noise)
    passed = bool(error <= tolerance)
    return SurgeryCheck(passed, float(error), tolerance, "" if passed else worst)


def _outputs(model: bytes, feeds: Sequence[Feeds], optimise: bool = True) -> list[list[Any]]:
    made = session(model, optimise=optimise)
    return [list(made.run(None, f)) for f in feeds]


def _largest(want: Sequence[Sequence[Any]], got: Sequence[Sequence[Any]], names: Sequence[str]) -> tuple[float, str]:
    rows = [
        (relative_error(a, b), f"output {name!r}, input {k}")
        for k, (left, right) in enumerate(zip(want, got, strict=True))
        for name, a, b in zip(names, left, right, strict=True)
    ]
    return max(rows, key=lambda r: r[0], default=(0.0, ""))


def relative_error(want: Any, got: Any) -> float:
    """Largest difference over the largest finite entry of `want`; integers: the share that differs, free up to
    LABEL_MISMATCH.
    """
    if not isinstance(want, np.ndarray) or not isinstance(got, np.ndarray):
        return 0.0 if type(want) is type(got) else np.inf
    if want.shape != got.shape or want.dtype != got.dtype:
        return np.inf
    if not want.size:
        return 0.0
    if want.dtype.kind not in "fV":
        share = float(np.mean(want != got))
        return 0.0 if share <= LABEL_MISMATCH else share
    a, b = want.astype(np.float64), got.astype(np.float64)
    odd = ~np.isfinite(a)
    if not np.array_equal(odd, ~np.isfinite(b)):
        return np.inf
    if odd.all():
        return 0.0
    return float(np.abs(a - b)[~odd].max() / (np.abs(a[~odd]).max() + np.finfo(np.float64).tiny))


def _base(outputs: Sequence[Sequence[NDArray[Any]]]) -> float:
    floats = [a.dtype for row in outputs for a in row if isinstance(a, np.ndarray) and a.dtype.kind in "fV"]
    return TOLERANCE if all(k.itemsize >= 4 for k in floats) else TOLERANCE_HALF
