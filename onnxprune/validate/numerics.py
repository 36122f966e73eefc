"""How far the pruned model's outputs are from the original's: the accuracy change, as opposed to the surgery check.

Both models run on the same feeds, and whatever is to be known is summed up feed by feed, so that one pass is enough and
memory does not grow with the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.data import Labels, sample_count
from onnxprune.errors import InputError
from onnxprune.sessions import Feeds, Runnable, session

KEPT_BYTES = 2**28  # the original's outputs are kept up to this size; beyond, they are computed again each time
Outputs = dict[str, Any]  # by name, in the model's order
Run = Callable[[Feeds], Outputs]


class DoesNotRun(InputError):
    """ONNX Runtime cannot load a model, or not run it on the feeds."""


class Watcher(Protocol):
    """Sums something up over feeds."""

    def add(self, want: Outputs, got: Outputs, labels: Labels) -> None:
        """Take in one feed: the original's outputs, the model's, and the labels of the samples."""


def runner(model: Runnable, title: str = "the model", on: str = "the data") -> Run:
    """A model as a function in one session; DoesNotRun naming `title` where ONNX Runtime cannot load or run it."""

    def refused(error: Exception) -> DoesNotRun:
        return DoesNotRun(f"ONNX Runtime does not run {title} on {on}: {error}")

    try:
        made = session(model)
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise refused(error) from error
    names = [o.name for o in made.get_outputs()]

    def run(feeds: Feeds) -> Outputs:
        try:
            return dict(zip(names, made.run(None, feeds), strict=True))
        except Exception as error:
            raise refused(error) from error

    return run


class Original:
    """The original's outputs on labelled feeds, which must be the same at each iteration. `model` is called when it is
    run, so that it is not held in between.
    """

    def __init__(
        self,
        model: Callable[[], Runnable],
        data: Iterable[tuple[Feeds, Labels]],
        title: str = "the model",
        on: str = "the data",
    ) -> None:
        self.data = data
        self._model, self._title, self._on = model, title, on
        self._kept: list[Outputs] | None = None
        self.samples = self.count = 0  # how many samples and feeds there are, once all were seen

    def __iter__(self) -> Iterator[tuple[Feeds, Labels, Outputs]]:
        if self._kept is not None:
            for (feeds, labels), want in zip(self.data, self._kept, strict=True):
                yield feeds, labels, want
            return
        run = self.runner()
        kept: list[Outputs] = []
        size = samples = count = 0
        for feeds, labels in self.data:
            want = run(feeds)
            samples, count = samples + sample_count(feeds), count + 1
            size += sum(a.nbytes for a in want.values() if isinstance(a, np.ndarray))
            if size <= KEPT_BYTES:
                kept.append(want)
            else:
                kept.clear()
            yield feeds, labels, want
        self.samples, self.count = samples, count
        if size <= KEPT_BYTES:
            self._kept = kept

    def runner(self) -> Run:
        """The original as a function."""
        return runner(self._model(), self._title, self._on)

    def watch(self, run: Run | None, watchers: Sequence[Watcher]) -> None:
        """Show each watcher what a model gives, feed by feed; None: the original itself."""
        for feeds, labels, want in self:
            got = want if run is None else run(feeds)
            for watcher in watchers:
                watcher.add(want, got, labels)


class Comparison:
    """A watcher that compares each output with the original's, over all feeds."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}

    def add(self, want: Outputs, got: Outputs, labels: Labels) -> None:
        for (name, a), b in zip(want.items(), got.values(), strict=True):
            self._sums.setdefault(name, _Sums()).add(a, b)

    def table(self) -> dict[str, dict[str, float | None]]:
        """Per output: max_abs, rel_l2 (of the difference), cosine, sqnr_db, which may be infinite, and top1_agreement
        where it looks like class scores (for whole numbers: the share of equal entries). None: it has no such figure.
        Outputs whose shapes differ are left out.
        """
        return {name: sums.row() for name, sums in self._sums.items() if sums.comparable}


@dataclass
class _Sums:
    """Over the entries that are finite in the original: squares of it (`signal`), of the other, of the difference, and
    products; infinite where the other is not finite there. Over all entries (rows for class scores): how many agree.
    """

    comparable: bool = True
    floats: bool = True
    max_abs: float = 0.0
    signal: float = 0.0
    other: float = 0.0
    noise: float = 0.0
    product: float = 0.0
    agreeing: int = 0
    counted: int = 0
    scores: bool = True

    def add(self, want: Any, got: Any) -> None:
        alike = isinstance(want, np.ndarray) and isinstance(got, np.ndarray) and want.shape == got.shape
        self.comparable = self.comparable and alike
        if not self.comparable:
            return
        if want.dtype.kind not in "fV":
            self.floats = False
            self._count(want == got)
            return
        left, right = class_scores(want), class_scores(got)
        self.scores = self.scores and left is not None
        if left is not None and right is not None:
            whole = np.isnan(left).any(1) == np.isnan(right).any(1)
            self._count((left.argmax(1) == right.argmax(1)) & whole)
        a, b = (x.astype(np.float64).reshape(-1) for x in (want, got))
        finite = np.isfinite(a)
        if not finite.all():
            a, b = a[finite], b[finite]
        if not np.isfinite(b).all():
            self.max_abs = self.noise = self.other = np.inf
            return
        off = a - b
        self.max_abs = max(self.max_abs, float(np.abs(off).max(initial=0.0)))
        self.signal += float(a @ a)
        self.other += float(b @ b)
        self.noise += float(off @ off)
        self.product += float(a @ b)

    def _count(self, same: NDArray[np.bool_]) -> None:
        self.agreeing += int(np.count_nonzero(same))
        self.counted += same.size

    def row(self) -> dict[str, float | None]:
        agreement = self.agreeing / self.counted if self.counted else 1.0
        if not self.floats:
            return {"max_abs": None, "rel_l2": None, "cosine": None, "sqnr_db": None, "top1_agreement": agreement}
        signal, noise, other = (float(np.sqrt(v)) for v in (self.signal, self.noise, self.other))
        error = noise / signal if signal else (np.inf if noise else 0.0)
        return {
            "max_abs": self.max_abs,
            "rel_l2": error,
            "cosine": self.product / (signal * other) if signal and 0 < other < np.inf else float(not noise),
            "sqnr_db": decibels(error),
            "top1_agreement": agreement if self.scores else None,
        }


def decibels(error: float) -> float:
    """Signal to noise in dB from a relative L2 error; infinite if there is none."""
    return -20 * math.log10(error) if error else math.inf


def class_scores(output: Any) -> NDArray[Any] | None:
    """An output as scores (N, classes) if it looks like them: floats (N, classes) or (N, classes, 1, 1)."""
    if not isinstance(output, np.ndarray) or output.dtype.kind not in "fV" or output.ndim not in (2, 4):
        return None
    fits = output.shape[1] > 1 and all(n == 1 for n in output.shape[2:])
    return output.reshape(output.shape[:2]) if fits else None
