"""Test rows: a small model in ONNX text, what inference must find in it, and the oracle that every cut of it must pass.

    text     `(inputs) => (outputs) <weights, constants> { nodes }`; names that no node makes become random weights
    free     the prunable dims, `name=size`, separated by blanks, e.g. "A:1=8 B:0/1=4"
    frozen   some axes that are not, `tensor:axis=code` with a code of `REASONS`

A weight whose name ends in `_pos` is positive (variances, operands of Log and Sqrt).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.dims import Dim, Mask, atoms, frozen_reason, keep
from onnxprune.feeds import random_feeds
from onnxprune.inference import TypedGraph, infer
from onnxprune.passes.prune import cut
from onnxprune.reading import load
from onnxprune.sessions import Feeds
from onnxprune.trace import trace
from onnxprune.validate.surgery_check import surgery_check

RANDOM_PLANS = 2
MANY = 8  # pairs of inputs, so that a unit that is at rest for most inputs, or below a maximum, is seen


@dataclass(frozen=True)
class Row:
    """One edge case of an operator. `runs`: ONNX Runtime has a CPU kernel for it; `valid`: the checker lets it pass."""

    op: str
    title: str
    text: str
    free: str = ""
    frozen: str = ""
    opset: int = 21
    runs: bool = True
    valid: bool = True

    def __str__(self) -> str:
        return f"{self.op}-{self.title}".replace(" ", "-")


def build(text: str, opset: int = 21, seed: int = 0) -> ModelProto:
    """A model from text; names that are declared but never made become seeded random initialisers."""
    ir = 3 if opset < 9 else 8 if opset < 19 else 10
    others = sorted(set(re.findall(r"\b(?:com|ai\.onnx)\.[a-z]+", text)))
    domains = ", ".join([f'"" : {opset}', *(f'"{name}" : 1' for name in others)])
    model = onnx.parser.parse_model(f"<ir_version: {max(ir, 4)}, opset_import: [{domains}]> agraph {text}")
    made = {name for node in model.graph.node for name in node.output}
    rng = np.random.default_rng(seed)
    declared = list(model.graph.value_info)
    del model.graph.value_info[:]
    for value in declared:
        if value.name in made:
            model.graph.value_info.append(value)
        else:
            model.graph.initializer.append(_weight(value, rng))
    return model


def _weight(value: onnx.ValueInfoProto, rng: np.random.Generator) -> TensorProto:
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
    array = rng.standard_normal(shape) if kind.kind == "f" else rng.integers(1, 5, shape)
    array = np.abs(array) + 0.5 if value.name.endswith("_pos") else array
    return numpy_helper.from_array(np.asarray(array, kind), value.name)


def typed_model(model: ModelProto) -> TypedGraph:
    graph = load(model)
    return infer(graph, trace(graph))


def free_dims(typed: TypedGraph) -> str:
    return " ".join(f"{d.name}={d.dim.size}" for d in typed.prunable)


def reason_code(typed: TypedGraph, place: str) -> str:
    """Why `tensor:axis` is frozen: the axes of a constant are those of its first use."""
    tensor, _, axis = place.rpartition(":")
    axes = typed.weights[tensor][0].axes if tensor in typed.weights else typed.axes[tensor]
    reason = frozen_reason(axes[int(axis)])
    return reason.code if reason else "free"


def plans(typed: TypedGraph, seed: int = 0) -> Iterator[dict[Dim, Mask]]:
    """First half, last half, all but one unit, and random units of every dim; then half of each dim alone."""
    dims = [d.dim for d in typed.prunable]
    if not dims:
        return
    rng = np.random.default_rng(seed)
    yield {d: np.arange(d.size) >= d.size // 2 for d in dims}
    yield {d: np.arange(d.size) < (d.size + 1) // 2 for d in dims}
    yield {d: np.arange(d.size) == d.size - 1 for d in dims}
    for _ in range(RANDOM_PLANS):
        yield {d: _random_mask(d.size, rng) for d in dims}
    if len(dims) > 1:
        yield from ({d: _random_mask(d.size, rng)} for d in dims)


def _random_mask(size: int, rng: np.random.Generator) -> Mask:
    mask = rng.random(size) < 0.5
    mask[rng.integers(size)] = True
    mask[(np.flatnonzero(mask)[0] + 1) % size] = False
    return mask


def feeds_for(typed: TypedGraph, count: int = 2, first: int = 0) -> list[Feeds]:
    """`count` pairs of random inputs: at both traced bindings, where dynamic axes take two sizes."""
    bindings = (typed.facts.binding, typed.facts.other)
    return [random_feeds(typed.graph, b, k) for k in range(first, first + count) for b in bindings]


def check_cut(
    typed: TypedGraph, masks: dict[Dim, Mask], runs: bool = True, valid: bool = True, tries: int = 1
) -> ModelProto:
    """Cut, and let every oracle look at the result: the checker, the traced shapes, the masked original. `tries`: sets
    of inputs of which one must pass, for graphs where a rounding that falls on a step shows.
    """
    pruned = cut(typed, masks).to_proto()
    if valid:
        onnx.checker.check_model(pruned)
    facts = trace(load(pruned))
    for name, axes in typed.axes.items():
        if name in facts.shapes:
            assert facts.shapes[name] == tuple(int(keep(e, masks).sum()) for e in axes), name
    if runs:
        checks = (surgery_check(typed, masks, pruned, feeds_for(typed, first=2 * k)) for k in range(tries))
        result = next((r for r in checks if r.passed), None) or surgery_check(typed, masks, pruned, feeds_for(typed))
        assert result.passed, f"{result} under { {d: m.astype(int).tolist() for d, m in masks.items()} }"
    return pruned


def check_row(row: Row) -> None:
    """Inference finds what the row says, and every plan cuts as the masked original."""
    model = build(row.text, row.opset)
    if row.valid:
        onnx.checker.check_model(model)
    typed = typed_model(model)
    assert free_dims(typed) == row.free
    for place, code in (entry.split("=") for entry in row.frozen.split()):
        assert reason_code(typed, place) == code, place
    for masks in plans(typed):
        check_cut(typed, masks, row.runs, row.valid)


def check_sensitive(row: Row) -> None:
    """The surgery check can fail: a mask that is dropped and a weight that is changed are both seen."""
    typed = typed_model(build(row.text, row.opset))
    masks = next(plans(typed))
    pruned, feeds = cut(typed, masks).to_proto(), feeds_for(typed, MANY)
    for d in masks.keys() & read_dims(typed):
        assert not surgery_check(typed, {k: m for k, m in masks.items() if k is not d}, pruned, feeds).passed, d
    assert not all(surgery_check(typed, masks, wrong, feeds).passed for wrong in corrupted(pruned))


def read_dims(typed: TypedGraph) -> set[Dim]:
    """Dims that some operator sums over or compares: units that nothing reads can go unseen."""
    return {d for s in typed.signatures for r in s.reads for d in atoms(r.expr)}


def corrupted(model: ModelProto) -> Iterator[ModelProto]:
    """The model with one entry changed in its last float matrix, for one entry after the other."""
    at = max(k for k, t in enumerate(model.graph.initializer) if t.data_type == TensorProto.FLOAT and len(t.dims) > 1)
    for k in range(numpy_helper.to_array(model.graph.initializer[at]).size):
        wrong = ModelProto()
        wrong.CopyFrom(model)
        array = numpy_helper.to_array(model.graph.initializer[at]).copy()
        array.reshape(-1)[k] += 1 + abs(array).max()
        wrong.graph.initializer[at].CopyFrom(numpy_helper.from_array(array, model.graph.initializer[at].name))
        yield wrong


def plant(model: ModelProto, rng: Random) -> ModelProto:
    """Set random slices of weights to zero, some to one."""
    for t in model.graph.initializer:
        array = numpy_helper.to_array(t).copy()
        if array.dtype.kind != "f" or not array.ndim or rng.random() < 0.3:
            continue
        at = rng.randrange(array.ndim)
        np.moveaxis(array, at, 0)[[rng.random() < 0.5 for _ in range(array.shape[at])]] = rng.choice((0, 0, 0, 1))
        t.CopyFrom(numpy_helper.from_array(array, t.name))
    return model


# frames: `h` with 8 prunable units comes in, `g` goes out
def vector(body: str, weights: str = "") -> str:
    """h (N, 8)"""
    return (
        f"(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8,3] B{_more(weights)}>"
        f"{{ h = MatMul(x, A) {body} y = MatMul(g, B) }}"
    )


def tokens(body: str, weights: str = "") -> str:
    """h (N, 5, 8)"""
    return (
        f"(float[N,5,4] x) => (float[N,5,3] y) <float[4,8] A, float[8,3] B{_more(weights)}>"
        f"{{ h = MatMul(x, A) {body} y = MatMul(g, B) }}"
    )


def image(body: str, weights: str = "", out: str = "float[N,3,P,Q] y") -> str:
    """h (N, 8, 6, 6)"""
    return (
        f"(float[N,2,6,6] x) => ({out}) <float[8,2,1,1] A, float[3,8,1,1] B{_more(weights)}>"
        f"{{ h = Conv(x, A) {body} y = Conv(g, B) }}"
    )


def _more(weights: str) -> str:
    return f", {weights}" if weights else ""
