"""What the page says: a saved report turned into words, tables and pictures, section by section, in the order in which
someone reads who has never seen the tool. Everything is bounded, so that the page is, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxprune.report.answers import METRICS, SHARES, lead, metric, provider, samples, stage, tiles
from onnxprune.report.drawing import Drawing, draw, essential
from onnxprune.report.plots import PAGE, Panel, Times, latency_svg, panels_svg, short, times_svg
from onnxprune.report.report import EXAMPLES
from onnxprune.report.saved import Pair, Saved, shown

MAX_ROWS = 250  # of layers
MAX_MANY, MAX_FEW = 100, 50  # rows of other tables
MAX_COMMAND = 4000  # characters
MAX_BLOCKS, MAX_EDGES = 160, 1500
DENSE = 2  # edges for each block: with more, those that other edges imply are left out
MAX_PANELS = 12
MAX_POINTS = 256  # of a curve
MAX_ROUNDS = 4000
WIDE = 0.1  # an interval of a ratio that is wider says little
KINDS = {
    "filters": "output channels of convolutions",
    "neurons": "columns of matrix products",
    "heads": "attention heads",
    "head-channels": "channels inside attention heads",
    "groups": "groups of grouped convolutions",
    "hidden": "hidden units of recurrent layers",
    "width": "channels of a residual stream that is normalised",
    "experts": "experts of a mixture",
    "units": "other interchangeable units",
}
NUMERICS = ("rel_l2", "max_abs", "cosine", "sqnr_db", "top1_agreement")


def contents(saved: Saved) -> dict[str, Any]:
    """Everything that the template shows."""
    return {
        "source": saved.text("source") or "a model",
        "target": saved.text("target"),
        "outcome": saved.text("outcome"),
        "failure": saved.text("failure", MAX_COMMAND),
        "lead": lead(saved),
        "tiles": tiles(saved),
        "removed": _removed(saved),
        "layers": _layers(saved),
        "network": _network(saved),
        "operators": _operators(saved),
        "profile": _profile(saved.maybe("profile")),
        "accuracy": _accuracy(saved),
        "gates": _gates(saved),
        "latency": _latency(saved.maybe("latency_ms")),
        "timing": _timing(saved),
        "sensitivity": _sensitivity(saved),
        "frozen": _frozen(saved),
        "plan": _plan(saved),
        "made": _made(saved),
    }


# what was removed
def _removed(saved: Saved) -> list[dict[str, Any]]:
    """Units by kind."""
    kinds: dict[str, list[Pair]] = {}
    for row in saved.rows("cuts"):
        kinds.setdefault(row.text("kind"), []).append(Pair(row.amount("before"), row.amount("after")))
    return [
        {
            "kind": kind,
            "words": KINDS.get(kind, ""),
            "dims": len(found),
            "units": Pair(sum(p.before for p in found), sum(p.after for p in found)),
        }
        for kind, found in sorted(kinds.items(), key=lambda item: -sum(p.before - p.after for p in item[1]))[:MAX_FEW]
    ]


def _layers(saved: Saved) -> dict[str, Any]:
    rows = saved.rows("layers")
    listed: list[dict[str, Any]] = [
        {
            "name": r.text("node"),
            "operator": r.text("operator"),
            "fused": shown(", ".join(r.texts("fused"))),
            "shape": [_shape(r.at("shape"), side) for side in ("before", "after")],
            "width": r.pair("width"),
            "params": r.pair("params"),
            "macs": r.pair("macs"),
        }
        for r in rows[:MAX_ROWS]
    ]
    rest = saved.at("layers_left_out")
    return {
        "rows": listed,
        "most_macs": max((r["macs"].before for r in listed), default=0),
        "most_params": max((r["params"].before for r in listed), default=0),
        "more": rest.count("layers") + len(rows) - len(listed),
    }


def _shape(shapes: Saved, side: str) -> str:
    return " × ".join(f"{n:.0f}" for n in shapes.numbers(side)[:8])


def _network(saved: Saved) -> dict[str, Any]:
    network = saved.at("network")
    rows = network.rows("blocks")[:MAX_BLOCKS]
    edges = []
    for row in network.items("edges")[:MAX_EDGES]:
        u, v = (int(n) for n in Saved({"edge": row}, "network.edges").numbers("edge", 2))
        if 0 <= u < v < len(rows):
            edges.append((u, v))
    blocks = [_block(r) for r in rows]
    reduced = len(edges) > DENSE * len(rows)
    if reduced:
        edges = essential(len(rows), edges)
    drawing: Drawing = draw([int(b["width"].before) for b in blocks], edges)
    for block, place in zip(blocks, drawing.places, strict=True):
        block["place"] = place
        block["kept"] = place.height * min(1.0, 1 - max(block["width"].gone, 0.0))
    return {"blocks": blocks, "drawing": drawing, "reduced": reduced, "paths": drawing.paths}


def _block(row: Saved) -> dict[str, Any]:
    macs, params, width = row.pair("macs"), row.pair("params"), row.pair("width")
    cost = macs if macs.before else params if params.before else width
    operators, kind = row.texts("operators")[:MAX_FEW], row.text("kind")
    layers = row.count("layers")
    ends = {"input": "input", "output": "output"}
    return {
        "name": row.text("name"),
        "kind": kind,
        "label": ends.get(kind) or (f"{layers} layers" if layers > 1 else _main(kind, operators)),
        "operators": shown(", ".join(operators)),
        "layers": layers,
        "shape": [_shape(row.at("shape"), side) for side in ("before", "after")],
        "width": width,
        "params": params,
        "macs": macs,
        "cost": cost,
    }


def _main(kind: str, operators: Sequence[str]) -> str:
    """The operator that a block is called after."""
    if kind == "join":
        return short(next(iter(operators), ""), 14)
    products = ("Conv", "MatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN", "Attention", "MoE", "Gather")
    return short(next((o for o in operators if any(p in o for p in products)), next(iter(operators), "")), 14)


# what it cost
def _operators(saved: Saved) -> dict[str, Any]:
    keys = ("params", "macs", "activations")
    rows: list[dict[str, Any]] = [
        {"operator": r.text("operator"), **{k: r.pair(k) for k in ("nodes", *keys)}}
        for r in saved.rows("operators")[:MAX_FEW]
    ]
    return {"rows": rows, "most": {k: max((r[k].before for r in rows), default=0) for k in keys}}


def _profile(found: Saved | None) -> dict[str, Any] | None:
    """Milliseconds by operator of ONNX Runtime, and the nodes that gained and lost most."""
    if found is None:
        return None
    rows: list[dict[str, Any]] = [
        {"operator": r.text("operator"), "ms": Pair(*r.numbers("ms", 2)), "kernels": Pair(*r.numbers("kernels", 2))}
        for r in found.rows("operators")[:MAX_FEW]
    ]
    nodes = [
        {
            "node": r.text("node"),
            "ms": Pair(r.at("before").amount("ms"), r.at("after").amount("ms")),
            "saved": r.amount("saved_ms"),
            "verdict": r.text("verdict"),
        }
        for r in found.rows("nodes")[:MAX_FEW]
    ]
    return {
        "total": Pair(*found.numbers("total_ms", 2)),
        "operators": rows,
        "nodes": nodes,
        "most": max((max(r["ms"].before, r["ms"].after) for r in rows), default=0),
        "runs": found.count("runs"),
    }


def _accuracy(saved: Saved) -> dict[str, Any]:
    readings = [
        {
            "stage": stage(r.text("stage")),
            "value": metric(r.text("name"), r.number("value")),
            "share": r.number("value") if r.text("name") in SHARES else None,
        }
        for r in saved.rows("metrics")[:MAX_FEW]
    ]
    first = next(iter(saved.rows("metrics")), None)
    outputs = [
        {"name": name, **{k: row.number(k) for k in NUMERICS}}
        for name, row in list(saved.named("numerics").items())[:MAX_FEW]
    ]
    mended = [
        {"node": r.text("node"), "before": r.number("before"), "after": r.number("after")}
        for r in saved.rows("recovery")[:MAX_MANY]
    ]
    name = first.text("name") if first else ""
    return {
        "metric": f"{name}: {METRICS.get(name, 'a metric of your own')}",
        "samples": samples(first) if first else "",
        "readings": readings,
        "outputs": outputs,
        "on": saved.text("numerics_on"),
        "mended": mended,
        "unmended": [(r.text("node"), r.text("reason")) for r in saved.rows("unrecovered")[:MAX_FEW]],
    }


def _gates(saved: Saved) -> list[dict[str, Any]]:
    return [
        {
            "gate": f"--{r.text('gate').replace('_', '-')}",
            "value": "not finite" if (value := r.number("value")) is None else f"{value:.6g}",
            "limit": f"{r.amount('limit'):.6g}",
            "passed": r.flag("passed"),
            "detail": r.text("detail"),
        }
        for r in saved.rows("gates")[:MAX_FEW]
    ]


def _latency(found: Saved | None) -> dict[str, Any] | None:
    if found is None:
        return None
    times = found.at("times")
    before, after = (times.numbers(side)[:MAX_ROUNDS] for side in ("before", "after"))
    low, high = found.numbers("ci95", 2)
    usable = len(before) == len(after) > 0 and min(*before, *after) > 0
    return {
        "svg": latency_svg(before, after, (low, high), PAGE) if usable else "",
        "low": low,
        "high": high,
        "speedup": found.amount("speedup"),
        "verdict": found.text("verdict"),
        "wide": high - low > WIDE * found.amount("speedup"),
        "rounds": found.count("rounds"),
        "sessions": found.count("sessions"),
        "aside": found.count("rounds_left_aside"),
        "busy": found.flag("busy"),
        "on_cpu": found.flag("on_cpu"),
        "threads": found.count("threads"),
        "provider": provider(found),
        "optimization": found.text("graph_optimization"),
    }


def _timing(saved: Saved) -> dict[str, Any] | None:
    """The latency model: steps, tries, and how long kernels take at each width."""
    found = saved.maybe("timing")
    if found is None:
        return None
    cuts = {r.text("dim"): r.count("after") for r in saved.rows("cuts")}
    drawn = [_times(r, cuts) for r in found.rows("kernels")[:MAX_PANELS]]
    tries = [
        {"asked": r.amount("asked"), "predicted": r.amount("predicted"), "measured": r.amount("measured")}
        | dict(zip(("low", "high"), r.numbers("ci95", 2), strict=True))
        for r in found.rows("attempts")[:MAX_FEW]
    ]
    steps = [
        {"kind": r.text("kind"), "step": r.count("step"), "kernels": r.count("kernels"), "excess": r.number("excess")}
        for r in found.rows("steps")[:MAX_FEW]
    ]
    return {
        "svg": times_svg(drawn, PAGE) if drawn else "",
        "drawn": len(drawn),
        "steps": steps,
        "tries": tries,
        "whole": found.amount("whole_ms"),
        "predicted": found.number("predicted"),
        "micro": sum(found.at("micro_models").count(n) for n in ("measured", "known")),
    }


def _times(row: Saved, cuts: Mapping[str, int]) -> Times:
    kept, ms = row.numbers("kept")[:MAX_POINTS], row.numbers("ms")[:MAX_POINTS]
    if not kept or len(kept) != len(ms):
        raise row.wrong("ms", f"list of {len(kept)} numbers")
    title = f"{row.text('kind')} {short(row.text('kernel'), 24)}\nby {short(row.text('dim'))}"
    return Times(title, [int(k) for k in kept], ms, cuts.get(row.text("dim")))


def _sensitivity(saved: Saved) -> dict[str, Any] | None:
    found = saved.maybe("sensitivity")
    if found is None:
        return None
    cuts = {r.text("dim"): r.count("after") for r in saved.rows("cuts")}
    panels = []
    for row in found.rows("dims"):
        kept, errors = row.numbers("kept")[:MAX_POINTS], row.numbers("errors")[:MAX_POINTS]
        if not kept or len(kept) != len(errors):
            raise row.wrong("errors", f"list of {len(kept)} numbers")
        probe = row.at("measured")
        name, size = row.text("dim"), row.count("size")
        measured = (probe.count("kept"), probe.number("error") or 0.0)
        panels.append((row.text("kind"), Panel(name, size, [int(k) for k in kept], errors, measured, cuts.get(name))))
    drawn = [Panel(f"{short(p.title)}\n{p.size} {kind}", *_rest(p)) for kind, p in panels[:MAX_PANELS]]
    rows: list[dict[str, Any]] = [
        {
            "dim": p.title,
            "kind": kind,
            "size": p.size,
            "at": [_error(p, share * p.size) for share in (0.75, 0.5, 0.25)],
            "chosen": p.chosen,
            "error": None if p.chosen is None else _error(p, p.chosen),
        }
        for kind, p in panels[:MAX_MANY]
    ]
    return {
        "svg": panels_svg(drawn, PAGE) if drawn else "",
        "drawn": len(drawn),
        "rows": rows,
        "samples": found.count("samples"),
        "left_out": found.count("left_out"),
    }


def _rest(p: Panel) -> tuple[Any, ...]:
    return p.size, p.kept, p.errors, p.measured, p.chosen


def _error(p: Panel, kept: float) -> float:
    """The error at the listed width that is nearest."""
    return min(zip(p.kept, p.errors, strict=True), key=lambda pair: abs(pair[0] - kept))[1]


def _frozen(saved: Saved) -> list[dict[str, Any]]:
    return [
        {
            "reason": r.text("reason"),
            "dims": r.count("dims"),
            "units": r.count("units"),
            "examples": [(e.text("dim"), e.text("where")) for e in r.rows("examples")[:EXAMPLES]],
        }
        for r in saved.rows("frozen_reasons")[:MAX_FEW]
    ]


def _plan(saved: Saved) -> dict[str, Any]:
    cuts = saved.rows("cuts")
    rows: list[dict[str, Any]] = [
        {"dim": r.text("dim"), "kind": r.text("kind"), "units": Pair(r.amount("before"), r.amount("after"))}
        for r in cuts[:MAX_MANY]
    ]
    refused = saved.rows("refused")
    return {
        "layers": [_dropped(r) for r in saved.rows_if_any("dropped_layers")[:MAX_MANY]],
        "cuts": rows,
        "more_cuts": len(cuts) - len(rows),
        "refused": [(r.text("dim"), r.text("reason")) for r in refused[:MAX_FEW]],
        "more_refused": max(0, len(refused) - MAX_FEW),
        "options": _options(saved.at("options")),
    }


def _dropped(row: Saved) -> dict[str, Any]:
    """A layer that went as a whole."""
    scores = {name: row.number(name) for name in ("influence", "error")}
    told = {name: "" if value is None else f"{value:.2g}" for name, value in scores.items()}
    return {"layer": row.text("layer"), "kind": row.text("kind"), **told} | {
        name: row.count(name) for name in ("params", "macs")
    }


def _options(options: Saved) -> list[tuple[str, str]]:
    """Options that were set."""
    given = {k: v for k in options.names() if (v := options.raw(k)) not in (None, False, "", [], {})}
    return [(shown(k), shown(str(v))) for k, v in list(given.items())[:MAX_FEW]]


def _made(saved: Saved) -> dict[str, Any]:
    shapes = saved.at("macs").at("input_shapes")
    return {
        "command": saved.text("command", MAX_COMMAND),
        "passes": [
            (r.text("name"), f"{r.amount('seconds'):.2f} s", r.flag("modified")) for r in saved.rows("passes")[:MAX_FEW]
        ],
        "versions": [(shown(k), saved.at("versions").text(k)) for k in saved.at("versions").names()[:MAX_FEW]],
        "notes": saved.texts("notes", MAX_COMMAND)[:MAX_FEW],
        "inputs": [(shown(k), " × ".join(f"{n:.0f}" for n in shapes.numbers(k))) for k in shapes.names()[:MAX_FEW]],
    }
