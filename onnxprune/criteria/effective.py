"""What a weight counts for once the operators behind its product are taken into account.

    scale   y = s * (x @ W) per output channel, by BatchNormalization or a Mul with a vector: the weights are s * W
    logits  y = v * sigmoid(x @ W): W says how a unit is gated, not how large it is, and its norm says nothing

Scalars are left out: they scale all units alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.graph import Graph
from onnxprune.inference import TypedGraph
from onnxprune.nodes import attributes, operator

Array = NDArray[Any]
OUTPUTS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": -1}  # the axis of the weights that gives outputs
ADDERS = ("Add", "Sub")
AFFINE = (*ADDERS, "Mul", "Div", "BatchNormalization")
PASSES = ("Identity", "Cast", "Dropout")
MOVES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand", *PASSES)
GATES = ("Sigmoid", "HardSigmoid", "Softmax")


def output_scale(typed: TypedGraph, i: int, j: int) -> Array | None:
    """The factors that the outputs of product i, whose weights are input j, are multiplied by further on: shaped to
    broadcast against the weights. None if there are none.
    """
    node = typed.graph.nodes[i]
    axes = typed.signatures[i].inputs[j] or []
    grouped = node.op_type == "ConvTranspose" and attributes(node).get("group", 1) > 1
    if j != 1 or operator(node) not in OUTPUTS or grouped or len(axes) < 2:
        return None
    axis = 0 if attributes(node).get("transB", 0) else OUTPUTS[node.op_type] % len(axes)
    out = typed.axes.get(node.output[0], [])
    channel = 1 if "Conv" in node.op_type else len(out) - 1
    factors = [s for s in _factors(typed, node.output[0], channel) if s.size == axes[axis].size]
    if not factors:
        return None
    total: Array = np.prod(factors, axis=0)
    return total.reshape([-1 if k == axis else 1 for k in range(len(axes))])


def _factors(typed: TypedGraph, tensor: str, channel: int) -> Iterator[Array]:
    """Vectors that a tensor is multiplied by along its axis `channel`, as long as nothing else reads it."""
    graph = typed.graph
    while len(users := graph.consumers.get(tensor, [])) == 1 and users[0][1] >= 0:
        k, j = users[0]
        node = graph.nodes[k]
        if node.op_type == "BatchNormalization" and channel == 1 and j == 0:
            scale = _normal_scale(graph, node)
            if scale is None:
                return
            yield scale
        elif node.op_type in ("Mul", "Div") and (j == 0 or node.op_type == "Mul"):
            other = graph.nodes[k].input[1 - j]
            vector = _vector(graph, other, len(typed.axes.get(tensor, [])), channel)
            if vector is None:
                return
            yield vector if node.op_type == "Mul" else 1 / np.where(vector == 0, np.inf, vector)
        elif node.op_type not in PASSES and (
            node.op_type not in ADDERS or all(n not in graph.constants for n in node.input)
        ):
            return
        tensor = node.output[0]


def _normal_scale(graph: Graph, node: NodeProto) -> Array | None:
    """gamma / sqrt(variance + epsilon)."""
    gamma, variance = node.input[1], node.input[4]
    if gamma not in graph.constants or variance not in graph.constants or attributes(node).get("training_mode", 0):
        return None
    epsilon = float(attributes(node).get("epsilon", 1e-5))
    return graph.array(gamma) / np.sqrt(graph.array(variance).astype(np.float64) + epsilon)


def _vector(graph: Graph, name: str, rank: int, channel: int) -> Array | None:
    """A constant that varies along one axis of a tensor of `rank` axes only; a scalar gives size 1."""
    if name not in graph.constants:
        return None
    shape = list(graph.constants[name].dims)
    aligned = [1] * (rank - len(shape)) + shape
    if math.prod(shape) != (aligned[channel] if rank and len(aligned) == rank else 1):
        return None
    return graph.array(name).astype(np.float64).reshape(-1)


def gate_logits(typed: TypedGraph) -> set[int]:
    """Products whose outputs go nowhere but through a sigmoid, hard sigmoid or softmax that other activations are
    multiplied by.
    """
    graph = typed.graph
    found: dict[tuple[str, bool], bool] = {}
    return {
        i
        for i, node in enumerate(graph.nodes)
        if operator(node) in OUTPUTS
        and node.input[0] not in graph.constants
        and _only_gates(graph, node.output[0], found)
    }


def _only_gates(graph: Graph, tensor: str, found: dict[tuple[str, bool], bool], squashed: bool = False) -> bool:
    """Whether every use of a tensor is that of a gate; `squashed`: it has been through the gate's function."""
    key = tensor, squashed
    if key not in found:
        found[key] = False  # for graphs with cycles of names, which there are none of
        users = graph.consumers.get(tensor, [])
        ends = tensor in {o.name for o in graph.outputs}
        found[key] = bool(users) and not ends and all(_gates(graph, k, j, found, squashed) for k, j in users)
    return found[key]


def _gates(graph: Graph, k: int, j: int, found: dict[tuple[str, bool], bool], squashed: bool) -> bool:
    node = graph.nodes[k]
    op, others = node.op_type, [n for m, n in enumerate(node.input) if m != j]
    constant = all(n in graph.constants for n in others)
    if j < 0:
        return False
    if op == "Mul" and not constant:
        return squashed
    if op in GATES or _squashes(graph, k, j):
        squashed = True
    elif op not in MOVES and not (constant and (op in AFFINE or (op == "Clip" and squashed))):
        return False
    return all(_only_gates(graph, n, found, squashed) for n in node.output if n)


def _squashes(graph: Graph, k: int, j: int) -> bool:
    """Clip to [0, 1], or to [0, 6] of x + 3: the hard sigmoid as it is written out."""
    node = graph.nodes[k]
    if node.op_type != "Clip" or j != 0:
        return False
    low, high = (_bound(graph, node, m, name) for m, name in ((1, "min"), (2, "max")))
    if low != 0 or high not in (1.0, 6.0):
        return False
    i = graph.producer.get(node.input[0], -1)
    added = [_scalar(graph, n) for n in graph.nodes[i].input] if i >= 0 and graph.nodes[i].op_type == "Add" else []
    return high == 1 or 3.0 in added


def _bound(graph: Graph, node: NodeProto, m: int, name: str) -> float | None:
    given = attributes(node).get(name)
    if given is not None:
        return float(given)
    return _scalar(graph, node.input[m]) if m < len(node.input) else None


def _scalar(graph: Graph, name: str) -> float | None:
    if name not in graph.constants or math.prod(graph.constants[name].dims) != 1:
        return None
    return float(graph.array(name).reshape(-1)[0])
