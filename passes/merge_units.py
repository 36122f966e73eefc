"""After a cut without data, what read a removed unit reads a unit that is like it instead, where there is one.

A removed unit u that is about a times kept unit k (`onnxprune.merging`) leaves its weights to it: W[k] += a * W[u] in
every product that summed over u. With calibration data `refit-least-squares` does better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.dims import Dim, keep
from onnxprune.graph import Graph
from onnxprune.jobs import Workbench
from onnxprune.linear import Linear, linears
from onnxprune.manager import Cut, Mended, Recovery, State
from onnxprune.merging import Merge, merges, rows_of
from onnxprune.plan import bind

Array = NDArray[Any]


@dataclass(frozen=True)
class MergeUnits:
    """Let kept units stand in for removed ones that they are like."""

    name: ClassVar[str] = "merge-units"
    keeps_facts: ClassVar[bool] = False

    def run(self, state: State) -> Graph:
        if not state.cuts or state.dry_run or state.graph is state.cuts[0].typed.graph:
            return state.graph
        graph, mended = _merged(state.graph, state.cuts[-1])
        state.recoveries.append(Recovery(self.name, state.graph, graph, tuple(mended), cuts=len(state.cuts)))
        return graph


def _merged(graph: Graph, cut: Cut) -> tuple[Graph, list[Mended]]:
    """The graph in which kept units stand in for what the cut took."""
    masks = bind(cut.plan, cut.typed)
    found, bench, mended = merges(cut.typed, masks), Workbench(graph), list[Mended]()
    slim = {x.out: x for x in linears(graph).values()}
    for whole in linears(cut.typed.graph).values():
        x = slim.get(whole.out)
        if x is None or len(graph.consumers[x.weight]) > 1 or whole.size[0] > 1 or whole.transposed:
            continue
        made = _moved(cut, whole, found)
        if made is None:
            continue
        axes = [cut.typed.axes[n] for n in (whole.data, whole.out)]
        rows, columns = (keep(a[x.channel], masks) for a in axes)
        area = math.prod(whole.kernel) if whole.is_conv else 1
        change = made[np.repeat(rows, area)][:, columns][None]
        kind = graph.array(x.weight).dtype
        new = x.matrix(graph.array(x.weight).astype(np.float64)) + change
        bench.store([(x.index, 1)], x.unmatrix(new).astype(kind), x.weight)
        mended.append(Mended(x.node.name or x.out, math.nan, math.nan))
    return bench.graph, mended


def _moved(cut: Cut, x: Linear, found: dict[Dim, list[Merge]]) -> Array | None:
    """What the rows (K, O) of a product gain, in the original's numbering; None if nothing."""
    weight = x.matrix(cut.typed.graph.array(x.weight).astype(np.float64))[0]
    area = math.prod(x.kernel) if x.is_conv else 1
    made: Array | None = None
    for d, listed in found.items():
        units = rows_of(cut.typed, x.index, d)
        if units is None:
            continue
        made = np.zeros_like(weight) if made is None else made
        places = np.repeat(units, area)
        _add(made, weight, places, listed)
    return made


def _add(made: Array, weight: Array, places: NDArray[np.int64], listed: Sequence[Merge]) -> None:
    for m in listed:
        made[places == m.stays] += m.scale * weight[places == m.gone]
