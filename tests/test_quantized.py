"""Trained models, quantised by ONNX Runtime in each of its ways, are pruned like the float ones that they were made
from: the same dims, weights scored by what they stand for, and a surgery check that tells ties from mistakes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

from onnxprune.api import prune
from onnxprune.budget import Budget
from onnxprune.criteria import score
from onnxprune.dims import Dim, Mask, keep
from onnxprune.feeds import random_feeds
from onnxprune.graph import Graph, outline
from onnxprune.inference import TypedGraph
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import PASSES, PREPARE
from onnxprune.passes.prune import cut
from onnxprune.pruning import run
from onnxprune.quantization import operands, real
from onnxprune.reading import load
from onnxprune.sessions import session
from onnxprune.validate.closeness import TOLERANCE
from onnxprune.validate.surgery_check import surgery_check
from tests.common import build, plans, typed_model

MODELS = Path(__file__).resolve().parent.parent / "models"
CALIBRATION = 16  # samples; the scales need not be good
SAMPLES = 64
WRONG = 3  # mistakes that are tried, of each model
RANDOM_PLAN = 3  # of `plans`
FAINT = 0.05  # of the usual inputs


class Samples(CalibrationDataReader):
    """One batch of calibration inputs."""

    def __init__(self, name: str) -> None:
        with np.load(MODELS / f"{name}.calib.npz") as data:
            self.left = [{k: data[k][:CALIBRATION] for k in data.files}]

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return self.left.pop() if self.left else None


def static(layout: QuantFormat) -> Callable[[str, Path], None]:
    def quantise(name: str, to: Path) -> None:
        quantize_static(MODELS / f"{name}.onnx", to, Samples(name), quant_format=layout, per_channel=True)

    return quantise


def dynamic(name: str, to: Path) -> None:
    """The newer exporter's model has stale shapes, which the quantiser does not accept: they are inferred anew."""
    clean = to.with_suffix(".clean.onnx")
    model = onnx.load(MODELS / f"{name}.onnx")
    del model.graph.value_info[:]
    onnx.save(model, clean)
    quantize_dynamic(clean, to, per_channel=True)


WAYS = {"qdq": static(QuantFormat.QDQ), "qoperator": static(QuantFormat.QOperator), "dynamic": dynamic}
NAMES = ("mnist_cnn", "mnist_vit", "langid_gru")
CASES = [(name, way) for name in NAMES for way in WAYS]


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], ModelProto]:
    """Models by name and way, each made once."""
    folder, made = tmp_path_factory.mktemp("quantised"), {}

    def get(name: str, way: str) -> ModelProto:
        if (name, way) not in made:
            WAYS[way](name, folder / f"{name}.{way}.onnx")
            made[name, way] = onnx.load(folder / f"{name}.{way}.onnx")
        return made[name, way]

    return get


def heldout(name: str) -> dict[str, NDArray[np.float32]]:
    with np.load(MODELS / f"{name}.heldout.npz") as data:
        return {k: data[k][:SAMPLES] for k in data.files if k != "labels"}


def prepared(model: ModelProto | str) -> TypedGraph:
    """The graph that `prune` sees, typed."""
    state = State(load(model))
    PassManager(parse(PREPARE, PASSES)).run(state)
    return state.typed


@pytest.mark.parametrize(("name", "way"), CASES)
def test_half_of_every_dim_goes(name: str, way: str, quantised: Callable[[str, str], ModelProto]) -> None:
    """As many units of as many dims as in the float model; the rest equals the masked original."""
    model, data = quantised(name, way), heldout(name)
    budget = Budget(ratio=0.5, scope="local")
    result = run(load(model), budget=budget, data=data, bench_seconds=0.01).report
    wanted = prepared(str(MODELS / f"{name}.onnx")).prunable
    assert sorted((c.before, c.after) for c in result.cuts) == sorted((d.dim.size, d.dim.size // 2) for d in wanted)
    assert result.surgery_check is not None and result.surgery_check.passed
    assert result.params.before > 0.9 * load(str(MODELS / f"{name}.onnx")).params()
    assert result.params.after < 0.5 * result.params.before
    assert result.macs.after < 0.4 * result.macs.before


@pytest.mark.parametrize(("name", "way"), CASES)
def test_kinds_are_those_of_the_float_model(name: str, way: str, quantised: Callable[[str, str], ModelProto]) -> None:
    wanted = prepared(str(MODELS / f"{name}.onnx")).prunable
    kinds = sorted((d.kind, d.dim.size) for d in prepared(quantised(name, way)).prunable)
    assert kinds == sorted((d.kind, d.dim.size) for d in wanted)


@pytest.mark.parametrize(("name", "way"), CASES)
def test_nothing_removed_nothing_changed(name: str, way: str, quantised: Callable[[str, str], ModelProto]) -> None:
    """Folding and saving leave every output as it is, bit by bit, and the weights quantised."""
    model, data = quantised(name, way), heldout(name)
    whole = run(load(model), passes=PREPARE, check=False).model
    before, after = (session(m).run(None, data) for m in (model, whole))
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert weights_kept(load(model)) == weights_kept(load(whole))


def weights_kept(graph: Graph) -> int:
    """How many weights are dequantised in a graph."""
    return sum(n.op_type == "DequantizeLinear" and n.input[0] in graph.constants for n in graph.nodes)


def wrong(typed: TypedGraph, masks: dict[Dim, Mask], pruned: Graph, rng: Random) -> Iterator[tuple[str, Graph]]:
    """The pruned graph with one of its weights, scales or zero points wrong along an axis that is cut: moved on by one
    unit, or the slice of other units.
    """
    names = [n for n in pruned.tensors if n in typed.weights and pruned.tensors[n] != typed.graph.tensors[n]]
    for name in rng.sample(names, len(names)):
        kept = [keep(e, masks) for e in typed.weights[name][0].axes]
        axis = rng.choice([k for k, m in enumerate(kept) if not m.all()])
        others = [np.roll(m, 1) if k == axis else m for k, m in enumerate(kept)]
        right = pruned.array(name)
        for made in (np.roll(right, 1, axis), typed.graph.array(name)[np.ix_(*others)]):
            if not np.array_equal(made, right):
                made = numpy_helper.from_array(np.ascontiguousarray(made), name)
                yield name, pruned.replace(tensors={**pruned.tensors, name: made})


@pytest.mark.parametrize(("name", "way"), CASES)
def test_mistakes_are_seen(name: str, way: str, quantised: Callable[[str, str], ModelProto]) -> None:
    """Random units go: that passes. A constant cut at other places fails, however little it changes."""
    rng = Random(f"{name} {way}")
    typed = prepared(quantised(name, way))
    masks = [*plans(typed, rng.randrange(99))][RANDOM_PLAN]
    pruned, binding = cut(typed, masks), typed.facts.binding
    feeds = [random_feeds(typed.graph, binding, 0), random_feeds(typed.graph, binding, 1, FAINT)]
    found = surgery_check(typed, masks, pruned, feeds)
    assert found.passed and found.tolerance == TOLERANCE, found
    tried = [(n, surgery_check(typed, masks, g, feeds[:1])) for n, g in islice(wrong(typed, masks, pruned, rng), WRONG)]
    assert len(tried) == WRONG
    assert not [(n, check) for n, check in tried if check.passed]


def test_weights_are_scored_by_what_they_stand_for() -> None:
    """The scale decides: small integers with large scales matter more."""
    text = (
        "(float[N,4] x) => (float[N,3] y) <int8[4,8] A, float[8] s, int8[8] z, float[8,3] B>"
        "{ a = DequantizeLinear <axis = 1> (A, s, z) h = MatMul(x, a) y = MatMul(h, B) }"
    )
    model = build(text)
    held = {t.name: t for t in model.graph.initializer}
    rng = np.random.default_rng(0)
    stored, zero = rng.integers(-128, 128, (4, 8)).astype(np.int8), rng.integers(-9, 9, 8).astype(np.int8)
    scale = np.exp(rng.standard_normal(8)).astype(np.float32)
    for name, array in (("A", stored), ("s", scale), ("z", zero), ("B", np.zeros((8, 3), np.float32))):
        held[name].CopyFrom(numpy_helper.from_array(array, name))
    typed = typed_model(model)
    (info,) = typed.prunable
    weights = (stored.astype(np.float32) - zero) * scale
    np.testing.assert_allclose(score(typed, [info], "l2")[0][info.dim], np.linalg.norm(weights, axis=0), rtol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_scores_are_near_those_of_the_float_model(way: str, quantised: Callable[[str, str], ModelProto]) -> None:
    """Of units scored by 8-bit weights, nearly the same half stays."""
    kept = []
    for model in (str(MODELS / "mnist_cnn.onnx"), quantised("mnist_cnn", way)):
        typed = prepared(model)
        dims = sorted((d for d in typed.prunable if d.dim.size == 128), key=lambda d: d.name)
        scores, _ = score(typed, dims, "l2")
        kept.append([set(np.argsort(scores[d.dim])[64:].tolist()) for d in dims])
    for a, b in zip(*kept, strict=True):
        assert len(a & b) > 56


def blocked(shape: tuple[int, int], axis: int, block: int) -> ModelProto:
    """A constant of random int8 numbers, dequantised in blocks along `axis`."""
    scales = tuple(n // block if k == axis else n for k, n in enumerate(shape))
    rng = np.random.default_rng(0)
    node = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=axis, block_size=block)
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)
    tensors = [
        numpy_helper.from_array(rng.integers(-99, 99, shape).astype(np.int8), "q"),
        numpy_helper.from_array(rng.random(scales).astype(np.float32), "s"),
        numpy_helper.from_array(rng.integers(-9, 9, scales).astype(np.int8), "z"),
    ]
    graph = helper.make_graph([node], "g", [], [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(("shape", "axis", "block"), [((8, 6), 0, 2), ((8, 6), 1, 3), ((8, 6), 0, 8), ((8, 6), -1, 1)])
def test_real_values_are_those_of_the_runtime(shape: tuple[int, int], axis: int, block: int) -> None:
    model = blocked(shape, axis % 2, block)
    found = real(load(model), 0, 0)
    assert found is not None
    np.testing.assert_allclose(found, session(model).run(None, {})[0], rtol=1e-6)


def test_lossless_takes_what_is_at_its_zero_point(quantised: Callable[[str, str], ModelProto]) -> None:
    """Filters whose weights all equal their zero point, with zero bias, go; outputs stay the same bit by bit."""
    model, data = ModelProto(), heldout("mnist_cnn")
    model.CopyFrom(quantised("mnist_cnn", "qdq"))
    planted = sum(_plant(model, node) for node in model.graph.node if node.op_type == "Conv")
    result = prune(model, lossless=True, data=data)
    assert planted > 100
    assert sum(c.before - c.after for c in result.report.cuts) >= 96
    before, after = (session(m).run(None, data)[0] for m in (model, result.model))
    np.testing.assert_array_equal(before, after)


def _plant(model: ModelProto, conv: onnx.NodeProto) -> int:
    """Set the first quarter of a convolution's filters to zero; their number."""
    held = {t.name: t for t in model.graph.initializer}
    makers = {n.output[0]: n for n in model.graph.node if n.op_type == "DequantizeLinear"}
    count = 0
    for name in conv.input[1:]:
        tensor = held[makers[name].input[0]]
        array = numpy_helper.to_array(tensor).copy()
        count = len(array) // 4
        array[:count] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return count


def test_outline_of_folded_weights() -> None:
    """Dequantised weights are not folded, not even behind a Transpose that could be."""
    text = (
        "(float[N,4] x) => (float[N,8] y) <int8[8,4] A, float s, int8 z>"
        "{ a = DequantizeLinear(A, s, z) t = Transpose(a) y = MatMul(x, t) }"
    )
    typed = prepared(build(text))
    assert "a = DequantizeLinear(A, s, z)" in outline(typed.graph)
    assert [n.op_type for n in typed.graph.nodes] == ["DequantizeLinear", "Transpose", "MatMul"]
    assert all(operands(n) for n in typed.graph.nodes[:1])


def test_short_integers_that_are_cast_to_weights() -> None:
    """They count as parameters, are cut, and stay integers."""
    text = """(float[N,64] x) => (float[N,8] y) <int8[64,64] A, float[64] s_pos, float[64,8] B> {
        c = Cast <to = 1> (A) w = Mul(c, s_pos) h = MatMul(x, w) r = Relu(h) y = MatMul(r, B) }"""
    result = prune(build(text), ratio=0.5, scope="local")
    left = {t.name: (t.data_type, list(t.dims)) for t in result.model.graph.initializer}
    assert left["A"] == (onnx.TensorProto.INT8, [64, 32])
    assert (result.report.params.before, result.report.params.after) == (64 * 64 + 64 + 512, 64 * 32 + 32 + 256)
