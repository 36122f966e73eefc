"""Whole layers that can go: where they are (`find`), what they matter (`influence`), which of them go (`choose`)."""

from onnxprune.layers.choose import AUTO, NONE, Chosen, check_wanted, choose, silent
from onnxprune.layers.find import find, leaves
from onnxprune.layers.influence import Score
from onnxprune.layers.layer import KINDS, Layer
from onnxprune.layers.switched import switched, without

__all__ = [
    "AUTO",
    "KINDS",
    "NONE",
    "Chosen",
    "Layer",
    "Score",
    "check_wanted",
    "choose",
    "find",
    "leaves",
    "silent",
    "switched",
    "without",
]
