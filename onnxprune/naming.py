"""Names and kinds for dims: what `inspect` prints, patterns match and plans are saved under.

A dim is named after the first weight that carries it, `tensor:axis`, with its place among the factors where an axis has
several. Names depend on the graph alone, so a plan saved for a file can be applied to it later.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnxprune.dims import Dim, Expr, Prod, Sum, atoms, resolve
from onnxprune.inference import DimInfo, Place, TypedGraph
from onnxprune.quantization import product_operands
from onnxprune.rules.rule import Edit

HEADS = ("num_heads", "kv_num_heads")  # attributes that count heads
HIDDEN = {"LSTM": 2, "GRU": 2, "RNN": 2, "com.microsoft.DynamicQuantizeLSTM": 1}  # the axis of R that is summed
CONVOLUTIONS = (
    *("Conv", "ConvTranspose", "QLinearConv", "ConvInteger"),
    *("com.microsoft.FusedConv", "com.microsoft.QLinearConv"),
)
PRODUCTS = (
    *("MatMul", "Gemm", "Einsum", "MatMulInteger", "QLinearMatMul", "com.microsoft.QGemm"),
    *("com.microsoft.MatMulIntegerToFloat", "com.microsoft.DynamicQuantizeMatMul"),
    *("com.microsoft.FusedGemm", "com.microsoft.FusedMatMul", "com.microsoft.TransposeMatMul"),
)
FUSED_ATTENTION = tuple(
    f"com.microsoft.{op}" for op in ("Attention", "QAttention", "MultiHeadAttention", "GroupQueryAttention")
)
KINDS = ("hidden", "experts", "heads", "head-channels", "groups", "width", "filters", "neurons", "units")


def name_dims(typed: TypedGraph) -> tuple[DimInfo, ...]:
    """All dims of a typed graph, named and classified; those that constants carry first."""
    places: dict[Dim, dict[Place, None]] = {}
    names: dict[Dim, str] = {}
    order = sorted(typed.uses, key=lambda u: len(u.axes) < 2)  # matrices and kernels give better names than vectors
    for use in order:
        node = typed.graph.nodes[use.node]
        where, kind = node.name or node.output[0], node.op_type
        for axis, e in enumerate(use.axes):
            for d in _label(names, e, use.tensor, axis):
                places.setdefault(d, {})[Place(where, kind, use.tensor, axis)] = None
    seen: set[int] = set()  # most activations share the very axes of others
    for tensor, axes in typed.axes.items():
        for axis, e in enumerate(axes):
            if id(e) not in seen:
                seen.add(id(e))
                _label(names, e, tensor, axis)
    kinds = classify(typed)
    unique: dict[str, int] = {}
    infos = []
    for d, name in names.items():
        count = unique[name] = unique.get(name, 0) + 1
        label = name if count == 1 else f"{name}#{count}"
        infos.append(DimInfo(d, label, kinds.get(d, "units"), tuple(places.get(d, {}))))
    return tuple(infos)


def _label(names: dict[Dim, str], expr: Expr, tensor: str, axis: int) -> list[Dim]:
    """Name the dims of an axis that have no name yet; returns all of them."""
    found = [d for d in dict.fromkeys(atoms(expr)) if d.size > 1]
    for i, d in enumerate(found):
        if d not in names:
            names[d] = f"{tensor}:{axis}" if len(found) == 1 else f"{tensor}:{axis}/{i}"
    return found


def classify(typed: TypedGraph) -> dict[Dim, str]:
    """The kind of each dim, by what the operators do with it; the first that fits in the order of `KINDS`."""
    found: dict[Dim, set[str]] = {}

    def mark(exprs: Iterable[Expr], kind: str) -> None:
        for e in exprs:
            for d in atoms(e):
                found.setdefault(d, set()).add(kind)

    fixed = set(typed.graph.constants)
    for i, wires in enumerate(typed.graph.wires):
        if wires.inputs and all([n in fixed or not n for n in wires.inputs]):
            fixed.update(wires.outputs)
        if typed.signatures[i].barrier is None:
            _Marks(typed, i, mark, fixed).by_operator(wires.operator)
    return {d: next(k for k in KINDS if k in kinds) for d, kinds in found.items()}


class _Marks:
    """The kinds that one node gives to its axes."""

    def __init__(self, typed: TypedGraph, index: int, mark: object, fixed: set[str]) -> None:
        self.node, self.signature, self.mark = typed.graph.nodes[index], typed.signatures[index], mark
        self.inputs, self.fixed = typed.graph.wires[index].inputs, fixed

    def by_operator(self, op: str) -> None:
        s, mark = self.signature, self.mark
        assert callable(mark)
        for read in s.reads:
            if read.how in ("stats", "mean") and not _spatial(self, read.input, read.axis):
                mark([read.expr], "width" if read.how == "stats" or self._is_last(read.input, read.axis) else "units")
        inputs = s.inputs
        if op in HIDDEN and inputs[2] is not None:
            mark([inputs[2][HIDDEN[op]]], "hidden")
        elif (
            op in CONVOLUTIONS
            and s.outputs[0] is not None
            and (w := inputs[product_operands(self.node)[1]]) is not None
        ):
            mark([s.outputs[0][1]], "filters")
            mark(_outer_groups(s.outputs[0][1], w, op), "groups")
        elif op == "Attention" and s.reads:
            mark([s.reads[0].expr], "head-channels")
            self._attention(mark)
        elif op in PRODUCTS and len(inputs) > 1 and s.outputs[0] is not None:
            self._product(mark)
        else:
            self._by_fused_operator(op, mark)

    def _by_fused_operator(self, op: str, mark: object) -> None:
        assert callable(mark)
        s = self.signature
        if op in FUSED_ATTENTION:
            self._fused_attention(mark)
        elif op == "com.microsoft.MoE" and s.inputs[4] is not None:
            mark(s.inputs[4][2:], "neurons")
        elif op == "com.microsoft.MatMulNBits" and s.outputs[0] is not None:
            mark(s.outputs[0][-1:], "neurons")

    def _product(self, mark: object) -> None:
        assert callable(mark)
        i, j = product_operands(self.node)
        a, b, out = self.signature.inputs[i], self.signature.inputs[j], self.signature.outputs[0]
        if a is None or b is None or out is None:
            return
        left = self.inputs[i] in self.fixed
        if not left and self.inputs[j] not in self.fixed:  # data times data: attention
            mark([r.expr for r in self.signature.reads], "head-channels")
            mark(out[-1:], "head-channels")
            mark(out[:-2], "heads")
            return
        mark(out[-1:], "neurons")
        weight = a if left else b
        if len(weight) > 2:
            mark(weight[:-2], "experts")

    def _attention(self, mark: object) -> None:
        assert callable(mark)
        for axes in self.signature.inputs[:3]:
            if axes is None:
                continue
            e = resolve(axes[1] if len(axes) == 4 else axes[2])
            if len(axes) == 4:
                mark([e], "heads")
                mark([axes[3]], "head-channels")
            elif isinstance(e, Prod):
                mark(e.factors[:-1], "heads")
                mark(e.factors[-1:], "head-channels")

    def _fused_attention(self, mark: object) -> None:
        """Heads are what the attributes count; other units of the output and of reads within an axis are channels."""
        assert callable(mark)
        s = self.signature
        counted = [e for edit in s.edits if isinstance(edit, Edit) and edit.target in HEADS for e in edit.entries]
        heads = {d for e in counted if isinstance(e, (Dim, Sum, Prod)) for d in atoms(e)}
        mark(heads, "heads")
        parts = [r.expr for r in s.reads if r.expr is not (s.inputs[r.input] or [])[r.axis]]
        mark({d for e in [*parts, *(s.outputs[0] or [])[2:]] for d in atoms(e)} - heads, "head-channels")

    def _is_last(self, i: int, axis: int) -> bool:
        axes = self.signature.inputs[i]
        return axes is not None and axis == len(axes) - 1


def _spatial(marks: _Marks, i: int, axis: int) -> bool:
    """Statistics over an axis behind the channels (InstanceNorm, global pooling) say nothing about its kind."""
    return marks.node.op_type in ("InstanceNormalization", "GlobalAveragePool")


def _outer_groups(channels: Expr, weight: list[Expr], op: str) -> list[Expr]:
    """The group factor of a grouped convolution whose groups have several channels."""
    e = resolve(channels)
    grouped = isinstance(e, Prod) and weight[1].size > 1 and (op == "ConvTranspose" or weight[1].size < e.size)
    return list(e.factors[:-1]) if grouped and isinstance(e, Prod) else []
