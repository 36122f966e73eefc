"""How a long step tells what it is doing: a text, and how much of it is done where that can be counted."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """`progress("surgery check")`, or `progress("latency", 0.2, 1.0)`: 0.2 of 1.0 (seconds, inputs, ...) are done."""

    def __call__(self, text: str, done: float = 0, total: float = 0, /) -> None: ...


def silent(text: str, done: float = 0, total: float = 0, /) -> None:
    """Tell nobody."""
