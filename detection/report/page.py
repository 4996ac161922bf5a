"""The frame of a report: one HTML file that needs no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detection.report.markup import escaped
from engine.paths import read_text

MAX_PAGE_BYTES = 15_000_000
"""Largest size of a page; the images share what the rest of it leaves."""


@dataclass(frozen=True)
class Section:
    """A section of the page. key: its anchor. body: HTML."""

    key: str
    title: str
    lead: str
    body: str


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return the HTML of a whole page.

    Args:
        title: what was scored.
        lead: one line below the title.
        sections: in order; those without a body are skipped.
    """
    shown = [section for section in sections if section.body]
    folder = Path(__file__).parent
    links = "".join(f'<li><a href="#{each.key}">{escaped(each.title)}</a></li>' for each in shown)
    bodies = "".join(
        f'<section id="{each.key}"><h2>{escaped(each.title)}</h2>'
        f"<p>{escaped(each.lead)}</p>{each.body}</section>"
        for each in shown
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # nothing is loaded, whatever a name in the data tries
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>{escaped(title)}</title><style>{read_text(folder / 'page.css')}</style></head>"
        f"<body><header><h1>{escaped(title)}</h1><p>{escaped(lead)}</p></header>"
        f'<nav aria-label="sections"><ul>{links}</ul></nav><main>{bodies}</main>'
        "<footer>Every number of this page is in report.json.</footer>"
        f"<script>{read_text(folder / 'page.js')}</script></body></html>\n"
    )


def tiles(values: Sequence[tuple[str, str, str]], *, main: int = 0) -> str:
    """Return tiles of a number, its name and a small text below; `main` is the important one."""
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile{" main" if place == main else ""}"><b>{escaped(value)}</b>'
            f"<span>{escaped(name)}</span>{f'<br><span>{escaped(small)}</span>' if small else ''}"
            "</div>"
            for place, (name, value, small) in enumerate(values)
        )
        + "</div>"
    )


def side_by_side(*parts: str) -> str:
    """Return parts in columns where the page is wide enough."""
    return f'<div class="grid-2">{"".join(f"<div>{part}</div>" for part in parts if part)}</div>'


def filtered(
    key: str,
    options: Sequence[tuple[str, str]],
    items: str,
    *,
    name: str,
    all_of: str | None,
    kind: str = "",
) -> str:
    """Return a select box, and a group of elements of which it shows some.

    Args:
        key: id of the group.
        options: value and text of the choices.
        items: HTML of elements with `data-keys`, the values that they are shown for.
        name: label of the box.
        all_of: text of the choice of all; None: the first option is chosen.
        kind: CSS classes of the group.
    """
    first = "" if all_of is None else f'<option value="">{escaped(all_of)}</option>'
    choices = first + "".join(
        f'<option value="{escaped(value)}">{escaped(text)}</option>' for value, text in options
    )
    return (
        f'<label>{escaped(name)} <select data-filter="{key}" autocomplete="off">{choices}</select>'
        f'</label><div id="{key}" class="{kind}">{items}</div>'
    )
