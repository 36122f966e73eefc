"""Input sizes: which ones to try where axes are free, and which ones a model runs at.

    first    sizes that the model runs at; shapes and numbers are those of a run at these sizes
    second   other sizes that it runs at, with as many axes as possible of another size: what differs is dynamic

A table says what is tried, the most usual sizes first; odd primes, since shared factors may align by accident. Files
leave axes free that are not: one sample at a time, images of multiples of 32, masks as long as the past and the present
together. So sizes are found by running. The second sizes are much larger, for what a network that halves its input six
times makes of 11 and of 13 is the same; those of signals far larger, as one frame stands for hundreds of samples. Where
they do not fit, each free axis is moved alone, and what moves alone is tried together; an axis that fits one size only
counts as static.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from onnx import TypeProto

from onnxprune.errors import InputError
from onnxprune.feeds import Binding, Shape, foreign_operators, random_feeds
from onnxprune.graph import FLOATS, Graph
from onnxprune.sessions import program, session

# Sizes tried for free axes, two bindings each
BATCH_SIZES = ((2, 3), (1, 1))
LENGTH_SIZES = (
    (11, 13),
    (16, 24),
    (32, 48),
    (64, 80),
    (128, 160),
    (256, 288),
    (512, 544),
    (8, 12),
    (10, 14),
    (20, 28),
    (7, 9),
    (5, 6),
    (100, 120),
    (1600, 1920),
    (16000, 19200),
)
IMAGE_SIZES = ((64, 96), (48, 64), (32, 48), (28, 28), (224, 256), (320, 384), (640, 704))  # large ones cost most
OWN_SIZES = 16  # of a model that are tried
NOT_TELLING = 5  # sizes at which a model runs, but gives no numbers, before the first of them is taken
RELATED = 4  # sizes of the table that are tried where lengths depend on each other
FAR_IMAGE = (96, 32)  # how much longer an axis is at the second sizes, where the model runs with that
FAR_LENGTH = (160, 18)
FAR_SIGNAL = (16000, 1600)
NEARER = (2, 4, 9, 100, 900)  # what share of the way to the second sizes `nearer` goes, down to FAR_LENGTH
LARGE, GROWTH = 2**20, 8  # entries of all inputs, and times those at the first sizes: beyond both, sizes are too far
CHOICES = 4  # sizes of an axis: the first, the second, two that are far
STEPS = (32, 8, 2, 1)  # by which an axis is made longer, if it cannot be half as long again or twice; else it is halved
ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
}
Sizes = dict[str, tuple[int, ...]]  # by symbol: the first, the second of the table, and those that are FAR
Runs = Callable[[Binding], bool]


@dataclass(frozen=True)
class FreeAxis:
    """A free axis of an input. Axes of one `symbol` have one size; `kind` is what it is by its place (`_kind`)."""

    symbol: str
    kind: str


def running_shapes(graph: Graph, seed: int, sizes: Mapping[str, int] | None = None) -> dict[str, Shape]:
    """Input shapes at which ONNX Runtime runs the model, free axes of `sizes` (`axis_sizes`) as given; InputError with
    its message if none of those tried does.
    """
    return dict(_first(graph, _Trial(graph, seed), sizes or {})[0].shapes)


def running_pair(graph: Graph, seed: int, known: Mapping[str, Shape] | None = None) -> tuple[Binding, Binding]:
    """Two bindings at which ONNX Runtime runs the model; one and the same where no free axis has another size.
    `known`: shapes of data, which are the first. InputError as `running_shapes`.
    """
    runs = _Trial(graph, seed)
    first, near, *far = next(_options(graph, known)) if known else _first(graph, runs, {})
    others = [b for b in (*far, near) if b.shapes != first.shapes and not _is_costly(b, first)]
    return first, next(filter(runs, others), None) or _moved(graph, first, runs)


def _is_costly(second: Binding, first: Binding) -> bool:
    """Whether a run at the second sizes would cost far more than one at the first, as with volumes (N, C, D, H, W)."""
    entries = _entries(second)
    return entries > LARGE and entries > GROWTH * _entries(first)


def _entries(binding: Binding) -> int:
    """Entries of all inputs."""
    return sum(map(math.prod, binding.shapes.values()))


def pair_if_it_runs(graph: Graph) -> tuple[Binding, Binding] | None:
    """As `running_pair`; None for a model that ONNX Runtime does not run, which can only be typed."""
    try:
        return None if foreign_operators(graph) else running_pair(graph, 0)
    except InputError:
        return None


def nearer(graph: Graph, first: Binding, second: Binding) -> Iterator[Binding]:
    """Sizes that differ from the first wherever the second do, less and less."""
    a, b = _read(graph, first), _read(graph, second)
    for share in NEARER:
        yield _bind(graph, {s: n + -(-(b[s] - n) // share) for s, n in a.items()})


def axis_sizes(graph: Graph, shapes: Mapping[str, Shape], batch: int | None = None) -> dict[str, int]:
    """Sizes of free axes, by symbol, for inputs of these shapes and a first axis of `batch` where it is free in the
    others. InputError where the model does not take them.
    """
    inputs = {v.name: v.type.tensor_type.shape.dim for v in graph.inputs}
    found: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            raise InputError(f"the model has no input {name!r}: it has {', '.join(inputs)}")
        want = [d.dim_value or d.dim_param or "?" for d in inputs[name]]
        if len(shape) != len(want) or any(isinstance(w, int) and w != n for w, n in zip(want, shape, strict=True)):
            raise InputError(f"input {name!r} cannot have shape {list(shape)}: the model wants {want}")
        for axis, (dim, n) in enumerate(zip(inputs[name], shape, strict=True)):
            if not dim.dim_value and found.setdefault(_symbol(name, axis, dim), n) != n:
                raise InputError(f"axis {dim.dim_param!r} is given two sizes: {found[dim.dim_param]} and {n}")
    if batch is None:
        return found
    free = batched_inputs(graph)
    if not free:
        raise InputError(f"no input of the model has a free first axis that could be a batch of {batch}")
    return {_symbol(n, 0, inputs[n][0]): batch for n in free} | found


def batched_inputs(graph: Graph) -> list[str]:
    """Inputs whose first axis is free."""
    dims = {v.name: v.type.tensor_type.shape.dim for v in graph.inputs}
    return [n for n, d in dims.items() if d and not d[0].dim_value]


class _Trial:
    """Whether a model runs at a binding; its session is made once, and what failed is not tried again. `message`: of
    the first run that failed; `telling`: whether all that the last run gave were numbers, and some.
    """

    def __init__(self, graph: Graph, seed: int) -> None:
        self.graph, self.seed, self.message, self.telling = graph, seed, "", True
        self.failed: list[Mapping[str, Shape]] = []
        try:
            self.session = session(program(graph))
        except Exception as error:
            raise InputError(f"ONNX Runtime does not load the model as it is: {error}") from error

    def __call__(self, binding: Binding) -> bool:
        if binding.shapes in self.failed:
            return False
        try:
            made = self.session.run(None, random_feeds(self.graph, binding, self.seed))
        except Exception as error:  # these sizes do not fit; the next may
            self.failed.append(binding.shapes)
            self.message = self.message or str(error)
            return False
        floats = [a for a in made if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
        self.telling = all(a.size and np.isfinite(a).all() for a in floats)
        return True


def _first(graph: Graph, runs: _Trial, sizes: Mapping[str, int]) -> tuple[Binding, ...]:
    """The first sizes whose outputs tell something, else the first that run at all: a variance of one entry is 0."""
    ran: list[tuple[Binding, ...]] = []
    for options in _options(graph, {}, sizes):
        if runs(options[0]):
            ran.append(options)
            if runs.telling or len(ran) == NOT_TELLING:
                return options if runs.telling else ran[0]
    if not ran:
        raise InputError(f"ONNX Runtime does not run the model as it is (give inputs with data): {runs.message}")
    return ran[0]


def _moved(graph: Graph, first: Binding, runs: Runs) -> Binding:
    """Sizes that differ from `first` in the axes that can be moved: all that can be moved alone, or as many of them as
    go together.
    """
    sizes, symbols = _read(graph, first), dict.fromkeys(axis.symbol for axis in free_axes(graph))
    alone = {s: n for s in symbols if (n := _step(graph, sizes, s, runs))}
    together: dict[str, int] = {}
    for symbol, size in alone.items():
        if not together or runs(_bind(graph, sizes | together | {symbol: size})):
            together[symbol] = size
    return _bind(graph, sizes | together)


def _step(graph: Graph, sizes: Mapping[str, int], symbol: str, runs: Runs) -> int:
    """Another size of one axis with which the model runs, 0 if there is none."""
    n = sizes[symbol]
    tried = [m for m in (n + n // 2, 2 * n, *(n + k for k in STEPS), n // 2 + 1) if m != n]
    return next((m for m in tried if runs(_bind(graph, {**sizes, symbol: m}))), 0)


# candidates
def bindings(graph: Graph) -> Iterator[tuple[Binding, Binding]]:
    """Pairs of bindings to try, the most usual sizes first. Axes with one name get one size."""
    seen: list[object] = []
    for first, second, *_ in _options(graph):
        if (shapes := (first.shapes, second.shapes)) not in seen:
            seen.append(shapes)
            yield first, second


def _options(
    graph: Graph, known: Mapping[str, Shape] | None = None, given: Mapping[str, int] | None = None
) -> Iterator[tuple[Binding, ...]]:
    """Bindings to try: a first one and what may be the second. Sizes by symbol that are `given` are kept; inputs of
    `known` shapes have these at the first binding.
    """
    for sizes in _candidates(graph):
        sizes |= {symbol: (n,) * CHOICES for symbol, n in (given or {}).items()}
        options = [_bind(graph, {s: n[k] for s, n in sizes.items()}) for k in range(CHOICES)]
        yield tuple(_shifted(known, options[0], b) for b in options) if known else tuple(options)


def _shifted(known: Mapping[str, Shape], a: Binding, b: Binding) -> Binding:
    """The known shapes with what differs between two bindings added."""
    pairs = {n: (known.get(n, s), s, b.shapes[n]) for n, s in a.shapes.items()}
    return Binding({n: tuple(m + y - x for m, x, y in zip(*three, strict=False)) for n, three in pairs.items()})


def _candidates(graph: Graph) -> Iterator[Sizes]:
    """Sizes by symbol: all axes of a kind alike, from the table; near its start also with one length that is the sum of
    the others, and with a past of no length; at its end with lengths that constants have. With several samples, then
    with one.
    """
    kinds = _kinds(free_axes(graph))
    lengths = [s for s, k in kinds.items() if k in ("length", "past")]
    tries = [*LENGTH_SIZES, *((n, n) for n in _own_sizes(graph)), (1, 1)] if kinds else LENGTH_SIZES[:1]
    for batch, (k, pair) in product(BATCH_SIZES, enumerate(tries)):
        length = _far(pair, FAR_LENGTH)
        table = dict.fromkeys(("length", "past", "state"), length)
        table |= {"batch": _far(batch, ()), "signal": _far(pair, FAR_SIGNAL)}
        table["vector"] = length if k else table["batch"]
        table["image"] = _far(IMAGE_SIZES[min(k, len(IMAGE_SIZES) - 1)], FAR_IMAGE)
        yield (plain := {symbol: table[kind] for symbol, kind in kinds.items()})
        if "state" in kinds.values():
            yield plain | {s: table["batch"] for s, kind in kinds.items() if kind == "state"}
        for total in lengths if len(lengths) > 2 and k < RELATED else ():
            others = [plain[s] for s in lengths if s != total]
            yield plain | {total: tuple(map(sum, zip(*others, strict=True)))}
        if "past" in kinds.values() and k < RELATED:
            yield plain | {s: (0,) * CHOICES for s, kind in kinds.items() if kind == "past"}


def _far(pair: tuple[int, int], far: Sequence[int]) -> tuple[int, ...]:
    """First and second size, and sizes further away, the second again where there are none."""
    first, second = pair
    more = [first + step if first != second else first for step in far]
    return (first, second, *more, *[second] * (CHOICES - 2 - len(more)))


def _own_sizes(graph: Graph) -> list[int]:
    """Lengths that constants have before their last axis: tables of positions, masks."""
    sizes = {n for t in graph.constants.values() for n in t.dims[:-1] if len(t.dims) > 1 and n > 1}
    return sorted(sizes)[:OWN_SIZES]


def _kinds(free: Sequence[FreeAxis]) -> dict[str, str]:
    """The kind of each symbol: a batch if it is one anywhere; signals are lengths where there are other lengths, as
    those of tokens beside a mask of floats.
    """
    kinds: dict[str, str] = {}
    for axis in free:
        if axis.kind == "batch" or kinds.get(axis.symbol, "vector") in ("vector", "signal"):
            kinds[axis.symbol] = axis.kind
    beside = {"length", "past"} & set(kinds.values())
    return {symbol: "length" if beside and kind == "signal" else kind for symbol, kind in kinds.items()}


# axes
def free_axes(graph: Graph) -> list[FreeAxis]:
    """The free axes of all inputs, without those whose name is a sum or the like of others."""
    found = [
        FreeAxis(_symbol(v.name, k, d), _kind(v.type.tensor_type, k))
        for v in graph.inputs
        for k, d in enumerate(v.type.tensor_type.shape.dim)
        if d.dim_value <= 0
    ]
    names = {axis.symbol: 1 for axis in found}
    return [axis for axis in found if axis.symbol.isidentifier() or _computed(axis.symbol, names) is None]


def _symbol(name: str, axis: int, dim: Any) -> str:
    """What names a free axis of an input: its symbol, else the input and its place."""
    return _given_name(dim) or f"{name}.{axis}"


def _given_name(dim: Any) -> str:
    """The symbol of an axis, "" where it is a stand-in that axes of any size share: `?`, `-1`, `None`."""
    symbol: str = dim.dim_param
    return symbol if symbol != "None" and any(map(str.isalpha, symbol)) else ""


def _kind(kind: TypeProto.Tensor, axis: int) -> str:
    """What a free axis is by its place: of (N, ...), (L,), (N, L, C), (N, C, H, W), a signal of floats (N, L) or
    (N, 1, L), keys and values that are kept (N, heads, P, head size), or a state (layers, ?, hidden) whose nameless
    axis may be the batch.
    """
    dims = list(kind.shape.dim)
    if axis == 0:
        return "vector" if len(dims) == 1 else "batch"
    inner = [k for k in range(1, len(dims)) if dims[k].dim_value <= 0]
    if len(dims) >= 4:
        return "past" if inner == [axis] and axis < len(dims) - 1 else "image"
    if kind.elem_type in FLOATS and axis == len(dims) - 1 and all(d.dim_value == 1 for d in dims[1:-1]):
        return "signal"
    return "state" if dims[0].dim_value > 0 and not _given_name(dims[axis]) else "length"


def _bind(graph: Graph, sizes: Mapping[str, int]) -> Binding:
    """Shapes of all inputs for sizes by symbol."""
    shapes = {}
    for value in graph.inputs:
        dims = value.type.tensor_type.shape.dim
        names = [_symbol(value.name, k, d) for k, d in enumerate(dims)]
        shapes[value.name] = tuple(
            d.dim_value if d.dim_value > 0 else sizes.get(n) or _computed(n, sizes) or 0
            for n, d in zip(names, dims, strict=True)
        )
    return Binding(shapes)


def _read(graph: Graph, binding: Binding) -> dict[str, int]:
    """Sizes by symbol at a binding."""
    found: dict[str, int] = {}
    for value in graph.inputs:
        for k, (dim, n) in enumerate(zip(value.type.tensor_type.shape.dim, binding.shapes[value.name], strict=False)):
            if dim.dim_value <= 0:
                found.setdefault(_symbol(value.name, k, dim), n)
    return found


def _computed(text: str, sizes: Mapping[str, int]) -> int | None:
    """The value of a name like `past_length + 1`, None if it is no arithmetic of known sizes."""
    try:
        return _value(ast.parse(text.strip(), mode="eval").body, sizes)
    except (SyntaxError, KeyError, ZeroDivisionError, ValueError):
        return None


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return sizes[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        made: int = ARITHMETIC[type(node.op)](_value(node.left, sizes), _value(node.right, sizes))
        return made
    raise ValueError("not arithmetic")
