"""After a cut, every channel of every product and normalisation that it touched gets its mean and variance back.

Scale and shift go into the weights' rows and the bias, so it works where BatchNormalization was folded away as well as
where it is still there (its gamma and beta are matched, which is what re-estimating its statistics comes to). Needs
calibration data, layer by layer as in `onnxprune.recovery`; see `onnxprune.matching`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxprune.graph import Graph
from onnxprune.manager import State
from onnxprune.recovery import MATCH, mend_all


@dataclass(frozen=True)
class MatchStatistics:
    """Match mean and variance per channel."""

    name: ClassVar[str] = "match-statistics"
    keeps_facts: ClassVar[bool] = False

    def run(self, state: State) -> Graph:
        return mend_all(state, self.name, MATCH)
