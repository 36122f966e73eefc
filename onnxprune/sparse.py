"""Sparse constants: the entries that are not zero and their places, as SparseTensorProto keeps them (IR version 6).

values (NNZ,), indices (NNZ,) into the flattened tensor or (NNZ, rank), dims. They come from `sparse_initializer` and
from Constant nodes with `sparse_value`, are cut entry by entry and stay sparse; the dense array is made where one looks
at the numbers, as ONNX Runtime does when it loads the model. Left out, and so left alone: types that pack several
entries into a byte, text, and tensors whose dense form would not fit into one file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from onnxprune.dims import Mask

DENSE_BYTES = 2**31 - 1  # larger ones are left alone
UNTYPED = ("UNDEFINED", "STRING", "INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2")


@dataclass(frozen=True)
class Sparse:
    """A sparse constant as a source of its data."""

    proto: SparseTensorProto

    @property
    def data_type(self) -> int:
        return int(self.proto.values.data_type)

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.proto.dims)

    @property
    def entries(self) -> int:
        """How many entries are stored."""
        return math.prod(self.proto.values.dims)

    @property
    def nbytes(self) -> int:
        return int(self.proto.ByteSize())

    def places(self) -> NDArray[np.int64]:
        """Indices of the stored entries into the flattened tensor, shape (NNZ,)."""
        indices = np.asarray(numpy_helper.to_array(self.proto.indices), np.int64)
        if indices.ndim < 2:
            return indices.reshape(-1)
        strides = [math.prod(self.dims[k + 1 :]) for k in range(len(self.dims))]
        return np.asarray(indices @ np.array(strides, np.int64), np.int64)

    def array(self, shared: bool = False) -> NDArray[Any]:
        """The dense array."""
        values = numpy_helper.to_array(self.proto.values)
        made = np.zeros(math.prod(self.dims), values.dtype)
        made[self.places()] = values
        return made.reshape(self.dims)

    def raw(self) -> memoryview:
        """The bytes of the dense array as ONNX stores them."""
        return memoryview(numpy_helper.from_array(self.array()).raw_data)

    def fill(self, hollow: TensorProto) -> None:
        """Put the dense data into the proto."""
        hollow.raw_data = bytes(self.raw())
        hollow.ClearField("data_location")

    def hollow(self, name: str, like: TensorProto | None = None) -> TensorProto:
        """The proto of the dense tensor, without data; doc strings and metadata are in `proto`, not in `like`."""
        made = TensorProto(name=name, data_type=self.data_type, dims=self.dims)
        made.data_location = TensorProto.EXTERNAL
        return made

    def named(self, name: str) -> Sparse:
        """The same constant under another name, which is that of its values."""
        made = SparseTensorProto()
        made.CopyFrom(self.proto)
        made.values.name = name
        return Sparse(made)

    def cut(self, masks: Sequence[Mask]) -> Sparse:
        """The kept indices of each axis; entries stay in their order."""
        at = np.unravel_index(self.places(), self.dims) if self.dims else ()
        kept = np.ones(self.entries, bool)
        for mask, index in zip(masks, at, strict=True):
            kept &= mask[index]
        moved = [(np.cumsum(mask) - 1)[index[kept]] for mask, index in zip(masks, at, strict=True)]
        return self._with(numpy_helper.to_array(self.proto.values)[kept], moved, [int(m.sum()) for m in masks])

    def holding(self, array: NDArray[Any]) -> Sparse:
        """A dense array of the same type in the form of this constant."""
        at = np.nonzero(array)
        return self._with(array[at], list(at), array.shape)

    def _with(self, values: NDArray[Any], at: Sequence[NDArray[np.int64]], dims: Sequence[int]) -> Sparse:
        """A constant with other entries; indices keep their form, names, doc strings and metadata stay."""
        if len(self.proto.indices.dims) > 1:
            indices = np.stack(at, axis=1) if at else np.zeros((values.size, 0), np.int64)
        else:
            indices = np.ravel_multi_index(tuple(at), tuple(dims)) if values.size else np.zeros(0, np.int64)
        kind = helper.tensor_dtype_to_np_dtype(self.proto.indices.data_type)
        made = SparseTensorProto(dims=dims)
        made.values.CopyFrom(_like(values, self.proto.values))
        made.indices.CopyFrom(_like(np.asarray(indices, kind), self.proto.indices))
        return Sparse(made)

    def equals(self, other: object) -> bool:
        """Whether another constant is the same but for its name."""
        return isinstance(other, Sparse) and other.named("").proto == self.named("").proto


def _like(array: NDArray[Any], old: TensorProto) -> TensorProto:
    made = numpy_helper.from_array(np.copy(array, order="C"), old.name)
    made.doc_string = old.doc_string
    made.metadata_props.extend(old.metadata_props)
    return made


def readable(proto: SparseTensorProto) -> bool:
    """Whether a sparse tensor is one that is cut, rather than left alone."""
    kind = proto.values.data_type
    if kind not in TensorProto.DataType.values() or TensorProto.DataType.Name(kind) in UNTYPED:
        return False
    return bool(math.prod(proto.dims) * helper.tensor_dtype_to_np_dtype(kind).itemsize <= DENSE_BYTES)


def sparse_value(node: NodeProto) -> Sparse | None:
    """What a Constant node with `sparse_value` (opset 11) holds; None for other nodes."""
    attribute = node.attribute[0] if node.op_type == "Constant" and node.attribute else None
    if attribute is None or attribute.name != "sparse_value" or not readable(attribute.sparse_tensor):
        return None
    return Sparse(attribute.sparse_tensor)


def flaw(sparse: Sparse) -> str:
    """What is wrong with a sparse constant; empty if nothing is."""
    proto = sparse.proto
    if TensorProto.EXTERNAL in (proto.values.data_location, proto.indices.data_location):
        return "its data is in another file"
    try:
        values, indices = numpy_helper.to_array(proto.values), numpy_helper.to_array(proto.indices)
    except (ValueError, TypeError) as error:
        return str(error)
    if indices.dtype.kind != "i" or indices.shape not in ((values.size,), (values.size, len(sparse.dims))):
        return f"{values.size} values with indices of shape {list(indices.shape)}"
    limits = np.array(sparse.dims if indices.ndim > 1 else [math.prod(sparse.dims)], np.int64)
    if values.ndim != 1 or any(n < 0 for n in sparse.dims) or ((indices < 0) | (indices >= limits)).any():
        return f"an index lies outside of dims {list(sparse.dims)}"
    return ""
