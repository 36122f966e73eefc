"""Gates: what each is held to, that a missed one is named and nothing saved, that none is passed over in silence."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console

import onnxprune
from onnxprune import GateError, InputError
from onnxprune.__main__ import main
from onnxprune.gates import GateResult, Gates
from onnxprune.report import live
from onnxprune.sessions import Settings
from onnxprune.validate import latency, numerics
from onnxprune.validate.latency import Comparison, Timing
from tests.common import build

CNN = Path(__file__).resolve().parent.parent / "models" / "mnist_cnn.onnx"
MLP = """(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8] a, float[8,6] B, float[6,3] C> {
  h = MatMul(x, A) b = Add(h, a) r = Relu(b) g = MatMul(r, B) s = Relu(g) y = MatMul(s, C) }"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "MIN_SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(latency, "MAX_ROUNDS", 9)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(build(MLP), tmp_path / "in.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# what is measured
TIMED = Comparison(
    (Timing(np.ones(9), 1.0, (1.0, 1.0)), Timing(np.full(9, 0.8), 0.8, (0.7, 0.9))), Settings(threads=1), 5
)
SCORES = np.eye(4, 5, dtype=np.float32)
FAR = {  # one output that is close, one that is further off, one of labels
    "near": (SCORES, SCORES + 1e-3 * np.arange(5, dtype=np.float32)),
    "far": (SCORES, SCORES[::-1].copy()),
    "labels": (np.arange(8), np.array([0, 1, 2, 3, 4, 5, 0, 0])),
}


def table(outputs: dict[str, tuple[Any, Any]]) -> dict[str, dict[str, float | None]]:
    found = numerics.Comparison()
    found.add({n: pair[0] for n, pair in outputs.items()}, {n: pair[1] for n, pair in outputs.items()}, {})
    return found.table()


def tried(outputs: dict[str, tuple[Any, Any]] | None = None, **gates: float) -> GateResult:
    (result,) = Gates(**gates).results(TIMED, table(FAR if outputs is None else outputs), 1000)
    return result


# the gate, a limit that is kept, one that is missed, the value, what the detail names
LIMITS: list[tuple[str, float, float, float, str]] = [
    ("max_latency_ratio", 0.9, 0.89, 0.9, "median 0.8"),
    ("max_rel_l2", math.sqrt(2), 1.41, math.sqrt(2), "'far'"),
    ("min_cosine", 0, 0.01, 0.0, "'far'"),
    ("min_top1_agreement", 0, 0.01, 0.0, "'far'"),
    ("max_bytes", 1000, 999, 1000, "bytes"),
]


@pytest.mark.parametrize(("gate", "kept", "missed", "value", "words"), LIMITS, ids=[row[0] for row in LIMITS])
def test_gate_takes_the_worst(gate: str, kept: float, missed: float, value: float, words: str) -> None:
    good, bad = tried(**{gate: kept + 1e-9 * (gate.startswith("max_rel"))}), tried(**{gate: missed})
    assert good.passed and not bad.passed
    assert good.value == pytest.approx(value, abs=1e-9) and words in good.detail
    assert f"--{gate.replace('_', '-')}" in str(bad) and f"{missed:.6g}" in str(bad)


def test_labels_have_an_agreement_and_nothing_else() -> None:
    labels = {"labels": FAR["labels"]}
    assert tried(labels, min_top1_agreement=0.75).passed and not tried(labels, min_top1_agreement=0.76).passed
    for gate in ("max_rel_l2", "min_cosine"):
        with pytest.raises(InputError, match="no output"):
            tried(labels, **{gate: 0.5})


def test_no_class_scores_no_agreement() -> None:
    with pytest.raises(InputError, match="--min-top1-agreement: no output"):
        tried({"image": (np.zeros((2, 3, 4, 4), np.float32),) * 2}, min_top1_agreement=0.5)


# outputs for which the number cannot be told, and whether the gates of rel_l2 and cosine pass
ONES, ZEROS = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
NAN = np.array([[1, np.nan, 1], [1, 1, 1]], np.float32)
ODD = [
    ("both zero", ZEROS, ZEROS, True, True),
    ("from zero", ZEROS, ONES, False, False),
    ("to zero", ONES, ZEROS, True, False),
    ("became not a number", ONES, NAN, False, False),
    ("was not a number", NAN, NAN, True, True),
]


@pytest.mark.parametrize(("before", "after", "error", "cosine"), [o[1:] for o in ODD], ids=[o[0] for o in ODD])
def test_what_cannot_be_told_does_not_pass(before: Any, after: Any, error: bool, cosine: bool) -> None:
    """Neither for itself nor beside an output that is fine."""
    for outputs in ({"o": (before, after)}, {"o": (before, after), "fine": (SCORES, SCORES)}):
        assert tried(outputs, max_rel_l2=1.0).passed == error
        assert tried(outputs, min_cosine=0.5).passed == cosine
    json.dumps(tried({"o": (before, after)}, max_rel_l2=1.0).to_dict(), allow_nan=False)


BAD = [
    ({"max_latency_ratio": -0.1}, "--max-latency-ratio .* at least 0"),
    ({"max_rel_l2": math.nan}, "--max-rel-l2"),
    ({"max_rel_l2": math.inf}, "--max-rel-l2"),
    ({"min_cosine": 1.1}, "--min-cosine .* from -1 to 1"),
    ({"min_top1_agreement": 80}, "--min-top1-agreement .* from 0 to 1"),
    ({"max_bytes": "many"}, "--max-bytes"),
    ({"max_bytes": True}, "--max-bytes"),
    ({"max_speed": 1}, "unknown gate 'max_speed'.*max_bytes"),
]


@pytest.mark.parametrize(("gates", "words"), BAD, ids=[str(g) for g, _ in BAD])
def test_limits_out_of_range(gates: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        onnxprune.prune(build(MLP), ratio=0.5, gates=gates)


# the call
def test_missed_gates_are_all_named_and_reported() -> None:
    with pytest.raises(GateError, match=r"--min-cosine .*; --max-bytes .*: nothing was saved") as caught:
        onnxprune.prune(build(MLP), ratio=0.5, gates={"min_cosine": 1, "max_bytes": 10, "max_rel_l2": 1e6})
    report: Any = caught.value.report
    assert [(g.gate, g.passed) for g in report.gates] == [
        ("max_rel_l2", True),
        ("min_cosine", False),
        ("max_bytes", False),
    ]
    assert report.to_dict()["gates"][2] == {
        "gate": "max_bytes",
        "value": report.bytes.after,
        "limit": 10,
        "passed": False,
        "detail": "bytes of the file",
    }


def test_gates_that_are_kept() -> None:
    gates = Gates(max_latency_ratio=1e6, max_rel_l2=1e6, min_cosine=-1, min_top1_agreement=0, max_bytes=10**6)
    result = onnxprune.prune(build(MLP), ratio=0.5, gates=gates)
    assert len(result.report.gates) == 5 and all(g.passed for g in result.report.gates)
    again = onnxprune.apply(build(MLP), result.plan, gates=gates)
    assert [g.gate for g in again.report.gates] == [g.gate for g in result.report.gates]
    with pytest.raises(GateError, match="--max-bytes"):
        onnxprune.apply(build(MLP), result.plan, gates={"max_bytes": 10})


def test_latency_gate_takes_the_upper_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "compare", lambda *_, **__: TIMED)
    assert onnxprune.prune(build(MLP), ratio=0.5, gates={"max_latency_ratio": 0.9}).report.gates[0].value == 0.9
    with pytest.raises(GateError, match=r"--max-latency-ratio 0.9 > 0.85 \(upper end .* median 0.8"):
        onnxprune.prune(build(MLP), ratio=0.5, gates={"max_latency_ratio": 0.85})


def test_without_checks_only_the_size_is_known() -> None:
    for gate in ("max_latency_ratio", "max_rel_l2", "min_cosine", "min_top1_agreement"):
        with pytest.raises(InputError, match=f"--{gate.replace('_', '-')}: nothing is measured with no checks"):
            onnxprune.prune(build(MLP), ratio=0.5, check=False, gates={gate: 0.5})
    with pytest.raises(GateError, match="--max-bytes"):
        onnxprune.prune(build(MLP), ratio=0.5, check=False, gates={"max_bytes": 10})


def test_operators_that_do_not_run_measure_nothing() -> None:
    foreign = build(MLP.replace("Relu(b)", "com.example.Unknown(b)"))
    with pytest.raises(InputError, match=r"com\.example\.Unknown"):
        onnxprune.prune(foreign, ratio=0.5, gates={"min_cosine": 0.5})
    assert onnxprune.prune(foreign, ratio=0.5, gates={"max_bytes": 10**6}).report.gates[0].passed


# the command line
def run(*argv: str) -> int:
    return main(["prune", "in.onnx", "--ratio", "0.5", "-o", "out.onnx", *argv])


def test_missed_gate_saves_the_report_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--max-bytes", "10", "--min-cosine", "-1", "--json", "r.json", "--plan", "p.json") == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "failed: --max-bytes" in err and "> 10" in err and "--min-cosine" not in err
    assert "(not saved)" in out and "failed, --max-bytes" in out and "passed, --min-cosine" in out
    assert sorted(os.listdir()) == ["in.onnx", "r.json"]
    gates = json.loads((folder / "r.json").read_text())["gates"]
    assert [(g["gate"], g["limit"], g["passed"]) for g in gates] == [
        ("min_cosine", -1, True),
        ("max_bytes", 10, False),
    ]


def test_report_of_a_failure_goes_to_stdout(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a progress line is drawn on stderr."""
    drawn = io.StringIO()
    screen = Console(file=drawn, force_terminal=True, width=80)
    monkeypatch.setattr(live, "console", lambda quiet, stderr: screen)
    assert run("--max-bytes", "10") == 1
    assert "(not saved)" in capsys.readouterr().out and "(not saved)" not in drawn.getvalue()
    assert "latency" in drawn.getvalue()


def test_large_numbers_are_written_out() -> None:
    (result,) = Gates(max_bytes=123_456_788).results(None, {}, 123_456_789)
    assert str(result) == "--max-bytes 123456789 > 123456788 (bytes of the file)"


def test_quiet_failure_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--max-bytes", "10", "-q") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and sorted(os.listdir()) == ["in.onnx"]


def test_gates_in_the_config(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For `prune` and `apply`; the command line wins, gate by gate."""
    (folder / "c.toml").write_text("[prune]\nratio = 0.5\n[gates]\nmax-bytes = 10\nmin_cosine = -1")
    given = ("--config", "c.toml", "--json", "r.json")
    assert main(["prune", "in.onnx", "-o", "out.onnx", *given]) == 1
    assert main(["prune", "in.onnx", "-o", "out.onnx", "--plan", "p.json", *given, "--max-bytes", "100000"]) == 0
    gates = json.loads((folder / "r.json").read_text())["gates"]
    assert [(g["gate"], g["limit"]) for g in gates] == [("min_cosine", -1), ("max_bytes", 100000)]
    assert main(["apply", "p.json", "in.onnx", "-o", "two.onnx", *given]) == 1
    assert main(["apply", "p.json", "in.onnx", "-o", "two.onnx", *given, "--max-bytes", "100000"]) == 0
    assert (folder / "two.onnx").read_bytes() == (folder / "out.onnx").read_bytes()


BAD_OPTIONS = [
    ("--no-check --max-rel-l2 0.1", "", "--max-rel-l2"),
    ("--min-cosine 2", "", "--min-cosine"),
    ("--max-bytes many", "", "--max-bytes"),
    ("", "[gates]\nmax_speed = 1", "max_speed"),
    ("", "[gates]\nmin_cosine = 'high'", "min_cosine"),
    ("", "[gates]\nmax_bytes = 1.5", "max_bytes"),
    ("", "gates = 1", "gates"),
    ("", "check = false\n[gates]\nmin_cosine = 0.9", "--min-cosine"),
]


@pytest.mark.parametrize(("options", "config", "word"), BAD_OPTIONS, ids=[f"{o}{c}" for o, c, _ in BAD_OPTIONS])
def test_bad_gates(folder: Path, capsys: pytest.CaptureFixture[str], options: str, config: str, word: str) -> None:
    (folder / "c.toml").write_text(config)
    assert run("--config", "c.toml", "--json", "r.json", *options.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and word in err
    assert sorted(os.listdir()) == ["c.toml", "in.onnx"]


def test_dry_run_says_that_it_tries_no_gates(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "in.onnx", "--ratio", "0.5", "--dry-run", "--max-bytes", "10"]) == 0
    assert "tries no gates: max_bytes" in capsys.readouterr().out


def test_check_of_the_config_can_be_asked_for_again(folder: Path) -> None:
    (folder / "c.toml").write_text("check = false")
    assert run("--config", "c.toml", "--check", "--min-cosine", "-1", "-q") == 0


def test_settings_of_the_measurement_reach_the_report(folder: Path) -> None:
    assert run("--threads", "2", "--optimization", "basic", "--bench-seconds", "0", "--json", "r.json", "-q") == 0
    found = json.loads((folder / "r.json").read_text())["latency_ms"]
    assert (found["threads"], found["graph_optimization"], found["rounds"]) == (
        2,
        "basic",
        latency.MIN_SESSIONS * latency.MIN_ROUNDS,
    )


def test_outputs_that_cannot_be_compared_are_noted() -> None:
    """Counts of what is positive depend on the values: pruned, the shape is another one."""
    text = MLP.replace("(float[N,3] y)", "(float[N,3] y, int64[2,K] z)").replace(
        "y = MatMul(s, C)", "y = MatMul(s, C) q = Relu(y) z = NonZero(q)"
    )
    x = {"x": np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)}
    report = onnxprune.prune(build(text), ratio=0.5, data=x).report
    assert ("z" in report.numerics) != any("not compared" in n and "'z'" in n for n in report.notes)
    assert "z" not in report.numerics
