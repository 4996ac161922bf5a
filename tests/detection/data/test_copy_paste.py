"""Pasting of objects against the reference; samples as a whole are in test_square_samples.py."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from detection.data.copy_paste import Objects, paste
from detection.data.masks import TightMask
from tests.reference import augmentation as reference

SIDE = 24


def random_masks(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Rectangles with holes; some are a single pixel."""
    masks = []
    for _ in range(count):
        top, left = rng.integers(SIDE - 1, size=2)
        height, width = rng.integers(1, [SIDE - top + 1, SIDE - left + 1])
        mask = np.zeros((SIDE, SIDE), np.bool_)
        mask[top : top + height, left : left + width] = rng.random((height, width)) < 0.7
        mask[top, left] = True
        masks.append(mask)
    return masks


def objects_of(masks: Sequence[np.ndarray], *, first_label: int = 0) -> Objects:
    count = len(masks)
    return Objects(
        boxes=np.zeros((count, 4), np.float32),
        labels=np.arange(first_label, first_label + count),
        is_crowd=np.zeros(count, np.bool_),
        masks=tuple(TightMask.around(mask) for mask in masks),
    ).fitted()


def check(first: Sequence[np.ndarray], pasted: Sequence[np.ndarray]) -> Objects:
    """Paste, compare with the reference, and return the objects."""
    rng = np.random.default_rng(0)
    below, above = (rng.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8) for _ in range(2))
    expected, remaining = reference.paste(below, first, above, pasted)
    pixels, second = below.copy(), objects_of(pasted, first_label=100)
    found = paste(pixels, objects_of(first), pasted=second, patch=above[second.rectangle.slices])
    np.testing.assert_array_equal(pixels, expected)
    masks = [(i, mask) for i, mask in enumerate(remaining) if mask.any()]
    masks += [(100 + i, mask) for i, mask in enumerate(pasted)]
    assert found.labels.tolist() == [label for label, _ in masks]
    # the boxes around the whole masks lose what the masks lose
    for tight, box, (_, mask) in zip(found.masks, found.boxes, masks, strict=True):
        assert tight is not None
        whole = np.zeros((SIDE, SIDE), np.bool_)
        whole[tight.rectangle.slices] = tight.pixels
        np.testing.assert_array_equal(whole, mask)
        assert reference.box_around(mask) == box.tolist()
    return found


def test_random_objects() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        first, pasted = rng.integers(0, 5), rng.integers(1, 5)
        check(random_masks(rng, int(first)), random_masks(rng, int(pasted)))


def test_all_objects_are_covered() -> None:
    everything = np.ones((SIDE, SIDE), np.bool_)
    found = check(random_masks(np.random.default_rng(2), 3), [everything])
    assert found.labels.tolist() == [100]


def test_one_pixel_that_is_left_is_an_object() -> None:
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[4:9, 5:11] = True
    over = mask.copy()
    over[8, 10] = False
    assert check([mask], [over]).boxes[0].tolist() == [10, 8, 11, 9]


def test_the_same_object_covers_itself() -> None:
    masks = random_masks(np.random.default_rng(3), 2)
    assert check(masks, masks).labels.tolist() == [100, 101]


def test_a_box_keeps_the_sides_that_are_not_covered() -> None:
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[4:9, 5:11] = True
    over = np.zeros_like(mask)
    over[:, 9:] = True
    box = np.array([[5.4, 4.2, 10.7, 8.6]], np.float32)
    exact = replace(objects_of([mask]), boxes=box).fitted()
    np.testing.assert_array_equal(exact.boxes, box)
    second = objects_of([over])
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    found = paste(pixels, exact, pasted=second, patch=pixels[second.rectangle.slices].copy())
    np.testing.assert_array_equal(found.boxes[0], np.array([5.4, 4.2, 9, 8.6], np.float32))


def test_a_region_to_ignore_stays() -> None:
    crowd = Objects(
        boxes=np.array([[1.5, 2, 9, 9]], np.float32),
        labels=np.array([7]),
        is_crowd=np.array([True]),
        masks=(None,),
    )
    pasted = objects_of([np.ones((SIDE, SIDE), np.bool_)])
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    found = paste(pixels, crowd, pasted=pasted, patch=np.ones_like(pixels))
    assert found.labels.tolist() == [7, 0]
    assert found.is_crowd.tolist() == [True, False]
    assert found.boxes[0].tolist() == [1.5, 2, 9, 9]
    assert (pixels == 1).all()
