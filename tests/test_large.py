"""Models with external data and models beyond the limit of one file: what comes out is what small models in memory
give, byte for byte.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import graph as graphs
from onnxprune import storage, writing
from onnxprune.__main__ import main
from onnxprune.budget import Budget
from onnxprune.errors import InputError
from onnxprune.pruning import PruneResult, run
from onnxprune.reading import load
from onnxprune.sessions import program, session
from onnxprune.storage import DataFile, External
from onnxprune.writing import serialize
from tests.common import build

TEXT = """(float[N,40] x) => (float[N,3] y) <float[40,60] A, float[60] b, float[60,60] C, float[60,3] D> {
  h = Gemm(x, A, b) r = Relu(h) s = MatMul(r, C) t = Tanh(s) y = MatMul(t, D) }"""
PLANS = {"ratio": 0.5, "scope": "local"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of some size counts as large."""
    monkeypatch.setattr(storage, "KEPT_BYTES", 256)
    monkeypatch.setattr(graphs, "LAZY_BYTES", 256)


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protobuf's limit is passed too."""
    monkeypatch.setattr(graphs, "MAX_PROTO_BYTES", 2000)


def external(model: ModelProto, path: Path, **options: object) -> Path:
    """A copy of the model with its data beside it."""
    made = ModelProto()
    made.CopyFrom(model)
    given = {"location": f"{path.stem}.weights", "size_threshold": 0, **options}
    onnx.save_model(made, path, save_as_external_data=True, **given)
    return path


def pruned(model: object, check: bool = True, **budget: object) -> PruneResult:
    """As `onnxprune.prune`, with a short look at the latency."""
    return run(load(model), budget=Budget(**budget), check=check, bench_seconds=0.0)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def in_memory(path: Path) -> ModelProto:
    """What onnx reads, which has its data in it."""
    return onnx.load(path)


# reading
def test_large_constants_stay_outside(tmp_path: Path) -> None:
    model = build(TEXT)
    graph = load(external(model, tmp_path / "m.onnx"))
    assert set(graph.sources) == {"A", "C", "D"}  # b is small
    assert not any(graph.tensors[n].raw_data for n in graph.sources)
    for t in model.graph.initializer:
        np.testing.assert_array_equal(graph.array(t.name), numpy_helper.to_array(t))
        assert not graph.array(t.name).flags.writeable
    assert serialize(graph.to_proto()) == serialize(in_memory(tmp_path / "m.onnx"))
    assert graph.size_bytes() == len(serialize(graph.to_proto()))
    assert (graph.params(), graph.fingerprint()) == (load(model).params(), load(model).fingerprint())


@pytest.mark.parametrize("kind", ["BFLOAT16", "FLOAT16", "INT4", "UINT8", "INT64", "FLOAT8E4M3FN", "BOOL", "DOUBLE"])
def test_every_type_is_read(kind: str, tmp_path: Path) -> None:
    data_type = TensorProto.DataType.Value(kind)
    values = np.random.default_rng(0).integers(0, 7, (30, 31)).astype(helper.tensor_dtype_to_np_dtype(data_type))
    tensors = [numpy_helper.from_array(values, "A")]
    nodes = [helper.make_node("Cast", ["A"], ["y"], to=TensorProto.FLOAT)]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [30, 31])]
    model = helper.make_model(helper.make_graph(nodes, "g", [], out, tensors))
    graph = load(external(model, tmp_path / "m.onnx"))
    assert isinstance(graph.source("A"), External)
    assert graph.array("A").dtype == values.dtype and np.array_equal(graph.array("A"), values)
    assert serialize(graph.to_proto()) == serialize(in_memory(tmp_path / "m.onnx"))
    mask = np.arange(30) % 3 > 0
    sliced = storage.Sliced(graph.source("A"), data_type, (mask, np.ones(31, bool)))
    assert sliced.raw() == numpy_helper.from_array(values[mask]).raw_data and sliced.nbytes == len(sliced.raw())


def cut_short(folder: Path) -> None:
    data = folder / "m.weights"
    data.write_bytes(data.read_bytes()[:-100])


def gone(folder: Path) -> None:
    (folder / "m.weights").unlink()


def linked(folder: Path) -> None:
    (folder / "m.weights").rename(folder / "elsewhere")
    (folder / "m.weights").symlink_to(folder / "elsewhere")


def is_folder(folder: Path) -> None:
    (folder / "m.weights").unlink()
    (folder / "m.weights").mkdir()


def changed(key: str, value: str) -> object:
    def spoil(folder: Path) -> None:
        model = onnx.load(folder / "m.onnx", load_external_data=False)
        next(e for e in model.graph.initializer[0].external_data if e.key == key).value = value
        onnx.save_model(model, folder / "m.onnx")

    return spoil


SPOILT = {
    "short": cut_short,
    "missing": gone,
    "a link": linked,
    "a folder": is_folder,
    "outside": changed("location", "../m.weights"),
    "absolute": changed("location", "/etc/passwd"),
    "negative offset": changed("offset", "-4"),
    "huge length": changed("length", str(2**62)),
    "not a number": changed("offset", "x"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_bad_data_is_refused(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    external(build(TEXT), tmp_path / "m.onnx")
    SPOILT[how](tmp_path)  # type: ignore[operator]
    before = sorted(os.listdir(tmp_path))
    assert main(["prune", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "out.onnx"), "--ratio", "0.5"]) == 2
    assert "external data" in capsys.readouterr().err and sorted(os.listdir(tmp_path)) == before


def test_wrong_dims_are_refused(tmp_path: Path) -> None:
    path = external(build(TEXT), tmp_path / "m.onnx")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].dims[0] = 39
    onnx.save_model(model, path)
    with pytest.raises(InputError, match="'A' has dims"):
        load(path)


def test_a_file_per_constant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "OPEN_FILES", 2)
    path = external(build(TEXT), tmp_path / "m.onnx", all_tensors_to_one_file=False, location=None)
    one = pruned(path, check=False, **PLANS).model
    assert serialize(one) == serialize(pruned(in_memory(path), check=False, **PLANS).model)


# pruning
@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("budget", [PLANS, {"params": 0.6}, {"lossless": True}])
def test_the_result_is_that_of_the_model_in_memory(budget: dict[str, object], check: bool, tmp_path: Path) -> None:
    path = external(build(TEXT), tmp_path / "m.onnx")
    before = digests(tmp_path)
    lazy, eager = (pruned(m, check=check, **budget) for m in (path, in_memory(path)))
    assert lazy.report.bytes == eager.report.bytes and lazy.report.params == eager.report.params
    assert lazy.report.bytes.after == len(serialize(lazy.model))
    assert serialize(lazy.model) == serialize(eager.model) and lazy.plan.to_json() == eager.plan.to_json()
    assert digests(tmp_path) == before


def test_above_the_limit(limit: None, tmp_path: Path) -> None:
    """From a file and from memory, with checks: sessions are given the constants apart."""
    path = external(build(TEXT), tmp_path / "m.onnx")
    lazy, eager = (pruned(m, **PLANS) for m in (path, in_memory(path)))
    for result in (lazy, eager):
        assert result.report.surgery_check is not None and result.report.surgery_check.passed
        assert result.report.latency_ms is not None and result.report.numerics
        assert result.graph.sources
    lazy.graph.save(tmp_path / "lazy.onnx")
    eager.graph.save(tmp_path / "eager.onnx")
    assert (tmp_path / "lazy.onnx.data").read_bytes() == (tmp_path / "eager.onnx.data").read_bytes()
    assert serialize(lazy.model) == serialize(eager.model)
    x = np.ones((2, 40), np.float32)
    want = session(serialize(lazy.model)).run(None, {"x": x})[0]
    np.testing.assert_allclose(session(program(lazy.graph)).run(None, {"x": x})[0], want, rtol=1e-5, atol=1e-6)


def test_uses_that_are_cut_differently(tmp_path: Path) -> None:
    """One constant, two plans: each gets a slice of its own; equal ones share it."""
    text = """(float[N,40] x) => (float[N,40] y, float[N,40] z, float[N,40] w) <float[40] b, float[40,40] D,
      float[40,40] A, float[40,40] E> { r = Gemm(x, A, b) s = Gemm(x, E, b)
      t = Add(r, s) u = Mul(x, D_pos) y = MatMul(r, D) z = MatMul(s, D) w = MatMul(t, D) }"""
    model = build(text.replace("u = Mul(x, D_pos) ", ""))
    path = external(model, tmp_path / "m.onnx")
    lazy, eager = (pruned(m, **PLANS).model for m in (path, in_memory(path)))
    assert serialize(lazy) == serialize(eager)


def test_inside_bodies_nothing_is_lazy(limit: None, tmp_path: Path) -> None:
    text = """(float[N,40] x, bool c) => (float[N,3] y) <float[40,60] A, float[60,3] B> {
      h = MatMul(x, A)
      y = If (c) <then_branch = g1 () => (float[N,3] p) { q = Relu(h) p = MatMul(q, B) },
                  else_branch = g2 () => (float[N,3] p2) <float[60,3] F = {%s}> { p2 = MatMul(h, F) }> }"""
    model = build(text % ",".join(["0.5"] * 180))
    path = external(model, tmp_path / "m.onnx")
    lazy, eager = (pruned(m, check=False, **PLANS) for m in (path, in_memory(path)))
    for k, result in enumerate((lazy, eager)):
        result.graph.save(tmp_path / f"{k}.onnx")
        onnx.checker.check_model(str(tmp_path / f"{k}.onnx"))
        ort.InferenceSession(str(tmp_path / f"{k}.onnx"), providers=["CPUExecutionProvider"])
    assert serialize(lazy.model) == serialize(eager.model)


def test_the_result_outlives_the_files(tmp_path: Path) -> None:
    path = external(build(TEXT), tmp_path / "m.onnx")
    want = serialize(pruned(path, check=False, **PLANS).model)
    result = pruned(path, check=False, **PLANS)
    copied = pickle.loads(pickle.dumps(result.graph))
    assert serialize(copied.to_proto()) == want  # a copy in another process reads by name
    for file in tmp_path.iterdir():
        file.unlink()
    assert serialize(result.model) == want and serialize(result.graph.to_proto()) == want


def test_ranges_of_a_file(tmp_path: Path) -> None:
    data = np.arange(20_000, dtype=np.uint8).tobytes()
    (tmp_path / "d").write_bytes(data)
    for keep in (True, False):
        file = DataFile(tmp_path, "d", keep)
        for start, length in ((0, 20_000), (4096, 10), (4097, 5000), (19_999, 1), (7, 0)):
            assert file.read(start, length) == file.read(start, length, shared=True) == data[start : start + length]


def test_folding_leaves_what_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """(float[N,40] x) => (float[N,3] y) <float[60,40] A, float[60,3] B> {
      a = Transpose<perm = [1, 0]>(A) h = MatMul(x, a) y = MatMul(h, B) }"""
    path = external(build(text), tmp_path / "m.onnx")
    assert len(pruned(path, **PLANS).model.graph.node) == 2
    monkeypatch.setattr("onnxprune.passes.fold_constants.EXTERNAL_BYTES", 100)
    result = pruned(path, **PLANS)
    assert len(result.model.graph.node) == 3 and [*result.model.graph.initializer[0].dims] == [30, 40]


# writing
def test_external_stays_external(tmp_path: Path) -> None:
    path = external(build(TEXT), tmp_path / "in.onnx")
    before = digests(tmp_path)
    out = tmp_path / "out.onnx"
    assert main(["prune", str(path), "-o", str(out), "--ratio", "0.5", "--scope", "local", "-q", "--no-check"]) == 0
    assert sorted(os.listdir(tmp_path)) == ["in.onnx", "in.weights", "out.onnx", "out.onnx.data"]
    assert digests(tmp_path).items() >= before.items()
    onnx.checker.check_model(str(out))
    want = pruned(in_memory(path), check=False, **PLANS).model
    got = onnx.load(out)
    for a, b in zip(want.graph.initializer, got.graph.initializer, strict=True):
        assert (a.name, a.raw_data) == (b.name, b.raw_data)
    assert want.graph.node == got.graph.node
    x = {"x": np.ones((2, 40), np.float32)}
    made = ort.InferenceSession(out, providers=["CPUExecutionProvider"]).run(None, x)[0]
    np.testing.assert_allclose(made, session(want).run(None, x)[0], rtol=1e-5)
    again = tmp_path / "again.onnx"
    assert main(["prune", str(path), "-o", str(again), "--ratio", "0.5", "--scope", "local", "-q", "--no-check"]) == 0
    assert (tmp_path / "again.onnx.data").read_bytes() == (tmp_path / "out.onnx.data").read_bytes()


def test_inline_stays_one_file(tmp_path: Path) -> None:
    onnx.save_model(build(TEXT), tmp_path / "in.onnx")
    result = pruned(tmp_path / "in.onnx", check=False, **PLANS)
    size = result.graph.save(tmp_path / "out.onnx")
    assert sorted(os.listdir(tmp_path)) == ["in.onnx", "out.onnx"]
    assert (tmp_path / "out.onnx").read_bytes() == serialize(result.model) and size == len(serialize(result.model))


@pytest.mark.parametrize("fails_at", [0, 1])
def test_a_failed_save_leaves_what_was_there(fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(build(TEXT), tmp_path / "in.onnx")
    graph = load(path)
    (tmp_path / "out.onnx").write_bytes(b"old")
    calls = []

    def stop(*names: object) -> None:
        calls.append(names)
        if len(calls) > fails_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        graph.save(tmp_path / "out.onnx")
    assert sorted(os.listdir(tmp_path)) == ["in.onnx", "in.weights", "out.onnx"]
    assert (tmp_path / "out.onnx").read_bytes() == b"old"


def test_the_data_of_the_input_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = external(build(TEXT), tmp_path / "in.onnx", location="out.onnx.data")
    before = digests(tmp_path)
    assert main(["prune", str(path), "-o", str(tmp_path / "out.onnx"), "--ratio", "0.5", "--no-check"]) == 2
    assert "would replace that of the input" in " ".join(capsys.readouterr().err.split())
    assert digests(tmp_path) == before


def test_typed_data_and_strings_are_written(limit: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "EXTERNAL_BYTES", 100)
    model = build(TEXT)
    array = numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].float_data.extend(array.reshape(-1).tolist())
    model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [2], [b"a" * 2000, b"b"]))
    load(model).save(tmp_path / "m.onnx")
    again = onnx.load(tmp_path / "m.onnx")
    np.testing.assert_array_equal(numpy_helper.to_array(again.graph.initializer[0]), array)
    assert again.graph.initializer[-1] == model.graph.initializer[-1]


def test_sparse_constants_of_a_large_model(limit: None, tmp_path: Path) -> None:
    """They stay in the model, and are cut there."""
    model = build(TEXT)
    weight = next(t for t in model.graph.initializer if t.name == "C")
    array = numpy_helper.to_array(weight)
    model.graph.initializer.remove(weight)
    at = numpy_helper.from_array(np.arange(0, array.size, 3), "at")
    values = numpy_helper.from_array(array.reshape(-1)[::3].copy(), "C")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, at, array.shape))
    result = pruned(model, **PLANS)
    assert result.report.surgery_check is not None and result.report.surgery_check.passed
    result.graph.save(tmp_path / "m.onnx")
    made = onnx.load(tmp_path / "m.onnx")
    assert [list(t.dims) for t in made.graph.sparse_initializer] == [[30, 30]]
    assert {t.name: list(t.dims) for t in made.graph.initializer} == {"A": [40, 30], "b": [30], "D": [30, 3]}
    assert ort.InferenceSession(tmp_path / "m.onnx").run(None, {"x": np.ones((2, 40), np.float32)})
