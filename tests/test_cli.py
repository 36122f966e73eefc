"""The command line: exit codes, the one line on stderr, and that nothing is left behind when something is wrong.

Runs in this process through `main(argv)`; three real processes at the end show that the entry points work.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import onnxprune
from onnxprune import proof, pruning
from onnxprune.__main__ import main
from onnxprune.plan import Plan
from onnxprune.reading import load
from onnxprune.validate.footprint import Footprint
from onnxprune.validate.surgery_check import SurgeryCheck
from tests.common import build

MODELS = Path(__file__).resolve().parent.parent / "models"
CNN, VIT, GRU = (MODELS / f"{name}.onnx" for name in ("mnist_cnn", "mnist_vit", "langid_gru"))
MLP = """(float[N,4] x) => (float[N,3] y)
  <float[4,8] A, float[8] a, float[8,6] B, float[6,3] C> {
  h = MatMul(x, A) b = Add(h, a) r = Relu(b) g = MatMul(r, B) s = Relu(g) y = MatMul(s, C) }"""
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00\x1f\x15\xc4\x89"


@dataclass(frozen=True)
class Box:
    """A folder of files, good and bad, to run commands in."""

    root: Path

    def __call__(self, *argv: object) -> int:
        """Run with the words of `argv`; `{}` stands for the folder."""
        return main([str(a).replace("{}", str(self.root)) for a in argv])

    def state(self) -> dict[str, str]:
        """A hash of every file, hidden ones included."""
        found = [p for p in self.root.rglob("*") if p.is_file()]
        return {str(p.relative_to(self.root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(found)}


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    model = build(MLP)
    data = model.SerializeToString()
    (tmp_path / "in.onnx").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    return Box(tmp_path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency of a few rounds, no processes of their own."""
    monkeypatch.setattr("onnxprune.validate.latency.MIN_SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr("onnxprune.validate.latency.MAX_ROUNDS", 9)
    monkeypatch.setattr("onnxprune.benchmark.footprints", lambda models, *_, **__: [Footprint(1, 2, 3)] * len(models))


def write(box: Box, name: str, content: bytes | str | onnx.ModelProto) -> None:
    data = content.SerializeToString() if isinstance(content, onnx.ModelProto) else content
    (box.root / name).write_bytes(data.encode() if isinstance(data, str) else data)


# bad input
def spoil_zip(box: Box) -> None:
    with zipfile.ZipFile(box.root / "bad.onnx", "w") as archive:
        archive.writestr("model.onnx", b"x" * 100)


def spoil_external(box: Box, name: str = "gone.data") -> None:
    model = build(MLP)
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=name)
    write(box, "bad.onnx", model)


def spoil_opset(box: Box) -> None:
    model = build(MLP)
    model.opset_import[0].version = onnx.defs.onnx_opset_version() + 1
    write(box, "bad.onnx", model)


def spoil(content: bytes | str) -> Callable[[Box], None]:
    return lambda box: write(box, "bad.onnx", content)


def spoil_dims(box: Box) -> None:
    model = build(MLP)
    model.graph.initializer[0].dims[0] = 5
    write(box, "bad.onnx", model)


def spoil_twice(box: Box) -> None:
    model = build(MLP)
    model.graph.initializer.append(model.graph.initializer[0])
    write(box, "bad.onnx", model)


TRUNCATED = build(MLP).SerializeToString()[:-40]
# how the file is made, a word that the message must hold
BAD_MODELS = {
    "no such file": (lambda box: None, "bad.onnx"),
    "empty": (spoil(b""), "empty"),
    "truncated": (spoil(TRUNCATED), "truncated"),
    "text": (spoil("hello, this is not a model\n" * 10), "not an ONNX model"),
    "png": (spoil(PNG), "not an ONNX model"),
    "zip": (spoil_zip, "not an ONNX model"),
    "no graph": (spoil(onnx.ModelProto(ir_version=8).SerializeToString()), "no graph"),
    "folder": (lambda box: (box.root / "bad.onnx").mkdir(), "folder"),
    "external data missing": (spoil_external, "external data"),
    "external data outside": (lambda box: spoil_external(box, "../../etc/passwd"), "external data"),
    "opset too new": (spoil_opset, "upgrade onnx"),
    "weight of wrong size": (spoil_dims, "'A'"),
    "weight twice": (spoil_twice, "'A'"),
}


def refused(box: Box, capsys: pytest.CaptureFixture[str], word: str, *argv: object) -> None:
    """Exit 2, one line on stderr that holds `word`, nothing on stdout, no file made or changed."""
    before = box.state()
    capsys.readouterr()
    code = box(*argv)
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1 and err.startswith("onnxprune: ") and word in err, err
    assert "Traceback" not in err
    assert box.state() == before


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_model(box: Box, capsys: pytest.CaptureFixture[str], name: str) -> None:
    make, word = BAD_MODELS[name]
    make(box)
    for argv in (
        ("prune", "bad.onnx", "-o", "out.onnx", "--ratio", "0.5"),
        ("inspect", "bad.onnx", "--json", "report.json"),
        ("check", "in.onnx", "bad.onnx"),
        ("bench", "bad.onnx", "in.onnx"),
    ):
        refused(box, capsys, word, *argv)


PRUNE = ("prune", "in.onnx", "-o", "out.onnx", "--json", "report.json", "--plan", "plan.json")
# arguments after PRUNE, a word that the message must hold
BAD_OPTIONS = [
    ("", "ratio, macs, params"),
    ("--ratio 0", "ratio"),
    ("--ratio 1", "ratio"),
    ("--ratio 1.5", "1.5"),
    ("--ratio nan", "nan"),
    ("--ratio -0.5", "-0.5"),
    ("--ratio half", "--ratio"),
    ("--macs 0", "macs"),
    ("--macs inf", "macs"),
    ("--params nan", "params"),
    ("--params 1", "params"),
    ("--params 0.0001", "parameters"),
    ("--macs 0.0001", "MACs"),
    ("--ratio 0.5 --macs 0.5", "ratio, macs"),
    ("--ratio 0.5 --lossless", "ratio, lossless"),
    ("--ratio 0.5 --scope everywhere", "everywhere"),
    ("--ratio 0.5 --criterion luck", "luck"),
    ("--ratio 0.5 --criterion wanda", "wanda' needs --data"),
    ("--ratio 0.5 --criterion nowhere:f", "nowhere"),
    ("--ratio 0.5 --criterion math:nothing", "nothing"),
    ("--ratio 0.5 --criterion math:pi", "no function 'pi'"),
    ("--ratio 0.5 --normalise median", "median"),
    ("--ratio 0.5 --round-to 0", "round_to"),
    ("--ratio 0.5 --round-to 1.5", "--round-to"),
    ("--ratio 0.5 --seed -1", "seed"),
    ("--ratio 0.5 --seed one", "--seed"),
    ("--ratio 0.5 --include nothing*", "nothing*"),
    ("--ratio 0.5 --exclude kind:heads", "kind:heads"),
    ("--passes polish", "polish"),
    ("--ratio 0.5 --passes polish", "polish"),
    ("--ratio 0.5 --passes fold-constants(hard=1)", "hard"),
    ("--ratio 0.5 --passes prune(speed=2)", "speed"),
    ("--passes prune(ratio)", "ratio"),
    ("--passes prune(ratio=0.5,macs=0.5)", "ratio, macs"),
    ("--passes prune(ratio=2)", "ratio"),
    ("--passes prune(ratio=0.5,criterion=[])", "criterion"),
    ("--ratio 0.5 --passes prune(ratio=0.25)", "ratio"),
    ("--ratio 0.5 --passes ,", ","),
    ("--ratio 0.5 --passes", "--passes"),
    ("--ratio 0.5 --fast", "--fast"),
    ("--ratio 0.5 extra", "extra"),
    ("--ratio 0.5 --data gone.npz", "gone.npz"),
    ("--ratio 0.5 --test-data gone.npz", "gone.npz"),
    ("--ratio 0.5 --data random --samples 0", "--samples"),
    ("--ratio 0.5 --data random --metric luck", "luck"),
    ("--ratio 0.5 --data random --metric top1", "labels"),
    ("--ratio 0.5 --metric rel-l2", "--data"),
    ("--ratio 0.5 --config gone.toml", "gone.toml"),
    ("--passes fill-means,prune(ratio=0.5)", "fill-means makes up for a cut: put it behind"),
    ("--passes merge-units", "put it behind"),
]


@pytest.mark.parametrize(("options", "word"), BAD_OPTIONS, ids=[o or "none" for o, _ in BAD_OPTIONS])
def test_bad_option(box: Box, capsys: pytest.CaptureFixture[str], options: str, word: str) -> None:
    refused(box, capsys, word, *PRUNE, *options.split())


BAD_COMMANDS = [
    (["prune", "in.onnx", "--ratio", "0.5"], "-o"),
    (["prune"], "IN.onnx"),
    (["slim", "in.onnx"], "slim"),
    (["prune", "--fast"], "--fast"),
    (["apply", "plan.json", "in.onnx"], "-o"),
    (["apply", "gone.json", "in.onnx", "-o", "out.onnx"], "gone.json"),
    (["check", "in.onnx"], "PRUNED"),
    (["sensitivity", "in.onnx", "--data", "random", "--plot", "curves.png"], ".svg, not curves.png"),
    (["sensitivity", "in.onnx", "--data", "random", "--metric", "luck"], "unknown metric 'luck'"),
    (["bench", "in.onnx", "in.onnx", "--threads", "0"], "--threads"),
    (["check", "in.onnx", "in.onnx", "--json", "in.onnx"], "in.onnx"),
    (["bench", "in.onnx", "in.onnx", "--json", "in.onnx"], "in.onnx"),
    (["inspect", "in.onnx", "--json", "in.onnx"], "in.onnx"),
    (["check", "in.onnx", "in.onnx", "--metric", "rel-l2"], "--data"),
    (["check", "in.onnx", "in.onnx", "--data", "random", "--metric", "gone:f"], "gone"),
    (["check", "in.onnx", "in.onnx", "--config", "gone.toml"], "gone.toml"),
]


@pytest.mark.parametrize(("argv", "word"), BAD_COMMANDS, ids=[" ".join(a) for a, _ in BAD_COMMANDS])
def test_bad_command(box: Box, capsys: pytest.CaptureFixture[str], argv: list[str], word: str) -> None:
    refused(box, capsys, word, *argv)


X = np.zeros((2, 4), np.float32)
# name of the data file, its content, a word that the message must hold
BAD_DATA = {
    "shape": ("d.npz", {"x": np.zeros((2, 5), np.float32)}, "[2, 5]"),
    "rank": ("d.npz", {"x": np.zeros((2, 4, 1), np.float32)}, "[2, 4, 1]"),
    "scalar": ("d.npz", {"x": np.float32(1)}, "[]"),
    "dtype": ("d.npz", {"x": X.astype(np.float64)}, "float64"),
    "missing input": ("d.npz", {"z": X}, "'x'"),
    "no samples": ("d.npz", {"x": X[:0]}, "no samples"),
    "objects": ("d.npz", {"x": np.array([{}, {}])}, "d.npz"),
    "text": ("d.npz", b"x,y\n1,2\n", "d.npz: it is no .npy or .npz file"),
    "empty file": ("d.npz", b"", "d.npz: it is no .npy or .npz file"),
    "broken array": ("d.npy", b"\x93NUMPY" + b"\0" * 30, "d.npy"),
    "broken zip": ("d.npz", b"PK\x03\x04" + b"\0" * 30, "d.npz"),
    "empty folder": ("d", {}, "holds no"),
    "array of wrong shape": ("d.npy", np.zeros((2, 5), np.float32), "[2, 5]"),
}


def write_data(box: Box, name: str, content: object) -> None:
    path = box.root / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    elif content:
        np.savez(path, **content)
    else:
        path.mkdir()


@pytest.mark.parametrize("title", BAD_DATA)
def test_bad_data(box: Box, capsys: pytest.CaptureFixture[str], title: str) -> None:
    name, content, word = BAD_DATA[title]
    write_data(box, name, content)
    refused(box, capsys, word, *PRUNE, "--ratio", "0.5", "--data", name)
    refused(box, capsys, word, "check", "in.onnx", "in.onnx", "--data", name)


@pytest.mark.usefixtures("quick")
def test_labels_that_do_not_belong_to_the_inputs_are_told(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(box.root / "d.npz", x=X, labels=np.zeros(3, int), names=np.zeros(5))
    assert main(["prune", "in.onnx", "-o", "out.onnx", "--ratio", "0.5", "--data", "d.npz"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "note: 'labels' in the data is not as long as the inputs: it was left aside" in told and "names" not in told


def test_a_folder_of_images_is_named_not_described(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    write(
        box,
        "in.onnx",
        build(
            "(float[N,1,4,4] x) => (float[N,4] y) <float[16,4] w, int64[2] s = {0,-1}>"
            " { f = Reshape(x, s) y = MatMul(f, w) }"
        ),
    )
    (box.root / "seen").mkdir()
    image.new("L", (4, 4)).save(box.root / "seen" / "a.png")
    write(box, "c.toml", "[data]\npath = 'seen'\n")
    assert box("check", "in.onnx", "in.onnx", "--config", "c.toml") == 0
    assert "on seen\n" in capsys.readouterr().out


def test_what_was_not_recovered_is_told(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no BatchNormalization to tell means."""
    argv = ("prune", "in.onnx", "-o", "out.onnx", "--no-check", "--passes", "prune(ratio=0.5),fill-means")
    assert box(*argv) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "not recovered 2 products: the mean of what it lost is not known without data" in told


def test_data_that_the_model_does_not_take(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    """The right shape and type, but character numbers that the embedding does not have."""
    np.savez(box.root / "d.npz", text=np.full((2, 48), 5000))
    for argv in (("prune", GRU, "-o", "out.onnx", "--ratio", "0.5"), ("check", GRU, GRU), ("bench", GRU, GRU)):
        refused(box, capsys, "data", *argv, "--data", "d.npz")


BAD_CONFIGS = [
    ("ratio 0.5", "not TOML"),
    ("speed = 1", "speed"),
    ("ratio = 'half'", "ratio"),
    ("ratio = true", "ratio"),
    ("ratio = nan", "nan"),
    ("ratio = 0.5\nround_to = 2.5", "round_to"),
    ("ratio = 0.5\ninclude = [1]", "include"),
    ("ratio = 0.5\nseed = -1", "seed"),
    ("ratio = 0.5\nmacs = 0.5", "ratio, macs"),
    ("prune = 3", "prune"),
    ("[prune]\nspeed = 1", "speed"),
    ("[report]\nratio = 0.5", "report"),
    ("ratio = 0.5\njson = 'gone/report.json'", "gone"),
    ("ratio = 0.5\n[data]\nsize = 5", "height, width"),
    ("ratio = 0.5\n[data]\nsizes = [5, 5]", "'sizes' in [data]: choose from path, test"),
    ("ratio = 0.5\n[data]\npath = 1", "data"),
    ("samples = 64\n[prune]\nratio = 0.5\n[data]\nsamples = 64", "twice"),
    ("[prune]\nratio = 0.5\ndata = 'a.npz'\n[data]\npath = 'b.npz'", "twice"),
    ("ratio = 0.5\n[data]\npath = 'gone.npz'", "gone.npz"),
    ("ratio = 0.5\ndata = 'random'\nsamples = 0", "samples"),
]


@pytest.mark.parametrize(("text", "word"), BAD_CONFIGS)
def test_bad_config(box: Box, capsys: pytest.CaptureFixture[str], text: str, word: str) -> None:
    write(box, "c.toml", text)
    refused(box, capsys, word, "prune", "in.onnx", "-o", "out.onnx", "--config", "c.toml")


def test_config_that_is_not_text(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    write(box, "c.toml", PNG)
    refused(box, capsys, "not TOML", "prune", "in.onnx", "-o", "out.onnx", "--config", "c.toml")


# outputs that cannot be written: what makes the place, the path, a word of the message
BAD_OUTPUTS = {
    "missing folder": (lambda box: None, "gone/out.onnx", "gone"),
    "a folder": (lambda box: (box.root / "out.onnx").mkdir(), "out.onnx", "folder"),
    "under a file": (lambda box: None, "in.onnx/out.onnx", "in.onnx"),
    "the input": (lambda box: None, "in.onnx", "input"),
    "the input, relative": (lambda box: None, "tmp/../in.onnx", "input"),
    "the input, absolute": (lambda box: None, "{}/in.onnx", "input"),
    "the input, symlink": (lambda box: (box.root / "link.onnx").symlink_to("in.onnx"), "link.onnx", "input"),
    "the input, hard link": (lambda box: os.link(box.root / "in.onnx", box.root / "hard.onnx"), "hard.onnx", "input"),
    "a name too long": (lambda box: None, "o" * 300, "o" * 300),
}


@pytest.mark.parametrize("title", BAD_OUTPUTS)
def test_bad_output(box: Box, capsys: pytest.CaptureFixture[str], title: str) -> None:
    make, path, word = BAD_OUTPUTS[title]
    make(box)
    refused(box, capsys, word, "prune", "in.onnx", "--ratio", "0.5", "-o", path, "--json", "report.json")
    refused(box, capsys, word, "prune", "in.onnx", "--ratio", "0.5", "-o", "fine.onnx", "--json", path)
    refused(box, capsys, word, "prune", "in.onnx", "--ratio", "0.5", "--dry-run", "--plan", path)
    refused(box, capsys, word, "inspect", "in.onnx", "--json", path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    (box.root / "locked").mkdir(mode=0o555)
    refused(box, capsys, "locked", "prune", "in.onnx", "--ratio", "0.5", "-o", "locked/out.onnx")


def test_one_file_for_two_outputs(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    refused(box, capsys, "same", "prune", "in.onnx", "--ratio", "0.5", "-o", "out.onnx", "--json", "tmp/../out.onnx")


def test_output_to_a_device_is_written_not_replaced(box: Box) -> None:
    os.mkfifo(box.root / "pipe")
    reader = os.open(box.root / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert box("inspect", "in.onnx", "--json", "pipe", "-q") == 0
        assert json.loads(os.read(reader, 1 << 16))["prunable"]
    finally:
        os.close(reader)
    assert (box.root / "pipe").is_fifo()


BAD_PLANS = {
    "not JSON": "plan",
    "a list": "[]",
    "no version": "{}",
    "version of the future": '{"version": 99, "model": "", "dims": {}}',
    "unit out of range": '{"version": 1, "model": "", "dims": {"A:1": {"size": 8, "removed": [8]}}}',
    "unit below range": '{"version": 1, "model": "", "dims": {"A:1": {"size": 8, "removed": [-1]}}}',
    "size below zero": '{"version": 1, "model": "", "dims": {"A:1": {"size": -8, "removed": []}}}',
    "units in words": '{"version": 1, "model": "", "dims": {"A:1": {"size": 8, "removed": ["one"]}}}',
}


@pytest.mark.parametrize("title", BAD_PLANS)
def test_bad_plan(box: Box, capsys: pytest.CaptureFixture[str], title: str) -> None:
    write(box, "plan.json", BAD_PLANS[title])
    refused(box, capsys, "plan", "apply", "plan.json", "in.onnx", "-o", "out.onnx", "--json", "report.json")


def test_plan_of_another_model(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert box("prune", CNN, "--ratio", "0.5", "--dry-run", "--plan", "plan.json", "-q") == 0
    refused(box, capsys, "another model", "apply", "plan.json", "in.onnx", "-o", "out.onnx")
    made_up = Plan({"A:1": np.arange(8) > 7}, load(box.root / "in.onnx").fingerprint())
    write(box, "plan.json", made_up.to_json())
    refused(box, capsys, "A:1", "apply", "plan.json", "in.onnx", "-o", "out.onnx")


# other exits
def fail_check(*_: object) -> SurgeryCheck:
    return SurgeryCheck(False, 0.5, 1e-4, "output 'y', input 0")


def test_failed_surgery_check_saves_nothing_but_its_report(
    box: Box, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = box.state()
    monkeypatch.setattr(proof, "surgery_check", fail_check)
    assert box(*PRUNE, "--ratio", "0.5") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "surgery check" in err and "'y'" in err
    report = json.loads((box.root / "report.json").read_text())
    assert report["surgery_check"]["max_rel_err"] == 0.5 and not report["surgery_check"]["passed"]
    (box.root / "report.json").unlink()
    assert box.state() == before


def crash(*_: object, **__: object) -> None:
    raise ZeroDivisionError("the sky is falling")


def test_internal_error_names_its_log(
    box: Box, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "PassManager", crash)
    assert box(*PRUNE, "--ratio", "0.5") == 3
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "the sky is falling" in err and "report" in err
    (log,) = (box.root / "tmp").iterdir()
    assert str(log) in err and "Traceback" in log.read_text() and "ZeroDivisionError" in log.read_text()
    assert not (box.root / "out.onnx").exists() and not (box.root / "report.json").exists()


def test_interrupt(box: Box, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = box.state()
    monkeypatch.setattr(pruning, "run", stop)
    assert box(*PRUNE, "--ratio", "0.5") == 130
    assert "interrupted" in capsys.readouterr().err
    assert box.state() == before


# happy paths
REPORT_KEYS = {
    "params": {"before", "after"},
    "macs": {"before", "after", "input_shapes"},
    "bytes": {"before", "after"},
    "dims": {"total", "prunable", "pruned"},
    "surgery_check": {"passed", "max_rel_err", "tolerance", "detail"},
    "numerics": {"logits"},
    "latency_ms": {"before", "after", "speedup", "ci95", "verdict", "rounds", "threads", "provider", "times"},
}
NUMERIC_KEYS = {"max_abs", "rel_l2", "cosine", "top1_agreement"}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("model", [CNN, VIT, GRU], ids=lambda m: m.stem)
def test_prune_report_check_bench(box: Box, capsys: pytest.CaptureFixture[str], model: Path) -> None:
    data = model.with_suffix(".calib.npz")
    assert box("prune", model, "-o", "out.onnx", "--ratio", "0.5", "--data", data, "--json", "r.json") == 0
    out, err = capsys.readouterr()
    assert err == "" and all(word in out for word in (model.name, "parameters", "MACs", "latency", "passed", "logits"))
    report = json.loads((box.root / "r.json").read_text())
    for key, inner in REPORT_KEYS.items():
        assert inner <= set(report[key]), key
    assert set(report["numerics"]["logits"]) >= NUMERIC_KEYS and report["surgery_check"]["passed"]
    assert all({"name", "modified", "seconds"} == set(p) for p in report["passes"])
    assert all({"dim", "reason", "where"} <= set(f) for f in report["frozen"])
    assert {"onnxprune", "onnx", "onnxruntime"} <= set(report["versions"])
    made = (box.root / "out.onnx").read_bytes()
    assert report["bytes"] == {"before": pytest.approx(model.stat().st_size, abs=2048), "after": len(made)}
    assert report["params"]["after"] == load(made).params() < report["params"]["before"]
    onnx.checker.check_model(onnx.load_from_string(made), full_check=True)

    assert box("check", model, "out.onnx", "--data", data, "--json", "c.json") == 0
    found = json.loads((box.root / "c.json").read_text())
    assert found["logits"] == pytest.approx(report["numerics"]["logits"], rel=1e-3, abs=1e-3)
    before, removed, after = report["metrics"]
    assert after == {**before, "stage": "recovered", "value": after["value"], "drop": after["value"]}
    assert removed == {**before, "stage": "removed", "value": removed["value"], "drop": removed["value"]}
    assert after["value"] < removed["value"]
    assert found["metrics"] == [before, {**after, "stage": "pruned"}]
    assert box("bench", model, "out.onnx", "--seconds", "0.1", "--json", "b.json") == 0
    timed = json.loads((box.root / "b.json").read_text())
    assert [m["name"] for m in timed["models"]] == [str(model), "out.onnx"] and timed["rounds"] >= 9
    assert "logits" in capsys.readouterr().out


def test_inspect_counts_macs_as_reports_do(box: Box) -> None:
    assert box("inspect", VIT, "--json", "i.json") == 0
    assert box("prune", VIT, "--ratio", "0.5", "--dry-run", "--json", "r.json") == 0
    found, whole = (json.loads(Path(n).read_text()) for n in ("i.json", "r.json"))
    width = max(d["macs"] for d in found["prunable"])
    blocks = sum(x["macs"] for x in found["layers"] if x["kind"] == "block")
    assert 0.9 * whole["macs"]["before"] < min(blocks, width) <= max(blocks, width) <= whole["macs"]["before"]


def test_inspect(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert box("inspect", VIT, "--json", "i.json") == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("heads", "head-channels", "neurons", "width", "val_13:1/0"))
    found = json.loads((box.root / "i.json").read_text())
    heads = next(d for d in found["prunable"] if d["dim"] == "val_13:1/0")
    assert (heads["kind"], heads["size"]) == ("heads", 4) and heads["params"] > 0 and heads["macs"] > 0
    assert {"node", "op", "tensor", "axis"} <= set(heads["couples"][0])
    assert all(f["reason"] for f in found["frozen"])


def test_long_tables_read_as_short_ones(
    box: Box, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond LONG_TABLE rows columns are set without rich."""

    def lines() -> list[str]:
        assert box("inspect", MODELS / "mnist_cnn.onnx") == 0
        assert box(*PRUNE, "--ratio", "0.5", "--no-check", "-v") == 0
        said = capsys.readouterr().out.splitlines()
        return [line.rstrip() for line in said if "passes" not in line]

    short = lines()
    monkeypatch.setattr("onnxprune.report.terminal.LONG_TABLE", 0)
    assert lines() == short


def test_dry_run_writes_nothing(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    before = box.state()
    assert box("prune", "in.onnx", "-o", "out.onnx", "--ratio", "0.5", "--dry-run") == 0
    assert "7 units of 2 dims go" in capsys.readouterr().out
    assert box.state() == before


@pytest.mark.usefixtures("quick")
def test_what_the_runtime_logs_is_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """More memory than there are numbers for, known when it runs."""
    text = """(float[2] x) => (float[N] y) <int64[1] zero = {0}, int64[1] big = {4611686018427387904}, float[1] A> {
        f = ReduceSum <keepdims = 1> (x) i = Cast <to = 7> (f) z = Mul(i, zero) n = Add(z, big)
        c = ConstantOfShape(n) y = Mul(c, A) }"""
    onnx.save(build(text), tmp_path / "in.onnx")
    assert main(["prune", str(tmp_path / "in.onnx"), "--ratio", "0.5", "-o", str(tmp_path / "out.onnx")]) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_quiet_prints_nothing(box: Box, capfd: pytest.CaptureFixture[str]) -> None:
    for argv in (
        ("prune", "in.onnx", "-o", "out.onnx", "--ratio", "0.5", "--plan", "plan.json"),
        ("apply", "plan.json", "in.onnx", "-o", "out.onnx"),
        ("inspect", "in.onnx"),
        ("check", "in.onnx", "out.onnx"),
        ("bench", "in.onnx", "out.onnx", "--seconds", "0.1"),
    ):
        assert box(*argv, "-q") == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("model", [CNN, VIT, GRU], ids=lambda m: m.stem)
def test_apply_does_what_prune_did(box: Box, model: Path) -> None:
    quick = ("--no-check", "-q")
    assert box("prune", model, "-o", "one.onnx", "--macs", "0.6", "--plan", "plan.json", *quick) == 0
    assert box("apply", "plan.json", model, "-o", "two.onnx", *quick) == 0
    assert (box.root / "one.onnx").read_bytes() == (box.root / "two.onnx").read_bytes()


def sizes(path: Path) -> dict[str, list[int]]:
    return {t.name: list(t.dims) for t in onnx.load(path).graph.initializer}


# config, further options, the sizes of A and B that come out of 8 and 6 units
CONFIGS = [
    ("ratio = 0.5\nscope = 'local'", "", (4, 3)),
    ("[prune]\nratio = 0.5\nscope = 'local'", "", (4, 3)),
    ("ratio = 0.5\nscope = 'local'", "--ratio 0.25", (6, 5)),
    ("macs = 0.5\nscope = 'local'", "--ratio 0.25", (6, 5)),
    ("ratio = 0.5\nscope = 'local'\nround-to = 4", "", (4, 4)),
    ("ratio = 0.5\nscope = 'local'\nround_to = 4", "--round-to 2", (4, 4)),
    ("ratio = 0.5\nscope = 'local'\ninclude = 'B:1'", "", (8, 3)),
    ("ratio = 0.5\nscope = 'local'\ninclude = ['B:1']", "--include A:1", (4, 6)),
    ("passes = 'prune(ratio=0.5, scope=\"local\"),remove-dead'", "", (4, 3)),
]


@pytest.mark.parametrize(("text", "options", "want"), CONFIGS)
def test_config_and_override(box: Box, text: str, options: str, want: tuple[int, int]) -> None:
    write(box, "c.toml", text)
    argv = ("prune", "in.onnx", "-o", "out.onnx", "--config", "c.toml", "--no-check", "-q", *options.split())
    assert box(*argv) == 0
    made = sizes(box.root / "out.onnx")
    assert (made["A"][1], made["B"][1]) == want


# patterns, the dims of the ViT that go
PATTERNS = [
    ("--include kind:heads", {"val_13:1/0", "val_80:1/0", "val_144:1/0", "val_208:1/0"}),
    ("--include kind:head*  --exclude kind:heads", {"val_13:1/1", "val_80:1/1", "val_144:1/1", "val_208:1/1"}),
    ("--include val_7[0-9]:*", {"val_74:1"}),
    ("--include val_74", {"patch_embed.proj.weight:0", "val_74:1"}),
    ("--include *.mlp.fc1.bias", {"val_74:1", "val_138:1", "val_202:1", "val_266:1"}),
    ("--include node_conv2d", {"patch_embed.proj.weight:0"}),
    ("--exclude kind:n* --exclude val_*:1/?", {"patch_embed.proj.weight:0"}),
]


@pytest.mark.parametrize(("options", "want"), PATTERNS)
def test_patterns(box: Box, options: str, want: set[str]) -> None:
    argv = ("prune", VIT, "--dry-run", "--ratio", "0.5", "--scope", "local", "--plan", "plan.json", "-q")
    assert box(*argv, *options.split()) == 0
    assert set(json.loads((box.root / "plan.json").read_text())["dims"]) == want


@pytest.mark.parametrize("step", [2, 8, 16, 1000])
def test_round_to(box: Box, step: int) -> None:
    assert box("prune", CNN, "--dry-run", "--ratio", "0.6", "--round-to", step, "--plan", "plan.json", "-q") == 0
    for row in json.loads((box.root / "plan.json").read_text())["dims"].values():
        kept = row["size"] - len(row["removed"])
        assert kept % step == 0 and kept >= step


def test_verbose_names_passes_and_all_cuts(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("prune", VIT, "-o", "out.onnx", "--ratio", "0.5", "--scope", "local", "--no-check", "-v", "--verify-each")
    assert box(*argv) == 0
    out = capsys.readouterr().out
    assert "fold-constants" in out and out.count("kind") + out.count("heads") >= 4 and "val_266:1" in out


def test_names_with_brackets_are_printed_as_they_are(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    """rich would take `[/b]` for markup."""
    model = build(re.sub(r"\bA\b", "weight_a", MLP))
    text = model.SerializeToString().replace(b"weight_a", b"a[/b][i]")
    write(box, "[red].onnx", text)
    assert box("inspect", "[red].onnx") == 0
    assert "a[/b][i]:1" in capsys.readouterr().out
    assert box("prune", "[red].onnx", "-o", "out.onnx", "--ratio", "0.5", "--scope", "local", "--no-check") == 0
    out = capsys.readouterr().out
    assert "[red].onnx" in out and "a[/b][i]:1" in out


def test_help_names_every_option_of_the_issue(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(c in out for c in ("prune", "apply", "inspect", "check", "bench"))
    assert main(["prune", "--help"]) == 0
    out = capsys.readouterr().out
    names = "--ratio --macs --params --lossless --scope --criterion --round-to --include --exclude --data --seed --json"
    names += " --test-data --samples --metric --custom-op-library --bytes --max-drop --steps --sensitivity --no-recover"
    for option in f"{names} --no-check --dry-run --passes --config --plan --verify-each -o -v -q".split():
        assert option in out, option
    gates = "--max-latency-ratio --max-rel-l2 --min-cosine --min-top1-agreement --max-bytes"
    for option in f"{gates} --threads --provider --optimization --bench-seconds --check".split():
        assert option in out, option
    assert main(["bench", "--help"]) == 0
    out = capsys.readouterr().out
    inputs = "--batch --shape --data --seed"
    for option in f"{inputs} --threads --provider --optimization --seconds --profile --json -q".split():
        assert option in out, option


def test_no_arguments_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "prune" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["onnxprune", onnxprune.__version__]


# real processes
def run(argv: Sequence[object], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "onnxprune", *map(str, argv)]
    env = {**os.environ, "PYTHONPATH": str(MODELS.parent)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=env, check=False)


def test_process_done(box: Box) -> None:
    done = run(["prune", "in.onnx", "-o", "out.onnx", "--ratio", "0.5"], box.root)
    assert (done.returncode, done.stderr) == (0, "") and "parameters" in done.stdout and "\x1b" not in done.stdout
    assert load(box.root / "out.onnx").params() < load(box.root / "in.onnx").params()


def test_process_bad_input(box: Box) -> None:
    done = run(["prune", "gone.onnx", "-o", "out.onnx", "--ratio", "0.5"], box.root)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1 and "gone.onnx" in done.stderr
