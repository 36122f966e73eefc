"""Broken files: seeded mutations of small real ones: float, quantised, recurrent, half precision, with bodies of
control flow, with weights in a file of their own. The command line says 0, 1 or 2 about each; it never crashes (3),
never raises, never hangs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.random import Generator
from onnx import ModelProto, TensorProto, numpy_helper

from onnxprune.__main__ import main
from tests.common import build

MUTATIONS = int(os.environ.get("ONNXPRUNE_MUTATIONS", "120"))
SECONDS_EACH = 20  # a mutation takes far less than one; only a hang takes this long
NETS = {
    "float": """(float[N,3,8,8] x) => (float[N,5] y) <float[8,3,3,3] A, float[8] s, float[8] b, float[8] m,
  float[8] v_pos, float[8,1,3,3] D, float[6,8,1,1] E, int64[2] shape = {0, -1}, float[96,10] F, float[10,5] G,
  float[5] g> {
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
}""",
    "dequantised": """(float[N,3,6,6] x) => (float[N,5] y) <int8[8,3,3,3] A, float[8] a_pos, int8[8,5] B,
  float[5] b_pos, float s = {0.02}, uint8 z = {128}, float t = {0.5}, uint8 o = {3}> {
  q = QuantizeLinear (x, s, z)
  d = DequantizeLinear (q, s, z)
  w = DequantizeLinear <axis = 0> (A, a_pos)
  c = Conv (d, w)
  r = Relu (c)
  p = QuantizeLinear (r, t, o)
  e = DequantizeLinear (p, t, o)
  g = GlobalAveragePool (e)
  f = Flatten (g)
  v = DequantizeLinear <axis = 1> (B, b_pos)
  y = MatMul (f, v)
}""",
    "integer": """(float[N,3,6,6] x) => (float[N,5] y) <int8[8,3,3,3] A, float[8] a_pos, int8 az = {0}, int8[8,5] B,
  float b = {0.03}, float s = {0.02}, uint8 z = {128}, float t = {0.5}, uint8 o = {3}> {
  q = QuantizeLinear (x, s, z)
  c = QLinearConv (q, s, z, A, a_pos, az, t, o)
  d = DequantizeLinear (c, t, o)
  g = GlobalAveragePool (d)
  f = Flatten (g)
  u, us, uz = DynamicQuantizeLinear (f)
  m = MatMulInteger (u, B, uz)
  i = Cast <to = 1> (m)
  k = Mul (us, b)
  y = Mul (i, k)
}""",
    "recurrent": """(float[T,N,6] x) => (float[T,N,5] y) <float[2,32,6] W, float[2,32,8] R, float[2,64] B,
  int64[3] s = {0, 0, -1}, float[1,12,16] V, float[1,12,4] Q, float[4,5] C> {
  h, i, c = LSTM <direction = "bidirectional", hidden_size = 8> (x, W, R, B)
  t = Transpose <perm = [0, 2, 1, 3]> (h)
  f = Reshape (t, s)
  g = GRU <hidden_size = 4> (f, V, Q)
  d = Squeeze (g, one)
  y = MatMul (d, C)
}""".replace("float[4,5] C", "float[4,5] C, int64[1] one = {1}"),
    "bodies": """(float[N,4] x, bool c) => (float[N,3] y) <float[4,8] A, float[8,3] B, float[8] w, float[8,8] C,
  int64 n = {3}, bool on = {1}> {
  h = MatMul (x, A)
  g = If <then_branch = yes () => (float[N,8] a) { a = Mul(h, w) },
          else_branch = no () => (float[N,8] b) { k = MatMul(h, C) b = Relu(k) }> (c)
  l = Loop <body = step (int64 i, bool e, float[N,8] s) => (bool d, float[N,8] r) {
    d = Identity(e) u = MatMul(s, C) r = Tanh(u) }> (n, on, g)
  y = MatMul (l, B)
}""",
    "halves": """(float16[N,T,8] x) => (float16[N,T,5] y) <float16[8,12] A, float16[12] s, float16[12] b,
  float16[12,24] B, float16[24] c, float16[24,5] C> {
  h = MatMul (x, A)
  n = LayerNormalization (h, s, b)
  u = MatMul (n, B)
  v = Add (u, c)
  r = Relu (v)
  y = MatMul (r, C)
}""",
}
NETS["apart"] = NETS["float"]
ORIGINALS = {name: build(text) for name, text in NETS.items()}
DATA = b"".join(numpy_helper.to_array(t).tobytes() for t in ORIGINALS["apart"].graph.initializer)
Mutate = Callable[[Generator, bytes], bytes]


def put_apart(model: ModelProto) -> None:
    """All weights in one file, `in.data`."""
    at = 0
    for t in model.graph.initializer:
        size = numpy_helper.to_array(t).nbytes
        t.CopyFrom(TensorProto(name=t.name, dims=t.dims, data_type=t.data_type, data_location=TensorProto.EXTERNAL))
        for key, value in (("location", "in.data"), ("offset", at), ("length", size)):
            t.external_data.add(key=key, value=str(value))
        at += size


put_apart(ORIGINALS["apart"])


def flip(rng: Generator, original: bytes) -> bytes:
    """A few bits, most of them in the structure: nodes at the front, inputs and outputs at the end, weights between."""
    data = bytearray(original)
    for _ in range(rng.integers(1, 4)):
        at = pick([rng.integers(520), -rng.integers(1, 80), rng.integers(len(data))], rng)
        data[at] ^= 1 << rng.integers(8)
    return bytes(data)


def truncate(rng: Generator, original: bytes) -> bytes:
    return original[: rng.integers(len(original))]


def splice(rng: Generator, original: bytes) -> bytes:
    a, b = sorted(rng.integers(0, len(original), 2))
    return original[:a] + rng.bytes(rng.integers(8)) + original[b:]


def edit(change: Callable[[ModelProto, Generator], object]) -> Mutate:
    def mutate(rng: Generator, original: bytes) -> bytes:
        model = onnx.load_from_string(original)
        for _ in range(rng.integers(1, 3)):
            change(model, rng)
        return bytes(model.SerializeToString())

    return mutate


def pick(items: object, rng: Generator) -> object:
    return items[int(rng.integers(len(items)))]


def wrong_dims(model: ModelProto, rng: Generator) -> None:
    dims = pick([t for t in model.graph.initializer if t.dims], rng).dims
    dims[int(rng.integers(len(dims)))] = int(pick([-1, 0, 1, 2, 7, 2**31, 2**62], rng))


def wrong_shape(model: ModelProto, rng: Generator) -> None:
    """Weights that hold what they say, but do not fit."""
    weight = pick(model.graph.initializer, rng)
    made = np.zeros(rng.integers(1, 9, max(1, len(weight.dims) + rng.integers(-1, 2))), np.float32)
    weight.CopyFrom(numpy_helper.from_array(made, weight.name))


def wrong_place(model: ModelProto, rng: Generator) -> None:
    """Weights in files that are not there, or elsewhere in one that is."""
    weight = pick(model.graph.initializer, rng)
    places = {
        "location": ["nowhere", "", ".", "../in.data", "/dev/null"],
        "offset": [-1, 4, 2**62],
        "length": [0, 4, 2**62],
    }
    key = str(pick([*places], rng))
    weight.data_location = TensorProto.EXTERNAL
    kept = [e for e in weight.external_data if e.key != key]
    del weight.external_data[:]
    weight.external_data.extend(kept)
    weight.external_data.add(key=key, value=str(pick(places[key], rng)))


def wrong_input(model: ModelProto, rng: Generator) -> None:
    value = pick([*model.graph.input, *model.graph.output], rng)
    dim = pick(value.type.tensor_type.shape.dim, rng)
    dim.dim_value = int(pick([-5, 0, 1, 7, 2**14, 2**62], rng))


def wrong_type(model: ModelProto, rng: Generator) -> None:
    value = pick([*model.graph.input, *model.graph.output], rng)
    value.type.tensor_type.elem_type = int(rng.integers(0, 40))


def nodes(model: ModelProto) -> list[onnx.NodeProto]:
    """Those of bodies too."""
    found = list(model.graph.node)
    for node in found:
        found.extend(n for a in node.attribute for n in a.g.node)
    return found


def shuffle(model: ModelProto, rng: Generator) -> None:
    listed = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(listed[i] for i in rng.permutation(len(listed)))


def rewire(model: ModelProto, rng: Generator) -> None:
    """Cycles, dangling names, inputs of other nodes."""
    inputs = pick([n for n in nodes(model) if n.input], rng).input
    other = pick(nodes(model), rng)
    inputs[int(rng.integers(len(inputs)))] = str(pick(["", "nowhere", *other.input, *other.output], rng))


def rename(model: ModelProto, rng: Generator) -> None:
    """Tensors made twice, outputs that nobody makes, initialisers under other names."""
    name = str(pick(["", "x", "y", "F", "h", "twice"], rng))
    if rng.random() < 0.5:
        pick(model.graph.initializer, rng).name = name
    else:
        outputs = pick(nodes(model), rng).output
        outputs[int(rng.integers(len(outputs)))] = name


def repeat(model: ModelProto, rng: Generator) -> None:
    kind = pick([model.graph.node, model.graph.initializer, model.graph.input, model.graph.output], rng)
    kind.append(pick(kind, rng))


def drop(model: ModelProto, rng: Generator) -> None:
    kind = pick([model.graph.node, model.graph.initializer, model.graph.input, model.graph.output], rng)
    if len(kind):
        del kind[int(rng.integers(len(kind)))]


def wrong_attribute(model: ModelProto, rng: Generator) -> None:
    node = pick(nodes(model), rng)
    names = ["axis", "pads", "group", "strides", "kernel_shape", "transB", "num_outputs", "auto_pad", "dilations"]
    names += ["hidden_size", "direction", "layout", "block_size", "perm", "to", "then_branch", "body"]
    values = [-1, 0, 3, 2**40, 1.5, "SAME_UPPER", "?", [0], [1, 2, 3], [-1, -1], [2**40] * 4, [0.5]]
    name, value = str(pick(names, rng)), pick(values, rng)
    left = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*left, onnx.helper.make_attribute(name, value)])


def wrong_operator(model: ModelProto, rng: Generator) -> None:
    operators = "LSTM Reshape Transpose Loop If Scan Gather Split Attention Constant Nonsense Slice Einsum Pad TopK"
    operators += " Resize GRU MatMulInteger DynamicQuantizeLinear QLinearMatMul Cast Shape LayerNormalization ReduceSum"
    operators += " ConstantOfShape Conv QLinearConv DequantizeLinear"
    pick(nodes(model), rng).op_type = str(pick(["", *operators.split()], rng))


def wrong_version(model: ModelProto, rng: Generator) -> None:
    if rng.random() < 0.5:
        model.opset_import[0].version = int(pick([-1, 0, 1, 5, 9, 13, 2**40], rng))
    else:
        model.ir_version = int(pick([-1, 0, 1, 2, 3, 99], rng))


EDITS = (wrong_dims, wrong_shape, wrong_place, wrong_input, wrong_type, shuffle, rewire, rename, repeat, drop,
         wrong_attribute, wrong_operator, wrong_version)  # fmt: skip
KINDS = (flip, truncate, splice, *map(edit, EDITS))
COMMANDS = (
    ("prune", "in.onnx", "-o", "out.onnx", "--ratio", "0.5", "--scope", "local", "--no-check", "-q"),
    ("prune", "in.onnx", "-o", "out.onnx", "--ratio", "0.5", "-q"),
    ("prune", "in.onnx", "-o", "out.onnx", "--lossless", "--no-check", "-q"),
    ("inspect", "in.onnx", "-q"),
)


@contextmanager
def no_hang() -> Iterator[None]:
    """TimeoutError after `SECONDS_EACH` on the CPU, where the system can tell."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS_EACH} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS_EACH)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def put(name: str, data: bytes) -> list[str]:
    """The files of a net, whose structure is `data`."""
    Path("in.onnx").write_bytes(data)
    if name == "apart":
        Path("in.data").write_bytes(DATA)
    return sorted(os.listdir())


@pytest.mark.parametrize("seed", range(MUTATIONS))
def test_mutation(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("onnxprune.validate.latency.MAX_ROUNDS", 3)
    monkeypatch.setattr("onnxprune.validate.latency.MIN_ROUNDS", 3)
    rng = np.random.default_rng(seed)
    name = [*NETS][seed % len(NETS)]
    data = KINDS[seed % len(KINDS)](rng, ORIGINALS[name].SerializeToString())
    given = put(name, data)
    command = COMMANDS[(seed // len(KINDS)) % len(COMMANDS)]
    with no_hang():
        code = main(list(command))
    _, err = capsys.readouterr()
    assert code in (0, 2) and err.count("\n") == (code == 2), err
    assert Path("in.onnx").read_bytes() == data and (code == 0 or sorted(os.listdir()) == given)


@pytest.mark.parametrize("name", NETS)
def test_the_original_is_fine(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(name, ORIGINALS[name].SerializeToString())
    for command in COMMANDS:
        assert main(list(command)) == 0, command
