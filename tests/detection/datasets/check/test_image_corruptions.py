"""Ten seeded corruptions of the image files of real data sets.

Each test compares with the findings of the clean files: exactly the damaged entries come on top.
"""

import io
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection.data.image_content import Facts, read_facts
from detection.data.image_files import image_path
from detection.datasets.check.columns import Columns
from detection.datasets.check.findings import Finding
from detection.datasets.check.kinds import KINDS
from detection.datasets.check.run import Context, check_columns, open_columns
from detection.datasets.check.splits import OtherSplit
from tests.detection.datasets.check.checking import NETWORK, QUIET, write
from tests.detection.datasets.check.corruptions import CORRUPTIONS, PLACES, Document, choose, halves

DATA_SETS = {
    "coco128": ("coco128/annotations/instances_train2017.json", "coco128/train2017"),
    "bccd": ("bccd/annotations/val.json", "bccd/images"),
}


@dataclass(frozen=True)
class Clean:
    """A data set as it is: its JSON, its images, and what is found in them."""

    json: Path
    images: Path
    facts: Facts
    findings: dict[str, Finding]


@dataclass(frozen=True)
class Damaged:
    """A copy of a data set. Its images are links, which a test replaces and never writes to."""

    clean: Clean
    folder: Path
    document: Document
    rng: np.random.Generator

    def path_of(self, row: int) -> Path:
        return self.folder / str(self.document["images"][row]["file_name"])

    def pixels_of(self, row: int) -> Image.Image:
        return Image.open(self.path_of(row)).convert("RGB")

    def add_copies(self, suffix: str, save: Callable[[Path, Path], object]) -> list[int]:
        """Append ten images without objects, the files of which `save(image, copy)` writes."""
        images = self.document["images"]
        first = max(image["id"] for image in images) + 1
        rows = []
        for number, row in enumerate(choose(self.document, self.rng, "images")):
            name = f"copy {number}{suffix}"
            save(self.path_of(row), self.folder / name)
            rows.append(len(images))
            with Image.open(self.folder / name) as image:
                size = {"width": image.width, "height": image.height}
            images.append({**images[row], "id": first + number, "file_name": name, **size})
        return rows

    def findings(self, other: Document | None = None) -> dict[str, Finding]:
        """Check the copy, against another split in the same folder; links are not decoded again."""
        path = write(self.folder.parent / "a.json", self.document)
        content = [path.read_bytes(), *map(bytes_of, self.folder.iterdir())]
        facts = self.facts_of([image["file_name"] for image in self.document["images"]])
        against = None
        if other is not None:
            columns = open_columns(write(self.folder.parent / "other.json", other))
            against = OtherSplit(columns, self.facts_of(columns.images.names))
        found = findings_of(open_columns(path), facts, against)
        assert [path.read_bytes(), *map(bytes_of, self.folder.iterdir())] == content
        return found

    def facts_of(self, names: Sequence[str]) -> Facts:
        kept = {name for name in names if image_path(self.folder, name).is_symlink()}
        facts = {name: self.clean.facts[Path(name.replace("\\", "/")).name] for name in kept}
        return {**facts, **read_facts(self.folder, set(names) - kept, workers=0, log=QUIET)}


def bytes_of(path: Path) -> bytes:
    return b"" if path.is_symlink() else path.read_bytes()


def findings_of(columns: Columns, facts: Facts, other: Any = None) -> dict[str, Finding]:
    found = check_columns(columns, Context(NETWORK, facts, other)).findings
    return {finding.code: finding for finding in found}


def rows_beyond(clean: dict[str, Finding], found: dict[str, Finding]) -> dict[str, list[int]]:
    """Return the rows that the clean file does not have, by kind."""
    rows = {}
    for code, finding in found.items():
        before = set(clean[code].rows.tolist()) if code in clean else set()
        rows[code] = sorted(set(finding.rows.tolist()) - before)
    return {code: each for code, each in rows.items() if each}


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module", params=DATA_SETS)
def clean(request: pytest.FixtureRequest, data_dir: Path) -> Clean:
    path, images = (data_dir / each for each in DATA_SETS[request.param])
    columns = open_columns(path)
    facts = read_facts(images, columns.images.names, workers=0, log=QUIET)
    return Clean(path, images, facts, findings_of(columns, facts))


@pytest.fixture
def damaged(clean: Clean, tmp_path: Path, request: pytest.FixtureRequest) -> Damaged:
    (tmp_path / "images").mkdir()
    document = json.loads(clean.json.read_text())
    for image in document["images"]:
        (tmp_path / "images" / image["file_name"]).symlink_to(clean.images / image["file_name"])
    seed = zlib.crc32(request.node.name.encode())
    return Damaged(clean, tmp_path / "images", document, np.random.default_rng(seed))


def remove(data: Damaged, row: int, turn: int) -> None:
    data.path_of(row).unlink()


def spoil(data: Damaged, row: int, turn: int) -> None:
    content = data.path_of(row).read_bytes()
    half = content[: len(content) // 2]
    ends = (half, b"", bytes(5000), b"not an image", half + content[-2:], content[:-2000])
    replace(data.path_of(row), ends[turn % len(ends)])


def resize(data: Damaged, row: int, turn: int) -> None:
    image = data.pixels_of(row)
    sizes = (
        (image.width - 1, image.height),
        (image.width // 2, image.height // 2),
        (image.width, image.height + 7),
        (image.height, image.width) if image.width != image.height else (9, 7),
    )
    replace(data.path_of(row), encoded(image.resize(sizes[turn % len(sizes)])))


def rotate(data: Damaged, row: int, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = (5, 6, 7, 8)[turn % 4]  # the orientations that swap width and height
    replace(data.path_of(row), encoded(data.pixels_of(row), exif=exif))


@pytest.mark.parametrize(
    ("code", "damage"),
    [
        ("image-missing", remove),
        ("image-damaged", spoil),
        ("image-other-size", resize),
        ("exif-ignored", rotate),
    ],
)
def test_damaged_files(
    damaged: Damaged, code: str, damage: Callable[[Damaged, int, int], None]
) -> None:
    images = damaged.document["images"]
    rows = choose(damaged.document, damaged.rng, "images")
    if code == "exif-ignored":
        oblong = [row for row, image in enumerate(images) if image["width"] != image["height"]]
        rows = sorted(damaged.rng.choice(oblong, size=PLACES, replace=False).tolist())
    for turn, row in enumerate(rows):
        damage(damaged, row, turn)
    assert rows_beyond(damaged.clean.findings, damaged.findings()) == {code: rows}


def copy_bytes(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def save_png(source: Path, target: Path) -> None:
    target.write_bytes(encoded(Image.open(source).convert("RGB"), "PNG", compress_level=1))


def save_jpeg(source: Path, target: Path) -> None:
    quality = 50 + 5 * int(target.stem[-1])
    target.write_bytes(encoded(Image.open(source).convert("RGB"), quality=quality))


def save_resized(source: Path, target: Path) -> None:
    image = Image.open(source).convert("RGB")
    scale = (0.5, 0.8, 0.95, 1.1)[int(target.stem[-1]) % 4]
    size = round(scale * image.width), round(scale * image.height)
    target.write_bytes(encoded(image.resize(size), quality=90))


SAVES = {copy_bytes: "", save_png: "", save_jpeg: "near-", save_resized: "near-"}


@pytest.mark.parametrize(("save", "near"), SAVES.items())
def test_images_under_other_names(
    damaged: Damaged, save: Callable[[Path, Path], object], near: str
) -> None:
    rows = damaged.add_copies(".png" if save is save_png else ".jpg", save)
    beyond = rows_beyond(damaged.clean.findings, damaged.findings())
    assert beyond == {f"{near}duplicate-image": rows, "images-empty": rows}


@pytest.mark.parametrize("spelling", ["{}", "./{}", "/{}", ".//{}", ".\\{}"])
def test_shared_files_are_no_copies(damaged: Damaged, spelling: str) -> None:
    images = damaged.document["images"]
    first = max(image["id"] for image in images) + 1
    rows = []
    for number, row in enumerate(choose(damaged.document, damaged.rng, "images")):
        rows.append(len(images))
        name = spelling.format(images[row]["file_name"])
        images.append({**images[row], "id": first + number, "file_name": name})
    beyond = rows_beyond(damaged.clean.findings, damaged.findings())
    assert beyond == {"shared-file": rows, "images-empty": rows}


@pytest.mark.parametrize(("save", "near"), SAVES.items())
def test_images_that_are_in_both_splits(
    damaged: Damaged, save: Callable[[Path, Path], object], near: str
) -> None:
    here, there = halves(damaged.document)
    split = Damaged(damaged.clean, damaged.folder, here, damaged.rng)
    before = split.findings(there)
    assert not before.keys() & {"leakage", "near-leaked-image"}
    rows = choose(here, damaged.rng, "images")
    for number, row in enumerate(rows):
        name = f"other {number}{'.png' if save is save_png else '.jpg'}"
        save(split.path_of(row), damaged.folder / name)
        entry = {**here["images"][row], "id": 10**7 + number, "file_name": name}
        there["images"].append(entry)
    found = split.findings(there)
    assert rows_beyond(before, found) == {"near-leaked-image" if near else "leakage": rows}


OF_WHOLE_FILES = {  # in test_odd_files.py, test_image_facts.py, and test_corruptions.py (id-gaps)
    *("missing-list", "no-annotations-key", "no-categories", "no-images", "no-training-object"),
    *("ids-from-zero", "id-gaps", "category-not-object"),
    *("images-alike", "images-alike-in-split"),
}
OF_IMAGES = {
    *("image-missing", "image-damaged", "image-other-size", "exif-ignored", "duplicate-image"),
    *("leakage", "class-few-objects", "class-unused", "class-missing-in-split", "classes-differ"),
    *("near-duplicate-image", "near-leaked-image"),
    *("class-similar-names", "object-small", "anchors-miss", "anchors-miss-many"),
}


def test_each_kind_has_its_corruptions() -> None:
    assert KINDS.keys() == OF_WHOLE_FILES | OF_IMAGES | CORRUPTIONS.keys()
