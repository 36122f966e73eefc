"""The report as one HTML file that needs nothing else: no network, no fonts, a little script of its own for tables and
zooming. It is made from the saved report alone, so a page can be made again, and looks the same.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from onnxprune.report.answers import percent, plural, told
from onnxprune.report.page import contents
from onnxprune.report.saved import Pair, parse
from onnxprune.report.terminal import count


def page(text: str) -> str:
    """The page for a report as JSON; InputError if the text is none."""
    return str(_template().render(contents(parse(text))))


@cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # only for who wants a page

    made = Environment(
        loader=PackageLoader("onnxprune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(count=count, change=change, percent=percent, plural=plural, told=told, small=small)
    return made.get_template("report.html")


def change(pair: Pair) -> str:
    """-57 %, with a true minus."""
    if not pair.before:
        return "" if not pair.after else "new"
    share = -100 * pair.gone
    text = f"{abs(share):.0f}" if abs(share) >= 10 else f"{abs(share):.1f}"
    return "0 %" if text == "0.0" else f"{'−' if share < 0 else '+'}{text} %"


def small(value: float | None, text: str = ".3g") -> str:
    return "–" if value is None else format(value, text)
