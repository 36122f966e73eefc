"""The means of units without any data, from the BatchNormalizations that are still in a graph.

What a BatchNormalization makes has mean beta and deviation gamma, whatever comes in. So each channel is sampled at
quantiles of that normal distribution, and the nodes that work entry by entry are evaluated on the samples: the mean of
what comes out is that of a rectified, clipped, gated ... Gaussian (Nagel et al. 2019, "Data-free quantization through
weight equalization and bias correction"). Averages over positions keep the mean. Anything else ends the knowledge.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.evaluate import evaluate
from onnxprune.graph import Graph
from onnxprune.inference import TypedGraph
from onnxprune.nodes import attributes, operator
from onnxprune.rules import RULES, elementwise

Array = NDArray[Any]
QUANTILES = 256
AVERAGES = ("GlobalAveragePool", "AveragePool", "ReduceMean")
ENTRYWISE = (elementwise.same, elementwise.broadcast, elementwise.prelu, elementwise.dropout)


def channel_means(typed: TypedGraph, seed: int = 0) -> dict[str, Array]:
    """For every tensor of which they are known, the means of its channels, (C,), axis 1."""
    samples: dict[str, Array] = {}
    rng = np.random.default_rng(seed)
    for i in range(len(typed.graph.nodes)):
        made = _sampled(typed, i, samples, rng)
        if made is not None and np.isfinite(made).all():
            samples[typed.graph.nodes[i].output[0]] = made
    return {n: a.astype(np.float64).mean(0).reshape(-1) for n, a in samples.items()}


def _sampled(typed: TypedGraph, i: int, samples: Mapping[str, Array], rng: np.random.Generator) -> Array | None:
    """Samples (QUANTILES, C, 1, ...) of the first output of node i."""
    graph, node = typed.graph, typed.graph.nodes[i]
    name = node.output[0] if node.output else ""
    shape = typed.facts.shapes.get(name)
    if shape is None or len(shape) < 2:
        return None
    if operator(node) == "BatchNormalization":
        return _normal(graph, node, len(shape), rng)
    if not node.input or (node.input[0] not in samples and not any(n in samples for n in node.input)):
        return None
    if operator(node) in AVERAGES:
        return _average(typed, node, samples)
    if operator(node) in ("Flatten", "Reshape", "Squeeze"):
        given = samples.get(node.input[0])
        alike = given is not None and typed.facts.shapes[node.input[0]][2:] == (1,) * (given.ndim - 2)
        return given.reshape(given.shape[:2]) if given is not None and alike and shape[1:] == given.shape[1:2] else None
    if RULES.get(operator(node)) not in ENTRYWISE:
        return None
    return _entrywise(graph, node, len(shape), samples)


def _normal(graph: Graph, node: NodeProto, rank: int, rng: np.random.Generator) -> Array | None:
    """Quantiles of every channel, each in an order of its own."""
    if any(n not in graph.constants for n in node.input[1:3]) or attributes(node).get("training_mode", 0):
        return None
    gamma, beta = (graph.array(n).astype(np.float64) for n in node.input[1:3])
    steps = rng.permuted(np.tile(quantiles()[:, None], (1, gamma.size)), axis=0)
    return np.asarray(beta + np.abs(gamma) * steps, np.float32).reshape(QUANTILES, -1, *[1] * (rank - 2))


def quantiles() -> Array:
    """Values of a standard normal variable that stand for equal shares of it, with mean 0 and variance 1."""
    values = np.array([NormalDist().inv_cdf((k + 0.5) / QUANTILES) for k in range(QUANTILES)])
    return np.asarray(values / values.std())


def _average(typed: TypedGraph, node: NodeProto, samples: Mapping[str, Array]) -> Array | None:
    """The mean of each channel; of averages over the axes after the channels only."""
    given, rank = samples.get(node.input[0]), len(typed.facts.shapes[node.output[0]])
    before = len(typed.facts.shapes[node.input[0]])
    padded = any(attributes(node).get("pads", [])) and attributes(node).get("count_include_pad", 0)
    if given is None or padded or attributes(node).get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return None
    if operator(node) == "ReduceMean":
        axes = attributes(node).get("axes") or (
            typed.facts.static(node.input[1]) if len(node.input) > 1 and node.input[1] else None
        )
        if axes is None or any(int(a) % before < 2 for a in axes):
            return None
    return np.asarray(
        np.broadcast_to(given.mean(0, keepdims=True), given.shape).reshape(*given.shape[:2], *[1] * (rank - 2))
    )


def _entrywise(graph: Graph, node: NodeProto, rank: int, samples: Mapping[str, Array]) -> Array | None:
    """The node, evaluated on samples; constants may vary along the channels only."""
    inputs: list[Array | None] = []
    for name in node.input:
        if name in graph.constants:
            array = graph.array(name)
            wide = array.ndim == rank and any(n > 1 for k, n in enumerate(array.shape) if k != 1)
            if wide or (0 < array.ndim < rank and array.shape[0] != array.size and array.size > 1):
                return None
            inputs.append(array)
        elif name:
            if name not in samples:
                return None
            inputs.append(samples[name])
        else:
            inputs.append(None)
    if operator(node) in ("Dropout", "Identity"):
        return inputs[0]
    made = evaluate(node, inputs, attributes(node), graph.opsets.get("", 1))
    channels = next(a.shape for a in inputs if a is not None and a.ndim == rank)
    return made[0] if made and made[0].shape[:2] == channels[:2] else None
