"""Broken files: seeded mutations of a real small one. The command line says 0, 1 or 2 about each; it never crashes (3),
never raises, never hangs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.random import Generator
from onnx import ModelProto

from onnxprune.__main__ import main
from tests.common import build

MUTATIONS = int(os.environ.get("ONNXPRUNE_MUTATIONS", "60"))
SECONDS_EACH = 20  # a mutation takes far less than one; only a hang takes this long
NET = """(float[N,3,8,8] x) => (float[N,5] y) <float[8,3,3,3] A, float[8] s, float[8] b, float[8] m, float[8] v_pos,
  float[8,1,3,3] D, float[6,8,1,1] E, int64[2] shape = {0, -1}, float[96,10] F, float[10,5] G, float[5] g> {
  c = Conv <pads = [1, 1, 1, 1]> (x, A)
  n = BatchNormalization (c, s, b, m, v_pos)
  r = Relu (n)
  d = Conv <group = 8, pads = [1, 1, 1, 1], strides = [2, 2]> (r, D)
  e = Conv (d, E)
  f = Reshape (e, shape)
  h = MatMul (f, F)
  l, k = Split <axis = 1, num_outputs = 2> (h)
  t = Concat <axis = 1> (k, l)
  y = Gemm (t, G, g)
}"""
ORIGINAL = build(NET).SerializeToString()


def flip(rng: Generator) -> bytes:
    """A few bits, most of them in the structure: nodes at the front, inputs and outputs at the end, weights between."""
    data = bytearray(ORIGINAL)
    for _ in range(rng.integers(1, 4)):
        at = pick([rng.integers(520), -rng.integers(1, 80), rng.integers(len(data))], rng)
        data[at] ^= 1 << rng.integers(8)
    return bytes(data)


def truncate(rng: Generator) -> bytes:
    return ORIGINAL[: rng.integers(len(ORIGINAL))]


def splice(rng: Generator) -> bytes:
    a, b = sorted(rng.integers(0, len(ORIGINAL), 2))
    return ORIGINAL[:a] + rng.bytes(rng.integers(8)) + ORIGINAL[b:]


def edit(change: Callable[[ModelProto, Generator], object]) -> Callable[[Generator], bytes]:
    def mutate(rng: Generator) -> bytes:
        model = onnx.load_from_string(ORIGINAL)
        for _ in range(rng.integers(1, 3)):
            change(model, rng)
        return bytes(model.SerializeToString())

    return mutate


def pick(items: object, rng: Generator) -> object:
    return items[int(rng.integers(len(items)))]


def wrong_dims(model: ModelProto, rng: Generator) -> None:
    dims = pick(model.graph.initializer, rng).dims
    dims[int(rng.integers(len(dims)))] = int(pick([-1, 0, 1, 2, 7, 2**31, 2**62], rng))


def wrong_shape(model: ModelProto, rng: Generator) -> None:
    """Weights that hold what they say, but do not fit."""
    weight = pick(model.graph.initializer, rng)
    made = np.zeros(rng.integers(1, 9, max(1, len(weight.dims) + rng.integers(-1, 2))), np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(made, weight.name))


def wrong_input(model: ModelProto, rng: Generator) -> None:
    value = pick([*model.graph.input, *model.graph.output], rng)
    dim = pick(value.type.tensor_type.shape.dim, rng)
    dim.dim_value = int(pick([-5, 0, 1, 7, 2**14, 2**62], rng))


def wrong_type(model: ModelProto, rng: Generator) -> None:
    value = pick([*model.graph.input, *model.graph.output], rng)
    value.type.tensor_type.elem_type = int(rng.integers(0, 40))


def shuffle(model: ModelProto, rng: Generator) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes[i] for i in rng.permutation(len(nodes)))


def rewire(model: ModelProto, rng: Generator) -> None:
    """Cycles, dangling names, inputs of other nodes."""
    inputs = pick(model.graph.node, rng).input
    other = pick(model.graph.node, rng)
    inputs[int(rng.integers(len(inputs)))] = str(pick(["", "nowhere", *other.input, *other.output], rng))


def rename(model: ModelProto, rng: Generator) -> None:
    """Tensors made twice, outputs that nobody makes, initialisers under other names."""
    name = str(pick(["", "x", "y", "F", "h", "twice"], rng))
    if rng.random() < 0.5:
        pick(model.graph.initializer, rng).name = name
    else:
        outputs = pick(model.graph.node, rng).output
        outputs[int(rng.integers(len(outputs)))] = name


def repeat(model: ModelProto, rng: Generator) -> None:
    kind = pick([model.graph.node, model.graph.initializer, model.graph.input, model.graph.output], rng)
    kind.append(pick(kind, rng))


def drop(model: ModelProto, rng: Generator) -> None:
    kind = pick([model.graph.node, model.graph.initializer, model.graph.input, model.graph.output], rng)
    if len(kind):
        del kind[int(rng.integers(len(kind)))]


def wrong_attribute(model: ModelProto, rng: Generator) -> None:
    node = pick(model.graph.node, rng)
    names = ["axis", "pads", "group", "strides", "kernel_shape", "transB", "num_outputs", "auto_pad", "dilations"]
    values = [-1, 0, 3, 2**40, 1.5, "SAME_UPPER", "?", [0], [1, 2, 3], [-1, -1], [2**40] * 4, [0.5]]
    name, value = str(pick(names, rng)), pick(values, rng)
    left = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*left, onnx.helper.make_attribute(name, value)])


def wrong_operator(model: ModelProto, rng: Generator) -> None:
    operators = (
        "LSTM Reshape Transpose Loop If Scan Gather Split Attention Constant Nonsense Slice Einsum Pad TopK Resize"
    )
    operators += " Shape LayerNormalization ReduceSum ConstantOfShape Conv QLinearConv DequantizeLinear"
    pick(model.graph.node, rng).op_type = str(pick(["", *operators.split()], rng))


def wrong_version(model: ModelProto, rng: Generator) -> None:
    if rng.random() < 0.5:
        model.opset_import[0].version = int(pick([-1, 0, 1, 5, 9, 13, 2**40], rng))
    else:
        model.ir_version = int(pick([-1, 0, 1, 2, 3, 99], rng))


EDITS = (wrong_dims, wrong_shape, wrong_input, wrong_type, shuffle, rewire, rename, repeat, drop, wrong_attribute,
         wrong_operator, wrong_version)  # fmt: skip
KINDS = (flip, truncate, splice, *map(edit, EDITS))
COMMANDS = (
    ("prune", "in.onnx", "-o", "out.onnx", "--ratio", "0.5", "--scope", "local", "--no-check", "-q"),
    ("prune", "in.onnx", "-o", "out.onnx", "--ratio", "0.5", "-q"),
    ("prune", "in.onnx", "-o", "out.onnx", "--lossless", "--no-check", "-q"),
    ("inspect", "in.onnx", "-q"),
)


@pytest.mark.parametrize("seed", range(MUTATIONS))
def test_mutation(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("onnxprune.validate.latency.MAX_ROUNDS", 3)
    monkeypatch.setattr("onnxprune.validate.latency.MIN_ROUNDS", 3)
    rng = np.random.default_rng(seed)
    data = KINDS[seed % len(KINDS)](rng)
    Path("in.onnx").write_bytes(data)
    command = COMMANDS[(seed // len(KINDS)) % len(COMMANDS)]
    code = main(list(command))
    _, err = capsys.readouterr()
    assert code in (0, 2) and err.count("\n") == (code == 2), err
    assert Path("in.onnx").read_bytes() == data and (code == 0 or os.listdir() == ["in.onnx"])


def test_the_original_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.onnx").write_bytes(ORIGINAL)
    for command in COMMANDS:
        assert main(list(command)) == 0, command
