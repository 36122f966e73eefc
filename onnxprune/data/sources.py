"""Where data comes from: a file, a folder, images, dicts in memory, random numbers. All become records: samples that
lie together and are opened when they are needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data import files
from onnxprune.data.files import Stored, stored_arrays
from onnxprune.data.images import ImageFolder, Preprocessing, image_files
from onnxprune.errors import InputError
from onnxprune.feeds import Binding, random_feeds
from onnxprune.graph import Graph
from onnxprune.sizing import running_shapes

RANDOM = "random"
Arrays = Mapping[str, Stored]
RawData = str | os.PathLike[str] | ImageFolder | Mapping[str, NDArray[Any]] | Iterable[Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class Record:
    """Samples that lie together. `rows`: how many, where it is known without opening them."""

    origin: str
    open: Callable[[], Arrays]
    rows: int | None = None


def records(graph: Graph, data: RawData, limit: int, seed: int) -> Iterator[Record]:
    """Records of the data. InputError where there are none, or what is given is no data."""
    if isinstance(data, ImageFolder):
        yield from (Record(name, read, 1) for name, read in data.rows(graph.inputs))
    elif data == RANDOM:
        yield from _random(graph, limit, seed)
    elif isinstance(data, (str, os.PathLike)):
        yield from _files(graph, Path(data))
    elif isinstance(data, Mapping):
        yield _given(data, "the dict")
    elif not isinstance(data, Iterable):
        raise InputError(f"cannot read data from a {type(data).__name__}: give a file, a folder or a dict of arrays")
    else:
        yield from (_given(record, f"number {k}") for k, record in enumerate(data))


def opens_again(data: RawData) -> bool:
    """Whether records can be opened in any order and again: all but those of iterables that are no sequences."""
    return isinstance(data, (str, os.PathLike, ImageFolder, Mapping, Sequence)) or not isinstance(data, Iterable)


def with_preprocessing(path: str | os.PathLike[str], preprocessing: Preprocessing | None) -> str | ImageFolder:
    """The data at a path: a folder without array files is one of images, if it is stated how to read them."""
    if preprocessing is None or not os.path.isdir(path) or _array_files(Path(path)):
        return os.fspath(path)
    return ImageFolder(path, preprocessing)


def _given(record: object, origin: str) -> Record:
    if not isinstance(record, Mapping):
        raise InputError(f"data must give dicts of arrays by input name, got a {type(record).__name__}")
    try:
        arrays = {n: np.asarray(a) for n, a in record.items()}
    except ValueError as error:  # lists of lists of several lengths
        raise InputError(f"data {origin} holds what is no array: {error}") from error
    return Record(origin, lambda: arrays)


def _random(graph: Graph, limit: int, seed: int) -> Iterator[Record]:
    """Random inputs of about `limit` samples, as many in a record as the model was found to run with."""
    binding = Binding(running_shapes(graph, seed))
    lengths = {s[0] for s in binding.shapes.values() if s}
    rows = lengths.pop() if len(lengths) == 1 else None
    for k in range(-(-limit // (rows or 1))):
        yield Record(f"random inputs {k}", partial(random_feeds, graph, binding, seed + k), rows)


def _array_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in files.SUFFIXES)


def _files(graph: Graph, path: Path) -> Iterator[Record]:
    if not os.path.exists(path):  # pathlib's raises for names that are too long
        raise InputError(f"no such data: {path}")
    if not path.is_dir():
        arrays = _named(graph, path)
        yield Record(str(path), lambda: arrays)  # what is unpacked stays in it
        return
    found = _array_files(path)
    if not found and image_files(path):
        raise InputError(
            f"the folder {path} holds images: state how they are read in a table [data] of the config (--config), or"
            " give an onnxprune.data.ImageFolder"
        )
    if not found:
        raise InputError(f"the folder {path} holds no .npz or .npy file, and no images")
    yield from (Record(str(file), partial(_named, graph, file)) for file in found)


def _named(graph: Graph, file: Path) -> Arrays:
    """Arrays of a file by name; a single one is the model's only input."""
    arrays = stored_arrays(file)
    if files.ONLY not in arrays:
        return arrays
    if len(graph.inputs) != 1:
        raise InputError(
            f"{file} holds one array, the model has inputs {[i.name for i in graph.inputs]}: use .npz with these names"
        )
    return {graph.inputs[0].name: arrays[files.ONLY]}
