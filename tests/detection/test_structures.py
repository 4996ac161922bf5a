from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from detection.ops.rle import encode_window
from detection.structures import (
    DetectionBatch,
    Detections,
    ImageBatch,
    Proposals,
    RunLengthMasks,
    Targets,
)


def images(**changes: Any) -> ImageBatch:
    sizes = torch.tensor([[30, 40], [32, 32]])
    return replace(
        ImageBatch(
            pixels=torch.zeros(2, 3, 32, 64, dtype=torch.uint8),
            sizes=sizes,
            original_sizes=2 * sizes,
            image_ids=torch.tensor([7, 9]),
            seeds=torch.tensor([1, 2]),
        ),
        **changes,
    )


def targets(**changes: Any) -> Targets:
    return replace(
        Targets(
            boxes=torch.zeros(2, 5, 4),
            labels=torch.zeros(2, 5, dtype=torch.int64),
            valid=torch.zeros(2, 5, dtype=torch.bool),
            is_crowd=torch.zeros(2, 5, dtype=torch.bool),
            masks=torch.zeros(2, 5, 32, 8, dtype=torch.uint8),
        ),
        **changes,
    )


def proposals(**changes: Any) -> Proposals:
    valid = torch.ones(2, 5, dtype=torch.bool)
    return replace(Proposals(torch.zeros(2, 5, 4), torch.zeros(2, 5), valid), **changes)


def detections(**changes: Any) -> Detections:
    labels = torch.zeros(3, dtype=torch.int64)
    return replace(Detections(torch.zeros(3, 4), torch.zeros(3), labels), **changes)


@pytest.mark.parametrize(
    ("make", "name", "value", "message"),
    [
        (images, "pixels", torch.zeros(2, 3, 32, 64), r"\(2, 3, 'any', 'any'\) torch.uint8, got"),
        (images, "sizes", torch.zeros(2, 2), r"got \(2, 2\) torch.float32"),
        (images, "image_ids", torch.tensor([1]), r"expected \(2,\) torch.int64, got \(1,\)"),
        (images, "seeds", torch.tensor([1, 2, 3]), r"got \(3,\) torch.int64"),
        (targets, "boxes", torch.zeros(2, 5, 5), r"expected \(2, 5, 4\) .*, got \(2, 5, 5\)"),
        (targets, "boxes", torch.zeros(2, 5, 4).double(), r"got \(2, 5, 4\) torch.float64"),
        (targets, "labels", torch.zeros(2, 5), "torch.int64, got"),
        (targets, "valid", torch.zeros(2, 4, dtype=torch.bool), r"got \(2, 4\)"),
        (targets, "is_crowd", torch.zeros(2, 5), "torch.bool, got"),
        (proposals, "scores", torch.zeros(2, 6), r"expected \(2, 5\) .*, got \(2, 6\)"),
        (detections, "labels", torch.zeros(3, dtype=torch.int32), "got .* torch.int32"),
        (detections, "scores", torch.zeros(4), r"expected \(3,\) .*, got \(4,\)"),
    ],
)
def test_a_wrong_tensor_is_named(make: Any, name: str, value: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        make(**{name: value})


def test_truth_is_padded_to_at_least_one_row() -> None:
    with pytest.raises(AssertionError, match="at least 1"):
        targets(boxes=torch.zeros(2, 0, 4))


def test_no_detections() -> None:
    assert len(Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())) == 0
    assert len(detections()) == 3


def test_a_batch_moves_as_one() -> None:
    batch = DetectionBatch(images(), targets())
    assert len(batch) == 2
    assert batch.image_ids.tolist() == [7, 9]
    moved = batch.to(torch.device("meta"), non_blocking=True)
    parts = [*vars(moved.images).values(), *vars(moved.targets).values()]
    assert len(parts) == 10
    assert all(part.device.type == "meta" for part in parts)
    assert batch.images.pixels.device.type == "cpu"


def test_masks_are_an_array_of_any_number() -> None:
    masks = np.zeros((2, 30, 40), np.bool_)
    masks[1, 3:9, 5:20] = True
    codes = tuple(encode_window(mask, top=0, left=0, size=(30, 40)) for mask in masks)
    found = Detections(
        torch.zeros(2, 4),
        torch.ones(2),
        torch.tensor([0, 1]),
        RunLengthMasks((30, 40), codes),
    )
    array = found.mask_array()
    assert array is not None
    assert array.dtype == np.bool_
    np.testing.assert_array_equal(array, masks)
    none = found.where(found.labels > 1).mask_array()
    assert none is not None
    assert none.shape == (0, 30, 40)
    assert replace(found, masks=None).mask_array() is None
    kept = found.where(found.labels == 1)
    assert (kept.labels.tolist(), kept.masks) == ([1], RunLengthMasks((30, 40), codes[1:]))
