"""Imports point one way: a module imports only what stands on lines above its own, or beside it on the same line.

`inference` names its dims through `naming`, which reads what inference made: that import happens in the function.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = (
    "errors version dims sparse flow functions progress algebra",
    "storage unification nodes",
    "graph writing evaluate contrib kinds quantization",
    "ordering",
    "sessions reading",
    "feeds tokens",
    "sizing",
    "data",
    "walk",
    "trace",
    "rules",
    "inference naming operators",
    "cost constancy lossless linear stages losses padding",
    "adjoint branches",
    "regression matching norms recurrence means guard importance",
    "rectified",
    "calibration",
    "criteria",
    "probes",
    "allocation sensitivity ranking rotation merging",
    "layers",
    "budget",
    "plan",
    "together",
    "manager",
    "jobs survivors",
    "scores",
    "agenda",
    "recovery trials",
    "passes validate metrics",
    "gates benchmark timing judge scan",
    "report",
    "proof stopwatch",
    "search intake",
    "pruning",
    "api options",
    "config outputs",
    "commands",
    "__main__",
)
RANK = {name: k for k, line in enumerate(LAYERS) for name in line.split()}
FILES = sorted(
    p
    for top in ("onnxprune", "passes")
    for p in (ROOT / top).rglob("*.py")
    if p.name != "__init__.py" or p.parent.name != "onnxprune"
)


def imported(path: Path) -> Iterator[str]:
    """Modules by full name; `from onnxprune import cost` is onnxprune.cost."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide their layer"
            names = [f"{node.module}.{a.name}" for a in node.names]
            yield from names if node.module == "onnxprune" else [str(node.module)]


def layer(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    own = parts[0] if parts[0] == "passes" else parts[1]
    for module in imported(path):
        assert module.split(".")[0] != "passes", (
            "import onnxprune.passes: another path makes a second copy of every class"
        )
        if module.startswith("onnxprune."):
            assert RANK[layer(module)] <= RANK[own], f"{own} imports {module}, which stands above it"


def test_every_module_has_a_layer() -> None:
    modules = {p.stem for p in (ROOT / "onnxprune").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert modules - {"__init__"} <= set(RANK)


@pytest.mark.parametrize("name", ["dims.py", "unification.py"])
def test_dims_know_nothing_of_onnx(name: str) -> None:
    names = {m.split(".")[0] for m in imported(ROOT / "onnxprune" / name)}
    assert not names & {"onnx", "onnxruntime", "onnx_graphsurgeon"}
