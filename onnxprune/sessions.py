"""Running a model in ONNX Runtime: one plain CPU session that prints nothing.

A model too large to be one piece is given as a `Program`: its bytes without the large constants, and these beside it as
arrays, or left in the file that they are in, which ONNX Runtime maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from onnxprune.graph import Graph
from onnxprune.storage import PLAIN, External, Source, stored_bytes
from onnxprune.writing import EXTERNAL_BYTES, serialize

Feeds = dict[str, NDArray[Any]]
ACCURACY = "session.qdq_matmulnbits_accuracy_level"  # of products with DequantizeLinear, that are fused: 1 is float32
FOLDER = "session.model_external_initializers_file_folder_path"  # where a model from memory has its external data


@dataclass(frozen=True)
class Program:
    """A serialised model, the constants that it leaves to be given, and the folder of its external data."""

    model: bytes
    tensors: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    folder: Path | None = None


Runnable = ModelProto | bytes | Program


def program(graph: Graph) -> Program:
    """What a session is made of."""
    if not graph.is_large:
        return Program(serialize(graph.to_proto()))
    sparse = graph.sparse()
    large = {n: t for n, t in graph.outer().items() if t.data_type in PLAIN and stored_bytes(t) >= EXTERNAL_BYTES}
    apart = {n: t for n, t in large.items() if n not in sparse}
    hollow = {n: _elsewhere(t, graph.sources.get(n)) for n, t in apart.items()}
    rest = graph.replace(tensors={**graph.tensors, **hollow}, sources=sparse)
    left = {n: graph.tensor(n) for n in graph.sources if n not in apart and n not in sparse}
    model = rest.replace(tensors={**rest.tensors, **left}).skeleton()
    in_files = {n: s.file for n, s in graph.sources.items() if isinstance(s, External)}
    folder = next((f.folder for f in in_files.values()), None)
    return Program(serialize(model), {n: graph.view(n) for n in apart if n not in in_files}, folder)


def _elsewhere(tensor: TensorProto, source: Source | None) -> TensorProto:
    """The constant without its data: in its file, which ONNX Runtime maps, or to be given."""
    made = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    made.data_location = TensorProto.EXTERNAL
    place: dict[str, object] = {"location": "given"}
    if isinstance(source, External):
        place = {"location": source.file.location, "offset": source.offset, "length": source.length}
    for key, value in place.items():
        made.external_data.add(key=key, value=str(value))
    return made


class _Session(ort.InferenceSession):  # type: ignore[misc]
    """A session that holds the arrays that its constants lie in."""

    def __init__(self, program: Program, options: ort.SessionOptions) -> None:
        values = {n: ort.OrtValue.ortvalue_from_numpy(a) for n, a in program.tensors.items()}
        self.held = values, program.tensors
        if program.folder is not None:
            options.add_session_config_entry(FOLDER, str(program.folder.resolve()))
        if values:
            options.add_external_initializers(list(values), list(values.values()))
        super().__init__(program.model, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def session(model: Runnable, optimise: bool = True, threads: int = 0, exact: bool = False) -> ort.InferenceSession:
    """A CPU session that prints nothing. `exact`: activations stay what they are where weights have 8 bits; by default
    ONNX Runtime rounds them to 8 bits, block by block, too.
    """
    options = ort.SessionOptions()
    if exact:
        options.add_session_config_entry(ACCURACY, "1")
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if isinstance(model, ModelProto):
        model = model.SerializeToString()
    return _Session(model if isinstance(model, Program) else Program(model), options)


def run(model: Runnable, feeds: Feeds, outputs: list[str] | None = None) -> dict[str, Any]:
    """Outputs of a model by name from one plain ONNX Runtime run, without optimisations that could hide a tensor."""
    made = session(model, optimise=False)
    names = outputs or [o.name for o in made.get_outputs()]
    return dict(zip(names, made.run(names, feeds), strict=True))


def watched(graph: Graph, names: list[str]) -> Graph:
    """A graph with further outputs, of types that ONNX Runtime finds out."""
    present = {o.name for o in graph.outputs}
    shell = ModelProto()
    shell.CopyFrom(graph.shell)
    for name in names:
        if name not in present:
            shell.graph.output.add(name=name).type.SetInParent()
    return graph.replace(shell=shell)
