"""Passes and the manager that runs them.

A pass is a frozen dataclass in a file of its own: `name` is its pipeline text, its fields are its options, `run` maps a
graph to a graph. The manager threads the graph, caches analyses until a pass modifies it, times every pass and, with
`verify_each`, has the result checked by onnx and loaded by ONNX Runtime after each. A pipeline is text:
`fold-constants,remove-dead,prune(ratio=0.5),remove-dead`.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import onnx
from onnx import ModelProto

from onnxprune.branches import Path, path_of, typed_along
from onnxprune.budget import Budget
from onnxprune.calibration import Calibration
from onnxprune.cost import Clock
from onnxprune.criteria.second_order import Curve
from onnxprune.errors import InputError, OnnxPruneError
from onnxprune.feeds import Binding
from onnxprune.graph import Graph
from onnxprune.importance import Importance
from onnxprune.inference import TypedGraph, infer
from onnxprune.layers import Chosen, Layer
from onnxprune.plan import Plan, compose
from onnxprune.rotation import Bases
from onnxprune.sessions import Feeds, program, session
from onnxprune.trace import Trace, trace


@dataclass(frozen=True)
class Cut:
    """What surgery did: the typed graph that it started from, the plan, and the graph that it made; of a cut that drops
    layers, which and why.
    """

    typed: TypedGraph
    plan: Plan
    result: Graph
    dropped: Chosen = field(default_factory=Chosen)


@dataclass(frozen=True)
class Mended:
    """What recovery did to one product: mean squared error of its targets per row, before and after (of their means and
    deviations, where these were matched).
    """

    node: str
    before: float
    after: float
    penalty: float | None = None


@dataclass(frozen=True)
class Recovery:
    """One recovery pass: the graph that it found and the graph that it made, what it mended, and what it left alone,
    with reasons; `note`: what people should know of it.
    """

    name: str
    before: Graph
    after: Graph
    mended: tuple[Mended, ...] = ()
    left: tuple[tuple[str, str], ...] = ()
    cuts: int = 1  # made by then
    note: str = ""


@dataclass(frozen=True)
class Turn:
    """A change of bases: the typed graph that it started from, and the same function in other bases."""

    typed: TypedGraph
    result: Graph


@dataclass
class State:
    """What passes share in one run: analyses of the present graph (made when asked for) at a `pair` of input sizes that
    it runs at, the budget or plan, the calibration data (`data` is iterated several times, and holds about `samples`
    samples), bases and error curves that are known by dim name, whether recovery follows (`mends`), one that a trial
    has made `ahead`, the turn, cuts and recoveries made, what sizes cost on this machine, how much rows of the data
    count, and `notes` for the report.
    """

    graph: Graph
    pair: tuple[Binding, Binding] | None = None
    budget: Budget | None = None
    plan: Plan | None = None
    model: str = ""
    dry_run: bool = False
    cuts: list[Cut] = field(default_factory=list)
    data: Iterable[Feeds] | None = None
    samples: int = 0
    seed: int = 0
    bases: Bases | None = None
    curves: Mapping[str, Curve] | None = None
    turn: Turn | None = None
    recoveries: list[Recovery] = field(default_factory=list)
    mends: bool = False
    ahead: Recovery | None = None
    notes: list[str] = field(default_factory=list)
    clock: Clock | None = None
    importance: Importance = field(default_factory=Importance)
    _path: Path | None = None
    _calibration: Calibration | None = None
    _facts: Trace | None = None
    _typed: TypedGraph | None = None

    @property
    def facts(self) -> Trace:
        """Shapes and values of the present graph."""
        self._facts = self._facts or trace(self.graph, self.pair)
        return self._facts

    @property
    def typed(self) -> TypedGraph:
        """Dims of the present graph."""
        self._typed = self._typed or infer(self.graph, self.facts)
        return self._typed

    @property
    def done(self) -> Plan:
        """All cuts as one plan, in the bases that they were made in."""
        made = compose([c.plan for c in self.cuts], self.model)
        return replace(made, bases=self.bases or {}) if self.turn else made

    @property
    def dropped(self) -> list[Layer]:
        """The layers that were dropped so far."""
        return [x for c in self.cuts for x in c.dropped.layers]

    @property
    def path(self) -> Path:
        """The branches of Ifs that all of the calibration data take."""
        if self._path is None:
            self._path = {} if self.data is None else path_of(self.graph, self.facts, self.data)
        return self._path

    @property
    def calibration(self) -> Calibration | None:
        """Statistics of the present graph over the calibration data; None if there is none."""
        if self._calibration is None and self.data is not None:
            seen = typed_along(self.typed, self.path)
            self._calibration = Calibration(seen, self.data, self.samples, self.seed, self.importance, self.typed)
        return self._calibration

    def move(self, graph: Graph, keep_facts: bool) -> None:
        """Go on with another graph; facts survive where every tensor that is left kept its name, shape and value."""
        self.graph, self._typed, self._calibration = graph, None, None
        if not keep_facts:
            self._facts = None


class Pass(Protocol):
    """One rewrite. `keeps_facts`: tensors that remain have the shapes and values that they had."""

    name: ClassVar[str]
    keeps_facts: ClassVar[bool]

    def run(self, state: State) -> Graph:
        """The new graph; the same object if nothing was to do."""


@dataclass(frozen=True)
class PassResult:
    name: str
    modified: bool
    seconds: float


@dataclass(frozen=True)
class PassManager:
    """Runs passes in order."""

    passes: tuple[Pass, ...]
    verify_each: bool = False

    def run(self, state: State, progress: Callable[[str], None] = lambda name: None) -> list[PassResult]:
        """Run all passes on `state`. An error in a pass is raised with the pass's name."""
        results = []
        for step in self.passes:
            progress(step.name)
            start = time.perf_counter()
            try:
                graph = step.run(state)
            except OnnxPruneError:
                raise
            except Exception as error:
                raise RuntimeError(f"pass {step.name} failed: {error}") from error
            modified = graph is not state.graph
            if modified:
                state.move(graph, step.keeps_facts)
            results.append(PassResult(step.name, modified, time.perf_counter() - start))
            if self.verify_each and modified:
                verify(graph, step.name)
        return results


def verify(graph: Graph, after: str) -> None:
    """Checker, strict shape inference and an ONNX Runtime load; RuntimeError naming the pass if one of them objects."""
    try:
        if not graph.is_large:  # what the checker takes in one piece
            _check_proto(graph.to_proto())
        session(program(graph), optimise=False)
    except Exception as error:
        raise RuntimeError(f"the model is broken after pass {after}: {error}") from error


def _check_proto(model: ModelProto) -> None:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        if "No Op registered" not in str(error):  # ONNX Runtime has operators of its own in the default domain
            raise
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=False)


def parse(text: str, known: Sequence[type[Any]]) -> tuple[Pass, ...]:
    """Passes from pipeline text. InputError for an unknown pass or option."""
    by_name = {p.name: p for p in known}
    made = []
    position, text = 0, text.strip()
    step = re.compile(r"\s*([a-z][a-z0-9-]*)\s*(?:\(([^()]*)\))?\s*(?:,|$)")
    while position < len(text):
        match = step.match(text, position)
        if match is None:
            raise InputError(
                f"cannot read the pipeline at {text[position:]!r}: write names like `fold-constants,prune(ratio=0.5)`"
            )
        name, options = match.group(1), match.group(2) or ""
        if name not in by_name:
            raise InputError(f"unknown pass {name!r}: choose from {', '.join(sorted(by_name))}")
        made.append(_make(by_name[name], _options(name, options)))
        position = match.end()
    if not made:
        raise InputError("the pipeline is empty")
    return tuple(made)


def _options(name: str, text: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("an option without a name")
        return {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, TypeError) as error:
        raise InputError(f"cannot read the options of pass {name!r}: {text!r}; write option=value, ...") from error


def _make(kind: type[Any], options: dict[str, Any]) -> Pass:
    names = [f.name for f in dataclasses.fields(kind)]
    for option in options:
        if option not in names:
            raise InputError(f"pass {kind.name!r} has no option {option!r}: {', '.join(names) or 'it takes none'}")
    made: Pass = kind(**options)
    return made
