"""Reading a model from a path, bytes, a ModelProto or a graphsurgeon graph, and saying clearly what is wrong in it."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto, TensorProto, helper

from onnxprune.errors import InputError, OnnxPruneError
from onnxprune.graph import Graph, from_proto
from onnxprune.nodes import describe
from onnxprune.ordering import in_order, put_in_order
from onnxprune.sessions import Libraries, loadable
from onnxprune.sparse import Sparse, flaw
from onnxprune.storage import PACKED, Source, open_external
from onnxprune.writing import serialize

TYPES = frozenset(TensorProto.DataType.values())
ModelLike = str | os.PathLike[str] | bytes | ModelProto | Any


def load(model: ModelLike, libraries: Libraries = ()) -> Graph:
    """Read a model from a path, bytes, a ModelProto or a graphsurgeon graph; `libraries` with its custom operators are
    loaded into every session that runs it. Raises InputError with what is wrong and what to do.
    """
    kernels = loadable(libraries)
    sources: dict[str, Source] = {}
    files: tuple[Path, ...] = ()
    if isinstance(model, (str, os.PathLike)):
        proto, sources, files = _read_file(Path(model))
    else:
        proto = _read(model)
    try:
        return _checked(proto, sources, files, kernels)
    except UnicodeDecodeError as error:
        raise InputError(f"the model holds a name that is not text: {error}") from error


def _checked(
    proto: ModelProto, sources: Mapping[str, Source], files: tuple[Path, ...], libraries: tuple[Path, ...]
) -> Graph:
    if not proto.graph.node and not proto.graph.output:
        raise InputError("not an ONNX model: it has no graph")
    if not proto.opset_import:
        raise InputError("the model names no opset; it cannot be interpreted")
    newest = onnx.defs.onnx_opset_version()
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > newest:
            raise InputError(
                f"the model uses opset {opset.version}; onnx {onnx.__version__} knows up to {newest}: upgrade onnx"
            )
    graph = from_proto(proto, sources, files, libraries)
    if not in_order(graph):
        graph = from_proto(put_in_order(proto), sources, files, libraries)
    stored = [t.name for t in proto.graph.initializer] + [t.values.name for t in proto.graph.sparse_initializer]
    if twice := [name for name, count in Counter(stored).items() if count > 1]:
        raise InputError(f"initialiser {twice[0]!r} is stored twice")
    _check_constants(graph, sources)
    for value in (*graph.shell.graph.input, *graph.shell.graph.output):
        if value.type.tensor_type.elem_type not in TYPES:
            raise InputError(f"{value.name!r} has the unknown type {value.type.tensor_type.elem_type}")
    check_structure(graph)
    return graph


def _check_constants(graph: Graph, external: Mapping[str, Source]) -> None:
    for name, tensor in graph.constants.items():
        source = graph.source(name)
        if isinstance(source, Sparse):
            if wrong := flaw(source):
                raise InputError(f"sparse constant {name!r} cannot be read: {wrong}")
        elif name not in external:
            check_tensor(name, tensor)


@contextmanager
def blaming(graph: Graph) -> Iterator[None]:
    """Tell errors of the model from errors of ours: what breaks on a model that the onnx checker refuses
    is an InputError with the words of the checker. Models that work are not checked, which takes time.
    """
    try:
        yield
    except OnnxPruneError:
        raise
    except Exception as error:
        flaw = _flaw(graph)
        if flaw is None:
            raise
        raise InputError(f"the model is not valid ONNX: {flaw}") from error


def _flaw(graph: Graph) -> Exception | None:
    if graph.is_large:
        return None
    try:
        onnx.checker.check_model(serialize(graph.to_proto()), full_check=True)
    except EncodeError:  # too large to be checked in one piece
        return None
    except Exception as flaw:
        return flaw
    return None


def _read(model: ModelLike) -> ModelProto:
    if isinstance(model, ModelProto):
        return model
    if isinstance(model, bytes):
        return _parse(model, "the given bytes")
    if type(model).__module__.startswith("onnx_graphsurgeon"):
        import onnx_graphsurgeon as gs

        exported: ModelProto = gs.export_onnx(model)
        return exported
    raise InputError(
        f"cannot read a model from a {type(model).__name__}: give a path, bytes, ModelProto or graphsurgeon graph"
    )


def _read_file(path: Path) -> tuple[ModelProto, dict[str, Source], tuple[Path, ...]]:
    """The model in a file; large constants beside it are left where they are."""
    if not os.path.exists(path):  # pathlib's raises for names that are too long
        raise InputError(f"no such file: {path}")
    if path.is_dir():
        raise InputError(f"{path} is a folder, not an ONNX file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not data:
        raise InputError(f"{path} is empty")
    model = _parse(data, str(path))
    del data
    return model, *open_external(model, path)


def _parse(data: bytes, origin: str) -> ModelProto:
    try:
        model: ModelProto = ModelProto.FromString(data)
    except DecodeError as error:
        raise InputError(f"{origin} is not an ONNX model, or is truncated: {error}") from error
    if not model.ir_version:
        raise InputError(f"{origin} is not an ONNX model: it has no IR version")
    return model


def check_tensor(name: str, tensor: TensorProto) -> None:
    """Raise InputError unless a constant holds what its dims and type say."""
    if tensor.data_location == TensorProto.EXTERNAL:
        raise InputError(
            f"the data of {name!r} is in another file: give the path of the model, or load it with its data"
        )
    if tensor.data_type not in TYPES or not tensor.data_type:
        raise InputError(f"constant {name!r} has the unknown type {tensor.data_type}")
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if tensor.data_type in PACKED:
        return
    if tensor.HasField("raw_data"):
        held, each = len(tensor.raw_data), kind.itemsize
    else:
        held, each = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type))), 1 + (kind.kind == "c")
    if held != math.prod(tensor.dims) * each or any(n < 0 for n in tensor.dims):
        raise InputError(f"constant {name!r} has dims {list(tensor.dims)}, its data has {held // each} entries")


def check_structure(graph: Graph) -> None:
    """Raise InputError unless every tensor is made once, before it is used, and every output is made."""
    known = {i.name for i in graph.shell.graph.input} | set(graph.tensors)
    known |= {t.values.name for t in graph.shell.graph.sparse_initializer}
    for i, wires in enumerate(graph.wires):
        for name in wires.inputs + wires.captured:
            if name and name not in known:
                raise InputError(_dangling(graph, i, name))
        for name in filter(None, wires.outputs):
            if name in known:
                raise InputError(f"tensor {name!r} is made twice (second time by {describe(graph.nodes[i], i)})")
            known.add(name)
    for output in graph.outputs:
        if output.name not in known:
            raise InputError(f"graph output {output.name!r} is made by no node")


def _dangling(graph: Graph, index: int, name: str) -> str:
    import networkx as nx

    flow = nx.DiGraph(
        (graph.producer[n], i) for i, wires in enumerate(graph.wires) for n in wires.inputs if n in graph.producer
    )
    if not nx.is_directed_acyclic_graph(flow):
        ring = " -> ".join(describe(graph.nodes[a], a) for a, _ in nx.find_cycle(flow))
        return f"the graph has a cycle: {ring}"
    return f"input {name!r} of {describe(graph.nodes[index], index)} is made by no node"
