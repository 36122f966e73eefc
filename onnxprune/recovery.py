"""Recovery without training: after a cut, every product that it touched gets new weights from calibration data.

The pruned graph and the original one are run side by side, stage by stage (`stages`): all products whose inputs are
ready are mended together, then both graphs go on, so each product sees what the already mended part before it makes,
and aims at what the original made there. A product that only adds to a stream (the end of a residual branch) aims at
the original's *sum*, and so takes up errors of the stream as well. What is done with a product is a `Mend`: least
squares (`refit`), its bias alone (`fill`) or mean and variance of its outputs (`match`).

Left alone: shared weights, products in bodies of control flow, weights that are not floats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.dims import Mask, keep
from onnxprune.errors import InputError
from onnxprune.graph import Graph, captured, operator
from onnxprune.linear import Linear, linears
from onnxprune.manager import Cut, Mended, Recovery, State
from onnxprune.plan import bind
from onnxprune.rectified import Rows, window_behind
from onnxprune.regression import Regression, Solution
from onnxprune.sessions import Feeds
from onnxprune.stages import LIMIT_BYTES, Stages
from onnxprune.storage import tensor
from onnxprune.trace import Trace

Array = NDArray[Any]
ROWS = 16384  # rows for a product, or ROWS_PER_SUMMAND times its summands if that is more
ROWS_PER_SUMMAND = 6
Mend = Callable[[Regression], Solution]


@dataclass
class _Job:
    """One product to mend: at stage `level` it aims at the original's `target`, less the pruned graph's `minus`."""

    linear: Linear
    level: int
    target: str
    masks: list[Mask]
    minus: str = ""
    regression: Regression = field(default_factory=lambda: Regression(np.zeros((1, 0, 0)), np.zeros((1, 0))))


def recover(
    graph: Graph,
    facts: Trace,
    cuts: Sequence[Cut],
    feeds: Iterable[Feeds],
    samples: int,
    mend: Mend,
    seed: int = 0,
    limit_bytes: int = LIMIT_BYTES,
    residual: bool = True,
) -> tuple[Graph, list[Mended], list[tuple[str, str]]]:
    """Mend `graph`, the result of `cuts`, on `feeds` of about `samples` samples in all. `facts` are those of `graph`.
    Returns the graph with new weights, what was mended, and what was not and why.
    """
    ready = _with_places(graph, cuts, facts)
    work = _Recovery(ready, facts, cuts, residual, set(ready.tensors) - set(graph.tensors))
    if not work.jobs:
        return graph, [], work.left
    before = Stages(cuts[0].typed.graph, cuts[0].typed.facts, feeds, limit_bytes)
    after = Stages(ready, facts, feeds, limit_bytes)
    done: list[Mended] = []
    for level in sorted({j.level for j in work.jobs}):
        jobs = [j for j in work.jobs if j.level == level]
        work.collect(jobs, before, after, samples, np.random.default_rng([seed, level]))
        for job in jobs:
            found = mend(job.regression)
            done.append(Mended(job.linear.node.name or job.linear.out, found.before, found.after, found.penalty))
            work.put(job, found)
            job.regression = Regression(np.zeros((1, 0, 0)), np.zeros((1, 0)))  # lets go of its matrices
        after.graph = work.graph
    return _without_zero_adders(work.graph, ready, graph), done, work.left


def mend_all(state: State, name: str, mend: Mend, residual: bool) -> Graph:
    """Recover the present graph of a run, and note what was done. InputError without calibration data."""
    if not state.cuts or state.dry_run or state.graph is state.cuts[0].typed.graph:
        return state.graph
    if state.data is None:
        raise InputError(f"the pass {name} needs calibration data: give --data")
    graph, mended, left = recover(
        state.graph, state.facts, state.cuts, state.data, state.samples, mend, state.seed, residual=residual
    )
    if not mended:
        graph = state.graph
    state.recoveries.append(Recovery(name, state.graph, graph, tuple(mended), tuple(left), len(state.cuts)))
    return graph


class Survivors:
    """Which entries of the original's tensors are left after several cuts."""

    def __init__(self, cuts: Sequence[Cut]) -> None:
        self._cuts = [(c.typed, bind(c.plan, c.typed)) for c in cuts]

    def masks(self, name: str) -> list[Mask] | None:
        """A keep-mask for each axis of an activation of the original; None if it is not known in every cut."""
        total: list[Mask] | None = None
        for typed, bound in self._cuts:
            axes = typed.axes.get(name)
            if axes is None:
                return None
            now = [keep(e, bound) for e in axes]
            total = now if total is None else [_after(a, b) for a, b in zip(total, now, strict=True)]
        return total

    def touched(self) -> set[str]:
        """Tensors that some cut changes directly: outputs of nodes that combine removed units with others."""
        found: set[str] = set()
        for typed, bound in self._cuts:
            for node, signature in zip(typed.graph.nodes, typed.signatures, strict=True):
                if any(not keep((signature.inputs[r.input] or [])[r.axis], bound).all() for r in signature.reads):
                    found.update(n for n in node.output if n)
        return found


def _after(first: Mask, second: Mask) -> Mask:
    made = first.copy()
    made[first] = second
    return made


class _Recovery:
    """The jobs, and the graph that is being mended."""

    def __init__(self, graph: Graph, facts: Trace, cuts: Sequence[Cut], residual: bool, new: set[str]) -> None:
        self.graph, self.facts, self.new = graph, facts, new
        self.survivors = Survivors(cuts)
        self.original = cuts[0].typed
        self.found = linears(graph)
        self.levels = _levels(graph, self.found)
        self.left: list[tuple[str, str]] = []
        touched = _downstream(graph, self.survivors.touched())
        made = (self._job(x, residual) for x in self.found.values() if touched & {x.data, x.out})
        self.jobs = [j for j in made if j is not None]

    def _job(self, x: Linear, residual: bool) -> _Job | None:
        name = x.node.name or x.out
        if len(self.graph.consumers[x.weight]) > 1 or x.weight in {o.name for o in self.graph.outputs}:
            self.left.append((name, "its weights are shared"))
            return None
        target, minus = self._residual(x) if residual else (x.out, "")
        masks = self.survivors.masks(target)
        if masks is None or target not in self.original.facts.shapes:
            self.left.append((name, "the original has no such tensor"))
            return None
        return _Job(x, self.levels[x.data], target, masks, minus)

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

    def collect(
        self, jobs: Sequence[_Job], before: Stages, after: Stages, samples: int, rng: np.random.Generator
    ) -> None:
        """Run both graphs up to the inputs and targets of some jobs."""
        for job in jobs:
            x = job.linear
            weight = x.matrix(self.graph.array(x.weight).astype(np.float32))
            job.regression = Regression(weight, self._bias(x).reshape(weight.shape[0], -1), x.bias in self.new)
            window = window_behind(self.graph, job.target if job.minus else x.out)
            job.regression.rows = Rows.some(window, _wanted_rows(x), x.size) if window else None
        wants = list(dict.fromkeys(j.target for j in jobs))
        has = list(dict.fromkeys(n for j in jobs for n in (j.linear.data, j.minus) if n))
        first = 0
        for want, got in zip(before.run(wants), after.run(has), strict=True):
            for job in jobs:
                _take(job, want[job.target], got, samples, first, rng)
            first += got[jobs[0].linear.data].shape[0]

    def _bias(self, x: Linear) -> Array:
        if not x.bias:
            return np.zeros(x.size[0] * x.size[2], np.float32)
        stored = self.graph.array(x.bias).astype(np.float32).reshape(-1) * x.beta
        return np.broadcast_to(stored, (x.size[0] * x.size[2],))

    def put(self, job: _Job, found: Solution) -> None:
        """Store new weights and bias."""
        x, nodes, tensors = job.linear, list(self.graph.nodes), dict(self.graph.tensors)
        kind = self.graph.array(x.weight).dtype
        weight = _stored(self.graph, tensors, x.weight, x.unmatrix(found.weight).astype(kind))
        bias = (found.bias.reshape(-1) / x.beta).astype(kind)
        shared = bool(x.bias) and len(self.graph.consumers[x.bias]) > 1
        name = _stored(self.graph, tensors, x.bias or f"{x.out}.bias", bias, fresh=shared or not x.bias)
        node = _copy(nodes[x.index])
        node.input[1] = weight
        if x.adder < 0:
            del node.input[2:]
            node.input.append(name)
        else:
            adder = _copy(nodes[x.adder])
            adder.input[list(adder.input).index(x.bias)] = name
            nodes[x.adder] = adder
        nodes[x.index] = node
        sources = {n: s for n, s in self.graph.sources.items() if n not in (weight, name)}
        self.graph = self.graph.replace(nodes, tensors, sources=sources)


def _take(job: _Job, want: Array, got: Mapping[str, Array], samples: int, first: int, rng: np.random.Generator) -> None:
    """Rows of one feed."""
    x = job.linear
    for axis, mask in enumerate(job.masks):
        if not mask.all() and want.shape[axis] == mask.size:
            want = np.compress(mask, want, axis)
    if job.minus:
        want = want - got[job.minus]
    count = x.positions(want.shape)
    each = max(1, min(count, -(-_wanted_rows(x) // max(samples, 1))))
    picks = np.sort(rng.choice(count, each, replace=False)) if each < count else np.arange(count)
    data = got[x.data]
    if data.shape[0] and count:
        offset = x.rows(got[job.minus], picks) if job.minus and job.regression.rows else None
        job.regression.add(x.columns(data, want.shape, picks), x.rows(want, picks), first, offset)


def _wanted_rows(x: Linear) -> int:
    return max(ROWS, ROWS_PER_SUMMAND * x.size[1])


def _levels(graph: Graph, found: Mapping[int, Linear]) -> dict[str, int]:
    """For each tensor the largest number of products on a way from the inputs to it."""
    levels = {i.name: 0 for i in graph.inputs}
    for i, node in enumerate(graph.nodes):
        level = max((levels.get(n, 0) for n in [*node.input, *captured(node)]), default=0) + (i in found)
        levels |= dict.fromkeys(node.output, level)
    return levels


def _downstream(graph: Graph, start: set[str]) -> set[str]:
    """`start`, and all that depends on it."""
    found = set(start)
    for node in graph.nodes:
        if not found.isdisjoint([*node.input, *captured(node)]):
            found.update(node.output)
    return found


def _with_places(graph: Graph, cuts: Sequence[Cut], facts: Trace) -> Graph:
    """The graph with an Add behind every product that has no place for a bias."""
    touched = _downstream(graph, Survivors(cuts).touched())
    nodes, tensors = list(graph.nodes), dict(graph.tensors)
    for i, x in sorted(linears(graph).items(), reverse=True):
        shared = len(graph.consumers[x.weight]) > 1
        if x.node.op_type != "MatMul" or x.bias or shared or not touched & {x.data, x.out}:
            continue
        raw, bias = f"{x.out}.unbiased", f"{x.out}.bias"
        if raw in facts.dtypes or bias in tensors:
            continue
        made = _copy(nodes[i])
        made.output[0] = raw
        tensors[bias] = tensor(bias, np.zeros(x.size[2], graph.array(x.weight).dtype))
        nodes[i : i + 1] = [made, helper.make_node("Add", [raw, bias], [x.out], name=f"{x.node.name or x.out}.bias")]
    return graph.replace(nodes, tensors) if len(nodes) > len(graph.nodes) else graph


def _without_zero_adders(graph: Graph, ready: Graph, first: Graph) -> Graph:
    """The graph without those of the new Adds that came to nothing."""
    new = set(ready.tensors) - set(first.tensors)
    zero = {n for n in new if n in graph.tensors and not graph.array(n).any()}
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        if node.op_type == "Add" and node.input[1] in zero and nodes and nodes[-1].output[0] == node.input[0]:
            nodes[-1] = _copy(nodes[-1])
            nodes[-1].output[0] = node.output[0]
        else:
            nodes.append(node)
    return graph.replace(nodes, {n: t for n, t in graph.tensors.items() if n not in zero}) if zero else graph


def _stored(graph: Graph, tensors: dict[str, TensorProto], name: str, array: Array, fresh: bool = False) -> str:
    """Store an array under its own name, or under a new one where others use that or a Constant node holds it."""
    if name in tensors and not fresh:
        tensors[name] = tensor(name, array, tensors[name])
        return name
    stem, k = f"{name}.recovered", 0
    while (name := f"{stem}{k or ''}") in tensors or name in graph.producer:
        k += 1
    tensors[name] = tensor(name, array)
    return name


def _copy(node: NodeProto) -> NodeProto:
    made = NodeProto()
    made.CopyFrom(node)
    return made


def refit(regression: Regression) -> Solution:
    """Least squares with a ridge towards the weights that are there."""
    return regression.solve()
