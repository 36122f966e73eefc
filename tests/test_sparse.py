"""Sparse constants are weights like others: they are read, scored and cut as their dense twins are, and stay sparse."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import sparse
from onnxprune.cost import params
from onnxprune.errors import InputError
from onnxprune.graph import from_proto, outline
from onnxprune.passes.prune import cut
from onnxprune.reading import load
from onnxprune.writing import serialize
from tests.common import Row, build, check_cut, free_dims, plans, plant, typed_model, vector
from tests.rules.test_table import ROWS
from tests.test_lossless import check_lossless, lossless, removed

FORMS = ("initialiser", "constant", "coordinates")
# what gives no numbers where whole units of the weights are zero: singular matrices, variances of constants
UNDEFINED = ("com.microsoft.Inverse", "MeanVarianceNormalization")
RUNS = [r for r in ROWS if r.free and r.runs and r.valid and r.opset >= 11 and r.op not in UNDEFINED]
NET = """(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8] a, float[8,6] B, float[6,3] C> {
  h = Gemm(x, A, a) r = Relu(h) g = MatMul(r, B) t = Tanh(g) y = MatMul(t, C) }"""

BRANCHES = """(float[N,4] x, bool c) => (float[N,3] y) <float[4,8] A, float[8,3] B> { h = MatMul(x, A)
  k = If (c) <then_branch = t () => (float[N,8] u) { u = Relu(h) }, else_branch = e () => (float[N,8] v) {
  v = Tanh(h) }> y = MatMul(k, B) }"""


def thinned(model: ModelProto, seed: int = 0) -> ModelProto:
    """The model with half of its weights' entries zero, statistics and operands of shape arithmetic aside."""
    rng = np.random.default_rng(seed)
    for t in model.graph.initializer:
        array = numpy_helper.to_array(t)
        if array.dtype.kind == "f" and array.ndim and not t.name.endswith("_pos"):
            t.CopyFrom(
                numpy_helper.from_array(np.where(rng.random(array.shape) < 0.5, 0, array).astype(array.dtype), t.name)
            )
    return model


def thin(array: np.ndarray, name: str, coordinates: bool) -> SparseTensorProto:
    at = np.argwhere(array) if coordinates else np.flatnonzero(array)
    values = numpy_helper.from_array(array[array != 0], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(at.astype(np.int64), f"{name}_at"), array.shape)


def sparsified(model: ModelProto, form: str = "initialiser") -> ModelProto:
    """The same model with its float tensors stored sparse."""
    made = ModelProto()
    made.CopyFrom(model)
    made.ir_version = max(made.ir_version, 6)
    _sparsify(made.graph, form)
    return made


def _sparsify(graph: GraphProto, form: str) -> None:
    dense: list[TensorProto] = []
    constants: list[NodeProto] = []
    for t in graph.initializer:
        array = numpy_helper.to_array(t)
        if array.dtype.kind != "f" or not array.ndim or not array.size:
            dense.append(t)
        elif form == "constant":
            value = thin(array, "", False)
            constants.append(helper.make_node("Constant", [], [t.name], name=t.name, sparse_value=value))
        else:
            graph.sparse_initializer.append(thin(array, t.name, form == "coordinates"))
    nodes = [*constants, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(dense)
    graph.node.extend(nodes)


def stored_sparse(model: ModelProto) -> dict[str, list[int]]:
    """Dims of the sparse tensors of a model by name."""
    found = {t.values.name: list(t.dims) for t in model.graph.sparse_initializer}
    values = {n.output[0]: n.attribute[0].sparse_tensor for n in model.graph.node if n.op_type == "Constant"}
    return found | {name: list(t.dims) for name, t in values.items() if t.dims}


@pytest.mark.parametrize(("k", "row"), list(enumerate(RUNS[::7])), ids=str)
def test_cut_as_dense_ones_are(k: int, row: Row) -> None:
    """The same dims are free, the same numbers are left, and the result passes every oracle."""
    model = thinned(build(row.text, row.opset))
    other = sparsified(model, FORMS[k % 3])
    onnx.checker.check_model(other)
    want, typed = typed_model(model), typed_model(other)
    assert free_dims(typed) == free_dims(want)
    for left, right in zip(plans(want), plans(typed), strict=True):
        dense, thin_one = cut(want, left), from_proto(check_cut(typed, right))
        assert set(dense.tensors) <= set(thin_one.constants)
        for name in dense.tensors:
            np.testing.assert_array_equal(thin_one.array(name), dense.array(name))


@pytest.mark.parametrize("form", FORMS)
def test_stay_sparse_under_their_names(form: str) -> None:
    model = sparsified(thinned(build(NET)), form)
    result = onnxprune.prune(model, ratio=0.5, scope="local")
    assert result.report.surgery_check is not None and result.report.surgery_check.passed
    assert stored_sparse(result.model) == {"A": [4, 4], "a": [4], "B": [4, 3], "C": [3, 3]}
    onnx.checker.check_model(result.model)
    assert result.report.bytes.after == len(serialize(result.model)) < len(serialize(model))


@pytest.mark.parametrize("form", FORMS)
def test_bytes_are_stable(form: str, tmp_path: Path) -> None:
    model = sparsified(thinned(build(NET)), form)
    for t in model.graph.sparse_initializer:
        t.values.doc_string, t.indices.doc_string = "values", "places"
    graph = load(model)
    assert serialize(graph.to_proto()) == serialize(model)
    assert graph.size_bytes() == len(serialize(model))
    graph.save(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == serialize(model)
    result = onnxprune.prune(model, ratio=0.01, scope="local", check=False)
    assert not result.plan.keep and serialize(result.model) == serialize(model)


def test_descriptions_stay() -> None:
    model = sparsified(thinned(build(NET)))
    for t in model.graph.sparse_initializer:
        t.values.doc_string = f"weight {t.values.name}"
        t.indices.metadata_props.add(key="note", value="places")
    made = onnxprune.prune(model, ratio=0.5, scope="local", check=False).model.graph.sparse_initializer
    assert {t.values.doc_string for t in made} == {"weight A", "weight a", "weight B", "weight C"}
    assert {p.value for t in made for p in t.indices.metadata_props} == {"places"}
    assert {t.indices.name for t in made} == {"A_at", "a_at", "B_at", "C_at"}


def test_scored_as_dense_ones_are() -> None:
    model = thinned(build(NET))
    plan = onnxprune.prune(model, ratio=0.5, check=False).plan
    for form in FORMS:
        made = onnxprune.prune(sparsified(model, form), ratio=0.5, check=False).plan
        assert {n: m.tolist() for n, m in made.keep.items()} == {n: m.tolist() for n, m in plan.keep.items()}


def test_parameters_are_the_entries_stored() -> None:
    model = sparsified(thinned(build(NET)))
    graph = load(model)
    stored = sum(len(numpy_helper.to_array(t.values)) for t in model.graph.sparse_initializer)
    assert graph.params() == stored == params(typed_model(model)).at({})
    in_nodes = load(sparsified(thinned(build(NET)), "constant"))
    assert in_nodes.params() == stored


def test_budget_of_parameters() -> None:
    """Entries are taken to be spread evenly; what is left comes near to what was asked for."""
    text = "(float[N,30] x) => (float[N,30] y) <float[30,50] A, float[50,30] B> { h = MatMul(x, A) y = MatMul(h, B) }"
    report = onnxprune.prune(sparsified(thinned(build(text))), params=0.5, check=False).report
    assert 0.4 < report.params.after / report.params.before < 0.6
    assert report.macs.after == report.macs.before // 2


def test_cut_differently_by_each_use() -> None:
    """A constant that two layers share by accident becomes two sparse ones."""
    text = """(float[N,4] x) => (float[N,3] y, float[N,3] z) <float[4,8] A, float[4,8] B, float[8] s, float[8,3] C,
      float[8,3] D> {
      h = MatMul(x, A) g = MatMul(x, B) i = Add(h, s) j = Mul(g, s) y = MatMul(i, C) z = MatMul(j, D) }"""
    for form in FORMS:
        typed = typed_model(sparsified(thinned(build(text)), form))
        dims = {d.name: d.dim for d in typed.prunable}
        assert len(dims) == 2
        first, second = dims.values()
        masks = {first: np.arange(8) < 3, second: np.arange(8) > 1}
        made = stored_sparse(check_cut(typed, masks))
        assert sorted(size for n, (size, *_) in made.items() if n.startswith("s.pruned")) == [3, 6]


def test_bodies_of_control_flow() -> None:
    """Sparse initialisers of a body go back into it."""
    model = build(BRANCHES)
    for body, name in ((model.graph.node[1].attribute[0].g, "u"), (model.graph.node[1].attribute[1].g, "v")):
        body.node.append(helper.make_node("Mul", [f"{name}0", "W"], [name], name=f"{name}m"))
        body.node[0].output[0] = f"{name}0"
        weight = numpy_helper.from_array(np.arange(-3, 5, dtype=np.float32), "W")
        body.sparse_initializer.append(thin(numpy_helper.to_array(weight), "W", False))
    onnx.checker.check_model(model)
    assert outline(load(load(model).to_proto())) == outline(load(model))
    typed = typed_model(model)
    assert free_dims(typed) == "A:1=8"
    for masks in plans(typed):
        (mask,) = masks.values()
        bodies = [a.g for n in check_cut(typed, masks).graph.node for a in n.attribute if n.op_type == "If"]
        assert [list(t.dims) for b in bodies for t in b.sparse_initializer] == [[mask.sum()]] * 2


def test_lossless() -> None:
    """Units that no entry carries go; constants that move into a bias leave a sparse weight behind."""
    model = build(NET)
    arrays = {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}
    arrays["A"][:, [1, 4]] = 0
    arrays["a"][[1, 4]] = 0, 2
    arrays["C"][5] = 0
    for t in model.graph.initializer:
        t.CopyFrom(numpy_helper.from_array(arrays[t.name], t.name))
    for form in FORMS:
        state = lossless(sparsified(model, form))
        assert removed(state).replace(".absorbed", "") == "A:1[1,4] B:1[5]"
        made = stored_sparse(state.graph.to_proto())
        assert made["A"] == [4, 6] and [6, 5] in made.values()
    for seed in range(5):
        check_lossless(sparsified(plant(build(NET), Random(seed)), FORMS[seed % 3]))


def test_integers_that_stand_for_reals() -> None:
    model = build(
        vector("w = DequantizeLinear(Q, s_pos, z) g = MatMul(h, w)", "int8[8,8] Q, float[8] s_pos, int8[8] z")
    )
    quantised = next(t for t in model.graph.initializer if t.name == "Q")
    model.graph.initializer.remove(quantised)
    array = numpy_helper.to_array(quantised).copy()
    array[::2] = 0
    model.graph.sparse_initializer.append(thin(array, "Q", False))
    typed = typed_model(model)
    assert free_dims(typed) == "A:1=8 Q:1=8"
    for masks in plans(typed):
        check_cut(typed, masks)


def test_what_is_too_large_when_dense_is_left_alone() -> None:
    """40 GB of zeros: nothing of it is made, what it touches is frozen, the rest is cut."""
    model = build(vector("f = MatMul(h, C) k = Relu(f) g = MatMul(k, D)", "float[8,6] C, float[6,8] D"))
    values = numpy_helper.from_array(np.ones(2, np.float32), "big")
    places = numpy_helper.from_array(np.array([[0, 1], [99999, 3]]), "at")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [100000, 100000]))
    model.graph.node.append(helper.make_node("ReduceSum", ["big"], ["total"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("total", TensorProto.FLOAT, []))
    result = onnxprune.prune(model, ratio=0.5, scope="local", check=False)
    assert result.model.graph.sparse_initializer == model.graph.sparse_initializer
    assert {t.name: list(t.dims) for t in result.model.graph.initializer}["C"] == [4, 3]


def test_a_body_with_what_is_too_large_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "DENSE_BYTES", 16)
    model = build(BRANCHES.replace("Relu(h)", "Mul(h, W)"))
    body = model.graph.node[1].attribute[0].g
    body.sparse_initializer.append(thin(np.arange(8, dtype=np.float32), "W", False))
    onnx.checker.check_model(model)
    assert free_dims(typed_model(model)) == ""
    assert serialize(load(model).to_proto()) == serialize(model)


def test_types_that_are_packed_are_left_alone() -> None:
    model = build(vector("g = Relu(h)"))
    values = TensorProto(name="P", data_type=TensorProto.INT4, dims=[1], raw_data=b"\1")
    places = numpy_helper.from_array(np.array([1], np.int64), "at")
    model.graph.sparse_initializer.append(SparseTensorProto(values=values, indices=places, dims=[4]))
    assert serialize(load(model).to_proto()) == serialize(model)


@pytest.mark.parametrize(
    ("indices", "dims", "said"),
    [
        ([0, 12], [4, 3], "outside of dims"),
        ([0, -1], [4, 3], "outside of dims"),
        ([0], [4, 3], "2 values with indices of shape"),
        ([[0, 1, 2], [0, 1, 2]], [4, 3], "2 values with indices of shape"),
        ([[0, 3], [0, 1]], [4, 3], "outside of dims"),
        ([0, 1], [-4, -3], "outside of dims"),
    ],
)
def test_broken_ones_are_told(indices: list[int], dims: list[int], said: str) -> None:
    model = build("(float[N,4] x) => (float[N,3] y) { y = MatMul(x, S) }")
    values = numpy_helper.from_array(np.ones(2, np.float32), "S")
    places = numpy_helper.from_array(np.array(indices, np.int64), "at")
    model.graph.sparse_initializer.append(SparseTensorProto(values=values, indices=places, dims=dims))
    with pytest.raises(InputError, match=f"'S' cannot be read: .*{said}"):
        load(model)


def test_stored_twice() -> None:
    model = sparsified(build(NET))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((4, 8), np.float32), "A"))
    with pytest.raises(InputError, match="'A' is stored twice"):
        load(model)
