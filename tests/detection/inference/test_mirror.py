from dataclasses import replace

import torch

from detection.inference.mirror import mirror_images, mirror_predictions
from detection.models.selection import BoxPredictions
from tests.detection.models.detectors import make_images

SIZES = [(20, 64), (32, 33), (5, 1)]


def test_each_image_is_flipped_within_its_own_width() -> None:
    images = make_images(SIZES, padded_to=(32, 64))
    mirrored = mirror_images(images)
    for row, (height, width) in enumerate(SIZES):
        part = (row, slice(None), slice(height), slice(width))
        assert torch.equal(mirrored.pixels[part], images.pixels[part].flip(2))
        assert mirrored.pixels[row, :, :, width:].count_nonzero() == 0
        assert mirrored.pixels[row, :, height:].count_nonzero() == 0
    assert torch.equal(mirrored.sizes, images.sizes)
    assert not torch.equal(mirrored.pixels, images.pixels)


def test_twice_is_the_image_and_the_layout_is_that_of_a_batch() -> None:
    images = make_images(SIZES, padded_to=(32, 64))
    images = replace(images, pixels=images.pixels.contiguous(memory_format=torch.channels_last))
    mirrored = mirror_images(images)
    assert mirrored.pixels.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(mirror_images(mirrored).pixels, images.pixels)


def test_boxes_are_flipped_in_the_width_of_their_image() -> None:
    images = make_images([(20, 64), (32, 33)], padded_to=(32, 64))
    boxes = torch.tensor([3.0, 5, 10, 9]).expand(2, 4, 3, 4)
    predictions = BoxPredictions(torch.rand(2, 4, 3), boxes, torch.ones(2, 4, dtype=torch.bool))
    mirrored = mirror_predictions(predictions, images)
    for row, width in enumerate([64, 33]):
        expected = torch.tensor([width - 10.0, 5, width - 3, 9]).expand(4, 3, 4)
        assert torch.equal(mirrored.boxes[row], expected)
    assert mirrored.scores is predictions.scores
    assert torch.equal(mirror_predictions(mirrored, images).boxes, boxes)
