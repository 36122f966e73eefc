"""The library call: budgets are met on the result, numbers are exact, nothing is printed, nothing given is changed."""

from __future__ import annotations

import inspect
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune import GateError, InputError, Plan, cost, proof
from onnxprune.feeds import batch_size
from onnxprune.graph import outline
from onnxprune.inference import TypedGraph
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import PASSES, PREPARE
from onnxprune.plan import bind
from onnxprune.reading import load
from onnxprune.sessions import Settings, run
from onnxprune.validate.surgery_check import SurgeryCheck
from onnxprune.writing import serialize
from tests.common import build

FOLDER = Path(__file__).resolve().parent.parent / "models"
MODELS = [FOLDER / f"{name}.onnx" for name in ("mnist_cnn", "mnist_vit", "langid_gru")]
BUDGETS: list[dict[str, Any]] = [{"ratio": 0.3}, {"ratio": 0.5}, {"macs": 0.5}, {"params": 0.6}]
MLP = """(float[N,4] x) => (float[N,3] y) <float[4,8] A, float[8] a, float[8,6] B, float[6,3] C> {
  h = MatMul(x, A) b = Add(h, a) r = Relu(b) g = MatMul(r, B) s = Relu(g) y = MatMul(s, C) }"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency of a few rounds: it is not what these tests are about."""
    monkeypatch.setattr("onnxprune.validate.latency.MIN_SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr("onnxprune.validate.latency.MAX_ROUNDS", 9)


def prepared(model: Path | onnx.ModelProto) -> TypedGraph:
    """The graph that plans are made for."""
    state = State(load(model))
    PassManager(parse(PREPARE, PASSES)).run(state)
    return state.typed


def per_sample(typed: TypedGraph) -> int:
    return cost.macs(typed).at({}) // batch_size(typed.graph, typed.facts.binding)


each_model = pytest.mark.parametrize("model", MODELS, ids=lambda m: m.stem)


# budgets
@each_model
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("budget", BUDGETS, ids=lambda b: "{}={}".format(*next(iter(b.items()))))
def test_budget_is_met_and_proven(model: Path, scope: str, budget: dict[str, Any]) -> None:
    result = onnxprune.prune(model, scope=scope, data=model.with_suffix(".calib.npz"), **budget)
    check, report = result.report.surgery_check, result.report
    assert check is not None and check.passed and check.max_rel_err < 1e-5
    onnx.checker.check_model(result.model, full_check=True)
    before, after = load(model), load(result.model)
    assert (report.params.before, report.params.after) == (before.params(), after.params())
    assert (report.macs.before, report.macs.after) == (per_sample(prepared(model)), per_sample(prepared(result.model)))
    assert report.bytes.after == len(serialize(result.model))
    assert [i.name for i in after.inputs] == [i.name for i in before.inputs]
    assert outline(after).splitlines()[-1] == outline(before).splitlines()[-1]
    typed = prepared(model)
    if "ratio" in budget:
        check_ratio(typed, result.plan, budget["ratio"], scope)
    elif "macs" in budget:
        assert report.macs.after <= budget["macs"] * report.macs.before
        check_tight(typed, result.plan, cost.macs(typed), budget["macs"], scope)
    else:
        assert report.params.after <= budget["params"] * report.params.before
        check_tight(typed, result.plan, cost.params(typed), budget["params"], scope)


def check_ratio(typed: TypedGraph, plan: Plan, ratio: float, scope: str) -> None:
    """Local: floor(r * n) of every dim. Global: that many in all, less those that would have emptied a dim."""
    gone = {d.name: d.dim.size - int(plan.keep[d.name].sum()) if d.name in plan.keep else 0 for d in typed.prunable}
    sizes = {d.name: d.dim.size for d in typed.prunable}
    if scope == "local":
        assert gone == {name: math.floor(ratio * n) for name, n in sizes.items()}
    else:
        most = math.floor(ratio * sum(sizes.values()))
        assert most - len(sizes) <= sum(gone.values()) <= most
    assert all(gone[name] < n for name, n in sizes.items())


def check_tight(typed: TypedGraph, plan: Plan, poly: cost.Polynomial, wanted: float, scope: str) -> None:
    """One unit more in the dim that was cut last (local: in every dim) would not fit."""
    kept = {d: int(mask.sum()) for d, mask in bind(plan, typed).items()}
    if scope == "global":
        more = max(poly.at({**kept, d: n + 1}) for d, n in kept.items())
    else:
        more = poly.at({d: n + 1 for d, n in kept.items()})
    assert poly.at(kept) <= wanted * poly.at({}) < more


@pytest.mark.parametrize("ratio", [0.9, 0.99, 0.9999])
@each_model
def test_no_dim_is_emptied(model: Path, ratio: float) -> None:
    result = onnxprune.prune(model, ratio=ratio, check=False)
    assert all(mask.any() for mask in result.plan.keep.values())
    assert all(0 not in t.dims for t in result.model.graph.initializer)


@each_model
def test_lossless_changes_nothing_but_size(model: Path) -> None:
    result = onnxprune.prune(model, lossless=True, data=model.with_suffix(".calib.npz"))
    assert result.report.surgery_check is not None and result.report.surgery_check.passed
    assert all(row["rel_l2"] < 1e-5 for row in result.report.numerics.values())


@pytest.mark.parametrize("model", MODELS[:2], ids=lambda m: m.stem)
def test_planted_zeros_go_without_loss(model: Path) -> None:
    """Every second unit of a dim zeroed in all weights that carry it: lossless takes exactly these."""
    state = State(load(model))
    PassManager(parse(PREPARE, PASSES)).run(state)
    typed, proto = state.typed, state.graph.to_proto()
    dim = next(d for d in typed.prunable if d.kind in ("neurons", "filters"))
    gone = np.arange(dim.dim.size) % 2 == 0
    tensors = {t.name: t for t in proto.graph.initializer}
    for place in dim.places:
        array = onnx.numpy_helper.to_array(tensors[place.tensor]).copy()
        if array.shape[place.axis] == gone.size:
            np.moveaxis(array, place.axis, 0)[gone] = 0
            tensors[place.tensor].CopyFrom(onnx.numpy_helper.from_array(array, place.tensor))
    result = onnxprune.prune(proto, lossless=True)
    assert result.report.surgery_check is not None and result.report.surgery_check.passed
    assert int((~result.plan.keep[dim.name]).sum()) == int(gone.sum())


# exact numbers, from the layers' own formulas: half of every dim is removed
# model, params, MACs of one sample, some shapes
HALVES = [
    # stem 160, two 3x3 of 16, 3x3 of 16 to 32 and of 32, 1x1 of 16 to 32, twice 32-64-64-32, norm 4*32, head 330, and
    # 8 scalars
    ("mnist_cnn", 29_362, 2_092_032, {"onnx::Conv_139": [16, 1, 3, 3], "onnx::Conv_160": [64, 1, 3, 3]}),
    # patches 1600, class 32, positions 544, four blocks of 8528 (width 32, 2 heads of 8, 96 neurons), norm 64, head 330
    ("mnist_vit", 36_683, 619_456, {"val_13": [32, 48], "val_74": [32, 96], "pos_embed": [1, 17, 32]}),
    # embedding 84*16, one direction of 32: 3*32*(16 + 32 + 2), then 3*32*(32 + 32 + 2), head 32*16 + 16
    ("langid_gru", 13_008, 516_608, {"onnx::GRU_342": [1, 96, 16], "onnx::GRU_385": [1, 96, 32]}),
]


@pytest.mark.parametrize(("name", "params", "macs", "shapes"), HALVES, ids=[h[0] for h in HALVES])
def test_exact_size_of_half(name: str, params: int, macs: int, shapes: dict[str, list[int]]) -> None:
    result = onnxprune.prune(FOLDER / f"{name}.onnx", ratio=0.5, scope="local", check=False)
    made = {t.name: list(t.dims) for t in result.model.graph.initializer}
    assert (result.report.params.after, result.report.macs.after) == (params, macs)
    assert {n: made[n] for n in shapes} == shapes


WHOLE = [("mnist_cnn", 112_978, 8_198_144), ("mnist_vit", 172_043, 2_984_064), ("langid_gru", 116_881, 5_310_464)]


@pytest.mark.parametrize(("name", "params", "macs"), WHOLE, ids=[w[0] for w in WHOLE])
def test_exact_size_of_the_whole(name: str, params: int, macs: int) -> None:
    report = onnxprune.prune(FOLDER / f"{name}.onnx", ratio=0.5, check=False).report
    assert (report.params.before, report.macs.before) == (params, macs)


# a good library
@each_model
def test_same_bytes_from_every_source(model: Path) -> None:
    proto = onnx.load(model)
    sources = (model, str(model), model.read_bytes(), proto, proto)
    assert len({serialize(onnxprune.prune(s, ratio=0.5, check=False).model) for s in sources}) == 1
    graph = gs.import_onnx(onnx.load(model))
    twice = [onnxprune.prune(graph, ratio=0.5, check=False) for _ in range(2)]
    assert serialize(twice[0].model) == serialize(twice[1].model)
    assert twice[0].report.params.after == onnxprune.prune(proto, ratio=0.5, check=False).report.params.after


@each_model
def test_nothing_given_is_changed(model: Path) -> None:
    proto, data = onnx.load(model), dict(np.load(model.with_suffix(".calib.npz")))
    before, inputs = serialize(proto), {n: a.copy() for n, a in data.items()}
    result = onnxprune.prune(proto, ratio=0.5, data=data)
    assert serialize(proto) == before and all(np.array_equal(inputs[n], a) for n, a in data.items())
    for tensor in result.model.graph.initializer:
        tensor.ClearField("raw_data")
    assert serialize(proto) == before


@each_model
def test_nothing_is_printed(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnxprune.prune(model, ratio=0.5)
    with pytest.raises(InputError):
        onnxprune.prune(b"junk", ratio=0.5)
    foreign = onnxprune.prune(build(MLP.replace("Relu(b)", "com.example.Unknown(b)")), ratio=0.5)
    assert foreign.report.surgery_check is None
    assert any("com.example.Unknown" in note for note in foreign.report.notes)
    assert capfd.readouterr() == ("", "")


def test_threads() -> None:
    """Eight at once give what one gives, whatever the others do."""
    jobs = [(m, budget) for m in MODELS for budget in BUDGETS] * 2

    def work(job: tuple[Path, dict[str, Any]]) -> bytes:
        return serialize(onnxprune.prune(job[0], check=False, **job[1]).model)

    alone = [work(j) for j in jobs[: len(jobs) // 2]] * 2
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, jobs)) == alone


def test_threads_with_checks() -> None:
    proto = build(MLP)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda seed: onnxprune.prune(proto, ratio=0.5, seed=seed), [0, 1] * 4))
    assert len({serialize(r.model) for r in made}) == 1
    assert all(r.report.surgery_check is not None and r.report.surgery_check.passed for r in made)


def test_signature() -> None:
    """As documented."""
    stated = {
        "ratio": None, "macs": None, "params": None, "bytes": None, "latency": None, "latency_ms": None,
        "max_drop": None, "lossless": False,
        "scope": "global", "criterion": "", "normalise": None, "round_to": 1, "include": (), "exclude": (), "steps": 1,
        "drop_layers": (), "schedule": "",
        "recover": True, "rotate": True, "curves": None, "data": None, "test_data": None, "samples": 512,
        "metric": None, "seed": 0, "check": True,
        "passes": None, "gates": None, "custom_op_library": (), "settings": Settings(threads=1), "allow_slower": False,
        "cache": True,
    }  # fmt: skip
    found = inspect.signature(onnxprune.prune).parameters
    assert {n: p.default for n, p in found.items() if n != "model"} == stated
    assert all(p.kind is p.KEYWORD_ONLY for n, p in found.items() if n != "model")


# plans
@each_model
def test_plan_round_trip(model: Path) -> None:
    result = onnxprune.prune(model, ratio=0.5, check=False)
    again = Plan.from_json(result.plan.to_json())
    assert again.to_json() == result.plan.to_json() and again.model == load(model).fingerprint()
    assert {n: m.tolist() for n, m in again.keep.items()} == {n: m.tolist() for n, m in result.plan.keep.items()}
    assert serialize(onnxprune.apply(model, again, check=False).model) == serialize(result.model)


# keep-masks over A:1 (8 units) and B:1 (6 units), a word that the message must hold
BAD_PLANS = [
    ({"A:0": np.ones(4, bool)}, "A:0"),
    ({"Z:1": np.ones(4, bool)}, "Z:1"),
    ({"A:1": np.arange(9) > 3}, "9 units"),
    ({"A:1": np.zeros(8, bool)}, "at least one"),
]


@pytest.mark.parametrize(("keep", "word"), BAD_PLANS, ids=[w for _, w in BAD_PLANS])
def test_plan_that_does_not_fit(keep: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        onnxprune.apply(build(MLP), Plan(keep), check=False)


# options, a word of the message
BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "exactly one budget"),
    ({"ratio": 0.5, "params": 0.5}, "ratio, params"),
    ({"ratio": 0.5, "lossless": True}, "ratio, lossless"),
    ({"ratio": "0.5"}, "ratio"),
    ({"ratio": True}, "ratio"),
    ({"ratio": math.nan}, "nan"),
    ({"ratio": 0.5, "seed": -1}, "seed"),
    ({"ratio": 0.5, "seed": 0.5}, "seed"),
    ({"ratio": 0.5, "round_to": 2.0}, "round_to"),
    ({"ratio": 0.5, "criterion": None}, "criterion"),
    ({"ratio": 0.5, "include": "kind:heads"}, "kind:heads"),
    ({"ratio": 0.5, "passes": "prune(ratio=0.25)"}, "ratio"),
    ({"ratio": 0.5, "passes": "fold-constants"}, "ratio"),
    ({"ratio": 0.5, "data": 3}, "data"),
    ({"ratio": 0.5, "data": [3]}, "data"),
    ({"ratio": 0.5, "data": []}, "no samples"),
    ({"ratio": 0.5, "data": {"x": np.zeros((2, 4), np.float32)}, "samples": 0}, "samples"),
    ({"ratio": 0.5, "metric": "rel-l2"}, "data"),
    ({"ratio": 0.5, "data": "random", "metric": "luck"}, "luck"),
    ({"ratio": 0.5, "data": {"x": [[1.0] * 4]}}, "float64"),
]


@pytest.mark.parametrize(("options", "word"), BAD_OPTIONS, ids=[str(o) for o, _ in BAD_OPTIONS])
def test_bad_option(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        onnxprune.prune(build(MLP), **options)


@pytest.mark.parametrize("kind", ["dict", "list of dicts", "file", "folder", "single array"])
def test_ways_to_give_data(kind: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, labels=np.zeros(40))
    (tmp_path / "one").mkdir()
    np.save(tmp_path / "one" / "x.npy", x)
    data = {
        "dict": {"x": x}, "list of dicts": [{"x": x[:20]}, {"x": x[20:]}], "file": tmp_path / "d.npz",
        "folder": tmp_path, "single array": tmp_path / "one" / "x.npy",
    }[kind]  # fmt: skip
    report = onnxprune.prune(build(MLP), ratio=0.5, data=data).report
    assert report.numerics_on == "data" and report.macs_shapes == {"x": [1, 4]}


def test_failed_check_carries_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "surgery_check", lambda *_: SurgeryCheck(False, 0.5, 1e-4, "output 'y', input 0"))
    with pytest.raises(GateError, match=r"surgery check failed: error 0\.5 ") as caught:
        onnxprune.prune(build(MLP), ratio=0.5)
    assert caught.value.report.surgery_check.max_rel_err == 0.5


@pytest.mark.parametrize("data", [None, {"x": np.ones((2, 4), np.float32)}])
def test_a_pruned_model_that_does_not_run_is_a_failed_check(monkeypatch: pytest.MonkeyPatch, data: Any) -> None:
    whole, plain = load(build(MLP)).params(), proof.program
    monkeypatch.setattr(proof, "program", lambda graph: plain(graph) if graph.params() == whole else b"junk")
    with pytest.raises(GateError, match=r"does not run the .*a bug of onnxprune"):
        onnxprune.prune(build(MLP), ratio=0.5, data=data)


def test_units_without_which_the_original_does_not_run_are_named() -> None:
    """Split makes as many parts as there were positive scores when the file was made; four small rows make one."""
    model = build(
        "(float[2,4] x) => (float[2,3] y) <float[4,8] A, float[8,2] R, float[4,6] B, float[6,3] C, int64[1] axis>"
        "{ h = MatMul(x, A) a = Abs(h) r = MatMul(a, R) s = ReduceSum(r, axis) n = NonZero(s) p, q = Split<axis=1>(n)"
        " g = MatMul(x, B) f = Cast<to=1>(p) t = ReduceSum(f) z = Mul(g, t) y = MatMul(z, C) }",
        17,
    )
    rows = np.float32([[0, 0.05]] * 4 + [[5, 0]] * 4)
    for t in model.graph.initializer:
        given = {"R": rows, "axis": np.zeros(1, np.int64)}.get(t.name)
        t.CopyFrom(t if given is None else numpy_helper.from_array(given, t.name))
    with pytest.raises(GateError, match="says nothing about units without which the original does not run"):
        onnxprune.prune(model, ratio=0.5, scope="local")
    assert onnxprune.prune(model, ratio=0.5, scope="local", include=["B:1"]).report.params.after < 60 + 32


def test_report_of_a_model_that_does_not_run_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is infinite, which JSON does not know."""
    monkeypatch.setattr(proof, "surgery_check", lambda *_: SurgeryCheck(False, math.inf, 1e-4, "ONNX Runtime"))
    with pytest.raises(GateError, match="error inf") as caught:
        onnxprune.prune(build(MLP), ratio=0.5)
    assert '"max_rel_err": null' in caught.value.report.to_json()


def test_random_numbers_are_the_same_for_both_models() -> None:
    noisy = build(MLP.replace("h = MatMul(x, A)", "n = RandomNormalLike(x) z = Add(x, n) h = MatMul(z, A)"))
    result = onnxprune.prune(noisy, ratio=0.5)
    assert result.report.surgery_check is not None and result.report.surgery_check.passed
    assert not any(a.name == "seed" for node in result.model.graph.node for a in node.attribute)
    dead = next(t for t in noisy.graph.initializer if t.name == "C")
    dead.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(dead) * np.float32([[1]] * 4 + [[0]] * 2), "C"))
    assert onnxprune.prune(noisy, lossless=True).report.params.after == 4 * 8 + 8 + 8 * 4 + 4 * 3


def test_two_cuts_are_both_checked_and_counted() -> None:
    result = onnxprune.prune(build(MLP), passes="prune(ratio=0.5,scope='local'),prune(ratio=0.5,scope='local')")
    made = {t.name: list(t.dims) for t in result.model.graph.initializer}
    assert (made["A"], made["B"], made["C"]) == ([4, 2], [2, 2], [2, 3])
    assert result.report.macs.after == 4 * 2 + 2 * 2 + 2 * 3 and result.report.surgery_check is not None


def test_without_checks_sizes_are_those_that_the_model_runs_at() -> None:
    """Where one pair of usual sizes does not fit, numbers that follow from sizes would be taken for fixed ones."""
    text = """(float[N,3,H,W] x) => (float[N,P,4] y)
      <float[8,3,1,1] A, float[8,4] B, int64[2] R = {-1, 8}, int64[1] T = {2}> {
        a = Conv (x, A) r = Relu (a) p = MaxPool <kernel_shape = [64, 1]> (r) q = Squeeze (p, T)
        t = Transpose <perm = [0, 2, 1]> (q) n = Shape <start = 0, end = 1> (x) c = Concat <axis = 0> (n, R)
        s = Reshape (t, c) y = MatMul (s, B) }"""
    made = onnxprune.prune(build(text), ratio=0.5, check=False)
    assert made.plan.removed
    assert run(made.model, {"x": np.zeros((5, 3, 64, 9), np.float32)})["y"].shape == (5, 9, 4)
