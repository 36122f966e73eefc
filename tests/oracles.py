"""What random and borrowed graphs are judged by, beside the surgery check: onnx's own implementation for operators that
ONNX Runtime lacks, and whether a graph has steps, where a rounding may show.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto
from onnx.reference import ReferenceEvaluator

from onnxprune.dims import Dim, Mask
from onnxprune.inference import TypedGraph
from onnxprune.nodes import operator
from onnxprune.reading import load
from onnxprune.validate.closeness import TOLERANCE, TOLERANCE_HALF, relative_error
from onnxprune.validate.masked import masked_original
from tests.common import feeds_for

TRIES = 3  # sets of inputs for graphs with steps, of which one must pass
HALF = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
_STEPS = """
Ceil Floor Round Sign Shrink ThresholdedRelu Equal Greater GreaterOrEqual Less LessOrEqual Mod ArgMax ArgMin
TopK Hardmax OneHot IsInf IsNaN BitShift BitCast Where BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike If
com.microsoft.MoE"""
DISCRETE = frozenset(_STEPS.split())  # where an input that moves by a rounding may move the output by a step


def tries(model: ModelProto) -> int:
    """How many sets of inputs a graph is given, its bodies looked into."""
    return TRIES if any(operator(n) in DISCRETE for n in load(model).nodes) else 1


def check_by_reference(typed: TypedGraph, masks: dict[Dim, Mask], pruned: ModelProto) -> None:
    """As the surgery check, by onnx's own implementation of the operators."""
    want, got = (ReferenceEvaluator(m) for m in (masked_original(typed, masks).to_proto(), pruned))
    limit = TOLERANCE_HALF if HALF & set(typed.facts.dtypes.values()) else TOLERANCE
    for feeds in feeds_for(typed, 1):
        for a, b in zip(want.run(None, feeds), got.run(None, feeds), strict=True):
            assert relative_error(np.asarray(a), np.asarray(b)) <= limit
