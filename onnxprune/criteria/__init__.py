"""How much each unit matters. A criterion maps a `UnitView` (one dim and what is known of it) to scores (size,), larger
for units that matter more, at least 0; it is named here, or given as a callable or as "module:function".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration import Calibration
from onnxprune.criteria import activations, magnitude
from onnxprune.criteria.evidence import Evidence
from onnxprune.criteria.view import Criterion, Member, UnitView
from onnxprune.dims import Dim
from onnxprune.errors import InputError, Silent
from onnxprune.functions import called, imported
from onnxprune.inference import DimInfo, TypedGraph

Scores = dict[Dim, NDArray[np.float64]]
CRITERIA: Mapping[str, Criterion] = {
    "l1": magnitude.l1,
    "l2": magnitude.l2,
    "lamp": magnitude.lamp,
    "fpgm": magnitude.fpgm,
    "bn-scale": magnitude.bn_scale,
    "random": magnitude.random,
    "activation-mean": activations.activation_mean,
    "activation-variance": activations.activation_variance,
    "apoz": activations.apoz,
    "wanda": activations.wanda,
    "flap": activations.flap,
    "correlation": activations.correlation,
    "taylor": activations.taylor,
    "fisher": activations.fisher,
}
OBS = "obs"  # error curves instead of scores: see `plan` and `second_order`


def resolve(criterion: str | Criterion) -> Criterion:
    """A criterion by name, as "module:function" (modules of the working directory too), or as it is. InputError if
    there is none such.
    """
    if callable(criterion):
        return criterion
    if not isinstance(criterion, str):
        raise InputError(f"a criterion is a name, module:function or a function, got a {type(criterion).__name__}")
    if criterion in CRITERIA:
        return CRITERIA[criterion]
    return imported(criterion, "criterion", (OBS, *CRITERIA))


def label(criterion: str | Criterion) -> str:
    """What a criterion is called in messages and reports."""
    return criterion if isinstance(criterion, str) else getattr(criterion, "__name__", type(criterion).__name__)


def score(
    typed: TypedGraph,
    infos: Iterable[DimInfo],
    criterion: str | Criterion,
    calibration: Calibration | None = None,
    seed: int = 0,
) -> tuple[Scores, dict[Dim, str]]:
    """Scores of the units of each dim, and the dims that the criterion says nothing about, with the reason. InputError
    where it needs data, where it says nothing at all, or where a given function returns no scores.
    """
    chosen, name = resolve(criterion), label(criterion)
    infos, builtin = list(infos), chosen in CRITERIA.values()
    evidence = Evidence(typed, [i.dim for i in infos], calibration, seed, f"criterion {name!r}")
    scores: Scores = {}
    silent: dict[Dim, str] = {}
    for info in infos:
        try:
            view = UnitView(info, evidence)
            made = chosen(view) if builtin else called(f"criterion {name!r} on {info.name!r}", chosen, view)
            scores[info.dim] = _checked(made, info, name)
        except Silent as reason:
            silent[info.dim] = f"criterion {name!r} says nothing: {reason}"
    if silent and not scores:
        first = infos[0]
        raise InputError(f"{silent[first.dim]} ({first.name!r}, and so for every other dim)")
    return scores, silent


def _checked(made: object, info: DimInfo, name: str) -> NDArray[np.float64]:
    if made is None:
        raise Silent("it returned nothing")
    try:
        found = np.asarray(made, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"criterion {name!r} gave no numbers for dim {info.name!r}: {error}") from error
    if found.shape != (info.dim.size,):
        raise InputError(
            f"criterion {name!r} gave scores of shape {found.shape} for dim {info.name!r}, it has {info.dim.size} units"
        )
    if not np.isfinite(found).all() or (found < 0).any():
        raise InputError(f"criterion {name!r} gave scores below 0 or not finite for dim {info.name!r}")
    return found


__all__ = ["CRITERIA", "OBS", "Criterion", "Member", "Scores", "UnitView", "label", "resolve", "score"]
