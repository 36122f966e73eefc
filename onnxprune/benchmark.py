"""`onnxprune bench` as a call: two or more model files on the same input, the first one the reference. Latency in
interleaved rounds, load time and memory in processes of their own, and with `profile` where the time goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data import BATCH, DataLike, load_feeds
from onnxprune.errors import InputError, OnnxPruneError
from onnxprune.feeds import Binding, Shape, random_feeds
from onnxprune.graph import Graph
from onnxprune.progress import Progress, silent
from onnxprune.reading import load
from onnxprune.sessions import Feeds, Libraries, Settings, open_session, program
from onnxprune.sizing import axis_sizes, batched_inputs, running_shapes
from onnxprune.validate import latency
from onnxprune.validate.footprint import Footprint, footprints
from onnxprune.validate.latency import Comparison
from onnxprune.validate.profile import Profile, profile


@dataclass(frozen=True)
class Benchmark:
    """What was measured of each model, in their order: names as given, `shapes` of the inputs."""

    names: tuple[str, ...]
    shapes: dict[str, Shape]
    comparison: Comparison
    footprints: tuple[Footprint, ...]
    profile: Profile | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON. Times in milliseconds, memory in bytes; ratios are to the first model."""
        rows = zip(self.names, self.comparison.timings, self.footprints, strict=True)
        return {
            "models": [{"name": n, **t.to_dict(), **f.to_dict()} for n, t, f in rows],
            **self.comparison.to_dict(),
            "inputs": {n: list(s) for n, s in self.shapes.items()},
            "profile": self.profile.to_dict() if self.profile else None,
        }


def benchmark(
    paths: Sequence[Path],
    *,
    data: DataLike | None = None,
    seed: int = 0,
    batch: int | None = None,
    shapes: Mapping[str, Shape] | None = None,
    libraries: Libraries = (),
    settings: Settings = latency.ONE_THREAD,
    seconds: float = 5.0,
    profiled: bool = False,
    progress: Progress = silent,
) -> Benchmark:
    """Compare models on one input: the first of `data`, else random ones of `shapes` (by input name) and `batch` (of
    inputs with a free first axis). InputError if there are fewer than two models, if their inputs differ, or if ONNX
    Runtime does not run one of them.
    """
    if len(paths) < 2:
        raise InputError("give two models or more to compare")
    if data is not None and shapes:
        raise InputError("give shapes or data, not both")
    graphs = [load(p, libraries) for p in paths]
    for path, graph in zip(paths, graphs, strict=True):
        if [i.name for i in graph.inputs] != [i.name for i in graphs[0].inputs]:
            raise InputError(f"{paths[0]} and {path} have different inputs")
    feeds = _feeds(graphs[0], data, seed, axis_sizes(graphs[0], shapes or {}, batch), batch)
    for path, graph in zip(paths, graphs, strict=True):
        _require_run(path, graph, feeds, settings)
    programs = [program(g) for g in graphs]
    return Benchmark(
        tuple(map(str, paths)),
        {n: a.shape for n, a in feeds.items()},
        latency.compare(programs, feeds, settings, seconds, seed, progress),
        tuple(footprints(paths, feeds, settings, progress=progress, libraries=graphs[0].libraries)),
        profile(graphs, feeds, settings, seconds, seed, progress) if profiled else None,
    )


def _feeds(graph: Graph, data: DataLike | None, seed: int, sizes: Mapping[str, int], batch: int | None) -> Feeds:
    if data is None:
        return random_feeds(graph, Binding(running_shapes(graph, seed, sizes)), seed)
    feeds = load_feeds(graph, data, BATCH)[0]
    if batch is None:
        return feeds
    free = batched_inputs(graph)
    return {n: np.resize(a, (batch, *a.shape[1:])) if n in free else a for n, a in feeds.items()}


def _require_run(path: Path, graph: Graph, feeds: Feeds, settings: Settings) -> None:
    try:
        open_session(program(graph), settings).run(None, feeds)
    except OnnxPruneError:
        raise
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise InputError(f"ONNX Runtime does not run {path} on these inputs or data: {error}") from error
