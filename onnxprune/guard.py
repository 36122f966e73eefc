"""Is the mended model better, as a whole? Its outputs are compared with the original's on samples that recovery does
not see, and so are those of the model as it was found. If that was better, so may be something in between: the biases
alone, or half of the way; the best is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.graph import FLOATS, Graph
from onnxprune.losses import OutputError
from onnxprune.sessions import Feeds, program, session
from onnxprune.storage import tensor
from onnxprune.tokens import meant, token_mask
from onnxprune.trace import Trace

EVERY = 12  # of so many samples one is held back
MARGIN = 0.05  # of the error that a change must save: less may be chance


@dataclass(frozen=True)
class Share:
    """Those of the samples whose number modulo `every` is `every - 1`, or the others. Feeds are taken as a whole unless
    they can be cut (`cuttable`) along their first axis.
    """

    feeds: Iterable[Feeds]
    every: int
    cuttable: bool
    chosen: bool

    def __iter__(self) -> Iterator[Feeds]:
        first = 0
        for feed in self.feeds:
            count = next((a.shape[0] for a in feed.values() if a.ndim), 1) if self.cuttable else 1
            last = np.arange(first, first + count) % self.every == self.every - 1
            mask = last if self.chosen else ~last
            first += count
            if mask.all():
                yield feed
            elif mask.any():
                yield {n: a[mask] for n, a in feed.items()}


def cuttable(graph: Graph, facts: Trace) -> bool:
    """Whether feeds can be cut along their first axis, as that of the batch is free everywhere."""
    return all(facts.shapes.get(v.name) and facts.dynamic(v.name, 0) for v in (*graph.inputs, *graph.outputs))


class Guard:
    """Holds samples of `feeds` back, about `samples` in all, to judge by. `alone`: there is one only, which cannot be;
    where there is one feed only that cannot be cut, models are judged by what they were fitted to.
    """

    def __init__(self, original: Graph, facts: Trace, feeds: Iterable[Feeds], samples: int) -> None:
        self._original = original
        cut = cuttable(original, facts)
        count = samples if cut else sum(1 for _ in feeds)
        every = max(2, min(EVERY, count // 2))
        self.alone = samples < 2
        self.held_back = count >= 2
        self.rest: Iterable[Feeds] = Share(feeds, every, cut, False) if self.held_back else feeds
        self._judged: Iterable[Feeds] = Share(feeds, every, cut, True) if self.held_back else feeds
        self._mask = token_mask(original, feeds)
        self._parts = every, cut

    def of_rest(self, beside: Sequence[Feeds]) -> list[Feeds]:
        """Of arrays beside the feeds, with a row for each sample, what belongs to `rest`."""
        return list(Share(beside, *self._parts, False)) if self.held_back else list(beside)

    def choose(self, before: Graph, after: Graph, others: Mapping[str, Callable[[], Graph]]) -> tuple[Graph, str]:
        """The better of two graphs, or where the second is worse the best of all; and what to tell people then."""
        first, second = self.errors([before, after])
        if second < (1 - MARGIN) * first:
            return after, ""
        ways = {"half of the change": lambda: halfway(before, after), **others}
        made = {name: make() for name, make in ways.items()}
        errors = self.errors(list(made.values()))
        best = min(zip(errors, made, strict=True), key=lambda pair: pair[0])
        on = "samples that were held back" if self.held_back else "the samples that it was fitted to"
        told = f"made the outputs' error {second:.3g}, it was {first:.3g} ({on}): "
        if best[0] < (1 - MARGIN) * first:
            return made[best[1]], f"{told}{best[1]} was kept, {best[0]:.3g}"
        return before, f"{told}the weights were left as they are"

    def errors(self, graphs: list[Graph]) -> list[float]:
        """For each graph, the error of its outputs (`OutputError`); infinite where they are not finite and the
        original's are.
        """
        jobs = [session(program(g)) for g in (self._original, *graphs)]
        found = [OutputError() for _ in graphs]
        for feed in self._judged:
            mask = feed[self._mask].astype(bool) if self._mask else None
            want, *got = ([meant(a, mask) for a in job.run(None, feed) if isinstance(a, np.ndarray)] for job in jobs)
            for error, outputs in zip(found, got, strict=True):
                error.add(want, outputs)
        return [error.value() for error in found]


def halfway(before: Graph, after: Graph) -> Graph:
    """The nodes of `after` with weights in the middle between those of both, where both have them."""
    changed = {
        n: tensor(n, ((before.array(n) + after.array(n)) / 2).astype(after.array(n).dtype), t)
        for n, t in after.tensors.items()
        if t.data_type in FLOATS and n in before.tensors and before.tensors[n] is not t
    }
    return after.replace(tensors={**after.tensors, **changed})
