"""Residual branches: what is added to a stream that it is computed from.

    x = s + f(s)                  attention, feed-forward, bottleneck, a whole body under a long skip connection
    x = s + f(s) + g(s)           branches in parallel (GPT-J, NeoX), in whatever order they are summed
    y = norm(s + f(s))            post-norm (BERT): the branch alone, or the branch with its norm

A sum of several terms is looked at as a whole. One term is the stream if the others' cone (what serves nothing but
them) reads it, and reads nothing else that depends on it: then nothing inside of the branches is used outside. Other
inputs of the cone (masks, positions, what an encoder says) may come from anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from onnxprune.layers.cones import Cones
from onnxprune.trace import Trace

SKIP = ("com.microsoft.SkipLayerNormalization", "com.microsoft.SkipSimplifiedLayerNormalization")
QUANTIZATION = ("QuantizeLinear", "DequantizeLinear")
SUMS = ("Add", *SKIP)
MOVES = ("Reshape", "Transpose", "Identity", "Cast", "Squeeze", "Unsqueeze", "Flatten", *QUANTIZATION)


class Term(NamedTuple):
    """Operand `operand` of the sum that node `node` makes."""

    node: int
    operand: int
    tensor: str


class Branch(NamedTuple):
    """A branch at a sum; `single`: the stream and the branch are all that is summed."""

    term: Term
    entry: str
    stream: str
    nodes: frozenset[int]
    single: bool


class Residuals:
    """The residual branches of a graph, and what looks like one but leaks (`leaks`: sum and the tensor used
    outside).
    """

    def __init__(self, cones: Cones, facts: Trace) -> None:
        self.cones, self.facts, self.graph, self.wires = cones, facts, cones.graph, cones.wires
        self.leaks: list[tuple[int, str]] = []

    def find(self) -> list[Branch]:
        """In the order of their sums."""
        found: list[Branch] = []
        taken: set[int] = set()
        for i in reversed(range(len(self.wires))):
            if self.wires[i].operator in SUMS and i not in taken and self._result(i) not in self.cones.inner:
                terms = self._terms(i)
                taken.update(t.node for t in terms)
                found += self._branches(i, terms)
        return sorted(found, key=lambda b: (b.term.node, b.term.operand))

    def _result(self, i: int) -> str:
        return next((n for n in self.wires[i].outputs if n), "")

    def _terms(self, i: int) -> list[Term]:
        """The terms of a sum; those of sums that only serve it instead of these."""
        found: list[Term] = []
        for j, name in enumerate(self.wires[i].inputs[:2]):
            k = self.graph.producer.get(name)
            alone = k is not None and self.wires[k].operator == "Add" and self.cones.counts.get(name) == 1
            if k is not None and alone and all(n in self.cones.carried for n in self.wires[k].inputs):
                found += self._terms(k)
            else:
                found.append(Term(i, j, name))
        return found

    def _branches(self, top: int, terms: Sequence[Term]) -> Iterator[Branch]:
        carried = [t for t in terms if t.tensor in self.cones.carried]
        for term in carried:
            others = [t for t in carried if t is not term]
            stream = self._stream(top, term, others) if others else ""
            if stream:
                reached = self.cones.reached(stream, top)
                for t in others:
                    if t.tensor in reached:
                        yield from self._branch(t, term.tensor, len(terms) == 2)
                return

    def _stream(self, top: int, term: Term, others: Sequence[Term]) -> str:
        """The tensor behind `term` that the others are computed from, "" if there is none or they leak."""
        inside = self.cones.cone([t.tensor for t in others])
        entries = self.cones.entries(inside)
        roots = list(self.roots(term.tensor))
        stream = next((n for n in roots if n in entries), "")
        if not stream:
            return ""
        leaking = sorted((entries - set(roots)) & self.cones.reached(stream, top))
        if leaking:
            self.leaks.append((top, leaking[0]))
            return ""
        return stream

    def roots(self, name: str) -> Iterator[str]:
        """A tensor, and what it is a mere copy of."""
        yield name
        while (i := self.graph.producer.get(name)) is not None and self.wires[i].operator in MOVES:
            name = self.wires[i].inputs[0]
            yield name

    def _branch(self, term: Term, stream: str, single: bool) -> Iterator[Branch]:
        node = self.wires[term.node]
        entry = node.inputs[1 - term.operand]
        total = next((n for k, n in enumerate(node.outputs) if n and (k == 0 or node.operator in SKIP)), "")
        if same_type(self.facts, entry, total) and self._is_plain(term.node):
            yield Branch(term, entry, stream, frozenset(self.cones.cone([term.tensor])), single)

    def _is_plain(self, i: int) -> bool:
        """Whether a fused sum gives nothing but its result and the sum."""
        node = self.wires[i]
        return node.operator not in SKIP or not any(node.outputs[1:3])


def same_type(facts: Trace, a: str, b: str) -> bool:
    """Whether two tensors have one shape, at both sizes that were traced, and one element type."""
    known = facts.shapes.get(a) is not None and a in facts.dtypes
    tables: Sequence[Callable[[str], object]] = (facts.shapes.get, facts.other_shapes.get, facts.dtypes.get)
    return known and all(table(a) == table(b) for table in tables)
