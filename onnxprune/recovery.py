"""Recovery without training: after a cut, every product that it touched gets new weights from calibration data.

The pruned graph and the original one are run side by side, stage by stage (`stages`): all jobs of the `agenda` whose
inputs are ready are mended together, then both graphs go on, so each product sees what the already mended part before
it makes, and aims at what the original made there. The ways to do it: least squares, a product's bias alone, or mean
and variance of its outputs. In the end whole models are compared (`guard`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from onnx import NodeProto, helper

from onnxprune.agenda import Agenda, Left, Way
from onnxprune.branches import along, put_back, typed_along
from onnxprune.dims import Mask
from onnxprune.errors import InputError
from onnxprune.graph import Graph
from onnxprune.guard import Guard
from onnxprune.jobs import Feed, Job, Workbench
from onnxprune.linear import linears
from onnxprune.manager import Cut, Mended, Recovery, State
from onnxprune.matching import Matching
from onnxprune.norms import CENTRED, STORED, UNCENTRED
from onnxprune.regression import Regression
from onnxprune.sessions import Feeds
from onnxprune.stages import Room, Stages
from onnxprune.storage import tensor
from onnxprune.survivors import Survivors
from onnxprune.tokens import token_mask
from onnxprune.trace import Trace

SUMS_BYTES = 1 << 30  # of what is summed over rows at once
ROOM_BYTES = 14 << 28  # of that and of the activations of both graphs that are held between two stages
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
    places: bool = True,
) -> tuple[Graph, list[Mended], Left]:
    """Mend `graph`, the result of `cuts`, on `feeds` of about `samples` samples in all. `facts` are those of `graph`;
    `weights`: of the rows of each feed, where they do not count alike; `places`: products may get biases. Returns the
    graph with new weights, what was mended, and what was not and why.
    """
    ready = with_places(graph, cuts, facts) if places else graph
    work = Agenda(ready, facts, cuts, way, set(ready.tensors) - set(graph.tensors), next(iter(feeds)))
    if not work.jobs:
        return graph, [], work.left
    bench, done = Workbench(ready), list[Mended]()
    mask = token_mask(work.source, feeds)
    tokens = [f[mask].astype(bool) for f in feeds] if mask else None
    room = Room(ROOM_BYTES)
    before, after = Stages(work.source, cuts[0].typed.facts, feeds, room), Stages(ready, facts, feeds, room)
    for k, jobs in enumerate(_groups(work.jobs)):
        room.taken = sum(j.nbytes for j in jobs)
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
    """Whether two graphs are equal, weights and all; of files above 2 GB it is not said."""
    if a.is_large or b.is_large:
        return False
    first, second = (g.to_proto().SerializeToString(deterministic=True) for g in (a, b))
    return bool(first == second)


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
