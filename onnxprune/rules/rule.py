"""What a rule is: a small function that reads a node through `Node` and writes its signature.

The signature says (1) which axes of inputs and outputs are the same expression, (2) `reads`: over which units the
operator sums, averages or compares, (3) `edits`: which attributes and operands must be computed anew once sizes are
known. Surgery, costs, scores, the lossless analysis and the masked original are all derived from it; no other place
knows what an operator does to axes. A rule that cannot type an axis freezes that axis; one that cannot type its node
raises `Barrier`, and all that it touches is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.dims import ONE, Dim, Expr, Reason, resolve
from onnxprune.errors import Barrier
from onnxprune.feeds import Shape
from onnxprune.nodes import Wires, attributes
from onnxprune.trace import Trace
from onnxprune.unification import Space

Axes = list[Expr]


@dataclass(frozen=True)
class Read:
    """Units of `expr`, found on axis `axis` of input `input`, are combined with each other.

    how: "sum" (a contraction; `partner` is the (input, axis) that it is contracted with), "mean", "max", "min", "prod",
    "logsumexp", "norm" (a sum of powers), "range" (extrema, 0 among them) or "stats" (mean and variance: every unit
    then changes all others).
    """

    input: int
    axis: int
    expr: Expr
    how: str = "sum"
    partner: tuple[int, int] | None = None


@dataclass(frozen=True)
class Bound:
    """A position on an axis: after surgery, the number of kept units among the first `position`."""

    expr: Expr
    position: int


@dataclass(frozen=True)
class Edit:
    """Numbers to be computed anew. `target`: an attribute's name or an input's index; `entries`: an axis (its new
    size), a Bound, a constant, or None for an entry that stays. `scalar`: the attribute is one number. `drop`:
    attributes to remove with it. `when`: applies if the size of one of these axes changes (default: of any axis in
    entries).
    """

    target: str | int
    entries: tuple[Expr | Bound | float | None, ...]
    scalar: bool = False
    drop: tuple[str, ...] = ()
    when: tuple[Expr, ...] = ()


@dataclass(frozen=True)
class Renumber:
    """Input `input` lists indices into axis `expr`, in the shape of axes `shape`: removed ones are dropped, kept ones
    numbered anew.
    """

    input: int
    expr: Expr
    shape: tuple[Expr, ...]


@dataclass(frozen=True)
class Choose:
    """Attribute `target` becomes `choices[k]` when k is the only unit of `expr` that is left."""

    target: str
    expr: Expr
    choices: tuple[Any, ...]


@dataclass
class Signature:
    """What inference knows of one node. Axes are live expressions; None stands for an absent or untyped operand."""

    inputs: list[Axes | None]
    outputs: list[Axes | None]
    reads: list[Read] = field(default_factory=list)
    edits: list[Edit | Renumber | Choose] = field(default_factory=list)
    barrier: Reason | None = None
    measures: bool = False  # Shape and Size: the output tells input 0's sizes, and must go on telling the original ones


class Node:
    """A node as its rule sees it: typed inputs, concrete shapes, static operands; and the pen to write its signature
    with.
    """

    def __init__(
        self,
        proto: NodeProto,
        wires: Wires,
        index: int,
        opset: int,
        space: Space,
        facts: Trace,
        axes: list[Axes | None],
    ) -> None:
        self.proto, self.index, self.opset, self.space, self.facts = proto, index, opset, space, facts
        self.inputs, self.outputs = wires.inputs, wires.outputs  # names
        self.typed: set[int] = set()
        self._attrs: dict[str, Any] | None = None
        self.signature = Signature(axes, [None] * len(wires.outputs))

    @property
    def attrs(self) -> dict[str, Any]:
        if self._attrs is None:
            self._attrs = attributes(self.proto)
        return self._attrs

    @property
    def where(self) -> str:
        """How reasons and messages name the node."""
        name: str = self.proto.name
        return name or (self.outputs[0] if self.outputs else self.proto.op_type)

    # what is given
    def has(self, i: int) -> bool:
        return i < len(self.inputs) and self.inputs[i] != ""

    def axes(self, i: int) -> Axes:
        """Typed axes of input `i`."""
        self.typed.add(i)
        found = self.signature.inputs[i]
        if found is None:
            raise Barrier("shape-unknown", f"input {i}, {self.inputs[i]!r}")
        return found

    def shape(self, i: int) -> Shape:
        return tuple(e.size for e in self.axes(i))

    def rank(self, i: int) -> int:
        return len(self.axes(i))

    def out_shape(self, k: int = 0) -> Shape:
        shape = self.facts.shapes.get(self.outputs[k])
        if shape is None:
            raise Barrier("shape-unknown", f"output {self.outputs[k]!r}")
        return shape

    def attr(self, name: str, default: Any = None) -> Any:
        value = self.attrs.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def static(self, i: int) -> NDArray[Any] | None:
        """Value of input `i` if it is the same in every run."""
        return self.facts.static(self.inputs[i]) if self.has(i) else None

    def traced(self, i: int) -> NDArray[Any] | None:
        """Value of input `i` at the traced sizes; may differ in other runs."""
        return self.facts.values.get(self.inputs[i]) if self.has(i) else None

    def ints(self, name: str, i: int) -> list[int] | None:
        """Integers given by attribute `name` (older opsets) or by input `i`; None if absent, Barrier if known only at
        run time.
        """
        if name in self.attrs:
            return [int(v) for v in self.attrs[name]]
        if not self.has(i):
            return None
        value = self.static(i)
        if value is None:
            raise Barrier("operand", name)
        return [int(v) for v in value.reshape(-1)]

    def axis(self, default: int = 0, rank: int | None = None) -> int:
        rank = self.rank(0) if rank is None else rank
        return int(self.attr("axis", default)) % max(rank, 1)

    # what is said
    def unify(self, a: Expr, b: Expr) -> None:
        if a.size != b.size:
            raise Barrier("rule-mismatch", f"{a.size} against {b.size}")
        self.space.unify(a, b)

    def freeze(self, expr: Expr, code: str, detail: str = "") -> None:
        self.space.freeze(expr, Reason(code, self.where, detail or self.proto.op_type))

    def fresh(self, size: int) -> Expr:
        return ONE if size == 1 else self.space.dim(size)

    def fixed(self, size: int, code: str = "structure") -> Dim:
        """A new axis that cannot be pruned."""
        return self.space.dim(size, Reason(code, self.where, self.proto.op_type))

    def out(self, axes: Axes, k: int = 0) -> None:
        if k < len(self.outputs) and self.outputs[k]:
            self.signature.outputs[k] = axes

    def read(
        self, i: int, axis: int, how: str = "sum", partner: tuple[int, int] | None = None, expr: Expr | None = None
    ) -> None:
        self.signature.reads.append(Read(i, axis, self.axes(i)[axis] if expr is None else expr, how, partner))

    def edit(self, target: str | int, *entries: Expr | Bound | float | None, **options: Any) -> None:
        self.signature.edits.append(Edit(target, entries, **options))

    def renumber(self, i: int, expr: Expr, shape: Axes) -> None:
        self.signature.edits.append(Renumber(i, expr, tuple(shape)))

    def choose(self, target: str, expr: Expr, *choices: Any) -> None:
        self.signature.edits.append(Choose(target, expr, choices))

    def sized(self, i: int, axes: Sequence[Expr]) -> None:
        """Input `i` is a vector of the sizes of `axes`; entries 0 and -1 (copy, infer) stay as they are."""
        value = self.traced(i)
        if value is None:
            for e in axes:
                self.freeze(e, "operand")
        elif value.size == len(axes):
            self.edit(i, *(e if int(v) > 0 else None for e, v in zip(axes, value.reshape(-1).tolist(), strict=True)))
        else:
            raise Barrier("rule-mismatch", f"{value.size} sizes for {len(axes)} axes")

    def broadcast(self, shapes: Sequence[Axes]) -> Axes:
        """NumPy broadcasting: axes aligned at the end, equal sizes unified, size 1 repeated."""
        rank = max(map(len, shapes))
        out: Axes = []
        for k in range(rank):
            column = [s[k - rank] for s in shapes if rank - k <= len(s)]
            sizes = [e.size for e in column]
            size = 0 if 0 in sizes else max(sizes)
            if any([n != size and n != 1 for n in sizes]):
                raise Barrier("rule-mismatch", f"sizes {sizes} do not broadcast")
            first, *same = [e for e in column if e.size == size]
            for other in same:
                self.unify(first, other)
            out.append(first)
        return out


Rule = Callable[[Node], None]
Table = dict[str, Rule]


def numpy_ints(value: Sequence[int]) -> NDArray[np.int64]:
    return np.asarray(value, np.int64)


def frozen_all(node: Node, axes: Axes, code: str, detail: str = "") -> None:
    """Freeze every axis of a list."""
    for e in axes:
        node.freeze(resolve(e), code, detail)
