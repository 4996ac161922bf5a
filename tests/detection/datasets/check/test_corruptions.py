"""Ten seeded corruptions of each kind in real files: all are found, and the repaired copy loads."""

import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from detection.commands.tasks import build_task
from detection.data.coco import read_coco
from engine.trainer import fit
from tests.detection.datasets.check.checking import findings_of, repair, write
from tests.detection.datasets.check.corruptions import CORRUPTIONS
from tests.detection.tasks.tiny import tiny_config

FILES = {
    "coco128": "coco128/annotations/instances_train2017.json",
    "bccd": "bccd/annotations/val.json",
}
# What the files have themselves. BCCD: cells annotated twice with almost the same box.
OF_COCO128 = {
    "class-few-objects": 48,
    "class-unused": 9,
    "anchors-miss": 171,
    "object-small": 99,
    "crowds": 10,
    "id-gaps": 3,
    "images-empty": 2,
    "unusual-size": 1,
}
BCCD_KINDS = ("near-duplicate-box", "unusual-aspect", "unusual-size", "id-gaps")
OF_BCCD = {"train": (4, 18, 7, 2), "val": (2, 4, 2, 2), "test": (1, 10, 1, 2)}
CANNOT_BE_MENDED = {"boxes-unknown"}


@cache
def clean_rows(path: Path) -> dict[str, set[int]]:
    return {code: set(finding.rows.tolist()) for code, finding in findings_of(path).items()}


def test_coco128_has_what_it_has(data_dir: Path) -> None:
    found = findings_of(data_dir / FILES["coco128"], images=data_dir / "coco128/train2017")
    assert {code: finding.count for code, finding in found.items()} == OF_COCO128


@pytest.mark.parametrize("split", OF_BCCD)
def test_bccd_has_what_it_has(data_dir: Path, split: str) -> None:
    path, images = data_dir / f"bccd/annotations/{split}.json", data_dir / "bccd/images"
    found = findings_of(path, images=images)
    expected = dict(zip(BCCD_KINDS, OF_BCCD[split], strict=True))
    assert {code: finding.count for code, finding in found.items()} == expected


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("code", CORRUPTIONS)
def test_all_cases_are_found_and_mended(
    data_dir: Path, tmp_path: Path, name: str, code: str
) -> None:
    clean = clean_rows(data_dir / FILES[name]).get(code, set())
    document = json.loads((data_dir / FILES[name]).read_text())
    places = set(CORRUPTIONS[code](document, np.random.default_rng(zlib.crc32(code.encode()))))
    document["info"] = {"year": 2026, "odd": [1, None, "\u00e9"]}
    path = write(tmp_path / "a.json", document)
    content = path.read_bytes()
    report, changes = repair(path, tmp_path / "b.json")

    finding = next(each for each in report.findings if each.code == code)
    assert set(finding.rows.tolist()) - clean == places - clean
    assert finding.count == len(finding.rows)
    assert len(finding.examples) == min(3, finding.count)

    assert path.read_bytes() == content
    if code in CANNOT_BE_MENDED:
        return
    if finding.kind.repair:
        assert finding.remaining == 0
        assert len(changes.lines) >= min(10, len(places - clean))
    copy = tmp_path / "b.json"
    again = findings_of(copy).values()
    assert [each.code for each in again if each.kind.severity == "error"] == []
    read_coco(copy)  # with the default policies, which refuse every bad box
    assert json.loads(copy.read_text())["info"] == document["info"]


SOME = (  # first those that read what later ones break
    *("box-outside", "box-clipped", "duplicate-box", "repeated-annotation-id", "image-name"),
    *("unknown-image", "box-not-finite", "box-without-size", "area-impossible"),
    *("mask-unreadable", "flag-malformed", "annotation-image-id", "box-malformed"),
)


@pytest.mark.extended
@pytest.mark.parametrize("name", FILES)
def test_training_on_the_copy_of_a_file_with_many_faults(
    data_dir: Path, tmp_path: Path, name: str
) -> None:
    document = json.loads((data_dir / FILES[name]).read_text())
    for number, code in enumerate(SOME):
        CORRUPTIONS[code](document, np.random.default_rng(number))
    folder = data_dir / {"coco128": "coco128/train2017", "bccd": "bccd/images"}[name]
    path = write(tmp_path / "a.json", document)
    assert set(findings_of(path)) >= set(SOME)
    repair(path, tmp_path / "b.json", images=folder)
    split = {"images": str(folder), "annotations": str(tmp_path / "b.json")}
    config = tiny_config(
        tmp_path / "demo", data={"train": split, "val": split}, loop={"max_steps": 2}
    )
    fit(build_task(config), config, output=tmp_path / "run")
