"""Geometry of large-scale jitter; samples as a whole are in test_square_samples.py."""

from dataclasses import replace

import numpy as np
import pytest

from backbones.images import decode, resize_pixels
from detection.commands.schemas import ALL_SCHEMAS
from detection.config import AugmentConfig, DetectionConfig
from detection.data.large_scale_jitter import SquareView, crop_resized, sample_view
from detection.data.masks import Rectangle, TightMask
from detection.data_config import LargeScaleJitterConfig
from engine.config import parse_config
from engine.errors import UserError
from tests.reference.images import encoded, smooth_image

VIEW = SquareView(
    size=(40, 60), resized=(80, 120), top=9, left=50, side=64, mirror_x=False, mirror_y=False
)
SMALL = replace(VIEW, resized=(20, 30), top=0, left=0)


def test_scales_windows_and_mirrors_are_uniform() -> None:
    config = AugmentConfig(
        large_scale_jitter=LargeScaleJitterConfig(size=64, scale=(0.5, 2.0)), flip_prob=0.25
    )
    rng = np.random.default_rng(0)
    views = [sample_view((60, 120), config, rng=rng) for _ in range(4000)]
    scales = np.array([view.resized[1] / 64 for view in views])
    assert abs(scales.mean() - 1.25) < 0.03
    assert scales.min() < 0.52
    assert scales.max() > 1.98
    assert abs(np.mean([view.mirror_x for view in views]) - 0.25) < 0.03
    assert not any(view.mirror_y for view in views)
    places = [(view.left / (view.resized[1] - 64)) for view in views if view.resized[1] >= 100]
    assert min(places) == 0
    assert max(places) == 1
    assert abs(np.mean(places) - 0.5) < 0.03
    for view in views[:200]:
        assert view.top == 0 or view.top + 64 <= view.resized[0]
        assert view.left + view.window.width <= view.resized[1]


@pytest.mark.parametrize("size", [(48, 64), (131, 97), (300, 400), (1, 7), (9, 1)], ids=str)
def test_a_crop_is_that_of_the_whole_resized_image(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(size))
    config = AugmentConfig(large_scale_jitter=LargeScaleJitterConfig(size=96))
    pixels = smooth_image(*size)
    for _ in range(40):
        view = sample_view(size, config, rng=rng)
        # a part of the window, as for pasting
        height, width = (int(rng.integers(1, side + 1)) for side in view.resized)
        region = Rectangle(
            int(rng.integers(view.resized[0] - height + 1)),
            int(rng.integers(view.resized[1] - width + 1)),
            height,
            width,
        )
        check_crop(pixels, region, resized=view.resized)


@pytest.mark.parametrize("resized", [(61, 81), (59, 79), (60, 80), (61, 80), (62, 83)], ids=str)
def test_a_small_crop_at_nearly_the_same_size_is_resized(resized: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(60, 80, 3), dtype=np.uint8)
    for _ in range(100):
        height, width = rng.integers(1, 14, size=2).tolist()
        top, left = (int(rng.integers(side - 14)) for side in resized)
        check_crop(pixels, Rectangle(top, left, height, width), resized=resized)


def check_crop(pixels: np.ndarray, region: Rectangle, *, resized: tuple[int, int]) -> None:
    """Compare a crop with that of the whole resized image."""
    size = pixels.shape[0], pixels.shape[1]
    whole = resize_pixels(pixels, resized)
    found = crop_resized(pixels, region, size=size, resized=resized)
    difference = np.abs(found.astype(int) - whole[region.slices])
    # at most 1 / 64 of the largest step between neighbouring pixels, and the rounding
    steps = [np.abs(np.diff(pixels.astype(int), axis=axis)).max(initial=0) for axis in (0, 1)]
    assert difference.max() <= 1 + sum(steps) / 64


def test_an_image_that_is_enlarged_is_decoded_in_full() -> None:
    assert VIEW.reduction == replace(VIEW, resized=(40, 60)).reduction == 1
    assert replace(VIEW, resized=(21, 31)).reduction == 1
    assert SMALL.reduction == 2
    assert replace(VIEW, resized=(1, 2)).reduction == 8


@pytest.mark.parametrize("resized", [(75, 101), (60, 81), (37, 50), (18, 25), (1, 1)], ids=str)
def test_a_reduced_image_is_not_moved(resized: tuple[int, int]) -> None:
    """203 and 150 are multiples of no reduction: the last pixels show more than the image."""
    data = encoded(smooth_image(150, 203), quality=98, subsampling=0)
    view = replace(SMALL, size=(150, 203), resized=resized, side=96)
    whole = resize_pixels(decode(data, "a.jpg"), resized)
    reduced = decode(data, "a.jpg", reduction=view.reduction)
    assert view.reduction > 1
    found = crop_resized(reduced, Rectangle(0, 0, *resized), size=view.size, resized=resized)
    difference = np.abs(found.astype(int) - whole)
    # A shift by a fraction of a pixel changes pixels by this fraction of the steps between them.
    step = max(np.abs(np.diff(whole.astype(int), axis=axis)).max(initial=0) for axis in (0, 1))
    assert difference.max() <= 4 + step / 6
    assert difference.mean() < 1


def test_boxes_are_clipped_and_those_outside_are_not_shown() -> None:
    boxes = np.array(
        [
            [30, 10, 40, 20],  # inside
            [0, 0, 60, 40],  # around the window
            [0, 0, 25, 40],  # left of it, up to its edge
            [0, 0, 25.004, 40],  # 0.008 pixels of it inside
            [50, 30, 57.5, 36.25],  # a corner
        ],
        np.float32,
    )
    placed, is_shown = VIEW.place_boxes(boxes)
    assert is_shown.tolist() == [True, True, False, False, True]
    expected = [[10.0, 11.0, 30.0, 31.0], [0.0, 0.0, 64.0, 64.0], [50.0, 51.0, 64.0, 63.5]]
    np.testing.assert_allclose(placed[is_shown], expected)
    mirrored, _ = replace(VIEW, mirror_x=True).place_boxes(boxes[:1])
    np.testing.assert_allclose(mirrored, [[34, 11, 54, 31]])
    mirrored, _ = replace(VIEW, mirror_x=True, mirror_y=True).place_boxes(boxes[:1])
    np.testing.assert_allclose(mirrored, [[34, 33, 54, 53]])
    assert VIEW.place_boxes(boxes[:0])[0].shape == (0, 4)


@pytest.mark.parametrize("mirror_x", [False, True])
@pytest.mark.parametrize("mirror_y", [False, True])
def test_regions_and_masks_follow_the_mirrors(mirror_x: bool, mirror_y: bool) -> None:
    view = replace(SMALL, mirror_x=mirror_x, mirror_y=mirror_y)
    assert view.content.left == (34 if mirror_x else 0)
    assert view.content.top == (44 if mirror_y else 0)
    mask = np.zeros((64, 64), np.bool_)
    mask[3:9, 5:12] = True
    mask[3, 5] = mask[8, 11] = mask[3, 7] = False
    placed = view.place_mask(TightMask.around(mask))
    found = np.zeros_like(mask)
    found[placed.rectangle.slices] = placed.pixels
    expected = mask[:, ::-1] if mirror_x else mask
    np.testing.assert_array_equal(found, expected[::-1] if mirror_y else expected)


REFUSED = {
    "pasting alone": (
        ["data.augment.copy_paste_prob=0.5"],
        "data.augment: copy_paste_prob: expected large_scale_jitter to be set too, got null",
    ),
    "falling": (
        ["data.augment.large_scale_jitter.scale=[2.0,0.1]"],
        "scale: expected two rising numbers, got 2.0 and 0.1",
    ),
    "zero": (["data.augment.large_scale_jitter.scale=[0,1]"], "greater than 0"),
    "one": (["data.augment.large_scale_jitter.scale=[1.0]"], "large_scale_jitter.scale"),
    "size": (
        ["data.augment.large_scale_jitter.size=1000"],
        "large_scale_jitter.size: expected a multiple of size_divisor (32), got 1000",
    ),
    "divisor": (
        ["data.augment.large_scale_jitter.size=1024", "data.size_divisor=48"],
        "expected a multiple of size_divisor (48), got 1024",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_configs_that_are_refused(name: str) -> None:
    overrides, message = REFUSED[name]
    with pytest.raises(UserError) as error:
        parse_config({}, overrides, schemas=ALL_SCHEMAS, source="test")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_one_key_switches_it_on() -> None:
    overrides = ["data.augment.large_scale_jitter.size=512", "data.augment.copy_paste_prob=0.5"]
    config = parse_config({}, overrides, schemas=ALL_SCHEMAS, source="test")
    assert isinstance(config, DetectionConfig)
    jitter = config.data.augment.large_scale_jitter
    assert jitter is not None
    assert (jitter.size, jitter.scale) == (512, (0.1, 2.0))
