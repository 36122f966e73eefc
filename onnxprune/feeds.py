"""What a model is fed with: concrete input shapes to try, and random inputs of these shapes.

Symbolic axes get sizes from short tables, the most usual first, until the model can be typed or run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxprune.errors import InputError
from onnxprune.graph import Graph, attributes, operator
from onnxprune.sessions import Feeds, program, session

Shape = tuple[int, ...]
MAX_INPUT_ELEMENTS = 2**26  # made up at random: half a gigabyte while it is drawn
KNOWN_DOMAINS = frozenset(
    ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc", "ai.onnx.preview")
)
# Sizes tried for symbolic axes, two bindings each. Odd primes first: shared factors may align by accident.
BATCH_SIZES = (2, 3)
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
    (1, 1),
)
IMAGE_SIZES = ((64, 96), (224, 256), (320, 384), (640, 704), (32, 48), (48, 64), (28, 28))
_INDEXED = {  # operator: its inputs that are indices, and the table that they index
    "Gather": {1: 0},
    "com.microsoft.EmbedLayerNormalization": {0: 2, 1: 4, 8: 3},
    "com.microsoft.RotaryEmbedding": {1: 2},
}
_MOVES = frozenset(("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose"))


@dataclass(frozen=True)
class Binding:
    """Concrete input shapes by input name."""

    shapes: Mapping[str, Shape]


def foreign_operators(graph: Graph) -> list[str]:
    """Operators of domains that ONNX Runtime does not bring along, as `domain.Operator`; model functions are none.
    Given libraries are taken to have them: where they do not, ONNX Runtime says so.
    """
    if graph.libraries:
        return []
    functions = {(f.domain, f.name) for f in graph.shell.functions}
    found = {(n.domain, n.op_type) for n in graph.nodes if n.domain not in KNOWN_DOMAINS} - functions
    return sorted(f"{domain}.{name}" for domain, name in found)


def running_shapes(graph: Graph, seed: int, sizes: Mapping[str, int] | None = None) -> dict[str, Shape]:
    """Input shapes at which ONNX Runtime runs the model, free axes of `sizes` (`axis_sizes`) as given; InputError with
    its message if none of those tried does.
    """
    made, message = None, ""
    try:
        made = session(program(graph))
    except Exception as error:
        raise InputError(f"ONNX Runtime does not load the model as it is: {error}") from error
    for first, _ in bindings(graph, {}, sizes or {}):
        try:
            made.run(None, random_feeds(graph, first, seed))
            return dict(first.shapes)
        except Exception as error:  # these sizes do not fit; the next may
            message = message or str(error)
    raise InputError(f"ONNX Runtime does not run the model as it is (give inputs with data): {message}")


def axis_sizes(graph: Graph, shapes: Mapping[str, Shape], batch: int | None = None) -> dict[str, int]:
    """Sizes of free axes, by `_axis`, for inputs of these shapes and a first axis of `batch` where it is free in the
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
            if not dim.dim_value and found.setdefault(_axis(name, axis, dim), n) != n:
                raise InputError(f"axis {dim.dim_param!r} is given two sizes: {found[dim.dim_param]} and {n}")
    if batch is None:
        return found
    free = batched_inputs(graph)
    if not free:
        raise InputError(f"no input of the model has a free first axis that could be a batch of {batch}")
    return {_axis(n, 0, inputs[n][0]): batch for n in free} | found


def batched_inputs(graph: Graph) -> list[str]:
    """Inputs whose first axis is free."""
    dims = {v.name: v.type.tensor_type.shape.dim for v in graph.inputs}
    return [n for n, d in dims.items() if d and not d[0].dim_value]


def _axis(name: str, axis: int, dim: Any) -> str:
    """What names a free axis of an input: its symbol, else the input and its place."""
    return dim.dim_param or f"{name}.{axis}"


def bindings(
    graph: Graph, known: Mapping[str, Shape], given: Mapping[str, int] | None = None
) -> Iterator[tuple[Binding, Binding]]:
    """Pairs of bindings to try, the most usual sizes first. Axes with one name get one size; `given` are kept."""
    free = any(not d.dim_value for v in graph.inputs for d in v.type.tensor_type.shape.dim)
    attempts = max(len(LENGTH_SIZES), len(IMAGE_SIZES)) if free else 1
    for attempt, states in product(range(attempts), (False, True) if _has_states(graph) else (False,)):
        sizes = {axis: (n, n) for axis, n in (given or {}).items()}
        pair: tuple[dict[str, Shape], dict[str, Shape]] = ({}, {})
        for value in graph.inputs:
            dims = value.type.tensor_type.shape.dim
            state = states and _is_state(value)
            picked = [_pick(value.name, axis, len(dims), dim, attempt, sizes, state) for axis, dim in enumerate(dims)]
            if value.name in known:
                picked = [
                    (n, n if a == b else n + (b - a)) for n, (a, b) in zip(known[value.name], picked, strict=False)
                ]
            for k in (0, 1):
                pair[k][value.name] = tuple(p[k] for p in picked)
        yield Binding(pair[0]), Binding(pair[1])


def _has_states(graph: Graph) -> bool:
    return any(map(_is_state, graph.inputs))


def _is_state(value: onnx.ValueInfoProto) -> bool:
    """An input like (layers, ?, hidden): its nameless axis may be the batch."""
    dims = value.type.tensor_type.shape.dim
    return len(dims) > 1 and dims[0].dim_value > 0 and any(not d.dim_value and not d.dim_param for d in dims)


def _pick(
    name: str, axis: int, rank: int, dim: Any, attempt: int, sizes: dict[str, tuple[int, int]], state: bool
) -> tuple[int, int]:
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return dim.dim_value, dim.dim_value
    if axis == 0 or (state and not dim.dim_param):
        picked = BATCH_SIZES
    else:
        table = IMAGE_SIZES if rank >= 4 else LENGTH_SIZES
        picked = table[min(attempt, len(table) - 1)]
    return sizes.setdefault(_axis(name, axis, dim), picked)


def batch_size(graph: Graph, binding: Binding) -> int:
    """The traced size of a batch axis that is free and first in every input, else 1: what per-sample figures are
    divided by.
    """
    firsts = {binding.shapes[v.name][0] for v in graph.inputs if binding.shapes[v.name]}
    free = all(v.type.tensor_type.shape.dim and not v.type.tensor_type.shape.dim[0].dim_value for v in graph.inputs)
    return firsts.pop() if free and len(firsts) == 1 else 1


def random_feeds(graph: Graph, binding: Binding, seed: int = 0, size: float = 1.0) -> Feeds:
    """Seeded inputs. Floats, times `size`: standard normal for even seeds, uniform in [0, 1) for odd ones. Integers:
    below the length of the table that they index, or what the graph compares them with; else ones (zeros and ones for
    odd seeds, a one first).
    """
    rng = np.random.default_rng(seed)
    draw = rng.random if seed % 2 else rng.standard_normal
    feeds: Feeds = {}
    for value in graph.inputs:
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = binding.shapes[value.name]
        if math.prod(shape) > MAX_INPUT_ELEMENTS:
            raise InputError(f"input {value.name!r} of shape {list(shape)} is too large for random inputs: give data")
        if kind.kind in "iub":
            feeds[value.name] = _whole_numbers(graph, value.name, shape, rng, bool(seed % 2)).astype(kind)
        elif kind.kind == "O":
            feeds[value.name] = np.full(shape, "a", object)
        else:
            feeds[value.name] = np.asarray(size * draw(shape)).astype(kind)
    return feeds


def _whole_numbers(graph: Graph, name: str, shape: Shape, rng: np.random.Generator, mixed: bool) -> NDArray[Any]:
    limit, known = _whole_use(graph, name)
    if limit:
        return rng.integers(0, limit, shape)
    if known:
        return np.full(shape, known[0])
    drawn = rng.integers(0, 2, shape) if mixed else np.ones(shape, np.int64)
    if drawn.ndim:
        drawn[..., :1] = 1  # a mask that hides everything says nothing
    return np.asarray(drawn)


def _whole_use(graph: Graph, name: str) -> tuple[int, list[int]]:
    """How an integer input is used, through casts and reshapes: the length of the smallest table that it indexes (0:
    none), and the constants that it is compared with.
    """
    limit, todo, seen = 0, [name], {name}
    known: list[int] = []
    while todo:
        for i, j in graph.consumers.get(todo.pop(), []):
            node = graph.nodes[i]
            table = _INDEXED.get(operator(node), {}).get(j)
            if table is not None and node.input[table] in graph.constants:
                length = graph.constants[node.input[table]].dims[attributes(node).get("axis", 0)]
                limit = min(limit, length) if limit else length
            elif node.op_type == "Equal" and node.input[1 - j] in graph.constants:
                known += [int(v) for v in graph.array(node.input[1 - j]).reshape(-1)[:1]]
            elif node.op_type in _MOVES and j == 0:
                todo.extend(n for n in node.output if n not in seen)
                seen.update(node.output)
    return limit, known
