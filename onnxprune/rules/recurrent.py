"""LSTM, GRU and RNN (opset 1-22): hidden units are one dim, shared by gates, recurrence, states and both directions.

The two directions of a bidirectional layer are a dim as well: with one of them removed the layer is a forward or a
reverse one.
"""

from __future__ import annotations

from functools import partial

from onnxprune.dims import Expr
from onnxprune.rules.rule import Axes, Node, Table


def recurrent(node: Node, gates: int) -> None:
    """X (T, N, I), W (D, g*H, I), R (D, g*H, H), B (D, 2*g*H), lengths (N,), states (D, N, H), P (D, 3*H) -> Y (T, D,
    N, H), Y_h, Y_c.

    With layout 1 the batch comes first everywhere.
    """
    x, w, r = node.axes(0), node.axes(1), node.axes(2)
    hidden, directions = r[2], w[0]
    first = bool(node.attr("layout", 0))
    time, batch = (x[1], x[0]) if first else (x[0], x[1])
    node.freeze(time, "index")
    for j in (2, 3, 7):
        if node.has(j):
            node.unify(node.axes(j)[0], directions)
    node.unify(x[2], w[2])
    gate_rows(node, w[1], hidden, gates)
    gate_rows(node, r[1], hidden, gates)
    if node.has(3):
        gate_rows(node, node.axes(3)[1], hidden, 2 * gates)
    if node.has(4):
        node.unify(node.axes(4)[0], batch)
    state: Axes = [batch, directions, hidden] if first else [directions, batch, hidden]
    for i in (5, 6):
        if node.has(i):
            for a, b in zip(node.axes(i), state, strict=True):
                node.unify(a, b)
    if node.has(7):
        gate_rows(node, node.axes(7)[1], hidden, 3)
    node.out([batch, time, directions, hidden] if first else [time, directions, batch, hidden])
    node.out(list(state), 1)
    node.out(list(state), 2)
    node.edit("hidden_size", hidden, scalar=True)
    directions_choice(node, directions)
    node.read(0, 2, partner=(1, 2))
    node.read(2, 2)


def directions_choice(node: Node, directions: Expr) -> None:
    """A layer that loses one direction names the other; lists with entries for both are halved."""
    if directions.size != 2:
        return
    node.choose("direction", directions, "forward", "reverse")
    for name in ("activations", "activation_alpha", "activation_beta"):
        listed = node.attr(name)
        if listed and len(listed) % 2:
            node.freeze(directions, "structure", f"{name} of both directions cannot be halved")
        elif listed:
            node.choose(name, directions, listed[: len(listed) // 2], listed[len(listed) // 2 :])


def gate_rows(node: Node, rows: Expr, hidden: Expr, count: int) -> None:
    """Rows (count * H) are the same hidden units in each of `count` blocks."""
    outer, inner = node.space.factor(rows, rows.size // count)
    node.freeze(outer, "gates")
    node.unify(inner, hidden)


TABLE: Table = {
    "LSTM": partial(recurrent, gates=4),
    "GRU": partial(recurrent, gates=3),
    "RNN": partial(recurrent, gates=1),
}
