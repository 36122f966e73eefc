"""The same model, options and seed give the same bytes: in another process, whatever the order of its sets, and beside
other calls; and the call says nothing.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import onnxprune

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
JOBS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("mnist_cnn", {"ratio": 0.5}),
    ("langid_gru", {"macs": 0.6}),
)
SAMPLES = 32
CHILD = "from tests.test_stability import JOBS, result; print(*map(result, JOBS))"


def result(job: tuple[str, dict[str, Any]]) -> str:
    """A hash of what is left of a model, chosen and recovered with data."""
    name, options = job
    with np.load(MODELS / f"{name}.calib.npz") as arrays:
        data = {k: arrays[k][:SAMPLES] for k in arrays.files if k != "labels"}
    made = onnxprune.prune(MODELS / f"{name}.onnx", data=data, check=False, **options)
    return hashlib.sha256(made.model.SerializeToString(deterministic=True)).hexdigest()


def elsewhere(hash_seed: str) -> list[str]:
    """The results of another process, in which warnings are errors. It must print nothing else."""
    env = {**os.environ, "PYTHONHASHSEED": hash_seed}
    made = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert made.stderr == "" and made.stdout.count("\n") == 1, made.stderr
    return made.stdout.split()


def test_bytes_are_the_same_everywhere() -> None:
    """Alone, in processes with two orders of sets, and in four threads at once."""
    alone = [result(job) for job in JOBS]
    assert elsewhere("1") == elsewhere("2") == alone
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(result, [*JOBS, *JOBS])) == [*alone, *alone]
