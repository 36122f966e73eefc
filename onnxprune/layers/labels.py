"""What layers are called: by the scope that their products share, in node names (`/encoder/layer.3/attention/query`) or
in names of weights (`encoder.layer.3.attention.query.weight`), and by their kind: `encoder.layer.3.attention/ffn`.

Names depend on the graph alone, so a plan saved for a file finds its layers again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import takewhile

from onnxprune.graph import Graph
from onnxprune.layers.layer import Layer
from onnxprune.linear import RECURRENT

CONVOLUTIONS = ("Conv", "ConvTranspose", "QLinearConv", "ConvInteger", "com.microsoft.FusedConv")


def kind_of(graph: Graph, nodes: Collection[int], macs: dict[int, int], carried: Collection[str]) -> str:
    """What the products of some nodes make of them: attention if two activations meet, else by what costs most."""
    operators = Counter({graph.wires[i].operator: 0 for i in nodes})
    for i in nodes:
        operators[graph.wires[i].operator] += macs.get(i, 0)
    meets = any(
        graph.wires[i].operator == "MatMul" and all(n in carried for n in graph.wires[i].inputs)
        for i in nodes
        if i in macs
    )
    if meets or any("Attention" in op for op in operators):
        return "attention"
    if any(op in RECURRENT for op in operators):
        return "recurrent"
    dearest = max(operators, key=lambda op: operators[op], default="")
    return "bottleneck" if dearest in CONVOLUTIONS else "ffn"


def scope(graph: Graph, nodes: Collection[int], products: Collection[int], fallback: str) -> str:
    """The scope that the products among some nodes share, or else the weights of all of them; `fallback` where names
    tell none.
    """
    own = sorted(i for i in nodes if i in products)
    named = [_parts(graph.nodes[i].name) for i in own if "/" in graph.nodes[i].name]
    others = [p[:-1] for p in _weights(graph, sorted(nodes)) if len(p) > 2]  # of modules, which may be a norm alone
    for parts in (named, _weights(graph, own), others):
        if shared := _shared([p[:-1] for p in parts]):  # without the operator, or the weight itself
            return ".".join(shared)
    return fallback


def _shared(parts: Sequence[list[str]]) -> list[str]:
    """What all start with."""
    columns = zip(*parts, strict=False)
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]


def _weights(graph: Graph, nodes: Iterable[int]) -> list[list[str]]:
    """The parts of the names of constants that have a scope."""
    names = {n for i in nodes for n in graph.wires[i].inputs if n in graph.constants and "." in n and "::" not in n}
    return [_parts(n) for n in sorted(names)]


def _parts(name: str) -> list[str]:
    """The scopes in a name; PyTorch writes `/blocks/blocks.0/attn`, of which `blocks` is said twice."""
    spans = [s for s in name.split("/") if s]
    kept = [s for s, then in zip(spans, [*spans[1:], ""], strict=True) if not then.startswith(f"{s}.")]
    return [p for s in kept for p in s.split(".") if p]


def unique(layers: Sequence[Layer]) -> list[Layer]:
    """The layers, with `#2` and so on behind names that come again."""
    count: Counter[str] = Counter()
    made = []
    for layer in layers:
        count[layer.name] += 1
        k = count[layer.name]
        made.append(layer if k == 1 else replace(layer, name=f"{layer.name}#{k}"))
    return made
