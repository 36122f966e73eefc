"""What a model is fed with: concrete input shapes, and random inputs of these shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from onnxprune.errors import InputError
from onnxprune.graph import Graph
from onnxprune.nodes import attributes, operator
from onnxprune.sessions import Feeds

Shape = tuple[int, ...]
MAX_INPUT_ELEMENTS = 2**26  # made up at random: half a gigabyte while it is drawn
KNOWN_DOMAINS = frozenset(
    ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc", "ai.onnx.preview")
)
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


def other_branches(graph: Graph, feeds: Feeds) -> Feeds:
    """The same inputs, but for single numbers that alone decide which branch an `If` takes: these decide otherwise."""
    changed = dict(feeds)
    for name, value in feeds.items():
        if value.size == 1 and value.dtype.kind in "iub" and _decides(graph, name):
            changed[name] = np.asarray(~value if value.dtype.kind == "b" else value + 1, value.dtype)
    return changed


def _decides(graph: Graph, name: str) -> bool:
    """Whether an input is the condition of an If, or is compared with a constant for it."""
    todo, seen = [name], {name}
    while todo:
        for i, j in graph.consumers.get(todo.pop(), []):
            node = graph.nodes[i]
            if node.op_type == "If" and j == 0:
                return True
            compared = node.op_type == "Equal" and node.input[1 - j] in graph.constants
            if compared or (node.op_type in _MOVES | {"Not"} and j == 0):
                todo.extend(n for n in node.output if n not in seen)
                seen.update(node.output)
    return False


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
