"""The algebra of axes: what an axis is made of, and what a plan keeps of it.

Every axis of every tensor is an expression over dims:

    Dim              n interchangeable units
    Sum(a, b, ...)   concatenation: the axis is a, then b, ...
    Prod(a, b, ...)  row-major product: the axis is a (outer) x b (inner)

Which axes are the same is told in `unification`, which may put a larger expression in a Dim's place (`link`); `resolve`
follows these links. A frozen dim keeps all of its units, for a `Reason`.

A plan gives each free Dim a keep-mask; `keep` evaluates any axis expression under it (Sum: concatenate, Prod: outer
and). This module knows nothing of ONNX. Left out: `Take` (an axis permuted by a constant index) - such axes are frozen
by the rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
MAX_SIZES = 6  # parts of an axis that a reason lists


@dataclass(frozen=True)
class Reason:
    """Why a dim is frozen: `code` is one of `REASONS`, `where` names the node or tensor, `detail` adds numbers."""

    code: str
    where: str = ""
    detail: str = ""

    def __str__(self) -> str:
        text = REASONS.get(self.code, self.code)
        return text + (f" ({self.detail})" if self.detail else "")


REASONS = {
    "graph-input": "its size is part of the model's inputs",
    "graph-output": "its size is part of the model's outputs",
    "dynamic": "its size changes from run to run",
    "spatial": "neighbouring positions are mixed by a window",
    "kernel": "it is the extent of a kernel",
    "index": "its index carries meaning",
    "normalised": "each unit changes the value of all others",
    "picked": "single entries are picked by number",
    "operand": "the operator's shape operand is computed at run time",
    "no-rule": "onnxprune does not know the operator",
    "barrier": "the operator does not allow it",
    "control-flow": "it enters a body of control flow",
    "misaligned": "it is grouped in two ways that do not align",
    "structure": "it is fixed by the operator",
    "gates": "it counts the gates of a recurrent layer",
    "single": "it is made of single units",
    "shape-unknown": "a shape is not known before running",
    "rule-mismatch": "the sizes met at the operator do not fit it",
    "sequence": "it is inside a sequence, optional or map value",
}


class Dim:
    """A set of `size` interchangeable units. `frozen` holds the reason why none may go, or None. Identity is
    equality.
    """

    __slots__ = ("frozen", "link", "size", "uid")

    def __init__(self, size: int, uid: int, frozen: Reason | None = None) -> None:
        self.size: int = size
        self.uid, self.frozen = uid, frozen
        self.link: Expr | None = None

    def __repr__(self) -> str:
        return f"{'!' if self.frozen else ''}d{self.uid}:{self.size}"


class Sum:
    """Concatenation of `parts`."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: tuple[Expr, ...]) -> None:
        self.parts = parts
        self.size: int = sum(p.size for p in parts)

    def __repr__(self) -> str:
        return "(" + " + ".join(map(repr, self.parts)) + ")"


class Prod:
    """Row-major product of `factors`, outermost first."""

    __slots__ = ("factors", "size")

    def __init__(self, factors: tuple[Expr, ...]) -> None:
        self.factors = factors
        self.size: int = math.prod(f.size for f in factors)

    def __repr__(self) -> str:
        return "(" + " x ".join(map(repr, self.factors)) + ")" if self.factors else "1"


Expr = Dim | Sum | Prod
ONE = Prod(())
KeepMap = Mapping[Dim, Mask]


def resolve(expr: Expr) -> Expr:
    """The expression in its present form: substitutions followed, nested Sums and Prods flattened, factors of size 1
    dropped.
    """
    if isinstance(expr, Dim):
        if expr.link is None:
            return expr
        path: list[Dim] = []
        while isinstance(expr, Dim) and expr.link is not None:
            path.append(expr)
            expr = expr.link
        expr = _normal(expr)
        for d in path:
            d.link = expr
        return expr
    return _normal(expr)


def _normal(expr: Expr) -> Expr:
    if isinstance(expr, Dim):
        return expr
    inner = children(expr)
    if len(inner) > 1 and all([isinstance(e, Dim) and e.link is None and e.size > 1 for e in inner]):
        return expr
    return total(*inner) if isinstance(expr, Sum) else product(*inner)


def children(expr: Sum | Prod) -> tuple[Expr, ...]:
    """What a Sum or a Prod is made of."""
    return expr.parts if isinstance(expr, Sum) else expr.factors


def total(*parts: Expr) -> Expr:
    """Sum in normal form; empty parts are dropped."""
    flat: list[Expr] = []
    for part in map(resolve, parts):
        flat.extend(part.parts if isinstance(part, Sum) else [part] if part.size else [])
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def product(*factors: Expr) -> Expr:
    """Product in normal form; factors of size 1 are dropped."""
    flat: list[Expr] = []
    for factor in factors:
        if factor.size != 1:
            factor = resolve(factor)
            flat.extend(factor.factors if isinstance(factor, Prod) else [factor])
    return flat[0] if len(flat) == 1 else Prod(tuple(flat)) if flat else ONE


def atoms(expr: Expr) -> list[Dim]:
    """The Dims of an expression, left to right, with repetitions."""
    expr = resolve(expr)
    return [expr] if isinstance(expr, Dim) else [d for child in children(expr) for d in atoms(child)]


def sizes(expr: Expr) -> str:
    """How an axis is grouped, for people: 12 x 64, or 32 + 32 + 64."""
    expr = resolve(expr)
    if isinstance(expr, Dim):
        return str(expr.size)
    if len(children(expr)) > MAX_SIZES:
        return f"{expr.size} in {len(children(expr))} {'parts' if isinstance(expr, Sum) else 'factors'}"
    texts = [f"({sizes(e)})" if isinstance(e, Sum) and isinstance(expr, Prod) else sizes(e) for e in children(expr)]
    return (" + " if isinstance(expr, Sum) else " x ").join(texts) or "1"


def is_frozen(expr: Expr) -> bool:
    """True if no unit of the axis can go."""
    expr = resolve(expr)
    if isinstance(expr, Dim):
        return expr.frozen is not None or expr.size == 1
    return all(map(is_frozen, children(expr)))


def frozen_reason(expr: Expr) -> Reason | None:
    """The first reason in a wholly frozen axis; None if a unit of it may go."""
    if not is_frozen(expr):
        return None
    return next((d.frozen for d in atoms(expr) if d.frozen), Reason("single"))


def keep(expr: Expr, plan: KeepMap) -> Mask:
    """The keep-mask of an axis, shape (size,), under a plan; dims that the plan does not name keep all units."""
    return spread(expr, plan, np.logical_and, True).astype(bool)


def spread(expr: Expr, units: Mapping[Dim, NDArray[Any]], combine: np.ufunc, default: Any) -> NDArray[Any]:
    """Per-unit values of dims as per-index values of an axis, shape (size,); `combine` joins the factors of a Prod."""
    expr = resolve(expr)
    if isinstance(expr, Dim):
        found = units.get(expr)
        return np.full(expr.size, default) if found is None else found
    if isinstance(expr, Sum):
        return np.concatenate([spread(p, units, combine, default) for p in expr.parts] or [np.full(0, default)])
    out = np.full(1, default)
    for i, f in enumerate(expr.factors):
        value = spread(f, units, combine, default)
        out = value if i == 0 else combine.outer(out, value).reshape(-1)
    return out


def gather(expr: Expr, values: NDArray[Any], reduce: Callable[..., NDArray[Any]]) -> dict[Dim, NDArray[Any]]:
    """Per-index values of an axis, shape (size,), as per-unit values of each of its dims: `reduce` runs over the
    indices of a unit.

    `reduce` is the `.reduce` of a ufunc (`np.add.reduce`, `np.logical_and.reduce`); repeated dims are reduced over
    their occurrences.
    """
    found: dict[Dim, list[NDArray[Any]]] = {}
    _gather(resolve(expr), values, reduce, found)
    return {d: v[0] if len(v) == 1 else reduce(np.stack(v), axis=0) for d, v in found.items()}


def _gather(
    expr: Expr, values: NDArray[Any], reduce: Callable[..., NDArray[Any]], found: dict[Dim, list[NDArray[Any]]]
) -> None:
    if isinstance(expr, Dim):
        found.setdefault(expr, []).append(values)
    elif isinstance(expr, Sum):
        bounds = np.cumsum([p.size for p in expr.parts])[:-1]
        for part, piece in zip(expr.parts, np.split(values, bounds), strict=True):
            _gather(part, piece, reduce, found)
    else:
        cube = values.reshape([f.size for f in expr.factors])
        for i, f in enumerate(expr.factors):
            others = tuple(j for j in range(cube.ndim) if j != i)
            _gather(f, reduce(cube, axis=others) if others else cube, reduce, found)


def size_under(expr: Expr, kept: Mapping[Dim, int]) -> int:
    """The size of an axis when each dim keeps `kept[dim]` units (all, where not named). Equals `keep(...).sum()`."""
    expr = resolve(expr)
    if isinstance(expr, Dim):
        return kept.get(expr, expr.size)
    if isinstance(expr, Sum):
        return sum(size_under(p, kept) for p in expr.parts)
    return math.prod(size_under(f, kept) for f in expr.factors)
