"""The latency of a result against the original's: measured once for the report, until it is sure where widths are
chosen by it, and twice before a result is refused for being slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from onnxprune.errors import SlowerError
from onnxprune.graph import Graph
from onnxprune.progress import Progress, silent
from onnxprune.report.report import Report
from onnxprune.sessions import CPU, Feeds, Settings, program
from onnxprune.validate import latency
from onnxprune.validate.profile import profile

SLOWER, SLOWER_MS = 0.02, 0.05  # than the original, as a share and a run: what is refused
SETTLE_SECONDS, NARROW = (2.0, 8.0), 0.04  # for a ratio that is searched for; the width of its interval
FINAL = 100  # turn: what is reported is no measurement that a result was chosen by
AGAIN = 2.0  # times as long, before a result is refused


@dataclass(frozen=True)
class Stopwatch:
    """Times models against the original, on one feed."""

    original: Graph
    feeds: Feeds
    settings: Settings = latency.ONE_THREAD
    seconds: float = 1.0
    seed: int = 0
    progress: Progress = silent

    def compare(self, model: Graph, turn: int = 0, seconds: float | None = None) -> latency.Comparison:
        """Both models, anew at each turn."""
        pair = [program(self.original), program(model)]
        return latency.compare(
            pair, self.feeds, self.settings, seconds or self.seconds, self.seed + turn, self.progress
        )

    def settled(self, model: Graph, turn: int = 0) -> latency.Comparison:
        """Both models, again and longer until the interval of the ratio is narrow."""
        seconds = max(self.seconds, SETTLE_SECONDS[0])
        while True:
            found = self.compare(model, turn, seconds)
            timing = found.timings[-1]
            narrow = timing.ci95[1] - timing.ci95[0] <= NARROW * timing.ratio
            if narrow or 2 * seconds > SETTLE_SECONDS[1]:
                return found
            seconds *= 2

    @cached_property
    def original_ms(self) -> float:
        """The original alone."""
        found = latency.compare([program(self.original)], self.feeds, self.settings, self.seconds, self.seed)
        return found.timings[0].median_ms


def time_both(report: Report, watch: Stopwatch, result: Graph, settled: bool, profiled: bool) -> None:
    """The latency of both models, and where it goes if that is asked for and can be told."""
    report.latency_ms = watch.settled(result, FINAL) if settled else watch.compare(result)
    if profiled and watch.settings.provider == CPU:
        pair = (watch.original, result)
        report.profile = profile(pair, watch.feeds, watch.settings, watch.seconds, watch.seed, watch.progress)


def slower(watch: Stopwatch, result: Graph, first: latency.Comparison | None = None) -> tuple[latency.Comparison, str]:
    """Whether a result is slower than the original: by more than SLOWER of its time and SLOWER_MS a run, at the lower
    end of the 95 % interval, in two measurements (the `first` may be there) of which the second takes longer. The last
    measurement, and what to tell people; "" if it is not.
    """
    for turn in (0, 1):
        found = watch.compare(result, 1, AGAIN * watch.seconds) if turn else first or watch.compare(result)
        timing = found.timings[-1]
        if timing.ci95[0] <= 1 + SLOWER or (timing.ci95[0] - 1) * found.timings[0].median_ms <= SLOWER_MS:
            return found, ""
    ratio = f"{timing.ratio:.3g} of its time ({timing.ci95[0]:.3g} to {timing.ci95[1]:.3g})"
    return found, f"the result is slower than the original: it takes {ratio}"


def refuse_slower(report: Report, watch: Stopwatch, result: Graph, refuse: bool) -> None:
    """SlowerError, or a note where it is not to be refused, if the result is slower than the original."""
    report.latency_ms, text = slower(watch, result, report.latency_ms)
    if not text:
        return
    text += "; --round-to auto keeps to widths that are fast here"
    if refuse:
        raise SlowerError(f"{text}, --allow-slower lets it pass; nothing was saved", report)
    report.notes.append(text)
