from typing import Any

import numpy as np
import pytest
import torch

from detection.data.transforms import NO_MASKS, Augment, resize, resized_size
from tests.reference.images import smooth_image


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((800, 1333), (800, 1333)),
        ((100, 400), (333, 1333)),
        ((10, 5000), (3, 1333)),
        ((1, 9000), (1, 1333)),
    ],
    ids=str,
)
def test_resized_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_size(size, 800, 1333) == expected


@pytest.mark.parametrize("size", [(96, 200), (20, 30), (48, 64)], ids=str)
def test_boxes_scale_by_each_axis(size: tuple[int, int]) -> None:
    boxes = np.array([[0, 0, 64, 48], [10.5, 3, 20, 40]], dtype=np.float32)
    pixels, resized = resize(smooth_image(), boxes, size)
    assert pixels.shape == (*size, 3)
    assert resized.dtype == np.float32
    scale = np.array([size[1] / 64, size[0] / 48] * 2, dtype=np.float32)
    torch.testing.assert_close(resized, boxes * scale)
    assert resize(smooth_image(), boxes[:0], size)[1].shape == (0, 4)


def make_augment(**changes: Any) -> Augment:
    values: dict[str, Any] = {
        "short_sides": (40, 48, 56),
        "flip_prob": 0.5,
        "vertical_flip_prob": 0.5,
        "color_jitter": 0.3,
    }
    return Augment(**{**values, **changes})


@pytest.mark.parametrize("side", [24, 48, 96], ids=["shrinks", "same size", "grows"])
@pytest.mark.parametrize("flips", [(0, 0), (1, 0), (0, 1), (1, 1)], ids=str)
def test_boxes_follow_the_image(flips: tuple[int, int], side: int) -> None:
    # One white rectangle on black: its box can be read back from the pixels.
    pixels = np.zeros((48, 64, 3), dtype=np.uint8)
    pixels[8:20, 4:28] = 255
    boxes = np.array([[4, 8, 28, 20]], dtype=np.float32)
    augment = make_augment(
        flip_prob=float(flips[0]),
        vertical_flip_prob=float(flips[1]),
        color_jitter=0.0,
    )
    size = (side, side * 4 // 3)
    changed, moved, _ = augment(pixels, boxes, NO_MASKS, seed=3, size=size)
    assert changed.shape == (*size, 3)
    rows, columns = np.nonzero(changed[..., 0] > 127)
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    expected = torch.tensor([edges], dtype=torch.float32)
    torch.testing.assert_close(torch.from_numpy(moved), expected, rtol=0, atol=1e-3)
    left = 36 if flips[0] else 4
    assert abs(moved[0, 0] - left * side / 48) < 1e-3


def test_one_seed_gives_one_image() -> None:
    pixels = smooth_image()
    boxes = np.array([[4, 8, 28, 20]], dtype=np.float32)
    augment = make_augment()
    first = [augment(pixels, boxes, NO_MASKS, seed=seed, size=(40, 53)) for seed in range(8)]
    # Another object, in another order, as another worker would have it.
    other = make_augment()
    for seed in reversed(range(8)):
        again = other(pixels, boxes, NO_MASKS, seed=seed, size=(40, 53))
        torch.testing.assert_close(again[0], first[seed][0], rtol=0, atol=0)
        torch.testing.assert_close(again[1], first[seed][1], rtol=0, atol=0)
    assert len({image.tobytes() for image, _, _ in first}) == 8


def test_the_two_mirrors_are_drawn_apart() -> None:
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, 10, 10]], dtype=np.float32)
    augment = make_augment(color_jitter=0.0)
    moved = [augment(pixels, boxes, NO_MASKS, seed=seed, size=(40, 40))[1] for seed in range(200)]
    corners = [tuple(box[0, :2]) for box in moved]
    counts = {corner: corners.count(corner) for corner in set(corners)}
    assert set(counts) == {(0, 0), (30, 0), (0, 30), (30, 30)}
    assert min(counts.values()) > 30


def test_no_box_is_lost() -> None:
    rng = np.random.default_rng(0)
    augment = make_augment()
    for seed in range(30):
        height, width = (int(side) for side in rng.integers(20, 400, size=2))
        near = rng.uniform(0, 1, size=(50, 2)) * (width - 0.02, height - 0.02)
        far = near + np.maximum(0.01, rng.uniform(0, 0.02, size=(50, 2)))
        far[::5] = (width, height)
        near[::7] = 0
        boxes = np.concatenate([near, far], axis=1).astype(np.float32)
        blank = np.zeros((height, width, 3), np.uint8)
        size = resized_size((height, width), (13, 48, 200)[seed % 3], 5000)
        pixels, moved, _ = augment(blank, boxes, NO_MASKS, seed=seed, size=size)
        assert moved.shape == (50, 4)
        assert (moved[:, 2:] > moved[:, :2]).all()
        limits = np.array([pixels.shape[1], pixels.shape[0]]) + 1e-3
        assert (moved[:, :2] >= -1e-3).all()
        assert (moved[:, 2:] <= limits).all()


def test_a_image_without_boxes_is_augmented() -> None:
    no_boxes = np.zeros((0, 4), np.float32)
    pixels, boxes, _ = make_augment()(smooth_image(), no_boxes, NO_MASKS, seed=1, size=(40, 53))
    assert pixels.dtype == np.uint8
    assert boxes.shape == (0, 4)
    assert boxes.dtype == np.float32


@pytest.mark.parametrize("short_side", [40, 120])
def test_masks_follow_their_boxes(short_side: int) -> None:
    """A mask that fills its box still does after mirrors and the resize."""
    augment = make_augment(color_jitter=0.0)
    pixels = smooth_image()
    height, width = pixels.shape[:2]
    boxes = np.array([[0, 0, width / 2, height / 4], [width / 4, height / 2, width, height]])
    size = resized_size((height, width), short_side, 5000)
    corners = set()
    for seed in range(12):
        masks = np.zeros((2, *size), np.bool_)
        scale = np.array([size[1] / width, size[0] / height] * 2)
        for mask, (x1, y1, x2, y2) in zip(masks, (boxes * scale).round().astype(int), strict=True):
            mask[y1:y2, x1:x2] = True
        changed, moved, found = augment(
            pixels, boxes.astype(np.float32), masks, seed=seed, size=size
        )
        assert found.shape == (2, *changed.shape[:2])
        for mask, box in zip(found, moved, strict=True):
            y, x = np.nonzero(mask)
            edges = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
            np.testing.assert_allclose(edges, box, atol=1.0)
        corners.add(tuple(moved[0].round().tolist()))
    assert len(corners) == 4
