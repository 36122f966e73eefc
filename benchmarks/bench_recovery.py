"""What pruning with recovery costs: a residual network of the size of ResNet-50 against one plain pass over its data.

    python benchmarks/bench_recovery.py [--images 512] [--size 224] [--macs 0.6] [--criterion obs]

The network (53 convolutions, random weights, BatchNormalization folded away) and random images are made on the spot.
ONNX Runtime runs over all images once before and once after `prune(..., data=...)`, without checks, so all is measured
in one process and run. Printed: wall and processor seconds of one pass (the mean of both) and of the whole call, that
of each pass of the pipeline, and the peak memory of the process. The target is a whole of at most ten passes and two
minutes, on two cores, below 6 GB.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.sessions import session

STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))  # blocks, width and stride of the bottlenecks
BATCH = 32


def synthetic(path: Path, size: int) -> None:
    """ResNet-50 by name and shape: bottlenecks of 1x1, 3x3 and 1x1 convolutions around a residual stream."""
    rng = np.random.default_rng(0)
    nodes: list[NodeProto] = []
    tensors: list[TensorProto] = []

    def conv(x: str, inputs: int, outputs: int, kernel: int, stride: int, relu: bool = True, gain: float = 2.0) -> str:
        name = f"conv{len(tensors) // 2}"
        weight = rng.standard_normal((outputs, inputs, kernel, kernel), np.float32)
        weight *= np.float32((gain / (inputs * kernel**2)) ** 0.5)
        tensors.append(numpy_helper.from_array(weight, f"{name}.w"))
        tensors.append(numpy_helper.from_array(rng.standard_normal(outputs, np.float32) * np.float32(0.1), f"{name}.b"))
        shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        nodes.append(helper.make_node("Conv", [x, f"{name}.w", f"{name}.b"], [name], name=name, **shape))
        if relu:
            nodes.append(helper.make_node("Relu", [name], [f"{name}.r"]))
        return f"{name}.r" if relu else name

    x, channels = conv("image", 3, 64, 7, 2), 64
    nodes.append(helper.make_node("MaxPool", [x], ["pool"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4))
    x = "pool"
    for blocks, width, stride in STAGES:
        for k in range(blocks):
            step = stride if k == 0 else 1
            inner = conv(conv(x, channels, width, 1, 1), width, width, 3, step)
            branch = conv(inner, width, 4 * width, 1, 1, relu=False, gain=0.5)
            stream = x if k else conv(x, channels, 4 * width, 1, step, relu=False, gain=1.0)
            nodes.append(helper.make_node("Add", [branch, stream], [f"{branch}.sum"]))
            nodes.append(helper.make_node("Relu", [f"{branch}.sum"], [f"{branch}.out"]))
            x, channels = f"{branch}.out", 4 * width
    tensors.append(numpy_helper.from_array(rng.standard_normal((channels, 1000), np.float32) / 50, "head"))
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "head"], ["logits"]))
    info = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, size, size]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1000]),
    ]
    graph = helper.make_graph(nodes, "resnet", info[:1], info[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def clock() -> np.ndarray:
    """Wall and processor seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def one_pass(path: Path, images: np.ndarray) -> np.ndarray:
    """Wall and processor seconds of ONNX Runtime over all images."""
    job = session(path)
    start = clock()
    for k in range(0, len(images), BATCH):
        job.run(None, {"image": images[k : k + BATCH]})
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--macs", type=float, default=0.6)
    parser.add_argument("--criterion", default="obs")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet.onnx"
        synthetic(path, given.size)
        images = np.random.default_rng(1).standard_normal((given.images, 3, given.size, given.size), np.float32)
        first = one_pass(path, images)
        start = clock()
        result = onnxprune.prune(
            path, macs=given.macs, criterion=given.criterion, data={"image": images}, samples=given.images, check=False
        )
        whole = clock() - start
        single = (first + one_pass(path, images)) / 2
    print(f"one pass over {given.images} images: {single[0]:.1f} s wall, {single[1]:.1f} s processor")
    print(f"prune and recover: {whole[0]:.1f} s wall, {whole[1]:.1f} s processor")
    for made in result.report.passes:
        if made.seconds > 1:
            print(f"    {made.name}: {made.seconds:.1f} s wall")
    minutes = whole - 10 * single
    print(f"{whole[0] / single[0]:.1f} passes; beyond ten passes: {minutes[0]:.0f} s (target: at most 120)")
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20  # type: ignore[index]
    print(f"peak memory {peak:.2f} GB (target: below 6)")


if __name__ == "__main__":
    main()
