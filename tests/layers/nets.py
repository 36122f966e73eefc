"""Small networks with layers, as text."""

from __future__ import annotations

from random import Random

WIDTH = 6
FFN = "{o}h = MatMul ({i}, {o}A) {o}r = Relu ({o}h) {o}d = MatMul ({o}r, {o}B)"
FFN_WEIGHTS = "float[6,8] {o}A, float[8,6] {o}B"
ATTENTION = """{o}q = MatMul ({i}, {o}Q) {o}k = MatMul ({i}, {o}K) {o}v = MatMul ({i}, {o}V)
{o}t = Transpose <perm = [0, 2, 1]> ({o}k) {o}s = MatMul ({o}q, {o}t) {o}p = Softmax <axis = -1> ({o}s)
{o}m = MatMul ({o}p, {o}v) {o}d = MatMul ({o}m, {o}O)"""
ATTENTION_WEIGHTS = "float[6,4] {o}Q, float[6,4] {o}K, float[6,6] {o}V, float[6,6] {o}O"
CONV = "{o}h = Conv <pads = [1,1,1,1]> ({i}, {o}A) {o}r = Relu ({o}h) {o}d = Conv ({o}r, {o}B)"
CONV_WEIGHTS = "float[5,6,3,3] {o}A, float[6,5,1,1] {o}B"
PARTS = {"ffn": (FFN, FFN_WEIGHTS), "attention": (ATTENTION, ATTENTION_WEIGHTS), "bottleneck": (CONV, CONV_WEIGHTS)}


def branch(kind: str, start: str, label: str) -> tuple[str, str]:
    """Nodes of a branch from tensor `start` to tensor `{label}d`, and its weights."""
    nodes, weights = PARTS[kind]
    return nodes.format(i=start, o=label), weights.format(o=label)


def tokens(nodes: str, weights: str) -> str:
    """A network over (N, 3, 6) whose last tensor is `y`."""
    tail = "z = MatMul (y, Z)"
    return f"(float[N,3,6] x) => (float[N,3,4] z) <{weights}, float[6,4] Z> {{ {nodes} {tail} }}"


def random_net(seed: int) -> str:
    """Branches of random kinds on one stream, in series, in parallel, or inside of each other; of tokens or images."""
    rng = Random(seed)
    images = rng.random() < 0.4
    nodes, weights, stream = [], [], "x"
    for k in range(rng.randint(2, 4)):
        kind = "bottleneck" if images else rng.choice(("ffn", "attention"))
        made, held = branch(kind, stream, f"a{k}")
        nodes.append(made)
        weights.append(held)
        ends = [f"a{k}d"]
        if rng.random() < 0.5:
            made, held = branch(kind if images else "ffn", stream if rng.random() < 0.5 else ends[0], f"b{k}")
            nodes.append(made)
            weights.append(held)
            inner = f"b{k}d" in ends or rng.random() < 0.5
            ends.append(f"b{k}d")
            if inner:
                nodes.append(f"c{k} = Add ({ends[0]}, {ends[1]})")
                ends = [f"c{k}"]
        for j, end in enumerate(ends):
            pair = (stream, end) if rng.random() < 0.5 else (end, stream)
            nodes.append(f"s{k}{j} = Add ({pair[0]}, {pair[1]})")
            stream = f"s{k}{j}"
        if images and rng.random() < 0.5:
            nodes.append(f"r{k} = Relu ({stream})")
            stream = f"r{k}"
    shape = "N,6,4,4" if images else "N,3,6"
    weights.append("float[4,6,1,1] Z" if images else "float[6,4] Z")
    tail = f"z = {'Conv' if images else 'MatMul'} ({stream}, Z)"
    result = "N,4,4,4" if images else "N,3,4"
    return f"(float[{shape}] x) => (float[{result}] z) <{', '.join(weights)}> {{ {' '.join(nodes)} {tail} }}"
