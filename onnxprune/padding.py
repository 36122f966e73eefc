"""Convolutions and average pools whose padding is written out, for differentiation.

The derivative of a convolution is a transposed one that is told the size of its output, and then splits the padding as
it likes: evenly, the odd one in front. Where a layer pads otherwise (one-sided, as TensorFlow does, or more than the
last window needs) a Pad node does it, and `auto_pad` becomes numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.feeds import Shape
from onnxprune.graph import Graph
from onnxprune.nodes import attributes
from onnxprune.storage import tensor
from onnxprune.trace import Trace

WINDOWS = ("Conv", "AveragePool", "MaxPool", "LpPool")


def with_plain_padding(graph: Graph, facts: Trace) -> Graph:
    """A graph that computes the same; `facts` are those of the graph before gates were put in."""
    nodes: list[NodeProto] = []
    tensors: dict[str, TensorProto] = {}
    for node in graph.nodes:
        out = facts.shapes.get(node.output[0]) if node.output else None
        if node.op_type in WINDOWS and node.domain in ("", "ai.onnx") and out is not None:
            kind = helper.tensor_dtype_to_np_dtype(facts.dtypes[node.output[0]])
            nodes += _plain(graph, node, _input_shape(node, facts.shapes, nodes), out, tensors, kind)
        else:
            nodes.append(node)
    return graph.replace(nodes, {**graph.tensors, **tensors}) if tensors else graph.replace(nodes)


def _input_shape(node: NodeProto, shapes: Mapping[str, Shape], before: Sequence[NodeProto]) -> Shape:
    """The shape of what a window slides over; behind a gate it is that of the gated tensor."""
    name = node.input[0]
    while name not in shapes:
        name = next(n for n in reversed(before) if name in n.output).input[0]
    return shapes[name]


def _plain(
    graph: Graph, node: NodeProto, size: Shape, out: Shape, tensors: dict[str, TensorProto], kind: np.dtype[Any]
) -> list[NodeProto]:
    attrs, rank = attributes(node), len(size) - 2
    kernel = list(attrs.get("kernel_shape") or graph.constants[node.input[1]].dims[2:])
    strides, dilations = list(attrs.get("strides", [1] * rank)), list(attrs.get("dilations", [1] * rank))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    needed = [max(0, (m - 1) * s + e - n) for m, s, e, n in zip(out[2:], strides, spans, size[2:], strict=True)]
    auto = attrs.get("auto_pad", b"NOTSET").decode()
    pads = list(attrs.get("pads", [0] * 2 * rank))
    if auto.startswith("SAME"):
        front = [n // 2 if auto == "SAME_UPPER" else n - n // 2 for n in needed]
        pads = front + [n - f for n, f in zip(needed, front, strict=True)]
    even = pads[:rank] == [n - n // 2 for n in needed]
    if node.op_type not in ("Conv", "AveragePool") or even or attrs.get("ceil_mode", 0):
        return [_with_pads(node, pads)] if auto.startswith("SAME") else [node]
    stem = f"{node.output[0]}.padded"
    made = [_pad_node(graph, node.input[0], stem, [0, 0, *pads[:rank], 0, 0, *pads[rank:]], tensors)]
    plain = _with_pads(node, [0] * 2 * rank)
    plain.input[0] = stem
    if node.op_type == "AveragePool" and not attrs.get("count_include_pad", 0):
        tensors[f"{stem}.share"] = tensor(
            f"{stem}.share", _share(size[2:], out[2:], kernel, strides, dilations, pads[:rank]).astype(kind)
        )
        plain.output[0] = f"{stem}.mean"
        return [*made, plain, helper.make_node("Mul", [f"{stem}.mean", f"{stem}.share"], [node.output[0]])]
    return [*made, plain]


def _with_pads(node: NodeProto, pads: Sequence[int]) -> NodeProto:
    made = NodeProto()
    made.CopyFrom(node)
    kept = [a for a in node.attribute if a.name not in ("pads", "auto_pad")]
    del made.attribute[:]
    made.attribute.extend([*kept, helper.make_attribute("pads", list(pads))])
    return made


def _pad_node(graph: Graph, name: str, out: str, pads: list[int], tensors: dict[str, TensorProto]) -> NodeProto:
    if graph.opsets.get("", 1) < 11:
        return helper.make_node("Pad", [name], [out], pads=pads)
    tensors[f"{out}.pads"] = tensor(f"{out}.pads", np.array(pads, np.int64))
    return helper.make_node("Pad", [name, f"{out}.pads"], [out])


def _share(
    size: Shape, out: Shape, kernel: list[int], strides: list[int], dilations: list[int], front: list[int]
) -> NDArray[np.float64]:
    """Entries of a window over those of them that are not padding, (1, 1, *out)."""
    counts = np.ones((1, 1))
    for n, m, k, s, d, f in zip(size, out, kernel, strides, dilations, front, strict=True):
        places = np.arange(m)[:, None] * s - f + np.arange(k)[None] * d
        counts = counts[..., None] * ((places >= 0) & (places < n)).sum(1)
    return np.asarray(math.prod(kernel) / counts)
