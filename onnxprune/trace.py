"""What is known of every tensor before anything runs: concrete shape, element type, small values - and which of it may
vary.

A walk over the nodes at one binding of the symbolic sizes (`walk`), and a second one at another binding, which tells
what is dynamic: a size or a value that differs. Branches that the sizes are not for are walked at sizes that they fit.
Shapes that inference cannot tell (contrib operators, data-dependent sizes) come from one ONNX Runtime run, and are only
asked for when there are any.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ValueInfoProto, helper

from onnxprune.feeds import Binding, Shape, random_feeds
from onnxprune.flow import BODY, OWNER, attribute, branch_bodies, inner_names
from onnxprune.graph import Graph
from onnxprune.kinds import Kind, Kinds, Value
from onnxprune.nodes import attributes
from onnxprune.sessions import program, run, watched
from onnxprune.sizing import bindings, nearer
from onnxprune.walk import Known, Walk, walk


@dataclass(frozen=True)
class Trace:
    """Facts at two bindings. `shapes` and `values` are those of the first; `other_*` of the second."""

    binding: Binding
    other: Binding
    shapes: dict[str, Shape]
    other_shapes: dict[str, Shape]
    values: dict[str, Value]
    other_values: dict[str, Value]
    dtypes: dict[str, int]

    def dynamic(self, name: str, axis: int) -> bool:
        """Whether the size of an axis differs between the bindings."""
        other = self.other_shapes.get(name)
        return other is None or len(other) <= axis or other[axis] != self.shapes[name][axis]

    def varying(self, name: str) -> list[int]:
        """The axes whose sizes differ between the bindings."""
        shape = self.shapes[name]
        return [] if self.other_shapes.get(name) == shape else [k for k in range(len(shape)) if self.dynamic(name, k)]

    def static(self, name: str) -> Value | None:
        """The value of a tensor if it is known and the same at both bindings."""
        a, b = self.values.get(name), self.other_values.get(name)
        if a is None or b is None:
            return None
        return a if a is b or (a.shape == b.shape and np.array_equal(a, b)) else None


def trace(graph: Graph, pair: tuple[Binding, Binding] | None = None, ask: bool = True) -> Trace:
    """Walk `graph` at two bindings: those of `pair`, at which it is known to run, else the first of the usual ones that
    leave nothing open. `ask`: ONNX Runtime, for what stays open, which takes most of the time.
    """
    kinds = Kinds(graph)
    if pair is not None:
        first, second = pair
        facts = walk(graph, kinds, first)
    else:
        first, second, facts = min(_attempts(graph, kinds), key=lambda a: len(a[2].failed))
    own, lent = _elsewhere(graph, facts)
    if own:
        facts = walk(graph, kinds, first, lent=own)
    told = complete(graph, first, facts, own) if ask else {}
    other = facts
    if first.shapes != second.shapes:
        other = walk(graph, kinds, second, lent=lent)
        if more := _lent(graph, facts, other, nearer(graph, first, second)):
            lent = {**more, **lent}
            other = walk(graph, kinds, second, lent=lent)
        if pair is None and len(other.failed) > len(facts.failed) and not facts.failed:
            second, other = first, facts  # the model fits one size only, whatever its input says
        told = complete(graph, second, other, lent) if ask else {}
    if told:
        other = walk(graph, kinds, second, told, again=True, lent=lent)
    for body in _misfits(graph, facts):
        facts.forget(graph, body)
        other.forget(graph, body)
    dtypes = {n: kind.dtype for n, kind in facts.types.items() if kind.is_tensor}
    return Trace(first, second, facts.shapes, other.shapes, facts.values, other.values, dtypes)


def _lent(graph: Graph, facts: Walk, other: Walk, nearer_sizes: Iterable[Binding]) -> dict[str, Known]:
    """What is known of the bodies of If that fit the first sizes and not the second, which no run at these takes: at
    the furthest sizes that they do fit.
    """
    lent: dict[str, Known] = {}
    failed = set(other.failed) - set(facts.failed)
    misfits = [body for body in branch_bodies(graph.nodes) if not failed.isdisjoint(body)] if failed else []
    for sizes in nearer_sizes if misfits else ():
        near = walk(graph, facts.kinds, sizes)
        left = set(near.failed) - set(facts.failed)
        made = [n for body in misfits if left.isdisjoint(body) for i in body for n in graph.wires[i].outputs]
        lent |= {n: (near.types[n], near.values.get(n)) for n in made if n in near.types}
        misfits = [body for body in misfits if not left.isdisjoint(body)]
    return lent


def _misfits(graph: Graph, facts: Walk) -> list[range]:
    """Bodies of If that the sizes are not for: they may be taken as far as is known, but some node refuses what it gets
    there. What sizes they would have, and which Ifs in them are decided, is not told by this walk.
    """
    refused = {graph.producer[n] for n in facts.refused}
    if not refused:
        return []
    conditions = {attributes(n)[OWNER]: n.input[0] for n in graph.nodes if n.op_type == "If" and attribute(n, OWNER)}
    found: list[range] = []
    for body in reversed(branch_bodies(graph.nodes)):  # the outer ones first
        own = attributes(graph.nodes[body.start])
        known = facts.values.get(conditions[own[OWNER]])
        if known is None:
            found.append(body)
        elif known.size == 1 and own[BODY] != (b"then_branch" if known.item() else b"else_branch"):
            refused.difference_update(body)
    return [body for body in found if not refused.isdisjoint(body)]


def _elsewhere(graph: Graph, facts: Walk) -> tuple[dict[str, Known], dict[str, Known]]:
    """What is known of the bodies of If that the sizes are not for, at the first of the usual sizes that they fit, and
    at the second sizes that go with these; all free axes have another size there.
    """
    found: tuple[dict[str, Known], dict[str, Known]] = {}, {}
    left = _misfits(graph, facts)
    for pair in bindings(graph) if left else ():
        if not all(_moves(v, *pair) for v in graph.inputs):
            continue
        walks = [walk(graph, facts.kinds, sizes) for sizes in pair]
        misfits = [body for made in walks for body in _misfits(graph, made)]
        for lent, made in zip(found, walks, strict=True):
            names = [n for body in left if body not in misfits for i in body for n in graph.wires[i].outputs]
            lent.update({n: (made.types[n], made.values.get(n)) for n in names if n in made.types})
        left = [body for body in left if body in misfits]
        if not left:
            break
    return found


def _moves(value: ValueInfoProto, first: Binding, second: Binding) -> bool:
    """Whether all free axes of an input have two sizes."""
    dims = value.type.tensor_type.shape.dim
    sizes = zip(dims, first.shapes.get(value.name, ()), second.shapes.get(value.name, ()), strict=False)
    return all(a != b for d, a, b in sizes if d.dim_value <= 0)


def _attempts(graph: Graph, kinds: Kinds) -> Iterator[tuple[Binding, Binding, Walk]]:
    """Walks at the bindings to try, up to the first that leaves nothing open."""
    for first, second in bindings(graph):
        facts = walk(graph, kinds, first)
        yield first, second, facts
        if not facts.failed:
            return


def complete(graph: Graph, binding: Binding, facts: Walk, lent: Mapping[str, Known] | None = None) -> dict[str, Kind]:
    """Ask ONNX Runtime for the shapes that inference could not tell, then walk on from them; returns what it told.
    Quietly leaves what does not run.
    """
    if not facts.failed:
        return {}
    inner = inner_names(graph.nodes)
    unknown = [n for wires in graph.wires for n in wires.outputs if n and n not in inner and n not in facts.shapes]
    try:
        made = run(program(watched(graph, unknown)), random_feeds(graph, binding), unknown)
    except Exception:  # sizes that the model refuses, custom operators, sequences: the tensors stay unknown
        return {}
    kinds = facts.kinds
    told = {
        n: kinds.tensor(helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in made.items()
        if isinstance(a, np.ndarray)
    }
    again = walk(graph, kinds, binding, told, lent=lent)
    for name, kind in {**told, **again.types}.items():
        facts.learn(name, kind)
    facts.values.update(again.values)
    return told
