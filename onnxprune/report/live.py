"""While it runs: one line on stderr that says what is being done, with a bar and the time left where that can be
counted. On a terminal only, and gone when it is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from onnxprune.progress import Progress, silent
from onnxprune.report.terminal import console


class _TimeLeft(TimeRemainingColumn):
    """Nothing where it is not known."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text("" if left is None or task.total is None else f"{left:.0f} s left", "progress.remaining")


class _Bar(BarColumn):
    def render(self, task: Task) -> Text | object:  # type: ignore[override]
        return Text("") if task.total is None else super().render(task)


@contextmanager
def shown(quiet: bool) -> Iterator[Progress]:
    """A progress callback that draws, or is silent where nobody looks."""
    screen = console(quiet, stderr=True)
    if quiet or not screen.is_terminal:
        yield silent
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), _Bar(bar_width=24), _TimeLeft())
    with Bars(*columns, console=screen, transient=True) as bars:
        task = bars.add_task("loading", total=None)

        def step(text: str, done: float = 0, total: float = 0, /) -> None:
            nonlocal task
            if bars.tasks[0].description != text:  # a new stage, with a clock of its own
                bars.remove_task(task)
                task = bars.add_task(text, total=total or None)
            bars.update(task, total=total or None, completed=done)

        yield step
