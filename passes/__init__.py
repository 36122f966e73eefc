"""The passes, one file each. `PASSES` is the list that pipelines are read against."""

from onnxprune.passes.absorb_constants import AbsorbConstants
from onnxprune.passes.drop_layers import DropLayers
from onnxprune.passes.drop_zero_states import DropZeroStates
from onnxprune.passes.fill_means import FillMeans
from onnxprune.passes.fold_constants import FoldConstants
from onnxprune.passes.inline_functions import InlineFunctions
from onnxprune.passes.match_statistics import MatchStatistics
from onnxprune.passes.merge_units import MergeUnits
from onnxprune.passes.prune import Prune
from onnxprune.passes.refit_least_squares import RefitLeastSquares
from onnxprune.passes.remove_dead import RemoveDead
from onnxprune.passes.reshape_views import ReshapeViews
from onnxprune.passes.rotate_units import RotateUnits
from onnxprune.passes.take_branches import TakeBranches

RECOVERING = (FillMeans, MatchStatistics, MergeUnits, RefitLeastSquares)  # weights change, widths do not
PASSES = (
    InlineFunctions,
    TakeBranches,
    FoldConstants,
    ReshapeViews,
    DropZeroStates,
    RemoveDead,
    DropLayers,
    AbsorbConstants,
    RotateUnits,
    Prune,
    *RECOVERING,
)
PREPARE = "inline-functions,take-branches,fold-constants,reshape-views,drop-zero-states,remove-dead"
DEFAULT = f"{PREPARE},prune,remove-dead"
LOSSLESS = f"{PREPARE},absorb-constants,drop-layers,prune,remove-dead"


def in_steps(count: int, recover: bool, layers: bool = False, rotate: bool = False) -> str:
    """The pipeline that drops `layers`, if that is wanted, cuts `count` times, in other bases if `rotate`, and recovers
    after each of these.
    """
    mend = ["refit-least-squares"] if recover else []
    first = [*(["drop-layers", *mend] if layers else []), *["rotate-units"] * rotate]
    return ",".join([PREPARE, *first, *["prune", "remove-dead", *mend] * count, *(["remove-dead"] if recover else [])])


__all__ = ["DEFAULT", "LOSSLESS", "PASSES", "PREPARE", "RECOVERING", "AbsorbConstants", "in_steps"]
