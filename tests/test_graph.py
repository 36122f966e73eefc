"""Reading and writing: what is refused and in which words, what comes back as it went in; files are whole or absent."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import graph as graphs
from onnxprune import writing
from onnxprune.errors import InputError
from onnxprune.graph import from_proto, outline, save
from onnxprune.nodes import constant_value
from onnxprune.ordering import in_order
from onnxprune.reading import load
from onnxprune.writing import serialize, write_atomic
from tests.common import build

TEXT = """(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8,3] B> {
  h = MatMul(x, A) r = Relu(h) y = MatMul(r, B) }"""
OUTLINE = """in x: float[N, 4]
const A: float[4, 8]
const B: float[8, 3]
h = MatMul(x, A)
r = Relu(h)
y = MatMul(r, B)
out y: float[N, 3]"""


@pytest.fixture
def model() -> ModelProto:
    return build(TEXT)


# load
def test_all_sources_are_one_graph(model: ModelProto, tmp_path: Path) -> None:
    onnx.save_model(model, tmp_path / "m.onnx")
    sources = (model, model.SerializeToString(), tmp_path / "m.onnx", str(tmp_path / "m.onnx"))
    assert {outline(load(s)) for s in sources} == {OUTLINE}
    assert outline(load(gs.import_onnx(model))).splitlines()[3:] == OUTLINE.splitlines()[3:]


def test_external_data_is_read(model: ModelProto, tmp_path: Path) -> None:
    want = numpy_helper.to_array(model.graph.initializer[0])
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
    np.testing.assert_array_equal(load(tmp_path / "m.onnx").array("A"), want)


def cycle(m: ModelProto) -> None:
    m.graph.node[0].input[0] = "r"


def dangling(m: ModelProto) -> None:
    m.graph.node[1].input[0] = "nowhere"


def made_twice(m: ModelProto) -> None:
    m.graph.node[1].output[0] = "h"


def shadows_weight(m: ModelProto) -> None:
    m.graph.node[1].output[0] = "A"


def output_of_nobody(m: ModelProto) -> None:
    m.graph.output[0].name = "z"


def stored_twice(m: ModelProto) -> None:
    m.graph.initializer.append(m.graph.initializer[0])


def wrong_size(m: ModelProto) -> None:
    m.graph.initializer[0].dims[1] = 9


def wrong_size_typed(m: ModelProto) -> None:
    made = TensorProto(name="A", data_type=TensorProto.FLOAT, dims=[4, 8], float_data=[1.0] * 31)
    m.graph.initializer[0].CopyFrom(made)


def no_such_type(m: ModelProto) -> None:
    m.graph.initializer[0].data_type = 77


def no_such_input_type(m: ModelProto) -> None:
    m.graph.input[0].type.tensor_type.elem_type = 77


def elsewhere(m: ModelProto) -> None:
    m.graph.initializer[0].data_location = TensorProto.EXTERNAL


def no_opset(m: ModelProto) -> None:
    del m.opset_import[:]


def new_opset(m: ModelProto) -> None:
    m.opset_import[0].version = 1000


def no_graph(m: ModelProto) -> None:
    m.ClearField("graph")


# how the model is spoilt, words of the message
BROKEN: list[tuple[Callable[[ModelProto], None], str]] = [
    (cycle, "cycle: Relu #1 -> MatMul #0"),
    (dangling, "input 'nowhere' of Relu #1"),
    (made_twice, "'h' is made twice"),
    (shadows_weight, "'A' is made twice"),
    (output_of_nobody, "output 'z' is made by no node"),
    (stored_twice, "'A' is stored twice"),
    (wrong_size, r"'A' has dims \[4, 9\], its data has 32 entries"),
    (wrong_size_typed, r"'A' has dims \[4, 8\], its data has 31 entries"),
    (no_such_type, "'A' has the unknown type 77"),
    (no_such_input_type, "'x' has the unknown type 77"),
    (elsewhere, "'A' is in another file"),
    (no_opset, "names no opset"),
    (new_opset, "upgrade onnx"),
    (no_graph, "no graph"),
]


@pytest.mark.parametrize(("spoil", "message"), BROKEN, ids=[f.__name__ for f, _ in BROKEN])
def test_refused(model: ModelProto, spoil: Callable[[ModelProto], None], message: str) -> None:
    spoil(model)
    with pytest.raises(InputError, match=message):
        load(model)


IN_A_BODY = """(float[N,4] x, bool c) => (float[N,4] y) <float[4,4] A> {
  h = MatMul(x, A) g = Relu(h)
  y = If <then_branch = t () => (float[N,4] a) { q = Abs(g) a = Neg(q) },
          else_branch = e () => (float[N,4] b) { b = Identity(h) }> (c) }"""


@pytest.mark.parametrize("text", [TEXT, IN_A_BODY], ids=["plain", "body"])
def test_nodes_in_any_order(text: str) -> None:
    """ONNX Runtime sorts for itself, so there are such files."""
    model, shuffled = build(text), build(text)
    for graph in (*(a.g for a in shuffled.graph.node[-1].attribute), shuffled.graph):
        nodes = list(graph.node)[::-1]
        del graph.node[:]
        graph.node.extend(nodes)
    given = shuffled.SerializeToString()
    assert outline(load(shuffled)) == outline(load(model))
    assert shuffled.SerializeToString() == given and not in_order(from_proto(shuffled))


def test_a_name_that_is_not_text(model: ModelProto) -> None:
    model.graph.name = "why"
    with pytest.raises(InputError, match="not text"):
        load(model.SerializeToString().replace(b"why", b"\xe8\xe8y"))


@pytest.mark.parametrize("given", [3, None, [b"x"], np.zeros(3)], ids=lambda g: type(g).__name__)
def test_not_a_model(given: object) -> None:
    with pytest.raises(InputError, match=f"cannot read a model from a {type(given).__name__}"):
        load(given)


STORED = [
    numpy_helper.from_array(np.zeros((2, 3), np.float16), "t"),
    TensorProto(name="t", data_type=TensorProto.FLOAT16, dims=[2], int32_data=[0, 1]),
    TensorProto(name="t", data_type=TensorProto.COMPLEX64, dims=[2], float_data=[0, 1, 2, 3]),
    TensorProto(name="t", data_type=TensorProto.BOOL, dims=[3], int32_data=[0, 1, 1]),
    TensorProto(name="t", data_type=TensorProto.UINT64, dims=[1], uint64_data=[7]),
    TensorProto(name="t", data_type=TensorProto.STRING, dims=[2], string_data=[b"a", b"b"]),
    helper.make_tensor("t", TensorProto.INT4, [3], [1, 2, 3]),
    helper.make_tensor("t", TensorProto.BFLOAT16, [2], [1, 2]),
    helper.make_tensor("t", TensorProto.FLOAT8E4M3FN, [2], [1, 2]),
    helper.make_tensor("t", TensorProto.FLOAT, [0, 3], []),
    helper.make_tensor("t", TensorProto.FLOAT, [], [1]),
]


@pytest.mark.parametrize("stored", STORED, ids=lambda t: f"{TensorProto.DataType.Name(t.data_type)}{list(t.dims)}")
def test_every_way_to_store_a_tensor_is_read(model: ModelProto, stored: TensorProto) -> None:
    model.graph.initializer.append(stored)
    assert serialize(load(model).to_proto()) == serialize(model)


# save
def test_save_is_whole_and_leaves_nothing_beside(model: ModelProto, tmp_path: Path) -> None:
    for _ in range(2):  # the second time over the first
        assert save(model, tmp_path / "m.onnx") == (tmp_path / "m.onnx").stat().st_size
        assert os.listdir(tmp_path) == ["m.onnx"]
    assert (tmp_path / "m.onnx").stat().st_mode & 0o777 == 0o666 & ~current_umask()
    assert (tmp_path / "m.onnx").read_bytes() == serialize(model)


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.onnx").write_bytes(b"old")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "m.onnx", b"new")
    assert os.listdir(tmp_path) == ["m.onnx"] and (tmp_path / "m.onnx").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["gone/m.onnx", ".", "n" * 300])
def test_save_where_that_is_not_possible(model: ModelProto, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot write"):
        save(model, tmp_path / name)
    assert not os.listdir(tmp_path)


def test_save_through_a_link(model: ModelProto, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "m.onnx")
    save(model, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "m.onnx").read_bytes() == serialize(model)


def test_large_models_have_their_data_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(
        "(float[N,40] x) => (float[N,3] y) <float[40,80] A, float[80,3] B> { h = MatMul(x, A) y = MatMul(h, B) }"
    )
    model.graph.initializer[0].doc_string = "kept"
    before = serialize(model)
    monkeypatch.setattr(graphs, "MAX_PROTO_BYTES", 10_000)
    monkeypatch.setattr(writing, "EXTERNAL_BYTES", 1000)
    size = save(model, tmp_path / "m.onnx")
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]
    assert size == sum(p.stat().st_size for p in tmp_path.iterdir()) and (tmp_path / "m.onnx").stat().st_size < 2000
    assert serialize(model) == before
    again = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"))
    assert again.graph.initializer[0].doc_string == "kept"
    for old, new in zip(model.graph.initializer, again.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(old), numpy_helper.to_array(new))
    assert load(tmp_path / "m.onnx").fingerprint() == load(model).fingerprint()


def test_a_constant_that_is_none(model: ModelProto) -> None:
    """An attribute of the wrong type, or without its value."""
    tensor = numpy_helper.from_array(np.ones(3, np.float32))
    wrong = [
        helper.make_node("Constant", [], ["c"], value_int=tensor),
        helper.make_node("Constant", [], ["c"], value=3),
    ]
    assert [constant_value(node) for node in wrong] == [None, None]
    model.graph.node.insert(0, wrong[0])
    assert "c" not in load(model).constants


# outline and fingerprint
def test_outline(model: ModelProto) -> None:
    assert outline(load(model)) == OUTLINE


def test_fingerprint_is_of_the_structure(model: ModelProto) -> None:
    print_ = load(model).fingerprint()
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    assert load(model).fingerprint() == print_
    model.graph.node[1].op_type = "Tanh"
    assert load(model).fingerprint() != print_
