"""What a move is, and how tables of them are written: one row per operator family, `moves(names, build, ...)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.random_graphs.builder import Builder

Build = Callable[[Builder, str], None]


@dataclass(frozen=True)
class Move:
    """`build(b, op)` adds a node of `op`; it is written for opsets `since` to `until`. `runs`: ONNX Runtime has a CPU
    kernel; else the reference implementation is asked, of opset 28. `links`: how often the move is chosen beside its
    turn, since it brings tensors together.
    """

    build: Build
    since: int = 7
    until: int = 99
    runs: bool = True
    links: int = 0


Moves = dict[str, Move]


def moves(
    names: str, build: Build, since: int = 7, until: int = 99, runs: bool = True, links: int = 0, domain: str = ""
) -> Moves:
    """One row for each of the operators in `names`."""
    prefix = f"{domain}." if domain else ""
    return {prefix + name: Move(build, since, until, runs, links) for name in names.split()}
