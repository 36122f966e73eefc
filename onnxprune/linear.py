"""Linear operators with constant weights as matrix products: what least squares, Gram matrices and bias corrections
work on.

Conv, ConvTranspose, Gemm and MatMul with a constant right side all compute, group by group,

    y (rows, O) = x (rows, K) @ W (K, O) + b (O)

`columns` gives x from the operator's input (for convolutions the patches under the kernel, "im2col"), `rows` gives y
from its output, at the same picked positions, and `matrix` / `unmatrix` turn the stored weight into (G, K, O) and back.
K runs over the input channels of a group, then over the kernel, so unit u of a channel axis is the block
u*k ... u*k + k - 1.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.feeds import Shape
from onnxprune.flow import inner_names
from onnxprune.graph import FLOATS, Graph
from onnxprune.nodes import attributes, operator

Array = NDArray[Any]
KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class Linear:
    """Node `index` of a graph as a product; `bias` names the constant vector that is added, "" if there is none, and
    `adder` is the node that adds it (-1: the product itself). `out` is the result with the bias.
    """

    index: int
    node: NodeProto
    weight: str
    dims: Shape
    out: str
    bias: str = ""
    adder: int = -1

    @property
    def data(self) -> str:
        """The tensor that it reads."""
        return str(self.node.input[0])

    @property
    def key(self) -> int:
        """What tells it from the other products of the graph."""
        return self.index

    @property
    def view(self) -> Hashable:
        """Alike for products that see the same rows: x is the same."""
        names = ("strides", "dilations", "pads", "auto_pad", "group")
        kept = [repr(self.attrs.get(n)) for n in names] if self.is_conv else []
        return self.data, self.kernel, self.transposed, *kept, self.dims[:1] if self.transposed else ()

    @cached_property
    def attrs(self) -> dict[str, Any]:
        return attributes(self.node)

    @property
    def is_conv(self) -> bool:
        return "Conv" in self.node.op_type

    @property
    def channel(self) -> int:
        """The axis of its outputs."""
        return 1 if self.is_conv else -1

    @property
    def transposed(self) -> bool:
        return self.node.op_type == "ConvTranspose"

    @property
    def groups(self) -> int:
        return int(self.attrs.get("group", 1)) if self.is_conv else 1

    @cached_property
    def kernel(self) -> Shape:
        """Extents of the kernel; () for matrix products."""
        return tuple(self.dims[2:]) if self.is_conv else ()

    @cached_property
    def size(self) -> tuple[int, int, int]:
        """(G, K, O): groups, summands and outputs of each."""
        if not self.is_conv:
            rows, columns = self.dims[::-1] if self.attrs.get("transB", 0) else self.dims
            return 1, rows, columns
        g, area = self.groups, math.prod(self.kernel)
        if self.transposed:
            return g, self.dims[0] // g * area, self.dims[1]
        return g, self.dims[1] * area, self.dims[0] // g

    # weights
    def matrix(self, weight: Array) -> Array:
        """The stored weight as (G, K, O); the factor alpha of Gemm is multiplied in."""
        g, k, o = self.size
        if not self.is_conv:
            plain = weight.T if self.attrs.get("transB", 0) else weight
            return (plain * float(self.attrs.get("alpha", 1.0)))[None] if "alpha" in self.attrs else plain[None]
        if self.transposed:  # (g*I, O, *k), mirrored: an output position sees the kernel backwards
            mirrored = np.flip(weight, tuple(range(2, weight.ndim)))
            return np.moveaxis(mirrored.reshape(g, -1, o, math.prod(self.kernel)), 2, 3).reshape(g, k, o)
        return weight.reshape(g, o, k).transpose(0, 2, 1)

    def unmatrix(self, matrix: Array) -> Array:
        """A (G, K, O) matrix in the form that the operator stores."""
        g, _, o = self.size
        if not self.is_conv:
            plain = matrix[0] / float(self.attrs.get("alpha", 1.0))
            return np.asarray(plain.T if self.attrs.get("transB", 0) else plain)
        if self.transposed:
            stored = np.moveaxis(matrix.reshape(g, -1, math.prod(self.kernel), o), 3, 2).reshape(self.dims)
            return np.flip(stored, tuple(range(2, stored.ndim)))
        return matrix.transpose(0, 2, 1).reshape(self.dims)

    @property
    def beta(self) -> float:
        """What the stored bias is multiplied by."""
        return float(self.attrs.get("beta", 1.0)) if self.node.op_type == "Gemm" else 1.0

    # activations
    def positions(self, out: Shape) -> int:
        """Rows that one sample gives, for an output of shape `out`: (N, O, *S) or (N, ..., O)."""
        return math.prod(out[2:]) if self.is_conv else math.prod(out[1:-1])

    def result(self, data: Shape) -> Shape:
        """The shape of its output for an input of shape `data`."""
        g, _, o = self.size
        if not self.is_conv:
            return (*data[:-1], o)
        rank = len(self.kernel)
        strides, dilations = (list(self.attrs.get(n, [1] * rank)) for n in ("strides", "dilations"))
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, dilations, strict=True)]
        pads = list(self.attrs.get("pads", [0] * 2 * rank))
        auto = self.attrs.get("auto_pad", b"NOTSET").decode()
        pads = [0] * 2 * rank if auto == "VALID" else pads
        rest = [e - a - b for e, a, b in zip(spans, pads[:rank], pads[rank:], strict=True)]
        if self.transposed:
            more = self.attrs.get("output_padding", [0] * rank)
            made = [(n - 1) * s + r + m for n, s, r, m in zip(data[2:], strides, rest, more, strict=True)]
            made = list(self.attrs.get("output_shape", made))[-rank:]
        else:
            made = [(n - r) // s + 1 for n, s, r in zip(data[2:], strides, rest, strict=True)]
        if auto.startswith("SAME") and "output_shape" not in self.attrs:
            made = [n * s if self.transposed else -(-n // s) for n, s in zip(data[2:], strides, strict=True)]
        return (data[0], g * o, *made)

    def columns(self, x: Array, out: Shape, picks: NDArray[np.int64]) -> Array:
        """x at the picked positions, (P,) of every sample or (N, P) of each: (N, G, P, K) for N samples."""
        if not self.is_conv:
            return _taken(x.reshape(x.shape[0], 1, -1, x.shape[-1]), picks, 2)
        padded, index = self._patches(x, out[2:], picks)
        n, g = x.shape[0], self.groups
        flat = padded.reshape(n, g, -1, math.prod(padded.shape[2:]))
        whole = index.reshape(*index.shape[: picks.ndim - 1], -1)  # positions, and the kernel under each
        taken = _taken(flat, whole, 3).reshape(*flat.shape[:3], *index.shape[-2:])  # (N, G, I, P, kernel)
        return taken.transpose(0, 1, 3, 2, 4).reshape(n, g, index.shape[-2], -1)

    def rows(self, y: Array, picks: NDArray[np.int64], kept: NDArray[np.bool_] | None = None) -> Array:
        """y at the same positions: (N, G, P, O); of the channels that are `kept`, where y has more."""
        if not self.is_conv:
            taken = _taken(y.reshape(y.shape[0], 1, -1, y.shape[-1]), picks, 2)
            return taken if kept is None else taken[..., kept]
        taken = _taken(y.reshape(y.shape[0], y.shape[1], -1), picks, 2)
        taken = taken if kept is None else taken[:, kept]
        return taken.reshape(y.shape[0], self.groups, self.size[2], -1).swapaxes(2, 3)

    def _patches(self, x: Array, out: Shape, picks: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
        """The padded input, and for each picked position the flat numbers of the entries under the kernel, (P, kernel)
        or (N, P, kernel).
        """
        rank = len(self.kernel)
        strides = list(self.attrs.get("strides", [1] * rank))
        dilations = list(self.attrs.get("dilations", [1] * rank))
        before = self._padding(x.shape[2:], out, strides, dilations)
        if self.transposed:  # an ordinary convolution over the input with zeros between its entries
            wide = np.zeros(
                (*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True))), x.dtype
            )
            wide[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = x
            x, strides = wide, [1] * rank
        reach = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(out, strides, self.kernel, dilations, strict=True)]
        crop = [max(0, -b) for b in before]
        x = x[(slice(None), slice(None), *(slice(c, None) for c in crop))]
        before = [max(0, b) for b in before]
        after = [max(0, r - b - n) for r, b, n in zip(reach, before, x.shape[2:], strict=True)]
        padded = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)]) if any((*before, *after)) else x
        shape = padded.shape[2:]
        corners = np.unravel_index(picks, out)
        offsets = np.unravel_index(np.arange(math.prod(self.kernel)), self.kernel)
        places = [c[..., None] * s + o * d for c, s, o, d in zip(corners, strides, offsets, dilations, strict=True)]
        return padded, np.ravel_multi_index(places, shape).astype(np.int64)

    def _padding(self, size: Shape, out: Shape, strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
        """Zeros before each spatial axis (negative: entries that are cut off)."""
        rank = len(self.kernel)
        auto = self.attrs.get("auto_pad", b"NOTSET").decode()
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, dilations, strict=True)]
        pads = list(self.attrs.get("pads", [0] * 2 * rank))[:rank]
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            few, many = (out, size) if self.transposed else (size, out)
            totals = [max(0, (m - 1) * s + e - n) for m, s, e, n in zip(many, strides, spans, few, strict=True)]
            pads = [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in totals]
        elif auto == "VALID":
            pads = [0] * rank
        return [e - 1 - p for e, p in zip(spans, pads, strict=True)] if self.transposed else pads


def _taken(x: Array, picks: NDArray[np.int64], axis: int) -> Array:
    """Entries along an axis of x (N, ...): the same of every sample, or those (N, P) of each."""
    if picks.ndim == 1:
        return x.take(picks, axis)
    places = picks.reshape(len(picks), *[1] * (axis - 1), -1, *[1] * (x.ndim - axis - 1))
    return np.take_along_axis(x, places, axis)


@dataclass(frozen=True)
class Gates(Linear):
    """The gates of LSTM, GRU and RNN as products, for statistics: x @ W over both directions (slot 1), or with the
    directions as groups the hidden states @ R (slot 2), for which the outputs of all steps stand.
    """

    slot: int = 1

    @property
    def key(self) -> int:
        return self.index if self.slot == 1 else -1 - self.index

    @property
    def view(self) -> Hashable:
        return self.key

    @property
    def data(self) -> str:
        return str(self.node.input[0] if self.slot == 1 else self.node.output[0])

    @property
    def _batch_first(self) -> bool:
        return bool(self.attrs.get("layout", 0))

    @cached_property
    def size(self) -> tuple[int, int, int]:
        directions, rows, inputs = self.dims
        return (1, inputs, directions * rows) if self.slot == 1 else (directions, inputs, rows)

    def matrix(self, weight: Array) -> Array:
        """(1, I, D*g*H) of W, (D, H, g*H) of R."""
        if self.slot == 1:
            return weight.transpose(2, 0, 1).reshape(self.size)
        return weight.transpose(0, 2, 1)

    def result(self, data: Shape) -> Shape:
        """That of Y, for X (slot 1) or Y itself of shape `data`."""
        if self.slot == 2:
            return data
        directions, hidden = self.dims[0], int(self.attrs["hidden_size"])
        first, second, _ = data
        return (first, second, directions, hidden) if self._batch_first else (first, directions, second, hidden)

    def positions(self, out: Shape) -> int:
        """The batch, or the steps where the batch comes first; `out` is that of Y."""
        return out[1] if self._batch_first else out[2]

    def columns(self, x: Array, out: Shape, picks: NDArray[np.int64]) -> Array:
        """X (T, N, I) or Y (T, D, N, H) as (T, G, P, K); with the batch first, X (N, T, I) and Y (N, T, D, H)."""
        if self.slot == 1:
            return x[:, None, picks]
        return (x.transpose(0, 2, 1, 3) if self._batch_first else x)[:, :, picks]


def gates(graph: Graph) -> list[Gates]:
    """Both products of every recurrent layer with stored float weights, outside of bodies of control flow."""
    found: list[Gates] = []
    inside = inner_names(graph.nodes)
    for i, node in enumerate(graph.nodes):
        if operator(node) not in RECURRENT or not node.output[0] or node.output[0] in inside:
            continue
        for slot in (1, 2):
            weight = graph.constants.get(node.input[slot])
            if weight is not None and weight.data_type in FLOATS and node.input[0] not in graph.constants:
                found.append(Gates(i, node, node.input[slot], tuple(weight.dims), node.output[0], slot=slot))
    return found


def linears(graph: Graph) -> dict[int, Linear]:
    """Every product of an activation with a stored float weight, by node index; outside of bodies of control flow."""
    found: dict[int, Linear] = {}
    inside = inner_names(graph.nodes)
    for i, node in enumerate(graph.nodes):
        if operator(node) not in KINDS or node.input[1] not in graph.constants or node.input[0] in graph.constants:
            continue
        weight = graph.constants[node.input[1]]
        matrix = "Conv" in node.op_type or (len(weight.dims) == 2 and not attributes(node).get("transA", 0))
        if weight.data_type in FLOATS and matrix and node.output[0] not in inside:
            made = _with_bias(graph, Linear(i, node, node.input[1], tuple(weight.dims), node.output[0]))
            if made is not None:
                found[i] = made
    return found


def _with_bias(graph: Graph, made: Linear) -> Linear | None:
    """The product with the vector that is added to its outputs; None where something else is added inside of it."""
    node, outputs = made.node, made.size[0] * made.size[2]
    if node.op_type != "MatMul":
        bias = node.input[2] if len(node.input) > 2 else ""
        plain = not bias or (bias in graph.constants and math.prod(graph.constants[bias].dims) in (1, outputs))
        return replace(made, bias=bias) if plain else None
    users = graph.consumers.get(node.output[0], [])
    if len(users) != 1 or users[0][1] < 0 or graph.nodes[users[0][0]].op_type != "Add":
        return made
    adder = graph.nodes[users[0][0]]
    other = adder.input[1 - users[0][1]]
    vector = other in graph.constants and tuple(graph.constants[other].dims) == (outputs,)
    return replace(made, bias=other, adder=users[0][0], out=adder.output[0]) if vector else made
