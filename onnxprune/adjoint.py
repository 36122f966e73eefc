"""The derivative of an ONNX model, as another one: the package onnx-ad makes it, and it is made fast here.

What comes out of reverse mode multiplies every gradient by a mask where ONNX has an operator for it that is slow
(`Where` with a scalar), transposes convolutions of which another convolution does the same, and holds the derivatives
of constants that nobody asked for.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, version_converter

from onnxprune.errors import InputError
from onnxprune.graph import Graph
from onnxprune.nodes import attributes, captured
from onnxprune.padding import with_plain_padding
from onnxprune.sessions import Feeds
from onnxprune.trace import Trace

OPSET = 17  # older graphs are converted first: some of their operators have no derivative
PREFIX = "onnxprune.adjoint."  # of the names of gradients
OTHERS = "choose a criterion without gradients, such as wanda or flap"


def has_batch(graph: Graph) -> bool:
    """Whether samples can be told apart: every input with axes has a free first one."""
    ranked = [v.type.tensor_type.shape.dim[0] for v in graph.inputs if v.type.tensor_type.shape.dim]
    return bool(ranked) and not any(d.dim_value > 1 for d in ranked)


def opened(
    graph: Graph, nodes: Sequence[NodeProto], facts: Trace, inputs: Feeds, like: Mapping[str, str]
) -> ModelProto:
    """The model of a graph with other `nodes`, ready to be differentiated: of fixed shapes, with further `inputs`. The
    tensors that the nodes make besides are `like` those of the graph.
    """
    model = with_plain_padding(graph.replace(nodes), facts).to_proto()
    for name, array in inputs.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.input.append(helper.make_tensor_value_info(name, kind, array.shape))
    _state_shapes(model, facts, like)
    return model


def differentiate(
    model: ModelProto, inputs: Sequence[str], outputs: Sequence[str], who: str, finite: bool = False
) -> ModelProto:
    """A model with the inputs of `model` and a gradient (*shape, 1) for each of its `outputs`, that gives those for
    `inputs`; all named with PREFIX. `finite`: what is masked out is finite, so a product will do for the mask.
    InputError where onnx-ad cannot differentiate.
    """
    from onnx_ad import UnsupportedOperator, reverse  # which few runs need

    try:
        differentiated: Callable[..., ModelProto] = reverse
        made = differentiated(
            _recent(model), inputs=list(inputs), outputs=list(outputs), prefix=PREFIX, dim="seeds", layout="onnx"
        )
    except UnsupportedOperator as error:
        raise InputError(
            f"{who} takes gradients, and onnx-ad cannot differentiate this model: {error}; {OTHERS}"
        ) from error
    gc.collect()  # what onnx-ad leaves refers to itself, copies of all weights among it
    return _simpler(made, [PREFIX + n for n in inputs], finite)


def _state_shapes(model: ModelProto, facts: Trace, gated: Mapping[str, str]) -> None:
    """Declare the concrete shapes of inputs, outputs and activations; those in `gated` are like others."""
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        if value.name in facts.shapes and value.type.HasField("tensor_type"):
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, facts.shapes[value.name]))
    known = {v.name for v in (*model.graph.input, *model.graph.output)}
    for name in (n for node in model.graph.node for n in node.output):
        like = gated.get(name, name)
        if name not in known and facts.dtypes.get(like) and like in facts.shapes:
            model.graph.value_info.append(helper.make_tensor_value_info(name, facts.dtypes[like], facts.shapes[like]))


def _recent(model: ModelProto) -> ModelProto:
    """The model in a recent opset, or as it is where onnx cannot convert it."""
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), OPSET)
    if opset >= OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception:  # its errors share no base class
        return model


def _simpler(model: ModelProto, wanted: Sequence[str], finite: bool) -> ModelProto:
    """The same function, of the wanted outputs only."""
    graph = model.graph
    tensors = {t.name: t for t in graph.initializer}
    made = [m for n in graph.node for m in (finite and _masked(n, tensors)) or _convolved(n, tensors) or [n]]
    needed, kept = set(wanted), list[NodeProto]()
    for node in reversed(made):
        if not needed.isdisjoint(node.output):
            kept.append(node)
            needed.update(node.input, captured(node))
    outputs = [o for o in graph.output if o.name in wanted]
    inputs = [i for i in graph.input if i.name in needed or i.name not in tensors]  # IR version 3 lists initialisers
    del graph.node[:], graph.initializer[:], graph.output[:], graph.input[:]
    graph.node.extend(reversed(kept))
    graph.input.extend(inputs)
    graph.initializer.extend(t for n, t in tensors.items() if n in needed)
    graph.output.extend(outputs)
    return model


def _masked(node: NodeProto, tensors: Mapping[str, TensorProto]) -> list[NodeProto]:
    """Where(mask, gradient, 0) as a product; [] for other nodes."""
    zero = tensors.get(node.input[2]) if node.op_type == "Where" else None
    if zero is None or np.prod(zero.dims) != 1 or numpy_helper.to_array(zero).any():
        return []
    factor = f"{node.output[0]}.factor"
    return [
        helper.make_node("Cast", [node.input[0]], [factor], to=zero.data_type),
        helper.make_node("Mul", [node.input[1], factor], node.output),
    ]


def _convolved(node: NodeProto, tensors: dict[str, TensorProto]) -> list[NodeProto]:
    """ConvTranspose with stride 1 as the convolution with the mirrored kernel; [] for other nodes."""
    weight = tensors.get(node.input[1]) if node.op_type == "ConvTranspose" else None
    if weight is None or len(node.input) > 2:
        return []
    attrs, rank = attributes(node), len(weight.dims) - 2
    group, dilations = int(attrs.get("group", 1)), attrs.get("dilations", [1] * rank)
    before, after = (attrs.get("pads", [0] * 2 * rank)[k : k + rank] for k in (0, rank))
    reach = [(k - 1) * d for k, d in zip(weight.dims[2:], dilations, strict=True)]
    pads = [r - p for r, p in zip(reach * 2, [*before, *after], strict=True)]
    split = all(0 <= b - a <= 1 for b, a in zip(before, after, strict=True))  # as it is done for a given output shape
    if any(n != 1 for n in attrs.get("strides", ())) or min(pads) < 0 or not split:
        return []
    array = numpy_helper.to_array(weight)  # (O, I / group, *kernel)
    grouped = array.reshape(group, -1, *array.shape[1:]).swapaxes(1, 2)
    mirrored = np.flip(grouped.reshape(-1, *grouped.shape[2:]), tuple(range(2, 2 + rank)))
    name = f"{node.output[0]}.kernel"
    tensors[name] = numpy_helper.from_array(np.ascontiguousarray(mirrored), name)
    return [
        helper.make_node("Conv", [node.input[0], name], node.output, pads=pads, group=group, dilations=list(dilations))
    ]
