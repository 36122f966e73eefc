"""Random graphs against the masked original: whatever inference leaves free can be cut, in any way.

A graph grows from a few dense layers over x (N, 6) by random moves, products and reductions; batch N stays first and
dynamic. Every tensor that nothing reads is summed with random weights into an output (N,), so that all its axes may go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import onnx
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.common import check_cut, plans, plant, typed_model
from tests.test_lossless import check_lossless

MAX_ELEMENTS = 400  # per sample
OPSET = 18
SEEDS = st.integers(0, 1 << 30)


@dataclass
class Builder:
    """A graph under construction; `shapes` are those of a sample, without the batch axis."""

    rng: Random
    nodes: list[NodeProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def op(self, kind: str, inputs: Sequence[str], shape: tuple[int, ...], **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        self.shapes[name] = shape
        return name

    def const(self, array: Any, kind: Any = np.float32) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, kind), name))
        return name

    def weight(self, *shape: int) -> str:
        noise = np.random.default_rng(self.rng.randrange(1 << 30)).standard_normal(shape)
        return self.const(noise / math.sqrt(max(shape[0], 1)))

    def ints(self, *values: int) -> str:
        return self.const(values, np.int64)

    def pick(self, fits: Callable[[tuple[int, ...]], bool] = lambda shape: True) -> str | None:
        found = [n for n, s in self.shapes.items() if fits(s) and math.prod(s) <= MAX_ELEMENTS]
        return self.rng.choice(found) if found else None

    def axis(self, name: str) -> int:
        """A random axis of a sample, 0-based; axis k of a sample is axis k + 1 of the tensor."""
        return self.rng.randrange(len(self.shapes[name]))


def replaced(shape: tuple[int, ...], at: int, *sizes: int) -> tuple[int, ...]:
    return (*shape[:at], *sizes, *shape[at + 1 :])


def dense(b: Builder, t: str) -> None:
    size = b.rng.choice((2, 3, 4, 6, 8))
    b.op("MatMul", [t, b.weight(b.shapes[t][-1], size)], replaced(b.shapes[t], len(b.shapes[t]) - 1, size))


def unary(b: Builder, t: str) -> None:
    b.op(b.rng.choice(("Relu", "Tanh", "Sigmoid", "Neg")), [t], b.shapes[t])


def binary(b: Builder, t: str) -> None:
    other = b.pick(lambda s: s == b.shapes[t]) or t
    b.op(b.rng.choice(("Add", "Mul", "Sub", "Max")), [t, other], b.shapes[t])


def bias(b: Builder, t: str) -> None:
    b.op(b.rng.choice(("Add", "Mul")), [t, b.weight(*b.shapes[t][b.axis(t) :])], b.shapes[t])


def concat(b: Builder, t: str) -> None:
    at, shape = b.axis(t), b.shapes[t]
    other = b.pick(lambda s: len(s) == len(shape) and replaced(s, at) == replaced(shape, at)) or t
    b.op("Concat", [t, other], replaced(shape, at, shape[at] + b.shapes[other][at]), axis=at + 1)


def split(b: Builder, t: str) -> None:
    at, shape = b.axis(t), b.shapes[t]
    cut = b.rng.randint(1, max(1, shape[at] - 1))
    if shape[at] > 1:
        b.op("Slice", [t, b.ints(0), b.ints(cut), b.ints(at + 1)], replaced(shape, at, cut))
        b.op(
            "Slice",
            [t, b.ints(cut - shape[at]), b.ints(1 << 40), b.ints(-len(shape) + at)],
            replaced(shape, at, shape[at] - cut),
        )


def split_node(b: Builder, t: str) -> None:
    at, shape = b.axis(t), b.shapes[t]
    if shape[at] > 2:
        first = b.op("Split", [t], replaced(shape, at, -(-shape[at] // 2)), axis=at + 1, num_outputs=2)
        b.nodes[-1].output.append(f"{first}b")
        b.shapes[f"{first}b"] = replaced(shape, at, shape[at] // 2)


def transpose(b: Builder, t: str) -> None:
    perm = list(range(len(b.shapes[t])))
    b.rng.shuffle(perm)
    b.op("Transpose", [t], tuple(b.shapes[t][p] for p in perm), perm=[0, *(p + 1 for p in perm)])


def regroup(b: Builder, t: str) -> None:
    """Split an axis in two, or join two."""
    at, shape = b.axis(t), b.shapes[t]
    divisors = [n for n in range(2, shape[at]) if shape[at] % n == 0]
    if divisors and len(shape) < 4 and b.rng.random() < 0.6:
        inner = b.rng.choice(divisors)
        shape = replaced(shape, at, shape[at] // inner, inner)
    elif at + 1 < len(shape):
        shape = (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])
    b.op("Reshape", [t, b.ints(0, *shape) if b.rng.random() < 0.5 else b.ints(-1, *shape)], shape)


def reduce(b: Builder, t: str) -> None:
    at, shape = b.axis(t), b.shapes[t]
    if len(shape) > 1:
        keepdims = b.rng.random() < 0.5
        kind = b.rng.choice(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2"))
        b.op(kind, [t, b.ints(at + 1)], replaced(shape, at, *[1] * keepdims), keepdims=int(keepdims))


def normalise(b: Builder, t: str) -> None:
    size = b.shapes[t][-1]
    if size > 2:
        b.op("LayerNormalization", [t, b.weight(size), b.weight(size)], b.shapes[t], epsilon=0.1)


def softmax(b: Builder, t: str) -> None:
    b.op("Softmax", [t], b.shapes[t], axis=b.axis(t) + 1)


def take(b: Builder, t: str) -> None:
    """A Gather of two runs in the other order, with an overlap at times."""
    at, shape = b.axis(t), b.shapes[t]
    cut = b.rng.randrange(shape[at])
    index = [*range(cut, shape[at]), *range(min(shape[at], cut + b.rng.choice((0, 0, 1))))]
    b.op("Gather", [t, b.ints(*index)], replaced(shape, at, len(index)), axis=at + 1)


def pad(b: Builder, t: str) -> None:
    at, shape = b.axis(t), b.shapes[t]
    before, after = b.rng.choice(((1, 0), (0, 2), (1, 1)))
    b.op(
        "Pad", [t, b.ints(before, after), b.const(0.5), b.ints(at + 1)], replaced(shape, at, before + shape[at] + after)
    )


def tile(b: Builder, t: str) -> None:
    at, shape = b.axis(t), b.shapes[t]
    repeats = [2 if k == at else 1 for k in range(len(shape))]
    b.op("Tile", [t, b.ints(1, *repeats)], replaced(shape, at, 2 * shape[at]))


def grouped_conv(b: Builder, t: str) -> None:
    """Conv over (N, C, L), in groups where C allows it."""
    shape = b.shapes[t]
    if len(shape) == 2 and shape[1] > 1:
        groups = b.rng.choice([g for g in (1, 2, 4, shape[0]) if shape[0] % g == 0])
        out = groups * b.rng.choice((1, 2))
        weight = b.weight(out, shape[0] // groups, 2)
        b.op("Conv", [t, weight, b.weight(out)], (out, shape[1] - 1), group=groups)


def product(b: Builder, t: str) -> None:
    """Data times data, over the last axis of both."""
    shape = b.shapes[t]
    other = b.pick(lambda s: len(s) == len(shape) and s[:-2] == shape[:-2] and s[-1] == shape[-1])
    if len(shape) > 1 and other:
        perm = [*range(len(shape) - 1), len(shape), len(shape) - 1]
        turned = b.op("Transpose", [other], (*shape[:-2], shape[-1], b.shapes[other][-2]), perm=perm)
        b.op("MatMul", [t, turned], (*shape[:-1], b.shapes[other][-2]))


MOVES = (
    dense, dense, unary, binary, binary, bias, concat, concat, split, split_node, transpose, regroup, regroup, reduce,
        normalise,
    softmax, take, pad, tile, grouped_conv, product, product,
)  # fmt: skip


def random_model(rng: Random) -> ModelProto:
    b = Builder(rng)
    for _ in range(rng.randint(1, 3)):
        b.op("MatMul", ["x", b.weight(6, size := rng.choice((4, 6, 8, 12)))], (size,))
    for _ in range(rng.randint(2, 12)):
        if name := b.pick(lambda shape: math.prod(shape) > 1):
            rng.choice(MOVES)(b, name)
    used = {n for node in b.nodes for n in node.input}
    ends = [n for n in b.shapes if n not in used]
    for name in ends:
        shape = b.shapes[name]
        weighed = b.op("Mul", [name, b.weight(*shape)], shape)
        b.op("ReduceSum", [weighed, b.ints(*range(1, len(shape) + 1))], (), keepdims=0)
    outputs = [node.output[0] for node in b.nodes if node.op_type == "ReduceSum" and b.shapes[node.output[0]] == ()]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        b.nodes,
        "random",
        [info("x", TensorProto.FLOAT, ["N", 6])],
        [info(n, TensorProto.FLOAT, ["N"]) for n in outputs],
        b.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


@example(39423)  # ONNX Runtime optimises its masked original into one that does not run
@given(SEEDS)
def test_what_is_free_can_be_cut(seed: int) -> None:
    model = random_model(Random(seed))
    onnx.checker.check_model(model)
    typed = typed_model(model)
    for masks in plans(typed, seed):
        check_cut(typed, masks)


@given(SEEDS)
def test_lossless_changes_nothing(seed: int) -> None:
    rng = Random(seed)
    check_lossless(plant(random_model(rng), rng))
