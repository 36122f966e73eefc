"""After a cut, the mean of what each product lost goes into its bias: exactly, where removed units were constant.

With calibration data the mean is that of what the product made and makes (`onnxprune.matching`), padding included.
Without, it is that of the removed units as BatchNormalizations tell it (`onnxprune.means`), times the weights that read
them and the share of positions at which a weight of a kernel lies within the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph import Graph
from onnxprune.jobs import Workbench, bias_places
from onnxprune.linear import Linear, linears
from onnxprune.manager import Cut, Mended, Recovery, State
from onnxprune.means import channel_means
from onnxprune.recovery import FILL, mend_all, with_places, without_zero_adders
from onnxprune.survivors import Survivors

Array = NDArray[Any]
UNKNOWN = "the mean of what it lost is not known without data: no BatchNormalization says it"


@dataclass(frozen=True)
class FillMeans:
    """Put means into biases. `residual`: with data, ends of residual branches aim at the original's stream."""

    name: ClassVar[str] = "fill-means"
    keeps_facts: ClassVar[bool] = False

    def run(self, state: State) -> Graph:
        if state.data is not None:
            return mend_all(state, self.name, FILL)
        if not state.cuts or state.dry_run or state.graph is state.cuts[0].typed.graph:
            return state.graph
        graph, mended, left = _filled(state, state.cuts[-1])
        state.recoveries.append(Recovery(self.name, state.graph, graph, tuple(mended), tuple(left), len(state.cuts)))
        return graph


def _filled(state: State, cut: Cut) -> tuple[Graph, list[Mended], list[tuple[str, str]]]:
    """The graph with the means of what the last cut took in its biases."""
    ready = with_places(state.graph, [cut], state.facts)
    survivors, means = Survivors([cut]), channel_means(cut.typed, state.seed)
    whole = {x.out: x for x in linears(cut.typed.graph).values()}
    bench, mended, left = Workbench(ready), list[Mended](), list[tuple[str, str]]()
    for x in linears(ready).values():
        masks, out = (survivors.masks(n) if n in cut.typed.axes else None for n in (x.data, x.out))
        if x.out not in whole or masks is None or out is None or masks[x.channel].all():
            continue
        name = x.node.name or x.out
        if x.data not in means or x.transposed or len(ready.consumers[x.weight]) > 1:
            left.append((name, UNKNOWN if x.data not in means else "its weights are shared, or it is transposed"))
            continue
        lost = _lost(cut, whole[x.out], np.where(masks[x.channel], 0, means[x.data]))[out[x.channel]]
        old = np.zeros(1) if not x.bias else ready.array(x.bias).astype(np.float64).reshape(-1)
        kind = ready.array(x.weight).dtype
        bench.store(bias_places(bench.graph, [x]), (old + lost / x.beta).astype(kind), f"{x.out}.bias")
        mended.append(Mended(name, math.nan, math.nan))
    made = without_zero_adders(bench.graph, ready, state.graph)
    return (made if mended else state.graph), mended, left


def _lost(cut: Cut, x: Linear, means: Array) -> Array:
    """What inputs of the given means (C,) add to the outputs of a product, (outputs,), the mean over positions."""
    g, k, _ = x.size
    inside = np.ones(k)
    if x.is_conv:
        shapes = cut.typed.facts.shapes
        ones = np.ones((1, g, *shapes[x.data][2:]), np.float32)
        out = shapes[x.node.output[0]]
        share = x.columns(ones, out, np.arange(x.positions(out)))[0, 0].mean(0)
        inside = np.tile(share, k // share.size)
    area = math.prod(x.kernel) if x.is_conv else 1
    weight = x.matrix(cut.typed.graph.array(x.weight).astype(np.float64))
    made = np.einsum("gk,gko->go", np.repeat(means.reshape(g, -1), area, 1) * inside, weight)
    return np.asarray(made.reshape(-1))
