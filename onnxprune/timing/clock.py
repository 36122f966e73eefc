"""The latency of one model on this machine, as a cost of dim sizes: `Clock` for a run's inputs and settings makes a
`LatencyModel` of each typed graph that it is asked about.

    whole model     measured kernel by kernel (`kernels`)
    steps           widths that are worth having (`steps`)
    tables          the kernels with products over a grid of such widths (`tables`), equal ones once
    what is left    between kernels (the call itself) stays the same at all widths

What was measured before comes from the store. Providers other than the CPU's do not show kernels: there the time is
taken to fall with the MACs, and only what is measured end to end counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from onnxprune import cost
from onnxprune.dims import Dim
from onnxprune.inference import TypedGraph
from onnxprune.manager import Cut
from onnxprune.plan import bind
from onnxprune.progress import Progress, silent
from onnxprune.sessions import CPU, Feeds, Settings, program
from onnxprune.timing.kernels import Group, groups
from onnxprune.timing.micro import Sizes, at_widths, measure
from onnxprune.timing.steps import Found, Probe, find, rounding
from onnxprune.timing.store import Store
from onnxprune.timing.tables import NS, KernelTerm, Table, grid
from onnxprune.validate import latency
from onnxprune.validate.profile import kernel_times

SECONDS = 1.0  # for the whole model, and again for its kernels
MIN_SHARE = 0.001  # of the time: smaller products go by their entries
TERM = KernelTerm | cost.Term


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """Nanoseconds of a model at any sizes of its dims. `rest`: what is in no kernel; `steps`: by kind of kernel;
    `multiples`: of every dim a multiple of how many units is to stay.
    """

    terms: tuple[TERM, ...]
    rest: int
    steps: Mapping[str, Found] = field(default_factory=dict)
    multiples: Mapping[Dim, int] = field(default_factory=dict)

    @cached_property
    def _whole(self) -> int:
        return self.rest + sum(t.whole for t in self.terms)

    def at(self, sizes: Sizes) -> int:
        """Nanoseconds when each dim keeps `sizes[dim]` units."""
        return self.rest + sum(int(t.at(sizes)) for t in self.terms) if sizes else self._whole


@dataclass(frozen=True)
class Attempt:
    """One try at a latency, all as shares of the original's: what was asked of the model, what it says of the widths
    that it chose, and what was measured, with its 95 % interval.
    """

    asked: float
    predicted: float
    measured: float
    ci95: tuple[float, float]


class Clock:
    """Makes latency models, each once, for models on `feeds` at some settings. `attempts`: what was tried with them;
    `measured`, `known`: micro-models that were timed, and known from before.
    """

    attempts: tuple[Attempt, ...] = ()
    measured = known = 0

    def __init__(
        self, feeds: Feeds, settings: Settings, store: Store | None = None, seed: int = 0, progress: Progress = silent
    ) -> None:
        self.feeds, self.settings, self.seed, self.progress = feeds, settings, seed, progress
        self.store = store or Store(settings)
        self._made: dict[int, tuple[TypedGraph, LatencyModel]] = {}
        self._times: dict[str, float | None] = {}

    def cost(self, typed: TypedGraph) -> LatencyModel:
        """The latency of a graph."""
        found = self._made.get(id(typed))
        if found is None:
            found = self._made[id(typed)] = (typed, self._model(typed))
        return found[1]

    def multiples(self, typed: TypedGraph) -> Mapping[Dim, int]:
        """Of every dim, a multiple of how many units is to stay; dims that are not named go unit by unit."""
        return self.cost(typed).multiples

    @property
    def first(self) -> tuple[TypedGraph, LatencyModel] | None:
        """The first graph that it was asked about, and its latency."""
        return next(iter(self._made.values()), None)

    def predicted(self, cuts: Sequence[Cut]) -> float | None:
        """What the latency models say of what some cuts left, as a share of what the first was made of; None where the
        last one cuts no widths.
        """
        if not cuts or cuts[-1].dropped.layers:
            return None
        first, last = cuts[0].typed, cuts[-1].typed
        kept = {d: int(m.sum()) for d, m in bind(cuts[-1].plan, last).items()}
        return self.cost(last).at(kept) / max(self.cost(first).at({}), 1)

    def _model(self, typed: TypedGraph) -> LatencyModel:
        if self.settings.provider != CPU:
            return self._by_macs(typed)
        (kernels,), (between,), _ = kernel_times(
            [typed.graph], self.feeds, self.settings, SECONDS, self.seed, self.progress, np.min
        )
        found, rest = groups(typed, kernels)
        steps = find(found, self._timer)
        multiples = rounding(found, steps)
        tables = self._tables(found, multiples)
        terms = tuple(KernelTerm(g, tables.get(g.question)) for g in found)
        return LatencyModel(terms, round((rest + between) * NS), steps, multiples)

    def _by_macs(self, typed: TypedGraph) -> LatencyModel:
        found = latency.compare([program(typed.graph)], self.feeds, self.settings, SECONDS, self.seed, self.progress)
        macs = cost.macs(typed)
        ns = max(1, round(found.timings[0].median_ms * NS / max(macs.at({}), 1)))
        terms = tuple(t._replace(coefficient=t.coefficient * ns, whole=t.whole * ns) for t in macs.terms)
        return LatencyModel(terms, 0)

    def _tables(self, found: Sequence[Group], multiples: Mapping[Dim, int]) -> dict[str, Table]:
        """Tables by question, of products that count."""
        total = sum(g.ms for g in found)
        asked = [g for g in found if g.products and g.coordinates and g.ms >= MIN_SHARE * total]
        grids = {g.question: grid(g, multiples) for g in reversed(asked) if g.part is not None}
        probes = [(g.group, g.sizes(p)) for g in grids.values() for p in g.points]
        times = iter(self._timer(probes))
        made: dict[str, Table] = {}
        for question, points in grids.items():
            ms = [next(times) for _ in points.points]
            if all(t is not None for t in ms) and ms[-1]:
                made[question] = Table(points, np.array(ms, float))
        return made

    def _timer(self, probes: Sequence[Probe]) -> list[float | None]:
        """Milliseconds of kernels at some sizes, from the store or measured."""
        questions = [_question(group, sizes) for group, sizes in probes]
        asked = {q: probe for q, probe in zip(questions, probes, strict=True) if q not in self._times}
        stored = self.store.read(asked)
        fresh = {q: probe for q, probe in asked.items() if q not in stored}
        micros = [at_widths(part, sizes, self.seed) for group, sizes in fresh.values() if (part := group.part)]
        answers = measure(micros, self.settings, partial(self.progress, "kernels at other widths"))
        made = dict(zip(fresh, answers, strict=True))
        self.store.write({q: ms for q, ms in made.items() if ms is not None})
        self._times |= stored | made
        self.known, self.measured = self.known + len(stored), self.measured + len(fresh)
        return [self._times[q] for q in questions]


def _question(group: Group, sizes: Mapping[Dim, int]) -> str:
    """What is asked: the kernel, and the size of each of its dims."""
    point = [sizes.get(d, d.size) for c in group.coordinates for d in c.dims]
    return hashlib.sha256(f"{group.question} {point}".encode()).hexdigest()[:32]
