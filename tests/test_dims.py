"""The algebra of axes, by example and against the constraints that it must hold under every plan.

The oracle knows single indices only: an axis is a list of index numbers, `unify` joins them pairwise. What a random
program of splits, factors, concatenations, products and unifications said is kept as a list of statements, and every
plan must satisfy all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.dims import (
    ONE,
    REASONS,
    Dim,
    Expr,
    Mask,
    Reason,
    atoms,
    frozen_reason,
    gather,
    is_frozen,
    keep,
    product,
    resolve,
    size_under,
    spread,
    total,
)
from onnxprune.unification import Space

WHY = Reason("structure", "here")


def bits(text: str) -> Mask:
    """'1011' as a mask."""
    return np.array([c == "1" for c in text])


def shown(mask: Mask) -> str:
    return "".join("1" if m else "0" for m in mask)


# by example


def test_two_dims_become_one() -> None:
    space = Space()
    a, b = space.dim(4), space.dim(4)
    space.unify(a, b)
    assert resolve(a) is resolve(b)
    assert shown(keep(a, {atoms(b)[0]: bits("1010")})) == "1010"


def test_unequal_sizes_do_not_unify() -> None:
    space = Space()
    with pytest.raises(ValueError, match="sizes 4 and 5"):
        space.unify(space.dim(4), space.dim(5))


def test_single_units_stay_apart() -> None:
    space = Space()
    a, b = space.dim(1), space.dim(1)
    space.unify(a, b)
    assert resolve(a) is not resolve(b)
    assert is_frozen(a)


def test_dim_becomes_a_sum_everywhere() -> None:
    space = Space()
    whole, left, right = space.dim(5), space.dim(2), space.dim(3)
    other = total(whole, left)
    space.unify(whole, total(left, right))
    assert repr(resolve(other)) == "(d2:2 + d3:3 + d2:2)"


def test_dim_becomes_a_product_everywhere() -> None:
    space = Space()
    whole, outer, inner = space.dim(6), space.dim(2), space.dim(3)
    other = total(whole, outer)
    space.unify(product(outer, inner), whole)
    assert repr(resolve(other)) == "((d2:2 x d3:3) + d2:2)"
    assert shown(keep(other, {outer: bits("10"), inner: bits("011")})) == "01100010"


def test_sums_align_at_their_boundaries() -> None:
    space = Space()
    a, b = total(space.dim(2), space.dim(4)), total(space.dim(3), space.dim(3))
    space.unify(a, b)
    assert [d.size for d in atoms(a)] == [d.size for d in atoms(b)] == [2, 1, 3]


@pytest.mark.parametrize(
    ("left", "right", "factors"),
    [((4, 6), (2, 12), [2, 2, 6]), ((2, 6), (4, 3), [2, 2, 3]), ((2, 3, 4), (6, 4), [2, 3, 4])],
)
def test_products_align_at_their_factors(left: tuple[int, ...], right: tuple[int, ...], factors: list[int]) -> None:
    space = Space()
    a, b = product(*map(space.dim, left)), product(*map(space.dim, right))
    space.unify(a, b)
    assert [d.size for d in atoms(a)] == [d.size for d in atoms(b)]
    assert [d.size for d in atoms(a)] == factors and not is_frozen(a)


def test_products_that_do_not_align_freeze() -> None:
    space = Space()
    a, b = product(space.dim(2), space.dim(3)), product(space.dim(3), space.dim(2))
    space.unify(a, b)
    assert is_frozen(a) and is_frozen(b)
    reason = frozen_reason(a)
    assert reason is not None and reason.code == "misaligned"


def test_a_sum_meets_a_product() -> None:
    space = Space()
    heads, inner = space.dim(4), space.dim(3)
    parts = space.dim(6), space.dim(6)
    space.unify(total(*parts), product(heads, inner))
    assert repr(resolve(parts[0])) == "(d5:2 x d6:3)" or [d.size for d in atoms(parts[0])] == [2, 3]
    assert set(atoms(parts[0])) & set(atoms(parts[1])) == set(atoms(inner))


def test_a_sum_that_cuts_rows_unrolls_the_product() -> None:
    space = Space()
    outer, inner = space.dim(3), space.dim(4)
    parts = space.dim(2), space.dim(10)
    space.unify(total(*parts), product(outer, inner))
    assert is_frozen(outer) and not is_frozen(inner)
    assert [d.size for d in atoms(parts[1])] == [2] * 5


def test_split_gives_live_views() -> None:
    space = Space()
    whole = space.dim(5)
    first, rest = space.split(whole, 2)
    assert shown(keep(whole, {d: bits("01") for d in atoms(first)})) == "01111"
    assert space.split(rest, 0)[0].size == 0 and space.split(rest, 3)[1].size == 0


def test_split_of_a_product_cuts_whole_rows() -> None:
    space = Space()
    outer, inner = space.dim(4), space.dim(3)
    first, rest = space.split(product(outer, inner), 6)
    assert (first.size, rest.size) == (6, 6)
    assert not is_frozen(outer)
    space.split(product(outer, inner), 4)
    assert is_frozen(outer) and is_frozen(inner)


def test_factor_by_one_and_by_all() -> None:
    space = Space()
    d = space.dim(6)
    assert space.factor(d, 1) == (d, ONE)
    assert space.factor(d, 6) == (ONE, d)
    assert resolve(d) is d


def test_factor_of_a_sum_shares_the_inner_factor() -> None:
    space = Space()
    a, b = space.dim(4), space.dim(6)
    outer, inner = space.factor(total(a, b), 2)
    assert [d.size for d in atoms(outer)] == [2, 3]
    assert set(atoms(inner)) <= set(atoms(a)) & set(atoms(b))
    space = Space()
    odd = total(space.dim(3), space.dim(5))
    space.factor(odd, 2)
    assert is_frozen(odd)


def test_frozen_axes_are_not_split_or_factored() -> None:
    space = Space()
    d = space.dim(6, WHY)
    for pair in (space.split(d, 2), space.factor(d, 3)):
        assert all(is_frozen(e) and frozen_reason(e) == WHY for e in pair)
    assert resolve(d) is d


def test_frozen_spreads_and_the_first_reason_stays() -> None:
    space = Space()
    a, b = space.dim(4, WHY), space.dim(4)
    space.unify(a, b)
    space.freeze(b, Reason("spatial"))
    assert frozen_reason(b) == WHY
    assert not is_frozen(total(a, space.dim(2)))
    assert frozen_reason(total(a, space.dim(2))) is None


def test_normal_forms() -> None:
    space = Space()
    a, b = space.dim(2), space.dim(3)
    assert total(a) is a and product(a, space.dim(1)) is a and product() is ONE
    assert total(a, space.dim(0)) is a
    assert repr(total(a, total(b, a))) == "(d1:2 + d2:3 + d1:2)"
    assert repr(product(a, product(b, a))) == "(d1:2 x d2:3 x d1:2)"
    assert repr(ONE) == "1" and repr(space.dim(2, WHY)) == "!d5:2"


def test_every_reason_reads_as_a_sentence() -> None:
    assert str(Reason("picked", "n", "Slice with step 3")) == "single entries are picked by number (Slice with step 3)"
    assert all(text == text.strip().rstrip(".") for text in REASONS.values())


def test_spread_and_gather() -> None:
    space = Space()
    a, b = space.dim(2), space.dim(3)
    axis = total(product(a, b), a)
    values = {a: np.array([1.0, 2.0]), b: np.array([10.0, 20.0, 30.0])}
    assert spread(axis, values, np.add, 0.0).tolist() == [11, 21, 31, 12, 22, 32, 1, 2]
    assert spread(axis, {a: values[a]}, np.add, 0.0).tolist() == [1, 1, 1, 2, 2, 2, 1, 2]
    sums = gather(axis, np.arange(8.0), np.add.reduce)
    assert sums[a].tolist() == [0 + 1 + 2 + 6, 3 + 4 + 5 + 7] and sums[b].tolist() == [3, 5, 7]
    assert gather(b, np.arange(3.0), np.add.reduce)[b].tolist() == [0, 1, 2]


# against the oracle


@dataclass
class Program:
    """A random program over axes, and what it stated."""

    space: Space = field(default_factory=Space)
    axes: list[Expr] = field(default_factory=list)
    index: list[list[int]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    rules: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    same: nx.utils.UnionFind = field(default_factory=nx.utils.UnionFind)
    frozen: list[int] = field(default_factory=list)

    def add(self, expr: Expr, index: list[int] | None = None) -> int:
        if index is None:
            start = sum(map(len, self.index))
            index = list(range(start, start + expr.size))
        self.axes.append(expr)
        self.index.append(index)
        self.sizes.append(expr.size)
        return len(self.axes) - 1

    def split(self, a: int, size: int) -> None:
        first, rest = self.space.split(self.axes[a], size)
        parts = self.add(first, self.index[a][:size]), self.add(rest, self.index[a][size:])
        self.rules.append(("sum", (a, *parts)))

    def factor(self, a: int, inner: int) -> None:
        outer, low = self.space.factor(self.axes[a], inner)
        self.rules.append(("product", (a, self.add(outer), self.add(low))))

    def concat(self, *parts: int) -> None:
        made = self.add(total(*(self.axes[p] for p in parts)), [i for p in parts for i in self.index[p]])
        self.rules.append(("sum", (made, *parts)))

    def multiply(self, a: int, b: int) -> None:
        self.rules.append(("product", (self.add(product(self.axes[a], self.axes[b])), a, b)))

    def unify(self, a: int, b: int) -> None:
        self.space.unify(self.axes[a], self.axes[b])
        self.rules.append(("equal", (a, b)))
        for i, j in zip(self.index[a], self.index[b], strict=True):
            self.same.union(i, j)

    def freeze(self, a: int) -> None:
        self.space.freeze(self.axes[a], WHY)
        self.frozen.append(a)

    def dims(self) -> list[Dim]:
        return list(dict.fromkeys(d for e in self.axes for d in atoms(e)))


Draw = Callable[[st.SearchStrategy[int]], int]
MAX_SIZE = 96


def pick(draw: Draw, count: int) -> int:
    return draw(st.integers(0, count - 1))


def step(draw: Draw, p: Program, unit: int, products: bool) -> None:
    """One random statement; sizes and cuts are multiples of `unit`."""
    kinds = ["dim", "split", "concat", "unify", "unify"] + ["factor", "multiply", "unify", "freeze"] * products
    kind, a = kinds[pick(draw, len(kinds))], pick(draw, len(p.axes))
    size = p.sizes[a]
    if kind == "dim":
        p.add(p.space.dim(unit * draw(st.sampled_from((2, 3, 4, 6, 8, 12)))))
    elif kind == "split" and size > unit:
        p.split(a, unit * (1 + pick(draw, size // unit - 1)))
    elif kind == "factor" and size:
        divisors = [n for n in range(1, size + 1) if size % n == 0]
        p.factor(a, divisors[pick(draw, len(divisors))])
    elif kind == "concat" and size <= MAX_SIZE:
        p.concat(a, pick(draw, len(p.axes)))
    elif kind == "multiply" and size <= 12:
        small = [k for k, n in enumerate(p.sizes) if 0 < n <= 12]
        p.multiply(a, small[pick(draw, len(small))]) if size else None
    elif kind == "unify":
        fitting = [k for k, n in enumerate(p.sizes) if n == size]
        p.unify(a, fitting[pick(draw, len(fitting))])
    elif kind == "freeze" and pick(draw, 4) == 0:
        p.freeze(a)


@st.composite
def programs(draw: Draw, unit: int = 1, products: bool = True) -> Program:
    p = Program()
    for size in draw(st.lists(st.sampled_from((2, 3, 4, 6, 8, 12)), min_size=2, max_size=5)):  # type: ignore[arg-type]
        p.add(p.space.dim(unit * size))
    for _ in range(draw(st.integers(1, 14))):
        step(draw, p, unit, products)
    return p


def random_plan(p: Program, seed: int) -> dict[Dim, Mask]:
    rng = np.random.default_rng(seed)
    return {d: rng.random(d.size) < 0.5 for d in p.dims() if not d.frozen and d.size > 1}


def check(p: Program, plan: dict[Dim, Mask]) -> None:
    """Every statement of the program holds under a plan."""
    kept = [keep(e, plan) for e in p.axes]
    counts = {d: int(m.sum()) for d, m in plan.items()}
    for e, mask, size in zip(p.axes, kept, p.sizes, strict=True):
        assert resolve(e).size == mask.size == size
        assert size_under(e, counts) == mask.sum()
    for kind, (a, *rest) in p.rules:
        if kind == "equal":
            want = kept[rest[0]]
        elif kind == "sum":
            want = np.concatenate([kept[k] for k in rest])
        else:
            want = np.outer(kept[rest[0]], kept[rest[1]]).reshape(-1)
        assert np.array_equal(kept[a], want), (kind, p.axes[a], [p.axes[k] for k in rest])
    assert all(kept[a].all() for a in p.frozen)


@given(programs(), st.integers(0, 99))
def test_every_plan_satisfies_every_statement(p: Program, seed: int) -> None:
    for k in range(3):
        check(p, random_plan(p, seed + k))


@given(programs(products=False), st.integers(0, 99))
def test_sums_satisfy_every_statement(p: Program, seed: int) -> None:
    check(p, random_plan(p, seed))


@given(programs(unit=2, products=False))
def test_sums_tie_no_more_than_was_said(p: Program) -> None:
    """Without products and single units nothing freezes; indices share a unit exactly if they were unified."""
    unit_of: dict[int, set[tuple[Dim, int]]] = {}
    for e, index in zip(p.axes, p.index, strict=True):
        units = [(d, k) for d in atoms(e) for k in range(d.size)]
        for i, unit in zip(index, units, strict=True):
            unit_of.setdefault(p.same[i], set()).add(unit)
    assert not any(d.frozen for d in p.dims())
    assert all(len(units) == 1 for units in unit_of.values())
    assert len({u for units in unit_of.values() for u in units}) == len(unit_of)


@given(programs())
def test_frozen_stays_frozen(p: Program) -> None:
    """A later statement thaws nothing, and repeating all statements changes nothing."""
    before = [(is_frozen(e), list(atoms(e))) for e in p.axes]
    for kind, (a, *rest) in p.rules:
        if kind == "equal":
            p.space.unify(p.axes[a], p.axes[rest[0]])
    assert all(is_frozen(e) for e, (was, _) in zip(p.axes, before, strict=True) if was)


@given(programs(), st.integers(0, 99))
def test_gather_undoes_spread(p: Program, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for e in p.axes:
        dims = dict.fromkeys(atoms(e))
        values = {d: rng.random(d.size) for d in dims}
        single = [d for d in dims if list(atoms(e)).count(d) == 1]
        if isinstance(resolve(e), Dim) or len(single) == len(dims):
            found = gather(e, spread(e, values, np.fmin, np.inf), np.fmax.reduce) if e.size else {}
            assert all(found[d].max() <= values[d].max() for d in found)
