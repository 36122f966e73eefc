"""Where the time goes: ONNX Runtime's profiler, kernel by kernel, for models side by side.

Runs of all models alternate. Kernels of two models that stand for common nodes (`kernels`) are one row: what ran
before, what runs now, and the median over pairs of runs of the time saved, with a distribution-free interval (the order
statistics between which the median lies). Sums are over the medians of kernels, so that a run that was interrupted once
spoils one kernel and not the sum. Times are the profiler's: it costs about a microsecond a kernel and counts in whole
ones. Kernels of control flow count without what runs inside them.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.errors import InputError
from onnxprune.flow import flatten
from onnxprune.graph import Graph
from onnxprune.manager import State
from onnxprune.passes.inline_functions import InlineFunctions
from onnxprune.progress import Progress, silent
from onnxprune.sessions import CPU, OPTIMIZED, Feeds, Settings, open_session, program
from onnxprune.validate.kernels import (
    Origin,
    kernel_name,
    kernel_operator,
    label,
    node_operators,
    numbered,
    origins,
    partners,
)
from onnxprune.validate.latency import verdict

WARM_RUNS = 2
MIN_RUNS, MAX_RUNS = 11, 51
MAX_EVENTS = 20_000  # of one model: each is a line of a kilobyte in the profiler's file
DIGITS = 6  # of milliseconds
LISTED = 5  # operators named in the description of a fused kernel

Times = NDArray[np.float64]


@dataclass(frozen=True)
class Kernel:
    """What ONNX Runtime runs: its operator, the nodes that it stands for, and milliseconds per run."""

    name: str
    operator: str
    origin: Origin
    ms: Times

    @property
    def median_ms(self) -> float:
        return float(np.median(self.ms))


@dataclass(frozen=True)
class OperatorRow:
    """Kernels of one operator: how many there are, and the sum of their medians in milliseconds, per model."""

    operator: str
    kernels: tuple[int, ...]
    ms: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"operator": self.operator, "kernels": list(self.kernels), "ms": _rounded(self.ms)}


@dataclass(frozen=True)
class NodeRow:
    """Nodes that run together in either model: the kernels of both, medians in milliseconds, and the time saved with
    its 95 % interval. A kernel is told as `Conv`, or as `Conv = Conv+Relu` where it stands for several nodes.
    """

    node: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    before_ms: float
    after_ms: float
    saved_ms: float
    ci95: tuple[float, float]

    @property
    def verdict(self) -> str:
        return verdict(-self.ci95[1], -self.ci95[0])

    def to_dict(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "before": {"kernels": list(self.before), "ms": round(self.before_ms, DIGITS)},
            "after": {"kernels": list(self.after), "ms": round(self.after_ms, DIGITS)},
            "saved_ms": round(self.saved_ms, DIGITS),
            "ci95": _rounded(self.ci95),
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Profile:
    """`operators`, those that take longest first; `nodes`: per model after the first its rows against the first, most
    time saved first.
    """

    operators: tuple[OperatorRow, ...]
    nodes: tuple[tuple[NodeRow, ...], ...]
    total_ms: tuple[float, ...]
    runs: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "total_ms": _rounded(self.total_ms),
            "operators": [r.to_dict() for r in self.operators],
            "nodes": [[r.to_dict() for r in rows] for rows in self.nodes],
        }


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(v, DIGITS) for v in values]


def profile(
    models: Sequence[Graph],
    feeds: Feeds,
    settings: Settings,
    seconds: float = 2.0,
    seed: int = 0,
    progress: Progress = silent,
) -> Profile:
    """Profile models on one feed for about `seconds` (at least MIN_RUNS runs each). InputError for other providers than
    the CPU's: their kernels go on running when the profiler's clock has stopped.
    """
    if settings.provider != CPU:
        raise InputError(f"a profile needs provider {CPU}: the times of {settings.provider} are not those of kernels")
    plain = [InlineFunctions().run(State(g)) for g in models]
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        places = [Path(folder) / str(k) for k in range(len(plain))]
        for place in places:
            place.mkdir()
        jobs = [open_session(program(numbered(g)), settings, p) for g, p in zip(plain, places, strict=True)]
        runs = _runs(jobs, feeds, max(len(g.nodes) for g in plain), seconds, seed, progress)
        traces = [Path(j.end_profiling()) for j in jobs]
        kernels = [_kernels(g, p, t) for g, p, t in zip(plain, places, traces, strict=True)]
    rows = tuple(tuple(node_rows((plain[0], kernels[0]), (plain[k], kernels[k]))) for k in range(1, len(plain)))
    totals = tuple(sum(k.median_ms for k in found) for found in kernels)
    return Profile(tuple(operator_rows(kernels)), rows, totals, runs)


def _runs(jobs: Sequence[Any], feeds: Feeds, nodes: int, seconds: float, seed: int, progress: Progress) -> int:
    """Run the sessions in turn; how often, without the runs that warm up."""
    most = min(MAX_RUNS, max(MIN_RUNS, MAX_EVENTS // max(nodes, 1)))
    rng = np.random.default_rng(seed)
    start, done = time.perf_counter(), 0
    while done < WARM_RUNS + MIN_RUNS or (done < WARM_RUNS + most and time.perf_counter() - start < seconds):
        progress("profile", done, WARM_RUNS + most)
        for k in rng.permutation(len(jobs)):
            jobs[k].run(None, feeds)
        done += 1
    return done - WARM_RUNS


def _kernels(graph: Graph, folder: Path, trace: Path) -> list[Kernel]:
    """The kernels of a profiled session: from the graph that it made, and from its profile."""
    made, _ = flatten(onnx.load(folder / OPTIMIZED, load_external_data=False).graph)
    times = run_times(json.loads(trace.read_text(encoding="utf-8")))
    names = [kernel_name(node, k) for k, node in enumerate(made)]
    found = zip(names, made, origins(graph, made), strict=True)
    return [
        Kernel(name, kernel_operator(node), origin, times[name][WARM_RUNS:] / 1e3)
        for name, node, origin in found
        if name in times
    ]


def run_times(events: Iterable[Mapping[str, Any]]) -> dict[str, Times]:
    """Microseconds of every kernel in each run, without those of kernels that run inside it; from the events of one
    profile.
    """
    events = sorted((e for e in events if "dur" in e), key=lambda e: (e["ts"], -e["dur"]))
    starts = [e["ts"] for e in events if e["name"] == "model_run"]
    found: dict[str, Times] = defaultdict(lambda: np.zeros(len(starts)))
    around: list[tuple[float, str]] = []  # kernels that are running, by their end
    for e in events:
        if e["cat"] != "Node" or not e["name"].endswith("_kernel_time"):
            continue
        name, run = e["name"].removesuffix("_kernel_time"), int(np.searchsorted(starts, e["ts"], "right")) - 1
        while around and around[-1][0] <= e["ts"]:
            around.pop()
        found[name][run] += e["dur"]
        if around:
            found[around[-1][1]][run] -= e["dur"]
        around.append((e["ts"] + e["dur"], name))
    return dict(found)


def operator_rows(models: Sequence[Sequence[Kernel]]) -> list[OperatorRow]:
    """One row per operator of ONNX Runtime, over all models."""
    by_name: dict[str, list[list[Kernel]]] = {}
    for k, kernels in enumerate(models):
        for kernel in kernels:
            by_name.setdefault(kernel.operator, [[] for _ in models])[k].append(kernel)
    rows = [
        OperatorRow(name, tuple(map(len, found)), tuple(sum(k.median_ms for k in kernels) for kernels in found))
        for name, found in by_name.items()
    ]
    return sorted(rows, key=lambda r: -max(r.ms))


def node_rows(before: tuple[Graph, Sequence[Kernel]], after: tuple[Graph, Sequence[Kernel]]) -> list[NodeRow]:
    """Kernels of two models, joined where they stand for common nodes; most time saved first."""
    (first, old), (second, new) = before, after
    same = partners(first, second)
    joined = nx.Graph()
    for side, kernels in enumerate((old, new)):
        for k, kernel in enumerate(kernels):
            joined.add_node((side, k))
            keys = kernel.origin.nodes if side == 0 else (same.get(i, -1 - i) for i in kernel.origin.nodes)
            joined.add_edges_from(((side, k), ("node", i)) for i in keys)
    rows = []
    for group in nx.connected_components(joined):
        mine, theirs = ([ks[k] for s, k in sorted(group, key=str) if s == side] for side, ks in ((0, old), (1, new)))
        rows.append(_row(first, mine, second, theirs))
    return sorted(rows, key=lambda r: -r.saved_ms)


def _row(first: Graph, old: Sequence[Kernel], second: Graph, new: Sequence[Kernel]) -> NodeRow:
    runs = len((old or new)[0].ms)
    was, now = _sum(old, runs), _sum(new, runs)
    graph, kernels = (first, old) if old else (second, new)
    main = max((k for k in kernels if not k.origin.helps), key=lambda k: k.median_ms, default=kernels[0])
    name = label(graph, main.origin.nodes, main.operator) if main.origin.nodes else main.name
    before, after = tuple(_told(first, k) for k in old), tuple(_told(second, k) for k in new)
    before_ms, after_ms, saved_ms = (float(np.median(x)) for x in (was, now, was - now))
    return NodeRow(name, before, after, before_ms, after_ms, saved_ms, median_interval(was - now))


def _told(graph: Graph, kernel: Kernel) -> str:
    ops = list(node_operators(graph, kernel.origin.nodes))
    if kernel.origin.helps or ops in ([], [kernel.operator.rpartition(".")[2]]):
        return kernel.operator
    return f"{kernel.operator} = " + "+".join(ops[:LISTED]) + (f"+{len(ops) - LISTED} more" if ops[LISTED:] else "")


def _sum(kernels: Iterable[Kernel], runs: int) -> Times:
    return np.sum([k.ms for k in kernels], axis=0) if kernels else np.zeros(runs)


def median_interval(values: Times) -> tuple[float, float]:
    """The order statistics between which the median lies with at least 95 % (a binomial with even odds); all values
    where there are fewer than six.
    """
    n, k, below = values.size, 0, 0.5**values.size
    while below <= 0.025:
        k += 1
        below += math.comb(n, k) * 0.5**n
    ordered = np.sort(values)
    return float(ordered[max(k - 1, 0)]), float(ordered[n - max(k, 1)])
