"""Which layers go: by name, or the least important ones.

A pattern (`encoder.3*`, `kind:attention`) stands for all that match; a number for as many layers whose loss costs
least, with data by the measured error of the outputs. After every few drops what is left is measured again, since
layers make up for each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import chain

from onnxprune.calibration import Calibration
from onnxprune.errors import InputError
from onnxprune.graph import FLOATS, Graph
from onnxprune.inference import TypedGraph
from onnxprune.layers.find import find, leaves
from onnxprune.layers.influence import Gains, Score, influences, norms
from onnxprune.layers.layer import Layer
from onnxprune.layers.residual import MOVES
from onnxprune.linear import KINDS as PRODUCTS

BITES = 4  # times that all layers are measured again on the way to a number of drops
AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class Chosen:
    """The layers to drop in the order of the graph, and what was found of all that were compared, by name."""

    layers: tuple[Layer, ...] = ()
    scores: Mapping[str, Score] = field(default_factory=dict)
    by_norm: bool = False
    told: str = ""


def check_wanted(wanted: Sequence[str]) -> None:
    """InputError if a number or a word is mixed with anything else."""
    alone = [w for w in wanted if w in (AUTO, NONE) or w.lstrip("-").isdigit()]
    if alone and len(wanted) > 1:
        raise InputError(f"drop_layers takes a number, {AUTO}, {NONE}, or patterns of names; got {', '.join(wanted)}")
    if alone and alone[0].startswith("-"):
        raise InputError(f"drop_layers must be at least 0, got {alone[0]}")


def choose(
    typed: TypedGraph, wanted: Sequence[str], calibration: Calibration | None = None, filled: bool = False
) -> Chosen:
    """The layers that `wanted` names. `filled`: what a branch adds on average will be made up for. InputError for a
    pattern without match, or more layers than there are.
    """
    check_wanted(wanted)
    if not wanted or wanted[0] in (NONE, "0"):
        return Chosen()
    found = find(typed)
    if wanted[0].isdigit():
        return least(typed, found, int(wanted[0]), calibration, filled)
    picked = {x.name for w in wanted for x in _matching(found, w)}
    return Chosen(tuple(x for x in found if x.name in picked))


def _matching(found: Sequence[Layer], pattern: str) -> list[Layer]:
    """Layers of a kind, or by name; norms go with their branch where their own name is given."""
    if pattern.startswith("kind:"):
        made = [x for x in found if fnmatchcase(x.kind, pattern[5:]) and not x.variant]
    else:
        made = [x for x in found if fnmatchcase(x.name, pattern) or x.name == pattern]
    if not made:
        raise InputError(f"pattern {pattern!r} matches no layer: see `onnxprune inspect` for their names")
    return made


def ways(found: Sequence[Layer]) -> list[list[Layer]]:
    """Layers that hold no other, each with its variants: of these one may go."""
    return [[x, *(v for v in found if v.variant == x.name)] for x in leaves(found)]


def least(
    typed: TypedGraph, found: Sequence[Layer], count: int, calibration: Calibration | None, filled: bool
) -> Chosen:
    """The `count` least important layers."""
    pool = ways(found)
    if count > len(pool):
        raise InputError(f"{count} layers cannot be dropped: the model has {len(pool)} (see `onnxprune inspect`)")
    if calibration is None:
        sizes = norms(typed, [each[-1] for each in pool])
        names = sorted(sizes, key=lambda n: sizes[n])[:count]
        return Chosen(tuple(x for x in found if x.name in names), by_norm=True)
    measured = Measured(calibration, pool, filled)
    off: list[Layer] = []
    while len(off) < count:
        off += measured.cheapest(off)[: min(max(1, count // BITES), count - len(off))]
    return Chosen(tuple(x for x in found if x in off), measured.scores)


def silent(typed: TypedGraph) -> Chosen:
    """Branches that add nothing, whatever the input, since what multiplies last is zero."""
    graph = typed.graph
    sums = [i for i, wires in enumerate(graph.wires) if wires.operator == "Add"]
    zero = {(i, j) for i in sums for j, name in enumerate(graph.wires[i].inputs) if _is_zero(graph, name)}
    if not zero:
        return Chosen()
    return Chosen(tuple(x for x in find(typed) if (x.node, x.operand) in zero))


def _is_zero(graph: Graph, name: str) -> bool:
    """Whether a tensor is zero whatever the input: a product with zero weights and bias, or what is made of such."""
    if name in graph.constants:
        return graph.constants[name].data_type in FLOATS and not graph.array(name).any()
    i = graph.producer.get(name)
    if i is None:
        return False
    operator, inputs = graph.wires[i].operator, graph.wires[i].inputs
    if operator in PRODUCTS:  # of activation and weight, with a bias or without
        return all(n in graph.constants and _is_zero(graph, n) for n in inputs[1:] if n)
    if operator == "Add":
        return all(_is_zero(graph, n) for n in inputs)
    return operator in MOVES and _is_zero(graph, inputs[0])


class Measured:
    """Candidates with their scores, and errors of sets of them."""

    def __init__(self, calibration: Calibration, pool: Sequence[Sequence[Layer]], filled: bool) -> None:
        self.pool = pool
        listed = list(chain(*pool))
        seen = influences(calibration, listed)
        fills = {n: f.mean for n, f in seen.items() if filled and f.layer.is_branch and f.positions}
        self.gains = Gains(calibration, listed, fills)
        self.errors = {x.name: self.gains.error([x.name]) for x in listed}
        self.scores = {n: replace(f.score, error=self.errors[n]) for n, f in seen.items()}

    def cheapest(self, off: Sequence[Layer]) -> list[Layer]:
        """What may go after `off`, the best way for each layer, the one whose loss costs least first."""
        gone = {x.variant or x.name for x in off}
        best: list[tuple[float, int, Layer]] = []
        for k, each in enumerate(self.pool):
            if each[0].name not in gone:
                best.append(min(((self.error([*off, x]), k, x) for x in each), key=lambda b: b[:2]))
        return [x for _, _, x in sorted(best, key=lambda b: b[:2])]

    def error(self, off: Sequence[Layer]) -> float:
        """Relative squared error of the outputs without some layers."""
        return self.errors[off[0].name] if len(off) == 1 else self.gains.error([x.name for x in off])
