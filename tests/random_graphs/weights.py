"""The forms that weights come in: one row each. A form stores an array and returns the name of the float tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from tests.random_graphs.builder import Builder

Array = Any


@dataclass(frozen=True)
class Form:
    """`share`: how often it is chosen; `since`: its first opset; `rank`: of the arrays that it is for, at least;
    `inside`: whether ONNX Runtime takes it within a body (it does not find 8-bit weights there, which it fuses).
    """

    store: Callable[[Builder, Array], str]
    share: int
    since: int = 7
    rank: int = 0
    inside: bool = True


def initialiser(b: Builder, a: Array) -> str:
    return b.const(a)


def node(b: Builder, a: Array) -> str:
    return b.fixed(a)


def alias(b: Builder, a: Array) -> str:
    return b.one("Identity", b.const(a))


def transposed(b: Builder, a: Array) -> str:
    """Stored with its axes in another order."""
    perm = list(range(a.ndim))
    b.rng.shuffle(perm)
    return b.one("Transpose", b.const(np.transpose(a, np.argsort(perm))), perm=perm)


def flattened(b: Builder, a: Array) -> str:
    return b.one("Reshape", b.const(a.reshape(-1)), b.ints(*a.shape))


def half(b: Builder, a: Array) -> str:
    return b.one("Cast", b.const(a, np.float16), to=TensorProto.FLOAT)


def scaled(b: Builder, a: Array) -> str:
    """Weight normalisation: a direction times a length per entry of the first axis."""
    return b.one("Mul", b.const(a), b.const(np.ones((len(a), *[1] * (a.ndim - 1)))))


def eight_bits(b: Builder, a: Array) -> str:
    """int8 with one scale, or one per output of a product or a convolution."""
    axis = b.rng.choice((None, a.ndim - 1 if a.ndim < 3 else 0))
    others = tuple(k for k in range(a.ndim) if k != axis)
    scale = np.maximum(np.abs(a).max(axis=others if axis is not None else None), 0.01) / 127
    around = scale if axis is None else scale.reshape([-1 if k == axis else 1 for k in range(a.ndim)])
    zero = np.zeros(np.shape(scale), np.int8)
    stored = b.const(np.clip(np.round(a / around), -127, 127), np.int8)
    return b.one("DequantizeLinear", stored, b.fixed(scale), b.const(zero, np.int8), axis=axis or 0)


def thin(b: Builder, a: Array) -> str:
    """Sparse, as an initialiser or in a Constant node; half of the entries are zero."""
    a = np.where(b.noise(*a.shape) > 0, a, 0).astype(np.float32)
    at = np.flatnonzero(a) if b.rng.random() < 0.5 else np.argwhere(a)
    values, places = (numpy_helper.from_array(v, b.name("s")) for v in (a[a != 0], at.astype(np.int64)))
    made = helper.make_sparse_tensor(values, places, a.shape)
    if b.rng.random() < 0.5:
        return b.one("Constant", sparse_value=made)
    b.sparse.append(made)
    return str(values.name)


FORMS = (
    Form(initialiser, 60),
    Form(node, 8),
    Form(alias, 4),
    Form(transposed, 6, rank=2),
    Form(flattened, 4, rank=1),
    Form(half, 4),
    Form(scaled, 4, rank=1),
    Form(eight_bits, 8, since=13, rank=2, inside=False),
    Form(thin, 5, since=11, rank=1),
)
