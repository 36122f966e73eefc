"""Running a graph over data piece by piece, so that what comes later can be changed by what was seen before.

`Stages.run(names)` gives the named tensors for every feed. What the rest of the graph will need (the frontier) is held
in memory for the next stage if there is `Room` for it; else the next stage starts again where the last frontier was
held. Frontiers are large only near the input, where starting again is cheap. In all the graph is run about once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxprune.flow import CONTROL, ENTER, LEAVE, OWNER, STORED, attribute
from onnxprune.graph import Graph
from onnxprune.nodes import captured
from onnxprune.sessions import Feeds, program, session
from onnxprune.trace import Trace

LIMIT_BYTES = 5 << 28  # of activations held between two stages, where nothing else is said


class Room:
    """Bytes for what one or several `Stages` hold, and for what is `taken` besides."""

    def __init__(self, total: int = LIMIT_BYTES) -> None:
        self.total, self.taken = total, 0
        self.held: WeakKeyDictionary[Stages, int] = WeakKeyDictionary()  # else what is held stays until a collection

    def left(self, stages: Stages) -> int:
        """Bytes that these stages may hold."""
        return self.total - self.taken - sum(n for s, n in self.held.items() if s is not stages)


class Stages:
    """One graph on its way over `feeds` (iterated once for each stage that starts at the inputs)."""

    def __init__(self, graph: Graph, facts: Trace, feeds: Iterable[Feeds], room: Room | None = None) -> None:
        self.graph, self.facts, self.feeds, self.room = graph, facts, feeds, room or Room()
        self.held: list[Feeds] | None = None
        self.count: int | None = None  # of feeds, once they were seen
        self.done: set[int] = set()  # nodes whose results are held as far as they are needed
        self.runs = 0  # nodes run so far, over all stages

    @cached_property
    def units(self) -> list[range]:
        """Runs of nodes that are executed as one: a node, or a control-flow node with its bodies."""
        found: list[range] = []
        depth, start = 0, 0
        for i, node in enumerate(self.graph.nodes):
            depth += (node.op_type == ENTER) - (node.op_type == LEAVE)
            owned = node.op_type in CONTROL and attribute(node, OWNER) is not None
            if depth == 0 and node.op_type != LEAVE and (start == i or owned):
                found.append(range(start, i + 1))
                start = i + 1
        return found

    @cached_property
    def _maker(self) -> dict[str, int]:
        """The unit that makes each tensor."""
        nodes = self.graph.nodes
        return {n: u for u, span in enumerate(self.units) for i in span for n in nodes[i].output if n}

    @cached_property
    def _needs(self) -> list[set[str]]:
        """Tensors that each unit takes from outside, without constants."""
        nodes = self.graph.nodes
        found = []
        for span in self.units:
            used = {n for i in span for n in [*nodes[i].input, *captured(nodes[i])] if n}
            made = {n for i in span for n in nodes[i].output}
            found.append(used - made - set(self.graph.tensors))
        return found

    def restart(self) -> None:
        """Start from the inputs again: weights of what has been run were changed."""
        self.held, self.done = None, set()

    def run(self, wanted: Sequence[str]) -> Iterator[Feeds]:
        """The `wanted` tensors, for one feed after the other. The whole must be consumed before the next call."""
        inputs = {i.name for i in self.graph.inputs}
        start = set(self.held[0]) if self.held else inputs
        needed = self._slice(wanted, start)
        if not {n for u in needed for n in self._needs[u] if n in inputs} <= start or not self._are_made(wanted, start):
            self.restart()
            start, needed = inputs, self._slice(wanted, inputs)
        self.runs += sum(len(self.units[u]) for u in needed)
        done = self.done | needed
        frontier = self._frontier(done, start)
        fresh = [n for n in frontier if n not in start]
        old, new = self._size(self.held or []), self._bytes(frontier)
        fits = new <= self.room.left(self)
        self.room.held[self] = max(old, new if fits else 0)
        outputs = [n for n in dict.fromkeys([*wanted, *(fresh if fits else [])]) if n not in start]
        held: list[Feeds] = []
        job = session(program(self._piece(needed, start, outputs))) if outputs else None
        taken = [i.name for i in job.get_inputs()] if job else []
        count = 0
        for feed in self._source(fits):
            values = job.run(outputs, {n: feed[n] for n in taken}) if job else []
            made = dict(feed) | dict(zip(outputs, values, strict=True))
            count += 1
            if fits:
                held.append({n: _owned(made[n]) for n in frontier})
                fits = self._size(held) <= self.room.left(self)
                held = held if fits else []
                self.room.held[self] = max(old, new if fits else 0, self._size(held))
            yield {n: made[n] for n in wanted}
        self.count = count
        if fits and held:
            self.held, self.done = held, done
        self.room.held[self] = self._size(self.held or [])

    def rest(self, first: int) -> tuple[Graph, Sequence[Feeds]]:
        """The graph from node `first` on as one of its own, with those outputs that it makes, and what it starts from
        for every feed. Comes close where nodes that are executed as one do not end there, or too much would be held.
        """
        before = {u for u, span in enumerate(self.units) if span.stop <= first}
        inputs = {i.name for i in self.graph.inputs}
        if not before <= self.done:
            for _ in self.run([n for n in self._frontier(before | self.done, inputs) if n not in inputs]):
                pass
        start = self.held if self.held is not None else list(self.feeds)
        there = set(start[0]) if start else inputs
        left = set(range(len(self.units))) - self.done
        made = {n for u in left for i in self.units[u] for n in self.graph.nodes[i].output}
        return self._piece(left, there, [o.name for o in self.graph.outputs if o.name in made]), start

    def _source(self, fits: bool) -> Iterator[Feeds]:
        """What a stage starts from: what is held, and let go of on the way where what comes next is sure to fit."""
        if self.held is None or not fits:
            yield from self.feeds if self.held is None else self.held
            return
        held = self.held[::-1]
        self.restart()
        while held:
            yield held.pop()

    def _slice(self, wanted: Sequence[str], start: set[str]) -> set[int]:
        """Units that make the wanted tensors out of those that are there."""
        needed: set[int] = set()
        stack = [n for n in wanted if n not in start]
        while stack:
            unit = self._maker.get(stack.pop())
            if unit is not None and unit not in needed:
                needed.add(unit)
                stack += [n for n in self._needs[unit] if n not in start]
        return needed

    def _are_made(self, wanted: Sequence[str], start: set[str]) -> bool:
        return all(n in start or n in self._maker for n in wanted)

    def _frontier(self, done: set[int], start: set[str]) -> list[str]:
        """Tensors that are there after `done` and that other units take."""
        there = start | {n for n, u in self._maker.items() if u in done}
        later = {n for u, needs in enumerate(self._needs) if u not in done for n in needs}
        return sorted(there & later)

    def _bytes(self, names: Iterable[str]) -> int:
        """Expected size of the frontier; 0 where the number of feeds is not known yet."""
        shapes, kinds = self.facts.shapes, self.facts.dtypes
        return (self.count or 0) * sum(
            math.prod(shapes.get(n, ())) * helper.tensor_dtype_to_np_dtype(kinds.get(n, TensorProto.FLOAT)).itemsize
            for n in names
        )

    @staticmethod
    def _size(held: Sequence[Feeds]) -> int:
        return sum(a.nbytes for a in held[-1].values() if isinstance(a, np.ndarray)) * len(held) if held else 0

    def _piece(self, needed: set[int], start: set[str], outputs: Sequence[str]) -> Graph:
        """The graph of some units, as a model of its own."""
        nodes = [self.graph.nodes[i] for u in sorted(needed) for i in self.units[u]]
        used = {n for u in needed for n in self._needs[u]}
        shell = ModelProto()
        shell.CopyFrom(self.graph.shell)
        del shell.graph.input[:], shell.graph.output[:], shell.graph.value_info[:]
        for name in sorted(used & start):
            kind = self.facts.dtypes.get(name, TensorProto.FLOAT)
            shell.graph.input.add(name=name).type.tensor_type.elem_type = kind
        for name in outputs:
            shell.graph.output.add(name=name).type.SetInParent()
        named = {n for node in nodes for n in [*node.input, *captured(node), *_stored(node)]}
        tensors = {n: t for n, t in self.graph.tensors.items() if n in named}
        return self.graph.replace(nodes, tensors, shell)


def _owned(value: Any) -> Any:
    """An array in memory of its own: what ONNX Runtime gives lies in a session's arena, which is twice as large as what
    was asked of it, and whole until the last such array is gone.
    """
    return value.copy() if isinstance(value, np.ndarray) and not value.flags.owndata else value


def _stored(node: NodeProto) -> list[str]:
    """Names of the initialisers that belong to a body."""
    found = attribute(node, STORED)
    return [s.decode() for s in found.strings] if found is not None else []
