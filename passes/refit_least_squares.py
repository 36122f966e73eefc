"""Least squares after a cut: every product gets the weights and bias that bring its output closest to the original's.

Calibration data runs through both graphs, stage by stage, so that each product is fitted to the inputs that it will
really get (He et al. 2017, "Channel pruning for accelerating very deep neural networks"). A ridge pulls towards the
weights that are there; how strongly, samples that are held out decide. See `onnxprune.recovery`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from onnxprune.graph import Graph
from onnxprune.manager import State
from onnxprune.recovery import REFIT, mend_all


@dataclass(frozen=True)
class RefitLeastSquares:
    """Refit products by ridge regression. `residual`: ends of residual branches aim at the original's stream;
    `importance`: positions of the data are drawn by what they do to the outputs, where that can be differentiated.
    """

    residual: bool = True
    importance: bool = True
    name: ClassVar[str] = "refit-least-squares"
    keeps_facts: ClassVar[bool] = False

    def run(self, state: State) -> Graph:
        return mend_all(state, self.name, replace(REFIT, residual=self.residual, weighs=self.importance))
