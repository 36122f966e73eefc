"""Where the data of large constants is, and how it comes into memory: when it is asked for, one constant at a time.

A constant whose data is elsewhere is a hollow TensorProto (`data_location` EXTERNAL, dims and type, no data) and a
`Source`: a range of a file beside the model, or a slice of another source. Arrays of a file map it, so that pages are
read when they are touched and given back with the array.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.dims import Mask
from onnxprune.errors import InputError
from onnxprune.sparse import Sparse

SMALL_TYPES = ("INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2")
PACKED = tuple(v for n, v in TensorProto.DataType.items() if n in SMALL_TYPES)  # several entries in a byte
PLAIN = tuple(  # stored as NumPy holds them, on machines of the same byte order
    v
    for n, v in TensorProto.DataType.items()
    if n in ("FLOAT", "DOUBLE", "FLOAT16", "BOOL", "COMPLEX64", "COMPLEX128") or n.removeprefix("U").startswith("INT")
    if v not in PACKED
)
KEPT_BYTES = 65536  # external constants below this are read with the model
LAZY_BYTES = 1 << 20  # constants of at least this size are sliced when the slice is asked for
OPEN_FILES = 16  # more files than this are opened when they are read


class DataFile:
    """A file of external data. `keep` holds it open, so that it can be read even if its name is gone by then."""

    def __init__(self, folder: Path, location: str, keep: bool) -> None:
        self.folder, self.location, self.path = folder, location, folder / location
        path = self.path
        self.size = path.stat().st_size
        self._open: int | None = None
        self._shared: weakref.ref[mmap.mmap] | None = None
        if keep:
            self._open = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            weakref.finalize(self, os.close, self._open)

    def __reduce__(self) -> tuple[Any, ...]:
        return DataFile, (self.folder, self.location, False)

    def read(self, offset: int, length: int, shared: bool = False) -> memoryview:
        """A range of bytes, as a mapping of its own or of the whole file, which all that share it hold in memory."""
        if self._open is None or not length:
            with self.path.open("rb") as file:
                file.seek(offset)
                return memoryview(file.read(length))
        if shared:
            return memoryview(self._whole(self._open))[offset : offset + length]
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(self._open, offset + length - start, access=mmap.ACCESS_READ, offset=start)
        return memoryview(mapped)[offset - start :]

    def _whole(self, handle: int) -> mmap.mmap:
        found = self._shared() if self._shared is not None else None
        if found is None:
            found = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
            self._shared = weakref.ref(found)
        return found


@dataclass(frozen=True)
class External:
    """`length` bytes of a file, as an array of `dims`."""

    file: DataFile
    offset: int
    length: int
    data_type: int
    dims: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.length

    def array(self, shared: bool = False) -> NDArray[Any]:
        """The array, read-only; `shared`: fit to be held together with others."""
        if self.data_type in PLAIN and sys.byteorder == "little":
            kind = helper.tensor_dtype_to_np_dtype(self.data_type)
            return np.frombuffer(self.file.read(self.offset, self.length, shared), kind).reshape(self.dims)
        stored = TensorProto(data_type=self.data_type, dims=self.dims, raw_data=bytes(self.raw()))
        return np.asarray(numpy_helper.to_array(stored))

    def raw(self) -> memoryview:
        """The bytes as ONNX stores them."""
        return self.file.read(self.offset, self.length)

    def fill(self, hollow: TensorProto) -> None:
        """Put the data into the proto, which then is as onnx would have loaded it."""
        hollow.raw_data = bytes(self.raw())
        hollow.data_location = TensorProto.DEFAULT


@dataclass(frozen=True)
class Inline:
    """A constant that is in memory already."""

    proto: TensorProto

    @property
    def nbytes(self) -> int:
        return stored_bytes(self.proto)

    def array(self, shared: bool = False) -> NDArray[Any]:
        return np.asarray(numpy_helper.to_array(self.proto))


@dataclass(frozen=True)
class Sliced:
    """The kept indices of each axis of another source."""

    source: Source
    data_type: int
    masks: tuple[Mask, ...]

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(int(m.sum()) for m in self.masks)

    @property
    def nbytes(self) -> int:
        return packed_bytes(self.data_type, self.dims)

    def array(self, shared: bool = False) -> NDArray[Any]:
        """The slice; the axis that loses most is cut first."""
        array = self.source.array()
        for axis in sorted(range(len(self.masks)), key=lambda k: self.masks[k].mean()):
            mask = self.masks[axis]
            array = array if mask.all() else np.compress(mask, array, axis=axis)
        return array

    def raw(self) -> memoryview:
        """The bytes as ONNX stores them."""
        array = self.array()
        if self.data_type in PLAIN and sys.byteorder == "little":
            return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        return memoryview(numpy_helper.from_array(array).raw_data)

    def fill(self, hollow: TensorProto) -> None:
        """Put the data into the proto, which then is as if it had been made from the array."""
        hollow.raw_data = bytes(self.raw())
        hollow.ClearField("data_location")

    def hollow(self, name: str, like: TensorProto | None = None) -> TensorProto:
        """The proto without the data; doc string and metadata come from `like`."""
        made = TensorProto(name=name, data_type=self.data_type, dims=self.dims)
        made.data_location = TensorProto.EXTERNAL
        return described(made, like)

    def equals(self, other: Source) -> bool:
        """Whether another slice has the same bytes."""
        if not isinstance(other, Sliced) or (other.data_type, other.dims) != (self.data_type, self.dims):
            return False
        if other.source is self.source:
            return all(np.array_equal(a, b) for a, b in zip(self.masks, other.masks, strict=True))
        return self.raw() == other.raw()


Source = External | Inline | Sliced | Sparse


def cut_source(source: Source, data_type: int, masks: Sequence[Mask]) -> Sliced | Sparse:
    """The kept indices of each axis of a source."""
    return source.cut(masks) if isinstance(source, Sparse) else Sliced(source, data_type, tuple(masks))


def packed_bytes(data_type: int, dims: Sequence[int]) -> int:
    """Bytes of an array as ONNX stores it raw."""
    name = TensorProto.DataType.Name(data_type)
    if data_type in PACKED:
        return -(-math.prod(dims) * (2 if name.endswith("INT2") else 4) // 8)
    if name.startswith("FLOAT8"):
        return math.prod(dims)
    return math.prod(dims) * (2 if name == "BFLOAT16" else helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def stored_bytes(tensor: TensorProto) -> int:
    """Bytes of a constant's data, strings apart."""
    return packed_bytes(tensor.data_type, tensor.dims) if tensor.data_type != TensorProto.STRING else 0


def described(made: TensorProto, like: TensorProto | None) -> TensorProto:
    """`made` with the doc string and metadata of `like`."""
    if like is not None:
        made.doc_string = like.doc_string
        made.metadata_props.extend(like.metadata_props)
    return made


def tensor(name: str, array: NDArray[Any], like: TensorProto | None = None) -> TensorProto:
    """An initialiser from an array (0-d stays 0-d); doc string and metadata come from `like`."""
    made = numpy_helper.from_array(array if array.flags.c_contiguous else np.copy(array, order="C"), name)
    return described(made, like)


def open_external(model: ModelProto, path: Path) -> tuple[dict[str, Source], tuple[Path, ...]]:
    """Sources of a model's large external initialisers, which become hollow, and the files they are in; all other
    external data is read. InputError where it cannot be.
    """
    found = [t for t in model.graph.initializer if onnx.external_data_helper.uses_external_data(t)]
    try:
        entries = [(t, onnx.external_data_helper.ExternalDataInfo(t)) for t in found]
        places = {e.location: _place(t, e.location, path.parent) for t, e in entries}
        files = {n: DataFile(path.parent, n, len(places) <= OPEN_FILES) for n in places}
        sources: dict[str, Source] = {}
        for t, entry in entries:
            source = _range(t, entry, files[entry.location])
            if source.nbytes >= KEPT_BYTES and source.nbytes == stored_bytes(t) and t.name not in sources:
                sources[t.name] = source
                t.ClearField("raw_data")
                del t.external_data[:]
                t.data_location = TensorProto.DEFAULT
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # onnx raises several kinds here: ValidationError, OSError, ValueError
        raise InputError(f"the external data of {path} cannot be read: {error}") from error
    for t in found:
        if t.name in sources and not t.HasField("raw_data"):
            t.data_location = TensorProto.EXTERNAL
    return sources, tuple(places.values())


def _place(tensor: TensorProto, location: str, folder: Path) -> Path:
    """The path of an external file. onnx decides whether it may be read: it is asked for nothing of it."""
    probe = TensorProto(name=tensor.name, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("length", "0")):
        probe.external_data.add(key=key, value=value)
    onnx.external_data_helper.load_external_data_for_tensor(probe, str(folder))
    return folder / location


def _range(tensor: TensorProto, entry: Any, file: DataFile) -> External:
    offset = int(entry.offset or 0)
    length = file.size - offset if entry.length is None else int(entry.length)
    if offset < 0 or length < 0 or offset + length > file.size:
        raise ValueError(f"{file.path.name} is too short for {tensor.name!r}")
    return External(file, offset, length, tensor.data_type, tuple(tensor.dims))
