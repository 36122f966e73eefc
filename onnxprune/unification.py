"""Which axes are the same, and so which of their units must stay or go together.

`Space.unify(a, b)` states that two axes are the same. A Dim meets a Dim by union; a Dim meets a larger expression by
becoming it everywhere at once; Sums align at their boundaries (`split`), Prods at their factors (`factor`). What does
not align is frozen, which is always sound. Sizes never change, so a Dim can never be substituted into itself. Knows
nothing of ONNX, as `dims` does.
"""

from __future__ import annotations

import math
from dataclasses import replace

from onnxprune.dims import (
    ONE,
    Dim,
    Expr,
    Prod,
    Reason,
    Sum,
    atoms,
    frozen_reason,
    is_frozen,
    product,
    resolve,
    sizes,
    total,
)

MAX_UNROLL = 64  # a Prod whose inner factor a Sum cuts is unrolled if its outer factor is this long or less


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
