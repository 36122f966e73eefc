"""How a long step tells what it is doing: a text, and how much of it is done where that can be counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """`progress("surgery check")`, or `progress("latency", 0.2, 1.0)`: 0.2 of 1.0 (seconds, inputs, ...) are done."""

    def __call__(self, text: str, done: float = 0, total: float = 0, /) -> None: ...


def silent(text: str, done: float = 0, total: float = 0, /) -> None:
    """Tell nobody."""


def counted(items: Sequence[T], text: str, progress: Progress) -> Iterator[T]:
    """The items, each told before it is handed out."""
    for k, item in enumerate(items):
        progress(text, k, len(items))
        yield item
