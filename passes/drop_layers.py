"""Whole layers go: what reads a layer's exit reads its entry, and what nothing needs any more is removed.

    x = s + f(s)                         ->  x is s
    y = SkipLayerNormalization(s, f(s))  ->  y = LayerNormalization(s), and the sum that it gives is s
    x = f(e)                             ->  x is e

Outputs of the model keep their names, behind an Identity. In bodies of control flow no layers are found
(`onnxprune.layers`), so none is dropped there. Widths are decided after it, since the graph is typed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from onnx import NodeProto, helper

from onnxprune.errors import InputError
from onnxprune.graph import Graph
from onnxprune.layers import AUTO, NONE, Chosen, Layer, choose, find, silent
from onnxprune.layers.residual import SKIP, SUMS
from onnxprune.manager import Cut, State
from onnxprune.nodes import attributes, operator
from onnxprune.passes.prune import Prune
from onnxprune.passes.refit_least_squares import RefitLeastSquares
from onnxprune.passes.remove_dead import RemoveDead, alive
from onnxprune.plan import Plan, bind_layers
from onnxprune.together import Together, candidates
from onnxprune.trials import outcome

NORM = {  # a fused sum without its branch: the operator, and the inputs that are its scale and bias
    SKIP[0]: ("LayerNormalization", (2, 3)),
    SKIP[1]: ("SimplifiedLayerNormalization", (2,)),
}
EPSILON = 1e-12  # of the fused sums, where they state none


@dataclass(frozen=True)
class DropLayers:
    """Drop what the plan says. `layers`: how many, or patterns of names with blanks between; without it the plan or
    budget of the call is used; lossless ones drop branches that are zero whatever the input.
    """

    layers: str = ""
    name: ClassVar[str] = "drop-layers"
    keeps_facts: ClassVar[bool] = False

    def run(self, state: State) -> Graph:
        chosen = self._choose(state)
        state.notes += [chosen.told] if chosen.told else []
        if not chosen.layers:
            return state.graph
        if any(c.plan.keep for c in state.cuts):
            raise InputError("drop-layers comes after a prune, but plans drop layers first: put it before")
        result = drop(state.graph, chosen.layers)
        plan = Plan({}, state.model, layers=tuple(_names(state, chosen.layers)))
        state.cuts.append(Cut(state.typed, plan, result, chosen))
        return result

    def _choose(self, state: State) -> Chosen:
        if not self.layers and state.plan is not None:
            return Chosen(bind_layers(state.plan, find(state.typed))) if state.plan.layers else Chosen()
        wanted = self.layers.split() or (state.budget.layers if state.budget else ())
        if list(wanted) == [AUTO]:
            return _together(state)
        if state.budget is not None and state.budget.lossless and not wanted:
            return silent(state.typed)
        return choose(state.typed, wanted, state.calibration, state.mends) if wanted else Chosen()


def _together(state: State) -> Chosen:
    """As many layers as leave the least error once widths make up the rest of the budget: predicted, then tried."""
    if state.calibration is None or state.budget is None or state.data is None:
        raise InputError(f"drop_layers {AUTO} needs calibration data and a budget: give --data")
    weighed = Together(state.typed, state.budget, state.calibration, state.curves, state.mends)
    state.curves = weighed.curves
    likely = candidates(weighed.prefixes())
    errors = [_trial(state, [x.name for x in p.layers]) for p in likely] if len(likely) > 1 else [0.0]
    best = min(range(len(likely)), key=lambda k: errors[k])
    tries = ", ".join(f"{e:.3g} without {len(p.layers)}" for p, e in zip(likely, errors, strict=True))
    tried = f"error of the outputs on samples that were held back: {tries}"
    alone = f"to drop {len(likely[0].layers) or 'none'} is predicted to lose least by far"
    told = f"layers were weighed against widths; {tried if len(likely) > 1 else alone}"
    gone = set(likely[best].layers)
    layers = tuple(x for x in find(state.typed) if x in gone)
    return Chosen(layers, weighed.measured.scores, told=told)


def _trial(state: State, names: list[str]) -> float:
    """The error of the outputs when these layers go, and widths as the budget says; recovered from if the run is."""
    assert state.budget is not None
    mend = (RefitLeastSquares(),) if state.mends else ()
    budget = replace(state.budget, drop_layers=tuple(names) or (NONE,), steps=1, schedule="")
    passes = DropLayers(), *mend, Prune(), RemoveDead(), *mend
    return outcome(state, passes, budget=budget, mends=False).error  # without trials of widths in it


def _names(state: State, layers: Iterable[Layer]) -> list[str]:
    """What layers are called in the graph that the first cut was made of."""
    first = find(state.cuts[0].typed) if state.cuts else ()
    known = {(x.exit, x.is_branch, bool(x.variant)): x.name for x in first}
    return [known.get((x.exit, x.is_branch, bool(x.variant)), x.name) for x in layers]


def drop(graph: Graph, layers: Sequence[Layer]) -> Graph:
    """The graph without some layers, given in its order, and without what nothing needs then."""
    entries = _entries(graph, layers)
    fused = {x.node: x for x in layers if x.is_branch and graph.wires[x.node].operator in SKIP}
    outputs = {o.name for o in graph.outputs}
    nodes: list[NodeProto] = []
    for i, node in enumerate(graph.nodes):
        if i in fused:
            nodes.append(_rewired(_norm(node, fused[i]), entries))
        elif not any(n in entries for n in node.output):
            nodes.append(_rewired(node, entries))
        kept = [n for n in node.output if n in entries and n in outputs]
        nodes += [helper.make_node("Identity", [_behind(entries, n)], [n], name=n) for n in kept]
    return alive(graph.replace(nodes))


def _entries(graph: Graph, layers: Sequence[Layer]) -> dict[str, str]:
    """What takes the place of each tensor that goes: of a sum the operand that stays. Where both operands of a sum of
    branches go, it goes from the sum that it is an operand of.
    """
    entries = {x.exit: x.entry for x in layers if not x.is_branch}
    gone = {(x.node, x.operand) for x in layers if x.is_branch}
    nothing: set[str] = set()
    for i, wires in enumerate(graph.wires):
        if wires.operator not in SUMS or wires.outputs[0] in entries:
            continue
        stay = [n for j, n in enumerate(wires.inputs[:2]) if (i, j) not in gone and n not in nothing]
        total = wires.outputs[3] if wires.operator in SKIP and len(wires.outputs) > 3 else wires.outputs[0]
        if not stay:
            nothing.add(total)
        elif len(stay) < 2 and (wires.operator not in SKIP or total != wires.outputs[0]):
            entries[total] = stay[0]
    return entries


def _behind(entries: dict[str, str], name: str) -> str:
    """What takes the place of a tensor."""
    while name in entries:
        name = entries[name]
    return name


def _rewired(node: NodeProto, entries: dict[str, str]) -> NodeProto:
    """The node, reading what takes the place of what it reads."""
    if not any(n in entries for n in node.input):
        return node
    made = NodeProto()
    made.CopyFrom(node)
    for j, name in enumerate(node.input):
        made.input[j] = _behind(entries, name)
    return made


def _norm(node: NodeProto, layer: Layer) -> NodeProto:
    """A fused sum without its branch: the norm of the stream."""
    kind, places = NORM[operator(node)]
    inputs = [layer.entry, *(node.input[j] for j in places if j < len(node.input) and node.input[j])]
    epsilon = float(attributes(node).get("epsilon", EPSILON))
    made = helper.make_node(kind, inputs, [node.output[0]], name=node.name, axis=-1, epsilon=epsilon)
    made.metadata_props.extend(node.metadata_props)
    return made
