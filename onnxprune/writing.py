"""Files are whole or absent: they are written beside their place and renamed.

Large models go into two files, the constants one after another into `NAME.data`, each in memory only while it is
written.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from onnxprune.errors import InputError
from onnxprune.storage import Inline, described, stored_bytes

if TYPE_CHECKING:
    from onnxprune.graph import Graph

EXTERNAL_BYTES = 1024  # smaller constants stay in the model
PAGE_BYTES = 4096  # where external constants start, so that they can be mapped


def check_paths(sources: Sequence[str | Path | None], *outputs: Path | None) -> None:
    """Refuse outputs that cannot be written, or are one of the sources, before any work is done. InputError."""
    paths = [p for p in outputs if p]
    for path in paths:
        if problem := _problem(path):
            raise InputError(f"cannot write {path}: {problem}")
        if any(s and os.path.exists(s) and path.exists() and path.samefile(s) for s in sources):
            raise InputError(f"{path} is the input itself: choose another output")
    if len({p.resolve() for p in paths}) < len(paths):
        raise InputError(f"two outputs go to the same file: {', '.join(map(str, paths))}")


def _problem(path: Path) -> str | None:
    """What keeps a file from being written."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return "it is a folder"
        if not stat.S_ISREG(mode):  # a device or pipe
            return None if os.access(path, os.W_OK) else "no permission"
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        return error.strerror
    writable = path.parent.is_dir() and os.access(path.parent, os.W_OK)
    return None if writable else "the folder is missing or not writable"


def serialize(model: ModelProto) -> bytes:
    """The bytes of a model, the same for the same model."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def write_atomic(target: Path, data: bytes) -> int:
    """Write bytes to a temporary file in the same folder and rename it; a device or pipe is written to as it is.
    InputError where that is not possible.
    """
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)
        else:
            _replace(target.resolve(), data)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}") from error
    return len(data)


def _replace(target: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".onnxprune-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def write_external(graph: Graph, target: Path) -> int:
    """The model beside a file `NAME.data` that holds its large constants; returns the bytes of both. InputError where
    that is not possible, or the data would replace that of the input.
    """
    try:
        target = target.resolve()
        beside = target.with_name(f"{target.name}.data")
        if beside.exists() and any(f.exists() and beside.samefile(f) for f in graph.files):
            raise InputError(f"cannot write {target}: its data would replace that of the input: choose another output")
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".onnxprune-") as folder:
            model, data = Path(folder) / "model", Path(folder) / "data"
            with data.open("wb") as file:
                made = _with_data_in(graph, beside.name, file)
            model.write_bytes(serialize(made))
            size = model.stat().st_size + data.stat().st_size
            if data.stat().st_size:
                os.replace(data, beside)
            os.replace(model, target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}") from error
    return size


def _with_data_in(graph: Graph, location: str, file: BinaryIO) -> ModelProto:
    """The model, with the data of its large constants appended to `file`."""
    model = graph.replace(tensors=_hollow(graph)).skeleton()
    for tensor in model.graph.initializer:
        source = graph.source(tensor.name)
        if source.nbytes < EXTERNAL_BYTES:
            if not isinstance(source, Inline):
                source.fill(tensor)
            continue
        raw = memoryview(_raw(source.proto)) if isinstance(source, Inline) else source.raw()
        file.write(bytes(-file.tell() % PAGE_BYTES))
        made = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        made.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", file.tell()), ("length", len(raw))):
            made.external_data.add(key=key, value=str(value))
        file.write(raw)
        tensor.CopyFrom(described(made, tensor))
    return model


def _hollow(graph: Graph) -> dict[str, TensorProto]:
    """The initialisers of a graph without the data of the large ones: a copy of all of it would not fit."""
    made = dict(graph.tensors)
    for name, tensor in graph.outer().items():
        if name not in graph.sources and stored_bytes(tensor) >= EXTERNAL_BYTES:
            bare = TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims)
            made[name] = described(bare, tensor)
    return made


def _raw(tensor: TensorProto) -> bytes:
    if tensor.HasField("raw_data"):
        raw: bytes = tensor.raw_data
        return raw
    return bytes(numpy_helper.from_array(np.asarray(numpy_helper.to_array(tensor))).raw_data)
