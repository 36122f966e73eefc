"""The progress line: on a terminal only, with time left where it can be counted, gone at the end."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from rich.console import Console

import onnxprune
from onnxprune.proof import RANDOM_SIZES
from onnxprune.reading import load
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


@pytest.mark.parametrize(("data", "steps", "feeds"), [(None, 1, len(RANDOM_SIZES)), (70, 1, 2 * 3), (70, 2, 3 * 3)])
def test_stages_of_a_run_are_told(data: int | None, steps: int, feeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """70 samples are three feeds; with data, the model is compared after removal and recovery, and after a step."""
    monkeypatch.setattr(latency, "MAX_ROUNDS", 9)
    told: list[tuple[str, float, float]] = []
    x = None if data is None else {"x": np.random.default_rng(0).standard_normal((data, 4)).astype(np.float32)}
    onnxprune.pruning.run(
        load(build(MLP)),
        budget=onnxprune.plan.Budget(ratio=0.5, steps=steps),
        data=x,
        progress=lambda text, done=0, total=0, /: told.append((text, done, total)),
    )
    stages = list(dict.fromkeys(text for text, _, _ in told))
    assert "running the original" in stages and "fold-constants" in stages
    assert stages[-3:] == ["surgery check", "comparison with the original", "latency"]
    assert [t[1:] for t in told if t[0] == stages[-2]] == [(k, feeds) for k in range(feeds + 1)]
    assert all(0 <= done <= total for _, done, total in told if total) and any(total for *_, total in told[-3:])
