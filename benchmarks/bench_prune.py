"""Time and peak memory of `prune(ratio=0.5, check=False)` on a model of 80 M parameters, against load + check + save of
the same file.

    python benchmarks/bench_prune.py [MODEL.onnx]

Both run in processes of their own, in turn, three times each; printed are the medians, their ratio, and the peak memory
over the file's size. The targets are a ratio of at most 3 in time and a peak of at most 3 times the model's bytes
(above an interpreter that only imports).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BASE = "import onnx, onnxruntime, numpy, re, sys, time; import onnxprune; start = time.perf_counter();"
BARE = f"{BASE} pass;"
PLAIN = f"{BASE} m = onnx.load(sys.argv[1]); onnx.checker.check_model(m); onnx.save(m, sys.argv[2]);"
PRUNE = f"{BASE} r = onnxprune.prune(sys.argv[1], ratio=0.5, check=False); onnx.save(r.model, sys.argv[2]);"
PEAK = "int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024"  # of this process alone; Linux
REPORT = f"print(time.perf_counter() - start, {PEAK})"


def synthetic(path: Path) -> None:
    """A residual MLP: 19 blocks of 1024 -> 2048 -> 1024, 80 M parameters."""
    rng = np.random.default_rng(0)
    nodes, tensors, x = [], [], "input"

    def weight(name: str, *shape: int) -> str:
        tensors.append(numpy_helper.from_array(rng.standard_normal(shape, np.float32) / 32, name))
        return name

    x = "stem"
    nodes.append(helper.make_node("Gemm", ["input", weight("stem.w", 64, 1024)], [x]))
    for b in range(19):
        nodes.append(helper.make_node("Gemm", [x, weight(f"{b}.up", 1024, 2048), weight(f"{b}.b", 2048)], [f"{b}.h"]))
        nodes.append(helper.make_node("Relu", [f"{b}.h"], [f"{b}.r"]))
        nodes.append(helper.make_node("Gemm", [f"{b}.r", weight(f"{b}.down", 2048, 1024)], [f"{b}.d"]))
        nodes.append(helper.make_node("Add", [x, f"{b}.d"], [f"{b}.x"]))
        x = f"{b}.x"
    nodes.append(helper.make_node("Gemm", [x, weight("out.w", 1024, 10)], ["output"]))
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, k]) for n, k in (("input", 64), ("output", 10))]
    graph = helper.make_graph(nodes, "mlp", info[:1], info[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def once(code: str, source: Path, target: Path) -> tuple[float, float]:
    """Seconds after the imports, and peak memory in MB."""
    made = subprocess.run(
        [sys.executable, "-c", code + REPORT, source, target], capture_output=True, text=True, check=True
    )
    seconds, memory = made.stdout.split()
    return float(seconds), float(memory)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.onnx", Path(folder) / "out.onnx"
        if len(sys.argv) > 1:
            source = Path(sys.argv[1])
        else:
            synthetic(source)
        size = source.stat().st_size / 2**20
        bare = once(BARE, source, target)[1]
        rounds = [(once(PLAIN, source, target), once(PRUNE, source, target)) for _ in range(3)]
        plain, prune = (statistics.median(r[k][0] for r in rounds) for k in (0, 1))
        memory = statistics.median(r[1][1] for r in rounds) - bare
        print(
            f"{size:.0f} MB: load + check + save {plain:.2f} s, prune + save {prune:.2f} s, ratio {prune / plain:.2f}"
        )
        print(f"peak memory of prune above the imports: {memory:.0f} MB, {memory / size:.2f} times the model")


if __name__ == "__main__":
    main()
