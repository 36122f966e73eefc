"""Samples for calibration and checks: whatever the user gives, cut into feeds that the model takes, as often as asked.

Arrays are batch-first. They are checked against the model's inputs (names, types, ranks, sizes) and cut into feeds of
the model's fixed batch size, or of at most `BATCH` samples where the batch is free. Of more samples than wanted, a part
spread evenly over all is taken, since files are often sorted by class. Nothing is held twice: arrays in memory and
mapped files are cut into views, the files of a folder are read again each time. Arrays that are no input, but as long
as the inputs, are the labels of the samples.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxprune.data.files import Packed, Stored
from onnxprune.data.sources import RANDOM, Arrays, RawData, Record, opens_again, records
from onnxprune.errors import InputError
from onnxprune.graph import Graph
from onnxprune.sessions import Feeds, program, session

SAMPLES = 512  # 64 to 1,024 are useful for calibration
BATCH = 32
BATCH_BYTES = 2**26  # of one feed, where the batch is free
Labels = dict[str, NDArray[Any]]  # arrays beside the inputs, by name, one entry per sample
Rows = NDArray[np.int64]
LABEL_NAMES = ("labels", "label", "y", "targets")  # what is taken for class numbers where nobody says more


class Samples:
    """At most `limit` samples of some data (None: all), as feeds of one model. It can be iterated over many times, also
    at the same time, and gives the same feeds each time.

    An iterable that ends when it is used up is read into memory, up to `limit`. InputError, here or while iterating,
    where the data cannot be read or does not fit the model. `batch` stands for a fixed batch size of the model.
    """

    def __init__(
        self, graph: Graph, data: DataLike, limit: int | None = SAMPLES, seed: int = 0, batch: int | None = None
    ) -> None:
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise InputError(f"samples must be a whole number of at least 1, got {limit!r}")
        if isinstance(data, Samples):
            limit = min((n for n in (limit, data.limit) if n is not None), default=None)
            data = data.data
        self.data: RawData = data
        self.limit: int | None = limit
        self.is_random = isinstance(data, str) and data == RANDOM
        self._inputs = graph.inputs
        self._fixed = batch or _fixed_batch(graph.inputs)
        self._limit = _multiple(limit, self._fixed)
        self._stream: Callable[[], Iterator[Record]] | None = None
        self._chosen: list[tuple[Record, Rows | None]] = []
        self.unused = set[str]()  # arrays that are called labels, but are not as long as the inputs
        self._part: tuple[float, bool] | None = None  # a share of the samples, and whether it is that or the others
        self._marks: list[int] = []  # of what the stream gave, and whether that was all
        self._ended = False
        found = partial(records, graph, data, self._limit or SAMPLES, seed)
        if opens_again(data):
            self._chosen = self._choose(list(found()))
        elif isinstance(data, Iterator):
            held = list(self._until_enough(found()))
            self.data = [r.open() for r in held]  # type: ignore[misc]  # what is given is never packed
            self._chosen = self._choose(held)
        else:
            self._stream = found

    def __iter__(self) -> Iterator[Feeds]:
        return (feeds for feeds, _ in self._batches(labels=False))

    @cached_property
    def count(self) -> int:
        """How many samples there are: the lengths of the first axes of all feeds."""
        rows = [n for _, n in self._chosen]
        if rows and not self._fixed and self._part is None and all(n is not None for n in rows):
            return sum(n.size for n in rows if n is not None)
        return sum(sample_count(feeds) for feeds in self)

    def parted(self, share: float) -> tuple[Samples, Samples]:
        """That share of the samples, spread evenly over all, and the others. Feeds that cannot be cut, since they are
        of a fixed size or their arrays have no axis in common, go as a whole.
        """
        made = copy(self), copy(self)
        for part, chosen in zip(made, (True, False), strict=True):
            part.__dict__.pop("count", None)
            part._part = share, chosen
        return made

    @property
    def labelled(self) -> Labelled:
        """The same feeds, each with the labels of its samples."""
        return Labelled(self)

    def _choose(self, found: list[Record]) -> list[tuple[Record, Rows | None]]:
        """Records, each with the rows of it that are taken; None for one that is taken as it is."""
        rows = [self._rows(r.open(), r.origin) if r.rows is None else r.rows for r in found]
        total = sum(1 if n is None else n for n in rows)
        if not total:
            raise InputError(f"the data holds no samples: {_origin(self.data)}")
        if self._fixed and total < self._fixed:
            raise InputError(f"the data has {total} samples, the model takes batches of {self._fixed}")
        count = min(self._limit or total, _multiple(total, self._fixed) or total)
        wanted = np.arange(count, dtype=np.int64) * total // count
        ends = np.cumsum([1 if n is None else n for n in rows])
        parts = np.split(wanted, np.searchsorted(wanted, ends[:-1]))
        return [
            (record, None if n is None else part - (end - n))
            for record, n, part, end in zip(found, rows, parts, ends, strict=True)
            if part.size
        ]

    def _until_enough(self, found: Iterable[Record]) -> Iterator[Record]:
        count = 0
        for record in found:
            yield record
            count += self._rows(record.open(), record.origin) or 1
            if self._limit is not None and count >= self._limit:
                return

    def _pieces(self) -> Iterator[tuple[Record, Arrays, Rows | None]]:
        """What is taken, record by record."""
        if self._stream is None:
            yield from ((record, record.open(), rows) for record, rows in self._chosen)
            return
        left = math.inf if self._limit is None else self._limit
        for record in self._stream():
            arrays = record.open()
            rows = self._rows(arrays, record.origin)
            taken = 1 if rows is None else int(min(rows, left))
            yield record, arrays, None if rows is None else np.arange(taken)
            left -= taken
            if left <= 0:
                return

    def _batches(self, labels: bool) -> Iterator[tuple[Feeds, Labels]]:
        names = {i.name for i in self._inputs}
        count = first = 0
        for arrays in self._cut(labels):
            feeds = {i.name: arrays[i.name] for i in self._inputs}
            if self._stream is not None:
                self._mark(count, feeds)
            count += 1
            mine, length = self._mine(feeds, first)
            first += length
            others = {n: a for n, a in arrays.items() if n not in names}
            if mine.all():
                yield feeds, others
            elif mine.any():
                yield _masked(feeds, mine), _masked(others, mine)
        if not count:
            raise InputError(f"the data holds no samples: {_origin(self.data)}")
        if count < len(self._marks):
            raise _unsteady()
        self._ended = True

    def _mine(self, feeds: Feeds, first: int) -> tuple[NDArray[np.bool_], int]:
        """Which samples of a feed belong to this part, where `first` came before, and how many there are."""
        lengths = {a.shape[0] for a in feeds.values() if a.ndim}
        length = lengths.pop() if len(lengths) == 1 and not self._fixed else 1
        if self._part is None:
            return np.ones(length, bool), length
        share, chosen = self._part
        marks = np.floor(np.arange(first, first + length + 1) * share)
        return (np.diff(marks) > 0) == chosen, length

    def _cut(self, labels: bool) -> Iterator[dict[str, NDArray[Any]]]:
        """Batches of neighbours of equal shapes; a rest that does not fill a fixed batch is left out."""
        held: list[dict[str, NDArray[Any]]] = []
        room, kind = 0, None
        for record, arrays, rows in self._pieces():
            found = self._read(record, arrays, rows, labels)
            if held and (rows is None or kind != _kind(found)):
                yield from () if self._fixed else (_merged(held),)
                held = []
            if rows is None:
                yield found
                continue
            at, kind = 0, _kind(found)
            while at < rows.size:
                room = room if held else self._step(found)
                part = rows[at : at + room]
                held.append({n: _taken(a, part) for n, a in found.items()})
                at, room = at + part.size, room - part.size
                if not room:
                    yield _merged(held)
                    held = []
            if held:  # waits for others: without what it is a view of
                held[-1] = {n: a.copy() for n, a in held[-1].items()}
            del arrays, found
        if held and not self._fixed:
            yield _merged(held)

    def _step(self, arrays: Mapping[str, NDArray[Any]]) -> int:
        each = sum(math.prod(arrays[i.name].shape[1:]) * arrays[i.name].itemsize for i in self._inputs)
        return self._fixed or max(1, min(BATCH, BATCH_BYTES // max(each, 1)))

    def _read(self, record: Record, arrays: Arrays, rows: Rows | None, labels: bool) -> dict[str, NDArray[Any]]:
        """The model's inputs, and with `labels` what is as long as they are. What had to be unpacked takes the place of
        what was packed."""
        found = _checked(self._inputs, arrays, record.origin)
        if labels:
            length = None if rows is None else next(a.shape[0] for a in found.values() if a.ndim)
            beside = {n: a for n, a in arrays.items() if n not in found}
            found |= {n: a for n, a in beside.items() if _is_label(a, length)}
            self.unused |= (set(beside) - set(found)) & set(LABEL_NAMES)
        for name, array in found.items():
            if isinstance(array, Packed):
                arrays[name] = array.read()  # type: ignore[index]  # our own dict: a user's holds nothing packed
        return {n: np.asarray(arrays[n]) for n in found}

    def _rows(self, arrays: Arrays, origin: str) -> int | None:
        """How many samples a record holds; None if it is taken as it is, since its inputs have no axis in common."""
        found = _checked(self._inputs, arrays, origin)
        first = {n: a.shape[0] for n, a in found.items() if a.ndim}
        fixed = {i.name: n for i in self._inputs if (n := _first(i)) > 0}
        if not first or len(set(fixed.values())) > 1:
            return None
        if len(set(first.values())) == 1:
            return next(iter(first.values()))
        free = {n for name, n in first.items() if name not in fixed}
        if fixed and len(free) == 1 and all(first[name] == n for name, n in fixed.items()):
            return None
        raise InputError(f"the data's arrays differ in length: {first} ({origin})")

    def _mark(self, at: int, feeds: Feeds) -> None:
        """Remember what an iterable gave, and refuse another sequence of samples."""
        mark = 0
        for array in feeds.values():
            data = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
            mark = zlib.crc32(data, mark)
        if at == len(self._marks) and not self._ended:
            self._marks.append(mark)
        elif at == len(self._marks) or self._marks[at] != mark:
            raise _unsteady()


class Labelled:
    """Pairs of feeds and labels; can be iterated over many times."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __iter__(self) -> Iterator[tuple[Feeds, Labels]]:
        return self._samples._batches(labels=True)


DataLike = RawData | Samples


def load_feeds(graph: Graph, data: DataLike, limit: int) -> list[Feeds]:
    """Feeds made of at most `limit` samples, but always one feed. InputError where the data does not fit the model."""
    return list(Samples(graph, data, limit))


def fitting(graph: Graph, data: DataLike, limit: int | None = SAMPLES, seed: int = 0) -> Samples:
    """Samples in batches that the model runs with: one by one where it takes no more, whatever its inputs say."""
    given = Samples(graph, data, limit, seed)
    feeds = next(iter(given))
    if sample_count(feeds) < 2 or _fixed_batch(graph.inputs) or graph.is_large or _runs(graph, feeds):
        return given
    single = Samples(graph, given, limit, seed, batch=1)
    return single if _runs(graph, next(iter(single))) else given


def _runs(graph: Graph, feeds: Feeds) -> bool:
    try:
        session(program(graph)).run(None, feeds)
    except Exception:  # whatever the reason: what wants to run it will tell
        return False
    return True


def sample_count(feeds: Feeds) -> int:
    """How many samples a feed holds: the length of its first array that has axes."""
    return next((a.shape[0] for a in feeds.values() if a.ndim), 1)


def _unsteady() -> InputError:
    return InputError("the data gives other samples when it is read again (is it shuffled?): give it in a fixed order")


def _origin(data: RawData) -> str:
    return str(data) if isinstance(data, str) else type(data).__name__


def _first(value: onnx.ValueInfoProto) -> int:
    """The length of an input's first axis, 0 if it is free or there is none."""
    dims = value.type.tensor_type.shape.dim
    return max(dims[0].dim_value, 0) if dims else 0


def _fixed_batch(inputs: Sequence[onnx.ValueInfoProto]) -> int:
    """The batch size that the model was exported with; 0 if it is free."""
    fixed = {_first(i) for i in inputs} - {0}
    return fixed.pop() if len(fixed) == 1 else 0


def _multiple(limit: int | None, batch: int) -> int | None:
    """The limit in whole batches, at least one."""
    return max(limit - limit % batch, batch) if limit and batch else limit


def _checked(inputs: Sequence[onnx.ValueInfoProto], arrays: Arrays, origin: str) -> dict[str, Stored]:
    """The arrays of the model's inputs; InputError where one is missing, or of another type or shape."""
    found: dict[str, Stored] = {}
    for value in inputs:
        if value.name not in arrays:
            wanted = [i.name for i in inputs]
            raise InputError(
                f"the data has no array {value.name!r}; it has {sorted(arrays)}, the model wants {wanted} ({origin})"
            )
        array = arrays[value.name]
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        dims = value.type.tensor_type.shape.dim
        if array.dtype != kind:
            raise InputError(f"data for {value.name!r} has type {array.dtype}, the model wants {kind} ({origin})")
        want = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]
        fits = array.ndim == len(dims) and all(
            not isinstance(w, int) or w == n for w, n in zip(want[1:], array.shape[1:], strict=True)
        )
        if not fits:
            raise InputError(
                f"data for {value.name!r} has shape {list(array.shape)}, the model wants {want} ({origin})"
            )
        found[value.name] = array
    return found


def _is_label(array: Stored, length: int | None) -> bool:
    return not array.dtype.hasobject and (length is None or (array.ndim > 0 and array.shape[0] == length))


def _kind(arrays: Mapping[str, NDArray[Any]]) -> dict[str, object]:
    """What must be equal for two pieces to go into one batch."""
    return {n: a.shape[1:] if a.ndim else a.tobytes() for n, a in arrays.items()}


def _taken(array: NDArray[Any], rows: Rows) -> NDArray[Any]:
    """Rows of an array: a view where they are neighbours."""
    if not array.ndim:
        return array
    first, last = int(rows[0]), int(rows[-1])
    return array[first : last + 1] if last - first + 1 == rows.size else array[rows]


def _masked(arrays: Mapping[str, NDArray[Any]], mask: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    return {n: a[mask] if a.ndim else a for n, a in arrays.items()}


def _merged(parts: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    if len(parts) == 1:
        return parts[0]
    return {n: np.concatenate([p[n] for p in parts]) if a.ndim else a for n, a in parts[0].items()}
