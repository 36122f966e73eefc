"""Arrays of .npy and .npz files, left in their files until they are looked at.

What is stored plainly is mapped into memory, so that only the rows that are read cost anything. What is compressed is a
`Packed`: its shape and type are known from its header, its data is unpacked when it is asked for.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from onnxprune.errors import InputError

SUFFIXES = (".npz", ".npy")
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
ZIP_HEADER_BYTES = 30  # of a member's local header; its last four are the lengths of the name and extra field
ONLY = ""  # the name of the array in an .npy file


@dataclass(frozen=True)
class Packed:
    """A compressed array in an .npz file."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def read(self) -> NDArray[Any]:
        """Unpack it. InputError where the file is broken."""
        with _reading(self.file), np.load(self.file, allow_pickle=False) as archive:
            return np.asarray(archive[self.name])


Stored = NDArray[Any] | Packed


def stored_arrays(file: Path) -> dict[str, Stored]:
    """Arrays of a file by name (that of an .npy is `ONLY`). InputError where it cannot be read."""
    with _reading(file):
        with file.open("rb") as stream:
            magic = stream.read(len(npy.MAGIC_PREFIX))
        if magic[:4] not in ZIP_MAGIC and magic != npy.MAGIC_PREFIX:
            raise ValueError("it is no .npy or .npz file")
        if magic == npy.MAGIC_PREFIX:
            return {ONLY: np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))}
        with zipfile.ZipFile(file) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
            return {m.filename.removesuffix(".npy"): _member(file, archive, m) for m in members}


def _member(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Stored:
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        header = stream.tell()
    if dtype.hasobject:
        raise ValueError(f"array {member.filename!r} holds Python objects")
    if member.compress_type != zipfile.ZIP_STORED or not member.file_size > header:
        return Packed(file, member.filename.removesuffix(".npy"), shape, dtype)
    order = "F" if fortran else "C"
    return np.asarray(np.memmap(file, dtype, "r", _data_offset(file, member) + header, shape, order))  # type: ignore[call-overload]


def _data_offset(file: Path, member: zipfile.ZipInfo) -> int:
    """Where in the file a member's bytes begin: its local header may be longer than the directory says."""
    with file.open("rb") as stream:
        stream.seek(member.header_offset)
        lengths = np.frombuffer(stream.read(ZIP_HEADER_BYTES)[-4:], "<u2")
    return member.header_offset + ZIP_HEADER_BYTES + int(lengths.sum())


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot read data from {file}: {error}") from error
