"""Inputs that a user gives: an .npz or .npy file, a folder of them, a dict of arrays, or any iterable of such dicts.

Arrays are batch-first. They are checked against the model's inputs (names, types, ranks, sizes) and cut into feeds that
the model takes: its fixed batch size, or at most `BATCH` where the batch is free. Arrays that are no input (labels,
say) are left aside.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from onnxprune.errors import InputError
from onnxprune.graph import Graph
from onnxprune.sessions import Feeds

BATCH = 32
DataLike = str | os.PathLike[str] | Mapping[str, NDArray[Any]] | Iterable[Mapping[str, NDArray[Any]]]


def load_feeds(graph: Graph, data: DataLike, limit: int) -> list[Feeds]:
    """Feeds made of at most about `limit` samples (always one feed). InputError where the data does not fit the
    model.
    """
    feeds: list[Feeds] = []
    count = 0
    for arrays in _records(graph, data):
        for feed in _cut(graph, _checked(graph, arrays)):
            feeds.append(feed)
            count += max((a.shape[0] for a in feed.values() if a.ndim), default=1)
            if count >= limit:
                return feeds
    if not feeds:
        raise InputError(f"the data holds no samples: {_origin(data)}")
    return feeds


def _origin(data: DataLike) -> str:
    return str(data) if isinstance(data, (str, os.PathLike)) else type(data).__name__


def _records(graph: Graph, data: DataLike) -> Iterator[Mapping[str, NDArray[Any]]]:
    if isinstance(data, (str, os.PathLike)):
        yield from _files(graph, Path(data))
    elif isinstance(data, Mapping):
        yield data
    elif not isinstance(data, Iterable):
        raise InputError(f"cannot read data from a {type(data).__name__}: give a file, a folder or a dict of arrays")
    else:
        for record in data:
            if not isinstance(record, Mapping):
                raise InputError(f"data must give dicts of arrays by input name, got a {type(record).__name__}")
            yield record


def _files(graph: Graph, path: Path) -> Iterator[Mapping[str, NDArray[Any]]]:
    if not os.path.exists(path):
        raise InputError(f"no such data: {path}")
    files = sorted(p for p in path.iterdir() if p.suffix in (".npz", ".npy")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"the folder {path} holds no .npz or .npy file")
    for file in files:
        loaded = _loaded(file)
        yield loaded if isinstance(loaded, dict) else _single(graph, loaded, file)


def _loaded(file: Path) -> dict[str, NDArray[Any]] | NDArray[Any]:
    try:
        with file.open("rb") as stream:
            found = np.load(stream, allow_pickle=False)
            return {n: found[n] for n in found.files} if isinstance(found, np.lib.npyio.NpzFile) else found
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot read data from {file}: {error}") from error


def _single(graph: Graph, array: NDArray[Any], file: Path) -> Mapping[str, NDArray[Any]]:
    if len(graph.inputs) != 1:
        raise InputError(
            f"{file} holds one array, the model has inputs {[i.name for i in graph.inputs]}: use .npz with these names"
        )
    return {graph.inputs[0].name: array}


def _checked(graph: Graph, arrays: Mapping[str, NDArray[Any]]) -> Feeds:
    feeds: Feeds = {}
    for value in graph.inputs:
        if value.name not in arrays:
            wanted = [i.name for i in graph.inputs]
            raise InputError(f"the data has no array {value.name!r}; it has {sorted(arrays)}, the model wants {wanted}")
        array = np.asarray(arrays[value.name])
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        dims = value.type.tensor_type.shape.dim
        if array.dtype != kind:
            raise InputError(f"data for {value.name!r} has type {array.dtype}, the model wants {kind}")
        want = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]
        fits = array.ndim == len(dims) and all(
            not isinstance(w, int) or w == n for w, n in zip(want[1:], array.shape[1:], strict=True)
        )
        if not fits:
            raise InputError(f"data for {value.name!r} has shape {list(array.shape)}, the model wants {want}")
        feeds[value.name] = array
    return feeds


def _cut(graph: Graph, arrays: Feeds) -> Iterator[Feeds]:
    """Feeds of the model's batch size; a rest that does not fill a fixed batch is left out."""
    batched = [v for v in graph.inputs if v.type.tensor_type.shape.dim]
    fixed = {
        v.type.tensor_type.shape.dim[0].dim_value for v in batched if v.type.tensor_type.shape.dim[0].dim_value > 0
    }
    lengths = {arrays[v.name].shape[0] for v in batched}
    if len(lengths) > 1 and len(fixed) <= 1:
        raise InputError(
            f"the data's arrays differ in length: { {n: a.shape[0] for n, a in arrays.items() if a.ndim} }"
        )
    if len(fixed) > 1 or not batched:
        yield arrays
        return
    total = lengths.pop()
    step = next(iter(fixed), min(BATCH, total))
    if total < step:
        raise InputError(f"the data has {total} samples, the model takes batches of {step}")
    for at in range(0, total - total % step if fixed else total, step or 1):
        yield {n: a[at : at + step] if a.ndim else a for n, a in arrays.items()}
