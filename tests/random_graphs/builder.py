"""A graph under construction: a pool of float tensors, weights in many forms, and ends that let every axis go.

Every tensor has leading axes that come from the inputs (batch N, perhaps steps T; dynamic or fixed) and sample axes
after them, of which moves know the sizes. What nothing reads is weighed and summed over its sample axes into an output,
so that all of them may go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from tests.random_graphs.weights import FORMS

MAX_ELEMENTS = 300  # per sample
MAX_RANK = 4
WIDTH = 6  # of the input
SIZES = (2, 3, 4, 6, 8)
REFERENCE_OPSET = 28  # of graphs with operators that ONNX Runtime has no kernels for
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Tensor:
    """`lead`: names of the leading axes, which are dynamic, or sizes; `shape`: the sample axes."""

    name: str
    lead: tuple[str | int, ...]
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def at(self, k: int) -> int:
        """Sample axis k as an axis of the tensor."""
        return len(self.lead) + k


Ref = Tensor | str


def replaced(shape: Sequence[int], at: int, *sizes: int) -> tuple[int, ...]:
    """`shape` with other sizes in place of one."""
    return (*shape[:at], *sizes, *shape[at + 1 :])


class Builder:
    """`opset`: of the default domain; `batch`: the size of the first axis, None for a dynamic one; `steps`: whether
    there is a second leading axis, which is dynamic.
    """

    def __init__(self, rng: Random, opset: int, batch: int | None = None, steps: bool = False) -> None:
        self.rng, self.opset, self.batch = rng, opset, batch
        self.nodes: list[NodeProto] = []
        self.stored: list[TensorProto] = []
        self.sparse: list[SparseTensorProto] = []
        self.pool: list[Tensor] = []
        self.shared: dict[tuple[int, ...], list[str]] = {}
        self.domains: set[str] = set()
        self.flagged = False  # whether there is a boolean input
        self.inside = 0  # how many bodies are open
        self.valid = True  # whether the checker knows all operators
        self._numbers = count()
        lead: tuple[str | int, ...] = (batch or "N", "T") if steps else (batch or "N",)
        self.x = Tensor("x", lead, (WIDTH,))

    # nodes
    def name(self, stem: str = "t") -> str:
        return f"{stem}{next(self._numbers)}"

    def raw(self, kind: str, inputs: Sequence[Ref], outputs: int = 1, **attributes: Any) -> list[str]:
        """A node whose results are not put into the pool; `kind` carries its domain where that is another."""
        domain, _, op = kind.rpartition(".")
        self.domains |= {domain} if domain else set()
        names = [self.name() for _ in range(outputs)]
        given = [t if isinstance(t, str) else t.name for t in inputs]
        self.nodes.append(helper.make_node(op, given, names, name=f"n{names[0]}", domain=domain or None, **attributes))
        return names

    def one(self, kind: str, *inputs: Ref, **attributes: Any) -> str:
        """A node with one result that is not put into the pool."""
        return self.raw(kind, inputs, **attributes)[0]

    def op(self, kind: str, inputs: Sequence[Ref], like: Tensor, shape: Sequence[int], **attributes: Any) -> Tensor:
        """A node with one result in the pool, with the leading axes of `like`."""
        return self.add(self.raw(kind, inputs, **attributes)[0], like.lead, shape)

    def add(self, name: str, lead: Sequence[str | int], shape: Sequence[int]) -> Tensor:
        made = Tensor(name, tuple(lead), tuple(shape))
        self.pool.append(made)
        return made

    # constants
    def const(self, array: Any, kind: Any = np.float32) -> str:
        """An initialiser."""
        name = self.name("w")
        self.stored.append(numpy_helper.from_array(np.asarray(array, kind), name))
        return name

    def fixed(self, array: Any, kind: Any = np.float32) -> str:
        """A Constant node, for numbers that are no weights."""
        value = numpy_helper.from_array(np.asarray(array, kind))
        return self.one("Constant", value=value)

    def ints(self, *values: int, kind: Any = np.int64) -> str:
        return self.const(values, kind) if self.rng.random() < 0.8 else self.fixed(values, kind)

    def noise(self, *shape: int) -> Any:
        return np.random.default_rng(self.rng.randrange(1 << 30)).standard_normal(shape).astype(np.float32)

    def weight(self, *shape: int, fan: int = 0) -> str:
        """A weight, at times one that is used already, in one of the forms that weights come in; `fan`: over how many
        entries it is summed (default: its first axis).
        """
        if (known := self.shared.get(shape)) and self.rng.random() < 0.2:
            return self.rng.choice(known)
        array = self.noise(*shape) / math.sqrt(max(fan or (shape or (1,))[0], 1))
        names = [f for f in FORMS if f.since <= self.opset < REFERENCE_OPSET and len(shape) >= f.rank]
        names = [f for f in names if f.inside or not self.inside]
        form = self.rng.choices(names, [f.share for f in names])[0] if names else FORMS[0]
        self.shared.setdefault(shape, []).append(name := form.store(self, array))
        return name

    def plain(self, *shape: int, fan: int = 0) -> str:
        """A weight of its own, as an initialiser: where an operator wants its weights known."""
        return self.const(self.noise(*shape) / math.sqrt(max(fan or (shape or (1,))[0], 1)))

    def positive(self, *shape: int, low: float = 0.5) -> str:
        """Scales, variances: numbers of at least `low`, which are not to be zeroed."""
        return self.fixed(np.abs(self.noise(*shape)) + low)

    # tensors
    def pick(self, rank: int = 0, fits: Callable[[Tensor], bool] = lambda t: True, batched: bool = False) -> Tensor:
        """A tensor of at least one sample axis, of `rank` of them if that is given; `batched`: with one leading axis.
        One is made where there is none.
        """
        lead = 1 if batched else 0
        found = [t for t in self.pool if t.rank and t.rank == (rank or t.rank) and t.size <= MAX_ELEMENTS]
        found = [t for t in found if t.rank <= MAX_RANK and lead in (0, len(t.lead)) and fits(t)]
        if found and self.rng.random() < 0.85:
            return found[-1] if self.rng.random() < 0.4 else self.rng.choice(found)
        for _ in range(20):
            shape = [self.rng.choice(SIZES if k < 1 else SIZES[:3]) for k in range(rank or self.rng.randint(1, 3))]
            if fits(made := Tensor("", (0,) if batched else self.x.lead, tuple(shape))) and made.size <= MAX_ELEMENTS:
                return self.shaped(*shape, batched=batched)
        raise AssertionError("no shape fits")

    def shaped(self, *shape: int, batched: bool = False) -> Tensor:
        """A tensor of the given sample shape: an existing one, or made of one by a product and a Reshape."""
        lead = 1 if batched else 0
        same = [t for t in self.pool if t.shape == shape and lead in (0, len(t.lead))]
        if same and self.rng.random() < 0.5:
            return self.rng.choice(same)
        found = [t for t in self.pool if 1 <= t.size <= MAX_ELEMENTS and t.rank] or [self.x]
        source = self.flat(self.rng.choice(found[-4:]))
        source = self.batched(source) if batched else source
        wide = self.op("MatMul", [source, self.weight(source.size, math.prod(shape))], source, [math.prod(shape)])
        return self.reshape(wide, shape) if len(shape) != 1 else wide

    def mate(self, t: Tensor, *shape: int) -> Tensor:
        """A tensor of a given sample shape with the leading axes of `t`, which may be `t` itself."""
        found = [o for o in self.pool if o.lead == t.lead and o.shape == shape]
        if found and self.rng.random() < 0.6:
            return self.rng.choice(found)
        source = self.flat(t)
        wide = self.op("MatMul", [source, self.weight(source.size, math.prod(shape))], source, [math.prod(shape)])
        return self.reshape(wide, shape) if len(shape) != 1 else wide

    def flat(self, t: Tensor) -> Tensor:
        return t if t.rank == 1 else self.reshape(t, (t.size,))

    def reshape(self, t: Tensor, shape: Sequence[int]) -> Tensor:
        """Other sample axes, by sizes, or with one of them left to be told."""
        target = [*[0] * len(t.lead), *shape]
        open_axes = [k for k in range(len(target)) if k >= len(t.lead) or len(t.lead) == 1]
        if self.rng.random() < 0.5:
            target[self.rng.choice(open_axes)] = -1
        return self.op("Reshape", [t, self.ints(*target)], t, shape)

    def batched(self, t: Tensor) -> Tensor:
        """One leading axis: all of them merged."""
        if len(t.lead) == 1:
            return t
        return self.add(self.one("Reshape", t, self.ints(-1, *t.shape)), [f"{t.name}.all"], t.shape)

    def axis(self, t: Tensor) -> int:
        """A random sample axis, counted from 0."""
        return self.rng.randrange(t.rank)

    def size_of(self, t: Tensor, k: int = 0) -> str:
        """The size of an axis, shape (1,), measured at run time."""
        return self.one("Gather", self.one("Shape", t), self.fixed([k], np.int64))

    # operators whose operands became inputs
    def axes_op(self, kind: str, t: Ref, axes: Sequence[int], since: int, **attributes: Any) -> str:
        """Squeeze, Unsqueeze and Reduce*: axes are an attribute before opset `since`."""
        if self.opset < since:
            return self.one(kind, t, axes=list(axes), **attributes)
        return self.one(kind, t, self.ints(*axes), **attributes)

    def unsqueeze(self, t: Ref, *axes: int) -> str:
        return self.axes_op("Unsqueeze", t, axes, 13)

    def squeeze(self, t: Ref, *axes: int) -> str:
        return self.axes_op("Squeeze", t, axes, 13)

    def total(self, t: Ref, axes: Sequence[int], keepdims: int = 0) -> str:
        return self.axes_op("ReduceSum", t, axes, 13, keepdims=keepdims)

    def slice(self, t: Ref, axis: int, start: int, end: int, step: int = 1) -> str:
        if self.opset < 10:
            return self.one("Slice", t, axes=[axis], starts=[start], ends=[end])
        operands = [self.ints(v) for v in (start, end, axis, *[step] * (step != 1))]
        return self.one("Slice", t, *operands)

    def cast(self, t: Ref, to: int) -> str:
        return self.one("Cast", t, to=to)

    def float(self, t: Ref, like: Tensor, shape: Sequence[int]) -> Tensor:
        """An integer or boolean tensor as floats, into the pool."""
        return self.op("Cast", [t], like, shape, to=TensorProto.FLOAT)

    # the whole
    def unread(self) -> list[Tensor]:
        used = {n for node in self.nodes for n in names_in(node)}
        return [t for t in self.pool if t.name not in used and t.name != "x"]

    def model(self) -> ModelProto:
        """The graph with its ends."""
        outputs = [self._end(t) for t in self.unread()]
        info = helper.make_tensor_value_info
        inputs = [info("x", TensorProto.FLOAT, [*self.x.lead, *self.x.shape])]
        inputs += [info("flag", TensorProto.BOOL, [])] if self.flagged else []
        ends = [info(t.name, TensorProto.FLOAT, [None] * (len(t.lead) + t.rank)) for t in outputs]
        graph = helper.make_graph(self.nodes, "random", inputs, ends, self.stored, sparse_initializer=self.sparse)
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, 1) for d in sorted(self.domains))]
        ir = 4 if self.opset < 11 else 8 if self.opset < 21 else 10
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir)

    def _end(self, t: Tensor) -> Tensor:
        """What becomes of a tensor that nothing reads: a number for each sample, at times a vector, or itself."""
        draw = self.rng.random()
        if not t.rank or draw < 0.07:
            return t
        if draw < 0.2:
            return self.op("MatMul", [self.flat(t), self.weight(t.size, 3)], t, [3])
        weighed = self.one("Mul", t, self.weight(*t.shape, fan=t.size))
        return Tensor(self.total(weighed, [t.at(k) for k in range(t.rank)]), t.lead, ())


def names_in(node: NodeProto) -> list[str]:
    """Names that a node reads, its bodies included."""
    bodies: list[GraphProto] = [a.g for a in node.attribute if a.HasField("g")]
    inner = [n for g in bodies for n in [*(o.name for o in g.output), *(i for m in g.node for i in names_in(m))]]
    return [*node.input, *inner]
