"""What is not cut comes out as it went in; what is cut is described anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference

import onnxprune
from onnxprune.graph import outline
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import DEFAULT, LOSSLESS, PASSES, PREPARE
from onnxprune.plan import Plan
from onnxprune.reading import load
from onnxprune.writing import serialize
from tests.common import build

FOLDER = Path(__file__).resolve().parent.parent / "models"
MODELS = [FOLDER / f"{name}.onnx" for name in ("mnist_cnn", "mnist_vit", "langid_gru")]
NET = """(float[N,4] x, float[M] unused) => (float[N,3] y, float[N,6] side) <float[4,8] A, float[8] a, float[8,6] B,
  float[6,3] C, float[N,8] h, float[N,8] r, float[N,6] g> {
  h = MatMul(x, A) b = Add(h, a) r = Relu(b) g = MatMul(r, B) side = Identity(g) y = MatMul(g, C) }"""


def rich(ir: int = 10) -> ModelProto:
    """A model with something in every corner."""
    model = build(NET, 13)
    model.ir_version = ir
    model.producer_name, model.producer_version, model.domain = "maker", "1.2", "org.example"
    model.model_version, model.doc_string = 7, "the model"
    model.graph.doc_string, model.graph.name = "the graph", "main graph"
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    model.opset_import.append(helper.make_opsetid("com.example", 9))
    tag(model, "of the model")
    for node in model.graph.node:
        node.name, node.doc_string = f"/layer/{node.op_type}.{node.output[0]}", f"makes {node.output[0]}"
    for tensor in model.graph.initializer:
        tensor.doc_string = f"weight {tensor.name}"
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.doc_string = f"value {value.name}"
    annotation = model.graph.quantization_annotation.add(tensor_name="h")
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "h_scale"))
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="h_scale")
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "rate"))
    training = model.training_info.add().algorithm
    training.name = "training"
    training.node.append(helper.make_node("Identity", ["rate"], ["step"]))
    if ir >= 10:
        tag(model.graph, "of the graph")
        groups = (
            model.graph.node,
            model.graph.initializer,
            model.graph.input,
            model.graph.output,
            model.graph.value_info,
        )
        for item in (i for group in groups for i in group):
            tag(item, f"of {item.name}")
    return model


def tag(item: ModelProto, text: str) -> None:
    item.metadata_props.add(key="note", value=text)


def strip(model: ModelProto) -> ModelProto:
    """Without what pruning is about: the data and sizes of tensors."""
    made = ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        for name in ("raw_data", "float_data", "dims"):
            tensor.ClearField(name)
    for value in made.graph.value_info:
        value.type.tensor_type.ClearField("shape")
    return made


@pytest.mark.parametrize("ir", [4, 7, 8, 10])
def test_everything_is_kept(ir: int) -> None:
    model = rich(ir)
    result = onnxprune.prune(model, ratio=0.5, scope="local", check=False)
    assert result.report.params.after < result.report.params.before
    assert strip(result.model) == strip(model)


def test_everything_is_kept_when_nothing_is_removed() -> None:
    model = rich()
    result = onnxprune.prune(model, ratio=0.01, scope="local", check=False)
    assert not result.plan.keep and serialize(result.model) == serialize(model)


def test_ir_version_3_lists_initialisers_as_inputs() -> None:
    model = build(NET.replace(", float[M] unused", ""), 8)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.checker.check_model(model, full_check=True)
    result = onnxprune.prune(model, ratio=0.5, scope="local")
    onnx.checker.check_model(result.model, full_check=True)
    made = {t.name: list(t.dims) for t in result.model.graph.initializer}
    assert result.model.ir_version == 3 and made["A"] == [4, 4]
    listed = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in result.model.graph.input[1:]}
    assert listed == made


def test_sparse_initialisers_stay() -> None:
    model = rich()
    values = numpy_helper.from_array(np.array([1.0], np.float32), "S")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([2], np.int64), "i"), [3])
    )
    model.graph.node.append(helper.make_node("Identity", ["S"], ["s"]))
    model.graph.output.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [3]))
    result = onnxprune.prune(model, ratio=0.5, scope="local", check=False)
    assert result.model.graph.sparse_initializer == model.graph.sparse_initializer


def test_unknown_operators_are_barriers() -> None:
    """A node of a domain that nobody knows keeps all it touches, and itself; the rest is cut."""
    text = """(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8,6] B, float[6,6] C, float[6,3] D> {
      h = MatMul(x, A) g = MatMul(h, B) u = com.example.Mystery<level = 3>(g, C) m = MatMul(u, D) y = Relu(m) }"""
    model = build(text)
    tag(model.graph.node[2], "kept")
    result = onnxprune.prune(model, ratio=0.5, scope="local", check=False)
    assert {t.name: list(t.dims) for t in result.model.graph.initializer} == {
        "A": [4, 4], "B": [4, 6], "C": [6, 6], "D": [6, 3],
    }  # fmt: skip
    assert result.model.graph.node[2] == model.graph.node[2]
    assert any(f.reason.startswith("onnxprune does not know the operator") for f in result.report.frozen)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.stem)
def test_a_plan_that_removes_nothing_gives_the_folded_model(model: Path) -> None:
    state = State(load(model))
    PassManager(parse(PREPARE, PASSES)).run(state)
    same = {d.name: np.ones(d.dim.size, bool) for d in state.typed.prunable}
    for plan in (Plan({}), Plan(same)):
        result = onnxprune.apply(model, plan, check=False)
        assert outline(load(result.model)) == outline(state.graph)
        assert serialize(result.model) == serialize(state.graph.to_proto())
        assert result.report.notes == ["nothing was removed"]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.stem)
@pytest.mark.parametrize("text", [DEFAULT, LOSSLESS])
def test_a_second_run_modifies_nothing(model: Path, text: str) -> None:
    text = text.replace("prune,", "prune(lossless=True),")
    state = State(load(model))
    PassManager(parse(text, PASSES)).run(state)
    before = serialize(state.graph.to_proto())
    again = State(load(before))
    results = PassManager(parse(text, PASSES)).run(again)
    assert not any(r.modified for r in results), [r.name for r in results if r.modified]
    assert serialize(again.graph.to_proto()) == before


def sizes(values: list[ValueInfoProto]) -> dict[str, list[int | None]]:
    """Known sizes by tensor, None where a size is not told."""
    dims = {v.name: v.type.tensor_type.shape.dim for v in values if v.type.tensor_type.HasField("shape")}
    return {n: [d.dim_value if d.HasField("dim_value") else None for d in axes] for n, axes in dims.items()}


def stale(model: ModelProto) -> None:
    """All that inference finds, so that there is something to keep true."""
    found = shape_inference.infer_shapes(model, strict_mode=True)
    model.graph.value_info.extend(
        v for v in found.graph.value_info if v.name not in {i.name for i in model.graph.value_info}
    )


@pytest.mark.parametrize(
    "make", [rich, *[lambda m=m: onnx.load(m) for m in MODELS]], ids=["rich", *[m.stem for m in MODELS]]
)
def test_value_info_tells_the_new_sizes(make: Callable[[], ModelProto]) -> None:
    model = make()
    stale(model)
    pruned = onnxprune.prune(model, ratio=0.5, scope="local", check=False).model
    told = sizes(list(pruned.graph.value_info))
    bare = ModelProto()
    bare.CopyFrom(pruned)
    del bare.graph.value_info[:]
    found = sizes(list(shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True).graph.value_info))
    assert told and set(told) <= {o for n in pruned.graph.node for o in n.output} | {
        t.name for t in pruned.graph.initializer
    }
    for name in set(told) & set(found):
        assert all(None in (a, b) or a == b for a, b in zip(told[name], found[name], strict=True)), name
    onnx.checker.check_model(pruned, full_check=True)
