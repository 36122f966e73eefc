"""Chains: parts of a plain network that map a tensor to one of the same type, such as a convolution with its
normalisation and activation, or one of several recurrent layers.

    e -> product -> ... -> x

What lies between two nodes is single-entry single-exit where each immediately dominates, or post-dominates, the next
(networkx, on the graph of data without constants and sizes). From each product with stored weights the walk goes down
to the next product, and up to the last one; the exit is as far down as types agree.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cached_property
from typing import NamedTuple

from onnxprune.layers.cones import Cones
from onnxprune.layers.residual import SUMS, same_type
from onnxprune.trace import Trace

SOURCE = -1
NORMS = frozenset(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"))


class Chain(NamedTuple):
    entry: str
    exit: str
    nodes: frozenset[int]


class Chains:
    """Dominance in one graph. `products`: the nodes that multiply by stored weights."""

    def __init__(self, cones: Cones, facts: Trace, products: Collection[int]) -> None:
        self.cones, self.facts, self.graph, self.wires = cones, facts, cones.graph, cones.wires
        self.products = set(products)
        self.sink = len(self.wires)

    @cached_property
    def _edges(self) -> list[tuple[int, int]]:
        carried, producer = self.cones.carried, self.graph.producer
        edges = [
            (producer.get(n, SOURCE), i)
            for i, wires in enumerate(self.wires)
            if any(n in carried for n in wires.outputs)
            for n in (*wires.inputs, *wires.captured)
            if n in carried
        ]
        return edges + [(producer.get(n, SOURCE), self.sink) for n in self.cones.outputs if n in carried]

    @cached_property
    def before(self) -> dict[int, int]:
        """The immediate dominator of each node."""
        import networkx as nx  # which takes a tenth of a second

        return dict(nx.immediate_dominators(nx.DiGraph(self._edges), SOURCE)) if self._edges else {}

    @cached_property
    def after(self) -> dict[int, int]:
        """The immediate post-dominator of each node."""
        import networkx as nx

        back = nx.DiGraph([(b, a) for a, b in self._edges])
        return dict(nx.immediate_dominators(back, self.sink)) if self.sink in back else {}

    def find(self, taken: Collection[int]) -> Iterator[Chain]:
        """Chains outside of the nodes `taken`, in order, none of which overlap."""
        used = set(taken)
        for i in sorted(self.products - used):
            made = self._chain(i, used)
            if made is not None:
                used |= made.nodes
                yield made

    def _chain(self, i: int, used: set[int]) -> Chain | None:
        data = {n for n in self.wires[i].inputs if n in self.cones.carried}
        if len(data) != 1 or self._made(i) in self.cones.inner:
            return None
        ends, starts = self._down(i, used), [*data, *self._up(self.graph.producer.get(next(iter(data)), SOURCE), used)]
        for end in reversed(ends):
            for start in starts:
                exit = self._made(end)
                if exit and same_type(self.facts, start, exit):
                    return Chain(start, exit, frozenset(self.cones.behind(exit, start)))
        return None

    def _down(self, i: int, used: set[int]) -> list[int]:
        """The product and what follows it, up to the next one; nothing where only an output follows."""
        found = [i]
        while True:
            then = self.after.get(found[-1], self.sink)
            if then == self.sink:
                return []
            if then in self.products or then in used or not self._joined(found[-1], then):
                return found
            found.append(then)

    def _up(self, i: int, used: set[int]) -> Iterator[str]:
        """What the input of a product is made of, back to the last one."""
        while i != SOURCE and i not in self.products and i not in used:
            back = self.before.get(i, SOURCE)
            if back == SOURCE or not self._joined(back, i):
                return
            yield self._made(back)
            i = back

    def _joined(self, first: int, then: int) -> bool:
        """Whether two nodes enclose a part with one way in and one way out, and no sum that ends a branch."""
        straight = self.before.get(then) == first and self.after.get(first) == then
        return straight and (self.wires[then].operator not in SUMS or self._is_bias(then))

    def _is_bias(self, i: int) -> bool:
        return not all(n in self.cones.carried for n in self.wires[i].inputs[:2])

    def _made(self, i: int) -> str:
        """What a node makes, if that is used and the only tensor of it that is."""
        names = [n for n in self.wires[i].outputs if self.cones.counts.get(n)]
        return names[0] if len(names) == 1 else ""

    def starts_with_norm(self, stream: str, nodes: Collection[int]) -> bool:
        """Whether some nodes normalise the stream before anything else."""
        users = {i for i, _ in self.graph.consumers.get(stream, []) if i in nodes}
        return any(
            self.wires[i].operator in (*NORMS, "ReduceMean")
            or (self.wires[i].operator in ("Cast", "Pow") and self.starts_with_norm(self._made(i), nodes))
            for i in users
        )

    def norm_after(self, i: int) -> str:
        """The result of the norm behind a sum, where all that uses the sum is that norm; as one node, or written out in
        small ones.
        """
        users = {k for k, _ in self.graph.consumers.get(self._made(i), [])}
        if len(users) == 1 and self.wires[next(iter(users))].operator in NORMS:
            return self._made(*users)
        found, averages = i, False
        while (then := self.after.get(found, self.sink)) != self.sink and then not in self.products:
            if not self._joined(found, then):
                break
            averages = averages or self._averages(found, then)
            found = then
        return self._made(found) if averages else ""

    def _averages(self, first: int, then: int) -> bool:
        """Whether a mean is taken between two nodes."""
        return any(self.wires[k].operator == "ReduceMean" for k in range(first + 1, then + 1))
