"""The algebra of axes: which units of which axes must stay or go together.

Every axis of every tensor is an expression over dims:

    Dim              n interchangeable units
    Sum(a, b, ...)   concatenation: the axis is a, then b, ...
    Prod(a, b, ...)  row-major product: the axis is a (outer) x b (inner)

`Space.unify(a, b)` states that two axes are the same. A Dim meets a Dim by union; a Dim meets a larger expression by
becoming it everywhere at once; Sums align at their boundaries (`split`), Prods at their factors (`factor`). What does
not align is frozen, which is always sound: a frozen dim keeps all of its units. Sizes never change, so a Dim can never
be substituted into itself.

A plan gives each free Dim a keep-mask; `keep` evaluates any axis expression under it (Sum: concatenate, Prod: outer
and). This module knows nothing of ONNX. Left out: `Take` (an axis permuted by a constant index) - such axes are frozen
by the rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
MAX_SIZES = 6  # parts of an axis that a reason lists
MAX_UNROLL = (
    64  # where a Sum cuts inside a Prod's inner factor, the Prod is unrolled if its outer factor is this long or less
)


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


class Space:
    """Makes dims and keeps their identities; one per typed graph, so that nothing is shared between calls or
    threads. `where` names the node that is being typed, for the reasons that are found here.
    """

    def __init__(self) -> None:
        self._count = 0
        self.where = ""

    def dim(self, size: int, frozen: Reason | None = None) -> Dim:
        """A fresh Dim."""
        self._count += 1
        return Dim(size, self._count, frozen)

    def freeze(self, expr: Expr, reason: Reason) -> None:
        """No unit of `expr` may go. The first reason given to a dim is kept."""
        if not reason.where:
            reason = replace(reason, where=self.where)
        for d in atoms(expr):
            d.frozen = d.frozen or reason

    def unify(self, a: Expr, b: Expr) -> None:
        """State that axes `a` and `b` (equal sizes) are the same: afterwards `keep(a) == keep(b)` under every plan."""
        a, b = resolve(a), resolve(b)
        if a is b:
            return
        if a.size != b.size:
            raise ValueError(f"cannot unify axes of sizes {a.size} and {b.size}")
        if a.size == 1:
            return  # a single unit never goes
        frozen = frozen_reason(a) or frozen_reason(b)
        if frozen:
            self.freeze(a, frozen)
            self.freeze(b, frozen)
        elif isinstance(a, Dim):
            a.link = b
        elif isinstance(b, Dim):
            b.link = a
        elif isinstance(a, Sum) and isinstance(b, Sum):
            self._align_parts(a, b)
        elif isinstance(a, Prod) and isinstance(b, Prod):
            self._align_factors(a, b)
        else:
            self._sum_meets_prod(*((a, b) if isinstance(a, Sum) else (b, a)))

    def split(self, expr: Expr, size: int) -> tuple[Expr, Expr]:
        """`expr` as (its first `size` units, the rest); both are live views: pruning them prunes `expr`."""
        expr = resolve(expr)
        if size <= 0:
            return Sum(()), expr
        if size >= expr.size:
            return expr, Sum(())
        if is_frozen(expr):
            return self._frozen_pair(expr, size, expr.size - size)
        if isinstance(expr, Dim):
            first, rest = self.dim(size), self.dim(expr.size - size)
            expr.link = Sum((first, rest))
            return first, rest
        if isinstance(expr, Sum):
            return self._split_sum(expr, size)
        outer, inner = expr.factors[0], Prod(expr.factors[1:])
        if size % inner.size:
            self.freeze(expr, Reason("misaligned", self.where, f"a cut at {size} in rows of {inner.size}"))
            return self._frozen_pair(expr, size, expr.size - size)
        first_rows, rest_rows = self.split(outer, size // inner.size)
        return product(first_rows, inner), product(rest_rows, inner)

    def factor(self, expr: Expr, inner: int) -> tuple[Expr, Expr]:
        """`expr` as (outer, inner) with an inner factor of `inner` units; freezes `expr` where that cannot be."""
        expr = resolve(expr)
        if inner == 1:
            return expr, ONE
        if inner == expr.size:
            return ONE, expr
        if is_frozen(expr):
            return self._frozen_pair(expr, expr.size // inner, inner)
        if isinstance(expr, Dim):
            pair = self.dim(expr.size // inner), self.dim(inner)
            expr.link = Prod(pair)
            return pair
        if isinstance(expr, Sum):
            return self._factor_sum(expr, inner)
        last, rest = expr.factors[-1], product(*expr.factors[:-1])
        if inner % last.size == 0:
            outer, mid = self.factor(rest, inner // last.size)
            return outer, product(mid, last)
        if last.size % inner == 0:
            mid, low = self.factor(last, inner)
            return product(rest, mid), low
        return self._misfactor(expr, inner)

    def _factor_sum(self, expr: Sum, inner: int) -> tuple[Expr, Expr]:
        if any(p.size % inner for p in expr.parts):
            return self._misfactor(expr, inner)
        pairs = [self.factor(p, inner) for p in expr.parts]
        for _, low in pairs[1:]:
            self.unify(pairs[0][1], low)
        # factoring one part may have changed another that shares a dim with it, hence the second look
        return total(*(outer for outer, _ in pairs)), resolve(pairs[0][1])

    def _misfactor(self, expr: Expr, inner: int) -> tuple[Expr, Expr]:
        self.freeze(expr, Reason("misaligned", self.where, f"{sizes(expr)} in rows of {inner}"))
        return self._frozen_pair(expr, expr.size // inner, inner)

    def _frozen_pair(self, expr: Expr, a: int, b: int) -> tuple[Expr, Expr]:
        reason = frozen_reason(expr)
        return self.dim(a, reason), self.dim(b, reason)

    def _split_sum(self, expr: Sum, size: int) -> tuple[Expr, Expr]:
        first: list[Expr] = []
        for i, part in enumerate(expr.parts):
            if size < part.size:
                a, b = self.split(part, size)
                return total(*first, a), total(b, *expr.parts[i + 1 :])
            first.append(part)
            size -= part.size
            if not size:
                return total(*first), total(*expr.parts[i + 1 :])
        raise AssertionError("unreachable: size is below the sum of the parts")

    def _align_parts(self, a: Expr, b: Expr) -> None:
        while a.size:
            pa, pb = _first(a), _first(b)
            n = min(pa.size, pb.size)
            (first_a, a), (first_b, b) = self.split(a, n), self.split(b, n)
            self.unify(first_a, first_b)
            a, b = resolve(a), resolve(b)

    def _align_factors(self, a: Expr, b: Expr) -> None:
        while a.size > 1:
            fa, fb = _factors(a), _factors(b)
            if min(len(fa), len(fb)) == 1:
                return self.unify(a, b)
            n = _common_inner(fa, fb)
            if n == 0:
                reason = Reason("misaligned", self.where, f"{sizes(a)} against {sizes(b)}")
                self.freeze(a, reason)
                return self.freeze(b, reason)
            (a, low_a), (b, low_b) = self.factor(a, n), self.factor(b, n)
            self.unify(low_a, low_b)
            a, b = resolve(a), resolve(b)
        return None

    def _sum_meets_prod(self, a: Sum, b: Prod) -> None:
        outer, inner = b.factors[0], product(*b.factors[1:])
        if all(p.size % inner.size == 0 for p in a.parts):
            rows, low = self.factor(a, inner.size)
            self.unify(low, inner)
            self.unify(rows, outer)
        elif outer.size <= MAX_UNROLL:
            for _ in range(outer.size - 1):  # the outer units become single, so that the Prod reads inner + inner + ...
                _, outer = self.split(outer, 1)
            self.unify(a, total(*[inner] * (b.size // inner.size)))
            self.freeze(b.factors[0], Reason("misaligned", self.where, f"{sizes(a)} against rows of {inner.size}"))
        else:
            reason = Reason("misaligned", self.where, f"{sizes(a)} against {sizes(b)}")
            self.freeze(a, reason)
            self.freeze(b, reason)


def _first(expr: Expr) -> Expr:
    return expr.parts[0] if isinstance(expr, Sum) else expr


def _factors(expr: Expr) -> tuple[Expr, ...]:
    return expr.factors if isinstance(expr, Prod) else (expr,)


def _common_inner(fa: tuple[Expr, ...], fb: tuple[Expr, ...]) -> int:
    """The size of the largest inner block that both factor lists can be cut at with the fewest new factors; 0 if there
    is none.
    """
    p, q = fa[-1].size, fb[-1].size
    if p % q == 0 or q % p == 0:
        return min(p, q)
    whole = math.prod(f.size for f in fa)
    for outer in (fa[0].size, fb[0].size):  # else try to cut the outermost factor off
        if _cuts(fa, whole // outer) and _cuts(fb, whole // outer):
            return whole // outer
    g = math.gcd(p, q)
    return g if g > 1 else 0


def _cuts(factors: tuple[Expr, ...], inner: int) -> bool:
    """Whether a factor list has, or can be given, a cut with `inner` units below it."""
    for f in reversed(factors):
        if inner % f.size == 0:
            inner //= f.size
        else:
            return f.size % inner == 0
        if inner == 1:
            return True
    return inner == 1


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
