"""Which units hold one constant, whatever the input."""

from onnxprune.constancy.rows import TABLE
from onnxprune.constancy.walk import Constancy
from onnxprune.inference import TypedGraph


def constancy_of(typed: TypedGraph) -> Constancy:
    """The constants of every tensor of a typed graph."""
    return Constancy(typed, TABLE)


__all__ = ["Constancy", "constancy_of"]
