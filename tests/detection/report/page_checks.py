"""What every page of a report has to be: one file without a network, with all its sections."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from detection.report.page import MAX_PAGE_BYTES

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects sections, text and the sources of a page, and checks that elements are nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.sources: list[str] = []
        self.options: list[str] = []
        self.scripts = 0
        self.shown = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self.sections.append(values["id"] or "")
        self.scripts += tag == "script"
        assert not [name for name in values if name.startswith("on")]
        self.sources += [values[key] or "" for key in ("src", "href") if key in values]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.shown += data


def check_page(path: Path) -> Page:
    """Check that a page needs nothing but itself."""
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < MAX_PAGE_BYTES
    page = Page(text)
    assert page.scripts == 1
    for source in page.sources:
        assert source.startswith(("data:image/jpeg;base64,", "#")), source[:80]
    assert "url(" not in text
    assert "@import" not in text
    # addresses may be in texts of the data, but the page itself has none
    assert not re.findall(r'(?:src|href|action)\s*=\s*"?https?:', text)
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    anchors = {source[1:] for source in page.sources if source.startswith("#")}
    assert anchors <= set(ids)
    return page


def read_strictly(path: Path) -> Any:
    """Return a JSON file's content; fail at NaN or Infinity, which JSON does not have."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
