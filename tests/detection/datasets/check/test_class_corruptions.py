"""Ten seeded corruptions of the classes and the objects of real data sets, counted exactly."""

import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from detection.datasets.check.findings import Finding
from detection.models.anchors import AnchorGenerator
from detection.ops.boxes import box_iou
from tests.detection.datasets.check.checking import NETWORK, findings_of, write
from tests.detection.datasets.check.corruptions import PLACES, Document, choose, halves

FILES = ("coco128/annotations/instances_train2017.json", "bccd/annotations/val.json")


@dataclass(frozen=True)
class Changed:
    """A document that a test changes, and the findings of the clean one."""

    clean: dict[str, Finding]
    document: Document
    rng: np.random.Generator
    folder: Path

    def findings(self, there: Document | None = None) -> dict[str, Finding]:
        path = write(self.folder / "a.json", self.document)
        content = path.read_bytes()
        against = None if there is None else write(self.folder / "other.json", there)
        found = findings_of(path, against=against)
        assert path.read_bytes() == content
        return found

    def count(self, code: str) -> int:
        """Return the count of the clean file."""
        return self.clean[code].count if code in self.clean else 0


@pytest.fixture(params=FILES, ids=["coco128", "bccd"])
def changed(request: pytest.FixtureRequest, data_dir: Path, tmp_path: Path) -> Changed:
    path = data_dir / request.param
    rng = np.random.default_rng(zlib.crc32(request.node.name.encode()))
    return Changed(findings_of(path), json.loads(path.read_text()), rng, tmp_path)


def plain_counts(document: Document) -> dict[str, int]:
    """Return the number of objects to train on by class name."""
    plain = [each for each in document["annotations"] if not each.get("iscrowd")]
    return {
        each["name"]: sum(entry["category_id"] == each["id"] for entry in plain)
        for each in document["categories"]
    }


def drop_objects(document: Document, names: Iterable[str], keep: int) -> None:
    """Keep `keep` objects of each of these classes, and its crowd regions."""
    ids = {each["id"] for each in document["categories"] if each["name"] in set(names)}
    seen = dict.fromkeys(ids, 0)
    kept = []
    for entry in document["annotations"]:
        key = entry["category_id"]
        if key in ids and not entry.get("iscrowd"):
            seen[key] += 1
            if seen[key] > keep:
                continue
        kept.append(entry)
    document["annotations"] = kept


@pytest.mark.parametrize(("code", "keep"), [("class-few-objects", 9), ("class-unused", 0)])
def test_classes_with_few_objects(changed: Changed, code: str, keep: int) -> None:
    many = [name for name, count in plain_counts(changed.document).items() if count >= 10]
    # one class is left: without any object the file has another finding
    chosen = changed.rng.choice(many, size=min(PLACES, len(many) - 1), replace=False).tolist()
    drop_objects(changed.document, chosen, keep)
    found = changed.findings()
    assert found[code].count == changed.count(code) + len(chosen)
    if code not in changed.clean:
        texts = {str(example) for example in found[code].examples}
        assert texts == {f"{name}: {keep}" if keep else name for name in chosen[:3]}


def test_classes_of_another_split(changed: Changed) -> None:
    here, there = halves(changed.document)
    both = [
        name for name, count in plain_counts(here).items() if count and plain_counts(there)[name]
    ]
    chosen = changed.rng.choice(both, size=min(PLACES, len(both)), replace=False).tolist()
    split = Changed({}, here, changed.rng, changed.folder)
    before = split.findings(there)
    drop_objects(there, chosen, 0)
    found = split.findings(there)
    code = "class-missing-in-split"
    assert found[code].count == (before[code].count if code in before else 0) + len(chosen)
    assert "classes-differ" not in found

    there["categories"] = json.loads(json.dumps(there["categories"]))
    for category in there["categories"]:
        category["name"] += " 2" if category["name"] in chosen else ""
    assert split.findings(there)["classes-differ"].count == 2 * len(chosen)


def test_class_names_that_differ_in_case_or_spaces(changed: Changed) -> None:
    categories = changed.document["categories"]
    chosen = changed.rng.permutation(len(categories))[:PLACES].tolist()
    changes: tuple[Callable[[str], str], ...] = (
        str.swapcase,
        " {}".format,
        "{} ".format,
        lambda name: f"{name[:2]}_{name[2:]}",
        lambda name: f"{name[:2]}-{name[2:]}",
    )
    for number, at in enumerate(chosen):
        name = changes[number % len(changes)](categories[at]["name"])
        categories.append({"id": 1000 + number, "name": name})
    finding = changed.findings()["class-similar-names"]
    assert finding.count == len(chosen)


def sides_of(document: Document) -> tuple[np.ndarray, np.ndarray]:
    """Return rows, and (n, 2) width and height on the resized image, of objects but crowds."""
    images = {image["id"]: image for image in document["images"]}
    rows, sides = [], []
    for row, entry in enumerate(document["annotations"]):
        image = images[entry["image_id"]]
        size = image["width"], image["height"]
        scale = min(NETWORK.short_side / min(size), NETWORK.max_side / max(size))
        if not entry.get("iscrowd"):
            rows.append(row)
            sides.append([side * scale for side in entry["bbox"][2:]])
    return np.array(rows), np.array(sides)


def test_small_objects(changed: Changed) -> None:
    places = choose(changed.document, changed.rng)
    for at in places:
        box = changed.document["annotations"][at]["bbox"]
        box[2:] = [2.0, 2.5]
    rows, sides = sides_of(changed.document)
    small = rows[sides.min(axis=1) < max(8, NETWORK.stride)].tolist()
    finding = changed.findings()["object-small"]
    assert finding.rows.tolist() == small
    assert finding.count == len(small)
    assert set(small) >= set(places)


def test_objects_that_no_anchor_fits(changed: Changed) -> None:
    sizes, ratios = NETWORK.anchor_sizes, NETWORK.anchor_ratios
    anchors = AnchorGenerator([tuple(sizes)], ratios=tuple(ratios), strides=[16]).cell_anchors[0]

    def missed() -> np.ndarray:
        rows, sides = sides_of(changed.document)
        boxes = torch.from_numpy(np.concatenate([-sides / 2, sides / 2], axis=1)).float()
        poor: np.ndarray = rows[(box_iou(boxes, anchors).amax(dim=1) < 0.5).numpy()]
        return poor

    before = missed()
    rows = np.setdiff1d(sides_of(changed.document)[0], before)
    images = {image["id"]: image for image in changed.document["images"]}
    for at in changed.rng.choice(rows, size=PLACES, replace=False).tolist():
        entry = changed.document["annotations"][at]
        width = 0.8 * images[entry["image_id"]]["width"]
        entry["bbox"] = [5.0, entry["bbox"][1], width, width / 20]
    code = "anchors-miss"
    assert len(before) == changed.count(code)
    assert len(missed()) == len(before) + PLACES
    assert changed.findings()[code].count == len(missed())
