"""What a graph costs, as polynomials over dim sizes: parameters (stored floats, and integers that stand for reals) and
MACs (multiply-accumulates of products).

Each term is a coefficient times a product of axis sizes, so a budget is solved by evaluating these at other sizes; no
graph is touched. Whatever else can be told of sizes alone, such as a measured latency, is a `Cost` as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.dims import Dim, Expr, Prod, Sum, atoms, resolve, size_under
from onnxprune.inference import TypedGraph
from onnxprune.nodes import attributes
from onnxprune.quantization import product_operands, stands_for_reals
from onnxprune.rules.rule import Axes, Edit, Signature
from onnxprune.storage import stored_bytes

Sizes = Mapping[Dim, int]


class Part(Protocol):
    """A part of a cost: what it is without cuts, the axes that it depends on, and what it is at other sizes, in whole
    numbers (an array where one of the sizes is one).
    """

    @property
    def whole(self) -> int: ...

    @property
    def axes(self) -> tuple[Expr, ...]: ...

    def at(self, sizes: Sizes, /) -> Any: ...


class Cost(Protocol):
    """A cost of dim sizes; its changes are those of its terms."""

    @property
    def terms(self) -> Sequence[Part]: ...

    def at(self, sizes: Sizes, /) -> int: ...


class Clock(Protocol):
    """Knows what sizes cost on a machine: nanoseconds, and of which number a dim keeps a multiple best (1: of any)."""

    def cost(self, typed: TypedGraph, /) -> Cost: ...

    def multiples(self, typed: TypedGraph, /) -> Mapping[Dim, int]: ...


class Term(NamedTuple):
    """coefficient * product of the sizes of `axes`; `owner` is the tensor (params) or node (MACs) that it counts,
    `whole` the value before anything is cut. Of a sparse tensor `share` is stored, and taken to be spread evenly.
    """

    owner: str
    coefficient: int
    axes: tuple[Expr, ...]
    whole: int
    share: float = 1.0

    def at(self, sizes: Sizes) -> int:
        made = self.coefficient * math.prod([size_under(e, sizes) for e in self.axes])
        return made if self.share == 1 else round(made * self.share)


@dataclass(frozen=True)
class Polynomial:
    """A sum of terms. Terms of one owner are forms of one stored tensor: one while whole, several once cut."""

    terms: tuple[Term, ...]

    def at(self, sizes: Sizes) -> int:
        """Value when each dim keeps `sizes[dim]` units."""
        whole: dict[str, int] = {}
        cut = 0
        for term in self.terms:
            value = term.at(sizes) if sizes else term.whole
            if value == term.whole:
                whole[term.owner] = value
            else:
                cut += value
        return sum(whole.values()) + cut

    def shares(self) -> dict[Dim, int]:
        """For each dim, the part of the full value that carries it."""
        found: dict[Dim, dict[str, int]] = {}
        for term in self.terms:
            value = term.whole
            for d in {d for e in term.axes for d in atoms(e)}:
                found.setdefault(d, {})[term.owner] = value
        return {d: sum(owners.values()) for d, owners in found.items()}


def params(typed: TypedGraph) -> Polynomial:
    """Stored elements by tensor: floats, and integers that are dequantised or used in quantised products."""
    terms: list[Term] = []
    for name, tensor in typed.graph.constants.items():
        if stands_for_reals(typed.graph, name):
            uses = typed.weights.get(name, [])
            forms = {tuple(map(repr, map(resolve, u.axes))) if len(uses) > 1 else (): u.axes for u in uses}
            size = math.prod(tensor.dims)
            share = typed.graph.entries(name) / size if size else 1.0
            whole = size if share == 1 else round(size * share)
            terms += [_term(name, axes, share) for axes in forms.values()] or [Term(name, size, (), whole, share)]
    return Polynomial(tuple(terms))


def bits(typed: TypedGraph) -> Polynomial:
    """Size of the model as one file, in bits: its constants, and everything else as it is."""
    constants = typed.graph.constants
    width = {n: 8 * stored_bytes(t) // max(math.prod(t.dims), 1) for n, t in constants.items()}
    terms = tuple(
        t._replace(coefficient=t.coefficient * width[t.owner], whole=t.whole * width[t.owner])
        for t in params(typed).terms
    )
    rest = 8 * typed.graph.size_bytes() - Polynomial(terms).at({})
    return Polynomial((*terms, Term("", rest, (), rest)))


def units(dims: Iterable[Dim]) -> Polynomial:
    """The number of units of some dims."""
    return Polynomial(tuple(Term(f"unit.{k}", 1, (d,), d.size) for k, d in enumerate(dims)))


def macs(typed: TypedGraph) -> Polynomial:
    """Multiply-accumulates of Conv, ConvTranspose, Gemm, MatMul, Einsum, recurrent layers and Attention, at the traced
    sizes.
    """
    return Polynomial(tuple(t for terms in macs_by_node(typed).values() for t in terms))


def pass_macs(typed: TypedGraph, feed: Mapping[str, NDArray[Any]], samples: int) -> float:
    """Multiply-adds of a pass over so many samples of the size of those in a feed."""
    return float(macs(typed).at({})) * sample_share(typed, feed) * samples


def sample_share(typed: TypedGraph, feed: Mapping[str, NDArray[Any]]) -> float:
    """What one sample of the data is of the inputs that a graph was typed at, by the size of the largest input."""
    name = max((n for n, a in feed.items() if a.ndim), key=lambda n: feed[n].size, default="")
    known = math.prod(typed.facts.shapes.get(name, ())) or 1
    return feed[name].size / max(len(feed[name]), 1) / known if name else 1.0


def macs_by_node(typed: TypedGraph) -> dict[int, list[Term]]:
    """The terms of every product, by the index of its node."""
    found: dict[int, list[Term]] = {}
    for i, (wires, signature) in enumerate(zip(typed.graph.wires, typed.signatures, strict=True)):
        if signature.barrier is None and wires.operator in _MACS:
            node = typed.graph.nodes[i]
            made = _MACS[wires.operator](node, signature)
            found[i] = [_term(f"{node.name or node.op_type}#{i}.{k}", axes) for k, axes in enumerate(made)]
    return found


def _term(owner: str, axes: Sequence[Expr], share: float = 1.0) -> Term:
    """A term with its constant axes multiplied out."""
    free: list[Expr] = []
    fixed = 1
    for e in map(resolve, axes):
        if any([not d.frozen for d in atoms(e)]):
            free.append(e)
        else:
            fixed *= e.size
    whole = fixed * math.prod([e.size for e in free])
    return Term(owner, fixed, tuple(free), whole if share == 1 else round(whole * share), share)


def _in(signature: Signature, i: int) -> Axes:
    return signature.inputs[i] or []


def _out(signature: Signature) -> Axes:
    return signature.outputs[0] or []


def _conv(node: NodeProto, s: Signature) -> list[Axes]:
    return [_out(s) + _in(s, product_operands(node)[1])[1:]]


def _conv_transpose(node: NodeProto, s: Signature) -> list[Axes]:
    return [_in(s, 0) + _in(s, 1)[1:]]


def _matmul(node: NodeProto, s: Signature) -> list[Axes]:
    return [[*_out(s), s.reads[0].expr]]


def _einsum(node: NodeProto, s: Signature) -> list[Axes]:
    return [[*_out(s), *(r.expr for r in s.reads)]]


def _recurrent(node: NodeProto, s: Signature) -> list[Axes]:
    x, w, r = _in(s, 0), _in(s, 1), _in(s, 2)
    return [[*x[:2], *w], [*x[:2], *r]]


def _attention(node: NodeProto, s: Signature) -> list[Axes]:
    q, k, y = _in(s, 0), _in(s, 1), _out(s)
    length = k[2] if len(k) == 4 else k[1]
    return [[*q, length], [*y, length]]


def _fused_attention(node: NodeProto, s: Signature) -> list[Axes]:
    """X (N, S, I) through W (I, H*D + H*D + H*Dv), scores and mixture over S."""
    x, w = _in(s, 0), _in(s, 1)
    sizes = next((e.entries for e in s.edits if isinstance(e, Edit) and e.target == "qkv_hidden_sizes"), ())
    query = sizes[0] if sizes and isinstance(sizes[0], (Dim, Sum, Prod)) else _out(s)[2]
    return [[*x, w[1]], [*x[:2], query, x[1]], [*_out(s), x[1]]]


def _group_query(node: NodeProto, s: Signature) -> list[Axes]:
    return [[*_out(s), (_in(s, 1) or _in(s, 0))[1]]] * 2


def _mixture(node: NodeProto, s: Signature) -> list[Axes]:
    """Every token through `k` experts: fc1 (E, f*J, C), fc2 (E, C, J), fc3 (E, J, C)."""
    chosen = int(attributes(node).get("k", 1))
    return [[*_in(s, 0)[:-1], *_in(s, i)[1:]] for i in (2, 4, 6) if i < len(s.inputs) and _in(s, i)] * chosen


_MACS = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    **dict.fromkeys(("QLinearConv", "com.microsoft.QLinearConv", "ConvInteger"), _conv),
    **dict.fromkeys(("Gemm", "MatMul", "QLinearMatMul", "MatMulInteger", "com.microsoft.QGemm"), _matmul),
    **dict.fromkeys(("com.microsoft.MatMulIntegerToFloat", "com.microsoft.DynamicQuantizeMatMul"), _matmul),
    "com.microsoft.DynamicQuantizeLSTM": _recurrent,
    "Einsum": _einsum,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Attention": _attention,
    "com.microsoft.FusedConv": _conv,
    "com.microsoft.FusedGemm": _matmul,
    "com.microsoft.FusedMatMul": _matmul,
    "com.microsoft.FusedMatMulActivation": _matmul,
    "com.microsoft.TransposeMatMul": _matmul,
    "com.microsoft.GemmFastGelu": _matmul,
    "com.microsoft.MatMulNBits": _matmul,
    "com.microsoft.CDist": _matmul,
    "com.microsoft.Attention": _fused_attention,
    "com.microsoft.QAttention": _fused_attention,
    "com.microsoft.MultiHeadAttention": _attention,
    "com.microsoft.GroupQueryAttention": _group_query,
    "com.microsoft.MoE": _mixture,
}
