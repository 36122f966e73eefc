"""What a layer is: a tensor, the exit, that another one of the same type, the entry, can stand in for.

    residual branch   exit = entry + branch: without the branch the exit is the entry
    chain             exit = f(entry)

Nothing else is needed to take it out: all that reads the exit reads the entry, and what nothing needs then goes.
"""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("attention", "ffn", "bottleneck", "recurrent", "block", "chain")


@dataclass(frozen=True)
class Layer:
    """One layer of a graph. `stream`: what the layer adds to or maps; `node` and `operand` are the sum and which of its
    inputs is the branch, -1 where the exit as a whole is replaced. `nodes` go with it, and with them `params`
    parameters and `macs` multiply-accumulates at the traced sizes. `variant`: the layer that this one is another way
    to drop, with the norm behind its sum.
    """

    name: str
    kind: str
    entry: str
    exit: str
    stream: str
    node: int = -1
    operand: int = -1
    nodes: frozenset[int] = frozenset()
    params: int = 0
    macs: int = 0
    variant: str = ""

    @property
    def is_branch(self) -> bool:
        """Whether it is dropped at a sum."""
        return self.node >= 0
