"""The rules: one literal table per operator family, merged here. An operator that is not in it has no rule, and is
frozen.
"""

from onnxprune.rules import (
    attention,
    contraction,
    control_flow,
    deliberate,
    elementwise,
    indexing,
    microsoft,
    movement,
    normalization,
    quantized,
    recurrent,
    reduction,
)
from onnxprune.rules.rule import Table

RULES: Table = {
    **elementwise.TABLE,
    **contraction.TABLE,
    **normalization.TABLE,
    **reduction.TABLE,
    **movement.TABLE,
    **indexing.TABLE,
    **recurrent.TABLE,
    **attention.TABLE,
    **quantized.TABLE,
    **quantized.TABLE_MICROSOFT,
    **control_flow.TABLE,
    **deliberate.TABLE,
    **microsoft.TABLE,
}
