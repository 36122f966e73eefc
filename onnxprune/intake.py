"""What a run is given: the samples that it calibrates on and those that it is measured on, and the input sizes that the
model runs at with them. What cannot be done without is told before anything is run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnxprune.budget import Budget
from onnxprune.data import DataLike, Labels, Samples, fitting
from onnxprune.errors import InputError
from onnxprune.feeds import Binding, random_feeds
from onnxprune.graph import Graph
from onnxprune.manager import State
from onnxprune.metrics import MetricLike
from onnxprune.sessions import Feeds
from onnxprune.sizing import pair_if_it_runs, running_pair, running_shapes

HELD_BACK = 0.25  # of the samples, at least, where a budget is a limit on the metric and there is no other data
NO_DATA = "a metric needs data to be measured on: give --data"


def calibration_and_tests(
    graph: Graph, budget: Budget | None, data: DataLike | None, test_data: DataLike | None, samples: int, seed: int
) -> tuple[Samples | None, Samples | None]:
    """Samples of the data, and those that checks and metrics are made on: all of `test_data`, else the same. What a
    budget judges by a metric must not have been fitted to: then, of more samples than are wanted, as many again are
    held back for it, or else a part. InputError for a seed that is none.
    """
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed must be a whole number of at least 0, got {seed!r}")
    judged = budget is not None and budget.max_drop is not None
    if data is None or test_data is not None or not judged:
        given = None if data is None else fitting(graph, data, samples, seed)
        return given, given if test_data is None else fitting(graph, test_data, None, seed)
    given = fitting(graph, data, 2 * samples, seed)
    tests, rest = given.parted(min(max(1 - samples / given.count, HELD_BACK), 0.5))
    return (rest, tests) if tests.count and rest.count else (given, given)


def require_data(
    budget: Budget | None, metric: MetricLike | None, tests: Samples | None, check: bool, dry_run: bool
) -> None:
    """InputError where what was asked for needs data, or measurements."""
    if metric is not None and tests is None:
        raise InputError(NO_DATA)
    if budget is not None and budget.max_drop is not None and (tests is None or not check):
        why = "data to be measured on: give --data" if tests is None else "the checks and measurements"
        raise InputError(f"max_drop {budget.max_drop} needs {why}")
    if budget is not None and budget.in_time and not (check or dry_run):
        raise InputError("a budget in latency needs the checks and measurements, and operators that ONNX Runtime has")


def sizes(graph: Graph, samples: Samples | None, check: bool, seed: int) -> tuple[Binding, Binding] | None:
    """Two sets of input shapes that the model runs at, those of the data first; without data or checks None is for a
    model that does not run, or is too large to be run for that.
    """
    if samples is None and not check:
        return None if graph.is_large else pair_if_it_runs(graph)
    known = {n: a.shape for n, a in next(iter(samples)).items()} if samples is not None else None
    return running_pair(graph, seed, known)


def calibrate_on(state: State, given: Samples | None, seed: int) -> None:
    """What is gathered from data, and how many samples that is: rows are picked by it."""
    state.data, state.samples, state.seed = given, given.count if given is not None else 0, seed


def timed_feeds(graph: Graph, pair: tuple[Binding, Binding], tests: Samples | None, seed: int) -> Feeds:
    """What models are timed on."""
    return next(iter(tests)) if tests else random_feeds(graph, pair[0], seed)


def labelled_feeds(
    graph: Graph, data: DataLike | None, samples: int | None, seed: int
) -> Iterable[tuple[Feeds, Labels]]:
    """Labelled feeds from the data, else one at random that the model runs with."""
    if data is None:
        return [(random_feeds(graph, Binding(running_shapes(graph, seed)), seed), {})]
    return fitting(graph, data, samples, seed).labelled


def notes(foreign: Sequence[str], *data: Samples | None) -> list[str]:
    """What the report says of data, and of operators that ONNX Runtime lacks."""
    told = []
    if foreign:
        told.append(
            f"not checked and not measured: ONNX Runtime has no kernels for {', '.join(foreign)};"
            " --custom-op-library takes a library that has them"
        )
    unused = sorted({n for d in data if d is not None for n in d.unused})
    told += [f"{n!r} in the data is not as long as the inputs: it was left aside" for n in unused]
    if any(d is not None and d.is_random for d in data):
        told.append("the data is random, a poor choice: what matters on real inputs may not show on it; give samples")
    return told
