"""Latency, on a made-up machine: a clock that only moves when a model runs, by its cost, times what disturbs it. So the
true ratio is known, and it can be counted how often an interval misses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from onnxprune import InputError
from onnxprune.sessions import CPU, Settings, session
from onnxprune.validate import latency
from onnxprune.validate.latency import compare, interval

CNN = Path(__file__).resolve().parent.parent / "models" / "mnist_cnn.onnx"
COSTS = {"slow": 0.004, "fast": 0.001, "tiny": 0.00015}  # seconds of a run
TRIALS = 60


@dataclass
class Machine:
    """`session_noise`: standard deviation of a factor that a session keeps; `noise`: of one that every run draws;
    `drift`: how much slower the machine gets in a second; `interrupts`: share of runs during which the CPU is taken.
    """

    session_noise: float = 0.0
    noise: float = 0.0
    drift: float = 0.0
    interrupts: Callable[[str], float] = lambda name: 0.0
    seed: int = 0
    now: float = 0.0
    worked: float = 0.0
    taken: int = 0
    log: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def open(self, name: str, settings: Settings) -> Any:
        self.log.append(("open", name))
        self.now += 0.001
        return Job(self, name, float(np.exp(self.rng.normal(0, self.session_noise))))


@dataclass
class Job:
    machine: Machine
    name: str
    factor: float

    def run(self, names: None, feeds: dict[str, Any]) -> None:
        m = self.machine
        m.log.append(("run", self.name))
        cost = COSTS[self.name] * self.factor * (1 + m.drift * m.now) * float(np.exp(m.rng.normal(0, m.noise)))
        if m.rng.random() < m.interrupts(self.name):
            m.now += 0.05
            m.taken += 1
        m.now += cost
        m.worked += cost


def on(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(latency, "open_session", machine.open)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: machine.now)
    monkeypatch.setattr(latency.time, "thread_time", lambda: machine.worked)
    monkeypatch.setattr(latency, "_times_taken", lambda: machine.taken)
    return machine


def test_the_ratio_is_that_of_the_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    on(Machine(), monkeypatch)
    found = compare(["slow", "fast", "tiny"], {}, seconds=1)
    assert [t.median_ms for t in found.timings] == pytest.approx([4, 1, 0.15])
    assert [t.ratio for t in found.timings] == pytest.approx([1, 0.25, 0.0375])
    assert [t.speedup for t in found.timings] == pytest.approx([1, 4, 80 / 3])
    assert [t.verdict for t in found.timings] == ["no difference shown", "faster", "faster"]
    assert compare(["fast", "slow"], {}, seconds=1).timings[1].verdict == "slower"


def test_drift_of_the_machine_leaves_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times slower at the end: the milliseconds say so, the ratio does not move."""
    on(Machine(drift=0.3), monkeypatch)
    found = compare(["slow", "fast"], {}, seconds=10)
    assert found.timings[0].times_ms.max() > 3.5 * found.timings[0].times_ms.min()
    assert found.timings[1].ratio == pytest.approx(0.25, rel=0.002)


def misses(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a model is found to differ from itself."""
    on(machine, monkeypatch)
    found = [compare(["fast", "fast"], {}, seconds=0.4, seed=k).timings[1] for k in range(TRIALS)]
    return sum(t.verdict != "no difference shown" for t in found)


@pytest.mark.parametrize(("session_noise", "noise"), [(0.0, 0.1), (0.05, 0.01), (0.05, 0.05), (0.2, 0.02)])
def test_a_model_does_not_differ_from_itself(
    session_noise: float, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 5 % one expects 3 of 60; more than 8 happen by chance in less than one of 100."""
    assert misses(Machine(session_noise, noise), monkeypatch) <= 8


def test_rounds_alone_would_claim_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the second stage of the bootstrap is for."""
    monkeypatch.setattr(latency, "interval", lambda groups, seed: interval([np.concatenate(groups)], seed))
    assert misses(Machine(0.05, 0.01), monkeypatch) > 8


def test_interval_narrows_with_more_groups() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.normal(1 + rng.normal(0, 0.1), 0.01, 5) for _ in range(80)]
    few, many = (np.diff(interval(g, 0))[0] for g in (groups[:5], groups))
    assert many < few / 2


def test_groups_of_unequal_size() -> None:
    """A group of one value weighs as one value."""
    groups = [*(np.full(50, 1.0) for _ in range(5)), np.array([9.0])]
    assert interval(groups, 0) == (1.0, 1.0)


def test_order_is_shuffled_and_each_model_runs_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = on(Machine(), monkeypatch)
    monkeypatch.setattr(latency, "MIN_SAMPLE_SECONDS", 0.0)
    found = compare(["slow", "fast"], {}, seconds=0.5)
    opened = [n for what, n in machine.log if what == "open"]
    assert len(opened) == 2 * found.sessions and len(set(zip(opened[::2], opened[1::2], strict=True))) == 2
    ran = [n for what, n in machine.log if what == "run"]
    assert ran.count("slow") == ran.count("fast") == found.rounds + 2 * found.sessions  # two runs warm up


def test_short_runs_are_repeated_within_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = on(Machine(), monkeypatch)
    found = compare(["slow", "tiny"], {}, seconds=0.1)
    ran = [n for what, n in machine.log if what == "run"]
    assert ran.count("tiny") == 7 * found.rounds + 2 * found.sessions


def test_interrupted_samples_are_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third run is interrupted for 50 ms, twelve times as long as it takes."""
    on(Machine(interrupts=lambda name: 1 / 3), monkeypatch)
    found = compare(["slow", "fast"], {}, seconds=10)
    assert found.timings[0].times_ms.max() == pytest.approx(4) and not found.busy
    assert found.timings[1].ci95 == pytest.approx((0.25, 0.25))


def test_rounds_that_stay_interrupted_are_left_aside_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    on(Machine(interrupts=lambda name: 0.8 if name == "slow" else 0), monkeypatch)
    found = compare(["slow", "fast"], {}, seconds=20)
    assert found.left_aside > 10 and not found.busy
    assert found.timings[0].times_ms.max() == pytest.approx(4)


def test_a_busy_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    on(Machine(interrupts=lambda name: 1), monkeypatch)
    found = compare(["slow", "fast"], {}, Settings(threads=2), seconds=1)
    assert found.busy and not found.on_cpu and found.left_aside == 0 and found.timings[0].times_ms.min() > 50


def test_on_a_busy_machine_one_thread_is_told_by_its_time_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    on(Machine(interrupts=lambda name: 1), monkeypatch)
    found = compare(["slow", "fast"], {}, seconds=1)
    assert found.busy and found.on_cpu
    assert [t.median_ms for t in found.timings] == pytest.approx([4, 1])
    assert found.timings[1].ci95 == pytest.approx((0.25, 0.25))


def test_wide_interval_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    on(Machine(noise=0.5), monkeypatch)
    found = compare(["fast", "fast"], {}, seconds=0.1).timings[1]
    assert found.is_wide and found.verdict == "no difference shown"
    on(Machine(noise=0.01), monkeypatch)
    assert not compare(["slow", "fast"], {}, seconds=1).timings[1].is_wide


def test_few_seconds_still_make_a_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    on(Machine(), monkeypatch)
    found = compare(["slow", "fast"], {}, seconds=0)
    assert (found.sessions, found.rounds) == (latency.MIN_SESSIONS, latency.MIN_SESSIONS * latency.MIN_ROUNDS)


def test_long_runs_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run warms a session up and one makes a round, interrupted or not."""
    monkeypatch.setitem(COSTS, "long", 0.5)
    machine = on(Machine(interrupts=lambda name: 1.0), monkeypatch)
    found = compare(["long", "long"], {}, seconds=1)
    assert (found.sessions, found.rounds) == (latency.MIN_SESSIONS, latency.MIN_SESSIONS)
    assert sum(kind == "run" for kind, _ in machine.log) == 2 * 2 * latency.MIN_SESSIONS


def test_slow_runs_are_not_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run of a session is its round: one run of each model for each time that they are opened."""
    monkeypatch.setitem(COSTS, "slow", 10.0)
    machine = on(Machine(), monkeypatch)
    found = compare(["slow", "fast"], {}, seconds=1)
    assert (found.sessions, found.rounds) == (latency.MIN_SESSIONS, latency.MIN_SESSIONS)
    assert machine.log.count(("run", "slow")) == latency.MIN_SESSIONS
    assert [t.median_ms for t in found.timings] == pytest.approx([10_000, 1])


def test_progress_tells_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    on(Machine(), monkeypatch)
    told: list[tuple[str, float, float]] = []
    compare(["slow", "fast"], {}, seconds=1, progress=lambda text, done=0, total=0, /: told.append((text, done, total)))
    assert {t[0] for t in told} == {"latency"} and {t[2] for t in told} == {1}
    assert [t[1] for t in told] == sorted(t[1] for t in told) and told[-1][1] > 0.5


# settings
@pytest.mark.parametrize("name", ["cpu", "CPU", CPU, "cpuexecutionprovider"])
def test_provider_by_its_short_name(name: str) -> None:
    assert Settings(provider=name).provider == CPU


BAD_SETTINGS = [
    ({"provider": "warp"}, "warp.*CPUExecutionProvider"),
    ({"optimization": "most"}, "most.*extended"),
    ({"threads": -1}, "threads"),
    ({"threads": 0.5}, "threads"),
]


@pytest.mark.parametrize(("options", "words"), BAD_SETTINGS, ids=[str(o) for o, _ in BAD_SETTINGS])
def test_bad_settings(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Settings(**options)


@pytest.mark.parametrize("level", ["all", "extended", "basic", "disabled"])
def test_levels_give_the_same_outputs(level: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 1, 28, 28)).astype(np.float32)
    want = session(CNN).run(None, {"image": x})[0]
    made = latency.open_session(CNN, Settings(1, "cpu", level))
    np.testing.assert_allclose(made.run(None, {"image": x})[0], want, rtol=1e-4, atol=1e-5)
    assert made.get_session_options().intra_op_num_threads == 1


def test_real_comparison() -> None:
    x = np.zeros((1, 1, 28, 28), np.float32)
    found = compare([CNN, CNN], {"image": x}, seconds=0.2)
    assert found.sessions >= 3 and found.timings[1].ratio == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize(("groups", "t"), [(2, 12.71), (3, 4.303), (6, 2.571), (21, 2.086), (1001, 1.962)])
def test_few_groups_widen_the_interval(groups: int, t: float) -> None:
    """Against the quantiles of Student's distribution; with one degree of freedom the series has its worst error."""
    tail = latency.expanded_tail(groups)
    wanted = NormalDist().cdf(-t * math.sqrt(groups / (groups - 1)))
    assert tail == pytest.approx(wanted, rel=0.02) or max(tail, wanted) < 1e-6
