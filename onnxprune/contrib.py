"""Output shapes of ONNX Runtime's own operators, for which onnx has no schemas (docs/ContribOperators.md of ONNX
Runtime).

Two tables: `STANDARD` names the operator of the default domain whose shapes an operator shares; `ROWS` computes them.
Operators in neither are left to one ONNX Runtime run (`trace.complete`). Letters: N batch, S query length, T key
length, P past length, H heads, D channels of a head, I width of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from onnxprune.nodes import operator

T = TypeVar("T")
Shape = tuple[int, ...]
Made = list[tuple[Shape, int] | None]


@dataclass(frozen=True)
class Given:
    """What is known of a node's operands; absent ones have shape None."""

    attrs: dict[str, Any]
    shapes: list[Shape | None]
    types: list[int]
    values: list[NDArray[Any] | None]

    def shape(self, i: int) -> Shape:
        found = self.shapes[i]
        if found is None:
            raise ValueError(f"the shape of input {i} is not known")
        return found

    def maybe(self, i: int) -> Shape | None:
        return self.shapes[i] if i < len(self.shapes) else None

    def number(self, i: int) -> int:
        value = self.values[i]
        if value is None:
            raise ValueError(f"the value of input {i} is not known")
        return int(value.reshape(-1)[0])


def standard(node: NodeProto) -> NodeProto:
    """The node of the default domain that has the output shapes of `node`; `node` itself where there is none."""
    row = STANDARD.get(operator(node))
    if row is None:
        return node
    kind, inputs = row
    made = NodeProto(op_type=kind, output=node.output[:1], input=[n for n in node.input[:inputs] if n])
    if kind not in ("Identity", "Sum", "MatMul"):
        made.attribute.extend(a for a in node.attribute if not a.name.startswith("activation"))
    return made


def outputs(node: NodeProto, given: Given) -> Made | None:
    """Shapes and element types of the outputs of a node; None where no row knows them."""
    row = ROWS.get(operator(node))
    try:
        return row(given) if row else None
    except (ValueError, IndexError, KeyError, TypeError):  # operands that are unknown or do not fit
        return None


def _skip_norm(g: Given) -> Made:
    """output, mean, inverse deviation (N, S, 1), the sum that was normalised."""
    x = g.shape(0)
    one = (*x[:-1], 1)
    return [(x, g.types[0]), (one, TensorProto.FLOAT), (one, TensorProto.FLOAT), (x, g.types[0])]


def _simplified_norm(g: Given) -> Made:
    x = g.shape(0)
    at = g.attrs.get("axis", -1) % len(x)
    return [(x, g.types[1]), ((*x[:at], *[1] * (len(x) - at)), TensorProto.FLOAT)]


def _layer_norm(g: Given) -> Made:
    """LayerNormalization before opset 17, where only ONNX Runtime has it: output, mean, inverse deviation."""
    x = g.shape(0)
    at = g.attrs.get("axis", -1) % len(x)
    one = (*x[:at], *[1] * (len(x) - at)), TensorProto.FLOAT
    return [(x, g.types[0]), one, one]


def _embed(g: Given) -> Made:
    """output (N, S, I), mask_index (N,), embedding_sum (N, S, I)."""
    ids, out = g.shape(0), (*g.shape(0), g.shape(2)[1])
    return [(out, g.types[2]), (ids[:1], TensorProto.INT32), (out, g.types[2])]


def _attention(g: Given, kind: int = 0) -> Made:
    """output (N, S, Dv), present (2, N, H, P + S, D)."""
    x, width = g.shape(0), g.shape(1)[1]
    value = g.attrs.get("qkv_hidden_sizes", [width // 3] * 3)[2]
    heads = g.attrs["num_heads"]
    past = g.maybe(8 if kind else 4)
    present = (2, x[0], heads, x[1] + (past[3] if past else 0), value // heads)
    shared = g.attrs.get("past_present_share_buffer", 0)
    return [((*x[:2], value), g.types[kind]), None if shared else (present, g.types[kind])]


def _multi_head(g: Given) -> Made:
    """output (N, S, H * Dv), present_key (N, H, P + T, D), present_value, qk (N, H, S, P + T)."""
    q, heads, kind = g.shape(0), g.attrs["num_heads"], g.types[0]
    if len(q) == 5:
        return [((q[0], q[1], q[2] * q[4]), kind)]
    k = g.shape(1)
    v = g.maybe(2) or (k[0], k[1], heads * k[-1])
    value = v[2] if len(v) == 3 else heads * v[3]
    made: Made = [((*q[:2], value), kind)]
    past = g.maybe(6)
    if g.maybe(8) is not None:
        return made
    length = (k[2] if len(k) == 4 else k[1]) + (past[2] if past else 0)
    tail = (q[0], heads, length)
    return [*made, ((*tail, q[2] // heads), kind), ((*tail, value // heads), kind), ((*tail[:2], q[1], length), kind)]


def _group_query(g: Given) -> Made:
    """output (N, S, H * D), present_key and present_value (N, Hk, max(P, T), D)."""
    q, heads, groups = g.shape(0), g.attrs["num_heads"], g.attrs["kv_num_heads"]
    packed = g.maybe(1) is None
    size = q[2] // (heads + 2 * groups if packed else heads)
    made: Made = [((*q[:2], heads * size), g.types[0])]
    if g.values[6] is None:
        return made
    past = g.maybe(3)
    present = (q[0], groups, max(g.number(6), past[2] if past else 0), size), g.types[0]
    return [*made, present, present]


def _matmul(g: Given) -> Made:
    """FusedMatMul: rows of A x columns of B, after the transpositions that the attributes ask for."""
    a, b = (
        transposed(list(g.shape(i)), g.attrs.get(f"trans{'AB'[i]}", 0), g.attrs.get(f"transBatch{'AB'[i]}", 0))
        for i in (0, 1)
    )
    batch = [max(s) if 0 not in s else 0 for s in _columns(a[:-2], b[:-2])]
    return [((*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else [])), g.types[0])]


def transposed(axes: list[T], trans: int, batch: int) -> list[T]:
    """Axes (*B, M, K) of an operand of FusedMatMul: given as (*B, K, M) with `trans`, as (M, *B, K) with `batch`."""
    if len(axes) < 2:
        return axes
    if batch and len(axes) > 2:
        axes = [*axes[1:-1], axes[0], axes[-1]]
    return [*axes[:-2], axes[-1], axes[-2]] if trans else axes


def _columns(a: list[int], b: list[int]) -> list[tuple[int, int]]:
    rank = max(len(a), len(b))
    return list(zip([1] * (rank - len(a)) + a, [1] * (rank - len(b)) + b, strict=True))


def _nbits(g: Given) -> Made:
    return [((*g.shape(0)[:-1], g.attrs["N"]), g.types[0])]


def _split_gelu(g: Given) -> Made:
    x = g.shape(0)
    return [((*x[:-1], x[-1] // 2), g.types[0])]


def _twice(g: Given) -> Made:
    return [(g.shape(0), g.types[0])] * 2


def _cdist(g: Given) -> Made:
    return [((g.shape(0)[0], g.shape(1)[0]), g.types[0])]


def _relative_bias(g: Given) -> Made:
    return [((1, g.shape(0)[1], g.number(1), g.number(2)), g.types[0])]


STANDARD: dict[str, tuple[str, int]] = {  # operator and the number of inputs that it looks at
    "com.microsoft.Gelu": ("Identity", 1),
    "com.microsoft.QuickGelu": ("Identity", 1),
    "com.microsoft.ScaledSiLU": ("Identity", 1),
    "com.microsoft.GatedAdd": ("Identity", 1),
    "com.microsoft.RotaryEmbedding": ("Identity", 1),
    "com.microsoft.MoE": ("Identity", 1),
    "com.microsoft.QMoE": ("Identity", 1),
    "com.microsoft.Inverse": ("Identity", 1),
    "com.microsoft.GroupNorm": ("Identity", 1),
    "com.microsoft.BiasSoftmax": ("Identity", 1),
    "com.microsoft.BranchwiseRMSNorm": ("Identity", 1),
    "com.microsoft.GatedRMSNorm": ("Identity", 1),
    "com.microsoft.BiasGelu": ("Sum", 2),
    "com.microsoft.FastGelu": ("Sum", 2),
    "com.microsoft.BiasAdd": ("Sum", 3),
    "com.microsoft.FusedConv": ("Conv", 3),
    "com.microsoft.FusedGemm": ("Gemm", 3),
    "com.microsoft.GemmFastGelu": ("MatMul", 2),
    "com.microsoft.Trilu": ("Trilu", 2),
    "com.microsoft.Pad": ("Pad", 3),
    "com.microsoft.GatherND": ("GatherND", 2),
    "com.microsoft.GridSample": ("GridSample", 2),
}
ROWS: dict[str, Callable[[Given], Made]] = {
    "LayerNormalization": _layer_norm,
    "SimplifiedLayerNormalization": _simplified_norm,
    "com.microsoft.SkipLayerNormalization": _skip_norm,
    "com.microsoft.SkipSimplifiedLayerNormalization": _skip_norm,
    "com.microsoft.EmbedLayerNormalization": _embed,
    "com.microsoft.SkipGroupNorm": _twice,
    "com.microsoft.Attention": _attention,
    "com.microsoft.QAttention": lambda g: _attention(g, 2),
    "com.microsoft.MultiHeadAttention": _multi_head,
    "com.microsoft.GroupQueryAttention": _group_query,
    "com.microsoft.FusedMatMul": _matmul,
    "com.microsoft.FusedMatMulActivation": _matmul,
    "com.microsoft.TransposeMatMul": _matmul,
    "com.microsoft.MatMulNBits": _nbits,
    "com.microsoft.BiasSplitGelu": _split_gelu,
    "com.microsoft.CDist": _cdist,
    "com.microsoft.RelativePositionBias": _relative_bias,
}
