"""Bodies of If, Loop and Scan as part of one flat node list, and back.

    BodyEnter -> (token, body inputs ...)        takes the control node's own inputs
    ... the body's nodes ...
    BodyLeave (token, body outputs ...) -> results
    If / Loop / Scan (own inputs ..., results of all bodies ...)

Everything that works on node lists (tracing, inference, surgery, masking, dead code) then works inside bodies too.
Names that two bodies share are made unique. What a body carries besides nodes (its name, types, doc string) waits in
the BodyEnter's attribute `shell`; its initialisers are listed there and go back where they came from. Other operators
with bodies are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper

from onnxprune.sparse import Sparse, readable

ENTER, LEAVE = "BodyEnter", "BodyLeave"
CONTROL = ("If", "Loop", "Scan")
OWNER, INPUTS, BODY, SHELL, STORED = "flow_owner", "flow_inputs", "flow_body", "flow_shell", "flow_initializers"


def attribute(node: NodeProto, name: str) -> AttributeProto | None:
    """An attribute by name."""
    return next((a for a in node.attribute if a.name == name), None)


def has_bodies(nodes: Iterable[NodeProto]) -> bool:
    """Whether any control-flow node holds a body."""
    return any(n.op_type in CONTROL and any(a.type == AttributeProto.GRAPH for a in n.attribute) for n in nodes)


def flatten(graph: GraphProto) -> tuple[tuple[NodeProto, ...], dict[str, TensorProto], dict[str, Sparse]]:
    """Nodes and initialisers of a graph with all bodies spliced in; sparse ones are hollow tensors, and listed apart.
    The graph is not changed; nodes without bodies are shared with it.
    """
    tensors = {t.name: t for t in graph.initializer}
    sparse = {t.values.name: Sparse(t) for t in graph.sparse_initializer if readable(t)}
    tensors |= {n: s.hollow(n) for n, s in sparse.items()}
    if not has_bodies(graph.node):
        return tuple(graph.node), tensors, sparse
    work = _Flattener(graph, tensors, sparse)
    work.splice(graph.node, {})
    return tuple(work.nodes), work.tensors, work.sparse


class _Flattener:
    """Names in use, and the flat list so far."""

    def __init__(self, graph: GraphProto, tensors: dict[str, TensorProto], sparse: dict[str, Sparse]) -> None:
        self.nodes: list[NodeProto] = []
        self.tensors, self.sparse = tensors, sparse
        self.taken = {i.name for i in graph.input} | set(tensors) | {o for n in graph.node for o in n.output}
        self.count = 0

    def splice(self, nodes: Iterable[NodeProto], names: Mapping[str, str]) -> None:
        """Append nodes under a renaming."""
        for node in nodes:
            bodies = [a for a in node.attribute if a.type == AttributeProto.GRAPH]
            if node.op_type in CONTROL and bodies and not any(_is_opaque(a.g) for a in bodies):
                self._control(node, bodies, names)
            else:
                self.nodes.append(_renamed(node, names))

    def _control(self, node: NodeProto, bodies: Sequence[AttributeProto], names: Mapping[str, str]) -> None:
        self.count += 1
        key = f"{node.op_type}.{self.count}"
        own = [names.get(n, n) for n in node.input]
        results: list[str] = []
        kept = [a for a in node.attribute if a.type != AttributeProto.GRAPH]
        for a in bodies:
            results += self._body(key, a, own, names, kept)
        made = _renamed(node, names)
        del made.attribute[:]
        made.attribute.extend([*kept, helper.make_attribute(OWNER, key), helper.make_attribute(INPUTS, len(own))])
        del made.input[:]
        made.input.extend([*own, *results])
        self.nodes.append(made)

    def _body(
        self,
        key: str,
        a: AttributeProto,
        own: Sequence[str],
        outer: Mapping[str, str],
        options: Sequence[AttributeProto],
    ) -> list[str]:
        """Splice one body between its brackets; returns the names of its results. The brackets carry the owner's
        `options`.
        """
        body = a.g
        kept = [t.name for t in body.initializer] + [t.values.name for t in body.sparse_initializer]
        local = [i.name for i in body.input] + kept + [o for n in body.node for o in n.output]
        names = dict(outer) | {n: self._fresh(n) for n in local if n}
        shell = GraphProto()
        shell.CopyFrom(body)
        del shell.node[:], shell.initializer[:], shell.sparse_initializer[:]
        for listed in (shell.input, shell.output, shell.value_info):
            for value in listed:
                value.name = names.get(value.name, value.name)
        stored = [names[n] for n in kept]
        for t in body.initializer:
            self.tensors[names[t.name]] = _named(t, names[t.name])
        for made in (Sparse(t).named(names[t.values.name]) for t in body.sparse_initializer):
            name = made.proto.values.name
            self.tensors[name], self.sparse[name] = made.hollow(name), made
        prefix = f"{key}.{a.name}"
        token, inputs = self._fresh(prefix), [i.name for i in shell.input]
        enter = helper.make_node(ENTER, own, [token, *inputs], name=prefix, **{OWNER: key, BODY: a.name})
        enter.attribute.extend([*options, helper.make_attribute(SHELL, shell)])
        if stored:
            enter.attribute.append(helper.make_attribute(STORED, stored))
        self.nodes.append(enter)
        self.splice(body.node, names)
        results = [self._fresh(f"{prefix}.result{k}") for k in range(len(shell.output))]
        outputs = [o.name for o in shell.output]
        leave = helper.make_node(LEAVE, [token, *outputs, *inputs], results, name=prefix, **{OWNER: key, BODY: a.name})
        leave.attribute.extend(options)
        self.nodes.append(leave)
        return results

    def _fresh(self, name: str) -> str:
        made, k = name, 1
        while made in self.taken:
            made, k = f"{name}.{k}", k + 1
        self.taken.add(made)
        return made


def _renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    if not any(n in names and names[n] != n for n in [*node.input, *node.output]) and node.op_type not in CONTROL:
        return node
    made = NodeProto()
    made.CopyFrom(node)
    for listed in (made.input, made.output):
        for k, n in enumerate(listed):
            listed[k] = names.get(n, n)
    return made


def _named(tensor: TensorProto, name: str) -> TensorProto:
    if tensor.name == name:
        return tensor
    made = TensorProto()
    made.CopyFrom(tensor)
    made.name = name
    return made


def _is_opaque(graph: GraphProto) -> bool:
    """Whether a body, or one within it, holds sparse tensors that cannot be read."""
    inner = [a.g for n in graph.node for a in n.attribute if a.type == AttributeProto.GRAPH]
    return not all(map(readable, graph.sparse_initializer)) or any(map(_is_opaque, inner))


def carried(node: NodeProto) -> list[tuple[int, int]]:
    """What a Loop or Scan carries: inputs of its BodyLeave, as (the body's output, the body's input)."""
    results = len(node.output)
    scanned = attribute(node, "num_scan_inputs")
    first, entered = 1, list(range(1 + results, len(node.input)))
    if scanned is not None:
        entered = entered[: len(entered) - scanned.i]
    else:  # after the condition; iteration number and condition come first
        first, entered = 2, entered[2:]
    return [(first + k, j) for k, j in enumerate(entered)]


def results_of(node: NodeProto, branch: str) -> list[str]:
    """What an If gets from `branch`, among its inputs; results are named after the branch that they come from."""
    own, count = attribute(node, INPUTS), len(node.output)
    results = node.input[own.i if own is not None else len(node.input) :]
    first = bool(results) and results[0].startswith(f"{_text(node, OWNER)}.{branch}")
    return list(results[:count] if first else results[count:])


def straightened(nodes: Sequence[NodeProto], taken: Mapping[str, str]) -> list[tuple[NodeProto, int]]:
    """Nodes with the branches that are taken, by owner, in place of their Ifs; and of each node its place before, -1
    for the identities that are new.
    """
    found: list[tuple[NodeProto, int]] = []
    skipping = 0
    for i, node in enumerate(nodes):
        branch = taken.get(_text(node, OWNER)) if node.op_type in (ENTER, LEAVE, "If") else None
        other = branch is not None and node.op_type != "If" and _text(node, BODY) != branch
        skipping += other and node.op_type == ENTER
        if not skipping:
            found += [(node, i)] if branch is None else [(made, -1) for made in _straight(node, branch)]
        skipping -= other and node.op_type == LEAVE
    return found


def _straight(node: NodeProto, branch: str) -> list[NodeProto]:
    """What is left of a bracket of the branch that is taken, or of its If: plain identities."""
    if node.op_type == ENTER:
        return []
    made = results_of(node, branch) if node.op_type == "If" else node.input[1 : 1 + len(node.output)]
    return [helper.make_node("Identity", [a], [b], name=b) for a, b in zip(made, node.output, strict=True)]


def branch_bodies(nodes: Sequence[NodeProto]) -> list[range]:
    """Bodies of If: places of their nodes, brackets included; what encloses others comes after them."""
    conditional = {_text(node, OWNER) for node in nodes if node.op_type == "If"}
    found: list[range] = []
    enters: list[int] = []
    for i, node in enumerate(nodes):
        if node.op_type == ENTER:
            enters.append(i)
        elif node.op_type == LEAVE:
            first = enters.pop()
            found += [range(first, i + 1)] if _text(node, OWNER) in conditional else []
    return found


def inner_names(nodes: Iterable[NodeProto]) -> set[str]:
    """Tensors that only exist inside of a body."""
    found: set[str] = set()
    depth = 0
    for node in nodes:
        depth += (node.op_type == ENTER) - (node.op_type == LEAVE)
        if depth or node.op_type == LEAVE:
            found.update(node.output)
    return found


def rebuild(
    nodes: Iterable[NodeProto], tensors: Mapping[str, TensorProto], sparse: Mapping[str, Sparse]
) -> tuple[list[NodeProto], dict[str, TensorProto]]:
    """The inverse of `flatten`: nodes with bodies, and the initialisers that stay outside of them."""
    outside = dict(tensors)
    frames: list[list[NodeProto]] = [[]]
    enters: list[NodeProto] = []
    bodies: dict[str, list[AttributeProto]] = {}
    for node in nodes:
        if node.op_type == ENTER:
            enters.append(node)
            frames.append([])
        elif node.op_type == LEAVE:
            made = _close(enters.pop(), node, frames.pop(), outside, sparse)
            bodies.setdefault(_text(node, OWNER), []).append(made)
        elif node.op_type in CONTROL and attribute(node, OWNER) is not None:
            frames[-1].append(_reattached(node, bodies.pop(_text(node, OWNER))))
        else:
            frames[-1].append(node)
    return frames[0], outside


def _text(node: NodeProto, name: str) -> str:
    found = attribute(node, name)
    return found.s.decode() if found is not None else ""


def _close(
    enter: NodeProto,
    leave: NodeProto,
    nodes: list[NodeProto],
    outside: dict[str, TensorProto],
    sparse: Mapping[str, Sparse],
) -> AttributeProto:
    """One body's graph. An output that the body does not make itself, since it was folded, is passed through an
    Identity.
    """
    graph, shell = GraphProto(), attribute(enter, SHELL)
    if shell is not None:
        graph.CopyFrom(shell.g)
    made = {o for n in nodes for o in n.output} | {i.name for i in graph.input}
    for k, (output, name) in enumerate(zip(graph.output, leave.input[1:], strict=False)):
        if name not in made:
            alias = f"{name}.{enter.output[0]}.{k}"
            nodes.append(helper.make_node("Identity", [name], [alias], name=alias))
            name = alias
        output.name = name
    graph.node.extend(nodes)
    stored = attribute(enter, STORED)
    for name in [s.decode() for s in stored.strings] if stored is not None else []:
        tensor = outside.pop(name, None)
        if tensor is not None and name in sparse:
            graph.sparse_initializer.append(sparse[name].proto)
        elif tensor is not None:
            graph.initializer.append(tensor)
    return helper.make_attribute(_text(enter, BODY), graph)


def _reattached(node: NodeProto, bodies: list[AttributeProto]) -> NodeProto:
    made = NodeProto()
    made.CopyFrom(node)
    count = attribute(node, INPUTS)
    del made.input[count.i if count is not None else len(made.input) :]
    kept = [a for a in node.attribute if a.name not in (OWNER, INPUTS)]
    del made.attribute[:]
    made.attribute.extend([*kept, *bodies])
    return made


def stored_inside(nodes: Iterable[NodeProto]) -> set[str]:
    """Initialisers that belong to a body."""
    found = (attribute(node, STORED) for node in nodes if node.op_type == ENTER)
    return {s.decode() for stored in found if stored is not None for s in stored.strings}
