"""The passes, one file each. `PASSES` is the list that pipelines are read against."""

from onnxprune.passes.absorb_constants import AbsorbConstants
from onnxprune.passes.fold_constants import FoldConstants
from onnxprune.passes.inline_functions import InlineFunctions
from onnxprune.passes.prune import Prune
from onnxprune.passes.remove_dead import RemoveDead

PASSES = (InlineFunctions, FoldConstants, RemoveDead, AbsorbConstants, Prune)
DEFAULT = "inline-functions,fold-constants,remove-dead,prune,remove-dead"
LOSSLESS = "inline-functions,fold-constants,remove-dead,absorb-constants,prune,remove-dead"
__all__ = ["DEFAULT", "LOSSLESS", "PASSES"]
