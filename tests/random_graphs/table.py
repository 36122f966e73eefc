"""All moves, the operators that are left out with the reason, and the random graph."""

from __future__ import annotations

from random import Random

from tests.random_graphs import (
    indexing,
    microsoft,
    movement,
    pointwise,
    products,
    quantized,
    sequences,
    shrinking,
)
from tests.random_graphs.builder import MICROSOFT, REFERENCE_OPSET, SIZES, Builder
from tests.random_graphs.moves import Moves

MOVES: Moves = {
    **pointwise.TABLE,
    **movement.TABLE,
    **products.TABLE,
    **shrinking.TABLE,
    **indexing.TABLE,
    **sequences.TABLE,
    **quantized.TABLE,
    **microsoft.TABLE,
}
_NO_KERNEL = "BiasAdd BiasSplitGelu GemmFastGelu FusedMatMulActivation RelativePositionBias QLinearReduceMean"
LEFT_OUT = {f"{MICROSOFT}.{n}": "no CPU kernel, and no implementation in onnx either" for n in _NO_KERNEL.split()}
OPSETS = (8, 10, 12, 13, 17, 18, 20, 21, 22, 23, 24, 26)  # ONNX Runtime runs up to 26
REFERENCE_SHARE = 0.06  # of graphs for the operators without a kernel, which are made of these and plain ones
PLAIN = frozenset(("MatMul", "Add", "Mul", "Tanh", "Reshape", "Transpose", "Concat", "Slice", "Softmax", "ReduceSum"))


def fitting(opset: int) -> list[str]:
    """Operators that a graph of this opset is made of."""
    if opset >= REFERENCE_OPSET:
        return [n for n, m in MOVES.items() if not m.runs or n in PLAIN]
    return [n for n, m in MOVES.items() if m.runs and m.since <= opset <= m.until]


def begun(rng: Random, opset: int) -> Builder:
    """A builder with a few layers over the input."""
    b = Builder(rng, opset, rng.choice((None, None, None, 2)), rng.random() < 0.2)
    for _ in range(rng.randint(1, 3)):
        size = rng.choice(SIZES[1:])
        b.op("MatMul", [b.x, b.weight(6, size)], b.x, [size])
    return b


def random_graph(rng: Random) -> Builder:
    """A few moves, half of them among those that link tensors, half among all."""
    reference = rng.random() < REFERENCE_SHARE
    b = begun(rng, REFERENCE_OPSET if reference else rng.choice(OPSETS))
    names = fitting(b.opset)
    links = [n for n in names for _ in range(MOVES[n].links)]
    for _ in range(rng.randint(2, 9)):
        op = rng.choice(links if rng.random() < 0.45 else names)
        MOVES[op].build(b, op)
    return b


def graph_with(op: str, rng: Random) -> Builder:
    """A graph around one move."""
    move = MOVES[op]
    opsets = [v for v in OPSETS if move.since <= v <= move.until] if move.runs else [REFERENCE_OPSET]
    b = begun(rng, rng.choice(opsets))
    move.build(b, op)
    return b
