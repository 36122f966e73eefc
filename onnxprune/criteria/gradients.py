"""Gradients of a loss with respect to gates: how the output reacts to a unit, to first order.

A gate of ones is multiplied into every activation where units are combined (one factor per index of the axis), the
graph is differentiated with respect to the gates by the package onnx-ad, and ONNX Runtime runs the result: for each
sample and unit the sum of gradient times activation (Molchanov et al. 2019, "Importance estimation for neural network
pruning"; Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning"). The graph itself is not
touched. On the first samples every gate is compared with a finite difference, so a wrong derivative is not believed.

The loss is that of `losses.loss_gradient`. Left out: recurrent layers read their hidden state inside of themselves,
where no gate is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from onnxprune.adjoint import OTHERS, PREFIX, differentiate, has_batch, opened
from onnxprune.errors import InputError
from onnxprune.feeds import Binding, Shape
from onnxprune.graph import FLOATS, Graph
from onnxprune.losses import loss_gradient
from onnxprune.sessions import Feeds, Program, session
from onnxprune.trace import trace
from onnxprune.writing import serialize

Array = NDArray[Any]
SAMPLES = 256  # more say little more
KEPT_PROGRAMS = 8  # for data of several shapes
CHECKED = 2  # samples
STEPS = (1e-3, 1e-2)  # of finite differences: the short one meets fewer kinks, the long one less rounding
DISAGREEMENT = 0.3  # of the gradient, at both: a wrong derivative is far off
ROUNDING = 4e-6  # of the outputs: what a float32 network may differ by from run to run
SMALL = 1e-2  # of the largest gradient: gates that are not compared
Place = tuple[str, int]


@dataclass(frozen=True)
class Gradients:
    """With respect to the gate of each index of an activation's axis, by (tensor, axis): (samples, size); `feeds`
    (samples,) numbers the feed that each sample came in.
    """

    values: Mapping[Place, Array]
    feeds: NDArray[np.int64]


def gate_gradients(
    graph: Graph,
    gates: Sequence[tuple[int, int, int]],
    feeds: Iterable[tuple[Feeds, Array | None]],
    curvature: bool = False,
    seed: int = 0,
    who: str = "the criterion",
) -> Gradients:
    """Gradients for gates at (node, input, axis), on feeds and their class numbers (None: none are known). InputError
    where onnx-ad cannot differentiate.
    """
    if graph.is_large:
        raise InputError(f"{who} takes gradients, which models above 2 GB are too large for: {OTHERS}")
    programs: dict[tuple[Shape, ...], _Adjoint] = {}
    found: dict[Place, list[Array]] = {}
    numbers: list[int] = []
    rng = np.random.default_rng(seed)
    for k, sample, label in _samples(graph, feeds):
        shapes = tuple(a.shape for a in sample.values())
        if shapes not in programs:
            if len(programs) == KEPT_PROGRAMS:
                programs.clear()
            programs[shapes] = _Adjoint(graph, gates, {n: a.shape for n, a in sample.items()}, who)
        for place, gradient in programs[shapes].run(sample, label, curvature, rng, len(numbers) < CHECKED).items():
            found.setdefault(place, []).append(gradient)
        numbers.append(k)
        if len(numbers) == SAMPLES:
            break
    return Gradients({p: np.stack(g) for p, g in found.items()}, np.array(numbers, np.int64))


def _samples(graph: Graph, feeds: Iterable[tuple[Feeds, Array | None]]) -> Iterator[tuple[int, Feeds, Array | None]]:
    """Single samples where every input has a free first axis, else whole feeds."""
    ranked = [v for v in graph.inputs if v.type.tensor_type.shape.dim]
    free = has_batch(graph)
    for k, (feed, labels) in enumerate(feeds):
        lengths = {feed[v.name].shape[0] for v in ranked}
        if not free or len(lengths) != 1:
            yield k, feed, labels
            continue
        for i in range(lengths.pop()):
            alone = {n: a[i : i + 1] if a.ndim else a for n, a in feed.items()}
            yield k, alone, None if labels is None else labels[i : i + 1]


class _Adjoint:
    """The graph and its derivative at fixed input shapes."""

    def __init__(
        self, graph: Graph, gates: Sequence[tuple[int, int, int]], shapes: Mapping[str, Shape], who: str
    ) -> None:
        self.who = who
        model, self.ones, self.places = _gated(graph, gates, shapes)
        self.outputs = [o.name for o in model.graph.output if o.type.tensor_type.elem_type in FLOATS]
        made = differentiate(model, list(self.ones), self.outputs, who)
        self.session, self.plain = (session(Program(serialize(m), libraries=graph.libraries)) for m in (made, model))

    def run(
        self, sample: Feeds, label: Array | None, curvature: bool, rng: np.random.Generator, check: bool
    ) -> dict[Place, Array]:
        given = sample | self.ones
        outputs = dict(zip(self.outputs, self.plain.run(self.outputs, given), strict=True))
        seeds = loss_gradient(outputs, label, curvature, rng)
        given |= {PREFIX + n: seeds.get(n, np.zeros_like(y))[..., None] for n, y in outputs.items()}
        wanted = [PREFIX + n for n in self.ones]
        found = {n: g[..., 0] for n, g in zip(self.ones, self.session.run(wanted, given), strict=True)}
        if check:
            self._compare(found, sample, outputs, seeds)
        return {self.places[n]: g.reshape(-1) for n, g in found.items()}

    def _compare(
        self, found: Mapping[str, Array], sample: Feeds, outputs: Mapping[str, Array], seeds: Mapping[str, Array]
    ) -> None:
        """Each gradient against the difference of the loss when its gate moves along it."""
        rounding = ROUNDING * sum(float(np.linalg.norm(outputs[n] * s)) for n, s in seeds.items())
        largest = max((float(np.abs(g).max(initial=0)) for g in found.values()), default=0.0)
        for name, g in found.items():
            top = float(np.abs(g).max(initial=0))
            if top <= SMALL * largest:
                continue
            along = g / top
            want = float((g * along).sum(dtype=np.float64))
            for step in STEPS:
                ends = [
                    self._loss(sample | self.ones | {name: self.ones[name] + s * along}, seeds) for s in (step, -step)
                ]
                got = (ends[0] - ends[1]) / (2 * step)
                if abs(want - got) <= DISAGREEMENT * abs(want) + rounding / step:
                    break
            else:
                raise InputError(
                    f"{self.who} cannot be trusted for this model: at {self.places[name][0]!r} the gradient of onnx-ad"
                    f" is {want:.3g}, the difference of the outputs {got:.3g}; {OTHERS}"
                )

    def _loss(self, given: Feeds, seeds: Mapping[str, Array]) -> float:
        names = list(seeds)
        outputs = self.plain.run(
            names, {n: a.astype(self.ones[n].dtype) if n in self.ones else a for n, a in given.items()}
        )
        return sum(float((y.astype(np.float64) * seeds[n]).sum()) for n, y in zip(names, outputs, strict=True))


def _gated(
    graph: Graph, gates: Sequence[tuple[int, int, int]], shapes: Mapping[str, Shape]
) -> tuple[ModelProto, Feeds, dict[str, Place]]:
    """The model at fixed shapes with gates as further inputs, their values, and the place of each."""
    facts = trace(graph, (Binding(shapes), Binding(shapes)))
    inputs: Feeds = {}
    places: dict[Place, str] = {}
    gated: dict[str, str] = {}
    nodes: list[NodeProto] = []
    by_node: dict[int, list[tuple[int, int]]] = {}
    for i, j, axis in gates:
        by_node.setdefault(i, []).append((j, axis))
    for i, node in enumerate(graph.nodes):
        made = NodeProto()
        made.CopyFrom(node)
        for j, axis in by_node.get(i, []):
            tensor = node.input[j]
            name = places.setdefault((tensor, axis), f"onnxprune.gate.{len(places)}")
            shape = facts.shapes[tensor]
            inputs[name] = np.ones(
                [n if k == axis else 1 for k, n in enumerate(shape)][axis:],
                helper.tensor_dtype_to_np_dtype(facts.dtypes[tensor]),
            )
            nodes.append(helper.make_node("Mul", [made.input[j], name], [f"{name}.{i}.{j}"]))
            made.input[j] = f"{name}.{i}.{j}"
            gated[made.input[j]] = tensor
        nodes.append(made)
    return opened(graph, nodes, facts, inputs, gated), inputs, {n: p for p, n in places.items()}
