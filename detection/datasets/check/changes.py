"""Changes of a document, each with a line that says what was and what is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from detection.datasets.check.columns import Columns
from detection.datasets.check.document import Document
from detection.datasets.check.findings import Finding
from detection.datasets.check.run import Context


@dataclass
class Changes:
    """Changes entries of a document and keeps a line of each change.

    code: of the finding that is being repaired. lines: one JSON object a change.
    """

    document: Document
    code: str = ""
    lines: list[dict[str, Any]] = field(default_factory=list)

    def drop(self, list_name: str, row: int, why: str = "") -> None:
        """Drop an entry, unless it is dropped already."""
        entries = self.document.lists[list_name]
        if entries.is_there(row):
            self._note(list_name, row, "dropped" + (why and f": {why}"))
            entries.drop(row)

    def set(self, list_name: str, row: int, key: str, value: Any) -> None:
        """Set a key of an entry, unless it has this value already."""
        entries = self.document.lists[list_name]
        if not entries.is_there(row):
            return
        entry = entries[row]
        old = entry.get(key)
        if old == value and type(old) is type(value):
            return
        was = f"{old!r:.120}" if key in entry else "nothing"
        self._note(list_name, row, f"{key}: {was} -> {value!r:.120}")
        entries.replace(row, {**entry, key: value})

    def append(self, list_name: str, entry: dict[str, Any]) -> None:
        """Add an entry."""
        row = self.document.lists[list_name].append(entry)
        self._note(list_name, row, "added")

    def _note(self, list_name: str, row: int, change: str) -> None:
        entry = self.document.lists[list_name][row]
        where = {"list": list_name, "position": row}
        if isinstance(entry, dict):
            known = ("id", "image_id", "file_name", "name")
            where |= {key: entry[key] for key in known if key in entry}
        self.lines.append({"finding": self.code, **where, "change": change})


Repair = Callable[[Changes, Finding, Columns, Context], None]
"""Repairs all cases of a finding, as far as they can be repaired."""


def drop_all(changes: Changes, finding: Finding, columns: Columns, context: Context) -> None:
    """Drop every entry of a finding."""
    for row in finding.rows.tolist():
        changes.drop(finding.list_name, row)
