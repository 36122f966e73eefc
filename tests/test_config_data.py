"""Data and metrics as the command line takes them: from options, and from a table [data] of a config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxprune.__main__ import main
from onnxprune.config import read_config
from onnxprune.data import ImageFolder, Preprocessing, with_preprocessing

MODELS = Path(__file__).resolve().parent.parent / "models"
CNN = MODELS / "mnist_cnn.onnx"
MODULE = """
def wrong(run, data):
    return sum((run(feeds)["logits"].argmax(1) != labels["labels"]).sum() for feeds, labels in data)
wrong.higher_is_better = False
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Digits as images in sub-folders, every fifth of the held-out ones; the same as arrays; a metric."""
    monkeypatch.setattr("onnxprune.validate.latency.MIN_SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr("onnxprune.validate.latency.MAX_ROUNDS", 9)
    monkeypatch.chdir(tmp_path)
    with np.load(MODELS / "mnist_cnn.heldout.npz") as given:
        images, labels = given["image"][::5], given["labels"][::5]
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "digits" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(image[0] * 255).astype(np.uint8)).save(tmp_path / "digits" / str(label) / f"{k:03}.png")
    np.savez(tmp_path / "digits.npz", image=images, labels=labels)
    (tmp_path / "counting_errors.py").write_text(MODULE)
    assert main(["prune", str(CNN), "-o", "out.onnx", "--macs", "0.9", "--no-check", "-q"]) == 0
    return tmp_path


def report(*argv: object) -> Any:
    """What a command writes as JSON."""
    assert main([*map(str, argv), "--json", "found.json", "-q"]) == 0
    return json.loads(Path("found.json").read_text())


@pytest.mark.usefixtures("folder")
def test_images_are_measured_as_arrays_are(folder: Path) -> None:
    (folder / "onnxprune.toml").write_text("[prune]\nmacs = 0.9\n[data]\npath = 'digits'\ncolor = 'L'\n")
    prune = ("prune", CNN, "-o", "slim.onnx", "--config", "onnxprune.toml")
    images, arrays = report(*prune), report(*prune, "--data", "digits.npz")
    assert images["metrics"] == arrays["metrics"]
    assert [(m["stage"], m["name"], m["samples"]) for m in images["metrics"]] == [
        ("original", "top1", 100), ("removed", "top1", 100), ("recovered", "top1", 100),
    ]  # fmt: skip
    assert images["numerics"]["logits"] == pytest.approx(arrays["numerics"]["logits"], rel=1e-4)
    check = ("check", CNN, "out.onnx", "--config", "onnxprune.toml", "--metric", "top5")
    assert report(*check)["metrics"][0]["value"] == 1.0
    report("bench", CNN, "out.onnx", "--config", "onnxprune.toml", "--seconds", "0.1")


@pytest.mark.usefixtures("folder")
def test_check_prints_the_metric_of_both(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["check", str(CNN), "out.onnx", "--data", str(MODELS / "mnist_cnn.heldout.npz")]
    assert main([*argv, "--metric", "top1"]) == 0
    assert "top1: before 0.994, after 0." in capsys.readouterr().out
    assert main([*argv, "--metric", "counting_errors:wrong", "--samples", "100"]) == 0
    out = capsys.readouterr().out
    assert "counting_errors:wrong: before 0, after " in out and "(100 samples)" in out


@pytest.mark.usefixtures("folder")
def test_prune_and_apply_print_the_metric(capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--data", "digits.npz", "--samples", "50", "--metric", "counting_errors:wrong")
    assert main(["prune", str(CNN), "-o", "slim.onnx", "--macs", "0.9", "--plan", "plan.json", *data]) == 0
    (line,) = (row for row in capsys.readouterr().out.splitlines() if row.startswith("metric"))
    assert "counting_errors:wrong: before 0, after removal " in line and line.endswith("(50 samples)")
    assert main(["apply", "plan.json", str(CNN), "-o", "again.onnx", *data]) == 0
    assert line in capsys.readouterr().out


@pytest.mark.usefixtures("folder")
def test_a_metric_that_fails_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "failing_metric.py").write_text("def f(run, data):\n    return run['logits']\n")
    argv = [
        "prune",
        str(CNN),
        "-o",
        "slim.onnx",
        "--macs",
        "0.9",
        "--data",
        "digits.npz",
        "--metric",
        "failing_metric:f",
    ]
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "failing_metric.py, line 2" in err
    assert not (folder / "slim.onnx").exists()


# config, its options
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("[data]\nsize = [4, 6]\nmean = [1, 2, 3]", {"images": Preprocessing(size=[4, 6], mean=[1, 2, 3])}),  # type: ignore[arg-type]
    ("[data]", {"images": Preprocessing()}),
    ("[data]\nconstants = {s = [1, 1]}", {"images": Preprocessing(constants={"s": [1, 1]})}),
    (
        "[data]\npath = 'a'\ntest = 'b'\nsamples = 64",
        {"data": "a", "test_data": "b", "samples": 64, "images": Preprocessing()},
    ),
    ("[prune]\ndata = 'a'\n[data]\ntest = 'b'", {"data": "a", "test_data": "b", "images": Preprocessing()}),
    ("data = 'a'\ntest-data = 'b'\nmetric = 'kl'", {"data": "a", "test_data": "b", "metric": "kl"}),
]


@pytest.mark.parametrize(("text", "want"), CONFIGS)
def test_config(text: str, want: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(text)
    assert read_config(tmp_path / "c.toml") == want


def test_preprocessing_is_for_folders_without_arrays(folder: Path) -> None:
    (folder / "c.toml").write_text("[data]\npath = 'digits'\ntest = 'digits.npz'\n")
    images = read_config(folder / "c.toml")["images"]
    assert with_preprocessing("digits", images) == ImageFolder("digits", images)
    assert with_preprocessing("digits.npz", images) == "digits.npz"
    np.save(folder / "digits" / "x.npy", np.zeros(3))
    assert with_preprocessing("digits", images) == "digits" == with_preprocessing("digits", None)
