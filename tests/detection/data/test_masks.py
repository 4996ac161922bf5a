"""Masks drawn from polygons and run lengths at the size that the network sees."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detection.config import DataConfig, SplitConfig
from detection.data.dataset import CocoDetection
from detection.data.masks import Rectangle, draw_mask, draw_masks
from detection.data.segmentations import SegmentationsBuilder
from detection.evaluation.ground_truth import ground_truth_of, read_ground_truth
from detection.ops.masks import unpack_bits
from engine.errors import UserError
from tests.conftest import REPOSITORY

SIZE = (60, 80)
SQUARE = [10.0, 12.0, 50.0, 12.0, 50.0, 40.0, 10.0, 40.0]
BESIDE = [60.0, 5.0, 75.0, 5.0, 75.0, 55.0, 60.0, 55.0]


def filled(*boxes: tuple[int, int, int, int], size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, np.bool_)
    for x1, y1, x2, y2 in boxes:
        mask[y1:y2, x1:x2] = True
    return mask


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": code["counts"].decode()}


VALUES = {
    "polygon": ([SQUARE], filled((10, 12, 50, 40))),
    "two parts": ([SQUARE, BESIDE], filled((10, 12, 50, 40), (60, 5, 75, 55))),
    "over the border": ([[-20.0, -5.0, 30.0, -5.0, 30.0, 20.0]], None),
    "one pixel": (run_lengths(filled((33, 20, 34, 21))), filled((33, 20, 34, 21))),
    "hole": (run_lengths(filled((5, 5, 40, 50)) & ~filled((10, 10, 30, 30))), None),
    "whole": (run_lengths(filled((0, 0, 80, 60))), filled((0, 0, 80, 60))),
}


def draw(value: Any, resized: tuple[int, int]) -> np.ndarray:
    packer = SegmentationsBuilder()
    packer.add(value, SIZE)
    mask: np.ndarray = draw_masks(packer.pack(), [0], SIZE, resized)[0]
    return mask


@pytest.mark.parametrize("name", VALUES)
def test_at_its_own_size_a_mask_is_what_the_file_says(name: str) -> None:
    value, expected = VALUES[name]
    if expected is None:
        code = (
            value
            if isinstance(value, dict)
            else coco_mask.merge(coco_mask.frPyObjects(value, *SIZE))
        )
        expected = coco_mask.decode(code).astype(np.bool_)
    np.testing.assert_array_equal(draw(value, SIZE), expected)


@pytest.mark.parametrize("factor", [0.5, 1.5, 3.0])
@pytest.mark.parametrize("name", ["polygon", "two parts", "hole", "whole"])
def test_resized_masks_move_by_less_than_half_a_pixel(name: str, factor: float) -> None:
    resized = (round(SIZE[0] * factor), round(SIZE[1] * factor))
    found = draw(VALUES[name][0], resized)
    whole = draw(VALUES[name][0], SIZE)
    # the pixel of the file under each centre, and whether all within half a pixel agree
    y, x = np.mgrid[0 : resized[0], 0 : resized[1]] + 0.5
    corners = [
        whole[
            np.clip((y + dy) / factor, 0, SIZE[0] - 1).astype(int),
            np.clip((x + dx) / factor, 0, SIZE[1] - 1).astype(int),
        ]
        for dy in (-0.5, 0.5)
        for dx in (-0.5, 0.5)
    ]
    inside, outside = np.logical_and.reduce(corners), ~np.logical_or.reduce(corners)
    assert found[inside].all()
    assert not found[outside].any()


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.6])
@pytest.mark.parametrize("name", VALUES)
def test_a_window_of_a_mask_is_that_of_the_whole(name: str, factor: float) -> None:
    resized = (round(SIZE[0] * factor), round(SIZE[1] * factor))
    packer = SegmentationsBuilder()
    packer.add(VALUES[name][0], SIZE)
    whole = draw(VALUES[name][0], resized)
    rng = np.random.default_rng(0)
    for _ in range(12):
        top, left = (int(rng.integers(side)) for side in resized)
        height, width = int(rng.integers(resized[0] - top)), int(rng.integers(resized[1] - left))
        window = Rectangle(top, left, height + 1, width + 1)
        tight = draw_mask(packer.pack(), 0, size=SIZE, resized=resized, window=window)
        found = np.zeros((window.height, window.width), np.bool_)
        found[tight.rectangle.slices] = tight.pixels
        np.testing.assert_array_equal(found, whole[window.slices])
        if found.any():
            outermost = tight.pixels[[0, -1]].any(axis=1), tight.pixels[:, [0, -1]].any(axis=0)
            assert np.all(outermost)


def test_crowds_have_no_mask() -> None:
    packer = SegmentationsBuilder()
    packer.add([SQUARE], SIZE)
    assert not draw_masks(packer.pack(), [None], SIZE, SIZE).any()


def write_data_set(folder: Path, segmentation: Any) -> SplitConfig:
    cv2.imwrite(str(folder / "a.png"), np.full((*SIZE, 3), 90, np.uint8))
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 7, "name": "thing"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 7,
                "bbox": [10, 12, 40, 28],
                "segmentation": segmentation,
            }
        ],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return SplitConfig(images=str(folder), annotations=str(folder / "a.json"))


def test_a_batch_holds_the_masks_as_bits(tmp_path: Path) -> None:
    split = write_data_set(tmp_path, [SQUARE])
    config = DataConfig(val=split, eval_short_side=60, eval_max_side=80)
    data = CocoDetection(split, config=config, training=False, with_masks=True)
    targets = data.collate([data.load(0, 0)]).targets
    assert targets.masks is not None
    bits = unpack_bits(targets.masks, width=96)
    assert bits.shape == (1, 8, 64, 96)
    np.testing.assert_array_equal(bits[0, 0, :60, :80].numpy(), filled((10, 12, 50, 40)))
    assert not bits[0, 1:].any()
    bare = CocoDetection(split, config=config, training=False)
    assert bare.collate([bare.load(0, 0)]).targets.masks is None


@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (None, "expected polygons or an RLE, got nothing"),
        ([], "expected polygons or an RLE, got nothing"),
        (3, "expected polygons or an RLE, got 3"),
        (True, "expected polygons or an RLE, got True"),
        ("abc", "expected polygons or an RLE, got 'abc'"),
        (SQUARE, "expected polygons or an RLE, got [10.0, 12.0"),
        ([[1, 2, 3, 4]], "expected polygons of three points or more, got [[1, 2, 3, 4]]"),
        ([[], [1, 2, 3, 4, 5, 6, 7]], "expected polygons of three points or more, got [[], [1, "),
        ([[1, 2, 3, 4, 5, None]], "expected polygons of three points or more, got [[1, 2"),
        ([[1e30, 2, 3, 4, 5, 6]], "expected polygons of three points or more, got [[1e+30"),
        (run_lengths(np.ones((20, 30), np.bool_)), "expected size [60, 80], got [20, 30]"),
        (run_lengths(np.ones(SIZE[::-1], np.bool_)), "expected size [60, 80], got [80, 60]"),
        (
            {"size": list(SIZE), "counts": run_lengths(np.ones((20, 30), np.bool_))["counts"]},
            "expected runs of 60 x 80 pixels, got 600",
        ),
        ({}, "expected size [60, 80], got None"),
    ],
)
def test_masks_are_checked_when_the_data_are_opened(
    tmp_path: Path, value: Any, fault: str, training: bool
) -> None:
    split = write_data_set(tmp_path, value)
    config = DataConfig(train=split, val=split)
    CocoDetection(split, config=config, training=training)
    with pytest.raises(UserError) as error:
        CocoDetection(split, config=config, training=training, with_masks=True)
    start = f"{split.annotations}: annotation 1 of image a.png: segmentation: {fault}"
    assert str(error.value).startswith(start)
    assert str(error.value).endswith(" (1 bad in all; data.on_bad_box=skip drops them)")


def test_objects_without_a_readable_mask_can_be_dropped(tmp_path: Path) -> None:
    split = write_data_set(tmp_path, [SQUARE])
    path = Path(split.annotations)
    document = json.loads(path.read_text())
    first = document["annotations"][0]
    document["annotations"] += [dict(first, id=2, segmentation=[[1, 2, 3, 4]]), dict(first, id=3)]
    path.write_text(json.dumps(document))
    config = DataConfig(train=split, on_bad_box="skip")
    data = CocoDetection(split, config=config, training=True, with_masks=True)
    assert data.annotations.rows_in_file.tolist() == [0, 2]
    assert ("boxes dropped, no readable mask: thing", 1) in data.report.rows()
    data = CocoDetection(split, config=config, training=False, with_masks=True)
    ground_truth = ground_truth_of(data.annotations, with_masks=True)
    assert [each["id"] for each in ground_truth.of_category(7, with_masks=True)] == [1, 3]


PARTS: dict[str, list[Any]] = {
    "line last": [SQUARE, [26, 31, 50, 31]],
    "line first": [[26, 31, 50, 31], SQUARE],
    "point": [SQUARE, [26, 31]],
    "empty": [[], SQUARE],
    "odd": [SQUARE, [1, 2, 3, 4, 5, 6, 7]],
    "not finite": [[1, 2, float("nan"), 4, 5, 6], SQUARE],
    "far": [SQUARE, [1e9, 2, 3, 4, 5, 6]],
    "number": [SQUARE, 7],
    "text": [SQUARE, "polygon"],
    "null": [None, SQUARE],
    "digits": [SQUARE, [10**400, 2, 3, 4, 5, 6]],
}


@pytest.mark.parametrize("value", PARTS.values(), ids=PARTS)
def test_a_part_that_is_no_polygon_is_dropped(tmp_path: Path, value: list[Any]) -> None:
    split = write_data_set(tmp_path, value)
    config = DataConfig(val=split, eval_short_side=60, eval_max_side=80)
    data = CocoDetection(split, config=config, training=False, with_masks=True)
    masks = data.load(0, 0).masks
    assert masks is not None
    np.testing.assert_array_equal(masks[0], filled((10, 12, 50, 40)))
    assert ("mask parts dropped (not polygons)", 1) in data.report.rows()
    ground_truth = read_ground_truth(split.annotations, with_masks=True)
    [segmentation] = [ground_truth.segmentation_of(row) for row in ground_truth.rows_of(7)]
    assert segmentation == [SQUARE]  # pycocotools takes four for a box


def test_a_crowd_may_be_without_a_mask(tmp_path: Path) -> None:
    split = write_data_set(tmp_path, None)
    path = Path(split.annotations)
    document = json.loads(path.read_text())
    document["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(document))
    config = DataConfig(val=split, eval_short_side=60, eval_max_side=80)
    data = CocoDetection(split, config=config, training=False, with_masks=True)
    masks = data.load(0, 0).masks
    assert masks is not None
    assert not masks.any()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells of its memory")
def test_two_hundred_masks_of_a_large_image_stay_within_a_gigabyte() -> None:
    """In a process of its own: what others have freed would be taken without growing."""
    script = REPOSITORY / "tests/detection/data/many_masks.py"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1 << 20  # kB
