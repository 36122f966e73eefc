"""Operators that are deliberately not typed, each with its reason, and sources whose entries are told apart by their
place.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.errors import Barrier
from onnxprune.rules.rule import Node, Rule, Table
from onnxprune.sessions import RANDOM


@dataclass(frozen=True)
class Deliberate:
    """A barrier: all that the node touches is frozen."""

    detail: str
    code: str = "barrier"

    def __call__(self, node: Node) -> None:
        raise Barrier(self.code, f"{node.proto.op_type}: {self.detail}")


def counted(node: Node) -> None:
    """Entries are told apart by their place: every axis of the output is fixed, inputs are numbers."""
    node.out([node.fixed(n, "index") for n in node.out_shape()])


_SOURCES = "Range Constant BlackmanWindow HammingWindow HannWindow MelWeightMatrix"
_SEQUENCES = """ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt SequenceConstruct
SequenceEmpty SequenceErase SequenceInsert SequenceLength SplitToSequence"""
_TEXT = "RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer"
_REASONS = {
    "NonZero": "positions of non-zero entries",
    "MaxUnpool": "its indices number the whole tensor",
    "NonMaxSuppression": "boxes are picked by number",
    "Unique": "positions of unique entries",
    "AffineGrid": "rows and columns are coordinates",
    "EyeLike": "rows and columns are compared by number",
    "ImageDecoder": "it reads a file's bytes",
    "NegativeLogLikelihoodLoss": "classes are picked by number",
    "SoftmaxCrossEntropyLoss": "classes are picked by number",
    "STFT": "a frame is transformed as a whole",
    "LinearAttention": "the state that it carries mixes key and value channels",
}
_CLASSICAL = {  # of the domain ai.onnx.ml: what they learnt lies in attributes, by number
    "ArrayFeatureExtractor": "entries are picked by number",
    "Binarizer": "it makes marks of scores",
    "CastMap": "it reads a map",
    "CategoryMapper": "each entry is looked up in a table",
    "DictVectorizer": "it reads a map",
    "FeatureVectorizer": "its sizes are attributes",
    "Imputer": "its values are attributes, one for each feature",
    "LabelEncoder": "each entry is looked up in a table",
    "LinearClassifier": "its weights are attributes",
    "LinearRegressor": "its weights are attributes",
    "Normalizer": "features are measured against each other",
    "OneHotEncoder": "an entry is the number of a class",
    "SVMClassifier": "its support vectors are attributes",
    "SVMRegressor": "its support vectors are attributes",
    "Scaler": "its factors are attributes, one for each feature",
    "TreeEnsemble": "trees ask for features by number",
    "TreeEnsembleClassifier": "trees ask for features by number",
    "TreeEnsembleRegressor": "trees ask for features by number",
    "ZipMap": "it makes maps of classes",
}

TABLE: Table = {
    **dict.fromkeys(_SOURCES.split(), counted),
    **dict.fromkeys(sorted(RANDOM), Deliberate("random numbers are told apart by their place")),
    **dict.fromkeys(_SEQUENCES.split(), Deliberate("tensors of one sequence may differ in shape", "sequence")),
    **dict.fromkeys(_TEXT.split(), Deliberate("it works on text")),
    **{name: Deliberate(detail) for name, detail in _REASONS.items()},
    **{f"ai.onnx.ml.{name}": Deliberate(detail) for name, detail in _CLASSICAL.items()},
    "SequenceMap": Deliberate("its body is applied to a sequence", "sequence"),
}
__all__ = ["TABLE", "Deliberate", "Rule", "counted"]
