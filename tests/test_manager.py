"""The pass manager: pipeline text, timing, who is to blame, analyses that are made anew when the graph changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from onnx import NodeProto, helper

from onnxprune.errors import InputError
from onnxprune.graph import Graph
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import DEFAULT, LOSSLESS, PASSES
from onnxprune.passes.fold_constants import FoldConstants
from onnxprune.passes.prune import Prune
from onnxprune.passes.remove_dead import RemoveDead
from onnxprune.reading import load
from tests.common import build

TEXT = "(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8,3] B> { h = MatMul(x, A) r = Relu(h) y = MatMul(r, B) }"


@dataclass(frozen=True)
class Idle:
    """Does nothing."""

    name: ClassVar[str] = "idle"
    keeps_facts: ClassVar[bool] = True

    def run(self, state: State) -> Graph:
        return state.graph


@dataclass(frozen=True)
class Rename:
    """Puts `op` in the place of Relu."""

    op: str = "Tanh"
    name: ClassVar[str] = "rename"
    keeps_facts: ClassVar[bool] = False

    def run(self, state: State) -> Graph:
        nodes = [self._renamed(n) if n.op_type == "Relu" else n for n in state.graph.nodes]
        return state.graph.replace(nodes)

    def _renamed(self, node: NodeProto) -> NodeProto:
        return helper.make_node(self.op, node.input, node.output)


@dataclass(frozen=True)
class Crash:
    """Breaks."""

    name: ClassVar[str] = "crash"
    keeps_facts: ClassVar[bool] = True

    def run(self, state: State) -> Graph:
        raise KeyError("lost")


KNOWN = (*PASSES, Idle, Rename, Crash)


def state() -> State:
    return State(load(build(TEXT)))


# pipeline text, what it means
PIPELINES: list[tuple[str, tuple[Any, ...]]] = [
    ("fold-constants", (FoldConstants(),)),
    (" fold-constants , remove-dead ", (FoldConstants(), RemoveDead())),
    ("fold-constants,\n  remove-dead", (FoldConstants(), RemoveDead())),
    ("prune", (Prune(),)),
    ("prune()", (Prune(),)),
    ("prune(ratio=0.5)", (Prune(ratio=0.5),)),
    ("prune (ratio = 0.5, scope='local'),remove-dead", (Prune(ratio=0.5, scope="local"), RemoveDead())),
    ('prune(criterion="l1", lossless=True)', (Prune(criterion="l1", lossless=True),)),
    ("prune,prune(macs=1e-1)", (Prune(), Prune(macs=0.1))),
]


@pytest.mark.parametrize(("text", "want"), PIPELINES, ids=[p[0] for p in PIPELINES])
def test_parse(text: str, want: tuple[Any, ...]) -> None:
    assert parse(text, KNOWN) == want


# text that is no pipeline, words of the message
BROKEN = [
    ("", "empty"),
    ("  ", "empty"),
    (",", "cannot read"),
    ("prune fold-constants", "cannot read"),
    ("prune(ratio=0.5", "cannot read"),
    ("prune)", "cannot read"),
    ("Prune", "cannot read"),
    ("trim", "unknown pass 'trim': choose from .*prune"),
    ("prune(speed=1)", "no option 'speed': ratio, macs"),
    ("remove-dead(hard=1)", "no option 'hard': it takes none"),
    ("prune(0.5)", "option=value"),
    ("prune(ratio)", "option=value"),
    ("prune(ratio=half)", "option=value"),
    ("prune(ratio=1+)", "option=value"),
    ("prune(ratio={[]:1})", "option=value"),
    ("prune(**{'ratio':1})", "no option"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN, ids=[b[0] for b in BROKEN])
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(text, KNOWN)


@pytest.mark.parametrize("text", [DEFAULT, LOSSLESS])
def test_the_usual_pipelines_can_be_read(text: str) -> None:
    assert [p.name for p in parse(text, PASSES)] == text.split(",")


def test_results_tell_name_change_and_time() -> None:
    results = PassManager(parse("idle,rename,idle", KNOWN)).run(state())
    assert [(r.name, r.modified) for r in results] == [("idle", False), ("rename", True), ("idle", False)]
    assert all(r.seconds >= 0 for r in results)


def test_progress_names_each_pass_before_it_runs() -> None:
    told: list[str] = []
    with pytest.raises(RuntimeError):
        PassManager(parse("idle,crash,rename", KNOWN)).run(state(), told.append)
    assert told == ["idle", "crash"]


def test_a_pass_that_breaks_is_named() -> None:
    with pytest.raises(RuntimeError, match="pass crash failed: 'lost'") as caught:
        PassManager(parse("idle,crash", KNOWN)).run(state())
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("op", ["Nonsense", "MatMul"])
def test_verify_each_names_the_pass_that_broke_the_model(op: str) -> None:
    steps = parse(f"idle,rename(op='{op}'),idle", KNOWN)
    PassManager(steps).run(state())
    with pytest.raises(RuntimeError, match="broken after pass rename"):
        PassManager(steps, verify_each=True).run(state())


def test_verify_each_lets_good_passes_be() -> None:
    PassManager(parse(f"rename,{DEFAULT.replace('prune', 'prune(ratio=0.5)')}", KNOWN), verify_each=True).run(state())


def test_analyses_are_kept_until_a_pass_modifies() -> None:
    run = state()
    facts, typed = run.facts, run.typed
    PassManager((Idle(),)).run(run)
    assert run.facts is facts and run.typed is typed
    PassManager((Rename(),)).run(run)
    assert run.facts is not facts and run.typed is not typed


def test_every_pass_has_its_cases_and_its_name() -> None:
    """One file per pass, named as the pass; a test file beside it."""
    root = Path(__file__).resolve().parent.parent
    names = {p.name.replace("-", "_") for p in PASSES}
    assert {p.stem for p in (root / "passes").glob("*.py")} - {"__init__"} == names
    assert {p.stem.removeprefix("test_") for p in (root / "tests" / "passes").glob("test_*.py")} == names
    assert all(p.__name__.lower() == p.name.replace("-", "") and p.__doc__ for p in PASSES)
