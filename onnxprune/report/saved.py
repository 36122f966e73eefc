"""A saved report, read with suspicion: it may come from elsewhere, or be damaged. Whatever is not as it should be is an
InputError that names the key; text is fit to be shown, numbers are numbers.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from html import escape
from typing import Any

from onnxprune.errors import InputError
from onnxprune.report.anatomy import clipped
from onnxprune.report.report import FORMAT, VERSION

UNSHOWN = ("Cc", "Cf", "Cs", "Co", "Cn")  # control characters, changes of direction, halves of pairs, unassigned ones
LARGEST = 1e21  # numbers beyond are none
HIDDEN = "\N{REPLACEMENT CHARACTER}"
MAX_NAME = 120  # bytes of text in the page


@dataclass(frozen=True)
class Pair:
    """A number before and after."""

    before: float
    after: float

    @property
    def gone(self) -> float:
        """The share that went; below 0 for growth."""
        return 1 - self.after / self.before if self.before else 0.0

    @property
    def level(self) -> int:
        """How much went, in six steps."""
        return 0 if self.gone <= 0 else 1 + sum(self.gone > limit for limit in (0.1, 0.25, 0.5, 0.75))


class Saved:
    """One object of the JSON; `path` says where it stands."""

    def __init__(self, data: Any, path: str = "") -> None:
        if not isinstance(data, dict):
            raise InputError(f"damaged report: {path or 'it'} is no object")
        self._data, self._path = data, path

    def raw(self, key: str) -> Any:
        if key not in self._data:
            raise InputError(f"damaged report: {self._at(key)} is missing")
        return self._data[key]

    def _at(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def wrong(self, key: str, wanted: str) -> InputError:
        return InputError(f"damaged report: {self._at(key)} is no {wanted}")

    def names(self) -> list[str]:
        return list(self._data)

    def text(self, key: str, limit: int = MAX_NAME) -> str:
        """Text without what could not be seen; empty for null."""
        value = self.raw(key)
        if not isinstance(value, str) and value is not None:
            raise self.wrong(key, "text")
        return shown(value or "", limit)

    def number(self, key: str) -> float | None:
        """A number; None for null, which stands for numbers that are not finite as well."""
        value = self.raw(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise self.wrong(key, "number")
        return None if value is None or not abs(value) <= LARGEST else float(value)

    def amount(self, key: str) -> float:
        """A finite number."""
        value = self.number(key)
        if value is None:
            raise self.wrong(key, "number")
        return value

    def count(self, key: str) -> int:
        return int(self.amount(key))

    def flag(self, key: str) -> bool:
        value = self.raw(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "truth value")
        return value

    def at(self, key: str) -> Saved:
        return Saved(self.raw(key), self._at(key))

    def maybe(self, key: str) -> Saved | None:
        return None if self.raw(key) is None else self.at(key)

    def items(self, key: str) -> list[Any]:
        value = self.raw(key)
        if not isinstance(value, list):
            raise self.wrong(key, "list")
        return value

    def rows(self, key: str) -> list[Saved]:
        return [Saved(row, f"{self._at(key)}[{k}]") for k, row in enumerate(self.items(key))]

    def rows_if_any(self, key: str) -> list[Saved]:
        """Rows of a list that older reports do not have."""
        return self.rows(key) if key in self.names() else []

    def named(self, key: str) -> dict[str, Saved]:
        """Objects by name."""
        inner = self.at(key)
        return {shown(name): inner.at(name) for name in inner.names()}

    def texts(self, key: str, limit: int = MAX_NAME) -> list[str]:
        found = self.items(key)
        if not all(isinstance(value, str) for value in found):
            raise self.wrong(key, "list of texts")
        return [shown(value, limit) for value in found]

    def numbers(self, key: str, count: int | None = None) -> list[float]:
        found = Saved({str(k): v for k, v in enumerate(self.items(key))}, self._at(key))
        values = [found.amount(name) for name in found.names()]
        if count is not None and len(values) != count:
            raise self.wrong(key, f"list of {count} numbers")
        return values

    def pair(self, key: str) -> Pair:
        row = self.at(key)
        return Pair(row.amount("before"), row.amount("after"))


def shown(text: str, limit: int = MAX_NAME) -> str:
    """Text as it is shown: without characters that cannot be seen, other than ends of lines, and of at most `limit`
    bytes in the page.
    """
    parts = (HIDDEN if unicodedata.category(c) in UNSHOWN and c != "\n" else c for c in clipped(text, limit))
    seen = "".join(parts)
    while len(escape(seen).encode()) > limit:
        seen = clipped(seen, len(seen) * 3 // 4)
    return seen


def parse(text: str) -> Saved:
    """A saved report; InputError for other text, and for reports of another version."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a report of onnxprune: it is no JSON ({error})") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError("not a report of onnxprune: give what `onnxprune prune --json` or `apply --json` wrote")
    if data.get("version") != VERSION:
        raise InputError(f"the report has version {data.get('version')!r}, this onnxprune reads version {VERSION}")
    return Saved(data)
