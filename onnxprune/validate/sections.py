"""The surgery check of a graph that rounds activations to integers, or picks entries by rank, section by section.

A value that lies at a tie goes up or down with the order of a sum, and all that follows goes with it. So two right
graphs may differ by a step, and a tolerance that lets steps pass lets mistakes pass. But ties are no matter if both
graphs are cut where values enter a rounding, and every section of the pruned one starts from what the masked original
had there, reduced to the kept units:

    sum -> x        x -> QuantizeLinear -> y -> DequantizeLinear -> Conv -> z        z -> QuantizeLinear -> ...

The rounding at the start of a section gets the very numbers that the original rounded, in the same kernel, so y must be
the same integers. From there to the next entry z nothing is rounded to integers, so z is as close as floats are. All
sections run at once: entries are inputs, what they should be are outputs. It is the same with TopK and its like, whose
scores may be all but equal.

Left out are roundings inside of bodies of control flow, where nothing can be fed in: `Cuts.left`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxprune.dims import Dim, Expr, Mask, Prod, is_frozen, keep, resolve
from onnxprune.flow import inner_names
from onnxprune.graph import Graph
from onnxprune.inference import TypedGraph
from onnxprune.quantization import rounds
from onnxprune.sessions import Feeds, program, session, watched
from onnxprune.validate.closeness import (
    NOISE_FACTOR,
    NOISE_LIMIT,
    STEP,
    TOLERANCE,
    Slack,
    base_tolerance,
    in_steps,
    relative_error,
    steps_apart,
)

MADE = "section."  # before the name of a tensor at whose place there is an input
FEED_BYTES = 1 << 30  # tensors watched for one feed; larger feeds are left out, but for the first
_SEEN = "FLOAT DOUBLE FLOAT16 INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64 BOOL"
OBSERVABLE = frozenset(TensorProto.DataType.Value(k) for k in _SEEN.split())  # what ONNX Runtime hands over as arrays


PICKING = frozenset(("TopK", "NonMaxSuppression", "ArgMax", "ArgMin", "NonZero", "Unique"))


def picks(node: NodeProto) -> bool:
    """Whether a node picks entries by rank, or by whether they are zero."""
    return node.op_type in PICKING


@dataclass(frozen=True)
class Cuts:
    """Tensors that enter a rounding or a choice, tensors that these make, and the nodes that round where one cannot
    cut.
    """

    entries: tuple[str, ...]
    results: tuple[str, ...]
    left: tuple[str, ...]


def find_cuts(typed: TypedGraph, reference: Graph, pruned: Graph) -> Cuts:
    """Where the roundings and choices of `pruned` can be cut off, in it and in `reference`."""
    inner = inner_names(pruned.nodes) | inner_names(reference.nodes)
    seen = {n for n in typed.axes if typed.facts.dtypes.get(n) in OBSERVABLE}
    fit = seen & reference.producer.keys() & pruned.producer.keys() - inner
    made = pruned.producer.keys() - pruned.constants.keys()
    entries: dict[str, None] = {}
    results: dict[str, None] = {}
    left: list[str] = []
    for node in (n for n in pruned.nodes if rounds(n) or picks(n)):
        taken = dict.fromkeys(n for n in node.input if n in made)
        if taken.keys() <= fit and not inner.intersection(node.output):
            entries |= taken
            results |= dict.fromkeys(n for n in node.output if n in fit)
        elif rounds(node):
            left.append(node.name or node.output[0])
    return Cuts(tuple(entries), tuple(results), tuple(left))


def sectioned(graph: Graph, entries: Iterable[str], kinds: Mapping[str, int]) -> Graph:
    """`graph` with every entry as an input; what was made in its place is called `section.` and its name."""
    cut = set(entries)
    shell = ModelProto()
    shell.CopyFrom(graph.shell)
    del shell.graph.value_info[:]
    for name in entries:
        shell.graph.input.add(name=name).type.tensor_type.elem_type = kinds[name]
    for output in shell.graph.output:
        output.name = _made(output.name, cut)
    nodes = [_renamed(n, cut) if cut.intersection(n.output) else n for n in graph.nodes]
    return graph.replace(nodes, graph.tensors, shell)


def _made(name: str, cut: set[str]) -> str:
    return MADE + name if name in cut else name


def _renamed(node: NodeProto, cut: set[str]) -> NodeProto:
    made = NodeProto()
    made.CopyFrom(node)
    made.output[:] = [_made(n, cut) for n in node.output]
    return made


def _itemsize(kind: int | None) -> int:
    return int(helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT if kind is None else kind).itemsize)


def mask_of_length(axis: Expr, masks: dict[Dim, Mask], n: int) -> Mask:
    """The keep-mask of an axis that has `n` indices in this run: what a product of dims has more or less of than it was
    traced with, its factor that varies has.
    """
    axis = resolve(axis)
    if axis.size == n or not isinstance(axis, Prod):
        return keep(axis, masks)
    varying = next(k for k, f in enumerate(axis.factors) if is_frozen(f) and n % (axis.size // f.size) == 0)
    found = np.ones(1, bool)
    for k, f in enumerate(axis.factors):
        mask = np.ones(n * f.size // axis.size, bool) if k == varying else keep(f, masks)
        found = np.logical_and.outer(found, mask).reshape(-1)
    return found


@dataclass(frozen=True)
class Finding:
    """The worst of what was compared: how far off, how far it may be, and what it is."""

    error: float
    tolerance: float
    detail: str


class Sections:
    """Both graphs, cut at the entries of their roundings. `slack`: how errors of the outputs are read, by name."""

    def __init__(
        self,
        typed: TypedGraph,
        masks: dict[Dim, Mask],
        reference: Graph,
        pruned: Graph,
        cuts: Cuts,
        slack: Mapping[str, Slack],
    ) -> None:
        self.typed, self.masks, self.reference, self.cuts, self.slack = typed, masks, reference, cuts, dict(slack)
        self.watched = list(dict.fromkeys([*cuts.entries, *cuts.results, *slack]))
        self._outputs = set(slack)
        self._made = self._session(pruned)

    @cached_property
    def _whole(self) -> ort.InferenceSession:
        return session(program(watched(self.reference, self.watched)), exact=True)

    def _want(self, feed: Feeds) -> dict[str, Any]:
        """What the masked original has, without ONNX Runtime's optimisations where these break it."""
        try:
            return self._run(self._whole, self.watched, feed)
        except Exception:  # what is wrong with the model itself is said by the second run
            self._whole = session(program(watched(self.reference, self.watched)), optimise=False, exact=True)
            return self._run(self._whole, self.watched, feed)

    def _session(self, graph: Graph, optimise: bool = True) -> ort.InferenceSession:
        made = sectioned(graph, self.cuts.entries, self.typed.facts.dtypes)
        return session(program(watched(made, self._labels)), optimise=optimise, exact=True)

    @cached_property
    def _labels(self) -> list[str]:
        cut = set(self.cuts.entries)
        return [_made(n, cut) for n in self.watched]

    def check(self, feeds: Sequence[Feeds]) -> Finding:
        """The worst tensor over all feeds but those whose tensors would be too large to be held."""
        tried = ((k, f) for k, f in enumerate(feeds) if k == 0 or self._bytes(f) <= FEED_BYTES)
        found = (row for k, f in tried for row in self._compare(k, f))
        return max(found, key=lambda r: r.error / r.tolerance)

    def _bytes(self, feed: Feeds) -> float:
        """About how much the watched tensors take for a feed: what they took in the trace, and as many times more as
        the largest input.
        """
        facts = self.typed.facts
        traced = sum(math.prod(facts.shapes.get(n, ())) * _itemsize(facts.dtypes.get(n)) for n in self.watched)
        shapes = facts.binding.shapes
        ratios = [a.size / max(math.prod(shapes.get(n, a.shape)), 1) for n, a in feed.items()]
        return traced * max(ratios, default=1.0)

    def _compare(self, k: int, feed: Feeds) -> Iterable[Finding]:
        want = self._want(feed)
        kept = {n: self._kept(n, a) for n, a in want.items()}
        try:
            got = self._run(self._made, self._labels, feed | {n: kept[n] for n in self.cuts.entries})
        except Exception as refusal:  # ONNX Runtime's own exceptions share no base class
            yield Finding(np.inf, TOLERANCE, f"ONNX Runtime, which refuses the kept units of the original: {refusal}")
            return
        noise: dict[str, float] | None = None
        for name, a in kept.items():
            error, tolerance = self._error(name, a, got[name]), base_tolerance([a])
            if tolerance < error <= NOISE_LIMIT:
                noise = self._noise(feed, want) if noise is None else noise
                tolerance = max(tolerance, NOISE_FACTOR * noise[name])
            yield Finding(error, tolerance, f"{self._what(name)}, input {k}")

    def _run(self, job: ort.InferenceSession, labels: Sequence[str], feed: Feeds) -> dict[str, Any]:
        return dict(zip(self.watched, job.run(labels, feed), strict=True))

    def _kept(self, name: str, array: Any) -> Any:
        """A tensor of the masked original without the removed units."""
        if not isinstance(array, np.ndarray):
            return array
        for k, e in enumerate(self.typed.axes.get(name, [])):
            if not keep(e, self.masks).all():
                array = np.compress(mask_of_length(e, self.masks, array.shape[k]), array, axis=k)
        return array

    def _error(self, name: str, want: Any, got: Any) -> float:
        """Of floats relative to the largest entry; integers must be the same, unless they are an output."""
        if name not in self._outputs and want.dtype.kind != "f":
            return steps_apart(want, got)
        if name not in self.slack:
            self.slack[name] = Slack(step=STEP if in_steps(self.typed.graph, name) else 0.0)
        return relative_error(want, got, self.slack[name])

    def _noise(self, feed: Feeds, want: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """How far each tensor of the masked original moves without optimisations, section by section. Inputs are not
        nudged: roundings would answer with steps.
        """
        given = feed | {n: want[n] for n in self.cuts.entries}
        plain = self._run(self._session(self.reference, optimise=False), self._labels, given)
        return {n: self._error(n, want[n], plain[n]) for n in want}

    def _what(self, name: str) -> str:
        if name in self._outputs:
            return f"output {name!r}"
        return f"tensor {name!r}, which a rounding or choice makes" if name in self.cuts.results else f"tensor {name!r}"
