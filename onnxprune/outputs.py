"""The files that a run of the command line writes: the model, and what is told about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.errors import GateError, InputError
from onnxprune.options import OutputOptions, PlanOptions
from onnxprune.pruning import PruneResult
from onnxprune.report.report import Report
from onnxprune.writing import check_paths, write_atomic


@dataclass(frozen=True)
class Outputs:
    """Where things go; None: they are not wanted. `dry_run`: the model is not, wherever it would go."""

    model: Path | None = None
    json: Path | None = None
    page: Path | None = None
    plan: Path | None = None
    dry_run: bool = False

    @staticmethod
    def of(options: Mapping[str, Any], written: OutputOptions, dry_run: bool = False) -> Outputs:
        """As the options say, of which those in `written` are the command line's alone. InputError without a place for
        the model.
        """
        if written.output is None and not dry_run:
            raise InputError("give the output with -o OUT.onnx (or --dry-run to stop at the plan)")
        json, page = (Path(options[n]) if options.get(n) else None for n in ("json", "report"))
        plan = written.plan if isinstance(written, PlanOptions) else None
        return Outputs(written.output, json, page, plan, dry_run)

    @property
    def made(self) -> Path | None:
        """The model, if one is written."""
        return None if self.dry_run else self.model

    def check(self, *sources: str | Path | None) -> None:
        """InputError if a file cannot be written, or is one of the sources."""
        check_paths(sources, self.model, self.json, self.page, self.plan)

    def write(self, result: PruneResult) -> None:
        """Everything; the model last."""
        self.tell(result.report)
        if self.plan:
            write_atomic(self.plan, result.plan.to_json().encode())
        if self.made:
            result.graph.save(self.made)

    def tell(self, report: Report) -> None:
        """The report, as JSON and as a page."""
        if self.json:
            write_atomic(self.json, report.to_json().encode())
        if self.page:
            write_atomic(self.page, report.to_html().encode())

    @contextmanager
    def reported(self, show: Callable[[Report], None]) -> Iterator[None]:
        """When a check or gate fails nothing is saved, but the reports, which say what failed, if they are asked for;
        and where gates were tried the report is shown.
        """
        try:
            yield
        except GateError as error:
            if isinstance(error.report, Report):
                self.tell(error.report)
                if error.report.gates:
                    show(error.report)
            raise
