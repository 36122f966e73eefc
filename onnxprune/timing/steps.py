"""Which widths are worth having: kernels work on blocks of channels, and between two multiples of a block they are as
slow as at the next one, or much slower, where no kernel for blocks is left.

For every kind of product the largest kernels are timed at widths b and b + 1, 2, 4 ... 32, where b is 64 if that fits.
From coarse to fine: multiples of s being good, is the width half way between two of them? It is not if it takes clearly
longer than the straight line between them says. The step is the last s that is good, the largest over inputs and
outputs of the kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxprune.dims import Dim, atoms
from onnxprune.timing.kernels import Group

LEVELS = (32, 16, 8, 4, 2)
BASES = (64, 32, 16)  # the largest that leaves room; few enough units that a block more shows
LARGEST = 3  # kernels of a kind that are asked
EXCESS, NOISE = 0.35, 0.04  # over the line: as a share of what the whole step costs, and of the time
RESOLUTION_MS = 0.002  # the profiler counts in microseconds
MIN_SHARE = 0.002  # of the model's time: smaller kernels do not bind a dim to their step

Probe = tuple[Group, dict[Dim, int]]
Timer = Callable[[Sequence[Probe]], Sequence[float | None]]


@dataclass(frozen=True)
class Found:
    """The step of a kind of kernel. `excess`: how much longer than the line the first useless width takes, a share
    (None where all are good); `kernels`: how many were asked.
    """

    step: int
    kernels: int
    excess: float | None = None


@dataclass
class _Series:
    """One kernel around one width of one dim, times by the distance from it."""

    group: Group
    dim: Dim
    base: int
    reads: bool
    ms: dict[int, float] = field(default_factory=dict)

    def offsets(self) -> list[int]:
        room = self.dim.size - self.base
        return [0, *(s // 2 for s in reversed(LEVELS) if s // 2 <= room), *[s for s in LEVELS[:1] if s <= room]]

    def excess(self, step: int) -> tuple[float, bool] | None:
        """Over the line at half a step: a share of it, and whether that is clear."""
        ends, middle = (self.ms.get(0), self.ms.get(step)), self.ms.get(step // 2)
        if middle is None or ends[0] is None or ends[1] is None:
            return None
        line = (ends[0] + ends[1]) / 2
        over = middle - line
        return over / line, over > max(EXCESS * abs(ends[1] - ends[0]), NOISE * line, RESOLUTION_MS)


def find(groups: Iterable[Group], timer: Timer) -> dict[str, Found]:
    """The step of each kind of product that has a kernel wide enough to tell."""
    series = [s for listed in _largest(groups).values() for g in listed for s in _series(g)]
    probes = [(s, k, (s.group, {s.dim: s.base + k})) for s in series for k in s.offsets()]
    for (s, k, _), ms in zip(probes, timer([p for _, _, p in probes]), strict=True):
        if ms is not None:
            s.ms[k] = ms
    found: dict[str, Found] = {}
    for kind in dict.fromkeys(s.group.kind for s in series):
        sides = [[s for s in series if s.group.kind == kind and s.reads == side] for side in (True, False)]
        asked = len({s.group.question for side in sides for s in side})
        answers = [_step(side) for side in sides if side]
        step, excess = max(answers, key=lambda a: a[0])
        found[kind] = Found(step, asked, excess)
    return found


def _largest(groups: Iterable[Group]) -> dict[str, list[Group]]:
    found: dict[str, dict[str, Group]] = {}
    for g in groups:
        if g.products and g.part is not None and _open(g):
            kernels = found.setdefault(g.kind, {})
            if len(kernels) < LARGEST:
                kernels.setdefault(g.question, g)
    return {kind: list(kernels.values()) for kind, kernels in found.items()}


def _open(group: Group) -> list[Dim]:
    """Dims whose width shows: one unit makes the product one wider, and there is room for blocks."""
    return [d for d, grows in group.widths.items() if grows == 1 and d.size >= LEVELS[0]]


def _series(group: Group) -> list[_Series]:
    signature = group.typed.signatures[group.main]
    made = {d for axes in signature.outputs if axes for e in axes for d in atoms(e)}
    found = []
    for d in _open(group):
        base = next(b for b in BASES if d.size >= b + b // 2)
        found.append(_Series(group, d, base, d not in made))
    return found


def _step(series: Sequence[_Series]) -> tuple[int, float | None]:
    """The finest good step, and what the next finer width takes over the line."""
    for step in LEVELS:
        told = [(s.group.ms, e) for s in series if (e := s.excess(step)) is not None]
        total = sum(ms for ms, _ in told)
        if told and sum(ms for ms, (_, clear) in told if clear) > total / 2:
            return step, sum(ms * share for ms, (share, _) in told) / total
    return 1, None


def rounding(groups: Sequence[Group], found: Mapping[str, Found]) -> dict[Dim, int]:
    """Of every dim a multiple of how many units is to stay: the largest step of the kernels that it makes wider. Kinds
    without a step of their own have that of the others of their operator.
    """
    total = sum(g.ms for g in groups) or 1.0
    steps: dict[Dim, int] = {}
    for g in groups:
        if not g.products or g.ms < MIN_SHARE * total:
            continue
        step = _step_of(g.kind, found)
        for d, grows in g.widths.items():
            steps[d] = max(steps.get(d, 1), step // math.gcd(step, grows))
    return steps


def _step_of(kind: str, found: Mapping[str, Any]) -> int:
    if kind in found:
        return int(found[kind].step)
    return max((f.step for other, f in found.items() if other.split()[-1] == kind.split()[-1]), default=1)
