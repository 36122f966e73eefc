"""What is left of a model's metric after removal, by way of choosing and mending, at several budgets of MACs.

    python benchmarks/bench_accuracy.py [MODEL.onnx CALIBRATION TEST] [--macs 0.9 0.8 0.7 0.5] [--samples 512]

    l1            the smallest weights of every width go, nothing else
    l1 + means    and the mean of what went is filled into biases
    l1 + refit    and the weights that are left are refitted
    curves        widths and units by error curves, refitted
    default       the same in other bases

Without a model, those of `models/` are taken. CALIBRATION needs no labels; the metric is measured on all of TEST: top-1
with labels, else the relative L2 error. The last column is the part of what `l1` loses that is kept; the goal is 80 %.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnxprune
from onnxprune.api import compare
from onnxprune.passes import PREPARE, in_steps
from onnxprune.reading import load

MODELS = Path(__file__).resolve().parent.parent / "models"
LOCAL = "prune(macs={macs}, scope='local', criterion='l1'),remove-dead"
WAYS = {
    "l1": f"{PREPARE},{LOCAL}",
    "l1 + means": f"{PREPARE},{LOCAL},fill-means",
    "l1 + refit": f"{PREPARE},{LOCAL},refit-least-squares,remove-dead",
    "curves": in_steps(1, True).replace("prune,", "prune(macs={macs}),"),
    "default": in_steps(1, True, rotate=True).replace("prune,", "prune(macs={macs}),"),
}


def rows(model: Path, calibration: Path, test: Path, budgets: list[float], samples: int) -> None:
    """Print a line for every budget and way."""
    graph = load(model)
    curves = {
        way: onnxprune.measure_sensitivity(graph, calibration, samples=samples, rotate=way == "default")
        for way in ("curves", "default")
    }
    for macs in budgets:
        lost: float | None = None
        for way, passes in WAYS.items():
            made = onnxprune.prune(
                model, passes=passes.format(macs=macs), data=calibration, samples=samples, curves=curves.get(way),
                check=False,
            )  # fmt: skip
            before, after = compare(graph, made.graph, data=test)[1]
            drop = abs(before.value - after.value)
            lost = drop if lost is None else lost
            kept = f"{1 - drop / lost:7.1%}" if lost else "-"
            print(f"{model.stem:16} {macs:5.0%}  {way:12} {before.name} {before.value:.4f} -> {after.value:.4f} {kept}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--macs", nargs="+", type=float, default=[0.9, 0.8, 0.7, 0.5])
    parser.add_argument("--samples", type=int, default=512)
    given = parser.parse_args()
    names = ("mnist_cnn", "mnist_vit", "langid_gru")
    own = [tuple(MODELS / f"{n}.{end}" for end in ("onnx", "calib.npz", "heldout.npz")) for n in names]
    for model, calibration, test in [tuple(given.files)] if given.files else own:
        rows(model, calibration, test, given.macs, given.samples)


if __name__ == "__main__":
    main()
