"""Time and peak memory of pruning a model that is larger than what one file, or the memory, may hold.

    python benchmarks/bench_large.py [--gb 8] [--layers 1000] [--check-gb 3]

A residual MLP of `--layers` layers with external data is written piece by piece into a temporary folder and pruned by
`onnxprune prune --ratio 0.5 --no-check` in a process of its own; a second one, of `--check-gb` GB, with the surgery
check (0: leave that out). Printed: seconds, file sizes, and peak memory (of anonymous and mapped pages together) above
an interpreter that only imports, next to the size of the largest constant. The target is a peak near the largest
constant plus what must be scored, whatever the size of the model.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

PEAK = "int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024"  # MB, of this process; Linux
BARE = f"import re, onnxprune.__main__; print({PEAK})"
PRUNE = f"import re, sys, onnxprune.__main__ as m; code = m.main(sys.argv[1:]); print({PEAK}); sys.exit(code)"
PAGE, INPUT = 4096, 64


def synthetic(path: Path, layers: int, gb: float) -> int:
    """Pairs of layers, width -> 2 width -> width, each with a residual; returns the bytes of the largest constant."""
    blocks = layers // 2
    width = int((gb * 2**30 / 4 / (4 * blocks)) ** 0.5)
    rng = np.random.default_rng(0)
    scale = np.float32(width**-0.5 * blocks**-0.25)  # keeps the residual stream finite
    noise = rng.standard_normal((width + 1, 2 * width), np.float32) * scale
    nodes, tensors, largest = [], [], 0

    with path.with_suffix(".data").open("wb") as file:

        def weight(name: str, *shape: int) -> str:
            nonlocal largest
            file.seek(-file.tell() % PAGE, 1)
            made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
            size = int(np.prod(shape))
            for key, value in (("location", file.name.rsplit("/")[-1]), ("offset", file.tell()), ("length", 4 * size)):
                made.external_data.add(key=key, value=str(value))
            start = int(rng.integers(2 * width))
            file.write(np.roll(noise.reshape(-1)[start : start + size], start).data)
            tensors.append(made)
            largest = max(largest, 4 * size)
            return name

        def gemm(out: str, *inputs: str) -> str:
            nodes.append(helper.make_node("Gemm", inputs, [out], name=out))
            return out

        x = gemm("stem", "input", weight("stem.w", INPUT, width))
        for b in range(blocks):
            up = gemm(f"{b}.up", x, weight(f"{b}.up.w", width, 2 * width))
            nodes.append(helper.make_node("Relu", [up], [f"{b}.relu"]))
            down = gemm(f"{b}.down", f"{b}.relu", weight(f"{b}.down.w", 2 * width, width))
            nodes.append(helper.make_node("Add", [x, down], [f"{b}.x"]))
            x = f"{b}.x"
        gemm("output", x, weight("output.w", width, 10))
    info = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", k]) for n, k in (("input", INPUT), ("output", 10))
    ]
    graph = helper.make_graph(nodes, "mlp", info[:1], info[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return largest


def peak(code: str, *args: str | Path) -> float:
    """Peak memory of a process in MB."""
    made = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    if made.returncode:
        sys.exit(f"{made.stdout}{made.stderr}")
    return float(re.findall(r"[\d.]+", made.stdout)[-1])


def measure(layers: int, gb: float, bare: float, *options: str) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-large-") as folder:
        source, target = Path(folder) / "in.onnx", Path(folder) / "out.onnx"
        largest = synthetic(source, layers, gb)
        start = time.perf_counter()
        memory = peak(PRUNE, "prune", source, "-o", target, "--ratio", "0.5", "-q", *options) - bare
        seconds = time.perf_counter() - start
        sizes = [sum(f.stat().st_size for f in Path(folder).glob(f"{p.stem}.*")) / 2**30 for p in (source, target)]
    command = " ".join(["prune --ratio 0.5", *options])
    print(f"{layers} layers, {command}: {seconds:.1f} s, {sizes[0]:.2f} GB -> {sizes[1]:.2f} GB")
    print(f"  peak memory above the imports: {memory:.0f} MB; the largest constant has {largest / 2**20:.0f} MB")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--gb", type=float, default=8)
    options.add_argument("--layers", type=int, default=1000)
    options.add_argument("--check-gb", type=float, default=3)
    given = options.parse_args()
    bare = peak(BARE)
    measure(given.layers, given.gb, bare, "--no-check")
    if given.check_gb:
        measure(given.layers, given.check_gb, bare)


if __name__ == "__main__":
    main()
