"""The first screen of the page: what the run brought, what it cost, and whether it is right, in plain words; and how
numbers are written everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxprune.report.saved import Pair, Saved
from onnxprune.report.terminal import STAGES, count

NO_BREAK = "\N{NO-BREAK SPACE}"
SHARES = ("top1", "top5", "top1-agreement")  # metrics that are shares of the samples
METRICS = {
    "top1": "share of the samples that get the right class",
    "top5": "share of the samples with the right class among the first five",
    "top1-agreement": "share of the samples that keep the original's class",
    "rel-l2": "relative error of the outputs against the original",
    "cosine": "cosine with the original's outputs",
    "sqnr-db": "signal to noise against the original, in dB",
    "kl": "divergence from the original's class probabilities, in nats",
}


@dataclass(frozen=True)
class Tile:
    """One answer: a number, what it is, and how it comes about. `tone`: "good", "bad", or none."""

    title: str
    value: str
    words: str
    tone: str = ""


def lead(saved: Saved) -> str:
    cuts = [Pair(r.amount("before"), r.amount("after")) for r in saved.rows("cuts")]
    dims = saved.at("dims")
    units, gone = sum(c.before for c in cuts), sum(c.before - c.after for c in cuts)
    would = "would be removed" if saved.text("outcome") == "dry run" else "were removed"
    layers = len(saved.rows_if_any("dropped_layers"))
    whole = f"{layers} whole layer{'' if layers == 1 else 's'}"
    if not cuts:
        return (
            f"{whole} {would.replace('were', 'was') if layers == 1 else would}." if layers else "Nothing was removed."
        )
    kinds = {r.text("kind") for r in saved.rows("cuts")}
    noun = kinds.pop() if len(kinds) == 1 else "units"
    first = f"{whole} {would.replace('were', 'was') if layers == 1 else would}, and " if layers else ""
    return first + (
        f"{gone:,.0f} of {units:,.0f} {noun} {would}, in {len(cuts)} of the {dims.count('prunable')} sets of units"
        " (dims) that can be cut."
    )


def tiles(saved: Saved) -> list[tuple[str, list[Tile]]]:
    """What it brought, what it cost, and whether it is right."""
    macs, size, params = saved.pair("macs"), saved.pair("bytes"), saved.pair("params")
    latency = saved.maybe("latency_ms")
    brought = [
        Tile(f"{less(macs)} work", told(macs), "multiply-accumulates (MACs) for one sample"),
        Tile(f"{less(size, 'smaller', 'larger')} file", told(size, "B"), f"parameters {told(params)}"),
        _speed(latency) if latency else Tile("speed not measured", "", "no checks or measurements were made"),
    ]
    right = [_check(saved, "surgery", "it computes what the original computes without the removed units")]
    if saved.maybe("rotation_check") is not None:
        right.insert(0, _check(saved, "rotation", "the original with its units in other bases computes the same"))
    gates = saved.rows("gates")
    if gates:
        passed = sum(g.flag("passed") for g in gates)
        tone = "good" if passed == len(gates) else "bad"
        right.append(Tile(f"{passed} of {plural(len(gates), 'gate')} passed", "", "limits set for this result", tone))
    planned = saved.text("outcome") == "dry run"
    title = "What it would bring" if planned else "What it brought"
    return [
        (title, brought),
        ("What it would cost" if planned else "What it cost", [_quality(saved)]),
        ("Is it right?", right),
    ]


def _speed(latency: Saved) -> Tile:
    ratio, (low, high) = latency.amount("speedup"), latency.numbers("ci95", 2)
    value = f"{milliseconds(latency.amount('before'))} → {milliseconds(latency.amount('after'))}"
    threads = latency.count("threads")
    where = f"{plural(threads, 'thread') if threads else 'all threads'}, {provider(latency)}"
    words = f"for a run; 95 % sure that it is {low:.2f} to {high:.2f} times as fast ({where})"
    verdict = latency.text("verdict")
    if verdict == "faster":
        return Tile(f"{ratio:.2f}× faster", value, words, "good")
    if verdict == "slower":
        return Tile(f"{1 / max(ratio, 1e-9):.2f}× slower", value, words, "bad")
    return Tile("no speed-up shown", value, words)


def provider(latency: Saved) -> str:
    return latency.text("provider").removesuffix("ExecutionProvider")


def _quality(saved: Saved) -> Tile:
    readings = saved.rows("metrics")
    if len(readings) > 1:
        first, last = readings[0], readings[-1]
        name = last.text("name")
        value = metric(name, last.number("value"))
        if name != "rel-l2":
            value = f"{metric(name, first.number('value'))} → {value}"
        middle = [f"{metric(name, r.number('value'))} {stage(r.text('stage'))}" for r in readings[1:-1][-1:]]
        words = "; ".join([METRICS.get(name, "a metric of your own"), *middle, samples(last)])
        return Tile(value, f"{name}, before → after" if "→" in value else name, words)
    rows = saved.named("numerics")
    worst = max((e for r in rows.values() if (e := r.number("rel_l2")) is not None), default=None)
    if worst is None:
        return Tile("accuracy not measured", "", "give data to measure it on")
    words = f"largest relative error of an output, against the original, on {saved.text('numerics_on')}"
    return Tile(f"{100 * worst:.3g} % off", "", words)


def samples(reading: Saved) -> str:
    return f"measured on {plural(reading.count('samples'), 'sample')}"


def _check(saved: Saved, name: str, words: str) -> Tile:
    check = saved.maybe(f"{name}_check")
    if check is None:
        return Tile(f"{name} not checked", "", "the pruned model was not compared with the masked original")
    error = check.number("max_rel_err")
    found = "not finite" if error is None else f"{error:.1e}"
    value = f"largest error {found}, limit {check.amount('tolerance'):.0e}"
    if check.flag("passed"):
        return Tile(f"✓ {name} check passed", value, words, "good")
    return Tile(f"✗ {name} check failed", value, "a bug of onnxprune: the result must not be used", "bad")


# words for numbers
def told(pair: Pair, unit: str = "") -> str:
    return f"{count(pair.before, unit)} → {count(pair.after, unit)}".replace(" ", NO_BREAK).replace(
        f"→{NO_BREAK}", "→ "
    )


def less(pair: Pair, down: str = "less", up: str = "more") -> str:
    """60 % less, 3 % more, no less."""
    share = 100 * abs(pair.gone)
    text = f"{share:.0f}" if share >= 10 else f"{share:.1f}" if share >= 0.05 else ""
    return f"{text} % {down if pair.gone > 0 else up}" if text else f"no {down}"


def milliseconds(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 4}f}{NO_BREAK}ms"


def metric(name: str, value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{100 * value:.1f}{NO_BREAK}%" if name in SHARES else f"{value:.4g}"


def stage(name: str) -> str:
    return STAGES.get(name, name)


def plural(n: float, noun: str) -> str:
    return f"{n:,.0f} {noun}" if n == 1 else f"{n:,.0f} {noun}s"


def percent(share: float) -> str:
    """A share as a length in CSS."""
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%" if math.isfinite(share) else "0%"
