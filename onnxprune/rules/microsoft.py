"""ONNX Runtime's own operators (domain com.microsoft): what its graph optimisers fuse, and what generators of language
models write directly. See docs/ContribOperators.md of ONNX Runtime. Attention is in `microsoft_attention.py`.
"""

from __future__ import annotations

import math

from onnxprune import contrib
from onnxprune.dims import ONE, Expr, product
from onnxprune.errors import Barrier
from onnxprune.rules.contraction import conv, gemm, matmul
from onnxprune.rules.deliberate import Deliberate
from onnxprune.rules.elementwise import broadcast, same
from onnxprune.rules.indexing import gather_nd, grid_sample, trilu
from onnxprune.rules.microsoft_attention import (
    attention,
    group_query_attention,
    multi_head_attention,
    quantized_attention,
    rotary_embedding,
)
from onnxprune.rules.movement import pad
from onnxprune.rules.rule import Axes, Node, Table

POINTWISE = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Clip", "Gelu", "FastGelu", "Elu", "Softplus", "")


def skip_normalization(node: Node) -> None:
    """SkipLayerNormalization: input, skip (N, S, C), gamma, beta, bias (C), SkipSimplifiedLayerNormalization: no beta
    -> output, mean and inverse deviation (N, S, 1), the sum. Statistics of the sum over C.
    """
    x = node.broadcast([node.axes(0), node.axes(1)])
    for i in range(2, len(node.inputs)):
        if node.has(i):
            node.broadcast([x, node.axes(i)])
    node.read(0, node.rank(0) - 1, "stats")
    for k in (0, 3):
        node.out(list(x), k)
    for k in (1, 2):
        node.out([*x[:-1], ONE], k)


def embed_layer_normalization(node: Node) -> None:
    """EmbedLayerNormalization: word and segment ids (N, S), tables (rows, C), gamma, beta (C), mask (N, S), positions
    -> output (N, S, C), mask index (N), the sum (N, S, C). Rows are picked by number.
    """
    ids, word = node.axes(0), node.axes(2)
    for i in (3, 4, 5, 6):
        if node.has(i):
            node.unify(node.axes(i)[-1], word[1])
    for i in (2, 3, 4):
        if node.has(i):
            node.freeze(node.axes(i)[0], "picked")
    for i in (1, 7):
        if node.has(i):
            node.broadcast([ids, node.axes(i)])
    node.freeze(ids[1], "index")
    node.read(2, 1, "stats")
    for k in (0, 2):
        node.out([*ids, word[1]], k)
    node.out([ids[0]], 1)


def fused_conv(node: Node) -> None:
    """FusedConv: Conv, then Z (N, g*O, *S') added, then an activation."""
    conv(node)
    _pointwise_only(node)
    if node.has(3):
        for a, b in zip(node.axes(3), node.signature.outputs[0] or [], strict=True):
            node.unify(a, b)


def fused_gemm(node: Node) -> None:
    """FusedGemm: Gemm, then an activation."""
    gemm(node)
    _pointwise_only(node)


def _pointwise_only(node: Node) -> None:
    activation = str(node.attr("activation", ""))
    if activation not in POINTWISE:
        raise Barrier("barrier", f"activation {activation}")


def fused_matmul(node: Node) -> None:
    """FusedMatMul, TransposeMatMul, FusedMatMulActivation: alpha * A' x B'; (*B, M, K) is given as (*B, K, M) with
    transA, as (M, *B, K) with transBatchA; so is B.
    """
    _pointwise_only(node)
    (places_a, a), (places_b, b) = (_transposed(node, i) for i in (0, 1))
    inner = max(len(b) - 2, 0)
    node.unify(a[-1], b[inner])
    batch = node.broadcast([a[:-2], b[:-2]]) if len(a) > 2 or len(b) > 2 else []
    node.out(batch + (a[-2:-1] if len(a) > 1 else []) + (b[-1:] if len(b) > 1 else []))
    node.read(0, places_a[-1], partner=(1, places_b[inner]))


def _transposed(node: Node, i: int) -> tuple[list[int], Axes]:
    """Where each axis of an operand is found, and the axes in their order."""
    name = "AB"[i]
    options = int(node.attr(f"trans{name}", 0)), int(node.attr(f"transBatch{name}", 0))
    places = contrib.transposed(list(range(node.rank(i))), *options)
    return places, [node.axes(i)[k] for k in places]


def gemm_fast_gelu(node: Node) -> None:
    """GemmFastGelu: MatMul, bias (N), FastGelu."""
    matmul(node)
    if node.has(2):
        node.broadcast([node.signature.outputs[0] or [], node.axes(2)])


def matmul_nbits(node: Node) -> None:
    """MatMulNBits: A (*B, K), weights (N, K/b, bytes), scales (N, K/b), zero points (N, bytes) or (N, K/b), bias (N) ->
    (*B, N). Blocks of b inputs share a scale: whole ones go, unless zero points of several share a byte.
    """
    if node.attr("weight_prepacked", 0) or node.has(4):
        raise Barrier("barrier", "the weights are packed for one device")
    x, w = node.axes(0), node.axes(1)
    size, block = int(node.attr("K")), int(node.attr("block_size"))
    inner, out = x[-1], w[0]
    node.freeze(w[2], "structure", "packed bits")
    if size % block:
        node.freeze(inner, "structure", f"its last block of {block} is not full")
        node.freeze(w[1], "structure", f"its last block of {block} is not full")
    else:
        outer, low = node.space.factor(inner, block)
        node.freeze(low, "structure", f"blocks of {block} share a scale")
        node.unify(outer, w[1])
    _per_block(node, 2, out, w[1])
    if node.has(3):
        packed = node.shape(3)[-1] != w[1].size if node.rank(3) == 2 else node.shape(3)[0] != out.size * w[1].size
        if packed:
            node.freeze(w[1], "structure", "zero points share bytes")
        _per_block(node, 3, out, node.fixed(math.prod(node.shape(3)) // out.size) if packed else w[1])
    if node.has(5):
        node.unify(node.axes(5)[0], out)
    node.out([*x[:-1], out])
    node.edit("N", out, scalar=True)
    node.edit("K", inner, scalar=True)
    node.read(0, len(x) - 1)


def _per_block(node: Node, i: int, rows: Expr, blocks: Expr) -> None:
    """Input i has an entry for each row and block, as a matrix or flat."""
    given = node.axes(i)
    if len(given) == 1:
        node.unify(given[0], product(rows, blocks))
        return
    node.unify(given[0], rows)
    node.unify(given[1], blocks)


def mixture(node: Node) -> None:
    """MoE: X (*B, C), routing (tokens, E), per expert fc1 (E, f*J, C), fc2 (E, C, J), fc3 (E, J, C) and biases -> (*B,
    C). Inner units J are a dim; with SwiGLU f = 2, gate and value side by side (fusion 1) or in halves (2).
    """
    x, router, first, second = (node.axes(i) for i in (0, 1, 2, 4))
    inner = second[2]
    node.freeze(router[1], "index", "experts are chosen by score")
    node.unify(router[0], product(*x[:-1]))
    for i in range(2, 8):
        if node.has(i):
            node.unify(node.axes(i)[0], router[1])
    for e in (first[2], second[1], *(node.axes(6)[2:] if node.has(6) else [])):
        node.unify(e, x[-1])
    if node.has(5):
        node.unify(node.axes(5)[1], x[-1])
    for i in (2, 3, 6, 7):
        if node.has(i):
            node.unify(_gated(node, node.axes(i)[1], inner.size), inner)
    node.out(list(x))
    node.read(0, len(x) - 1, partner=(2, 2))
    node.read(4, 2)


def _gated(node: Node, rows: Expr, size: int) -> Expr:
    """Inner units in the rows of fc1."""
    if rows.size == size:
        return rows
    interleaved = int(node.attr("swiglu_fusion", 0)) == 1
    outer, inner = node.space.factor(rows, rows.size // size if interleaved else size)
    units, gates = (outer, inner) if interleaved else (inner, outer)
    node.freeze(gates, "structure", "gate and value")
    return units


def distances(node: Node) -> None:
    """CDist: A (M, K), B (N, K) -> (M, N), the Euclidean distance of each pair of rows, or its square."""
    if node.attr("metric", "sqeuclidean") not in ("euclidean", "sqeuclidean"):
        raise Barrier("barrier", f"metric {node.attr('metric')}")
    a, b = node.axes(0), node.axes(1)
    node.unify(a[1], b[1])
    node.out([a[0], b[0]])
    node.read(0, 1)
    node.read(1, 1)


def bias_split_gelu(node: Node) -> None:
    """BiasSplitGelu: X (N, S, 2*C), bias (2*C) -> (N, S, C), the left half times Gelu of the right one."""
    x = node.broadcast([node.axes(0), node.axes(1)])
    two, out = node.space.factor(x[-1], x[-1].size // 2)
    node.freeze(two, "structure", "left and right half")
    node.out([*x[:-1], out])


def inverse(node: Node) -> None:
    """Inverse: (*B, M, M), matrix by matrix."""
    x = node.axes(0)
    for e in x[-2:]:
        node.freeze(e, "index")
    node.out(list(x))


def relative_position_bias(node: Node) -> None:
    """RelativePositionBias: table (buckets, H) -> (1, H, S, S)."""
    table, shape = node.axes(0), node.out_shape()
    node.freeze(table[0], "picked")
    node.out([ONE, table[1], node.fixed(shape[2]), node.fixed(shape[3])])


BARRIERS = {
    "it generates whole sequences with models inside": "BeamSearch GreedySearch Sampling WhisperBeamSearch",
    "it has weights packed for one kind of device": (
        "DequantizeBFP DequantizeWithOrder GatherBlockQuantized GemmFloat8 MatMulBlockQuantizedFp4Weight"
        " MatMulBlockQuantizedFp8Weight MatMulBnb4 MatMulFpQ4 MatMulNBitsMlp MatMulNBitsQkv QEmbedLayerNormalization"
        " QMoE QOrderedAttention QOrderedGelu QOrderedLayerNormalization QOrderedLongformerAttention QOrderedMatMul"
        " QuantizeBFP QuantizeWithOrder SparseToDenseMatMul"
    ),
    "it has kernels for other devices only, so that its result cannot be checked": (
        "BiasDropout BiasSoftmax BitmaskBiasDropout BitmaskDropout DecoderAttention DecoderMaskedSelfAttention"
        " GatedRelativePositionBias GemmaRotaryEmbedding GroupNorm LongformerAttention MRotaryEmbedding NhwcConv"
        " NhwcFusedConv PackedAttention PackedMultiHeadAttention RemovePadding RestorePadding SkipGroupNorm"
    ),
    "its cache is a buffer in a layout of its own": (
        "CausalConvWithState DecoderMaskedMultiHeadAttention DynamicSparseAttention PackedSparseAttentionIndexer"
        " PagedAttention SparseAttention SparseAttentionIndexer SparsePagedAttention VarlenCausalConvWithState"
    ),
    "its channels are the state of a recurrence": "GatedDeltaNet LinearAttention LinearAttentionGate AttnLSTM",
    "it normalises groups of channels": "BranchwiseRMSNorm GatedRMSNorm HyperConnectionPostMix HyperConnectionPreMix",
    "it works on positions, windows or frequencies": (
        "ConvTransposeWithDynamicPads CropAndResize DynamicTimeWarping Irfft MaxpoolWithMask Rfft UnfoldTensor"
    ),
    "it works on the values of integers or text": (
        "BifurcationDetector EngramGate MatMulInteger16 MulInteger MurmurHash3 NGramHashMapping NGramRepeatBlock Range"
        " ReduceSumInteger Tokenizer Unique VarlenNGramHashMapping WordConvEmbedding TorchEmbedding"
    ),
    "its operands are complex numbers": "ComplexMul ComplexMulConj",
    "it is opaque": "EPContext ExpandDims IsAllFinite SampleOp Snpe",
}

TABLE: Table = {
    "com.microsoft.Attention": attention,
    "com.microsoft.QAttention": quantized_attention,
    "com.microsoft.MultiHeadAttention": multi_head_attention,
    "com.microsoft.GroupQueryAttention": group_query_attention,
    "com.microsoft.RotaryEmbedding": rotary_embedding,
    "com.microsoft.SkipLayerNormalization": skip_normalization,
    "com.microsoft.SkipSimplifiedLayerNormalization": skip_normalization,
    "com.microsoft.EmbedLayerNormalization": embed_layer_normalization,
    "com.microsoft.BiasGelu": broadcast,
    "com.microsoft.FastGelu": broadcast,
    "com.microsoft.BiasAdd": broadcast,
    "com.microsoft.GatedAdd": broadcast,
    "com.microsoft.Gelu": same,
    "com.microsoft.QuickGelu": same,
    "com.microsoft.ScaledSiLU": same,
    "com.microsoft.BiasSplitGelu": bias_split_gelu,
    "com.microsoft.FusedConv": fused_conv,
    "com.microsoft.FusedGemm": fused_gemm,
    "com.microsoft.FusedMatMul": fused_matmul,
    "com.microsoft.FusedMatMulActivation": fused_matmul,
    "com.microsoft.TransposeMatMul": fused_matmul,
    "com.microsoft.GemmFastGelu": gemm_fast_gelu,
    "com.microsoft.MatMulNBits": matmul_nbits,
    "com.microsoft.MoE": mixture,
    "com.microsoft.CDist": distances,
    "com.microsoft.Inverse": inverse,
    "com.microsoft.RelativePositionBias": relative_position_bias,
    "com.microsoft.Trilu": trilu,
    "com.microsoft.GridSample": grid_sample,
    "com.microsoft.GatherND": gather_nd,
    "com.microsoft.Pad": pad,
    **{f"com.microsoft.{name}": Deliberate(why) for why, names in BARRIERS.items() for name in names.split()},
}
