"""Control flow over the flat node list (see `flow.py`): bodies are typed like everything else, and tied to what goes in
and comes out.

If     both branches' results are the same expressions as the outputs
Loop   what is carried is one expression: initial value, body input, body output,
        result; scan outputs gain a leading axis
Scan   states as in Loop; scan inputs lose their scanned axis inside, scan outputs gain one
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.errors import Barrier
from onnxprune.flow import carried
from onnxprune.rules.rule import Axes, Node, Table


def enter(node: Node) -> None:
    """Body inputs: none for If; iteration number, condition and carried values for Loop; states and slices for Scan."""
    node.out([])
    scanned = int(node.attr("num_scan_inputs", -1))
    given = range(len(node.inputs))
    for i in given:
        if node.has(i):
            node.axes(i)
    if scanned >= 0:  # Scan
        states = len(given) - scanned
        for i in given:
            node.out(node.axes(i) if i < states else _slice(node, i, i - states), 1 + i)
    elif len(node.outputs) > 1:  # Loop
        for i in given:
            node.out(node.axes(i) if i > 1 else [], 1 + i)


def _slice(node: Node, i: int, k: int) -> Axes:
    """Axes of a scan input without the one that is scanned."""
    x = node.axes(i)
    axes = node.attr("scan_input_axes", [0] * (k + 1))
    node.freeze(x[axes[k]], "index")
    return [e for a, e in enumerate(x) if a != axes[k] % len(x)]


def leave(node: Node) -> None:
    """Results of a body; what a Loop or Scan carries has the axes that it entered with."""
    results = len(node.outputs)
    for k in range(1, len(node.inputs)):
        node.axes(k)
    node.axes(0)
    for k, i in carried(node.proto):
        _same(node, node.axes(k), node.axes(i))
    for k in range(results):
        node.out(node.axes(1 + k), k)


def _same(node: Node, a: Sequence[object], b: Axes) -> None:
    if len(a) != len(b):
        raise Barrier("control-flow", "its rank changes from one iteration to the next")
    for x, y in zip(a, b, strict=True):
        node.unify(x, y)  # type: ignore[arg-type]


def branch(node: Node) -> None:
    """If (opset 1-25): outputs are either branch's results."""
    own = int(node.attr("flow_inputs", len(node.inputs)))
    if own == len(node.inputs):
        raise Barrier("control-flow", "If")
    node.axes(0)
    count = len(node.outputs)
    for k in range(count):
        then, other = node.axes(own + k), node.axes(own + count + k)
        _same(node, then, other)
        node.out(then, k)


def loop(node: Node) -> None:
    """Loop (opset 1-25): inputs M, condition, carried values; results are the condition, carried values, scan
    outputs.
    """
    own = int(node.attr("flow_inputs", len(node.inputs)))
    if own == len(node.inputs):
        raise Barrier("control-flow", "Loop")
    for i in (0, 1, own):
        if node.has(i):
            node.axes(i)
    for k in range(len(node.outputs)):
        result = node.axes(own + 1 + k)
        if k < own - 2:
            _same(node, node.axes(2 + k), result)
            node.out(result, k)
        else:
            node.out([node.fixed(node.out_shape(k)[0], "control-flow"), *result], k)


def scan(node: Node) -> None:
    """Scan (opset 9-25): inputs are states, then scan inputs; results are states, then slices of the scan outputs."""
    own = int(node.attr("flow_inputs", len(node.inputs)))
    if own == len(node.inputs) or node.opset < 9:
        raise Barrier("control-flow", "Scan")
    states = own - int(node.attr("num_scan_inputs"))
    placed = node.attr("scan_output_axes", [0] * len(node.outputs))
    for i in range(own):
        node.axes(i)
    for k in range(len(node.outputs)):
        result = list(node.axes(own + k))
        if k < states:
            _same(node, node.axes(k), result)
        else:
            at = placed[k - states] % (len(result) + 1)
            result.insert(at, node.fixed(node.out_shape(k)[at], "control-flow"))
        node.out(result, k)


TABLE: Table = {"BodyEnter": enter, "BodyLeave": leave, "If": branch, "Loop": loop, "Scan": scan}
