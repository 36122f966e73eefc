"""Custom operators: with the library that has their kernels a model is traced through them and checked; without it, it
is pruned around them and the report says so. A library belongs to a call, not to the process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import onnx_cpp2py_export

import onnxprune
from onnxprune import InputError
from onnxprune.__main__ import main
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import PASSES, PREPARE
from onnxprune.reading import load
from onnxprune.sessions import program, session
from tests.common import build, free_dims, typed_model

# NegPos (onnxruntime-extensions) gives min(x, 0) and max(x, 0). A is before it, C behind it
MODEL = """(float[N,8] x) => (float[N,4] y) <float[8,16] A, float[16,12] B, float[12,10] C, float[10,4] D> {
  a = MatMul(x, A) r = Relu(a) c = MatMul(r, B) n, p = ai.onnx.contrib.NegPos(c)
  m = Add(n, p) e = MatMul(m, C) s = Relu(e) y = MatMul(s, D) }"""
BESIDE = """(float[N,8] x) => (float[N,4] y, float[N,8] z) <float[8,16] A, float[16,12] B, float[12,4] C> {
  a = MatMul(x, A) r = Relu(a) c = MatMul(r, B) s = Relu(c) y = MatMul(s, C) n, z = ai.onnx.contrib.NegPos(x) }"""
UNKNOWN = MODEL.replace("m = Add(n, p)", "m = com.example.Unknown(n, p)")
NOT_LIBRARIES = {  # a file, what the message must hold
    "missing": (lambda folder: folder / "gone.so", "No such file"),
    "folder": (lambda folder: folder, "directory"),
    "text": (lambda folder: _text(folder / "notes.so"), "notes.so"),
    "library of something else": (lambda folder: Path(onnx_cpp2py_export.__file__), "RegisterCustomOps"),
}


def _text(path: Path) -> Path:
    path.write_text("not a library")
    return path


@pytest.fixture(scope="module")
def library() -> str:
    path = pytest.importorskip("onnxruntime_extensions").get_library_path()
    assert isinstance(path, str)
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency of a few rounds: it is not what these tests are about."""
    monkeypatch.setattr("onnxprune.validate.latency.MIN_SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr("onnxprune.validate.latency.MAX_ROUNDS", 9)


def test_what_lies_behind_the_operator_is_pruned_and_all_is_checked(library: str) -> None:
    result = onnxprune.prune(build(MODEL), ratio=0.5, scope="local", custom_op_library=library)
    report = result.report
    assert {c.dim: (c.before, c.after) for c in report.cuts} == {"A:1": (16, 8), "C:1": (10, 5)}
    assert report.surgery_check is not None and report.surgery_check.passed
    assert report.numerics and report.latency_ms and not report.notes
    frozen = {f.dim: f.reason for f in report.frozen}
    assert all("does not know the operator (ai.onnx.contrib.NegPos)" in frozen[dim] for dim in ("B:1", "C:0"))
    with pytest.raises(Exception, match="NegPos"):  # the library did not stay in the process
        session(result.model.SerializeToString())


def test_without_the_library_the_report_says_that_nothing_was_checked() -> None:
    typed = typed_model(build(MODEL))
    assert free_dims(typed) == "A:1=16"
    report = onnxprune.prune(build(MODEL), ratio=0.5).report
    assert [c.dim for c in report.cuts] == ["A:1"] and report.surgery_check is None and report.latency_ms is None
    assert len(report.notes) == 1 and "NegPos" in report.notes[0] and "--custom-op-library" in report.notes[0]


def test_a_broken_cut_is_found(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The surgery check looks at what comes out behind the operator."""
    from onnxprune.passes import prune

    def negated(typed: prune.TypedGraph, masks: dict[prune.Dim, prune.Mask]) -> prune.Graph:
        return prune._Surgeon(typed, {d: ~m for d, m in masks.items()}).operate()

    monkeypatch.setattr(prune, "cut", negated)
    with pytest.raises(onnxprune.GateError, match="surgery check"):
        onnxprune.prune(build(MODEL), ratio=0.5, scope="local", custom_op_library=library)


def test_text_paths_and_lists(library: str) -> None:
    """The same library twice is one library."""
    result = onnxprune.prune(build(MODEL), ratio=0.5, scope="local", custom_op_library=[library, Path(library)])
    assert {c.dim for c in result.report.cuts} == {"A:1", "C:1"}
    again = onnxprune.apply(build(MODEL), result.plan, custom_op_library=Path(library))
    assert again.model == result.model and again.report.surgery_check is not None
    session(program(result.graph))  # a result that was turned into a proto still runs


def test_inside_of_a_function(library: str) -> None:
    """Inlining makes a new graph, and the library goes with it."""
    model = build(MODEL.replace("ai.onnx.contrib.NegPos", "com.local.Halves"))
    contrib = onnx.helper.make_opsetid("ai.onnx.contrib", 1)
    model.opset_import.append(contrib)
    body = onnx.helper.make_node("NegPos", ["v"], ["n", "p"], domain="ai.onnx.contrib")
    model.functions.append(onnx.helper.make_function("com.local", "Halves", ["v"], ["n", "p"], [body], [contrib]))
    state = State(load(model, library))
    PassManager(parse(PREPARE, PASSES)).run(state)
    assert free_dims(state.typed) == "A:1=16 C:1=10"


def test_criteria_run_the_model_too(library: str) -> None:
    """What is beside the operator is differentiated, and its activations are looked at."""
    model = build(BESIDE)
    data = {"x": np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)}
    for criterion in ("fisher", "wanda", "obs"):
        result = onnxprune.prune(model, ratio=0.3, criterion=criterion, data=data, custom_op_library=library)
        assert result.report.cuts and result.report.surgery_check is not None, criterion


def test_threads_do_not_see_each_others_libraries(library: str) -> None:
    def one(k: int) -> int:
        given = [library] if k % 2 else []
        report = onnxprune.prune(build(MODEL), ratio=0.5, scope="local", custom_op_library=given).report
        assert (report.surgery_check is not None) == bool(given)
        return len(report.cuts)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(8))) == [1, 2] * 4


def test_a_library_without_the_operator(library: str) -> None:
    with pytest.raises(InputError, match=r"does not load the model as it is.*com\.example:Unknown"):
        onnxprune.prune(build(UNKNOWN), ratio=0.5, custom_op_library=library)


@pytest.mark.parametrize("title", NOT_LIBRARIES)
def test_not_a_library(title: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, word = NOT_LIBRARIES[title]
    path = made(tmp_path)
    with pytest.raises(InputError, match="cannot load the custom operators of"):
        onnxprune.prune(build(MODEL), ratio=0.5, custom_op_library=path)
    onnx.save(build(MODEL), tmp_path / "in.onnx")
    out = tmp_path / "out.onnx"
    argv = ["prune", str(tmp_path / "in.onnx"), "-o", str(out), "--ratio", "0.5", "--custom-op-library", str(path)]
    assert main(argv) == 2 and not out.exists()
    said = capsys.readouterr().err
    assert word in said and str(path) in said and said.count("\n") == 1


def test_every_command_takes_it(library: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after, plan = (str(tmp_path / name) for name in ("in.onnx", "out.onnx", "plan.json"))
    config = tmp_path / "prune.toml"
    onnx.save(build(MODEL), before)
    config.write_text(f"ratio = 0.5\ncustom_op_library = {library!r}")
    given = ["--custom-op-library", library]
    commands = (
        ["prune", before, "-o", after, "--config", str(config), "--plan", plan],
        ["prune", before, "-o", after, "--ratio", "0.5", *given, *given],
        ["apply", plan, before, "-o", after, *given],
        ["check", before, after, *given],
        ["bench", before, after, "--seconds", "0.1", *given],
        ["inspect", before, *given],
    )
    for argv in commands:
        assert main(argv) == 0, argv
        said = capsys.readouterr().out
        assert "not checked" not in said
        assert argv[0] in ("check", "bench") or "C:1" in said, argv
    assert main(["check", before, after]) == 2 and "NegPos" in capsys.readouterr().err
