"""What `onnxprune inspect` tells of a graph, on the terminal and as JSON: every prunable dim with what it couples and
costs, the frozen ones with reasons, and the layers that can be dropped. MACs are per sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from onnxprune import cost
from onnxprune.dims import Dim
from onnxprune.feeds import batch_size
from onnxprune.inference import DimInfo, TypedGraph
from onnxprune.layers import Layer, find
from onnxprune.report.report import plain_reason
from onnxprune.report.terminal import count, plural, print_table

TOP_PLACES = 3
OBVIOUS = ("kernel", "structure")  # counted, not listed


def show_inspection(out: Console, typed: TypedGraph) -> None:
    """Prunable dims, frozen ones by reason, layers."""
    if out.quiet:
        return
    batch, params, macs = _costs(typed)
    _show_prunable(out, typed.prunable, params, macs)
    _show_frozen(out, _frozen(typed))
    _show_layers(out, find(typed), batch)


def inspection(typed: TypedGraph) -> dict[str, Any]:
    """The same for JSON."""
    batch, params, macs = _costs(typed)

    def row(d: DimInfo) -> dict[str, Any]:
        couples = [{"node": p.node, "op": p.operator, "tensor": p.tensor, "axis": p.axis} for p in d.places]
        reason = {"reason": str(d.dim.frozen), "where": d.dim.frozen.where} if d.dim.frozen else {}
        costs = {} if d.dim.frozen else {"params": params.get(d.dim, 0), "macs": macs.get(d.dim, 0)}
        return {"dim": d.name, "kind": d.kind, "size": d.dim.size, **costs, **reason, "couples": couples}

    layers = [
        {"layer": x.name, "kind": x.kind, "nodes": len(x.nodes), "params": x.params, "macs": x.macs // batch}
        for x in find(typed)
    ]
    return {
        "prunable": [row(d) for d in typed.prunable],
        "frozen": [row(d) for d in _frozen(typed)],
        "layers": layers,
    }


def _costs(typed: TypedGraph) -> tuple[int, dict[Dim, int], dict[Dim, int]]:
    """The batch that was traced, and what carries each dim: parameters, and MACs per sample."""
    batch = batch_size(typed.graph, typed.facts.binding)
    macs = {d: n // batch for d, n in cost.macs(typed).shares().items()}
    return batch, cost.params(typed).shares(), macs


def _frozen(typed: TypedGraph) -> list[DimInfo]:
    return [d for d in typed.dims if d.dim.frozen and d.places and d.dim.size > 1]


def _show_prunable(out: Console, dims: Sequence[DimInfo], params: dict[Dim, int], macs: dict[Dim, int]) -> None:
    table = Table("dim", "kind", "units", "params", "MACs", "couples", box=None, pad_edge=False, header_style="dim")
    table.columns[0].overflow = "fold"
    for column in table.columns[2:5]:
        column.justify = "right"
    for d in dims:
        table.add_row(
            d.name, d.kind, str(d.dim.size), count(params.get(d.dim, 0)), count(macs.get(d.dim, 0)), _places(d)
        )
    out.print(plural(len(dims), "prunable dim"))
    print_table(out, table)


def _show_frozen(out: Console, frozen: Sequence[DimInfo]) -> None:
    plain = [d for d in frozen if d.dim.frozen and d.dim.frozen.code in OBVIOUS]
    out.print(f"\n{plural(len(frozen), 'frozen dim')} carried by weights")
    rows = Table("dim", "units", "why it is frozen", "where", box=None, pad_edge=False, header_style="dim")
    rows.columns[1].justify = "right"
    for d in frozen:
        if d not in plain:
            rows.add_row(d.name, str(d.dim.size), str(d.dim.frozen), d.dim.frozen.where if d.dim.frozen else "")
    if rows.row_count:
        print_table(out, rows)
    for reason, n in Counter(plain_reason(str(d.dim.frozen)) for d in plain).most_common():
        out.print(f"and {plural(n, 'dim')}: {reason}")


def _show_layers(out: Console, found: Sequence[Layer], batch: int) -> None:
    """Layers that can be dropped."""
    if not found:
        return
    table = Table("layer", "kind", "nodes", "params", "MACs", box=None, pad_edge=False, header_style="dim")
    for column in table.columns[2:]:
        column.justify = "right"
    for x in found:
        table.add_row(x.name, x.kind, str(len(x.nodes)), count(x.params), count(x.macs // batch))
    out.print(f"\n{plural(len(found), 'layer')} can be dropped as a whole (--drop-layers)")
    print_table(out, table)


def _places(info: DimInfo) -> str:
    listed = [f"{p.operator} {p.tensor}:{p.axis}" for p in info.places]
    more = f", +{len(listed) - TOP_PLACES} more" if len(listed) > TOP_PLACES else ""
    return ", ".join(listed[:TOP_PLACES]) + more
