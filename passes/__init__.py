"""The passes, one file each. `PASSES` is the list that pipelines are read against."""

from onnxprune.passes.absorb_constants import AbsorbConstants
from onnxprune.passes.drop_zero_states import DropZeroStates
from onnxprune.passes.fill_means import FillMeans
from onnxprune.passes.fold_constants import FoldConstants
from onnxprune.passes.inline_functions import InlineFunctions
from onnxprune.passes.match_statistics import MatchStatistics
from onnxprune.passes.prune import Prune
from onnxprune.passes.refit_least_squares import RefitLeastSquares
from onnxprune.passes.remove_dead import RemoveDead
from onnxprune.passes.rotate_units import RotateUnits
from onnxprune.passes.take_branches import TakeBranches

PASSES = (
    InlineFunctions,
    TakeBranches,
    FoldConstants,
    DropZeroStates,
    RemoveDead,
    AbsorbConstants,
    RotateUnits,
    Prune,
    FillMeans,
    MatchStatistics,
    RefitLeastSquares,
)
PREPARE = "inline-functions,take-branches,fold-constants,drop-zero-states,remove-dead"
DEFAULT = f"{PREPARE},prune,remove-dead"
LOSSLESS = f"{PREPARE},absorb-constants,prune,remove-dead"


def in_steps(count: int, recover: bool, rotate: bool = False) -> str:
    """The pipeline that cuts `count` times, in other bases if `rotate`, and recovers after each cut."""
    step = "prune,remove-dead,refit-least-squares" if recover else "prune,remove-dead"
    return ",".join([PREPARE, *["rotate-units"] * rotate, *[step] * count, *(["remove-dead"] if recover else [])])


__all__ = ["DEFAULT", "LOSSLESS", "PASSES", "PREPARE", "AbsorbConstants", "in_steps"]
