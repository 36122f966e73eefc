"""LSTM, GRU and RNN as products: the pre-activations of their gates,

    z_t = [x_t, h_(t-1)] @ [W', R'] + (Wb + Rb),    direction by direction

The original's x and Y (all hidden states) give its own pre-activations, which are the targets; the slim graph gives
x_t, and the states that are kept of the original stand for h_(t-1), as they are what the mended layer should make. So
W, R and the bias are solved for together (`Part`s). The new gate of GRU sees r * h in place of h; what r multiplies
with linear_before_reset is a product of its own. Peepholes are added after the products and stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.graph import FLOATS, Graph
from onnxprune.nodes import attributes, operator

Array = NDArray[Any]
Picks = NDArray[np.int64]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}


@dataclass(frozen=True)
class Layer:
    """One recurrent node with its stored weights in float32: W (D, g*H, I), R (D, g*H, H), B (D, 2*g*H)."""

    node: NodeProto
    w: Array
    r: Array
    b: Array

    @classmethod
    def of(cls, graph: Graph, node: NodeProto) -> Layer:
        w, r = (graph.array(n).astype(np.float32) for n in node.input[1:3])
        given = len(node.input) > 3 and node.input[3]
        b = (
            graph.array(node.input[3]).astype(np.float32)
            if given
            else np.zeros((w.shape[0], 2 * w.shape[1]), np.float32)
        )
        return cls(node, w, r, b)

    @property
    def gates(self) -> int:
        return GATES[self.node.op_type]

    @property
    def hidden(self) -> int:
        return int(self.r.shape[2])

    @property
    def batch_first(self) -> bool:
        return bool(attributes(self.node).get("layout", 0))

    @property
    def resets_after(self) -> bool:
        return bool(attributes(self.node).get("linear_before_reset", 0))

    def reverse(self, direction: int) -> bool:
        return direction == 1 or attributes(self.node).get("direction") == b"reverse"

    def parts(self) -> list[Part]:
        """The products that are solved for, of each direction."""
        rows = np.arange(self.gates * self.hidden)
        if self.node.op_type != "GRU":
            return [Part(d, rows) for d in range(len(self.w))]
        both, new = rows[: 2 * self.hidden], rows[2 * self.hidden :]
        if self.resets_after:
            kinds = [(both, True, True, False), (new, True, False, False), (new, False, True, False)]
        else:
            kinds = [(both, True, True, False), (new, True, True, True)]
        return [Part(d, *kind) for d in range(len(self.w)) for kind in kinds]


@dataclass(frozen=True)
class Part:
    """A product within a recurrent layer: the `rows` of a direction that it makes, from x (`inputs`) and from h
    (`states`), h being multiplied by the reset gate first (`reset`).
    """

    direction: int
    rows: Picks
    inputs: bool = True
    states: bool = True
    reset: bool = False

    def matrix(self, layer: Layer) -> Array:
        """(1, K, O)"""
        blocks = [m[self.direction][self.rows].T for m, used in self._blocks(layer) if used]
        return np.concatenate(blocks)[None]

    def bias(self, layer: Layer) -> Array:
        """(1, O)"""
        halves = layer.b[self.direction].reshape(2, -1)[:, self.rows]
        return np.asarray(halves[[k for k, used in enumerate((self.inputs, self.states)) if used]].sum(0)[None])

    def put(self, layer: Layer, matrix: Array, bias: Array) -> None:
        """Write a solution into the arrays of a layer; a bias that x and h share is changed on the side of x."""
        change = bias[0] - self.bias(layer)[0]
        side = 0 if self.inputs else 1
        layer.b[self.direction].reshape(2, -1)[side, self.rows] += change
        at = 0
        for m, used in self._blocks(layer):
            if used:
                m[self.direction][self.rows] = matrix[0, at : at + m.shape[2]].T
                at += m.shape[2]

    def _blocks(self, layer: Layer) -> tuple[tuple[Array, bool], tuple[Array, bool]]:
        return (layer.w, self.inputs), (layer.r, self.states)


@dataclass(frozen=True)
class Steps:
    """What one feed shows of a layer at some time steps: x (N, P, I), states before them (N, P, H) and which of them
    count (N, P).
    """

    x: Array
    h: Array
    valid: NDArray[np.bool_]


def steps(layer: Layer, direction: int, picks: Picks, x: Array, y: Array, lengths: Array | None, start: Array) -> Steps:
    """Steps number `picks` of one direction. x (T, N, I), y (T, D, N, H), or with the batch first (N, T, I), (N, T, D,
    H); lengths (N,); start (N, H), the initial state.
    """
    x = x if layer.batch_first else x.swapaxes(0, 1)
    y = (y if layer.batch_first else y.transpose(2, 0, 1, 3))[:, :, direction]
    ends = np.full(len(x), x.shape[1]) if lengths is None else lengths.astype(np.int64)
    reverse = layer.reverse(direction)
    before = picks + 1 if reverse else picks - 1
    h = y[:, np.clip(before, 0, x.shape[1] - 1)].copy()
    first = (before[None] >= ends[:, None]) if reverse else np.broadcast_to(before < 0, (len(x), len(picks)))
    h[first] = np.broadcast_to(start[:, None], h.shape)[first]
    return Steps(x[:, picks], h, picks[None] < ends[:, None])


def targets(layer: Layer, part: Part, seen: Steps) -> Array:
    """What the layer's own weights make at some steps: (N, P, O) for the rows of a part."""
    return np.asarray(columns(layer, part, seen, seen) @ part.matrix(layer)[0] + part.bias(layer)[0])


def columns(layer: Layer, part: Part, seen: Steps, original: Steps, kept: NDArray[np.bool_] | None = None) -> Array:
    """What a part reads at some steps, (N, P, K): x and the states as `seen`; the reset gate is that of `layer` at the
    `original` steps, of the hidden units that are `kept`.
    """
    h = seen.h
    if part.reset:
        gate = _sigmoid(targets(layer, Part(part.direction, layer.hidden + np.arange(layer.hidden)), original))
        h = h * (gate if kept is None else gate[..., kept])
    blocks = [a for a, used in ((seen.x, part.inputs), (h, part.states)) if used]
    return np.concatenate([b.astype(np.float32, copy=False) for b in blocks], 2)


def _sigmoid(z: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(z, -80, 80))))


def refusal(graph: Graph, node: NodeProto) -> str:
    """Why a recurrent layer is left alone, "" if it is not."""
    names = [n for n in node.input[1:4] if n]
    if any(n not in graph.constants or graph.constants[n].data_type not in FLOATS for n in names):
        return "its weights are no stored floats"
    if any(len(graph.consumers[n]) > 1 for n in node.input[1:3]):
        return "its weights are shared"
    if operator(node) == "GRU" and attributes(node).get("activations", [b"Sigmoid"])[0].lower() != b"sigmoid":
        return "its gates have activations of their own"
    return ""


def start(node: NodeProto, got: Mapping[str, Array], layer: Layer, direction: int, batch: int) -> Array:
    """The initial state of a direction, (N, H)."""
    name = node.input[5] if len(node.input) > 5 else ""
    if not name:
        return np.zeros((batch, layer.hidden), np.float32)
    return np.asarray(got[name][:, direction] if layer.batch_first else got[name][direction])
