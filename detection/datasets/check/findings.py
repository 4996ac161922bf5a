"""Findings of a check, with counts and examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detection.data.coco_json import image_name, shown
from detection.datasets.check.columns import Columns
from detection.datasets.check.kinds import KINDS, SEVERITIES, Kind

EXAMPLES = 3
"""Largest number of examples of a finding."""
NO_ROWS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Example:
    """One case of a finding; what does not apply is None."""

    value: str
    file_name: str | None = None
    image_id: int | None = None
    annotation_id: int | None = None

    def __str__(self) -> str:
        """Return it in one line: file, image, annotation: value."""
        parts = [
            shown(self.file_name) if self.file_name else None,
            None if self.image_id is None else f"image {self.image_id}",
            None if self.annotation_id is None else f"annotation {self.annotation_id}",
        ]
        where = ", ".join(part for part in parts if part)
        return f"{where}: {self.value}" if where and self.value else where or self.value


@dataclass(frozen=True)
class Finding:
    """All cases of one kind.

    code: key of `KINDS`. list_name, rows: the entries in the file, if it is about entries of one
    list; rows (n,) int64 are positions in the file. detail: more about these cases. remaining: how
    many the repaired copy still has; None if none was made.
    """

    code: str
    count: int
    examples: tuple[Example, ...] = ()
    detail: str = ""
    list_name: str = ""
    rows: np.ndarray = field(default_factory=lambda: NO_ROWS)
    remaining: int | None = None

    @property
    def kind(self) -> Kind:
        """Severity, text and advice of its code."""
        return KINDS[self.code]

    @property
    def repaired(self) -> str:
        """What the repaired copy has, for the table."""
        if self.remaining is None:
            return ""
        if not self.remaining:
            return f"mended: {self.kind.repair}" if self.kind.repair else "none left"
        if self.remaining < self.count and self.kind.repair:
            return f"{self.remaining} remain, others mended: {self.kind.repair}"
        return f"{self.remaining} remain" if self.kind.severity != "note" else "as before"

    def as_json(self) -> dict[str, Any]:
        """Return the finding for the report."""
        kind = self.kind
        return {
            "code": self.code,
            "severity": kind.severity,
            "what": kind.what,
            "count": self.count,
            "detail": self.detail,
            "examples": [vars(example) for example in self.examples],
            "advice": kind.advice,
            "repair": kind.repair,
            "remaining_in_copy": self.remaining,
        }


class FindingList:
    """Collects the findings of one file; kinds without a case are not added."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self.found: dict[str, Finding] = {}

    def add(self, code: str, count: int, values: Sequence[str] = (), *, detail: str = "") -> None:
        """Add a finding that is not about entries of the file."""
        if count:
            examples = tuple(Example(value) for value in values[:EXAMPLES])
            self.found[code] = Finding(code, count, examples, detail)

    def add_entries(self, code: str, list_name: str, faults: Sequence[tuple[int, str]]) -> None:
        """Add a finding about entries that cannot be read: (row in the file, what is wrong)."""
        examples = tuple(
            _example_of(self._columns.document.lists[list_name][row], f"{list_name}[{row}]", text)
            for row, text in faults[:EXAMPLES]
        )
        rows = np.array([row for row, _ in faults], np.int64)
        if len(rows):
            self.found[code] = Finding(code, len(rows), examples, "", list_name, rows)

    def add_images(
        self, code: str, at: np.ndarray, value: Callable[[int], str], *, detail: str = ""
    ) -> None:
        """Add a finding about images `at` (n,), which index the columns."""
        images = self._columns.images
        examples = tuple(
            Example(value(place), images.names[place], int(images.ids[place]))
            for place in at[:EXAMPLES].tolist()
        )
        if len(at):
            self.found[code] = Finding(code, len(at), examples, detail, "images", images.rows[at])

    def add_annotations(
        self, code: str, at: np.ndarray, value: Callable[[int], str], *, detail: str = ""
    ) -> None:
        """Add a finding about annotations `at` (n,), which index the columns."""
        columns = self._columns
        table = columns.annotations
        examples = []
        for place in at[:EXAMPLES].tolist():
            image = int(columns.image_places[place])
            name = columns.images.names[image] if image >= 0 else None
            ids = int(table.image_ids[place]), int(table.ids[place])
            examples.append(Example(value(place), name, *ids))
        if len(at):
            rows = columns.annotation_rows[at]
            self.found[code] = Finding(code, len(at), tuple(examples), detail, "annotations", rows)

    def in_order(self) -> list[Finding]:
        """Return the findings, worst first, then the most frequent."""
        return sorted(
            self.found.values(),
            key=lambda each: (SEVERITIES.index(each.kind.severity), -each.count),
        )


def _example_of(entry: Any, place: str, fault: str) -> Example:
    """Return an example of an entry of which nothing is certain."""
    entry = entry if isinstance(entry, dict) else {}
    image_id, own_id = (entry.get(key) for key in ("image_id", "id"))
    is_annotation = place.startswith("annotations")
    image_id = image_id if is_annotation else own_id
    return Example(
        f"{place}: {fault}",
        image_name(entry),
        image_id if type(image_id) is int and not place.startswith("categories") else None,
        own_id if type(own_id) is int and is_annotation else None,
    )
