"""PNG masks: instances, classes by map, folder or name, palettes, 16 bits, classes as values."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from engine.errors import UserError
from tests.detection.datasets.formats.conversions import read_checked, rows_of
from tests.detection.datasets.voc_files import write_image

BOXES = [[5, 6, 20, 10], [30, 6, 10, 10]]


def values(
    dtype: type[np.integer[Any]] = np.uint8, *, first: int = 1, second: int = 2
) -> np.ndarray:
    mask: np.ndarray = np.zeros((40, 60), dtype)
    mask[6:16, 5:25], mask[6:16, 30:40] = first, second
    return mask


def write(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), mask)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_image(tmp_path / "images" / "a.jpg")
    return tmp_path / "images"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_one_class_for_all(tmp_path: Path, images: Path, dtype: type[np.integer[Any]]) -> None:
    write(tmp_path / "masks/a.png", values(dtype))
    checked = read_checked(tmp_path / "masks", "masks", images=images, class_name="cell")
    assert rows_of(checked) == [("a.jpg", "cell", box) for box in BOXES]


def test_a_palette_is_read_as_indices(tmp_path: Path, images: Path) -> None:
    image = Image.fromarray(values())
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    (tmp_path / "masks").mkdir()
    image.save(tmp_path / "masks" / "a.png")
    checked = read_checked(tmp_path / "masks", "masks", images=images, class_name="cell")
    assert len(rows_of(checked)) == 2


@pytest.mark.parametrize("pattern", ["{}/a.png", "a__{}.png"])
def test_classes_of_folders_and_names(tmp_path: Path, images: Path, pattern: str) -> None:
    for name in ("cat", "big dog"):
        write(tmp_path / "masks" / pattern.format(name), values(second=0))
    rows = rows_of(read_checked(tmp_path / "masks", "masks", images=images))
    assert sorted(rows) == [("a.jpg", name, BOXES[0]) for name in ("big dog", "cat")]


def test_a_map_names_values(tmp_path: Path) -> None:
    write(tmp_path / "a.png", values(first=7, second=300 % 256))
    content = {"masks": {"a.png": {"image": "b/a.jpg", "classes": {"7": "cat", "44": "dog"}}}}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    rows = rows_of(read_checked(tmp_path, "masks"))
    assert rows == [("b/a.jpg", "cat", BOXES[0]), ("b/a.jpg", "dog", BOXES[1])]


def test_classes_as_values_are_refused_or_split(tmp_path: Path, images: Path) -> None:
    write(tmp_path / "masks/a.png", values(first=2, second=2))
    with pytest.raises(UserError, match=r"got values 2: numbers of classes\? --semantic splits"):
        read_checked(tmp_path / "masks", "masks", images=images, class_name="x")
    checked = read_checked(
        tmp_path / "masks", "masks", images=images, semantic=True, classes=["cat", "dog"]
    )
    assert rows_of(checked) == [("a.jpg", "dog", box) for box in BOXES]
    with pytest.raises(UserError, match="expected a class from 1 to 1, got the value 2"):
        read_checked(tmp_path / "masks", "masks", images=images, semantic=True, classes=["cat"])


def test_void_pixels_are_counted(tmp_path: Path, images: Path) -> None:
    mask = values()
    mask[0] = 255
    write(tmp_path / "masks/a.png", mask)
    checked = read_checked(tmp_path / "masks", "masks", images=images, class_name="cell")
    assert len(rows_of(checked)) == 2
    assert dict(checked.rows)["masks with void pixels (value 255)"] == 1


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((40, 60, 3), np.uint8), "expected a PNG of one channel, got one of RGB"),
        (values(), "value 1: expected a class from instances.json, a folder"),
    ],
)
def test_bad_masks(tmp_path: Path, images: Path, mask: np.ndarray, message: str) -> None:
    write(tmp_path / "masks/a.png", mask)
    with pytest.raises(UserError, match=message):
        read_checked(tmp_path / "masks", "masks", images=images)


def test_a_broken_png_is_one_line(tmp_path: Path, images: Path) -> None:
    write(tmp_path / "masks/a.png", values())
    data = (tmp_path / "masks/a.png").read_bytes()
    (tmp_path / "masks/a.png").write_bytes(data[:40])
    with pytest.raises(UserError, match="expected a whole PNG, got one that cannot be read"):
        read_checked(tmp_path / "masks", "masks", images=images, class_name="x")


def test_images_are_needed(tmp_path: Path) -> None:
    write(tmp_path / "masks/a.png", values())
    with pytest.raises(UserError, match="expected --images DIR"):
        read_checked(tmp_path / "masks", "masks", class_name="x")


def test_values_with_gaps_are_objects_if_the_user_says_so(tmp_path: Path, images: Path) -> None:
    write(tmp_path / "masks/a.png", values(np.uint16, first=300, second=255))
    with pytest.raises(UserError, match=r"got values 300: .* --instances takes each value"):
        read_checked(tmp_path / "masks", "masks", images=images, class_name="cell")
    checked = read_checked(
        tmp_path / "masks", "masks", images=images, class_name="cell", instances=True
    )
    assert sorted(rows_of(checked)) == [("a.jpg", "cell", box) for box in BOXES]


def test_masks_of_another_size_than_their_image_are_bad(tmp_path: Path, images: Path) -> None:
    write(tmp_path / "masks/a.png", values()[:30])
    message = r"a\.jpg: expected masks of its size 60x40 \(width x height\), got 60x30"
    with pytest.raises(UserError, match=message):
        read_checked(tmp_path / "masks", "masks", images=images, class_name="cell")
