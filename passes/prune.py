"""Surgery: a plan's masks become smaller constants, new attributes and new shape operands.

All numbers come from the typed graph: a constant is sliced along each axis by the kept indices of that axis'
expression, an `Edit` is evaluated anew. Two rules keep run-time shape arithmetic right: Shape and Size of a pruned
tensor are corrected to tell the original sizes, and an operand that is computed at run time is scaled where it is used.
Uses of a constant that are cut differently get constants of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxprune.budget import Budget
from onnxprune.criteria.second_order import Curve
from onnxprune.dims import Dim, Expr, Mask, keep, resolve
from onnxprune.errors import InputError
from onnxprune.flow import ENTER, SHELL, attribute
from onnxprune.graph import Graph
from onnxprune.inference import TypedGraph, Use
from onnxprune.manager import Cut, State
from onnxprune.nodes import attributes
from onnxprune.passes.refit_least_squares import RefitLeastSquares
from onnxprune.passes.remove_dead import RemoveDead
from onnxprune.plan import Plan, bind, error_curves, make_plan
from onnxprune.rules.rule import Bound, Choose, Edit, Renumber
from onnxprune.sparse import Sparse
from onnxprune.storage import Sliced, Source, cut_source, tensor
from onnxprune.trials import outcome, rivals

FEW_NAMES = 3  # of dims, in a note


@dataclass(frozen=True)
class Prune:
    """Remove what the plan says. Without options the plan or budget of the call is used; options state a budget of
    their own.
    """

    ratio: float | None = None
    macs: float | None = None
    params: float | None = None
    bytes: float | None = None
    lossless: bool = False
    scope: str = "global"
    criterion: str = ""
    normalise: str | None = None
    round_to: int = 1
    name: ClassVar[str] = "prune"
    keeps_facts: ClassVar[bool] = False

    def run(self, state: State) -> Graph:
        plan = state.plan if self == Prune() else None
        if plan is None:
            plan = self._choose(state)
        plan = replace(plan, layers=())
        masks = bind(plan, state.typed)
        result = cut(state.typed, masks) if masks and not state.dry_run else state.graph
        state.cuts.append(Cut(state.typed, plan, result))
        return result

    def _choose(self, state: State) -> Plan:
        own = state.budget
        if self != Prune():
            own = Budget(**{f.name: getattr(self, f.name) for f in fields(self)})
        elif own is not None:
            first = state.cuts[0].typed if state.cuts else state.typed
            own = own.at_step(first, state.typed, sum(not c.dropped.layers for c in state.cuts), state.clock)
            if own is None:
                return Plan({}, state.model)
        curves = None if state.cuts else state.curves  # of the first graph
        plan = _best(state, own or Budget(), curves)
        unseen = state.calibration.unseen if state.calibration else ()
        if names := [d.name for d in state.typed.prunable if d.dim in unseen and d.name in plan.keep]:
            more = f" and {len(names) - FEW_NAMES} more" if len(names) > FEW_NAMES else ""
            state.notes.append(
                f"the data never take the branch of an If that has {', '.join(names[:FEW_NAMES])}{more}: units were"
                " chosen by weight norm, and what they lose is not made up for; give samples that take it"
            )
        return plan


def _best(state: State, budget: Budget, curves: Mapping[str, Curve] | None) -> Plan:
    """The plan for a budget. Error curves sum up what dims lose alone; where others of the same cost may do better,
    what comes of each decides.
    """
    make = partial(make_plan, state.typed, model=state.model, calibration=state.calibration, seed=state.seed)
    make = partial(make, clock=state.clock)
    if state.calibration is None or not state.mends or state.dry_run or not budget.weighs_errors:
        return make(budget, curves=curves)
    curves = curves or error_curves(state.typed, budget, state.calibration)
    plan = make(budget, curves=curves)
    plans = {"by the error curves": plan}
    for way, other in rivals(state, budget, bind(plan, state.typed)).items():
        with suppress(InputError):  # the budget cannot be met so
            plans[way] = make(other, curves=curves)
    if len(plans) == 1:
        return plan
    passes = Prune(), RemoveDead(), RefitLeastSquares()
    outcomes = {way: outcome(state, passes, plan=tried) for way, tried in plans.items()}
    best = min(outcomes, key=lambda way: outcomes[way].error)
    if plans[best] is not plan:
        told = ", ".join(f"{found.error:.3g} {way}" for way, found in outcomes.items())
        state.notes.append(f"widths were tried, error of the outputs on samples that were held back: {told}")
    state.ahead = outcomes[best].recovery
    return plans[best]


def cut(typed: TypedGraph, masks: dict[Dim, Mask]) -> Graph:
    """The graph without the removed units."""
    return _Surgeon(typed, masks).operate()


class _Surgeon:
    """The working state of one operation: kept indices by axis, new constants, new nodes."""

    def __init__(self, typed: TypedGraph, masks: dict[Dim, Mask]) -> None:
        self.typed, self.graph, self.masks = typed, typed.graph, masks
        self.tensors = dict(typed.graph.tensors)
        self.sources: dict[str, Source] = dict(typed.graph.sources)
        self.renamed: dict[int, dict[int, str]] = {}
        self.moved: dict[int, NodeProto] = {}
        self._kept: dict[int, tuple[Expr, Mask]] = {}
        self._made: dict[tuple[str, bytes], str] = {}
        self._names = set(self.tensors) | set(typed.graph.producer) | {i.name for i in typed.graph.shell.graph.input}

    def kept(self, expr: Expr) -> Mask:
        """Keep-mask of an axis."""
        expr = resolve(expr)
        found = self._kept.get(id(expr))
        if found is None:
            found = self._kept[id(expr)] = (expr, keep(expr, self.masks))
        return found[1]

    def operate(self) -> Graph:
        for name, uses in self.typed.weights.items():
            self._slice(name, uses)
        nodes: list[NodeProto] = []
        for i, node in enumerate(self.graph.nodes):
            before: list[NodeProto] = []
            after: list[NodeProto] = []
            made = self._edited(i, self.moved.get(i, node), before)
            if self.typed.signatures[i].measures:
                made = self._measure(i, made, after)
            elif node.op_type == ENTER:
                made = self._body_types(made)
            nodes += [*before, made, *after]
        return self.graph.replace(nodes, self.tensors, self._shell(), self.sources)

    # constants
    def _slice(self, name: str, uses: list[Use]) -> None:
        """Slice a constant for each use; uses that agree share one constant, and it keeps its name if all do."""
        groups: dict[bytes, list[Use]] = {}
        for use in uses:
            key = b"|".join([np.packbits(self.kept(e)).tobytes() for e in use.axes]) if len(uses) > 1 else b""
            groups.setdefault(key, []).append(use)
        whole = (
            len(groups) == 1
            and len(uses) == len(self.graph.consumers[name])
            and name not in {o.name for o in self.graph.outputs}
        )
        for group in groups.values():
            masks = [self.kept(e) for e in group[0].axes]
            if all(m.all() for m in masks):
                continue
            made = cut_source(self.graph.source(name), self.graph.constants[name].data_type, masks)
            if whole:
                self._store(name, made)
            else:
                kept_apart = isinstance(made, Sparse) or self.graph.is_lazy(name)
                label = self._sliced(name, made) if kept_apart else self.constant(name, made.array())
                for use in group:
                    self.renamed.setdefault(use.node, {})[use.input] = label

    def _store(self, name: str, made_of: Sliced | Sparse) -> None:
        if self.graph.is_lazy(name):
            self.tensors[name], self.sources[name] = made_of.hollow(name, self.tensors[name]), made_of
            return
        if name in self.tensors:
            self.tensors[name] = tensor(name, made_of.array(), self.tensors[name])
            return
        index = self.graph.producer[name]  # a Constant node keeps its place
        made = NodeProto()
        made.CopyFrom(self.graph.nodes[index])
        del made.attribute[:]
        if isinstance(made_of, Sparse):
            made.attribute.append(helper.make_attribute("sparse_value", made_of.proto))
        else:
            made.attribute.append(helper.make_attribute("value", tensor("", made_of.array())))
        self.moved[index] = made

    def constant(self, like: str, array: NDArray[Any]) -> str:
        """Store a new constant under a free name; equal ones with one stem are stored once."""
        made = tensor("", array)
        key = like, hashlib.sha256(made.SerializeToString(deterministic=True)).digest()
        if key not in self._made:
            made.name = self._made[key] = self._free(f"{like}.pruned")
            self.tensors[made.name] = made
        return self._made[key]

    def _sliced(self, like: str, made_of: Sliced | Sparse) -> str:
        """As `constant`, for a slice that is made when it is asked for, or is sparse."""
        k = 0
        while (name := f"{like}.pruned{k or ''}") in self._names:
            if name in self.sources and made_of.equals(self.sources[name]):
                return name
            k += 1
        self._names.add(name)
        self.tensors[name] = made_of.hollow(name)
        self.sources[name] = made_of.named(name) if isinstance(made_of, Sparse) else made_of
        return name

    # nodes
    def _edited(self, i: int, node: NodeProto, before: list[NodeProto]) -> NodeProto:
        inputs = self.renamed.get(i, {})
        attrs: dict[str, Any] = {}
        drop: tuple[str, ...] = ()
        for edit in self.typed.signatures[i].edits:
            if isinstance(edit, Renumber):
                inputs.update(self._renumber(node, edit))
                continue
            if isinstance(edit, Choose):
                left = np.flatnonzero(self.kept(edit.expr))
                attrs |= {edit.target: edit.choices[left[0]]} if left.size == 1 else {}
                continue
            old, new = self._numbers(edit, _is_given(node, edit.target))
            if all(n is None or n == o for o, n in zip(old, new, strict=True)) and all(
                self.kept(e).all() for e in edit.when
            ):
                continue
            drop += edit.drop
            if isinstance(edit.target, str):
                attrs[edit.target] = self._attribute(node, edit, new)
            else:
                inputs[edit.target] = self._operand(node, edit.target, old, new, before)
        if not inputs and not attrs:
            return node
        return _rewrite(node, inputs, attrs, drop)

    def _numbers(self, edit: Edit, given: bool) -> tuple[list[float | None], list[float | None]]:
        """Entries before and after; None for those that stay. Where numbers are `given`, axes that are not cut keep
        theirs: -1, a far end, a size that varies.
        """
        old: list[float | None] = []
        new: list[float | None] = []
        for e in edit.entries:
            if e is None or isinstance(e, (int, float)):
                old.append(e)
                new.append(e)
                continue
            mask, position = (self.kept(e.expr), e.position) if isinstance(e, Bound) else (self.kept(e), e.size)
            old.append(position)
            new.append(None if given and mask.all() else int(mask[:position].sum()))
        return old, new

    def _attribute(self, node: NodeProto, edit: Edit, new: list[float | None]) -> Any:
        if edit.scalar:
            return new[0]
        present = attributes(node).get(str(edit.target), new)
        return [p if n is None else n for p, n in zip(present, new, strict=True)]

    def _operand(
        self, node: NodeProto, j: int, old: list[float | None], new: list[float | None], before: list[NodeProto]
    ) -> str:
        """A new shape operand: a constant, or the run-time value scaled entry by entry."""
        present = node.input[j] if j < len(node.input) else ""
        if not present:
            return self.constant(f"{node.output[0]}.{node.op_type.lower()}", np.array(new, np.int64))
        value = self.typed.facts.static(present)
        if value is not None:
            flat = [v if n is None else n for v, n in zip(value.reshape(-1), new, strict=True)]
            return self.constant(present, np.array(flat, value.dtype).reshape(value.shape))
        return self._scaled(present, new, old, before)

    def _scaled(
        self,
        name: str,
        up: Sequence[float | None],
        down: Sequence[float | None],
        nodes: list[NodeProto],
        scalar: bool = False,
    ) -> str:
        """`name` * up / down in integers, entry by entry; the nodes that do it are appended."""
        kind = helper.tensor_dtype_to_np_dtype(self.typed.facts.dtypes.get(name, TensorProto.INT64))
        for op, entries, others in (("Mul", up, down), ("Div", down, up)):
            pairs = zip(entries, others, strict=True)
            factors = np.array([1 if None in (a, b) or a == b else a for a, b in pairs], kind)
            factors = factors.reshape(()) if scalar else factors
            result = self._free(f"{name}.{op.lower()}")
            nodes.append(
                helper.make_node(op, [name, self.constant(f"{name}.{op.lower()}", factors)], [result], name=result)
            )
            name = result
        return name

    def _free(self, stem: str) -> str:
        k = 0
        while (name := f"{stem}{k or ''}") in self._names:
            k += 1
        self._names.add(name)
        return name

    def _renumber(self, node: NodeProto, edit: Renumber) -> dict[int, str]:
        mask = self.kept(edit.expr)
        if mask.all():
            return {}
        value = self.typed.facts.static(node.input[edit.input])
        assert value is not None
        index = value.reshape(-1) % mask.size
        numbers = (np.cumsum(mask) - 1)[index[mask[index]]].reshape([int(self.kept(e).sum()) for e in edit.shape])
        return {edit.input: self.constant(node.input[edit.input], numbers.astype(value.dtype))}

    def _measure(self, i: int, node: NodeProto, after: list[NodeProto]) -> NodeProto:
        """Shape or Size of a pruned tensor: what it tells is scaled back to the original sizes."""
        axes = self.typed.signatures[i].inputs[0] or []
        now, was = [int(self.kept(e).sum()) for e in axes], [e.size for e in axes]
        if now == was:
            return node
        if node.op_type == "Size":
            now, was = [int(np.prod(now))], [int(np.prod(was))]
        else:
            span = slice(attributes(node).get("start", 0), attributes(node).get("end"))
            now, was = now[span], was[span]
        output = node.output[0]
        raw = self._free(f"{output}.pruned")
        made = NodeProto()
        made.CopyFrom(node)
        made.output[0] = raw
        self._scaled(raw, was, now, after, scalar=node.op_type == "Size")
        after[-1].output[0] = output
        return made

    # surroundings
    def _body_types(self, node: NodeProto) -> NodeProto:
        """The types that a body states for its inputs, outputs and inner tensors, with the new sizes."""
        made = NodeProto()
        made.CopyFrom(node)
        shell = attribute(made, SHELL)
        if shell is not None:
            for listed in (shell.g.input, shell.g.output, shell.g.value_info):
                for value in listed:
                    self._resize(value)
        return node if made == node else made

    def _resize(self, value: ValueInfoProto) -> bool:
        """State the new sizes of a typed tensor; False if it is not typed."""
        axes = self.typed.axes.get(value.name)
        if axes is None or len(axes) != len(value.type.tensor_type.shape.dim):
            return False
        for e, dim in zip(axes, value.type.tensor_type.shape.dim, strict=True):
            mask = self.kept(e)
            if not mask.all() and dim.HasField("dim_value"):
                dim.dim_value = int(mask.sum())
            elif not mask.all():  # a name like `4*batch` would tie it to tensors that are not cut
                dim.ClearField("dim_param")
        return True

    def _shell(self) -> ModelProto:
        """`value_info` with the new sizes; entries for tensors that are not typed are dropped, their shapes may be
        stale.
        """
        shell = ModelProto()
        shell.CopyFrom(self.graph.shell)
        del shell.graph.value_info[:]
        for value in self.graph.shell.graph.value_info:
            made = ValueInfoProto()
            made.CopyFrom(value)
            if self._resize(made):
                shell.graph.value_info.append(made)
        return shell


def _is_given(node: NodeProto, target: str | int) -> bool:
    if isinstance(target, str):
        return any(a.name == target for a in node.attribute)
    return target < len(node.input) and node.input[target] != ""


def _rewrite(node: NodeProto, inputs: dict[int, str], attrs: dict[str, Any], drop: tuple[str, ...]) -> NodeProto:
    """A copy of a node with other inputs and attributes."""
    made = NodeProto()
    made.CopyFrom(node)
    for j, name in inputs.items():
        while len(made.input) <= j:
            made.input.append("")
        made.input[j] = name
    kept = [a for a in node.attribute if a.name not in drop and a.name not in attrs]
    del made.attribute[:]
    made.attribute.extend([*kept, *(helper.make_attribute(n, v) for n, v in attrs.items())])
    return made
