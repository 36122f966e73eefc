"""Micro-models: a kernel as a model of its own, with the neighbours that ONNX Runtime fuses into it, at any width.

The part is cut out of the typed graph with the axes that it has there, so the surgery that prunes the model makes its
narrow forms too: shapes, operands and attributes come out as they would in the pruned model. Weights stay what they
are, inputs are random: no kernel looks at their values (denormals, which are slow, come out of neither).

Many micro-models are timed together, side by side in one session, with the profiler: sessions are expensive to open,
the runs of all go round and round, so what slows the machine slows all of them, and each finds its weights in the
caches about as it would in the whole model. Copies between layouts do not count: in the model a neighbour brings the
layout along. What a blocked convolution adds to its result comes through a pooling over single pixels, so that it is
in blocks as well, else ONNX Runtime would not fuse the sum.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxprune.dims import Dim, Mask, size_under
from onnxprune.flow import CONTROL, ENTER, LEAVE
from onnxprune.graph import Graph
from onnxprune.inference import TypedGraph
from onnxprune.passes.prune import cut
from onnxprune.sessions import Feeds, Settings, open_session
from onnxprune.storage import stored_bytes, tensor
from onnxprune.validate.kernels import REORDERS, kernel_name
from onnxprune.validate.profile import run_times

MAX_SHEET_BYTES = 2**28  # of constants and inputs in one session
MAX_SHEET = 100  # micro-models in one session
RUNS, WARM_UP = 12, 2
STEM = "onnxprune.stem"
OWN = re.compile(r"(\d+)/")

Sizes = Mapping[Dim, int]


@dataclass(frozen=True)
class Part:
    """Some nodes as a typed graph of their own; `stems`: inputs that come in blocks of channels."""

    typed: TypedGraph
    stems: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Micro:
    """A model and its inputs."""

    graph: Graph
    feeds: Feeds
    stems: frozenset[str] = frozenset()

    @property
    def nbytes(self) -> int:
        return sum(map(stored_bytes, self.graph.tensors.values())) + sum(a.nbytes for a in self.feeds.values())


def cut_out(typed: TypedGraph, nodes: Sequence[int], blocked: bool = False) -> Part | None:
    """Some nodes as a graph of their own; None where they cannot stand alone. What they read is an input, or a
    constant where its value is known.
    """
    graph, facts = typed.graph, typed.facts
    wires = [graph.wires[i] for i in nodes]
    made = {n for w in wires for n in w.outputs if n}
    read = list(dict.fromkeys(n for w in wires for n in w.inputs if n and n not in made))
    tensors: dict[str, TensorProto] = {}
    for name in read:
        if name in graph.constants:
            tensors[name] = _named(graph.tensor(name), name)
        elif (value := facts.static(name)) is not None:
            tensors[name] = tensor(name, value)
    inputs = [n for n in read if n not in tensors]
    if not inputs or any(graph.nodes[i].op_type in (ENTER, LEAVE, *CONTROL) for i in nodes):
        return None
    if any(n not in typed.axes or n not in facts.dtypes for n in inputs):
        return None
    ends = {o.name for o in graph.outputs} | {n for n in made if _read_outside(graph, n, set(nodes))}
    shell = ModelProto(ir_version=graph.shell.ir_version)
    shell.opset_import.extend(graph.shell.opset_import)
    shell.graph.name = "kernel"
    shell.graph.input.extend(helper.make_tensor_value_info(n, facts.dtypes[n], None) for n in inputs)
    for name in (n for n in dict.fromkeys(made) if n in ends or n not in graph.consumers):
        shell.graph.output.add(name=name).type.SetInParent()
    alone = Graph(shell, tuple(graph.nodes[i] for i in nodes), tensors, libraries=graph.libraries)
    sub = TypedGraph(alone, facts, typed.axes, tuple(typed.signatures[i] for i in nodes))
    stems = {n for n in inputs if blocked and len(typed.axes[n]) == 4 and _added(alone, n)}
    return Part(sub, frozenset(stems))


def _named(constant: TensorProto, name: str) -> TensorProto:
    """The constant under its name, which that of a Constant node does not bear itself."""
    if constant.name == name:
        return constant
    made = TensorProto()
    made.CopyFrom(constant)
    made.name = name
    return made


def _read_outside(graph: Graph, name: str, nodes: set[int]) -> bool:
    return any(i not in nodes for i, _ in graph.consumers.get(name, ()))


def _added(graph: Graph, name: str) -> bool:
    return all(graph.nodes[i].op_type in ("Add", "Sum", "Mul") for i, _ in graph.consumers[name])


def at_widths(part: Part, sizes: Sizes, seed: int = 0) -> Micro:
    """The part where each dim keeps its first `sizes[dim]` units (all, where not named)."""
    masks: dict[Dim, Mask] = {d: np.arange(d.size) < n for d, n in sizes.items() if n < d.size}
    typed, rng = part.typed, np.random.default_rng(seed)
    made = cut(typed, masks) if masks else typed.graph
    shell = ModelProto()
    shell.CopyFrom(made.shell)
    del shell.graph.input[:]
    feeds: Feeds = {}
    for value in typed.graph.inputs:
        shape = [int(size_under(e, sizes)) for e in typed.axes[value.name]]
        kind = value.type.tensor_type.elem_type
        shell.graph.input.append(helper.make_tensor_value_info(value.name, kind, shape))
        feeds[value.name] = _values(shape, kind, typed.facts.values.get(value.name), rng)
    return Micro(made.replace(shell=shell), feeds, part.stems)


def _values(shape: Sequence[int], kind: int, traced: NDArray[Any] | None, rng: np.random.Generator) -> NDArray[Any]:
    """An input: the traced value where there is one (sizes, axes), else random floats and bytes, or zeros."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    if traced is not None and traced.shape == tuple(shape):
        return traced
    if dtype.kind in "iu" and dtype.itemsize == 1:
        return rng.integers(0, 100, shape).astype(dtype)
    if dtype.kind in "iub":
        return np.zeros(shape, dtype)
    return np.resize(rng.standard_normal(min(math.prod(shape), 4096) or 1), shape).astype(dtype)


def measure(
    micros: Sequence[Micro], settings: Settings, tell: Callable[[int, int], None] = lambda done, total: None
) -> list[float | None]:
    """Milliseconds of each; None for one that ONNX Runtime does not run. `tell` hears how many are done."""
    found: list[float | None] = []
    for sheet in _sheets(micros):
        found += _measured(sheet, settings)
        tell(len(found), len(micros))
    return found


def _sheets(micros: Sequence[Micro]) -> Iterator[list[Micro]]:
    sheet: list[Micro] = []
    held = 0
    for m in micros:
        if sheet and (held + m.nbytes > MAX_SHEET_BYTES or len(sheet) == MAX_SHEET):
            yield sheet
            sheet, held = [], 0
        sheet.append(m)
        held += m.nbytes
    if sheet:
        yield sheet


def _measured(sheet: Sequence[Micro], settings: Settings) -> list[float | None]:
    """One session; where ONNX Runtime objects, halves of it, to leave out what it objects to."""
    try:
        return list(_session(sheet, settings))
    except Exception:  # ONNX Runtime's own exceptions share no base class
        if len(sheet) == 1:
            return [None]
        half = len(sheet) // 2
        return _measured(sheet[:half], settings) + _measured(sheet[half:], settings)


def _session(sheet: Sequence[Micro], settings: Settings) -> NDArray[np.float64]:
    model, feeds = _side_by_side(sheet)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as name:
        folder = Path(name)
        job = open_session(model, settings, folder / "profile", folder / "made.onnx")
        for _ in range(WARM_UP + RUNS):
            job.run(None, feeds)
        trace = Path(job.end_profiling())
        times = run_times(json.loads(trace.read_text(encoding="utf-8")))
        kernels = onnx.load(folder / "made.onnx", load_external_data=False).graph.node
    total = np.zeros((len(sheet), RUNS))
    for name, owner in _owners(kernels).items():
        if name in times:
            total[owner] += times[name][WARM_UP:] / 1e3
    fastest: NDArray[np.float64] = total.min(axis=1)  # what interrupts a kernel only adds to its time
    return fastest


def _side_by_side(sheet: Sequence[Micro]) -> tuple[bytes, Feeds]:
    """All micro-models as one, the names of number k beginning with "k/"."""
    model = ModelProto()
    model.CopyFrom(sheet[0].graph.shell)
    for field in ("input", "output", "value_info"):
        model.graph.ClearField(field)
    feeds: Feeds = {}
    for k, micro in enumerate(sheet):
        feeds |= {f"{k}/{n}": a for n, a in micro.feeds.items()}
        plain = micro.graph.to_proto().graph
        for listed, target in ((plain.input, model.graph.input), (plain.output, model.graph.output)):
            for value in listed:
                target.add().CopyFrom(value)
                target[-1].name = f"{k}/{value.name}"
        for t in plain.initializer:
            t.name = f"{k}/{t.name}"
            model.graph.initializer.append(t)
        model.graph.node.extend(_stem(f"{k}/", n) for n in sorted(micro.stems))
        model.graph.node.extend(_renamed(node, k, i, micro.stems) for i, node in enumerate(plain.node))
    return model.SerializeToString(), feeds


def _stem(prefix: str, name: str) -> NodeProto:
    made = f"{prefix}{STEM}/{name}"
    return helper.make_node("MaxPool", [prefix + name], [made], name=made, kernel_shape=[1, 1])


def _renamed(node: NodeProto, k: int, i: int, stems: frozenset[str]) -> NodeProto:
    made = NodeProto()
    made.CopyFrom(node)
    made.name = f"{k}/{i}"
    made.input[:] = [n and (f"{k}/{STEM}/{n}" if n in stems else f"{k}/{n}") for n in node.input]
    made.output[:] = [n and f"{k}/{n}" for n in node.output]
    return made


def _owners(kernels: Sequence[NodeProto]) -> dict[str, int]:
    """The micro-model of every kernel that counts: found by the names of tensors, passed on to those that ONNX Runtime
    named.
    """
    owner: dict[str, int] = {}
    found: dict[str, int] = {}
    for i, node in enumerate(kernels):
        names = [*node.input, *node.output]
        known = [owner[n] for n in names if n in owner] + [int(m[1]) for n in names if (m := OWN.match(n))]
        if not known:
            continue
        owner |= dict.fromkeys((n for n in node.output if n), known[0])
        if node.op_type not in REORDERS and STEM not in node.name + "".join(node.output):
            found[kernel_name(node, i)] = known[0]
    return found
