"""How often `latency.compare` claims a difference where there is none: models against themselves.

    python benchmarks/bench_calibration.py [TRIALS] [SECONDS] [THREADS]

A 95 % interval may be wrong in 5 % of the trials. Printed beside it: how often an interval from the rounds of one pair
of sessions is wrong, and how far two sessions of one model are apart.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from onnxprune.feeds import Binding, random_feeds
from onnxprune.graph import Graph
from onnxprune.reading import load
from onnxprune.sessions import Feeds, Settings, program
from onnxprune.sizing import axis_sizes, running_shapes
from onnxprune.validate import latency

MODELS = Path(__file__).resolve().parent.parent / "models"
CASES = (("mnist_cnn", 8), ("mnist_vit", 1), ("langid_gru", 1))


def main() -> None:
    given = sys.argv[1:] + ["20", "1", "1"][len(sys.argv) - 1 :]
    trials, seconds, settings = int(given[0]), float(given[1]), Settings(threads=int(given[2]))
    for name, batch in CASES:
        graph = load(MODELS / f"{name}.onnx")
        feeds = random_feeds(graph, Binding(running_shapes(graph, 0, axis_sizes(graph, {}, batch))))
        wrong, alone, ratios, widths = 0, 0, [], []
        for trial in range(trials):
            found = latency.compare([program(graph)] * 2, feeds, settings, seconds, trial).timings[1]
            wrong += found.verdict != "no difference shown"
            widths.append(found.ci95[1] - found.ci95[0])
            low, high, ratio = one_pair(graph, feeds, settings, seconds, trial)
            alone += not low <= 1 <= high
            ratios.append(ratio)
        print(
            f"{name} batch {batch}: {wrong} of {trials} intervals leave out 1 (median width {np.median(widths):.3f});"
            f" of one pair of sessions {alone}, their ratio has standard deviation {np.std(ratios):.3f}",
            flush=True,
        )


def one_pair(graph: Graph, feeds: Feeds, settings: Settings, seconds: float, seed: int) -> tuple[float, float, float]:
    """The interval and the ratio that the rounds of a single pair of sessions give."""
    rng = np.random.default_rng(seed)
    rounds = latency._rounds([program(graph)] * 2, feeds, settings, seconds * latency.MIN_SESSIONS, rng)
    ratios = np.array([b / a for (a, _, stopped), (b, _, halted) in rounds if not (stopped or halted)] or [1.0])
    return (*latency.interval([ratios], seed), float(np.median(ratios)))


if __name__ == "__main__":
    main()
