"""What the README says is run: its Python block, its commands, its configs, and the options that it names."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path

import pytest

from onnxprune.__main__ import main
from onnxprune.config import read_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_block(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(block, {})
    before, after = capsys.readouterr().out.split("->")
    assert int(after) < int(before) / 2


def test_commands(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^\$ onnxprune (.*)$", README, re.M)
    assert len(commands) == 13
    for command in commands:
        assert main(shlex.split(command)) == 0, command
    assert capsys.readouterr().err == ""


def test_configs_are_read(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", README, re.S)
    assert len(blocks) == 2
    for text in blocks:
        (tmp_path / "c.toml").write_text(text)
        assert "data" in read_config(tmp_path / "c.toml")


def test_first_command_prints_what_is_shown(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = re.findall(r"\.venv/bin/onnxprune (prune .*)$", README, re.M)
    (shown,) = re.findall(r"```text\n(.*?)```", README, re.S)
    assert main(shlex.split(line)) == 0
    printed = capsys.readouterr().out

    def rows(text: str) -> list[list[str]]:
        timed = ("latency", "surgery check")  # these lines hold measurements of the machine
        return [row.split() for row in text.splitlines() if row.strip() and not row.startswith(timed)]

    assert [len(row) for row in rows(printed)] == [len(row) for row in rows(shown)]
    for got, want in zip(rows(printed), rows(shown), strict=True):
        for a, b in zip(got, want, strict=True):
            assert a == b or number(a) == pytest.approx(number(b), rel=0.2, abs=0.02), (got, want)


def number(text: str) -> float:
    """What a figure with a sign, a comma or a percent sign says; not a number for words."""
    found = re.fullmatch(r"([-+]?[\d.]+)%?,?", text)
    return float(found[1]) if found else math.nan
