"""Data set of a localization run: training crops and their boxes, whole images in evaluation."""

from pathlib import Path

import numpy as np
import pytest

from backbones.config import DemoConfig
from detection.localization.config import AugmentConfig
from detection.localization.dataset import (
    LocalizationDataset,
    TrainingCrop,
    crop_boxes,
    visible_fraction,
)
from detection.localization.demo import make_demo_localization
from detection.localization.tiny_imagenet import read_tiny_imagenet
from engine.errors import SkippedSampleError, UserError
from tests.detection.localization.tiny_localizer import SIDE, tiny_config, write_tiny_imagenet


def patch_image() -> tuple[np.ndarray, np.ndarray]:
    """An image of 60 x 80 with a white patch, and its box."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[20:50, 30:70] = 255
    return pixels, np.array([[30, 20, 70, 50]], np.float32)


CROPS = {
    "area": AugmentConfig(crop=40, area=(0.3, 1.0), min_visible=0.6),
    "short side": AugmentConfig(crop=40, short_sides=(44, 60), min_visible=0.6),
}


@pytest.mark.parametrize("config", CROPS.values(), ids=CROPS)
def test_boxes_follow_crops_and_mirroring(config: AugmentConfig) -> None:
    pixels, boxes = patch_image()
    crop = TrainingCrop(config)
    seen = set()
    for seed in range(30):
        square, (box,), is_partial = crop(pixels, boxes, seed=seed)
        assert square.shape == (40, 40, 3)
        assert is_partial.tolist() == [False]
        rows, columns = np.nonzero(square[..., 0] > 127)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(box, found, atol=1.01)
        again = crop(pixels, boxes, seed=seed)
        np.testing.assert_array_equal(again[0], square)
        np.testing.assert_array_equal(again[1][0], box)
        seen.add(tuple(box.tolist()))
    assert len(seen) > 15


def test_one_of_several_boxes_is_kept_and_the_others_are_marked() -> None:
    pixels = np.zeros((40, 120, 3), np.uint8)
    boxes = np.array([[0, 0, 30, 40], [90, 0, 120, 40]], np.float32)
    crop = TrainingCrop(AugmentConfig(crop=32, short_sides=(32, 32), min_visible=0.9))
    is_partial = [crop(pixels, boxes, seed=seed)[2].tolist() for seed in range(20)]
    assert [True, True] not in is_partial
    assert [True, False] in is_partial
    assert [False, True] in is_partial


def test_whole_image_is_used_if_no_crop_shows_enough_of_a_box() -> None:
    pixels, _ = patch_image()
    boxes = np.array([[0, 0, 80, 60]], np.float32)
    config = AugmentConfig(crop=30, area=(0.2, 0.3), min_visible=0.9, flip_prob=0.0)
    _, (box,), is_partial = TrainingCrop(config)(pixels, boxes, seed=0)
    assert box.tolist() == [0, 0, 30, 30]
    assert not is_partial.any()


def test_crop_boxes_and_visible_fraction() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    np.testing.assert_array_equal(crop_boxes(boxes, (5, 0, 15, 8))[0], [0, 0, 5, 8])
    np.testing.assert_allclose(visible_fraction(boxes, (5, 0, 15, 8)), [0.4, 0.0])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tiny_imagenet(tmp_path)


def test_evaluation_images_are_whole_and_grouped_by_shape(root: Path) -> None:
    config = tiny_config(root, evaluation={"resize": 48})
    data = LocalizationDataset(config, "val", training=False, class_names=("blue", "red"))
    sample = data.load(0, 0)
    assert sample.pixels.shape == (48, 48, 3)
    assert sample.original_size == (SIDE, SIDE)
    np.testing.assert_allclose(sample.boxes, data.images.boxes_of(0) * 1.5, rtol=1e-5)
    assert data.groups.tolist() == [0] * 4
    dense = tiny_config(root, evaluation={"view": "dense", "scales": [32, 64]})
    data = LocalizationDataset(dense, "val", training=False, class_names=("blue", "red"))
    assert data.load(0, 0).pixels.shape == (64, 64, 3)


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_truncated_image(root: Path, policy: str) -> None:
    path = root / "train/blue/images/blue_0.png"
    path.write_bytes(path.read_bytes()[:60])
    config = tiny_config(root, data={"on_bad_image": policy})
    if policy == "error":
        with pytest.raises(UserError, match=r"blue_0\.png"):
            LocalizationDataset(config, "train", training=True)
        return
    data = LocalizationDataset(config, "train", training=True)
    assert data.images.problems == {"unreadable images skipped": ["blue_0.png"]}
    (root / "train/blue/images/blue_1.png").write_bytes(b"")
    with pytest.raises(SkippedSampleError, match=r"blue_1\.png"):
        data.load(0, 0)


@pytest.mark.parametrize(("folder", "got"), [("", "nothing"), ("absent", "no such folder")])
def test_missing_root(tmp_path: Path, folder: str, got: str) -> None:
    config = tiny_config(tmp_path / folder) if folder else tiny_config(tmp_path, data={"root": ""})
    with pytest.raises(UserError, match=f"data.root .*: expected the folder .*, got {got}"):
        LocalizationDataset(config, "train", training=True)


def test_demo_is_drawn_once_in_tiny_imagenet_layout(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    config = DemoConfig(root=str(root), num_train=40, num_val=5)
    make_demo_localization(config)
    written = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    assert len(written) == 45
    make_demo_localization(config)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.png")} == written
    images = read_tiny_imagenet(root, "train", on_bad_box="error", on_bad_image="error")
    assert len(images) == 40
    assert len(images.class_names) == 6
    assert images.problems == {}
