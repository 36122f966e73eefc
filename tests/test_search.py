"""Budgets in latency, on a made-up clock: the model says one thing, the measurement another, and the search has to find
the widths whose measured time is the one that is wanted. What is slower is refused where speed was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxprune
from onnxprune import GateError, InputError, cost
from onnxprune.__main__ import main
from onnxprune.budget import BLOCK, Budget
from onnxprune.dims import Dim
from onnxprune.graph import Graph
from onnxprune.inference import TypedGraph
from onnxprune.judge import Judge, Loss
from onnxprune.passes.prune import Prune
from onnxprune.plan import make_plan
from onnxprune.search import TOLERANCE, TRIES, _is_within, missed_time
from onnxprune.sensitivity import analyse
from onnxprune.sessions import Settings
from onnxprune.stopwatch import Stopwatch
from onnxprune.timing import Clock
from onnxprune.timing.clock import LatencyModel
from onnxprune.validate.latency import Comparison, Timing
from tests.common import build, typed_model

MODELS = Path(__file__).resolve().parent.parent / "models"
CNN = MODELS / "mnist_cnn.onnx"
CALIBRATION = MODELS / "mnist_cnn.calib.npz"
MLP = """(float[N,16] x) => (float[N,16] y) <float[16,64] A, float[64,64] B, float[64,16] C> {
  a = MatMul(x, A) r = Relu(a) b = MatMul(r, B) s = Relu(b) y = MatMul(s, C) }"""
MS = 2.0  # of the original
REFIT = "refit-least-squares"


class MacClock:
    """A clock for plans: what has half the MACs takes half the time; dims go by eight."""

    def cost(self, typed: TypedGraph) -> cost.Cost:
        return cost.macs(typed)

    def multiples(self, typed: TypedGraph) -> Mapping[Dim, int]:
        return {d.dim: 8 for d in typed.prunable}


@pytest.mark.parametrize("scope", ["global", "local"])
def test_a_plan_in_time_is_the_plan_for_the_cost_that_the_clock_tells(scope: str) -> None:
    typed = typed_model(build(MLP))
    timed = make_plan(typed, Budget(latency=0.5, scope=scope), clock=MacClock())
    plain = make_plan(typed, Budget(macs=0.5, scope=scope, round_to=8))
    assert timed.keep.keys() == plain.keep.keys()
    assert all((timed.keep[n] == plain.keep[n]).all() for n in plain.keep)


def test_a_step_that_is_given_wins_over_the_clock() -> None:
    typed = typed_model(build(MLP))
    timed = make_plan(typed, Budget(latency=0.5, round_to=4), clock=MacClock())
    plain = make_plan(typed, Budget(macs=0.5, round_to=4))
    assert {n: int(m.sum()) for n, m in timed.keep.items()} == {n: int(m.sum()) for n, m in plain.keep.items()}


def test_without_a_clock_the_reason_is_said() -> None:
    for budget in (Budget(latency=0.5), Budget(ratio=0.5, round_to="auto")):
        with pytest.raises(InputError, match="need measurements"):
            make_plan(typed_model(build(MLP)), budget)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[float], float]], list[float]]:
    """Replaces clocks: the model of a latency is the MACs, what is measured is a function of their share. Returns the
    shares that were measured.
    """

    def model(self: Clock, typed: TypedGraph) -> LatencyModel:
        return LatencyModel(cost.macs(typed).terms, 0)  # type: ignore[arg-type]

    def install(measured: Callable[[float], float]) -> list[float]:
        shares: list[float] = []

        def compare(self: Stopwatch, graph: Graph, turn: int = 0, seconds: float | None = None) -> Comparison:
            share = measured(_macs(graph) / _macs(self.original))
            shares.append(share)
            return comparison(share, share * 0.99, share * 1.01)

        monkeypatch.setattr(Clock, "_model", model)
        monkeypatch.setattr(Stopwatch, "compare", compare)
        monkeypatch.setattr(Stopwatch, "original_ms", MS)
        return shares

    return install


def _macs(graph: Graph) -> int:
    typed = typed_model(graph.to_proto())
    return cost.macs(typed).at({})


def comparison(ratio: float, low: float, high: float, ms: float = MS) -> Comparison:
    before, after = Timing(np.full(5, ms), 1.0, (1.0, 1.0)), Timing(np.full(5, ms * ratio), ratio, (low, high))
    return Comparison((before, after), Settings(threads=1), 5)


TRUTHS: dict[str, Callable[[float], float]] = {
    "as predicted": lambda m: m,
    "a fixed part": lambda m: 0.3 + 0.7 * m,
    "slower than that": lambda m: m**0.6,
    "faster than that": lambda m: m**1.5,
}


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("wanted", [0.8, 0.6])
def test_the_measured_time_is_the_wanted_one(truth: str, wanted: float, clock: Any) -> None:
    shares = clock(TRUTHS[truth])
    result = onnxprune.prune(CNN, latency=wanted, cache=False)
    report = result.report
    assert report.latency_ms is not None and report.timing is not None
    assert abs(report.latency_ms.timings[-1].ratio / wanted - 1) <= TOLERANCE
    attempts = report.timing.attempts
    assert 1 <= len(attempts) <= TRIES and len(shares) == len(attempts) + 1  # and the last look
    assert abs(attempts[-1].measured / wanted - 1) <= TOLERANCE
    assert report.options["latency"] == wanted


def test_milliseconds_are_those_of_the_result(clock: Any) -> None:
    clock(TRUTHS["as predicted"])
    report = onnxprune.prune(CNN, latency_ms=1.2, cache=False).report
    assert report.latency_ms is not None
    assert report.latency_ms.timings[-1].median_ms == pytest.approx(1.2, rel=TOLERANCE)
    with pytest.raises(InputError, match="is met already: the original takes 2 ms"):
        onnxprune.prune(CNN, latency_ms=MS, cache=False)


def test_with_data_the_curves_choose_and_the_result_is_recovered(clock: Any) -> None:
    clock(TRUTHS["a fixed part"])
    result = onnxprune.prune(CNN, latency=0.7, data=CALIBRATION, samples=64, cache=False)
    report = result.report
    assert report.latency_ms is not None and report.sensitivity is not None and report.recovery
    assert abs(report.latency_ms.timings[-1].ratio / 0.7 - 1) <= TOLERANCE
    assert report.surgery_check is not None and report.surgery_check.passed
    assert [m.stage for m in report.metrics] == ["original", "removed", "recovered"]


def test_what_cannot_be_reached_is_said(clock: Any) -> None:
    clock(lambda m: 0.9 + 0.1 * m)
    with pytest.raises(GateError, match=r"latency 0\.5 of the original cannot be reached: .* takes 0\.9"):
        onnxprune.prune(CNN, latency=0.5, cache=False)
    with pytest.raises(InputError, match="of the latency cannot be reached"):
        onnxprune.prune(CNN, latency=1e-6, cache=False)


def test_a_last_measurement_that_misses_is_told() -> None:
    assert missed_time(Budget(latency=0.6), comparison(0.65, 0.64, 0.66)) != []
    assert missed_time(Budget(latency=0.6), comparison(0.65, 0.62, 0.68)) == []
    assert missed_time(Budget(latency_ms=1.0), comparison(0.6, 0.59, 0.61, ms=2.0)) != []
    assert missed_time(Budget(latency_ms=1.0), comparison(0.5, 0.49, 0.51, ms=2.0)) == []


def test_a_dry_run_asks_the_model_alone(clock: Any, tmp_path: Path) -> None:
    shares = clock(TRUTHS["as predicted"])
    json_file = tmp_path / "report.json"
    command = ["prune", str(CNN), "--latency", "0.6", "--dry-run", "--no-cache", "--json", str(json_file), "-q"]
    assert main(command) == 0 and not shares
    report = json.loads(json_file.read_text())
    assert report["outcome"] == "dry run" and 0.5 < report["timing"]["predicted"] <= 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--latency", "2"], "latency must be a number between 0 and 1"),
        (["--latency-ms", "0"], "latency_ms must be a number of milliseconds above 0"),
        (["--latency", "0.5", "--macs", "0.5"], "exactly one budget"),
        (["--latency", "0.5", "--no-check"], "needs the checks"),
        (["--ratio", "0.5", "--round-to", "odd"], "neither a whole number nor auto"),
    ],
)
def test_options_that_cannot_be(options: list[str], message: str, capsys: Any, tmp_path: Path) -> None:
    assert main(["prune", str(CNN), "-o", str(tmp_path / "out.onnx"), *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


# what is slower than its input
@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The clock says this of a result, each time that it is asked."""
    monkeypatch.setattr("onnxprune.stopwatch.SLOWER", 0.02)

    def install(*found: Comparison) -> None:
        answers = iter(found)
        monkeypatch.setattr(Stopwatch, "compare", lambda self, graph, turn=0, seconds=None: next(answers))

    return install


SLOW, WIDE, FAST = comparison(1.5, 1.4, 1.6), comparison(1.5, 0.9, 2.0), comparison(0.8, 0.7, 0.9)
TINY, SHORT = comparison(1.015, 1.01, 1.03), comparison(1.5, 1.4, 1.6, ms=0.02)


def test_a_slower_result_is_refused_where_speed_is_asked_for(slow: Any) -> None:
    slow(SLOW, SLOW, SLOW, SLOW)  # with widths as they come, then in blocks
    with pytest.raises(
        GateError, match=r"slower than the original: it takes 1\.5 of its time \(1\.4 to 1\.6\)"
    ) as error:
        onnxprune.prune(CNN, macs=0.5)
    assert error.value.report.failure


def test_what_odd_widths_make_slower_is_cut_again_in_blocks(slow: Any) -> None:
    slow(SLOW, SLOW, FAST)
    found = onnxprune.prune(CNN, macs=0.5).report
    assert found.latency_ms is FAST and found.options["round_to"] == BLOCK
    assert all(c.after % BLOCK == 0 for c in found.cuts) and any(
        "cut again in multiples of 8" in n for n in found.notes
    )


@pytest.mark.parametrize("answers", [(SLOW, SLOW, FAST), (FAST, SLOW, SLOW, FAST, FAST)], ids=("before", "after"))
def test_the_second_cut_takes_the_curves_of_the_first(
    answers: tuple[Comparison, ...], slow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slower widths are seen before anything is recovered, mostly."""
    measured: list[object] = []
    monkeypatch.setattr("onnxprune.search.analyse", lambda *given: measured.append(given) or analyse(*given))
    slow(*answers)
    found = onnxprune.prune(CNN, macs=0.5, data=CALIBRATION, samples=64).report
    assert found.options["round_to"] == BLOCK and found.sensitivity is not None and len(measured) == 1
    assert any("in multiples of 8" in n for n in found.notes) and sum(p.name == REFIT for p in found.passes) == 1


def test_widths_that_were_asked_for_are_not_changed(slow: Any) -> None:
    slow(SLOW, SLOW)
    with pytest.raises(GateError, match="slower than the original"):
        onnxprune.prune(CNN, macs=0.5, round_to=4)


@pytest.mark.parametrize("answers", [(SLOW, WIDE), (SLOW, FAST), (TINY,), (SHORT,), (WIDE,), (FAST,)])
def test_what_is_not_shown_twice_is_not_refused(answers: tuple[Comparison, ...], slow: Any) -> None:
    slow(*answers)
    found = onnxprune.prune(CNN, macs=0.5).report
    assert found.latency_ms is answers[-1] and not any("slower" in n for n in found.notes)


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 0.5},
        {"params": 0.5},
        {"macs": 0.5, "allow_slower": True},
        {"macs": 0.5, "gates": {"max_latency_ratio": 2}},
    ],
    ids=["units", "parameters", "allowed", "a gate says how slow"],
)
def test_elsewhere_it_is_said(options: dict[str, Any], slow: Any) -> None:
    slow(SLOW, SLOW)
    found = onnxprune.prune(CNN, **options).report
    assert any("slower than the original" in n for n in found.notes)


def test_a_lossless_run_that_removes_nothing_is_not_judged(slow: Any) -> None:
    slow(SLOW)
    assert not any("slower" in n for n in onnxprune.prune(CNN, lossless=True).report.notes)


@pytest.mark.parametrize(("samples", "judged"), [(512, 48), (128, 64), (64, 64)])
def test_what_a_limit_on_the_metric_is_judged_by_is_held_back(samples: int, judged: int) -> None:
    """A quarter, or what is more than is wanted for calibration, up to as many again."""
    x = np.random.default_rng(0).standard_normal((192, 16)).astype(np.float32)
    made = onnxprune.prune(build(MLP), max_drop=0.5, data={"x": x}, samples=samples, allow_slower=True)
    assert {m.samples for m in made.report.metrics} == {judged}
    assert made.report.metrics[-1].drop <= 0.5
    assert any(f"on {judged} samples" in n for n in made.report.notes)


# a limit on the metric
MADE_UP: dict[
    str, tuple[Callable[[float], tuple[float, float | None]], float, str]
] = {  # loss and error of what is cut; MACs kept; the note
    "with its error": (lambda cut: (cut / 10, 0.01), 0.8, "standard error 0.01"),
    "of no known error": (lambda cut: (cut / 10, None), 0.7, "of an unknown error"),
    "not shown, but kept to": (lambda cut: (cut / 10, 0.05), 0.99, "do not show the limit"),
}


# loss, error, samples, whether samples are counted: does it keep to 0.01?
LOSSES = [
    (0.004, 0.005, 500, True, True),
    (0.006, 0.005, 500, True, False),
    (-0.01, 0.015, 500, True, True),
    (0.009, None, 500, True, True),
    (0.0, 0.0, 50, True, True),  # so few can show nothing
    (-0.02, 0.02, 50, True, False),
    (-0.02, 0.02, 50, False, True),
]


@pytest.mark.parametrize(("drop", "error", "samples", "counts", "kept"), LOSSES)
def test_what_keeps_to_a_limit(drop: float, error: float | None, samples: int, counts: bool, kept: bool) -> None:
    assert _is_within(0.01, Loss(drop, error, samples), counts) == kept


@pytest.mark.parametrize("case", MADE_UP)
def test_the_loss_and_its_error_stay_below_the_limit(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, kept, note = MADE_UP[case]
    whole = cost.macs(typed_model(build(MLP))).at({})

    def loss(self: Judge, program: Any) -> Loss:
        return Loss(*truth(1 - cost.macs(typed_model(program.model)).at({}) / whole), 1000)

    monkeypatch.setattr(Judge, "loss", loss)
    x = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    found = onnxprune.prune(build(MLP), max_drop=0.03, data={"x": x}, allow_slower=True).report
    assert found.macs.after / found.macs.before == pytest.approx(kept, abs=0.02)
    assert any(note in n and n.startswith("max_drop 0.03: ") for n in found.notes)


def test_a_limit_that_nothing_keeps_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judge, "loss", lambda self, program: Loss(0.04, 0.01, 1000))
    x = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    with pytest.raises(GateError, match="nothing was removed: already at 99"):
        onnxprune.prune(build(MLP), max_drop=0.03, data={"x": x}, allow_slower=True)


def test_what_came_of_other_tries_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Prune.run
    monkeypatch.setattr(Prune, "run", lambda self, state: (state.notes.append("tried"), run(self, state))[1])
    monkeypatch.setattr(Judge, "loss", lambda self, program: Loss(-0.01, 0.001, 1000))
    x = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    found = onnxprune.prune(build(MLP), max_drop=0.03, data={"x": x}, allow_slower=True).report
    assert found.notes.count("tried") == 1
    assert "max_drop 0.03: 0.01 was gained (standard error 0.001) on 1000 samples" in found.notes


@pytest.mark.parametrize(("metric", "told"), [("top1-agreement", True), ("rel-l2", False)])
def test_few_samples_are_told_where_right_ones_are_counted(metric: str, told: bool) -> None:
    x = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    found = onnxprune.prune(build(MLP), max_drop=0.2, data={"x": x}, metric=metric, allow_slower=True).report
    (note,) = [n for n in found.notes if n.startswith("max_drop 0.2: ")]
    assert ("on 16 samples, of which one is 0.062 of the whole" in note) == told
    assert note.endswith("give at least 20") == told
