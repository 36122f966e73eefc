"""Time to type every dim of a graph of some 6,000 nodes, against onnx's own shape inference of the same graph.

    python benchmarks/bench_analysis.py [MODEL.onnx | NODES]

Without a model: a stack of transformer blocks as exporters write them. Printed: both times in one run, median of five,
and the time for each node. The targets are typing <= shape inference + 1 s for the 6,000, and a time for each node that
does not grow with the graph.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.graph import from_proto
from onnxprune.inference import infer
from onnxprune.reading import load
from onnxprune.trace import trace

NODES, BLOCK_NODES = 6600, 20
WIDTH, TOKENS, HEADS = 64, 16, 4


def synthetic(blocks: int) -> ModelProto:
    """Pre-norm transformer blocks with the attention written out, over one residual stream."""
    rng = np.random.default_rng(0)
    nodes, tensors = [], []

    def weight(name: str, *shape: int) -> str:
        tensors.append(numpy_helper.from_array((rng.standard_normal(shape) / 8).astype(np.float32), name))
        return name

    def op(kind: str, out: str, *inputs: str, **attrs: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [out], name=out, **attrs))
        return out

    tensors.append(numpy_helper.from_array(np.array([1, TOKENS, HEADS, WIDTH // HEADS]), "split"))
    tensors.append(numpy_helper.from_array(np.array([1, TOKENS, WIDTH]), "join"))
    x = op("MatMul", "embed", "input", weight("w.embed", 8, WIDTH))
    for b in range(blocks):
        n = op("LayerNormalization", f"{b}.n", x, weight(f"{b}.n.w", WIDTH), weight(f"{b}.n.b", WIDTH))
        heads = {}
        for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            y = op(
                "Add",
                f"{b}.{part}.a",
                op("MatMul", f"{b}.{part}", n, weight(f"{b}.{part}.w", WIDTH, WIDTH)),
                f"{b}.n.b",
            )
            heads[part] = op("Transpose", f"{b}.{part}.t", op("Reshape", f"{b}.{part}.r", y, "split"), perm=perm)
        s = op("Softmax", f"{b}.s", op("MatMul", f"{b}.qk", heads["q"], heads["k"]), axis=-1)
        a = op("Transpose", f"{b}.at", op("MatMul", f"{b}.av", s, heads["v"]), perm=[0, 2, 1, 3])
        o = op("MatMul", f"{b}.o", op("Reshape", f"{b}.ar", a, "join"), weight(f"{b}.o.w", WIDTH, WIDTH))
        x = op("Add", f"{b}.x", x, o)
    op("MatMul", "output", x, weight("w.out", WIDTH, 4))
    info = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, TOKENS, k]) for n, k in (("input", 8), ("output", 4))
    ]
    graph = helper.make_graph(nodes, "synthetic", info[:1], info[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def median(run: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    given = sys.argv[1] if len(sys.argv) > 1 else str(NODES)
    model = synthetic(int(given) // BLOCK_NODES) if given.isdigit() else load(given).to_proto()
    graph = from_proto(model)
    onnx_s = median(lambda: onnx.shape_inference.infer_shapes(model))
    typing_s = median(lambda: infer(graph, trace(graph)).dims)
    print(f"{len(graph.nodes)} nodes: inference {onnx_s:.2f} s, typing {typing_s:.2f} s ({typing_s - onnx_s:+.2f} s),")
    print(f"{typing_s / len(graph.nodes) * 1e6:.0f} microseconds for each node")


if __name__ == "__main__":
    main()
