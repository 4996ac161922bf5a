"""The pages of docs/ as a site: all in its navigation, in one order, without dead links."""

import re
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY

PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *PAGES]
FENCED = re.compile(r"^ *```.*?^ *```", flags=re.MULTILINE | re.DOTALL)


def links_of(path: Path) -> list[str]:
    """Return the targets of a page's links and images, except those of other sites."""
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in targets if not target.startswith(("http://", "https://"))]


def anchors_of(path: Path) -> set[str]:
    """Return the anchors of a page's headings, made as GitHub and MkDocs make them."""
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[\s-]+", "-", heading) for heading in plain}


def test_every_page_is_in_the_navigation_and_on_the_first_page_in_that_order() -> None:
    settings = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = [file for entry in settings["nav"] for file in entry.values()]
    assert sorted(listed) == [path.name for path in PAGES]
    first, *others = listed
    pages = [link for link in links_of(REPOSITORY / "docs" / first) if link.endswith(".md")]
    assert pages == others
    assert [
        name for name in settings["extra_css"] if not (REPOSITORY / "docs" / name).exists()
    ] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    for link in links_of(path):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.is_file(), link
        assert not anchor or anchor in anchors_of(target), link
        # the site consists of docs/ alone
        assert path not in PAGES or target.is_relative_to(REPOSITORY / "docs"), link


def test_addresses_are_no_registries() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in DOCUMENTS}
    assert [name for name, text in texts.items() if "pypi.org" in text] == []
