"""Findings about image files, and about another split of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.detection.datasets.check.checking import findings_of, repair, write

BOX = [2.0, 3.0, 10.0, 12.0]


@pytest.fixture
def split(tmp_path: Path) -> dict[str, Any]:
    """Six images of 40x30 (width x height) in `images`, one object each."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    images, objects = [], []
    for number in range(1, 7):
        name = f"{number}.png"
        pixels = rng.integers(256, size=(30, 40, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "images" / name), pixels)
        images.append({"id": number, "file_name": name, "width": 40, "height": 30})
        objects.append({"id": number, "image_id": number, "category_id": 1, "bbox": BOX})
    return {
        "images": images,
        "annotations": objects,
        "categories": [{"id": 1, "name": "ant"}],
    }


def rows_of(tmp_path: Path, document: Any, **inputs: Any) -> dict[str, list[int]]:
    path = write(tmp_path / "a.json", document)
    found = findings_of(path, images=tmp_path / "images", **inputs)
    return {code: finding.rows.tolist() for code, finding in found.items()}


def test_missing_and_damaged_images(tmp_path: Path, split: dict[str, Any]) -> None:
    folder = tmp_path / "images"
    (folder / "1.png").unlink()
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:200])
    (folder / "3.png").write_text("not an image")
    found = rows_of(tmp_path, split)
    assert found["image-missing"] == [0]
    assert found["image-damaged"] == [1, 2]
    repair(tmp_path / "a.json", tmp_path / "b.json", images=folder)
    copy = json.loads((tmp_path / "b.json").read_text())
    assert [image["id"] for image in copy["images"]] == [4, 5, 6]
    assert [entry["image_id"] for entry in copy["annotations"]] == [4, 5, 6]


def test_a_wrong_folder_drops_nothing(tmp_path: Path, split: dict[str, Any]) -> None:
    path, folder = write(tmp_path / "a.json", split), tmp_path / "elsewhere"
    folder.mkdir()
    report, changes = repair(path, tmp_path / "b.json", images=folder)
    finding = next(each for each in report.findings if each.code == "image-missing")
    assert (finding.count, finding.remaining) == (6, 6)
    assert "is --images the folder that file names are relative to?" in finding.detail
    assert [line for line in changes.lines if line["change"].startswith("dropped")] == []
    assert len(json.loads((tmp_path / "b.json").read_text())["images"]) == 6


def test_other_sizes(tmp_path: Path, split: dict[str, Any]) -> None:
    split["images"][0].update(width=80, height=60)
    split["images"][1].update(width=80, height=60)
    split["annotations"][1]["bbox"] = [50, 40, 10, 10]
    split["images"][2].update(width=30, height=40)
    split["images"][3]["width"] = None
    found = rows_of(tmp_path, split)
    assert found["image-other-size"] == [0, 1, 2]
    assert found["image-size"] == [3]
    report, changes = repair(tmp_path / "a.json", tmp_path / "b.json", images=tmp_path / "images")
    copy = json.loads((tmp_path / "b.json").read_text())
    # the boxes of the second do not fit its file
    assert [image["id"] for image in copy["images"]] == [1, 3, 4, 5, 6]
    assert {(image["width"], image["height"]) for image in copy["images"]} == {(40, 30)}
    dropped = [line for line in changes.lines if line["change"].startswith("dropped")]
    assert [(line["list"], line["id"]) for line in dropped] == [("images", 2), ("annotations", 2)]
    assert all(finding.remaining == 0 for finding in report.findings if "size" in finding.code)


def test_exif_rotation_that_was_ignored(tmp_path: Path, split: dict[str, Any]) -> None:
    pixels = Image.fromarray(np.random.default_rng(1).integers(256, size=(30, 40, 3), dtype="u1"))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees
    pixels.save(tmp_path / "images" / "1.jpg", exif=exif)
    split["images"][0]["file_name"] = "1.jpg"
    assert rows_of(tmp_path, split)["exif-ignored"] == [0]
    repair(tmp_path / "a.json", tmp_path / "b.json", images=tmp_path / "images")
    image = json.loads((tmp_path / "b.json").read_text())["images"][0]
    assert (image["width"], image["height"]) == (30, 40)


def test_equal_content(tmp_path: Path, split: dict[str, Any]) -> None:
    folder = tmp_path / "images"
    shutil.copy(folder / "1.png", folder / "3.png")  # equal bytes
    pixels = cv2.imread(str(folder / "2.png"))
    assert pixels is not None
    cv2.imwrite(str(folder / "5.png"), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 0])  # equal pixels
    assert (folder / "2.png").read_bytes() != (folder / "5.png").read_bytes()
    split["images"][3]["file_name"] = "./6.png"  # one file twice
    found = rows_of(tmp_path, split)
    assert found["duplicate-image"] == [2, 4]
    assert found["shared-file"] == [5]


def test_copies_that_were_saved_again_remain(tmp_path: Path, split: dict[str, Any]) -> None:
    folder = tmp_path / "images"
    row = np.linspace(0, 255, 40).astype(np.uint8)
    pixels = np.stack([row, row[::-1], row], axis=-1)[None].repeat(30, axis=0)
    pixels[10:20, 5:25] = 90
    cv2.imwrite(str(folder / "2.png"), pixels)
    cv2.imwrite(str(folder / "5.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 80])
    shutil.copy(folder / "5.jpg", folder / "6.jpg")
    split["images"][4]["file_name"] = "5.jpg"
    split["images"][5]["file_name"] = "6.jpg"
    found = rows_of(tmp_path, split)
    assert found["near-duplicate-image"] == [4]
    assert found["duplicate-image"] == [5]
    report, changes = repair(tmp_path / "a.json", tmp_path / "b.json", images=folder)
    left = {finding.code: finding.remaining for finding in report.findings}
    assert left["near-duplicate-image"] == left["duplicate-image"] == 1
    assert not any(line["list"] == "images" for line in changes.lines)

    other = {**split, "images": split["images"][:2], "annotations": split["annotations"][:2]}
    split["images"] = split["images"][2:]
    path = write(tmp_path / "other.json", other)
    found = rows_of(tmp_path, split, against=path, against_images=folder)
    assert found["near-leaked-image"] == [2, 3]
    assert "leakage" not in found


def test_images_that_were_not_all_compared_are_counted(
    tmp_path: Path, split: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detection.datasets.check.near_copies.MOST_TRIED", 1)
    pixels = np.linspace(0, 255, 3600).astype(np.uint8).reshape(30, 40, 3)
    for number in range(1, 7):  # one scene with a dark object elsewhere
        image = pixels.copy()
        image[20:22, 6 * number - 3 : 6 * number] -= 50
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), image)
    inputs = {"against": write(tmp_path / "other.json", {**split, "images": split["images"][:3]})}
    split["images"] = split["images"][3:]
    path = write(tmp_path / "a.json", split)
    images = tmp_path / "images"
    found = findings_of(path, images=images, against_images=images, **inputs)
    assert found["images-alike"].count == 1
    assert found["images-alike-in-split"].count == 3
    assert not found.keys() & {"near-duplicate-image", "near-leaked-image"}


def test_leakage_by_content_and_by_name(tmp_path: Path, split: dict[str, Any]) -> None:
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    shutil.copy(tmp_path / "images" / "2.png", other_folder / "new.png")
    shutil.copy(tmp_path / "images" / "3.png", other_folder / "4.png")
    names = ["new.png", "4.png"]
    other = {**split, "images": [{**split["images"][i], "file_name": names[i]} for i in (0, 1)]}
    other["annotations"] = split["annotations"][:2]
    path = write(tmp_path / "other.json", other)
    found = rows_of(tmp_path, split, against=path, against_images=other_folder)
    assert found["leakage"] == [1, 2]
    assert rows_of(tmp_path, split, against=path)["leakage"] == [3]
    assert "classes-differ" not in found


def test_classes_of_another_split(tmp_path: Path, split: dict[str, Any]) -> None:
    split["categories"] += [{"id": 2, "name": "bee"}, {"id": 3, "name": "cow"}]
    split["annotations"][0]["category_id"] = 2
    other = json.loads(json.dumps(split).replace('"cow"', '"cat"'))
    other["annotations"][0]["category_id"] = 1
    path = write(tmp_path / "other.json", other)
    found = findings_of(write(tmp_path / "a.json", split), against=path)
    assert [str(each) for each in found["classes-differ"].examples] == [
        "only here: cow (id 3)",
        "only there: cat (id 3)",
    ]
    assert [str(each) for each in found["class-missing-in-split"].examples] == [
        "bee: 1 here, 0 there"
    ]


@pytest.mark.extended
def test_processes_find_what_one_finds(
    tmp_path: Path, split: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backbones.image_processes.FEWEST_FOR_PROCESSES", 2)
    (tmp_path / "images" / "5.png").unlink()
    assert rows_of(tmp_path, split, workers=2) == rows_of(tmp_path, split, workers=0)
