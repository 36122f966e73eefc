"""The masked original: the unpruned graph, made to ignore the removed units. What surgery must equal.

Wherever units are summed over, removed ones are replaced by what leaves the sum (0), product (1) or extremum (-inf)
alone; means are taken over the kept ones; normalisations are written out with their statistics over the kept units
only. The zero of a quantised tensor is its zero point. This uses the typed graph and the masks, and none of the code
that slices weights or rewrites attributes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.dims import Dim, Mask, keep
from onnxprune.graph import Graph
from onnxprune.inference import TypedGraph
from onnxprune.nodes import attributes, operator
from onnxprune.quantization import Operand, axis_of, has, operand, placed
from onnxprune.rules.rule import Axes, Read
from onnxprune.storage import tensor

FILL = {
    "sum": 0.0,
    "norm": 0.0,
    "mean": 0.0,
    "range": 0.0,
    "prod": 1.0,
    "max": -math.inf,
    "min": math.inf,
    "logsumexp": -math.inf,
}
NORMALISATIONS = frozenset(
    (
        "LayerNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "MeanVarianceNormalization",
    )
)


UNCENTRED = ("RMSNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization")
FUSED_NORMS: dict[str, tuple[int, int, int | None]] = {  # the output that is the sum, the inputs scale and bias
    "com.microsoft.SkipLayerNormalization": (3, 2, 3),
    "com.microsoft.SkipSimplifiedLayerNormalization": (3, 2, None),
    "com.microsoft.EmbedLayerNormalization": (2, 5, 6),
}


def masked_original(typed: TypedGraph, masks: dict[Dim, Mask], original: Graph | None = None) -> Graph:
    """The model with the removed units masked out; of the file as it was read, where its nodes are still those that
    were typed.
    """
    masker = _Masker(typed, masks)
    index = {node.output[0]: i for i, node in enumerate(typed.graph.nodes) if node.output}
    if original is not None and masker.touched() <= {n.output[0] for n in original.nodes if n.output}:
        return masker.build(original, index)
    return masker.build(typed.graph, index)


class _Masker:
    """Node list under construction; names made here start with `masked.`."""

    def __init__(self, typed: TypedGraph, masks: dict[Dim, Mask]) -> None:
        self.typed, self.graph, self.masks = typed, typed.graph, masks
        self.opset = typed.graph.opsets.get("", 1)
        self.nodes: list[NodeProto] = []
        self.tensors: dict[str, TensorProto] = {}
        self._dequantised: dict[str, NodeProto] = {}
        self._count = 0

    def reads(self, i: int) -> list[Read]:
        """The reads of a node whose units are not all kept."""
        return [r for r in self.typed.signatures[i].reads if not self.mask(i, r.input, r.axis).all()]

    def touched(self) -> set[str]:
        """First outputs of the nodes that need a mask."""
        return {node.output[0] for i, node in enumerate(self.graph.nodes) if self.reads(i)}

    def build(self, base: Graph, index: dict[str, int]) -> Graph:
        """`base` with masks; `index` maps the first output of a node to its place in the typed graph."""
        plain = (n for n in base.nodes if n.op_type == "DequantizeLinear" and not attributes(n).get("block_size", 0))
        self._dequantised = {n.output[0]: n for n in plain}
        for node in base.nodes:
            i = index.get(node.output[0] if node.output else "", -1)
            reads = self.reads(i) if i >= 0 else []
            if not reads:
                self.nodes.append(node)
            elif operator(node) in FUSED_NORMS:
                self._normalise_sum(i, node, *FUSED_NORMS[operator(node)])
            elif operator(node) in NORMALISATIONS:
                self._normalise(i, node)
            else:
                self._mask_inputs(i, node, reads)
        return base.replace(self.nodes, {**base.tensors, **self.tensors})

    # building blocks
    def mask(self, i: int, j: int, axis: int) -> Mask:
        """Keep-mask of an axis of input j."""
        return keep(self.axes(i, j)[axis], self.masks)

    def axes(self, i: int, j: int) -> Axes:
        return self.typed.signatures[i].inputs[j] or []

    def name(self) -> str:
        self._count += 1
        return f"masked.{self._count}"

    def const(self, array: NDArray[Any]) -> str:
        name = self.name()
        self.tensors[name] = tensor(name, array)
        return name

    def op(self, kind: str, *inputs: str, out: str | None = None, **attrs: Any) -> str:
        out = out or self.name()
        self.nodes.append(helper.make_node(kind, inputs, [out], **attrs))
        return out

    def dtype(self, name: str) -> Any:
        return helper.tensor_dtype_to_np_dtype(self.typed.facts.dtypes.get(name, TensorProto.FLOAT))

    def where(self, mask: Mask, x: str, fill: float, kind: Any) -> str:
        """x where the (broadcast) mask is true, else `fill`; Where exists since opset 9, older graphs multiply and add,
        and before 7, where ONNX Runtime does neither, masked entries are picked from a padded end. It has no Where for
        booleans.
        """
        if np.dtype(kind).kind == "b":
            return self.op("Or", x, self.const(~mask)) if fill > 0 else self.op("And", x, self.const(mask))
        if self.opset >= 9:
            return self.op("Where", self.const(mask), x, self.const(np.array(_finite(fill, kind), kind)))
        if self.opset < 7:
            axis, index = int(np.argmax(mask.shape)), np.where(mask.reshape(-1), np.arange(mask.size), mask.size)
            pads = [0] * mask.ndim + [int(k == axis) for k in range(mask.ndim)]
            return self.op("Gather", self.op("Pad", x, pads=pads, value=fill), self.const(index), axis=axis)
        shown = self.op("Mul", x, self.const(mask.astype(kind)))
        low = _extreme(fill, kind)  # an infinity that a second mask multiplies by 0 is no number
        return self.op("Add", shown, self.const(np.where(mask, 0, low).astype(kind))) if fill else shown

    def reduce_sum(self, x: str, axes: Sequence[int]) -> str:
        if self.opset < 13:
            return self.op("ReduceSum", x, axes=list(axes), keepdims=1)
        return self.op("ReduceSum", x, self.const(np.array(axes, np.int64)), keepdims=1)

    # reads
    def _mask_inputs(self, i: int, node: NodeProto, reads: list[Read]) -> None:
        made = NodeProto()
        made.CopyFrom(node)
        share = 1.0
        for read in reads:
            mask = self.mask(i, read.input, read.axis)
            shape = [1] * len(self.axes(i, read.input))
            shape[read.axis] = -1
            made.input[read.input] = self._masked(node, read, mask.reshape(shape), made.input[read.input])
            share *= mask.mean() if read.how == "mean" else 1.0
        if share == 1.0:
            self.nodes.append(made)
            return
        made.output[0] = self.name()
        self.nodes.append(made)
        self.op("Div", made.output[0], self.const(np.array(share, self.dtype(node.output[0]))), out=node.output[0])

    def _masked(self, node: NodeProto, read: Read, mask: Mask, x: str) -> str:
        """Operand x of a node with its removed units filled in. What comes from DequantizeLinear is masked before it:
        ONNX Runtime then goes on fusing it into integer kernels, whose sums are exact.
        """
        found, source = operand(node, read.input), self._dequantised.get(x)
        if found is not None:
            return self._at_zero(mask, x, node, found)
        place = operand(source, 0) if source is not None and source.input[0] in self.typed.facts.dtypes else None
        if source is not None and place is not None and FILL[read.how] == 0:
            made = NodeProto()
            made.CopyFrom(source)
            made.input[0] = self._at_zero(mask, source.input[0], source, place)
            name = made.name = made.output[0] = self.name()
            self.nodes.append(made)
            self._dequantised[name] = made
            return name
        return self.where(mask, x, FILL[read.how], self.dtype(node.input[read.input]))

    def _at_zero(self, mask: Mask, x: str, node: NodeProto, found: Operand) -> str:
        """Integers x where the mask is true, else their zero point; in int32 where ONNX Runtime's Where lacks the
        type.
        """
        kind = self.typed.facts.dtypes.get(node.input[found.value], TensorProto.UINT8)
        zero = self._zero_point(node, found, mask.ndim, kind)
        if kind in (TensorProto.UINT8, TensorProto.INT32):
            return self.op("Where", self.const(mask), x, zero)
        wide = [self.op("Cast", n, to=TensorProto.INT32) for n in (x, zero)]
        return self.op("Cast", self.op("Where", self.const(mask), *wide), to=kind)

    def _zero_point(self, node: NodeProto, found: Operand, rank: int, kind: int) -> str:
        """The zero points of an operand, of a shape that broadcasts against it."""
        if found.zero is None or not has(node, found.zero):
            return self.const(np.zeros((), helper.tensor_dtype_to_np_dtype(kind)))
        name = node.input[found.zero]
        shape = self.typed.facts.shapes.get(name, ())
        return self._reshaped(name, placed(shape, rank, axis_of(node, found))) if math.prod(shape) > 1 else name

    # statistics
    def _normalise(self, i: int, node: NodeProto) -> None:
        if node.op_type == "GroupNormalization":
            self._group_norm(i, node)
            return
        rank, attrs = len(self.axes(i, 0)), attributes(node)
        if node.op_type == "InstanceNormalization":
            over = list(range(2, rank))
        elif node.op_type == "MeanVarianceNormalization":
            over = [a % rank for a in attrs.get("axes", [0, 2, 3])]
        else:
            over = list(range(attrs.get("axis", -1) % rank, rank))
        mask = self._joint(i, rank, over)
        centred = node.op_type not in UNCENTRED
        epsilon = 1e-9 if node.op_type == "MeanVarianceNormalization" else float(attrs.get("epsilon", 1e-5))
        normal, mean, inverse = self._standardise(node.input[0], mask, over, epsilon, centred)
        scale, bias = self._affine(i, node, rank)
        self._emit(node, normal, scale, bias)
        extra = ((1, mean), (2, inverse)) if centred else ((1, inverse),)
        for k, value in extra:
            if k < len(node.output) and node.output[k]:
                self.op("Identity", value, out=node.output[k])

    def _normalise_sum(self, i: int, node: NodeProto, at: int, scale: int, bias: int | None) -> None:
        """Operators that add before they normalise: the node itself makes the sum, its last axis is normalised here."""
        raw = NodeProto()
        raw.CopyFrom(node)
        del raw.output[:]
        raw.output.extend(n if n and k > 0 else "" for k, n in enumerate([*node.output, *[""] * at][: at + 1]))
        raw.output[0] = self.name()
        raw.output[at] = total = raw.output[at] or self.name()
        if at == 3:
            raw.output[1] = raw.output[2] = ""
        self.nodes.append(raw)
        self.typed.facts.dtypes[total] = self.typed.facts.dtypes[node.input[scale]]
        read = self.typed.signatures[i].reads[0]
        rank = len(self.typed.signatures[i].outputs[0] or [])
        mask = self.mask(i, read.input, read.axis).reshape([*[1] * (rank - 1), -1])
        epsilon = float(attributes(node).get("epsilon", 1e-12))
        normal, mean, inverse = self._standardise(total, mask, [rank - 1], epsilon, node.op_type not in UNCENTRED)
        self._emit(node, normal, node.input[scale], _input(node, bias))
        for k, value in ((1, mean), (2, inverse)):
            if at == 3 and k < len(node.output) and node.output[k]:
                self.op("Identity", value, out=node.output[k])

    def _joint(self, i: int, rank: int, over: Sequence[int]) -> Mask:
        """The outer product of the masks of several axes of input 0, size 1 elsewhere."""
        joint = np.ones([1] * rank, bool)
        for k in over:
            joint = joint & self.mask(i, 0, k).reshape([-1 if a == k else 1 for a in range(rank)])
        return joint

    def _standardise(
        self, x: str, mask: Mask, over: Sequence[int], epsilon: float, centred: bool
    ) -> tuple[str, str, str]:
        kind = self.dtype(x)
        count = self.const(np.maximum(mask.sum(axis=tuple(over), keepdims=True), 1).astype(kind))
        mean = self.op("Div", self.reduce_sum(self.where(mask, x, 0.0, kind), over), count)
        centre = self.op("Sub", x, mean) if centred else x
        squares = self.op("Mul", centre, centre)
        variance = self.op("Div", self.reduce_sum(self.where(mask, squares, 0.0, kind), over), count)
        spread = self.op("Sqrt", self.op("Add", variance, self.const(np.array(epsilon, kind))))
        return self.op("Div", centre, spread), mean, self.op("Reciprocal", spread)

    def _affine(self, i: int, node: NodeProto, rank: int) -> tuple[str, str]:
        scale = node.input[1] if len(node.input) > 1 else ""
        bias = node.input[2] if len(node.input) > 2 else ""
        if node.op_type == "InstanceNormalization":
            shape = [-1, *[1] * (rank - 2)]
            return self._reshaped(scale, shape), self._reshaped(bias, shape)
        return scale, bias

    def _reshaped(self, x: str, shape: Sequence[int]) -> str:
        return self.op("Reshape", x, self.const(np.array(shape, np.int64)))

    def _emit(self, node: NodeProto, normal: str, scale: str, bias: str) -> None:
        scaled = self.op("Mul", normal, scale) if scale else normal
        if bias:
            self.op("Add", scaled, bias, out=node.output[0])
        else:
            self.op("Identity", scaled, out=node.output[0])

    def _group_norm(self, i: int, node: NodeProto) -> None:
        attrs, axes = attributes(node), self.axes(i, 0)
        g, rank = int(attrs["num_groups"]), len(axes)
        size = [self.typed.facts.shapes[node.input[0]][k] for k in range(1, rank)]
        joint = np.broadcast_to(self._joint(i, rank, range(1, rank)), [1, *size]).reshape(1, g, -1)
        flat = self._reshaped(node.input[0], [0, g, -1])
        self.typed.facts.dtypes[flat] = self.typed.facts.dtypes[node.input[0]]
        normal, _, _ = self._standardise(flat, joint, [2], float(attrs.get("epsilon", 1e-5)), True)
        if self.opset < 21:
            affine = [self._reshaped(node.input[j], [1, g, 1]) for j in (1, 2)]
            normal = self.op("Add", self.op("Mul", normal, affine[0]), affine[1])
        back = self.op("Reshape", normal, self.op("Shape", node.input[0]))
        if self.opset < 21:
            self.op("Identity", back, out=node.output[0])
            return
        shape = [-1, *[1] * (rank - 2)]
        self._emit(node, back, self._reshaped(node.input[1], shape), self._reshaped(node.input[2], shape))


def _input(node: NodeProto, j: int | None) -> str:
    return node.input[j] if j is not None and j < len(node.input) else ""


def _finite(fill: float, kind: Any) -> float:
    """Infinities as the type's extreme where it has none."""
    return fill if np.dtype(kind).kind == "f" else _extreme(fill, kind)


def _extreme(fill: float, kind: Any) -> float:
    """Infinities as the type's extreme."""
    if math.isfinite(fill):
        return fill
    limits = np.finfo(kind) if np.dtype(kind).kind == "f" else np.iinfo(kind)
    return float(limits.max if fill > 0 else limits.min)
