"""HTML of text, numbers and tables. Whatever comes from a file is escaped here."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.text import printable

_LONG = 30  # characters from which a text gets a wider column


@dataclass(frozen=True)
class Markup:
    """HTML that is put into the page as it is; every other text is escaped."""

    html: str

    def __str__(self) -> str:
        return self.html


@dataclass(frozen=True)
class Cell:
    """A number in a table: its text, and the value by which the column is sorted."""

    text: str
    value: float | None


def escaped(value: object) -> str:
    """Return text as HTML, safe in an element and in a quoted attribute."""
    return html.escape(printable(str(value)), quote=True)


def percent(value: float | None, *, digits: int = 1) -> Cell:
    """Return a share as a cell in percent; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return Cell("-", None)
    return Cell(f"{100 * value:.{digits}f}", value)


def number(value: float | None, *, digits: int = 2) -> Cell:
    """Return a number as a cell; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return Cell("-", None)
    return Cell(f"{value:.{digits}f}", value)


def count(value: int) -> Cell:
    """Return a count as a cell, with thin spaces between thousands."""
    return Cell(f"{value:,}".replace(",", " "), value)


def interval(low: float | None, high: float | None) -> Cell:
    """Return an interval of shares as a cell in percent, sorted by its width."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return Cell("-", None)
    return Cell(f"{100 * low:.1f} to {100 * high:.1f}", high - low)


def table(
    headings: Sequence[str], rows: Sequence[Sequence[Any]], *, caption: str, sortable: bool = True
) -> str:
    """Return a table that scrolls by itself if it is too wide.

    Args:
        headings: of the columns; a click on one sorts by it.
        rows: of text, `Markup` or `Cell`; may be empty, which is said.
        caption: what the table shows.
        sortable: whether it can be sorted.
    """
    if not rows:
        return f'<p class="none">{escaped(caption)}: none.</p>'
    kinds = ["number" if isinstance(each, Cell) else "text" for each in rows[0]]
    head = "".join(
        f'<th scope="col" class="{kind}">'
        + (f'<button type="button">{escaped(name)}</button>' if sortable else escaped(name))
        + "</th>"
        for name, kind in zip(headings, kinds, strict=True)
    )
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll"><table{kind}><caption>{escaped(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    if isinstance(value, Cell):
        order = "" if value.value is None else f"{value.value:.9g}"
        return f'<td class="number" data-value="{order}">{escaped(value.text)}</td>'
    kind = ' class="long"' if len(str(value)) > _LONG else ""
    return f"<td{kind}>{value if isinstance(value, Markup) else escaped(value)}</td>"


def plain(value: Any) -> Any:
    """Return a value for strict JSON: arrays as lists, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
