"""Files, bytes, ModelProtos and graphsurgeon graphs in; one `Graph` out - and back, with nothing lost.

A `Graph` is a thin, persistent view of a ModelProto: the node list, the initialisers by name, and the `shell`
(everything else, as it was read). Nodes and tensors are never changed in place; a pass makes new ones and calls
`graph.replace(...)`. What no pass touches is therefore written back exactly as it came: metadata_props, doc strings,
opset imports, functions, annotations. graphsurgeon is understood at the door, but not used inside: its import drops
metadata_props, value_info and doc strings.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

from onnxprune.flow import flatten, rebuild, stored_inside
from onnxprune.nodes import Wires, constant_value, tensors_in
from onnxprune.sparse import Sparse, readable, sparse_value
from onnxprune.storage import LAZY_BYTES, External, Inline, Source, stored_bytes
from onnxprune.writing import serialize, write_atomic, write_external

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
MAX_PROTO_BYTES = 2**31 - 1  # protobuf's limit; larger models are written with external data


@dataclass(frozen=True)
class Graph:
    """One model: `nodes` in topological order, `tensors` (initialisers) by name, and the rest in `shell`.

    Initialisers whose data is not in memory, or sparse, are hollow, and have an entry in `sources`; `files` are those
    that external data came from. `libraries` hold kernels that ONNX Runtime needs to run the model and does not bring
    along.
    """

    shell: ModelProto
    nodes: tuple[NodeProto, ...]
    tensors: Mapping[str, TensorProto]
    sources: Mapping[str, Source] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    libraries: tuple[Path, ...] = ()
    _arrays: dict[str, NDArray[Any]] = field(default_factory=dict, compare=False, repr=False)
    _wires: tuple[Wires, ...] | None = field(default=None, compare=False, repr=False)

    def replace(
        self,
        nodes: Iterable[NodeProto] | None = None,
        tensors: Mapping[str, TensorProto] | None = None,
        shell: ModelProto | None = None,
        sources: Mapping[str, Source] | None = None,
    ) -> Graph:
        """The same model with other nodes, initialisers or surroundings."""
        left = self.tensors if tensors is None else tensors
        known = self.sources if sources is None else sources
        chosen, wires = self.nodes, self.wires
        if nodes is not None:
            chosen, same = tuple(nodes), dict(zip(map(id, self.nodes), self.wires, strict=True))
            wires = tuple([same.get(id(node)) or Wires.of(node) for node in chosen])
        return Graph(
            shell or self.shell,
            chosen,
            left,
            {n: s for n, s in known.items() if n in left and _is_hollow(left[n])},
            self.files,
            self.libraries,
            self._arrays if tensors is None else {},
            wires,
        )

    @cached_property
    def inputs(self) -> tuple[onnx.ValueInfoProto, ...]:
        """Graph inputs that must be fed: without the initialisers that IR version 3 lists as inputs."""
        return tuple(i for i in self.shell.graph.input if i.name not in self.tensors)

    @cached_property
    def outputs(self) -> tuple[onnx.ValueInfoProto, ...]:
        return tuple(self.shell.graph.output)

    @cached_property
    def opsets(self) -> dict[str, int]:
        """Opset version by domain; the default domain is the empty string."""
        return {"" if o.domain == "ai.onnx" else o.domain: o.version for o in self.shell.opset_import}

    @cached_property
    def constants(self) -> dict[str, TensorProto]:
        """Initialisers and the outputs of Constant nodes that hold a tensor."""
        found = dict(self.tensors) | {n: s.hollow(n) for n, s in self._sparse_nodes.items()}
        for node, wires in zip(self.nodes, self.wires, strict=True):
            if wires.operator == "Constant" and (value := constant_value(node)) is not None:
                found[wires.outputs[0]] = value
        return found

    @cached_property
    def _sparse_nodes(self) -> dict[str, Sparse]:
        """What Constant nodes hold as sparse tensors."""
        nodes = (n for n, wires in zip(self.nodes, self.wires, strict=True) if wires.operator == "Constant")
        found = ((node.output[0], sparse_value(node)) for node in nodes)
        return {name: made for name, made in found if made is not None}

    @cached_property
    def wires(self) -> tuple[Wires, ...]:
        """The names that each node reads and makes: taken from the protos once, since each look there costs."""
        return self._wires or tuple(map(Wires.of, self.nodes))

    @cached_property
    def producer(self) -> dict[str, int]:
        """Index of the node that makes each tensor."""
        return {name: i for i, wires in enumerate(self.wires) for name in wires.outputs if name}

    @cached_property
    def consumers(self) -> dict[str, list[tuple[int, int]]]:
        """(node index, input index) of every use of each tensor; input index -1 for a capture by a body of control
        flow.
        """
        found: dict[str, list[tuple[int, int]]] = {}
        for i, wires in enumerate(self.wires):
            for j, name in enumerate(wires.inputs):
                if name:
                    found.setdefault(name, []).append((i, j))
            for name in wires.captured:
                found.setdefault(name, []).append((i, -1))
        return found

    def unused_name(self, stem: str, besides: Container[str] = ()) -> str:
        """The stem, or with a number behind it, that no tensor of the graph has, nor of some `besides`."""
        k = 0
        while (name := f"{stem}{k or ''}") in self.tensors or name in self.producer or name in besides:
            k += 1
        return name

    def array(self, name: str) -> NDArray[Any]:
        """A constant as a read-only array; small ones are kept, large ones are read or decoded at each call."""
        if name in self._arrays:
            return self._arrays[name]
        array = self.source(name).array()
        array.flags.writeable = False
        if array.nbytes <= 65536:
            self._arrays[name] = array
        return array

    def view(self, name: str) -> NDArray[Any]:
        """As `array`, but fit to be held: external data is mapped once for all that hold it."""
        return self.source(name).array(shared=True) if name in self.sources else self.array(name)

    def source(self, name: str) -> Source:
        """Where the data of a constant is."""
        return self.sources.get(name) or self._sparse_nodes.get(name) or Inline(self.constants[name])

    def sparse(self) -> dict[str, Sparse]:
        """The initialisers that are sparse."""
        return {n: s for n, s in self.sources.items() if isinstance(s, Sparse)}

    def entries(self, name: str) -> int:
        """How many elements a constant stores."""
        source = self.source(name)
        return source.entries if isinstance(source, Sparse) else int(np.prod(self.constants[name].dims))

    def outer(self) -> dict[str, TensorProto]:
        """The initialisers that do not belong to a body of control flow."""
        return {n: t for n, t in self.tensors.items() if n not in self._inner}

    @cached_property
    def _inner(self) -> set[str]:
        return stored_inside(self.nodes)

    def is_lazy(self, name: str) -> bool:
        """Whether slices of a constant are made when they are asked for."""
        large = self.is_large and name in self.tensors and stored_bytes(self.tensors[name]) >= LAZY_BYTES
        return name in self.sources or (large and name not in self._inner)

    def tensor(self, name: str) -> TensorProto:
        """A constant with its data."""
        found, source = self.constants[name], self.source(name)
        if isinstance(source, Inline):
            return found
        made = TensorProto()
        made.CopyFrom(found)
        source.fill(made)
        return made

    def to_proto(self) -> ModelProto:
        """The whole model, with all data. Initialisers are copied, so the result shares nothing with the graph."""
        model = self.skeleton()
        for tensor in model.graph.initializer:
            source = self.sources.get(tensor.name)
            if source is not None and not isinstance(source, Inline):
                source.fill(tensor)
        return model

    def skeleton(self) -> ModelProto:
        """The model with the initialisers as they are, hollow ones too."""
        model = ModelProto()
        model.CopyFrom(self.shell)
        sparse = self.sparse()
        nodes, tensors = rebuild(self.nodes, self.tensors, sparse)
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(t for n, t in tensors.items() if n not in sparse)
        model.graph.sparse_initializer.extend(sparse[n].proto for n in tensors if n in sparse)
        self._list_inputs(model, tensors)
        return model

    def _list_inputs(self, model: ModelProto, tensors: Mapping[str, TensorProto]) -> None:
        """Sizes of the initialisers that are listed as inputs; all are listed before IR version 4."""
        listed = {i.name: i for i in model.graph.input}
        for name, tensor in tensors.items():
            if name in listed:
                for dim, size in zip(listed[name].type.tensor_type.shape.dim, tensor.dims, strict=False):
                    dim.dim_value = size
            elif model.ir_version < 4:
                model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the model, one constant in memory at a time: as one file, or, where it is too large for that or came
        that way, beside a file `NAME.data`. Files are whole or absent. Returns the bytes written.
        """
        target = Path(path)
        if self.is_large or (self.files and (target.is_file() or not target.exists())):
            return write_external(self, target)
        return write_atomic(target, serialize(self.to_proto()))

    @cached_property
    def is_large(self) -> bool:
        """Whether the model is too large to be one file."""
        return self.size_bytes() > MAX_PROTO_BYTES

    def params(self) -> int:
        """Number of elements stored, bodies of control flow included: floats, and integers that stand for reals. What
        `params` means everywhere.
        """
        from onnxprune.quantization import stands_for_reals

        named = [n for n, t in self.tensors.items() if t.data_type in FLOATS]
        named += [n for n, t in self.constants.items() if t.data_type not in FLOATS and stands_for_reals(self, n)]
        others = [*(t.values for t in self.shell.graph.sparse_initializer), *tensors_in(self.nodes)]
        return sum(map(self.entries, named)) + sum(int(np.prod(t.dims)) for t in others if t.data_type in FLOATS)

    def size_bytes(self) -> int:
        """Size of the model as one file."""
        nodes, tensors = rebuild(self.nodes, self.tensors, self.sparse())
        shell = ModelProto()
        shell.CopyFrom(self.shell)
        self._list_inputs(shell, tensors)
        sizes = [n.ByteSize() for n in nodes] + [self._tensor_bytes(t) for t in tensors.values()]
        parts = shell.graph.ByteSize() + sum(map(_field_bytes, sizes))
        return int(shell.ByteSize()) - _field_bytes(shell.graph.ByteSize()) + _field_bytes(parts)

    def _tensor_bytes(self, tensor: TensorProto) -> int:
        source = self.sources.get(tensor.name)
        if source is None:
            return int(tensor.ByteSize())
        if isinstance(source, Sparse):
            return source.nbytes
        location = 0 if isinstance(source, External) else 2  # bytes of the field `data_location`, which is then cleared
        return int(tensor.ByteSize()) - location + _field_bytes(source.nbytes)

    def fingerprint(self) -> str:
        """A hash of the structure (not of the weights' values): equal for the file that a plan was made for."""
        return hashlib.sha256(outline(self).encode()).hexdigest()[:16]


def _is_hollow(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _field_bytes(size: int) -> int:
    """Bytes that a field of `size` bytes takes in protobuf's format: tag, length, content."""
    return 1 + max(1, -(-size.bit_length() // 7)) + size


def from_proto(
    model: ModelProto,
    sources: Mapping[str, Source] | None = None,
    files: tuple[Path, ...] = (),
    libraries: tuple[Path, ...] = (),
) -> Graph:
    """A Graph over a ModelProto, which is not changed; tensors are shared with it, not copied. Hollow ones need
    `sources`.
    """
    shell = ModelProto()
    for descriptor, value in model.ListFields():
        if descriptor.name == "graph":
            for sub, part in value.ListFields():
                if sub.name not in ("node", "initializer", "sparse_initializer"):
                    _copy_field(shell.graph, sub, part)
        else:
            _copy_field(shell, descriptor, value)
    shell.graph.sparse_initializer.extend(t for t in model.graph.sparse_initializer if not readable(t))
    nodes, tensors, sparse = flatten(model.graph)
    return Graph(shell, nodes, tensors, {**(sources or {}), **sparse}, files, libraries)


def _copy_field(target: Any, descriptor: Any, value: Any) -> None:
    if descriptor.is_repeated if hasattr(descriptor, "is_repeated") else descriptor.label == descriptor.LABEL_REPEATED:
        getattr(target, descriptor.name).extend(value)
    elif descriptor.message_type is not None:
        getattr(target, descriptor.name).CopyFrom(value)
    else:
        setattr(target, descriptor.name, value)


def outline(graph: Graph) -> str:
    """One stable text of a graph: inputs, constants with shapes, nodes with attributes, outputs. For tests, hashes and
    diffs.
    """
    lines, sparse = [f"in {i.name}: {_type_text(i.type)}" for i in graph.inputs], graph.sparse()
    lines += [
        f"const {n}: {'sparse ' * (n in sparse)}{TensorProto.DataType.Name(t.data_type).lower()}{list(t.dims)}"
        for n, t in graph.tensors.items()
    ]
    for node, wires in zip(graph.nodes, graph.wires, strict=True):
        attrs = ", ".join(sorted([_attribute_text(a) for a in node.attribute]))
        made, read = ", ".join(wires.outputs), ", ".join(wires.inputs)
        lines.append(f"{made} = {node.op_type}({read})" + (f" {{{attrs}}}" if attrs else ""))
    return "\n".join(lines + [f"out {o.name}: {_type_text(o.type)}" for o in graph.outputs])


def _attribute_text(a: AttributeProto) -> str:
    if a.type == AttributeProto.TENSOR:
        return f"{a.name}={TensorProto.DataType.Name(a.t.data_type).lower()}{list(a.t.dims)}"
    return str(helper.printable_attribute(a))


def _type_text(kind: onnx.TypeProto) -> str:
    t = kind.tensor_type
    dims = [d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in t.shape.dim]
    return f"{TensorProto.DataType.Name(t.elem_type).lower()}{dims}".replace("'", "")


def byte_size(model: ModelProto) -> int:
    """Size of a model as one file."""
    try:
        return int(model.ByteSize())
    except EncodeError:
        return from_proto(model).size_bytes()


def save(model: ModelProto, path: str | os.PathLike[str]) -> int:
    """Write a model beside `path`, then rename: the file is whole or absent. Returns its size in bytes."""
    if byte_size(model) > MAX_PROTO_BYTES:
        return from_proto(model).save(path)
    return write_atomic(Path(path), serialize(model))
