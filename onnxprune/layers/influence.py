"""How much a layer matters.

    influence   1 - cosine between the stream before and after the layer, mean over positions (block influence; Men et
                al. 2024, "ShortGPT: Layers in large language models are more redundant than you expect")
    change      norm of what the layer adds over the norm of the stream
    error       error of the outputs (`losses`) with the layer switched off: what decides, since it is in the
                currency of the error curves of dims
    norm        of the last product's weights: all that can be said without data, and little

Where recovery follows, a branch is replaced by its mean per channel rather than by zeros, as the next bias takes that
up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration import Calibration
from onnxprune.inference import TypedGraph
from onnxprune.layers.layer import Layer
from onnxprune.layers.switched import switched
from onnxprune.losses import output_error
from onnxprune.probes import PROBE_SAMPLES, first
from onnxprune.quantization import stands_for_reals
from onnxprune.sessions import program, session

Array = NDArray[Any]
CHANNELS_FIRST = ("bottleneck", "chain")  # kinds whose tensors of rank 4 and more have channels in axis 1


@dataclass(frozen=True)
class Score:
    """What was found of one layer; NaN where nothing was."""

    influence: float = float("nan")
    change: float = float("nan")
    error: float = float("nan")


class Influence:
    """Sums over positions of what one layer does to its stream."""

    def __init__(self, layer: Layer, added: str) -> None:
        self.layer, self.added = layer, added  # the branch, or the exit of what is no branch
        self.positions, self.cosine, self.before, self.change = 0, 0.0, 0.0, 0.0
        self.sum: Any = 0.0
        self.axis = -1

    def add(self, stream: Array, added: Array) -> None:
        """What the stream and the branch (or exit) were on one feed."""
        if stream.shape != added.shape or not stream.size:
            return
        self.axis = 1 if stream.ndim > 3 and self.layer.kind in CHANNELS_FIRST else -1
        x, y = (
            np.moveaxis(a, self.axis, -1).reshape(-1, a.shape[self.axis]).astype(np.float64) for a in (stream, added)
        )
        self.sum = self.sum + y.sum(0)
        y = x + y if self.layer.is_branch else y
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        self.cosine += float((np.einsum("nc,nc->n", x, y) / np.maximum(norms, 1e-30)).sum())
        self.before += float(np.square(x).sum())
        self.change += float(np.square(y - x).sum())
        self.positions += len(x)

    @property
    def score(self) -> Score:
        if not self.positions:
            return Score()
        return Score(1 - self.cosine / self.positions, float(np.sqrt(self.change / max(self.before, 1e-30))))

    @property
    def mean(self) -> Array:
        """The mean per channel, of a shape that broadcasts over the stream of rank 4 or more, else over the last
        axis.
        """
        made = np.asarray(self.sum) / max(self.positions, 1)
        return made if self.axis == -1 else made.reshape(-1, 1, 1)


def influences(calibration: Calibration, layers: Iterable[Layer]) -> dict[str, Influence]:
    """What each layer does to its stream, by name, over all calibration data."""
    shapes, wires = calibration.typed.facts.shapes, calibration.typed.graph.wires
    found = {x.name: Influence(x, wires[x.node].inputs[x.operand] if x.is_branch else x.exit) for x in layers}
    known = [f for f in found.values() if f.layer.entry in shapes and f.added in shapes]
    for f in known:
        for _, got, _ in calibration.watch([f.layer.entry, f.added], [(f.added, f)]):
            f.add(got[f.layer.entry], got[f.added])
    return found


class Gains:
    """Errors of the outputs with some of the layers off, on the first calibration samples. One session serves all."""

    def __init__(
        self,
        calibration: Calibration,
        layers: Sequence[Layer],
        fills: Mapping[str, Array],
        samples: int = PROBE_SAMPLES,
    ) -> None:
        typed = calibration.typed
        self.layers = list(layers)
        self._session = session(program(switched(typed.graph, self.layers, typed.facts.dtypes, fills)))
        self._feeds = first(calibration.feeds, samples)
        self._want = self._run(())

    def error(self, off: Collection[str]) -> float:
        """Relative squared error of the outputs without the layers of these names."""
        return output_error(self._want, self._run(off))

    def _run(self, off: Collection[str]) -> list[list[Any]]:
        switches = {f"switch.{k}": np.array(x.name not in off) for k, x in enumerate(self.layers)}
        return [list(self._session.run(None, feed | switches)) for feed in self._feeds]


def norms(typed: TypedGraph, layers: Iterable[Layer]) -> dict[str, float]:
    """Root mean square of the weights of each layer's last product."""
    return {x.name: _last_norm(typed, x) for x in layers}


def _last_norm(typed: TypedGraph, layer: Layer) -> float:
    graph = typed.graph
    for i in sorted(layer.nodes, reverse=True):
        for name in graph.wires[i].inputs:
            if name in graph.constants and len(graph.constants[name].dims) > 1 and stands_for_reals(graph, name):
                return float(np.sqrt(np.square(graph.array(name).astype(np.float64)).mean()))
    return 0.0
