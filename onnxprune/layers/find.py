"""Listing the layers of a graph: residual branches, with their norms where these come behind the sum, transformer
blocks, and chains; each with its name, its kind, its nodes and what these cost. Layers may lie inside of each other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from onnxprune import cost
from onnxprune.inference import TypedGraph
from onnxprune.layers.chains import Chains
from onnxprune.layers.cones import Cones
from onnxprune.layers.labels import kind_of, scope, unique
from onnxprune.layers.layer import Layer
from onnxprune.layers.residual import SKIP, Branch, Residuals, same_type
from onnxprune.quantization import stands_for_reals


def find(typed: TypedGraph) -> tuple[Layer, ...]:
    """Every layer of a graph, in the order of what they make; outside of bodies of control flow."""
    return _Finder(typed).find()


def leaves(layers: Iterable[Layer]) -> list[Layer]:
    """Layers that hold no other, other ways to drop one layer not counted."""
    listed = [x for x in layers if not x.variant]
    sums = {x.node: x for x in listed if x.is_branch}
    return [x for x in listed if x.kind != "block" and not any(i in sums for i in x.nodes if i != x.node)]


class _Finder:
    """What all layers of one graph are measured by."""

    def __init__(self, typed: TypedGraph) -> None:
        self.typed, self.graph, self.facts = typed, typed.graph, typed.facts
        self.cones = Cones(typed.graph)
        self.macs = {i: sum(t.whole for t in terms) for i, terms in cost.macs_by_node(typed).items()}
        self.weights = self._weights()
        held = {i for _, users in self.weights.values() for i in users}
        self.products = {i for i in self.macs if i in held}
        self.residuals = Residuals(self.cones, self.facts)
        self.chains = Chains(self.cones, self.facts, self.products)

    def _weights(self) -> dict[str, tuple[int, set[int]]]:
        """Entries and users of the constants that are parameters."""
        graph = self.graph
        return {
            n: (graph.entries(n), {i for i, _ in graph.consumers.get(n, [])})
            for n in graph.constants
            if stands_for_reals(graph, n)
        }

    def find(self) -> tuple[Layer, ...]:
        branches = [b for b in self.residuals.find() if not self.products.isdisjoint(b.nodes)]
        residual = [self._branch(b) for b in branches]
        variants = [v for b, x in zip(branches, residual, strict=True) if b.single and (v := self._with_norm(x))]
        blocks = self._blocks(residual, {v.variant: v for v in variants})
        taken = {i for x in residual for i in x.nodes}
        chains = [self._chain(c.entry, c.exit, c.nodes) for c in self.chains.find(taken)]
        made = self.graph.producer
        found = sorted([*residual, *variants, *blocks, *chains], key=lambda x: (made[x.exit], len(x.nodes)))
        return tuple(unique(found))

    def _measured(self, layer: Layer) -> Layer:
        """With the parameters and MACs that go with its nodes."""
        wires = self.graph.wires
        held = [self.weights[n] for n in {n for i in layer.nodes for n in wires[i].inputs} if n in self.weights]
        params = sum(n for n, users in held if users <= layer.nodes)
        return replace(layer, params=params, macs=sum(self.macs.get(i, 0) for i in layer.nodes))

    def _named(self, nodes: Collection[int], kind: str, exit: str) -> str:
        return f"{scope(self.graph, nodes, self.products, exit)}/{kind}"

    def _branch(self, found: Branch) -> Layer:
        term, outputs = found.term, self.graph.wires[found.term.node].outputs
        is_skip = self.graph.wires[term.node].operator in SKIP
        exit = next(n for n in reversed(outputs) if n) if is_skip else outputs[0]
        kind = kind_of(self.graph, found.nodes, self.macs, self.cones.carried)
        nodes = found.nodes if is_skip else found.nodes | {term.node}
        name = self._named(found.nodes, kind, exit)
        return self._measured(Layer(name, kind, found.entry, exit, found.stream, term.node, term.operand, nodes))

    def _with_norm(self, branch: Layer) -> Layer | None:
        """The branch with the norm that all of its sum goes through; where a branch starts with a norm of its own, the
        one behind the sum belongs to what comes next.
        """
        if self.chains.starts_with_norm(branch.stream, branch.nodes):
            return None
        outputs = self.graph.wires[branch.node].outputs
        is_skip = self.graph.wires[branch.node].operator in SKIP
        exit = (outputs[0] if not any(outputs[1:]) else "") if is_skip else self.chains.norm_after(branch.node)
        if not exit or not same_type(self.facts, branch.entry, exit):
            return None
        nodes = frozenset(self.cones.behind(exit, branch.entry))
        name = f"{branch.name}+norm"
        made = Layer(name, branch.kind, branch.entry, exit, branch.entry, nodes=nodes, variant=branch.name)
        return self._measured(made)

    def _chain(self, entry: str, exit: str, nodes: frozenset[int]) -> Layer:
        return self._measured(Layer(self._named(nodes, "chain", exit), "chain", entry, exit, entry, nodes=nodes))

    def _blocks(self, residual: Sequence[Layer], norms: dict[str, Layer]) -> list[Layer]:
        """Transformer blocks: attention layers one after the other, up to the feed-forward layer behind them."""
        found: list[Layer] = []
        run: list[Layer] = []
        for layer in residual:
            ends = {e for x in run[-1:] for e in (x.exit, norms[x.name].exit if x.name in norms else "")}
            roots = set(self.residuals.roots(layer.entry))
            run = run if ends & roots else []
            if run or layer.stream in roots:  # else it is one of several branches that are summed first
                run.append(layer)
            if layer.kind == "ffn" and len(run) > 1 and run[0].kind == "attention":
                found += self._block(run, norms)
            if layer.kind != "attention":
                run = []
        return found

    def _block(self, run: Sequence[Layer], norms: dict[str, Layer]) -> list[Layer]:
        last, entry = run[-1], run[0].entry
        after_norm = run[0].name in norms and run[0].exit not in self.residuals.roots(run[1].stream)
        exit = norms[last.name].exit if after_norm and last.name in norms else last.exit
        if not same_type(self.facts, entry, exit):
            return []
        nodes = frozenset(self.cones.behind(exit, entry))
        name = self._named(nodes, "block", exit)
        return [self._measured(Layer(name, "block", entry, exit, entry, nodes=nodes))]
