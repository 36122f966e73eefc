"""The latency model, on made-up times: kernels are cut out as they are in the pruned model, asked for once, and their
times become costs; steps are found where times have them; what was measured is found again. No test looks at a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from onnxprune.dims import Dim, Prod
from onnxprune.feeds import Binding, random_feeds
from onnxprune.graph import Graph
from onnxprune.inference import TypedGraph
from onnxprune.manager import PassManager, State, parse
from onnxprune.passes import PASSES, PREPARE
from onnxprune.passes.prune import cut
from onnxprune.reading import load
from onnxprune.sessions import Feeds, Settings, program, session, watched
from onnxprune.sizing import running_pair, running_shapes
from onnxprune.timing import Clock, Store, micro, steps
from onnxprune.timing.kernels import Coordinate, Group, groups
from onnxprune.timing.micro import Micro, at_widths, cut_out
from onnxprune.timing.tables import FRACTIONS, grid, interpolated
from onnxprune.unification import Space
from onnxprune.validate.kernels import Origin
from onnxprune.validate.profile import Kernel
from tests.common import build, typed_model

MODELS = Path(__file__).resolve().parent.parent / "models"
CNN, VIT, GRU = (MODELS / f"{name}.onnx" for name in ("mnist_cnn", "mnist_vit", "langid_gru"))
ONE = Settings(threads=1)
ROUNDING = 1e-4  # of a kernel alone against the same one in the model: other fusions
TWINS = """(float[N,8] x) => (float[N,8] y)
  <float[8,16] I, float[16,64] A, float[64,16] B, float[16,64] C, float[64,16] D, float[16,8] O> {
  i = MatMul(x, I) a = MatMul(i, A) r = Relu(a) b = MatMul(r, B) c = MatMul(b, C) s = Relu(c) d = MatMul(s, D)
  y = MatMul(d, O) }"""
WIDE = """(float[N,8] x) => (float[N,8] y) <float[8,512] A, float[512,8] B> {
  a = MatMul(x, A) r = Relu(a) y = MatMul(r, B) }"""


def prepared(model: Path) -> TypedGraph:
    graph = load(model)
    state = State(graph, running_pair(graph, 0))
    PassManager(parse(PREPARE, PASSES)).run(state)
    return state.typed


def kernel(ms: float, *nodes: int, operator: str = "MatMul") -> Kernel:
    return Kernel(f"k{nodes}", operator, Origin(frozenset(nodes)), np.array([ms]))


def by_node(typed: TypedGraph) -> list[Group]:
    """Each node as a kernel that takes a millisecond."""
    found, rest = groups(typed, [kernel(1.0, i) for i in range(len(typed.graph.nodes))])
    assert rest == 0
    return found


def half(typed: TypedGraph) -> dict[Dim, int]:
    return {d.dim: max(1, d.dim.size // 2) for d in typed.prunable}


# kernels alone
@pytest.mark.parametrize("model", (CNN, VIT, GRU), ids=lambda p: p.stem)
def test_a_kernel_alone_computes_what_it_does_in_the_pruned_model(model: Path) -> None:
    """Every node of the pruned graph, fed with what it is fed with there."""
    typed = prepared(model)
    sizes = half(typed)
    pruned = cut(typed, {d: np.arange(d.size) < n for d, n in sizes.items()})
    made = [n for node in pruned.nodes for n in node.output if n]
    feeds = random_feeds(typed.graph, typed.facts.binding, 0)
    values = feeds | dict(
        zip(made, session(program(watched(pruned, made)), optimise=False).run(made, feeds), strict=True)
    )
    for group in by_node(typed):
        part = group.part
        if part is None:
            continue
        alone = at_widths(part, {d: sizes[d] for c in group.coordinates for d in c.dims})
        assert {n: a.shape for n, a in alone.feeds.items()} == {n: values[n].shape for n in alone.feeds}
        outputs = [o.name for o in alone.graph.outputs]
        inner = {n: values[n] for n in alone.feeds}
        for name, got in zip(outputs, session(program(alone.graph)).run(outputs, inner), strict=True):
            np.testing.assert_allclose(got, values[name], rtol=ROUNDING, atol=ROUNDING, err_msg=group.name)


def test_side_by_side_every_kernel_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The profiler's times are replaced by a number for each kernel; what is only copied between layouts is not
    counted.
    """
    typed = typed_model(
        build("""(float[1,16,8,8] x, float[1,32,8,8] r) => (float[1,32,8,8] y) <float[32,16,3,3] W> {
        c = Conv<pads=[1,1,1,1]>(x, W) s = Add(c, r) y = Relu(s) }""")
    )
    part = cut_out(typed, [0, 1, 2], blocked=True)
    assert part is not None and part.stems == {"r"}
    names: list[str] = []

    def times(events: object) -> dict[str, np.ndarray]:
        found = plain(events)
        names.extend(n for n in found if n)
        return {n: np.full_like(t, 1000.0) for n, t in found.items()}

    plain = micro.run_times
    monkeypatch.setattr(micro, "run_times", times)
    one, two = micro.measure([at_widths(part, {}), at_widths(part, {})], ONE)
    assert one == two and one is not None and one >= 1
    assert len(names) > one + two  # stems and reorders were left out, or nothing could be


def test_what_does_not_run_is_left_out_alone() -> None:
    typed = typed_model(build(TWINS))
    part = cut_out(typed, [0])
    assert part is not None
    good = at_widths(part, {})
    bad = Micro(good.graph, {n: a[:, :-1] for n, a in good.feeds.items()})
    found = micro.measure([good, bad, good], ONE)
    assert found[1] is None and found[0] is not None and found[2] is not None


# questions
def test_equal_kernels_ask_one_question() -> None:
    found = {g.name: g.question for g in by_node(typed_model(build(TWINS)))}
    assert found["a"] == found["c"] and found["b"] == found["d"] and len(set(found.values())) == 5
    other = {g.name: g.question for g in by_node(typed_model(build(TWINS.replace("64", "32"))))}
    assert {n for n in found if found[n] == other[n]} == {"i", "y"}


def test_kernels_that_share_nodes_are_one() -> None:
    typed = typed_model(build(TWINS))
    found, rest = groups(typed, [kernel(1.0, 0, 1), kernel(2.0, 1), kernel(4.0, 2), kernel(0.5)])
    assert [(g.nodes, g.ms) for g in found] == [((2,), 4.0), ((0, 1), 3.0)] and rest == 0.5


def test_dims_that_always_come_together_are_one_width() -> None:
    space = Space()
    heads, size = space.dim(4), space.dim(8)
    both = Coordinate((heads, size), Prod((heads, size)))
    assert both.at({}) == 1 and both.at({heads: 2}) == 0.5 and both.at({heads: 2, size: 4}) == 0.25
    assert both.at({heads: np.array([1, 4]), size: 4}).tolist() == [0.125, 0.5]


# tables
def test_interpolation_is_exact_where_lines_are() -> None:
    knots = (np.array([0.1, 0.5, 1.0]), np.array([0.25, 1.0]))
    values = np.array([[a * b + a for b in knots[1]] for a in knots[0]])
    for a, b in ((0.1, 0.25), (0.3, 0.7), (0.75, 0.3), (1.0, 1.0)):
        assert interpolated(knots, values, (a, b)) == pytest.approx(a * b + a)
    assert interpolated(knots, values, (np.array([0.0, 0.3, 2.0]), 0.7)) == pytest.approx([0.17, 0.51, 1.7])


def test_grids_keep_to_multiples_and_hold_both_ends() -> None:
    (first, *_) = by_node(typed_model(build(WIDE)))
    (d,) = first.coordinates[0].dims
    points = [p[0] for p in grid(first, {d: 16}).points]
    assert points[0] == 16 and points[-1] == 512 and all(n % 16 == 0 for n in points)
    assert len(points) == len(FRACTIONS[1]) + 1
    assert [p[0] for p in grid(first, {d: 100}).points][-2:] == [500, 512]


def fake(monkeypatch: pytest.MonkeyPatch, ms: Callable[[Micro], float]) -> list[Micro]:
    """Times from a formula; the micro-models that were asked for."""
    asked: list[Micro] = []

    def measure(micros: Sequence[Micro], settings: Settings, tell: object) -> list[float]:
        asked.extend(micros)
        return [ms(m) for m in micros]

    monkeypatch.setattr("onnxprune.timing.clock.measure", measure)
    return asked


def macs(m: Micro) -> float:
    """A kernel takes as long as it has weights: products here are all of the same rows."""
    return sum(float(np.prod(t.dims)) for t in m.graph.tensors.values()) / 1e4


def clock_of(model: Graph, store: Store | None = None) -> tuple[Clock, Feeds]:
    feeds = random_feeds(model, Binding(running_shapes(model, 0)), 0)
    return Clock(feeds, ONE, store), feeds


def test_a_model_is_the_sum_of_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that take as long as they have MACs: so do the products of the model."""
    asked = fake(monkeypatch, macs)
    typed = typed_model(build(TWINS))
    found = clock_of(typed.graph)[0].cost(typed)
    assert found.at({}) == found.rest + sum(t.whole for t in found.terms)
    products = [t for t in found.terms if getattr(t, "table", None) is not None]
    assert len(products) == 6 and len({t.group.question for t in products}) == 4
    sizes = {d.dim: d.dim.size // 2 - k for k, d in enumerate(typed.prunable)}  # other widths for every twin
    for term in products:
        want = sum(t.at(sizes) for t in term.group.products) / sum(t.whole for t in term.group.products)
        assert term.at(sizes) / term.whole == pytest.approx(want, rel=0.02)  # the grid of a bent surface
    twins = [m for m in asked if [tuple(t.dims) for t in m.graph.tensors.values()] == [(16, 64)]]
    assert len(twins) == 1  # of the two


def test_what_was_measured_is_known_the_next_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = fake(monkeypatch, macs)
    typed = typed_model(build(TWINS))
    first, again = (clock_of(typed.graph, Store(ONE, tmp_path))[0] for _ in range(2))
    first.cost(typed)
    count = len(asked)
    again.cost(typed)
    assert count == len(asked) == first.measured == again.known and first.known == again.measured == 0
    clock_of(typed.graph, Store(Settings(threads=2), tmp_path))[0].cost(typed)
    assert len(asked) == 2 * count


# steps
def blocks(size: int, slack: float = 0.0) -> Callable[[int], float]:
    """As slow as at the next multiple, and slower by `slack` in between."""
    return lambda n: -(-n // size) * size * (1 + slack * (n % size > 0))


@pytest.mark.parametrize(
    ("time", "step"),
    [(float, 1), (blocks(16), 16), (blocks(8), 8), (blocks(4, 0.5), 4), (blocks(32), 32), (blocks(1000, 0), 1)],
    ids=["none", "16", "8", "4", "32", "constant"],
)
def test_steps_are_those_of_the_times(time: Callable[[int], float], step: int) -> None:
    found = steps.find(
        by_node(typed_model(build(WIDE))), lambda probes: [time(next(iter(s.values()))) for _, s in probes]
    )
    assert {kind: f.step for kind, f in found.items()} == {"MatMul": step}


def test_one_noisy_kernel_of_three_does_not_decide() -> None:
    times = {"a": blocks(16), "b": float, "c": float}
    text = """(float[N,8] x) => (float[N,8] y) <float[8,512] A, float[512,256] B, float[256,128] C, float[128,8] D> {
      a = MatMul(x, A) r = Relu(a) b = MatMul(r, B) s = Relu(b) c = MatMul(s, C) t = Relu(c) y = MatMul(t, D) }"""
    listed = [g for g in by_node(typed_model(build(text))) if g.name in times]
    found = steps.find(listed, lambda probes: [times[g.name](next(iter(s.values()))) for g, s in probes])
    assert found["MatMul"].step == 1


def test_a_dim_keeps_to_the_steps_of_the_products_that_it_widens() -> None:
    """Heads of 16 are a step each; what they hold goes 4 by 4, since there are 4 of them; batches have no step."""
    typed = prepared(VIT)
    multiples = steps.rounding(by_node(typed), {"MatMul": steps.Found(16, 3), "Gemm": steps.Found(16, 1)})
    kinds = {d.kind: (d.dim.size, multiples.get(d.dim, 1)) for d in typed.prunable}
    heads, inside = kinds["heads"], kinds["head-channels"]
    assert heads[1] == 16 // np.gcd(16, inside[0]) and inside[1] in (16 // np.gcd(16, heads[0]), 16)
    assert kinds["neurons"][1] == 16


# the store
def test_store_keeps_times_by_settings(tmp_path: Path) -> None:
    store = Store(ONE, tmp_path / "deep" / "folder")
    store.write({"a": 1.5, "b": 0.25})
    assert store.read(["a", "b", "c"]) == {"a": 1.5, "b": 0.25}
    assert Store(Settings(threads=2), store.folder).read(["a"]) == {}
    assert Store(ONE).read(["a"]) == {}
    Store(ONE).write({"a": 1.0})


@pytest.mark.parametrize("damage", [b"", b"not a database at all, but long enough to be read as one" * 40])
def test_a_damaged_store_is_begun_anew(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / "times.sqlite").write_bytes(damage)
    store = Store(ONE, tmp_path)
    assert store.read(["a"]) == {}
    store.write({"a": 2.0})
    assert store.read(["a"]) == {"a": 2.0}


def test_no_place_for_the_store_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Store(ONE, tmp_path / "file")
    store.write({"a": 1.0})
    assert store.read(["a"]) == {}


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    """Each write is a connection of its own, as that of another process is."""
    questions = [f"{k}" for k in range(60)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda q: Store(ONE, tmp_path).write({q: 1.0}), questions))
    assert len(Store(ONE, tmp_path).read(questions)) == len(questions)
