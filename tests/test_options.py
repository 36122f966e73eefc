"""Groups of options: a field of a dataclass is an option, its help stands in the group's panel, and a group that builds
on another one keeps a panel of its own. What the config file takes is told by the same fields.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from onnxprune import options
from onnxprune.gates import Gates
from onnxprune.options import CONFIG, Multiple, Panel, given, grouped, kinds, settings
from onnxprune.sessions import Settings


@dataclass(frozen=True)
class Base:
    speed: Annotated[int, typer.Option("--speed", "-s", help="How fast.")] = 1
    parts: Annotated[list[str] | None, typer.Option(help="Which ones.")] = None


@dataclass(frozen=True)
class More(Base):
    limit: float | None = field(default=None, metadata={"option": {"help": "How far.", "metavar": "X"}})


def commands() -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @grouped
    def one(name: str, more: Annotated[More, Panel("Panel of one")], quiet: bool = False) -> None:
        """The first."""
        print(name, more, quiet)

    @app.command()
    @grouped
    def two(base: Annotated[Base, Panel("Panel of two")]) -> None:
        """The second."""
        print(base)

    return app


def run(*argv: str) -> str:
    return CliRunner().invoke(commands(), argv, catch_exceptions=False).output


def test_groups_arrive_whole() -> None:
    assert run("one", "me").strip() == f"me {More()} False"
    argv = ("--speed", "3", "--parts", "a", "--parts", "b", "--limit", "0.5", "--quiet")
    assert run("one", "me", *argv).strip() == f"me {More(3, ['a', 'b'], 0.5)} True"
    assert run("two", "-s", "2").strip() == str(Base(2))


def test_help_has_a_panel_for_each_group() -> None:
    first, second = run("one", "--help"), run("two", "--help")
    assert "Panel of one" in first and "Panel of two" not in first and "How far." in first
    assert "Panel of two" in second and "Panel of one" not in second and "How far." not in second
    assert "The first." in first and "How fast." in first and "How fast." in second


def test_signature_is_flat() -> None:
    @grouped
    def command(base: Annotated[Base, Panel("P")], last: int = 3) -> None: ...

    assert {n: p.default for n, p in inspect.signature(command).parameters.items()} == {
        "speed": 1,
        "parts": None,
        "last": 3,
    }


def test_given_leaves_out_what_was_not_said() -> None:
    assert given(More(limit=0.0), Base(parts=[])) == {"limit": 0.0, "speed": 1}


def test_settings_of_options() -> None:
    assert settings({"seed": 3}) == Settings(threads=1)
    assert settings({"threads": 2, "provider": "cpu"}) == Settings(threads=2)


def test_config_keys_are_the_options() -> None:
    known = kinds("prune")
    assert (
        known["ratio"] is float and known["round_to"] is Multiple and known["check"] is bool and known["data"] is Path
    )
    assert known["include"] == list[str] and known["json"] is Path and known["passes"] is str
    assert set(kinds("gates")) == {f.name for f in fields(Gates)} and kinds("gates")["max_bytes"] is int
    assert not {"output", "plan", "dry_run", "verify_each"} & set(known)


def test_no_option_has_two_meanings() -> None:
    """Groups of one command share no name, and those of the config neither."""
    for groups in CONFIG.values():
        names = [f.name for g in groups for f in fields(g)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("name", [n for n in dir(options) if n.endswith("Options")])
def test_every_option_has_a_help(name: str) -> None:
    kind = getattr(options, name)
    for hint in inspect.get_annotations(kind, eval_str=True).values():
        assert hint.__metadata__[0].help.endswith(".")
    assert kind.__doc__
