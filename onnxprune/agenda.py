"""What recovery has to do after some cuts: which stored weights it mends, at which level, and what each one aims at.

Every product that a cut touched is a `Job`. It aims at what the original made there; one that only adds to a stream
(the end of a residual branch) at the original's *sum*, and so takes up errors of the stream as well; where layers were
dropped behind it, at the sum behind these. What is done with a product is a `Way`.

Left alone, with a reason: weights that differ in their biases, or are used by what is no product; products in bodies of
control flow; weights that are not stored floats; products of activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto

from onnxprune.dims import Mask
from onnxprune.flow import inner_names
from onnxprune.graph import Graph
from onnxprune.jobs import Job, Mend, Product, Recurrent, Site
from onnxprune.linear import KINDS, RECURRENT, Linear, linears
from onnxprune.manager import Cut
from onnxprune.nodes import attributes, captured, operator
from onnxprune.norms import UNCENTRED, Norm, norms
from onnxprune.quantization import quantised_use
from onnxprune.rectified import Window, window_behind
from onnxprune.recurrence import refusal
from onnxprune.scores import Projection, Side, find
from onnxprune.sessions import Feeds
from onnxprune.survivors import Survivors, downstream
from onnxprune.trace import Trace

Left = list[tuple[str, str]]  # names and reasons


@dataclass(frozen=True)
class Way:
    """How products are mended: `mend` makes what collects their rows. `norms`: kinds of normalisations whose scales are
    mended too; `cut`: only those that lost channels. `residual`: ends of residual branches aim at the original's sum;
    `scores`: queries and keys aim at the original's scores; `passed`: of what an activation follows, only what that
    lets through counts; `weighs`: rows are drawn by their `Importance`.
    """

    mend: Mend
    norms: tuple[str, ...] = ()
    cut: bool = True
    residual: bool = True
    scores: bool = False
    passed: bool = False
    weighs: bool = False


class Agenda:
    """The jobs of one recovery, and what is left alone."""

    def __init__(self, graph: Graph, facts: Trace, cuts: Sequence[Cut], way: Way, new: set[str], feed: Feeds) -> None:
        self.graph, self.facts, self.way, self.new = graph, facts, way, new
        self.survivors = Survivors(cuts)
        self.original = cuts[0].typed
        self.source = self.original.graph  # with names for all states of recurrent layers
        self.left: Left = []
        self.jobs: list[Job] = []
        touched = downstream(graph, self.survivors.touched())
        found: dict[int, Linear] = {**linears(graph), **self._norms()}
        layers = [i for i, n in enumerate(graph.nodes) if operator(n) in RECURRENT and touched & set(n.output)]
        self.levels = _levels(graph, {*found, *layers})
        self.scored: set[int] = set()
        self.sides = self._scores(touched, feed) if way.scores else {}
        uses: dict[str, list[Linear]] = {}
        for x in found.values():
            uses.setdefault(x.weight, []).append(x)
        concerned = self.survivors.concerned(graph, found)
        for sites in uses.values():
            if any(x.index in concerned or x.out in self.sides for x in sites):
                self._product(sites)
        for i in layers:
            self._recurrent(i)
        self._others(touched, {*found, *layers})

    def _norms(self) -> dict[int, Norm]:
        made = norms(self.graph, self.facts.shapes)
        return {i: x for i, x in made.items() if x.kind in self.way.norms and (not self.way.cut or self._is_cut(x))}

    def _is_cut(self, x: Norm) -> bool:
        masks = self.survivors.masks(x.out)
        return masks is not None and not masks[x.channel].all()

    def _product(self, sites: Sequence[Linear]) -> None:
        """A job for the products that share one weight, or the reason why there is none."""
        x = sites[0]
        refused = self._refusal(sites)
        made = [self._site(s) for s in sites] if not refused else []
        kept = [s for s in made if s is not None]
        if refused or len(kept) < len(sites):
            self.left.append((x.node.name or x.out, refused or "the original has no such tensor"))
            return
        level = max(self.levels[s.data] for s in sites)
        biased = x.kind != UNCENTRED if isinstance(x, Norm) else bool(x.bias) or x.node.op_type != "MatMul"
        early = any(self.levels[s.data] < level for s in sites)
        if len(kept) == 1 and x.out in self.sides and kept[0].target == x.out:
            self.jobs.append(self._projection(kept[0], level, x.bias in self.new, biased))
        else:
            window = self._window(kept) if biased else None
            self.jobs.append(Product(kept, level, early, x.bias in self.new, biased, window))

    def _window(self, sites: Sequence[Site]) -> Window | None:
        """Of the activation behind a refitted product, or behind the sum that it goes into."""
        if not self.way.passed or len(sites) > 1:
            return None
        return window_behind(self.graph, sites[0].target if sites[0].minus else sites[0].linear.out)

    def _scores(self, touched: set[str], feed: Feeds) -> dict[str, list[Side]]:
        """By output of the product that makes them, the sides of attention scores of which channels are gone."""
        source, found, made = self.source, {x.out: x for x in linears(self.source).values()}, dict[str, list[Side]]()
        for i, node in enumerate(self.graph.nodes):
            k = self.source.producer.get(node.output[0], -1) if operator(node) == "MatMul" else -1
            if k < 0 or node.output[0] not in touched or any(n in source.constants for n in source.nodes[k].input):
                continue
            masks = {n: self.survivors.masks(n) for n in source.nodes[k].input}
            sides = find(source, self.original.facts, k, found, masks, feed)
            for side in sides or ():
                made.setdefault(side.linear.out, []).append(side)
                self.scored.add(i)
        return made

    def _projection(self, site: Site, level: int, new: bool, biased: bool) -> Product:
        sides = self.sides[site.linear.out]
        x, (inputs, outputs) = sides[0].linear, (self._kept(n) for n in (sides[0].linear.data, site.linear.out))
        whole = x.matrix(self.source.array(x.weight))[0][inputs]
        open_site = replace(site, masks=[*site.masks[:-1], np.ones_like(outputs)])
        return Projection([open_site], level, False, new, biased, sides=sides, whole=whole, kept=outputs)

    def _kept(self, name: str) -> Mask:
        """What is left of the last axis."""
        masks = self.survivors.masks(name)
        assert masks is not None
        return masks[-1]

    def _refusal(self, sites: Sequence[Linear]) -> str:
        users = {(x.index, 1) for x in sites}
        weight = sites[0].weight
        if set(self.graph.consumers[weight]) != users or weight in {o.name for o in self.graph.outputs}:
            return "its weights are used by what is no product too"
        if len({(x.bias, x.size, x.beta) for x in sites}) > 1:
            return "its weights are shared by products with other biases"
        return ""

    def _site(self, x: Linear) -> Site | None:
        target, minus = self._residual(x) if self.way.residual else (x.out, "")
        masks = self.survivors.masks(target)
        known = masks is not None and target in self.original.facts.shapes
        aim = self.survivors.exits.get(target, target) if minus else target
        return Site(x, aim, masks, minus) if known and masks is not None else None

    def _residual(self, x: Linear) -> tuple[str, str]:
        """The sum that x's output goes into and the other summand, where that is ready by then; else the output."""
        users = self.graph.consumers.get(x.out, [])
        if len(users) != 1 or users[0][1] < 0 or operator(self.graph.nodes[users[0][0]]) != "Add":
            return x.out, ""
        node = self.graph.nodes[users[0][0]]
        other = node.input[1 - users[0][1]]
        alike = self.facts.shapes.get(other) == self.facts.shapes.get(x.out) == self.facts.shapes.get(node.output[0])
        early = self.levels.get(other, 1 << 30) <= self.levels[x.data]
        known = self.survivors.masks(node.output[0]) is not None
        return (
            (node.output[0], other) if alike and early and known and other not in self.graph.constants else (x.out, "")
        )

    def _recurrent(self, i: int) -> None:
        node = self.graph.nodes[i]
        outputs = {n for n in node.output if n}
        origin = next((n for n in self.source.nodes if outputs <= set(n.output) and n.op_type == node.op_type), None)
        inside = outputs & inner_names(self.graph.nodes)
        why = "it is in a body of control flow" if inside else refusal(self.graph, node)
        left = None if why or origin is None else self._states(origin)
        if origin is None or left is None:
            self.left.append((node.name or min(outputs), why or "the original has no such tensor"))
            return
        origin = origin if origin.output[0] else self._with_steps(origin, f"{min(outputs)}.steps")
        data = node.input[0]
        self.jobs.append(Recurrent(i, data, origin, self.source, *left, origin.output[0], self.levels[data]))

    def _with_steps(self, origin: NodeProto, name: str) -> NodeProto:
        """A recurrent layer of the original that shows its states at all steps."""
        made = NodeProto()
        made.CopyFrom(origin)
        made.output[0] = name
        self.source = self.source.replace([made if n is origin else n for n in self.source.nodes])
        return made

    def _states(self, origin: NodeProto) -> tuple[Mask, Mask] | None:
        """What is left of the directions and of the hidden units."""
        first = bool(attributes(origin).get("layout", 0))
        for k, name in enumerate(origin.output):
            masks = self.survivors.masks(name) if name else None
            if masks is not None:  # Y has the axis of time besides
                return masks[first + (k == 0)], masks[-1]
        return None

    def _others(self, touched: set[str], mended: set[int]) -> None:
        """Touched products that are no jobs, with the reasons."""
        inside, direct = inner_names(self.graph.nodes), self.survivors.touched()
        done = mended | self.scored
        for i, node in enumerate(self.graph.nodes):
            if operator(node) not in KINDS or i in done:
                continue
            stored = node.input[1] in self.graph.constants or _is_dequantised(self.graph, node)
            concerned = touched if stored else direct  # two activations matter where they sum over what is gone
            if concerned & set(node.output):
                self.left.append((node.name or node.output[0], self._why(i, node, inside)))

    def _why(self, i: int, node: NodeProto, inside: set[str]) -> str:
        if node.output[0] in inside:
            return "it is in a body of control flow"
        if quantised_use(self.graph, i, 1) is not None or _is_dequantised(self.graph, node):
            return "its weights are quantised"
        constant = node.input[1] in self.graph.constants
        return "its weights are no matrix of floats" if constant else "both sides are activations"


def _is_dequantised(graph: Graph, node: NodeProto) -> bool:
    """Whether the weights of a product come from DequantizeLinear."""
    i = graph.producer.get(node.input[1], -1)
    return i >= 0 and graph.nodes[i].op_type == "DequantizeLinear"


def _levels(graph: Graph, mended: set[int]) -> dict[str, int]:
    """For each tensor the largest number of mended nodes on a way from the inputs to it."""
    levels = {i.name: 0 for i in graph.inputs}
    for i, node in enumerate(graph.nodes):
        level = max((levels.get(n, 0) for n in [*node.input, *captured(node)]), default=0) + (i in mended)
        levels |= dict.fromkeys(node.output, level)
    return levels
