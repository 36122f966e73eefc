"""A unit that always holds the constant c adds W[:, u] * c to what reads it: put that into the bias and zero the
weights.

Exact, and the unit is then unread, so that lossless pruning can take it. Done where the product has no padding: Gemm,
MatMul, and Conv whose windows never leave the image. Weights that several nodes share stay as they are: a copy
would cost more than the unit saves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from onnxprune.constancy import Constancy, constancy_of
from onnxprune.dims import Dim, Expr, atoms, is_frozen, spread
from onnxprune.graph import FLOATS, Graph
from onnxprune.inference import TypedGraph
from onnxprune.manager import State
from onnxprune.nodes import attributes
from onnxprune.sparse import Sparse
from onnxprune.storage import Source, tensor


@dataclass(frozen=True)
class AbsorbConstants:
    """Fold constant units into the next bias."""

    name: ClassVar[str] = "absorb-constants"
    keeps_facts: ClassVar[bool] = False

    def run(self, state: State) -> Graph:
        typed = state.typed
        constancy = constancy_of(typed)
        nodes: list[NodeProto] = []
        stored = _Stored(typed.graph)
        for i, node in enumerate(typed.graph.nodes):
            nodes += _absorb(typed, constancy, i, stored) or [node]
        return typed.graph.replace(nodes, stored.tensors, sources=stored.sources) if stored.grown else typed.graph


def _absorb(typed: TypedGraph, constancy: Constancy, i: int, stored: _Stored) -> list[NodeProto] | None:
    node, signature = typed.graph.nodes[i], typed.signatures[i]
    if node.op_type not in ("Conv", "Gemm", "MatMul") or not signature.reads or signature.reads[0].partner is None:
        return None
    read = signature.reads[0]
    axis = (signature.inputs[0] or [])[read.axis]
    constants = _constants(constancy.at(i, 0), axis)
    if is_frozen(axis) or not constants.any() or node.input[1] not in typed.graph.constants or not _exact(typed, node):
        return None
    if typed.graph.constants[node.input[1]].data_type not in FLOATS or _is_shared(typed, node.input[1]):
        return None
    weight = np.moveaxis(typed.graph.array(node.input[1]), signature.reads[0].partner[1], 0)  # (K, outputs, ...)
    held = weight[constants != 0].astype(np.float64)
    if not held.any() or (node.op_type == "MatMul" and weight.ndim != 2):
        return None
    extra = np.tensordot(constants[constants != 0], held, 1)
    extra = extra.reshape(extra.shape[0], -1).sum(1) if node.op_type == "Conv" else extra
    left = weight.copy()
    left[constants != 0] = 0
    name = stored.replace(node.input[1], np.moveaxis(left, 0, signature.reads[0].partner[1]))
    return _with_bias(typed, node, name, extra * float(attributes(node).get("alpha", 1.0)), weight.dtype, stored)


def _constants(values: dict[Dim, NDArray[np.float64]], axis: Expr) -> NDArray[np.float64]:
    """Per index of an axis the non-zero constant that it holds, 0 where it holds none. An index of a product is
    constant if either unit is.
    """
    known = {d: v for d, v in values.items() if d in set(atoms(axis))}
    return np.nan_to_num(spread(axis, known, np.fmax, np.nan).astype(np.float64), posinf=0, neginf=0)


def _exact(typed: TypedGraph, node: NodeProto) -> bool:
    """No padding, one group, and a bias that is absent or a constant vector."""
    attrs = attributes(node)
    padded = any(attrs.get("pads", [])) or attrs.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    biased = len(node.input) > 2 and node.input[2] != ""
    plain = not biased or (
        node.input[2] in typed.graph.constants and len(typed.graph.constants[node.input[2]].dims) == 1
    )
    return (
        not padded
        and attrs.get("group", 1) == 1
        and attrs.get("beta", 1.0) == 1.0
        and not attrs.get("transA", 0)
        and plain
    )


def _with_bias(
    typed: TypedGraph,
    node: NodeProto,
    weight: str,
    extra: NDArray[np.float64],
    kind: Any,
    stored: _Stored,
) -> list[NodeProto]:
    made = NodeProto()
    made.CopyFrom(node)
    made.input[1] = weight
    if node.op_type == "MatMul":
        raw = f"{node.output[0]}.unbiased"
        made.output[0] = raw
        bias = stored.add(f"{node.output[0]}.absorbed", extra.astype(kind))
        return [
            made,
            helper.make_node("Add", [raw, bias], [node.output[0]], name=f"{node.name or node.output[0]}.absorbed"),
        ]
    old = typed.graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(extra.shape)
    bias = stored.add(f"{node.output[0]}.absorbed", (old + extra).astype(kind))
    del made.input[2:]
    made.input.append(bias)
    return [made]


def _is_shared(typed: TypedGraph, name: str) -> bool:
    return len(typed.graph.consumers[name]) > 1 or name in {o.name for o in typed.graph.outputs}


class _Stored:
    """The constants of a graph, as they become."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.tensors = graph, dict(graph.tensors)
        self.sources: dict[str, Source] = dict(graph.sources)

    @property
    def grown(self) -> bool:
        return len(self.tensors) > len(self.graph.tensors)

    def replace(self, name: str, array: NDArray[Any]) -> str:
        """Store a weight under its own name, or under a new one where a Constant node holds it; a sparse one stays
        sparse.
        """
        like, old = self.tensors.get(name), self.graph.source(name)
        name = self.graph.unused_name(f"{name}.absorbed", self.tensors) if like is None else name
        if isinstance(old, Sparse):
            self.sources[name] = made = old.holding(array).named(name)
            self.tensors[name] = made.hollow(name)
        else:
            self.tensors[name] = tensor(name, array, like)
        return name

    def add(self, stem: str, array: NDArray[Any]) -> str:
        name = self.graph.unused_name(stem, self.tensors)
        self.tensors[name] = tensor(name, array)
        return name
