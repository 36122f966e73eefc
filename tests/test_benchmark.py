"""`onnxprune bench`: several models, their inputs, load time and memory in processes of their own; what is printed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import InputError
from onnxprune.__main__ import main
from onnxprune.benchmark import benchmark
from onnxprune.reading import load
from onnxprune.sessions import Settings
from onnxprune.sizing import axis_sizes
from onnxprune.validate import footprint, latency
from tests.common import build

MODELS = Path(__file__).resolve().parent.parent / "models"
CNN, GRU = MODELS / "mnist_cnn.onnx", MODELS / "langid_gru.onnx"
TEXT = "(float[{n},4] x) => (float[{n},3] y) <float[4,{k}] A, float[{k},3] B> {{ h = MatMul(x, A) y = MatMul(h, B) }}"


FOOTPRINT = footprint.Footprint(12.5, 3_000_000, None)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "MIN_SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(latency, "MAX_ROUNDS", 9)
    monkeypatch.setattr("onnxprune.benchmark.footprints", lambda models, *_, **__: [FOOTPRINT] * len(models))
    monkeypatch.setattr("onnxprune.validate.profile.SESSIONS", 1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three models of one input: 8, 4 and 100,000 units."""
    for name, k in (("a", 8), ("b", 4), ("big", 100_000)):
        onnx.save(build(TEXT.format(n="N", k=k)), tmp_path / f"{name}.onnx")
    onnx.save(build(TEXT.format(n=2, k=8)), tmp_path / "fixed.onnx")
    onnx.save(build(TEXT.format(n="N", k=8).replace("x", "z")), tmp_path / "other.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def result(*argv: object) -> dict[str, Any]:
    assert main(["bench", *map(str, argv), "--seconds", "0.1", "--json", "b.json", "-q"]) == 0
    found: dict[str, Any] = json.loads(Path("b.json").read_text())
    return found


@pytest.mark.usefixtures("quick")
def test_three_models(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = result("a.onnx", "b.onnx", "big.onnx", "--profile")
    assert [m["name"] for m in found["models"]] == ["a.onnx", "b.onnx", "big.onnx"]
    keys = {"name", "median_ms", "ratio", "ci95", "verdict", "times_ms", "load_ms", "load_peak_bytes", "run_peak_bytes"}
    assert all(set(m) == keys for m in found["models"])
    assert found["models"][0]["ratio"] == 1 and found["models"][2]["verdict"] == "slower"
    assert found["models"][2]["median_ms"] == pytest.approx(np.median(found["models"][2]["times_ms"]))
    assert (found["threads"], found["provider"], found["graph_optimization"]) == (1, "CPUExecutionProvider", "all")
    assert len(found["profile"]["nodes"]) == 2 and found["inputs"] == {"x": [2, 4]}
    assert capsys.readouterr() == ("", "")
    assert main(["bench", "a.onnx", "b.onnx", "big.onnx", "--seconds", "0.1", "--profile"]) == 0
    out = capsys.readouterr().out
    assert all(w in out for w in ("reference", "speed-up", "12.5 ms", "3.00 MB", "kernels", "slower in big.onnx", "us"))


# further options, the shapes of the inputs, and settings
OPTIONS = [
    ("", {"x": [2, 4]}, {}),
    ("--batch 5", {"x": [5, 4]}, {}),
    ("--shape x:7x4", {"x": [7, 4]}, {}),
    ("--data d.npz", {"x": [6, 4]}, {}),
    ("--data d.npz --batch 9", {"x": [9, 4]}, {}),
    ("--threads 2", {"x": [2, 4]}, {"threads": 2}),
    ("--provider cpu --optimization basic", {"x": [2, 4]}, {"graph_optimization": "basic"}),
]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("options", "shapes", "settings"), OPTIONS, ids=[o or "none" for o, _, _ in OPTIONS])
def test_options(folder: Path, options: str, shapes: dict[str, list[int]], settings: dict[str, object]) -> None:
    np.savez("d.npz", x=np.zeros((6, 4), np.float32))
    found = result("a.onnx", "b.onnx", *options.split())
    assert found["inputs"] == shapes and settings.items() <= found.items() and found["profile"] is None


BAD = [
    ("a.onnx", "two models"),
    ("a.onnx other.onnx", "different inputs"),
    ("a.onnx gone.onnx", "gone.onnx"),
    ("a.onnx b.onnx --batch 0", "--batch"),
    ("fixed.onnx fixed.onnx --batch 3", "no input .* free first axis .* 3"),
    ("a.onnx fixed.onnx --batch 3", "does not run fixed.onnx"),
    ("a.onnx b.onnx --shape 2x4", "NAME:1x3x224x224"),
    ("a.onnx b.onnx --shape x:2xfour", "x:2xfour"),
    ("a.onnx b.onnx --shape x:0x4", "x:0x4"),
    ("a.onnx b.onnx --shape z:2x4", "no input 'z'"),
    ("a.onnx b.onnx --shape x:2x5", r"\[2, 5\]: the model wants \['N', 4\]"),
    ("a.onnx b.onnx --shape x:2x4x1", r"\[2, 4, 1\]"),
    ("a.onnx b.onnx --shape x:2x4 --data d.npz", "not both"),
    ("a.onnx b.onnx --provider warp", "warp"),
    ("a.onnx b.onnx --optimization most", "most"),
    ("a.onnx b.onnx --threads 0", "--threads"),
    ("a.onnx b.onnx --seconds 0", "--seconds"),
]


@pytest.mark.parametrize(("options", "words"), BAD, ids=[o for o, _ in BAD])
def test_bad_options(folder: Path, capsys: pytest.CaptureFixture[str], options: str, words: str) -> None:
    before = sorted(os.listdir())
    assert main(["bench", *options.split(), "--json", "b.json"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(err)
    assert sorted(os.listdir()) == before


def test_sizes_of_axes_with_a_name() -> None:
    graph = load(build("(float[N,T] x, float[N,2] z, float[T,N,5] s) => (float[N,2] y) { y = Identity(z) }"))
    assert axis_sizes(graph, {"x": (3, 7)}) == {"N": 3, "T": 7}
    assert axis_sizes(graph, {}, 4) == {"N": 4, "T": 4}  # T is the first axis of s
    assert axis_sizes(graph, {"x": (3, 7)}, 4) == {"N": 3, "T": 7}
    with pytest.raises(InputError, match="'N' is given two sizes: 3 and 4"):
        axis_sizes(graph, {"x": (3, 7), "z": (4, 2)})


# load time and memory
ONE = Settings(threads=1)


def test_memory_is_that_of_each_model_alone(folder: Path) -> None:
    """100,000 units are 2.8 MB of weights; the other model, measured after it, needs a small part of that."""
    x = {"x": np.zeros((64, 4), np.float32)}
    told: list[tuple[str, float, float]] = []
    big, small = footprint.footprints(
        [Path("big.onnx"), Path("a.onnx")], x, ONE, 1, lambda text, done=0, total=0, /: told.append((text, done, total))
    )
    assert told == [("load time and memory", 0, 2), ("load time and memory", 1, 2)]
    assert big.load_peak_bytes is not None and small.load_peak_bytes is not None
    assert big.run_peak_bytes is not None and small.run_peak_bytes is not None
    assert big.load_peak_bytes > small.load_peak_bytes + 2_800_000
    assert big.run_peak_bytes > small.run_peak_bytes + 2_800_000 + 64 * 100_000 * 4
    assert big.load_ms > 0 and small.load_ms > 0


def test_peak_of_a_run_follows_the_batch(folder: Path) -> None:
    peaks = []
    for batch in (1, 100):
        (found,) = footprint.footprints([Path("big.onnx")], {"x": np.zeros((batch, 4), np.float32)}, ONE, rounds=1)
        peaks.append(found.run_peak_bytes or 0)
    assert peaks[1] - peaks[0] == pytest.approx(99 * 100_000 * 4, rel=0.2)


@pytest.mark.parametrize("name", ["file", "a/b", "allow_pickle"])
def test_inputs_of_any_name_and_text(tmp_path: Path, name: str) -> None:
    model = build("(string[N] tt) => (string[N] y) { y = Identity(tt) }")
    model.graph.input[0].name = model.graph.node[0].input[0] = name
    onnx.save(model, tmp_path / "m.onnx")
    found = footprint.footprints([tmp_path / "m.onnx"], {name: np.array(["one", "two"], object)}, ONE, rounds=1)
    assert found[0].load_ms > 0


def test_a_process_that_fails_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)a.onnx could not be loaded and run .*INVALID_ARGUMENT"):
        footprint.footprints([Path("a.onnx")], {"x": np.zeros((1, 5), np.float32)}, ONE, rounds=1)


@pytest.mark.parametrize("has_resource", [True, False])
def test_systems_without_proc(has_resource: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has ru_maxrss, Windows nothing."""
    monkeypatch.setattr(footprint, "STATUS", Path("/nowhere"))
    if not has_resource:
        monkeypatch.setattr(footprint, "resource", None)
    found = footprint.measure(CNN, {"image": np.zeros((1, 1, 28, 28), np.float32)}, ONE)
    assert found["load_ms"] > 0
    assert (found["load_peak_bytes"] is None) == (found["run_peak_bytes"] is None) == (not has_resource)


def test_a_process_that_dies_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "CHILD", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(InputError, match=r"a.onnx could not .* ended with code -9"):
        footprint.footprints([Path("a.onnx")], {"x": np.zeros((1, 4), np.float32)}, ONE, rounds=1)


@pytest.mark.usefixtures("quick")
def test_the_call(folder: Path) -> None:
    told: list[str] = []
    found = benchmark(
        [Path("a.onnx"), Path("b.onnx")],
        seconds=0.1,
        profiled=True,
        progress=lambda text, done=0, total=0, /: told.append(text),
    )
    assert list(dict.fromkeys(told)) == ["latency", "profile"]
    assert found.profile is not None and len(found.comparison.timings) == len(found.footprints) == 2
