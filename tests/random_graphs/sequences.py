"""Recurrent layers, attention, control flow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper

from tests.random_graphs.builder import SIZES, Builder, Ref, Tensor, replaced
from tests.random_graphs.moves import Moves, moves

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Relu"]}


def recurrent(b: Builder, op: str) -> None:
    """Steps in front; one direction or both; bias, lengths, states and peepholes at times."""
    t = b.pick(2, batched=True)
    (steps, width), h, g = t.shape, b.rng.choice((2, 3, 4)), GATES[op]
    direction = b.rng.choice(("forward", "reverse", "bidirectional"))
    d = 2 if direction == "bidirectional" else 1
    weights = [b.plain(d, g * h, width, fan=width), b.plain(d, g * h, h, fan=h)]
    bias = b.plain(d, 2 * g * h, fan=4) if b.rng.random() < 0.6 else ""
    lengths = _lengths(b, t) if b.rng.random() < 0.3 else ""
    state = [_state(b, t, d, h) for _ in range(2 if op == "LSTM" else 1)] if b.rng.random() < 0.4 else []
    peephole = ["", b.plain(d, 3 * h, fan=4)][-1:] if op == "LSTM" and len(state) == 2 and b.rng.random() < 0.5 else []
    options: dict[str, Any] = {"activations": ACTIVATIONS[op] * d} if b.rng.random() < 0.3 else {}
    options |= {"linear_before_reset": b.rng.randint(0, 1)} if op == "GRU" else {}
    x = b.one("Transpose", t, perm=[1, 0, 2])
    made = b.raw(op, [x, *weights, bias, lengths, *state, *peephole], 2, hidden_size=h, direction=direction, **options)
    way = b.rng.choice(("all", "last", "both"))
    if way != "last":
        b.op("Transpose", [made[0]], t, [steps, d, h], perm=[2, 0, 1, 3])
    if way != "all":
        b.op("Transpose", [made[1]], t, [d, h], perm=[1, 0, 2])


def _lengths(b: Builder, t: Tensor) -> str:
    """2 steps of each sample."""
    return b.one("Expand", b.fixed([2], np.int32), b.size_of(t)) if b.opset >= 8 and t.shape[0] > 1 else ""


def _state(b: Builder, t: Tensor, d: int, h: int) -> str:
    """(D, N, H) from data."""
    return b.one("Transpose", b.mate(t, d, h), perm=[1, 0, 2])


def heads(b: Builder, t: Tensor, count: int, size: int) -> Tensor:
    """(N, S, count * size)"""
    return b.op("MatMul", [t, b.weight(t.shape[1], count * size)], t, [t.shape[0], count * size])


def by_head(b: Builder, t: Tensor, count: int) -> str:
    """(N, S, H * D) as (N, H, S, D)"""
    split = b.one("Reshape", t, b.ints(0, 0, count, -1))
    return b.one("Transpose", split, perm=[0, 2, 1, 3])


def joined(b: Builder, t: str, like: Tensor, steps: int, width: int) -> Tensor:
    """(N, H, S, D) as (N, S, H * D)"""
    turned = b.one("Transpose", t, perm=[0, 2, 1, 3])
    return b.op("Reshape", [turned, b.ints(0, 0, width)], like, [steps, width])


def attention(b: Builder, op: str) -> None:
    """In either form, with groups of query heads, a mask, a scale."""
    t = b.pick(2, batched=True)
    groups, per_group, size, value = b.rng.choice((1, 2)), b.rng.choice((1, 2)), *b.rng.choices((2, 3, 4), k=2)
    count, steps = groups * per_group, t.shape[0]
    q, k, v = heads(b, t, count, size), heads(b, t, groups, size), heads(b, t, groups, value)
    mask = b.const(b.noise(*b.rng.choice(((steps, steps), (1, count, steps, steps))))) if b.rng.random() < 0.4 else ""
    options: dict[str, Any] = {"scale": 0.4} if b.rng.random() < 0.4 else {}
    options |= {"is_causal": 1} if not mask and b.rng.random() < 0.4 else {}
    if b.rng.random() < 0.5:
        options |= {"q_num_heads": count, "kv_num_heads": groups}
        b.op(op, [q, k, v, *[mask][: bool(mask)]], t, [steps, count * value], **options)
        return
    parts = [by_head(b, q, count), by_head(b, k, groups), by_head(b, v, groups)]
    joined(b, b.one(op, *parts, *[mask][: bool(mask)], **options), t, steps, count * value)


def rotary(b: Builder, op: str) -> None:
    """Angles from data; all channels of a head are turned, or some."""
    t = b.pick(2, batched=True)
    count, pairs, rest, steps = b.rng.choice((1, 2)), b.rng.choice((1, 2, 3)), b.rng.choice((0, 0, 2)), t.shape[0]
    x = heads(b, t, count, 2 * pairs + rest)
    tables = [b.one(f, b.mate(t, steps, pairs)) for f in ("Cos", "Sin")]
    options = {"interleaved": b.rng.randint(0, 1), **({"rotary_embedding_dim": 2 * pairs} if rest else {})}
    if b.rng.random() < 0.6:
        b.op(op, [x, *tables], t, x.shape, num_heads=count, **options)
    else:
        joined(b, b.one(op, by_head(b, x, count), *tables, **options), t, *x.shape)


@dataclass(frozen=True)
class Body:
    """The nodes of a body, and how many initialisers there were before."""

    nodes: list[NodeProto]
    stored: int


@contextmanager
def body(b: Builder) -> Iterator[Body]:
    """Nodes made in it are collected apart; what they leave is not seen outside."""
    nodes, b.nodes = b.nodes, []
    b.inside += 1
    pool, shared = list(b.pool), {k: list(v) for k, v in b.shared.items()}
    try:
        yield Body(b.nodes, len(b.stored))
    finally:
        b.nodes, b.pool, b.shared = nodes, pool, shared
        b.inside -= 1


def typed(b: Builder, name: str, like: Tensor, shape: Sequence[int]) -> ValueInfoProto:
    """A float tensor of a body, its sizes stated or only its rank, which Scan wants to know."""
    sizes = [*like.lead, *shape] if b.rng.random() < 0.5 else [None] * (len(like.lead) + len(shape))
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)


def graph(b: Builder, made: Body, inputs: list[Any], outputs: list[ValueInfoProto]) -> GraphProto:
    """A body; its weights are its own initialisers at times, else captured."""
    own = b.stored[made.stored :] if b.rng.random() < 0.5 else []
    del b.stored[len(b.stored) - len(own) :]
    return helper.make_graph(made.nodes, b.name("body"), inputs, outputs, own)


def step(b: Builder, t: Ref, shape: tuple[int, ...], like: Tensor) -> str:
    """Something small that keeps the shape: a function, a weight entry by entry, a residual block, a capture."""
    way = b.rng.choice(("function", "weight", "block", "capture"))
    if way == "weight":
        return b.one(b.rng.choice(("Mul", "Add")), t, b.weight(shape[-1], fan=1))
    if way == "block":
        inner = b.rng.choice(SIZES[:4])
        up = b.one("Tanh", b.one("MatMul", t, b.weight(shape[-1], inner)))
        return b.one("Add", t, b.one("MatMul", up, b.weight(inner, shape[-1])))
    captured = [o for o in b.pool if o.lead == like.lead and o.shape == shape]
    if way == "capture" and captured:
        return b.one("Add", b.one("Tanh", t), b.rng.choice(captured))
    return b.one(b.rng.choice(("Tanh", "Relu", "Neg", "Sigmoid")), t)


def condition(b: Builder, t: Tensor) -> str:
    """A boolean input, or whether the largest entry is above a bound."""
    if b.rng.random() < 0.5:
        b.flagged = True
        return "flag"
    return b.one("Greater", b.one("ReduceMax", t, keepdims=0), b.fixed(1.0))


def branch(b: Builder, op: str) -> None:
    t = b.pick()
    chosen = condition(b, t)
    b.mate(t, *t.shape)
    branches = {}
    for side in ("then_branch", "else_branch"):
        with body(b) as made_in:
            made = step(b, step(b, t, t.shape, t), t.shape, t)
            branches[side] = graph(b, made_in, [], [typed(b, made, t, t.shape)])
    b.op(op, [chosen], t, t.shape, **branches)


def loop(b: Builder, op: str) -> None:
    """A value that is carried, a slice that is put out at each step, at times a branch inside."""
    t = b.pick(fits=lambda t: t.rank < 4 and t.size <= 100)
    trips, scanned = b.rng.choice((1, 2, 3)), b.rng.random() < 0.4
    value = b.one("Identity", t)
    going = b.fixed(True, np.bool_)
    with body(b) as made_in:
        number, ongoing, carried = b.name(), b.name(), b.name()
        made = step(b, carried, t.shape, t)
        if b.rng.random() < 0.3:
            made = nested(b, made, t)
        outputs = [helper.make_tensor_value_info(b.one("Identity", ongoing), TensorProto.BOOL, [])]
        outputs += [typed(b, b.one(f, made), t, t.shape) for f in ("Tanh", "Neg")[: 1 + scanned]]
        inputs = [
            helper.make_tensor_value_info(number, TensorProto.INT64, []),
            helper.make_tensor_value_info(ongoing, TensorProto.BOOL, []),
            typed(b, carried, t, t.shape),
        ]
        inner = graph(b, made_in, inputs, outputs)
    results = b.raw(op, [b.fixed(trips, np.int64), going, value], 1 + scanned, body=inner)
    b.add(results[0], t.lead, t.shape)
    if scanned:
        perm = [*range(1, 1 + len(t.lead)), 0, *range(1 + len(t.lead), 1 + len(t.lead) + t.rank)]
        b.op("Transpose", [results[1]], t, [trips, *t.shape], perm=perm)


def nested(b: Builder, value: str, t: Tensor) -> str:
    """A branch inside of a body."""
    chosen = condition(b, t)
    branches = {}
    for side in ("then_branch", "else_branch"):
        with body(b) as made_in:
            branches[side] = graph(b, made_in, [], [typed(b, step(b, value, t.shape, t), t, t.shape)])
    return b.one("If", chosen, **branches)


def scan(b: Builder, op: str) -> None:
    """Along a sample axis: a state, and a slice for each slice."""
    t = b.pick(fits=lambda t: t.rank > 1)
    at = b.axis(t)
    rest = replaced(t.shape, at)
    stateful = b.rng.random() < 0.6
    first = [b.mate(t, *rest).name] if stateful else []
    with body(b) as made_in:
        names = [b.name() for _ in range(len(first) + 1)]
        made = step(b, names[-1], rest, t)
        outputs = [b.one("Tanh", b.one("Add", names[0], made))] if stateful else []
        outputs.append(b.one("Relu", outputs[0] if stateful and b.rng.random() < 0.5 else made))
        inner = graph(b, made_in, *([typed(b, n, t, rest) for n in listed] for listed in (names, outputs)))
    axes: dict[str, Any] = {"scan_input_axes": [t.at(at)], "scan_output_axes": [t.at(at)], "num_scan_inputs": 1}
    results = b.raw(op, [*first, t], len(outputs), body=inner, **axes)
    b.add(results[-1], t.lead, t.shape)
    if stateful:
        b.add(results[0], t.lead, rest)


TABLE: Moves = {
    **moves("LSTM GRU RNN", recurrent),
    **moves("Attention", attention, since=23),
    **moves("RotaryEmbedding", rotary, since=23),
    **moves("If", branch, since=9),
    **moves("Loop", loop, since=11),
    **moves("Scan", scan, since=9),
}
