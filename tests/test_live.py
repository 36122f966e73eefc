"""The progress line: on a terminal only, with time left where it can be counted, gone at the end."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

import onnxprune
from onnxprune.progress import counted, silent
from onnxprune.report import live
from onnxprune.report.live import shown
from onnxprune.validate import latency
from tests.common import build

MLP = "(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8,3] B> { h = MatMul(x, A) y = MatMul(h, B) }"


def drawn(monkeypatch: pytest.MonkeyPatch, terminal: bool = True, quiet: bool = False) -> str:
    """What is drawn while stages run: one that does not count, one that does and takes a second a step."""
    text, now = io.StringIO(), [0.0]
    screen = Console(file=text, force_terminal=terminal, width=80, color_system=None, get_time=lambda: now[0])
    monkeypatch.setattr(live, "console", lambda quiet, stderr: screen)
    with shown(quiet) as step:
        step("folding")
        for k in range(5):
            step("timing", k, 10)
            now[0] += 1.0
        time.sleep(0.3)  # it is drawn ten times a second
        step("[b]ending[/b]")
        time.sleep(0.3)
    return text.getvalue()


def test_stages_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    text = drawn(monkeypatch)
    lines = text.split("\r")
    timing, ending = ([line for line in lines if word in line] for word in ("timing", "[b]ending[/b]"))
    assert "6 s left" in timing[-1] and "━" in timing[-1]
    assert not any("left" in line or "━" in line for line in ending) and ending  # its steps are not counted
    assert lines[-1].endswith("\x1b[2K")  # the line is wiped


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, True), (False, True)])
def test_nothing_is_drawn_where_nobody_looks(terminal: bool, quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(monkeypatch, terminal, quiet) == ""


def test_counted_tells_each_item_before_it_comes() -> None:
    told: list[tuple[object, ...]] = []
    seen = [(item, told[-1]) for item in counted("ab", "text", lambda *args: told.append(args))]
    assert seen == [("a", ("text", 0, 2)), ("b", ("text", 1, 2))]
    silent("text", 1, 2)


def test_stages_of_a_run_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "MAX_ROUNDS", 9)
    told: list[tuple[str, float]] = []
    onnxprune.api.run(
        onnxprune.reading.load(build(MLP)),
        budget=onnxprune.plan.Budget(ratio=0.5),
        progress=lambda text, done=0, total=0, /: told.append((text, total)),
    )
    stages = dict.fromkeys(text for text, _ in told)
    assert list(stages)[-4:] == ["running the original", "surgery check", "comparison with the original", "latency"]
    assert {text for text, total in told if total} == {
        "running the original",
        "comparison with the original",
        "latency",
    }
