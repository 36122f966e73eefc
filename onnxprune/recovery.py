"""Recovery without training: after a cut, every product that it touched gets new weights from calibration data.

The pruned graph and the original one are run side by side, stage by stage (`stages`): all jobs (`jobs`) whose inputs
are ready are mended together, then both graphs go on, so each product sees what the already mended part before it
makes, and aims at what the original made there. A product that only adds to a stream (the end of a residual branch)
aims at the original's *sum*, and so takes up errors of the stream as well; where layers were dropped behind it, at the
sum behind these. What is done with a product is a `Way`:
least squares, its bias alone, or mean and variance of its outputs. In the end whole models are compared (`guard`).

Left alone, with a reason: weights that differ in their biases, or are used by what is no product; products in bodies of
control flow; weights that are not stored floats; products of activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from onnx import NodeProto, helper

from onnxprune.branches import along, put_back, typed_along
from onnxprune.dims import Mask
from onnxprune.errors import InputError
from onnxprune.flow import inner_names
from onnxprune.graph import Graph, attributes, captured, operator
from onnxprune.guard import Guard
from onnxprune.jobs import Feed, Job, Mend, Product, Recurrent, Site, Workbench
from onnxprune.linear import KINDS, RECURRENT, Linear, linears
from onnxprune.manager import Cut, Mended, Recovery, State
from onnxprune.matching import Matching
from onnxprune.norms import CENTRED, STORED, UNCENTRED, Norm, norms
from onnxprune.quantization import quantised_use
from onnxprune.rectified import Window, window_behind
from onnxprune.recurrence import refusal
from onnxprune.regression import Regression
from onnxprune.scores import Projection, Side, find
from onnxprune.sessions import Feeds
from onnxprune.stages import LIMIT_BYTES, Stages
from onnxprune.storage import tensor
from onnxprune.survivors import Survivors, downstream
from onnxprune.tokens import token_mask
from onnxprune.trace import Trace

SUMS_BYTES = 1 << 30  # of what is summed over rows at once
Left = list[tuple[str, str]]


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


REFIT = Way(Regression, (CENTRED, UNCENTRED), scores=True, passed=True, weighs=True)
FILL = Way(partial(Matching, scale=False))
MATCH = Way(Matching, (CENTRED, UNCENTRED, STORED), cut=False, residual=False)


def recover(
    graph: Graph,
    facts: Trace,
    cuts: Sequence[Cut],
    feeds: Iterable[Feeds],
    samples: int,
    way: Way,
    seed: int = 0,
    weights: Sequence[Feeds] = (),
    limit_bytes: int = LIMIT_BYTES,
    places: bool = True,
) -> tuple[Graph, list[Mended], Left]:
    """Mend `graph`, the result of `cuts`, on `feeds` of about `samples` samples in all. `facts` are those of `graph`;
    `weights`: of the rows of each feed, where they do not count alike; `places`: products may get biases. Returns the
    graph with new weights, what was mended, and what was not and why.
    """
    ready = with_places(graph, cuts, facts) if places else graph
    work = _Plan(ready, facts, cuts, way, set(ready.tensors) - set(graph.tensors), next(iter(feeds)))
    if not work.jobs:
        return graph, [], work.left
    bench, done = Workbench(ready), list[Mended]()
    mask = token_mask(work.source, feeds)
    tokens = [f[mask].astype(bool) for f in feeds] if mask else None
    before = Stages(work.source, cuts[0].typed.facts, feeds, limit_bytes)
    after = Stages(ready, facts, feeds, limit_bytes)
    for k, jobs in enumerate(_groups(work.jobs)):
        _collect(jobs, bench.graph, way, before, after, samples, np.random.default_rng([seed, k]), tokens, weights)
        for job in jobs:
            done += job.finish(bench)
        after.graph = bench.graph
        if any(j.early for j in jobs):
            after.restart()
    return without_zero_adders(bench.graph, ready, graph), done, work.left


def _groups(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs of one level after the other, as many at once as their sums fit into memory."""
    group: list[Job] = []
    for job in sorted(jobs, key=lambda j: j.level):
        full = sum(j.nbytes for j in (*group, job)) > SUMS_BYTES
        if group and (full or job.level > group[0].level):
            yield group
            group = []
        group.append(job)
    if group:
        yield group


def _collect(
    jobs: Sequence[Job],
    graph: Graph,
    way: Way,
    before: Stages,
    after: Stages,
    samples: int,
    rng: np.random.Generator,
    tokens: Sequence[Mask] | None,
    weights: Sequence[Feeds],
) -> None:
    """Run both graphs up to the inputs and targets of some jobs."""
    for job in jobs:
        job.begin(graph, way.mend)
    wants = list(dict.fromkeys(n for j in jobs for n in j.wants))
    has = list(dict.fromkeys(n for j in jobs for n in j.has))
    first = 0
    for k, (want, got) in enumerate(zip(before.run(wants), after.run(has), strict=True)):
        feed = Feed(want, got, first, samples, rng, tokens[k] if tokens else None, weights[k] if weights else {})
        for job in jobs:
            job.take(feed)
        first += got[has[0]].shape[0]


def mend_all(state: State, name: str, way: Way) -> Graph:
    """Recover the present graph of a run, and note what was done. InputError without calibration data. What came of it
    is kept if the outputs say so on samples that were held back; else the best of what is between.
    """
    if not state.cuts or state.dry_run or state.graph is state.cuts[0].typed.graph:
        return state.graph
    if state.data is None:
        raise InputError(f"the pass {name} needs calibration data: give --data")
    ahead, state.ahead = state.ahead, None
    if ahead is not None and way == REFIT and _same(ahead.before, state.graph):
        state.recoveries.append(ahead)
        return ahead.after
    guard = Guard(state.cuts[0].typed.graph, state.facts, state.data, state.samples)
    if guard.alone:
        told = f"{name}: nothing was done, as one sample cannot show whether it helps; give more"
        state.recoveries.append(Recovery(name, state.graph, state.graph, cuts=len(state.cuts), note=told))
        return state.graph
    attempt = partial(_recover_seen, state, feeds=guard.rest)

    def biases() -> Graph:
        return attempt(way=FILL)[0]

    seen = typed_along(state.cuts[0].typed, state.path)
    weights = state.importance.of(seen, state.data, state.samples) if way.weighs else ()
    made, mended, left = attempt(way=way, weights=guard.of_rest(weights))
    others = {} if way == FILL else {"the biases alone": biases}
    graph, note = guard.choose(state.graph, made, others) if mended else (state.graph, "")
    told = f"{name}: {note}" if note else ""
    state.recoveries.append(Recovery(name, state.graph, graph, tuple(mended), tuple(left), len(state.cuts), told))
    return graph


def _recover_seen(
    state: State, feeds: Iterable[Feeds], way: Way, weights: Sequence[Feeds] = ()
) -> tuple[Graph, list[Mended], Left]:
    """Recover what the data see of the graph: branches of Ifs as if they stood alone. Where there are such, products
    that have no bias get none.
    """
    graph, path = state.graph, state.path
    cuts = [replace(c, typed=typed_along(c.typed, path), result=along(c.result, path)) for c in state.cuts]
    made, mended, left = recover(
        along(graph, path), state.facts, cuts, feeds, state.samples, way, state.seed, weights, places=not path
    )
    return put_back(graph, path, made) if path else made, mended, left


def _same(a: Graph, b: Graph) -> bool:
    """Whether two graphs are equal, weights and all."""
    first, second = (g.to_proto().SerializeToString(deterministic=True) for g in (a, b))
    return bool(first == second)


class _Plan:
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


def with_places(graph: Graph, cuts: Sequence[Cut], facts: Trace) -> Graph:
    """The graph with an Add behind every product that has no place for a bias; products of one weight share it."""
    found = linears(graph)
    concerned = Survivors(cuts).concerned(graph, found)
    nodes, tensors = list(graph.nodes), dict(graph.tensors)
    for i, x in sorted(found.items(), reverse=True):
        shared = len(graph.consumers[x.weight]) > 1
        if x.node.op_type != "MatMul" or x.bias or not (shared or i in concerned):
            continue
        raw, bias = f"{x.out}.unbiased", f"{x.weight}.bias" if shared else f"{x.out}.bias"
        if raw in facts.dtypes or bias in graph.tensors or bias in graph.producer:
            continue
        made = NodeProto()
        made.CopyFrom(nodes[i])
        made.output[0] = raw
        tensors[bias] = tensor(bias, np.zeros(x.size[2], graph.array(x.weight).dtype))
        nodes[i : i + 1] = [made, helper.make_node("Add", [raw, bias], [x.out], name=f"{x.node.name or x.out}.bias")]
    return graph.replace(nodes, tensors) if len(nodes) > len(graph.nodes) else graph


def without_zero_adders(graph: Graph, ready: Graph, first: Graph) -> Graph:
    """The graph without those of the new Adds that came to nothing."""
    new = set(ready.tensors) - set(first.tensors)
    zero = {n for n in new if n in graph.tensors and not graph.array(n).any()}
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        if node.op_type == "Add" and node.input[1] in zero and nodes and nodes[-1].output[0] == node.input[0]:
            made = NodeProto()
            made.CopyFrom(nodes[-1])
            made.output[0] = node.output[0]
            nodes[-1] = made
        else:
            nodes.append(node)
    return graph.replace(nodes, {n: t for n, t in graph.tensors.items() if n not in zero}) if zero else graph
