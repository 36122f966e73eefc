"""The report as a page: it needs nothing else, says everything, holds what names may do to it, and comes out of the
saved report alone. In a browser it is only opened where there is one.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from onnxprune import api, proof
from onnxprune.__main__ import main
from onnxprune.errors import GateError, InputError
from onnxprune.gates import Gates
from onnxprune.report import page as sections
from onnxprune.report import plots
from onnxprune.report.about import called
from onnxprune.report.answers import less, milliseconds
from onnxprune.report.html import change, page
from onnxprune.report.report import VERSION, Report
from onnxprune.report.saved import Pair, shown
from onnxprune.validate.surgery_check import SurgeryCheck
from tests.common import build

MODELS = Path(__file__).resolve().parent.parent / "models"
VIT = MODELS / "mnist_vit.onnx"
LIMIT_BYTES = 1_000_000
SECTIONS = ("removed", "network", "cost", "accuracy", "latency", "sensitivity", "frozen", "plan", "made")
VOID = {"meta", "path", "rect", "use", "br", "link", "img", "input"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=go>\"'&\\{{7*7}}$\\frac{\u202e\x00\n"
MLP = """(float[N,4] x) => (float[N,3] y)
  <float[4,8] A, float[8] a, float[8,6] B, float[6,3] C> {
  h = MatMul(x, A) b = Add(h, a) r = Relu(b) g = MatMul(r, B) s = Relu(g) y = MatMul(s, C) }"""
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Document(HTMLParser):
    """What a page is made of; its tags must be balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def of(self, attribute: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == attribute]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything: data, a metric, gates, sensitivities, a profile."""
    folder = tmp_path_factory.mktemp("report")
    data = VIT.with_suffix(".calib.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxprune.validate.latency.MAX_ROUNDS", 9)
        patch.chdir(folder)
        small = ("--data", str(data), "--samples", "32")
        assert main(["sensitivity", str(VIT), *small, "-o", "curves.json", "-q"]) == 0
        command = ["prune", str(VIT), *small, "-o", "slim.onnx", "--macs", "0.5", "--sensitivity", "curves.json"]
        command += ["--test-data", str(VIT.with_suffix(".heldout.npz")), "--bench-seconds", "0.1", "-q"]
        command += ["--max-rel-l2", "10", "--max-bytes", "1000000", "--json", "r.json", "--report", "r.html"]
        assert main(command) == 0
    return folder


@pytest.fixture(scope="module")
def saved(made: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((made / "r.json").read_text())
    return found


@pytest.fixture(scope="module")
def html(made: Path) -> str:
    return (made / "r.html").read_text()


def test_the_page_needs_nothing_else(html: str) -> None:
    assert len(html.encode()) < LIMIT_BYTES
    found = Document(html)
    assert (
        "http://" not in html
        and "https://" not in html
        and "@import" not in html
        and "url(" not in html.replace("url(#p", "")
    )
    assert not set(found.tags) & {"link", "img", "iframe", "object", "embed", "base", "form"}
    assert found.tags.count("script") == 1 and "src" not in {n for _, n, _ in found.attributes}
    assert all(h.startswith("#") for h in found.of("href"))
    names = found.of("id")
    assert len(names) == len(set(names))
    targets = {h[1:] for h in found.of("href")} | set(re.findall(r"url\(#([\w-]+)\)", html))
    assert targets <= set(names) and set(SECTIONS) <= set(names)
    assert "default-src 'none'" in html and "#01020" not in html


def test_the_first_screen_answers(html: str, saved: dict[str, Any]) -> None:
    head = " ".join(Document(html[: html.index("<nav")].replace("<body>", "").replace("<html lang=\"en\">", "")
                             .replace("<header>", "")).text)  # fmt: skip
    macs, metrics = saved["macs"], saved["metrics"]
    speed = saved["latency_ms"]
    assert "mnist_vit.onnx" in head and "slim.onnx" in head
    assert f"{100 * (1 - macs['after'] / macs['before']):.0f} % less work" in head and "smaller file" in head
    assert f"{speed['ci95'][0]:.2f} to {speed['ci95'][1]:.2f} times as fast" in head
    assert f"{100 * metrics[0]['value']:.1f}\xa0% → {100 * metrics[-1]['value']:.1f}\xa0%" in head
    assert ("rotation check passed" in head) == (saved["rotation_check"] is not None)
    assert "surgery check passed" in head and "2 of 2 gates passed" in head


def test_every_section_says_what_was_found(html: str, saved: dict[str, Any]) -> None:
    parts = dict(zip(SECTIONS, map(unescape, re.split(r'<section id="\w+">', html)[1:]), strict=True))
    for layer in saved["layers"]:
        assert layer["node"] in parts["removed"]
    assert parts["network"].count('<g class="block') == len(saved["network"]["blocks"])
    assert all(row["operator"] in parts["cost"] for row in (*saved["operators"], *saved["profile"]["operators"]))
    assert "after recovery" in parts["accuracy"] and "--max-rel-l2" in parts["accuracy"]
    assert all(row["node"] in parts["accuracy"] for row in saved["recovery"])
    assert "<svg" in parts["latency"] and "95 % interval" in parts["latency"]
    assert parts["sensitivity"].count("units kept") == min(len(saved["sensitivity"]["dims"]), sections.MAX_PANELS)
    assert all(row["dim"] in parts["sensitivity"] for row in saved["sensitivity"]["dims"])
    assert all(row["reason"] in parts["frozen"] for row in saved["frozen_reasons"])
    assert all(row["dim"] in parts["plan"] for row in saved["cuts"]) and "macs = 0.5" in parts["plan"]
    assert "--sensitivity curves.json" in parts["made"] and saved["versions"]["onnxruntime"] in parts["made"]


def test_stable_keys(saved: dict[str, Any]) -> None:
    assert list(saved) == [
        *("format", "version", "outcome", "failure", "command", "argv", "source", "target", "params", "macs", "bytes"),
        *(
            "dims",
            "options",
            "rotated",
            "rotation_check",
            "surgery_check",
            "numerics",
            "numerics_on",
            "metrics",
            "latency_ms",
            "gates",
            "passes",
        ),
        *(
            "cuts",
            "dropped_layers",
            "frozen",
            "frozen_reasons",
            "refused",
            "recovery",
            "unrecovered",
            "layers",
            "layers_left_out",
        ),
        *("operators", "network", "sensitivity", "profile", "timing", "notes", "versions"),
    ]
    pair = {"before", "after"}
    assert all(set(x["width"]) == set(x["params"]) == set(x["macs"]) == pair for x in saved["layers"])
    assert saved["argv"][:2] == ["onnxprune", "prune"] and saved["command"].startswith(f"onnxprune prune {VIT} ")
    assert (saved["outcome"], saved["failure"]) == ("done", None)
    assert sum(r["dims"] for r in saved["frozen_reasons"]) == len(saved["frozen"])
    assert saved["profile"]["total_ms"][0] > 0 and len(saved["profile"]["operators"]) > 3


def test_the_same_page_from_the_saved_report(made: Path, html: str) -> None:
    text = (made / "r.json").read_text()
    assert page(text) == page(text) == html
    assert main(["report", str(made / "r.json"), "-o", str(made / "again.html")]) == 0
    assert (made / "again.html").read_text() == html


def test_a_call_tells_its_page() -> None:
    report = api.prune(VIT, ratio=0.3, exclude=["kind:width"], check=False).report
    assert report.to_html() == page(report.to_json())
    assert report.about.command == f"onnxprune.prune({str(VIT)!r}, ratio=0.3, exclude=['kind:width'], check=False)"
    assert "speed not measured" in report.to_html() and report.about.source == VIT.name


def test_calls_are_told_by_what_was_given() -> None:
    def function(model: Any, *, data: Any = None, gates: Any = None, steps: int = 1) -> None: ...

    def told(**given: Any) -> str:
        return called(function, {"model": Path("a/m.onnx"), "data": None, "gates": None, "steps": 1} | given
                      ).command  # fmt: skip

    assert told() == "onnxprune.function('a/m.onnx')"
    assert "data=<dict>" in told(data={"x": np.zeros(3)}) and "data=<ndarray>" in told(data=np.zeros(3))
    assert "gates={'max_bytes': 3}" in told(gates={"max_bytes": 3}) and "Gates(" in told(gates=Gates(max_bytes=3))
    assert "data=<str>" in told(data="x" * 1000) and "steps" not in told(steps=1)
    assert told(model=onnx.ModelProto()).startswith("onnxprune.function(<ModelProto>")


# what goes wrong is told
def test_a_missed_gate_is_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.validate.latency.MAX_ROUNDS", 9)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.onnx").write_bytes(build(MLP).SerializeToString())
    (tmp_path / "c.toml").write_text('report = "r.html"\n[gates]\nmax_bytes = 1\n')
    command = ["prune", "in.onnx", "-o", "out.onnx", "--ratio", "0.5", "--json", "r.json", "--config", "c.toml", "-q"]
    assert main(command) == 1
    text = (tmp_path / "r.html").read_text()
    assert text == page((tmp_path / "r.json").read_text())
    assert "Failed: do not use this result" in text and "✗ missed" in text and "0 of 1 gate passed" in text
    assert json.loads((tmp_path / "r.json").read_text())["outcome"] == "failed"
    assert not (tmp_path / "out.onnx").exists()


def test_a_failed_check_is_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a call as well: the error carries the report."""
    monkeypatch.setattr(proof, "surgery_check", lambda *_: SurgeryCheck(False, 0.5, 1e-4, "output 'y', input 0"))
    with pytest.raises(GateError) as failed:
        api.prune(build(MLP), ratio=0.5)
    assert isinstance(failed.value.report, Report)
    text = failed.value.report.to_html()
    assert "Failed: do not use this result" in text and "surgery check failed" in text and "rotation" not in text


def test_a_dry_run_tells_what_the_plan_would_leave(tmp_path: Path) -> None:
    assert main(["prune", str(VIT), "--macs", "0.5", "--dry-run", "--json", str(tmp_path / "d.json"),
                 "--report", str(tmp_path / "d.html"), "-q"]) == 0  # fmt: skip
    done = api.prune(VIT, macs=0.5, check=False).report.to_dict()
    planned = json.loads((tmp_path / "d.json").read_text())
    assert planned["params"] == pytest.approx(done["params"], rel=0.01)
    assert planned["bytes"] == pytest.approx(done["bytes"], rel=0.05)
    assert [x["width"] for x in planned["layers"]] == [x["width"] for x in done["layers"]]
    text = (tmp_path / "d.html").read_text()
    assert "A dry run" in text and "would be removed" in text and "What it would bring" in text


# what comes from elsewhere
def hostile_model() -> onnx.ModelProto:
    model = build(MLP)
    for k, node in enumerate(model.graph.node):
        node.name = f"{HOSTILE}{k}"
    renamed = {"A": HOSTILE, "B": f"b{HOSTILE}"}
    for tensor in model.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in model.graph.node:
        for j, name in enumerate(node.input):
            node.input[j] = renamed.get(name, name)
    return model


def harmless(text: str) -> None:
    """Names are text: no tag, attribute or character of theirs gets through, nor is a template in them filled in."""
    found = Document(text)
    assert found.tags.count("script") == 1 and "img" not in found.tags and "onerror" not in found.of("onerror")
    assert not any(name.startswith("on") for _, name, _ in found.attributes)
    assert any("alert(1)" in t for t in found.text) and "{{7*7}}" in text
    assert "\u202e" not in text and "\x00" not in text
    text.encode()


def test_names_are_only_text() -> None:
    report = api.prune(hostile_model(), ratio=0.5, check=False).report
    harmless(report.to_html())


def test_names_in_pictures_are_only_text(saved: dict[str, Any]) -> None:
    changed = copy.deepcopy(saved)
    for rows in (changed["sensitivity"]["dims"], changed["cuts"]):
        for k, row in enumerate(rows):
            row["dim"] = f"{k}{HOSTILE}"
    for key in ("command", "source", "target"):
        changed[key] = HOSTILE + "\ud800"
    changed["versions"][HOSTILE] = changed["options"][HOSTILE] = HOSTILE
    changed["numerics"][HOSTILE] = changed["numerics"].pop("logits")
    text = page(json.dumps(changed))
    harmless(text)
    assert "$\\frac{" in text  # no formula


def test_a_large_report_is_a_small_page(saved: dict[str, Any]) -> None:
    """As many rows as anyone likes, with long names."""
    large = copy.deepcopy(saved)
    name = "<" * 3000
    for key in ("layers", "operators", "cuts", "frozen", "frozen_reasons", "recovery", "metrics", "gates", "passes"):
        large[key] = [copy.deepcopy(row) for row in large[key] for _ in range(3000 // len(large[key]))]
    for row in (*large["layers"], *large["recovery"]):
        row["node"] = name
    for row in large["cuts"]:
        row["dim"] = name
    for row in large["layers"]:
        row["fused"] = [name] * 6
    blocks, dims = large["network"]["blocks"], large["sensitivity"]["dims"]
    large["network"] = {
        "blocks": [{**blocks[1], "name": name, "operators": [name] * 6}] * 1000,
        "edges": [[u, v] for u in range(100) for v in range(u + 1, 100)],
    }
    large["sensitivity"]["dims"] = [{**dims[0], "dim": f"{k}{name}"} for k in range(500)]
    large["latency_ms"]["times"] = {side: [1.0 + k % 7 for k in range(50_000)] for side in ("before", "after")}
    large["notes"], large["command"] = [name] * 500, name * 10
    large["versions"] = large["options"] = {f"{k}{name}": "x" for k in range(500)}
    text = page(json.dumps(large))
    assert len(text.encode()) < LIMIT_BYTES
    Document(text)


NO_REPORTS = {
    "empty": "",
    "no JSON": "{",
    "another file's": "[]",
    "a plan": '{"version": 1, "model": "", "dims": {}, "refused": []}',
    "deep": "[" * 100_000,
    "another version": json.dumps({"format": "onnxprune report", "version": VERSION + 1}),
    "nothing in it": json.dumps({"format": "onnxprune report", "version": VERSION}),
}


@pytest.mark.parametrize("text", NO_REPORTS.values(), ids=NO_REPORTS.keys())
def test_no_report(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.json").write_text(text)
    assert main(["report", str(tmp_path / "r.json"), "-o", str(tmp_path / "out.html")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "report" in said and not (tmp_path / "out.html").exists()


def test_report_refuses_bad_places(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(made / "none.json"), "-o", str(tmp_path / "x.html")]) == 2
    assert main(["report", str(made / "r.json"), "-o", str(made / "r.json")]) == 2
    assert main(["report", str(made / "r.json"), "-o", str(tmp_path / "no" / "x.html")]) == 2
    assert main(["report", str(made / "r.json")]) == 2
    (tmp_path / "latin").write_bytes(b"\xff\xfe")
    assert main(["report", str(tmp_path / "latin"), "-o", str(tmp_path / "x.html")]) == 2
    assert list(tmp_path.glob("*.html")) == [] and "internal" not in capsys.readouterr().err


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in the report; of lists the first entry stands for all."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else [0] if isinstance(value, list) and value else []:
        yield from places(value[key], (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize("wrong", [None, "x", -1, 1e300, [], {}, True, [[]], "gone"], ids=repr)
def test_damage_anywhere_is_told_or_borne(saved: dict[str, Any], monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    """Whatever stands in the wrong place, the outcome is a page or an InputError."""
    monkeypatch.setattr(sections, "latency_svg", lambda *_: "")
    monkeypatch.setattr(sections, "panels_svg", lambda *_: "")
    refused = 0
    for path in places(saved):
        changed = copy.deepcopy(saved)
        inner = at(changed, path[:-1])
        if wrong == "gone" and isinstance(inner, dict):
            del inner[path[-1]]
        else:
            inner[path[-1]] = wrong
        try:
            page(json.dumps(changed))
        except InputError as error:
            refused += 1
            assert "report" in str(error)
    assert refused > 20


def test_numbers_that_are_none_are_shown(saved: dict[str, Any]) -> None:
    changed = copy.deepcopy(saved)
    changed["metrics"][-1].update(value=None, drop=None)
    changed["numerics"]["logits"].update(rel_l2=None, sqnr_db=None)
    changed["surgery_check"].update(passed=False, max_rel_err=None)
    changed["recovery"][0]["before"] = None
    text = page(json.dumps(changed))
    assert "not finite" in text and "surgery check failed" in text


# words and pictures
@pytest.mark.parametrize(
    ("before", "after", "words", "sign", "level"),
    [
        (100, 43, "57 % less", "−57 %", 4),
        (1000, 979, "2.1 % less", "−2.1 %", 1),
        (100, 100, "no less", "0 %", 0),
        (100, 130, "30 % more", "+30 %", 0),
        (100, 1, "99 % less", "−99 %", 5),
        (0, 0, "no less", "", 0),
        (0, 5, "no less", "new", 0),
    ],
)
def test_shares_in_words(before: int, after: int, words: str, sign: str, level: int) -> None:
    pair = Pair(before, after)
    assert (less(pair), change(pair), pair.level) == (words, sign, level)


def test_numbers_have_three_digits_or_so() -> None:
    assert [milliseconds(x).replace("\xa0", " ") for x in (123.4, 12.34, 1.234, 0.01234)] == [
        *("123 ms", "12.3 ms", "1.23 ms", "0.0123 ms"),
    ]
    assert shown("a\tb\u200fc") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c"


PANEL = plots.Panel("$x_{<&\nfilters", 4, (4, 2, 0), (0.0, 0.1, 2.0), (2, 0.1), 3)
PICTURES: dict[str, Callable[[plots.Theme], str]] = {
    "curves": lambda theme: plots.panels_svg([PANEL] * 5, theme),
    "latency": lambda theme: plots.latency_svg([2.0, 2.2, 2.1], [1.0, 1.0, 1.1], (1.9, 2.1), theme),
    "equal times": lambda theme: plots.latency_svg([1.0] * 3, [1.0] * 3, (1.0, 1.0), theme),
}


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES.keys())
def test_pictures_take_the_colours_of_the_page(picture: Callable[[plots.Theme], str]) -> None:
    """And are the same each time; a file has colours of its own."""
    text = picture(plots.PAGE)
    assert text == picture(plots.PAGE) and "var(--after)" in text and "var(--ink)" in text
    colours = {c.lower() for c in re.findall(r"#[0-9a-fA-F]{6}\b", text)}
    assert colours <= {"#000000"} and "DejaVu" not in text and "<style" not in text
    root = ElementTree.fromstring(text)
    assert root.tag == "svg" and "width" not in root.attrib
    whole = picture(plots.PAPER)
    assert "var(" not in whole and "#01020" not in whole and ElementTree.fromstring(whole).tag.endswith("}svg")


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_in_a_browser(made: Path, tmp_path: Path) -> None:
    """The script runs to its end: tables can be sorted, long ones are folded, the drawing can be zoomed."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [str(BROWSER), *options, "--dump-dom", (made / "r.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "Show all" in done.stdout and '<div class="zoom">' in done.stdout
    assert done.stdout.count('<th scope="col" class="n"><button type="button">') > 10
    assert "aspect-ratio" in done.stdout
