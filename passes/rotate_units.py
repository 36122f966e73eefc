"""Another basis for the units of dims that only linear operators touch, so that cutting units costs least.

The graph computes the same: what makes such units gives a rotation of them, and what reads them takes it off again. The
plan's bases are used, or those that calibration data say are best. See `onnxprune.rotation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxprune.errors import InputError
from onnxprune.graph import Graph
from onnxprune.manager import State, Turn
from onnxprune.plan import choose_bases
from onnxprune.rotation import Bases, bind_bases, rotated


@dataclass(frozen=True)
class RotateUnits:
    """Rotate what can be rotated, before anything is cut."""

    name: ClassVar[str] = "rotate-units"
    keeps_facts: ClassVar[bool] = False

    def run(self, state: State) -> Graph:
        if state.cuts or state.turn:
            return state.graph
        state.bases = self._choose(state)
        if not state.bases:
            return state.graph
        result = rotated(state.typed, bind_bases(state.bases, state.typed))
        state.turn = Turn(state.typed, result)
        return result

    def _choose(self, state: State) -> Bases:
        if state.plan is not None:
            return state.plan.bases
        if state.bases is not None:
            return state.bases
        if state.calibration is None:
            raise InputError(f"the pass {self.name} needs calibration data: give --data")
        return choose_bases(state.typed, state.budget, state.calibration)
