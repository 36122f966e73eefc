"""Where the time goes: ONNX Runtime's profiler, kernel by kernel, for models side by side.

Runs of all models alternate, in SESSIONS sets of sessions, since a kernel's time depends on where its session lies in
memory (`latency`). A kernel has one number per session, the median over its runs. Kernels of two models that stand for
common nodes (`kernels`) are one row: what ran before, what runs now, and the time saved: the median over sessions, and
their range, in which the true median lies with 97 % (six fair coins all show the same side in 3 %).

Times are the profiler's: it costs about a microsecond a kernel and counts in whole ones. Kernels of control flow count
without what runs inside them.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.errors import InputError
from onnxprune.flow import flatten
from onnxprune.graph import Graph
from onnxprune.manager import State
from onnxprune.passes.inline_functions import InlineFunctions
from onnxprune.progress import Progress, silent
from onnxprune.sessions import CPU, Feeds, Program, Settings, open_session, program
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

SESSIONS = 6
MIN_RUNS, MAX_RUNS = 3, 20  # of a session, and one to warm up
MAX_EVENTS = 5_000  # of a session, if possible: each is a line of a kilobyte in the profiler's file
DIGITS = 6  # of milliseconds
BETWEEN = ""  # stands for a kernel: the part of a run that is in none
LISTED = 5  # operators named in the description of a fused kernel

Times = NDArray[np.float64]


@dataclass(frozen=True)
class Kernel:
    """What ONNX Runtime runs: its operator, the nodes that it stands for, and milliseconds per run in each session."""

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
    its range over sessions. A kernel is told as `Conv`, or as `Conv = Conv+Relu` where it stands for several nodes.
    """

    node: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    before_ms: float
    after_ms: float
    saved_ms: float
    range_ms: tuple[float, float]

    @property
    def verdict(self) -> str:
        return verdict(-self.range_ms[1], -self.range_ms[0])

    def to_dict(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "before": {"kernels": list(self.before), "ms": round(self.before_ms, DIGITS)},
            "after": {"kernels": list(self.after), "ms": round(self.after_ms, DIGITS)},
            "saved_ms": round(self.saved_ms, DIGITS),
            "range_ms": _rounded(self.range_ms),
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
    sessions: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "sessions": self.sessions,
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
    plain = [InlineFunctions().run(State(g)) for g in models]
    kernels, _, runs = kernel_times(plain, feeds, settings, seconds, seed, progress)
    rows = tuple(tuple(node_rows((plain[0], kernels[0]), (plain[k], kernels[k]))) for k in range(1, len(plain)))
    totals = tuple(sum(k.median_ms for k in found) for found in kernels)
    return Profile(tuple(operator_rows(kernels)), rows, totals, runs, SESSIONS)


def kernel_times(
    models: Sequence[Graph],
    feeds: Feeds,
    settings: Settings,
    seconds: float = 2.0,
    seed: int = 0,
    progress: Progress = silent,
    summary: Callable[[Times], float] = np.median,
) -> tuple[list[list[Kernel]], list[float], int]:
    """The kernels of models without functions of their own, milliseconds of each that are in no kernel, and how often
    each ran; see `profile`. `summary`: of the runs of a session.
    """
    if settings.provider != CPU:
        raise InputError(f"a profile needs provider {CPU}: the times of {settings.provider} are not those of kernels")
    programs = [program(numbered(g)) for g in models]
    most = max(MIN_RUNS, min(MAX_RUNS, MAX_EVENTS // max(1, *(len(g.nodes) for g in models))))
    rng = np.random.default_rng(seed)
    taken: list[list[dict[str, Times]]] = []
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as name:
        folder = Path(name)
        for k in range(SESSIONS):
            progress("profile", k, SESSIONS)
            taken.append(_session(programs, feeds, settings, folder, most, seconds / SESSIONS, rng, first=k == 0))
        made = [onnx.load(folder / f"{k}.onnx", load_external_data=False) for k in range(len(models))]
    sessions = [[t[k] for t in taken] for k in range(len(models))]
    kernels = [_kernels(g, m, s, summary) for g, m, s in zip(models, made, sessions, strict=True)]
    between = [float(np.median([summary(t[BETWEEN]) for t in s])) for s in sessions]
    return kernels, between, sum(len(t[0][BETWEEN]) for t in taken)


def _session(
    programs: Sequence[Program],
    feeds: Feeds,
    settings: Settings,
    folder: Path,
    most: int,
    seconds: float,
    rng: np.random.Generator,
    first: bool,
) -> list[dict[str, Times]]:
    """Per model the times of its kernels in one set of sessions; the first one saves the graphs that it made."""
    order = [int(k) for k in rng.permutation(len(programs))]
    made = {k: folder / f"{k}.onnx" if first else None for k in order}
    jobs = {k: open_session(programs[k], settings, folder / f"{k}.profile", made[k]) for k in order}
    end, done = time.perf_counter() + seconds, 0
    while done < 1 + MIN_RUNS or (done < 1 + most and time.perf_counter() < end):
        for k in rng.permutation(len(programs)):
            jobs[int(k)].run(None, feeds)
        done += 1
    traces = [Path(jobs[k].end_profiling()) for k in range(len(programs))]
    found = [run_times(json.loads(t.read_text(encoding="utf-8"))) for t in traces]
    for trace in traces:
        trace.unlink()
    return [{name: times[1:] / 1e3 for name, times in f.items()} for f in found]


def _kernels(
    graph: Graph, made: onnx.ModelProto, sessions: Sequence[dict[str, Times]], summary: Callable[[Times], float]
) -> list[Kernel]:
    """The kernels of a model, from the graph that ONNX Runtime made of it and their times in every session."""
    nodes = flatten(made.graph)[0]
    names = [kernel_name(node, k) for k, node in enumerate(nodes)]
    found = zip(names, nodes, origins(graph, nodes), strict=True)
    return [
        Kernel(name, kernel_operator(node), origin, np.array([float(summary(s[name])) for s in sessions]))
        for name, node, origin in found
        if all(name in s for s in sessions)
    ]


def run_times(events: Iterable[Mapping[str, Any]]) -> dict[str, Times]:
    """Microseconds of every kernel in each run, without those of kernels that run inside it, and of what is between
    kernels; from the events of one profile.
    """
    events = sorted((e for e in events if "dur" in e), key=lambda e: (e["ts"], -e["dur"]))
    runs = [e for e in events if e["name"] == "model_run"]
    starts = [e["ts"] for e in runs]
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
    inside = sum(found.values(), np.zeros(len(starts)))
    return {**found, BETWEEN: np.array([e["dur"] for e in runs]) - inside}


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
    import networkx as nx  # which takes a tenth of a second

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
        found = sorted(n for n in group if n[0] != "node")
        mine, theirs = ([ks[k] for s, k in found if s == side] for side, ks in ((0, old), (1, new)))
        rows.append(_row(first, mine, second, theirs))
    return sorted(rows, key=lambda r: -r.saved_ms)


def _row(first: Graph, old: Sequence[Kernel], second: Graph, new: Sequence[Kernel]) -> NodeRow:
    graph, kernels = (first, old) if old else (second, new)
    main = max((k for k in kernels if not k.origin.helps), key=lambda k: k.median_ms, default=kernels[0])
    name = label(graph, main.origin.nodes, main.operator) if main.origin.nodes else main.name
    before, after = tuple(_told(first, k) for k in old), tuple(_told(second, k) for k in new)
    was, now = (np.sum([k.ms for k in side], axis=0) if side else 0 * kernels[0].ms for side in (old, new))
    before_ms, after_ms, saved_ms = (float(np.median(x)) for x in (was, now, was - now))
    return NodeRow(name, before, after, before_ms, after_ms, saved_ms, (float(min(was - now)), float(max(was - now))))


def _told(graph: Graph, kernel: Kernel) -> str:
    ops = list(node_operators(graph, kernel.origin.nodes))
    if kernel.origin.helps or ops in ([], [kernel.operator.rpartition(".")[2]]):
        return kernel.operator
    return f"{kernel.operator} = " + "+".join(ops[:LISTED]) + (f"+{len(ops) - LISTED} more" if ops[LISTED:] else "")
