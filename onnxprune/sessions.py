"""Running a model in ONNX Runtime: a plain CPU session that prints nothing, or one with `Settings` of its own.

A model too large to be one piece is given as a `Program`: its bytes without the large constants, and these beside it as
arrays, or left in the file that they are in, which ONNX Runtime maps.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxprune.errors import InputError
from onnxprune.graph import Graph
from onnxprune.nodes import attributes
from onnxprune.storage import PLAIN, External, Source, stored_bytes
from onnxprune.writing import EXTERNAL_BYTES, serialize

Libraries = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
Feeds = dict[str, NDArray[Any]]
ACCURACY = "session.qdq_matmulnbits_accuracy_level"  # of products with DequantizeLinear, that are fused: 1 is float32
FOLDER = "session.model_external_initializers_file_folder_path"  # where a model from memory has its external data
CPU = "CPUExecutionProvider"
LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
RANDOM = frozenset(
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"]
)
SEEDS = 2**24  # whole numbers that a float32, as seeds are, can hold
FATAL = 4  # the severity of what ONNX Runtime prints: exceptions tell of errors
# Worker threads that wait for more work take a core from the session that is timed next: they stop when a run ends.
STOP_SPINNING = "session.force_spinning_stop"
OPTIMIZED_DATA = "session.optimized_model_external_initializers_file_name"


@dataclass(frozen=True)
class Settings:
    """How ONNX Runtime runs a model. `threads`: of one operator, 0 leaves it to ONNX Runtime; `provider`: an execution
    provider, also without the words behind its name ("cuda"); nodes that it lacks run on the CPU; `optimization`: one
    of LEVELS. InputError for what this ONNX Runtime does not have.
    """

    threads: int = 0
    provider: str = CPU
    optimization: str = "all"

    def __post_init__(self) -> None:
        if not isinstance(self.threads, int) or self.threads < 0:
            raise InputError(f"threads must be a whole number of at least 0, got {self.threads!r}")
        if self.optimization not in LEVELS:
            raise InputError(f"unknown optimization {self.optimization!r}: choose from {', '.join(LEVELS)}")
        present = ort.get_available_providers()
        wanted = str(self.provider).lower().removesuffix("executionprovider") + "executionprovider"
        named = next((p for p in present if p.lower() == wanted), None)
        if named is None:
            raise InputError(
                f"this ONNX Runtime has no provider {self.provider!r}: choose from {', '.join(present)}, or install a"
                " build that has it"
            )
        object.__setattr__(self, "provider", named)

    def to_dict(self) -> dict[str, Any]:
        return {"threads": self.threads, "provider": self.provider, "graph_optimization": self.optimization}


@dataclass(frozen=True)
class Program:
    """A model, serialised or in a file, the constants that it leaves to be given, and the folder of its external
    data.
    """

    model: bytes | Path
    tensors: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    folder: Path | None = None
    libraries: tuple[Path, ...] = ()


Runnable = ModelProto | bytes | Path | Program


def program(graph: Graph) -> Program:
    """What a session is made of."""
    graph = _seeded(graph)
    if not graph.is_large:
        return Program(serialize(graph.to_proto()), libraries=graph.libraries)
    sparse = graph.sparse()
    large = {n: t for n, t in graph.outer().items() if t.data_type in PLAIN and stored_bytes(t) >= EXTERNAL_BYTES}
    apart = {n: t for n, t in large.items() if n not in sparse}
    hollow = {n: _elsewhere(t, graph.sources.get(n)) for n, t in apart.items()}
    rest = graph.replace(tensors={**graph.tensors, **hollow}, sources=sparse)
    left = {n: graph.tensor(n) for n in graph.sources if n not in apart and n not in sparse}
    model = rest.replace(tensors={**rest.tensors, **left}).skeleton()
    in_files = {n: s.file for n, s in graph.sources.items() if isinstance(s, External)}
    folder = next((f.folder for f in in_files.values()), None)
    given = {n: graph.view(n) for n in apart if n not in in_files}
    return Program(serialize(model), given, folder, graph.libraries)


def _seeded(graph: Graph) -> Graph:
    """Random operators without a seed get that of their output's name, so that two forms of a model draw the same
    numbers. ONNX Runtime's own seeds depend on the number of a node.
    """
    drawing = [i for i, n in enumerate(graph.nodes) if n.op_type in RANDOM and "seed" not in attributes(n)]
    if not drawing:
        return graph
    nodes = list(graph.nodes)
    for i in drawing:
        made = NodeProto()
        made.CopyFrom(nodes[i])
        made.attribute.append(helper.make_attribute("seed", float(zlib.crc32(made.output[0].encode()) % SEEDS)))
        nodes[i] = made
    return graph.replace(nodes)


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

    def __init__(self, program: Program, options: ort.SessionOptions, providers: list[str]) -> None:
        values = {n: ort.OrtValue.ortvalue_from_numpy(a) for n, a in program.tensors.items()}
        self.held = values, program.tensors
        if program.folder is not None:
            options.add_session_config_entry(FOLDER, str(program.folder.resolve()))
        for library in program.libraries:
            options.register_custom_ops_library(str(library))
        if values:
            options.add_external_initializers(list(values), list(values.values()))
        model = str(program.model) if isinstance(program.model, Path) else program.model
        super().__init__(model, options, providers=providers, enable_fallback=0)


def loadable(libraries: Libraries) -> tuple[Path, ...]:
    """Full paths of shared libraries of custom operators; each once, since ONNX Runtime takes no kernel twice.
    InputError for one that it cannot load.
    """
    listed = [libraries] if isinstance(libraries, (str, os.PathLike)) else libraries
    paths = tuple(dict.fromkeys(Path(library).resolve() for library in listed))
    for path in paths:
        try:
            ort.SessionOptions().register_custom_ops_library(str(path))
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            reason = str(error).rpartition("with error: ")[2].removeprefix(f"{path}: ")
            raise InputError(
                f"cannot load the custom operators of {path}: {reason}; give a shared library that was built for ONNX"
                f" Runtime (this one is {ort.__version__})"
            ) from error
    return paths


def session(model: Runnable, optimise: bool = True, exact: bool = False) -> ort.InferenceSession:
    """A CPU session that prints nothing. `exact`: activations stay what they are where weights have 8 bits; by default
    ONNX Runtime rounds them to 8 bits, block by block, too.
    """
    return open_session(model, Settings(optimization="all" if optimise else "disabled"), exact=exact)


def open_session(
    model: Runnable,
    settings: Settings,
    profile: Path | None = None,
    optimized: Path | None = None,
    exact: bool = False,
) -> ort.InferenceSession:
    """A session that prints nothing. `profile`: what the file of its profile starts with (`end_profiling` says the
    rest, which is a time: two sessions want two starts); `optimized`: a file for the graph that ONNX Runtime made.
    """
    options = ort.SessionOptions()
    if exact:
        options.add_session_config_entry(ACCURACY, "1")
    options.log_severity_level = FATAL
    options.intra_op_num_threads = settings.threads
    options.graph_optimization_level = LEVELS[settings.optimization]
    options.add_session_config_entry(STOP_SPINNING, "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        options.add_session_config_entry(OPTIMIZED_DATA, f"{optimized.stem}.data")
    if isinstance(model, ModelProto):
        model = model.SerializeToString()
    providers = [settings.provider, *([CPU] if settings.provider != CPU else [])]
    return _Session(model if isinstance(model, Program) else Program(model), options, providers)


def silence() -> None:
    """ONNX Runtime's own log of this process prints nothing: errors come as exceptions too. For the command line; a
    library leaves its user's log alone.
    """
    ort.set_default_logger_severity(FATAL)


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
