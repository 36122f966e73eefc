"""Samples: every way to give data yields the same feeds, again and again, and little more than the data is held."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.data import BATCH, Samples, load_feeds, samples
from onnxprune.data.files import Packed, stored_arrays
from onnxprune.errors import InputError
from onnxprune.graph import Graph
from onnxprune.reading import load
from tests.common import build

FREE = load(build("(float[N,4] x) => (float[N,3] y) <float[4,3] A> { y = MatMul(x, A) }"))
FIXED = load(build("(float[6,4] x) => (float[6,3] y) <float[4,3] A> { y = MatMul(x, A) }"))
LENGTHS = load(build("(float[N,T] x) => (float[N,T] y) { y = Relu(x) }"))
TWO = load(build("(float[N,4] x, float[N] w) => (float[N,4] y) { c = Identity(w) y = Relu(x) }"))
STATE = load(build("(float[N,4] x, float[2,4] s) => (float[N,4] y, float[2,4] t) { y = Relu(x) t = Relu(s) }"))
STATES = load(build("(float[1,4] x, float[2,4] s) => (float[1,4] y, float[2,4] t) { y = Relu(x) t = Relu(s) }"))
SCALAR = load(build("(float[N,4] x, float a) => (float[N,4] y) { y = Mul(x, a) }"))


def rows(count: int, width: int = 4) -> np.ndarray[Any, Any]:
    """Row k is full of k, so that what arrives tells where it came from."""
    return np.repeat(np.arange(count, dtype=np.float32)[:, None], width, 1)


def seen(data: Samples) -> list[int]:
    """Which rows arrive, in order."""
    return [int(v) for feeds in data for v in feeds["x"][:, 0]]


class Again:
    """An iterable that starts anew each time."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return self.make()


def write(folder: Path, kind: str, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
    """The same rows, given in one of the ways there are."""
    (folder / "several").mkdir()
    match kind:
        case "npy":
            np.save(folder / "x.npy", x)
        case "npy, Fortran order":
            np.save(folder / "x.npy", np.asfortranarray(x))
        case "npz":
            np.savez(folder / "x.npz", x=x, y=y)
        case "packed npz":
            np.savez_compressed(folder / "x.npz", x=x, y=y)
        case "folder":
            for k in range(0, len(x), 7):
                save = np.savez if k % 2 else np.savez_compressed
                save(folder / "several" / f"{k:03}.npz", x=x[k : k + 7], y=y[k : k + 7])
    parts = [{"x": x[k : k + 7], "y": y[k : k + 7]} for k in range(0, len(x), 7)]
    return {
        "npy": folder / "x.npy", "npy, Fortran order": str(folder / "x.npy"), "npz": folder / "x.npz",
        "packed npz": folder / "x.npz", "folder": folder / "several", "dict": {"x": x, "y": y}, "list": parts,
        "generator": (p for p in parts), "iterable": Again(lambda: iter(parts)),
    }[kind]  # fmt: skip


KINDS = ["npy", "npy, Fortran order", "npz", "packed npz", "folder", "dict", "list", "generator", "iterable"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_gives_the_same_feeds_each_time(kind: str, tmp_path: Path) -> None:
    x, y = rows(50), np.arange(50)
    data = Samples(FREE, write(tmp_path, kind, x, y), 50)
    for _ in range(3):
        assert [f["x"].shape[0] for f in data] == [BATCH, 18]
        assert seen(data) == list(range(50))
        for feeds, labels in data.labelled:
            assert feeds["x"].dtype == np.float32 and type(feeds["x"]) is np.ndarray
            if "npy" in kind:  # it holds one array
                assert labels == {}
            else:
                np.testing.assert_array_equal(labels["y"], feeds["x"][:, 0].astype(int))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_spread_over_all_that_there_is(kind: str, tmp_path: Path) -> None:
    """But for iterables, whose length is not known: the first ones, and a generator is read only as far as needed."""
    data = Samples(FREE, write(tmp_path, kind, rows(50), np.arange(50)), 10)
    want = {"iterable": list(range(10)), "generator": [k * 14 // 10 for k in range(10)]}
    assert seen(data) == seen(data) == want.get(kind, list(range(0, 50, 5)))


def test_a_generator_is_read_up_to_the_limit() -> None:
    endless = ({"x": rows(3) + 3 * k} for k in iter(int, 1))
    assert seen(Samples(FREE, endless, 7)) == [k * 9 // 7 % 3 for k in range(7)]
    assert next(endless)["x"].shape == (3, 4)


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=8), limit=st.integers(1, 40), fixed=st.booleans())
def test_any_cut_is_evenly_spread_and_in_order(lengths: list[int], limit: int, fixed: bool) -> None:
    total = sum(lengths)
    ends = np.cumsum(lengths)
    parts = [{"x": rows(int(end))[end - n : end]} for end, n in zip(ends, lengths, strict=True)]
    batch = 6 if fixed else 1
    if total < batch:
        with pytest.raises(InputError, match="samples"):
            Samples(FIXED if fixed else FREE, parts, limit)
        return
    data = Samples(FIXED if fixed else FREE, parts, limit)
    found = seen(data)
    count = min(max(limit - limit % batch, batch), total - total % batch)
    assert found == [k * total // count for k in range(count)] == seen(data)
    assert all(f["x"].shape[0] == 6 for f in data) or not fixed


def test_batches_hold_one_shape_and_no_more_than_some_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [{"x": rows(n, width)} for n, width in ((40, 3), (2, 5), (3, 5), (1, 3))]
    assert [f["x"].shape for f in Samples(LENGTHS, parts)] == [(32, 3), (8, 3), (5, 5), (1, 3)]
    monkeypatch.setattr(samples, "BATCH_BYTES", 10 * 3 * 4)
    assert [f["x"].shape[0] for f in Samples(LENGTHS, parts[:1])] == [10, 10, 10, 10]


def test_models_whose_inputs_share_no_batch_get_records_as_they_are() -> None:
    x, s = rows(1), rows(2)
    records = [{"x": x + k, "s": s, "extra": np.arange(3)} for k in range(4)]
    assert seen(Samples(STATES, records)) == [0, 1, 2, 3]
    assert seen(Samples(STATES, records, 2)) == [0, 2]
    assert [labels["extra"].tolist() for _, labels in Samples(STATES, records, 2).labelled] == [[0, 1, 2]] * 2
    assert [f["x"].shape[0] for f in Samples(STATE, [{"x": rows(5), "s": s}, {"x": rows(3), "s": s}])] == [5, 3]
    fed = list(Samples(SCALAR, [{"x": rows(2), "a": np.float32(k)} for k in (1, 1, 2)]))
    assert [(f["x"].shape[0], float(f["a"])) for f in fed] == [(4, 1.0), (2, 2.0)]


def test_arrays_of_other_lengths_are_no_labels() -> None:
    pairs = list(
        Samples(FREE, {"x": rows(3), "names": np.arange(10), "y": [7, 8, 9], "t": np.array(["a", "b", "c"])}).labelled
    )
    assert {n: a.tolist() for n, a in pairs[0][1].items()} == {"y": [7, 8, 9], "t": ["a", "b", "c"]}


def test_random_data_has_labels_for_nobody_and_is_the_same_each_time() -> None:
    data = Samples(FREE, "random", 70)
    feeds = list(data)
    assert [f["x"].shape[0] for f in feeds] == [32, 32, 6] and data.is_random
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(feeds, data, strict=True))
    assert len({f["x"].tobytes() for f in feeds}) == 3
    other = next(iter(Samples(FREE, "random", 70, seed=5)))
    assert not np.array_equal(feeds[0]["x"], other["x"])
    assert not Samples(FREE, {"x": rows(2)}).is_random


def test_samples_are_data_too() -> None:
    """Bound to another model, never more than they were; a generator that they used up is no loss."""
    first = Samples(FREE, ({"x": rows(4) + 4 * k} for k in range(5)), 10)
    assert seen(Samples(FREE, first)) == seen(first) == seen(Samples(FREE, first, None))
    assert len(seen(Samples(FREE, first, 4))) == 4
    assert len(seen(Samples(FIXED, Samples(FREE, {"x": rows(20)}, 13), 512))) == 12


# what cannot be used
def shuffled() -> Again:
    rng = np.random.default_rng(0)
    return Again(lambda: iter([{"x": rows(8)[rng.permutation(8)]}]))


def shrinking() -> Again:
    left = [3, 2, 1]
    return Again(lambda: ({"x": rows(32)} for _ in range(left.pop(0))))


def growing() -> Again:
    counts = [1, 2]
    return Again(lambda: ({"x": rows(32)} for _ in range(counts.pop(0))))


@pytest.mark.parametrize("make", [shuffled, shrinking, growing])
def test_an_iterable_that_changes_is_refused(make: Callable[[], Again]) -> None:
    data = Samples(FREE, make())
    list(data)
    with pytest.raises(InputError, match="shuffled"):
        list(data)


# model, data, a word of the message
BAD: list[tuple[Graph, Any, str]] = [
    (FREE, {"x": rows(0)}, "no samples"),
    (FREE, [], "no samples"),
    (FREE, iter([]), "no samples"),
    (FREE, Again(lambda: iter([])), "no samples"),
    (FREE, 3, "int"),
    (FREE, [rows(2)], "ndarray"),
    (FREE, Again(lambda: iter([rows(2)])), "ndarray"),
    (FREE, [{"x": rows(2)}, {"z": rows(2)}], "number 1"),
    (FREE, {"x": rows(2).astype(np.float64)}, "float64"),
    (FREE, {"x": rows(2, 5)}, r"\[2, 5\]"),
    (FREE, {"x": [[1.0], [1.0, 2.0]]}, "no array"),
    (FIXED, {"x": rows(5)}, "batches of 6"),
    (TWO, {"x": rows(2), "w": rows(3)[:, 0]}, "differ in length"),
    (STATE, {"x": rows(2), "s": rows(3)}, "differ in length"),
]


@pytest.mark.parametrize(("graph", "data", "word"), BAD, ids=[w for _, _, w in BAD])
def test_bad_data(graph: Graph, data: Any, word: str) -> None:
    with pytest.raises(InputError, match=word):
        load_feeds(graph, data, 4)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "512"])
def test_bad_limit(limit: Any) -> None:
    with pytest.raises(InputError, match="at least 1"):
        Samples(FREE, {"x": rows(2)}, limit)


def test_a_file_names_itself_where_it_is_wrong(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", x=rows(2))
    np.savez(tmp_path / "1.npz", x=rows(2, 5))
    with pytest.raises(InputError, match=r"1\.npz"):
        Samples(FREE, tmp_path)
    np.savez_compressed(tmp_path / "1.npz", x=np.random.default_rng(0).random((10000, 4), np.float32))
    broken = bytearray((tmp_path / "1.npz").read_bytes())
    broken[70000:70020] = bytes(20)
    (tmp_path / "1.npz").write_bytes(broken)
    data = Samples(FREE, tmp_path)  # its header is fine
    with pytest.raises(InputError, match=r"1\.npz"):
        list(data)


# files
@pytest.mark.parametrize("shape", [(), (0, 4), (5, 4), (2, 0)])
@pytest.mark.parametrize("dtype", ["f4", ">f4", "i8", "U3", "?"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_files_are_what_numpy_reads(
    shape: tuple[int, ...], dtype: str, save: Callable[..., None], tmp_path: Path
) -> None:
    a = np.arange(20).astype(dtype)[: max(int(np.prod(shape)), 0)].reshape(shape)
    save(tmp_path / "a.npz", a=a, long_name_of_another="b", **{"x.npy": a})
    found = stored_arrays(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as want:
        assert set(found) == {"a", "long_name_of_another", "x.npy"}
        for name, stored in found.items():
            array = stored.read() if isinstance(stored, Packed) else stored
            assert (stored.shape, stored.dtype) == (array.shape, array.dtype) == (want[name].shape, want[name].dtype)
            np.testing.assert_array_equal(array, want[name])


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that was allocated at a time; mapped files do not count."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("kind", "times"), [("npz", 0.2), ("packed npz", 1.2), ("folder", 0.7), ("dict", 0.2)])
def test_data_is_never_held_twice(kind: str, times: float, tmp_path: Path) -> None:
    """Of 8 MB in files of 2 MB: nothing of what is mapped or in memory, a packed file once, of a folder the file
    that is read and the one that the last feed came from.
    """
    x = np.ones((2000, 1000), np.float32)
    parts = {f"{k}.npz": x[k : k + 500] for k in range(0, 2000, 500)}
    match kind:
        case "npz":
            np.savez(tmp_path / "x.npz", x=x)
        case "packed npz":
            np.savez_compressed(tmp_path / "x.npz", x=x)
        case "folder":
            for name, part in parts.items():
                np.savez_compressed(tmp_path / name, x=part)
    given: Any = {"x": x} if kind == "dict" else tmp_path
    graph = load(build("(float[N,1000] x) => (float[N,1000] y) { y = Relu(x) }"))

    def work() -> None:
        for limit in (None, 700, 4):
            data = Samples(graph, given, limit)
            for _ in range(2):
                assert sum(f["x"].shape[0] for f in data) == (limit or 2000)

    assert peak_bytes(work) < times * x.nbytes


@pytest.mark.parametrize("share", [0.25, 0.4, 0.5])
@pytest.mark.parametrize("count", [1, 5, 40, 100])
def test_parts_hold_every_sample_once_with_its_label(share: float, count: int) -> None:
    data = Samples(FREE, {"x": rows(count), "y": np.arange(count)}, None)
    assert data.count == count
    mine, others = data.parted(share)
    assert sorted(seen(mine) + seen(others)) == list(range(count))
    assert mine.count == len(seen(mine)) == int(count * share)
    assert others.count == len(seen(others))
    assert all((feeds["x"][:, 0] == labels["y"]).all() for feeds, labels in mine.labelled)


def test_parts_of_what_cannot_be_cut_are_whole_feeds() -> None:
    mine, others = Samples(FIXED, {"x": rows(24)}).parted(0.25)
    assert seen(mine) == list(range(18, 24))
    assert others.count == 18
    feeds = [{"x": rows(1), "s": np.full((2, 4), k, np.float32)} for k in range(4)]
    mine, others = Samples(STATE, Again(lambda: iter(feeds))).parted(0.5)
    assert [int(f["s"][0, 0]) for f in mine] == [1, 3]
    assert [int(f["s"][0, 0]) for f in others] == [0, 2]
