"""Budgets that are met by measuring what comes of them. The passes up to the first cut run once, the others at every
try, with the same error curves.

max_drop       bisection for the fewest MACs at which the metric loses no more than allowed, by its standard error
latency,       the latency model (`timing`) chooses widths for a share of the time; what they make is measured against
latency_ms     the original, end to end, and the share that is asked of the model is corrected by what was missed, until
               the measured ratio is close to the one that is wanted. Nothing is recovered on the way: weights do not
               change how long a model takes.

A budget in MACs that says nothing of widths is met in blocks of channels, if what it cuts as it is turns out slower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from onnxprune.budget import Budget, picked_dims
from onnxprune.criteria import OBS
from onnxprune.errors import GateError, InputError
from onnxprune.inference import DimInfo
from onnxprune.judge import Judge, Loss
from onnxprune.manager import Pass, PassManager, PassResult, State
from onnxprune.passes import RECOVERING
from onnxprune.passes.prune import Prune
from onnxprune.progress import Progress
from onnxprune.proof import Original
from onnxprune.sensitivity import Sensitivity, analyse
from onnxprune.sessions import program
from onnxprune.stopwatch import Stopwatch, slower
from onnxprune.timing import Attempt, Clock
from onnxprune.validate.latency import Comparison

FEW = 4  # samples that may be lost: of fewer a limit cannot be judged well
SEARCHES = 7  # for the fewest MACs that a metric allows: to within one percent of the whole
TRIES = 6  # of a latency
CLOSE, TOLERANCE = 0.02, 0.05  # of the wanted latency: where the search ends, and what is let pass


@dataclass(frozen=True)
class Found:
    """A run of all passes, and the error curves that it took."""

    state: State
    results: list[PassResult]
    curves: Sensitivity | None = None


class Search:
    """A budget, the passes, and the state before the first cut."""

    def __init__(self, manager: PassManager, first: State, progress: Progress) -> None:
        at = next((k for k, p in enumerate(manager.passes) if isinstance(p, Prune)), None)
        if at is None or first.budget is None:
            raise InputError("max_drop, latency and latency_ms need a pass `prune` that is left open for them")
        self.budget, self.progress, self.verify_each = first.budget, progress, manager.verify_each
        self.after = manager.passes[at:]
        self.ready = replace(first)
        self.results = self._manager(manager.passes[:at]).run(self.ready, progress)
        self.curves: Sensitivity | None = None

    def measure_curves(self) -> None:
        """The error curves, if they are needed and not given."""
        wanted = self.budget.scope == "global" and self.budget.criterion in ("", OBS)
        if self.ready.curves is None and self.ready.data is not None and wanted and not self.ready.cuts:
            dims = picked_dims(self.ready.typed, self.budget).values()
            self.curves = sensitivity_of(self.ready, self.progress, dims=list(dims))
            self.ready.curves = self.curves.curves

    def at(
        self,
        budget: Budget,
        passes: Sequence[Pass] | None = None,
        progress: Progress | None = None,
        last: bool = False,
    ) -> Found:
        """The passes from the first cut on at another budget. InputError if it cannot be reached. `last`: no other try
        follows, so what was gathered is let go of when this one needs it no more.
        """
        ready = self.ready
        tried = replace(ready, budget=budget, cuts=list(ready.cuts), recoveries=list(ready.recoveries))
        tried.notes = list(ready.notes)
        tried.mends = ready.mends and passes is None
        if last:
            ready.move(ready.graph, keep_facts=True)
        results = self._manager(self.after if passes is None else passes).run(tried, *([progress] if progress else []))
        return Found(tried, self.results + results, self.curves)

    @property
    def cut_only(self) -> list[Pass]:
        """The passes but for those that recover, which do not change how long a model takes."""
        return [p for p in self.after if not isinstance(p, RECOVERING)]

    def suited(self, watch: Stopwatch) -> Budget:
        """The budget, or the same in blocks of channels where it makes the model slower as it is."""
        blocks = self.budget.in_blocks
        if blocks is None or len(self.budget.scopes) > 1:  # later cuts come of what was recovered
            return self.budget
        _, text = slower(watch, self.at(self.budget, self.cut_only).state.graph)
        if not text:
            return self.budget
        try:
            self.at(blocks, self.cut_only)
        except InputError:  # there are not enough blocks
            return self.budget
        self.ready.notes.append(f"{text}: cut in multiples of {blocks.round_to}")
        return blocks

    def _manager(self, passes: Sequence[Pass]) -> PassManager:
        return PassManager(tuple(passes), self.verify_each)


def meet(
    manager: PassManager,
    state: State,
    facts: Original | None,
    watch: Stopwatch | None,
    progress: Progress,
    excused: bool,
) -> Found:
    """All passes, at the budget of a run; `excused`: the result may be slower than the original."""
    budget = state.budget
    if budget is not None and budget.max_drop is not None:
        if facts is None or facts.yardstick is None:
            raise InputError("max_drop needs a budget and measurements, and goes with no dry run")
        return fewest_macs(Search(manager, state, progress), Judge(facts.yardstick))
    if budget is not None and budget.in_time and isinstance(state.clock, Clock) and watch and not state.dry_run:
        return in_time(Search(manager, state, progress), state.clock, watch)
    if budget is not None and budget.in_blocks is not None and any(s == Prune() for s in manager.passes):
        search = Search(manager, state, progress)
        search.measure_curves()
        look_first = facts is not None and state.mends and not excused
        return search.at(search.suited(watch) if watch and look_first else budget, progress=progress, last=True)
    return Found(state, manager.run(state, progress))


def fewest_macs(search: Search, judge: Judge) -> Found:
    """The run that keeps the fewest MACs of those at which the metric loses no more than `max_drop`: what is lost and
    its standard error together, since the samples that are judged by are not those that the model is made for. Where
    none is shown to, the least cut that was tried, if it loses no more on these samples.
    """
    allowed = search.budget.max_drop or 0.0
    search.measure_curves()
    low, high = 0.0, 1.0
    best: tuple[Found, Loss] | None = None
    least: tuple[Found, Loss] | None = None
    for k in range(SEARCHES):
        macs = (low + high) / 2
        search.progress(f"{macs:.1%} of the MACs", k, SEARCHES)
        try:
            tried = search.at(replace(search.budget, macs=macs, max_drop=None))
        except InputError:  # the least that may be kept is more
            low = macs
            continue
        loss = judge.loss(program(tried.state.graph))
        if _is_within(allowed, loss, judge.counts):
            high, best = macs, (tried, loss)
        else:
            low, least = macs, (tried, loss) if loss.drop <= allowed else None
    if (chosen := best or least) is None:
        raise GateError(f"nothing was removed: already at {macs:.1%} of the MACs the metric loses more than allowed")
    found, loss = chosen
    found.state.notes.append(_judgement(allowed, loss, judge.counts))
    return found


def _is_within(allowed: float, loss: Loss, counts: bool) -> bool:
    """Whether a loss with its error keeps to a limit. Where a single sample is more than the limit, samples that became
    right by chance make up for none.
    """
    few = counts and loss.samples * allowed < 1
    return (max(loss.drop, 0.0) if few else loss.drop) + (loss.error or 0.0) <= allowed


def _judgement(allowed: float, loss: Loss, counts: bool) -> str:
    """What is known of a loss that is to be at most `allowed`."""
    error = "of an unknown error" if loss.error is None else f"standard error {loss.error:.2g}"
    change = f"{abs(loss.drop):.2g} was {'gained' if loss.drop < 0 else 'lost'}"
    told = f"max_drop {allowed:g}: {change} ({error}) on {loss.samples} samples"
    if not _is_within(allowed, loss, counts):
        return f"{told}, which do not show the limit: the least cut that was tried was taken; give more samples"
    if counts and loss.samples * allowed < FEW:
        told = f"{told}, of which one is {1 / loss.samples:.2g} of the whole"
        return f"{told}: on others the loss may be larger; give at least {math.ceil(FEW / allowed)}"
    return told


def in_time(search: Search, clock: Clock, watch: Stopwatch) -> Found:
    """The run whose result takes the wanted share of the original's time. InputError if the model says that it cannot
    be, GateError if the measurement does.
    """
    wanted = _share(search.budget, watch)
    search.measure_curves()
    tries: list[tuple[Attempt, Found]] = []
    asked = wanted
    for k in range(TRIES):
        search.progress(f"latency {asked:.3g} of the original", k, TRIES)
        try:
            found = search.at(replace(search.budget, latency=asked, latency_ms=None), search.cut_only)
        except InputError:
            if not tries:
                raise
            break
        predicted = clock.predicted(found.state.cuts) or 1.0
        if any(predicted == a.predicted for a, _ in tries):  # the same widths again
            break
        timing = watch.settled(found.state.graph, k).timings[-1]
        tries.append((Attempt(asked, predicted, timing.ratio, timing.ci95), found))
        clock.attempts = tuple(a for a, _ in tries)
        if abs(timing.ratio / wanted - 1) <= CLOSE:
            break
        asked = _next([a for a, _ in tries], wanted)
    good = [t for t in tries if t[0].measured <= wanted * (1 + TOLERANCE)]
    if not good:
        least = min(a.measured for a, _ in tries)
        raise GateError(
            f"latency {wanted:.3g} of the original cannot be reached: the fastest result that was measured takes"
            f" {least:.3g} of it; nothing was saved"
        )
    attempt, found = min(good, key=lambda t: abs(math.log(t[0].measured / wanted)))
    if len(search.cut_only) < len(search.after):
        found = _recovered(search, attempt, found)
    found.state.budget = search.budget
    return found


def _recovered(search: Search, attempt: Attempt, found: Found) -> Found:
    """The same cut with its recoveries."""
    if len(found.state.cuts) != 1:
        return search.at(replace(search.budget, latency=attempt.asked, latency_ms=None), progress=search.progress)
    plan, search.ready.plan = search.ready.plan, found.state.cuts[0].plan
    try:
        return search.at(search.budget, progress=search.progress)
    finally:
        search.ready.plan = plan


def _share(budget: Budget, watch: Stopwatch) -> float:
    """The wanted latency as a share of the original's."""
    if budget.latency_ms is None:
        return budget.latency or 1.0
    now = watch.original_ms
    if budget.latency_ms >= now:
        raise InputError(f"latency_ms {budget.latency_ms:.6g} is met already: the original takes {now:.4g} ms here")
    return budget.latency_ms / now


def missed_time(budget: Budget, last: Comparison) -> list[str]:
    """A note where the last measurement shows a budget in latency missed by more than is let pass: the machine, or the
    place in memory, was another one while widths were chosen.
    """
    timing, before_ms = last.timings[-1], last.timings[0].median_ms
    wanted = budget.latency or (budget.latency_ms or math.inf) / before_ms
    if timing.ci95[0] <= wanted * (1 + TOLERANCE):
        return []
    found = f"{timing.ratio:.3g} of the original's time ({timing.ci95[0]:.3g} to {timing.ci95[1]:.3g})"
    return [f"wanted was {wanted:.3g}, the last measurement says {found}: try again on a machine with less to do"]


def _next(tries: Sequence[Attempt], wanted: float) -> float:
    """What to ask of the model: what was asked, corrected by what came of it; between two tries, by the line through
    them.
    """
    below = max((a for a in tries if a.measured < wanted), key=lambda a: a.measured, default=None)
    above = min((a for a in tries if a.measured >= wanted), key=lambda a: a.measured, default=None)
    if below and above and above.asked > below.asked and above.measured > below.measured:
        part = math.log(wanted / below.measured) / math.log(above.measured / below.measured)
        return float(below.asked * (above.asked / below.asked) ** part)
    last = tries[-1]
    return min(last.asked * wanted / last.measured, 0.999)


def sensitivity_of(
    ready: State, progress: Progress, jobs: int = 1, dims: Sequence[DimInfo] | None = None
) -> Sensitivity:
    """Error curves of a graph that is ready to be cut, of all or some dims, and the bases that it is in."""
    if ready.calibration is None:
        raise InputError("sensitivities need calibration data: give --data")
    tell = partial(progress, "sensitivity of dims")
    found = analyse(ready.calibration, ready.typed.prunable if dims is None else dims, ready.model, jobs, tell)
    return replace(found, bases=(ready.bases or {}) if ready.turn else {})
