"""Graphs as ONNX Runtime's optimisers leave them are pruned as far as the graphs that they were made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxprune
from onnxprune.budget import Budget
from onnxprune.feeds import random_feeds
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import DEFAULT, PASSES
from onnxprune.plan import bind
from onnxprune.reading import load
from onnxprune.sessions import run
from onnxprune.validate.surgery_check import surgery_check
from tests.common import build, check_cut, feeds_for, plans, typed_model

MODELS = sorted((Path(__file__).resolve().parent.parent / "models").glob("*.onnx"))
REACH = 0.02  # share of the parameters by which the two may differ: folded scales and biases count differently

ENCODER = """(int32[N,5] i, int32[N,5] m) => (float[N,3] y) <float[9,8] W, float[7,8] P, float[8] g0, float[8] b0,
    float[8,24] Q, float[24] q, float[8,8] O, float[8] o, float[8] g1, float[8] b1, float[8,16] U, float[16] u,
    float[16,8] D, float[8] d, float[8] g2, float[8] b2, float[8,3] C, float[3] c, int64 zero = {0}> {
    e, k = com.microsoft.EmbedLayerNormalization(i, "", W, P, "", g0, b0)
    a = com.microsoft.Attention <num_heads = 2> (e, Q, q, m) p = MatMul(a, O)
    r = com.microsoft.SkipLayerNormalization(p, e, g1, b1, o)
    h = MatMul(r, U) f = com.microsoft.BiasGelu(h, u) z = MatMul(f, D)
    s = com.microsoft.SkipLayerNormalization(z, r, g2, b2, d)
    t = Gather <axis = 1> (s, zero) y = com.microsoft.FusedGemm <activation = "Tanh"> (t, C, c) }"""
ENCODER_DIMS = {"W:1": "width", "Q:1/0": "heads", "Q:1/1": "head-channels", "Q:1/2": "head-channels", "U:1": "neurons"}

DECODER = """(float[2,5,4] x) => (float[2,5,3] y) <float[4,32] E, float[32] g0, float[32,64] Q, float[32,32] K,
    float[32,32] V, float[64,32] O, float[32] g1, uint8[16,2,8] U, float[16,2] us, uint8[16,2,8] G, float[16,2] gs,
    float[16,32] D, float[32] g2, float[32,3] C, int32[2] n = {4, 4}, int32 t = {5}, float[9,8] co, float[9,8] si> {
    e = MatMul(x, E) a = SimplifiedLayerNormalization(e, g0) q = MatMul(a, Q) k = MatMul(a, K) v = MatMul(a, V)
    w, pk, pv = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2, do_rotary = 1>
        (q, k, v, "", "", n, t, co, si)
    p = MatMul(w, O) r, r1, r2, s = com.microsoft.SkipSimplifiedLayerNormalization(p, e, g1)
    u = com.microsoft.MatMulNBits <K = 32, N = 16, block_size = 16> (r, U, us)
    h = com.microsoft.MatMulNBits <K = 32, N = 16, block_size = 16> (r, G, gs)
    f = com.microsoft.QuickGelu <alpha = 1.0> (h) j = Mul(u, f) z = MatMul(j, D)
    l, l1, l2, l3 = com.microsoft.SkipSimplifiedLayerNormalization(z, s, g2) y = MatMul(l, C) }"""
DECODER_DIMS = {"E:1/0": "width", "Q:1/0": "heads", "Q:1/1": "heads", "U:0": "neurons"}


@pytest.mark.parametrize(
    ("text", "dims"), [(ENCODER, ENCODER_DIMS), (DECODER, DECODER_DIMS)], ids=["encoder", "decoder"]
)
def test_block(text: str, dims: dict[str, str]) -> None:
    """Whole blocks: every dim is free, named after what it is, and every cut equals the masked original."""
    typed = typed_model(build(text))
    assert {d.name: d.kind for d in typed.prunable} == dims
    for masks in plans(typed):
        check_cut(typed, masks, valid="Simplified" not in text)


def optimised(model: Path, folder: Path) -> Path:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / model.name)
    options.log_severity_level = 4
    ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return folder / model.name


@pytest.mark.parametrize("model", MODELS, ids=lambda p: p.stem)
def test_optimised_file(model: Path, tmp_path: Path) -> None:
    made = optimised(model, tmp_path)
    reports = [onnxprune.prune(p, ratio=0.5, scope="local").report for p in (model, made)]
    before, after = (r.params.after / r.params.before for r in reports)
    assert after == pytest.approx(before, abs=REACH)
    assert reports[1].surgery_check is not None and reports[1].surgery_check.passed


def test_convolutions_are_fused_and_pruned(tmp_path: Path) -> None:
    made = optimised(next(p for p in MODELS if "cnn" in p.stem), tmp_path)
    assert "FusedConv" in {n.op_type for n in onnx.load(made).graph.node}
    state = State(load(made), budget=Budget(ratio=0.5, scope="local"))
    PassManager(parse(DEFAULT, PASSES)).run(state)
    done = state.cuts[0]
    assert surgery_check(done.typed, bind(done.plan, done.typed), state.graph.to_proto(), feeds_for(done.typed)).passed


def test_scale_and_sizes_become_explicit() -> None:
    """Attention that loses head channels keeps its scale, and says the sizes that are no longer equal."""
    typed = typed_model(build(ENCODER))
    channels = next(d.dim for d in typed.prunable if d.name == "Q:1/1")
    pruned = check_cut(typed, {channels: np.arange(channels.size) == 0})
    node = next(n for n in pruned.graph.node if n.op_type == "Attention")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes["scale"] == pytest.approx(0.5)
    assert attributes["qkv_hidden_sizes"] == [2, 2, 8]
    assert run(pruned, random_feeds(typed.graph, typed.facts.binding))
