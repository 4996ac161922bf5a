"""A batch of the benchmarks has the form of the loader's, so that one compiled step takes both."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from detection.config import AugmentConfig, DataConfig, SplitConfig
from detection.data.dataset import CocoDetection
from detection.structures import DetectionBatch
from tools.lab.benchmarks.images import coco_document
from tools.lab.benchmarks.networks import (
    NUM_CLASSES,
    NUM_OBJECTS,
    R50_FPN,
    SMALL_SIZE,
    make_batch,
    make_task,
    peer_targets,
)

COUNT = 2
WITH_MASKS = pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])


def loaded_batch(folder: Path, *, masks: bool) -> DetectionBatch:
    """Return COUNT images of SMALL_SIZE with NUM_OBJECTS objects, read from files."""
    height, width = SMALL_SIZE
    objects = []
    for number in range(COUNT * NUM_OBJECTS):
        x, y = number, 2 * number
        objects.append(
            {
                "id": number,
                "image_id": number % COUNT,
                "category_id": number + 1,
                "bbox": [x, y, 30, 20],
                "area": 600,
                "iscrowd": 0,
                "segmentation": [[x, y, x + 30, y, x + 30, y + 20]],
            }
        )
    for number in range(COUNT):
        cv2.imwrite(str(folder / f"{number}.jpg"), np.full((height, width, 3), 99, np.uint8))
    document = coco_document([SMALL_SIZE] * COUNT, objects, num_classes=NUM_CLASSES)
    (folder / "train.json").write_text(json.dumps(document))
    split = SplitConfig(images=str(folder), annotations=str(folder / "train.json"))
    augment = AugmentConfig(short_sides=(min(SMALL_SIZE),), max_side=max(SMALL_SIZE))
    config = DataConfig(train=split, augment=augment)
    data = CocoDetection(split, config=config, training=True, with_masks=masks)
    return data.collate([data.load(index, index) for index in range(COUNT)])


def tensors_of(batch: DetectionBatch) -> dict[str, Tensor]:
    fields = {**vars(batch.images), **vars(batch.targets), "mask_count": batch.mask_count}
    return {name: value for name, value in fields.items() if isinstance(value, Tensor)}


@WITH_MASKS
def test_a_batch_has_the_form_of_the_loaders(tmp_path: Path, masks: bool) -> None:
    made, loaded = (
        {name: (each.shape, each.stride(), each.dtype) for name, each in tensors_of(batch).items()}
        for batch in (
            make_batch(COUNT, size=SMALL_SIZE, masks=masks),
            loaded_batch(tmp_path, masks=masks),
        )
    )
    assert made == loaded
    assert ("masks" in made) == masks
    assert made["labels"][0] == (COUNT, 8)  # the next multiple of 8


@WITH_MASKS
def test_no_two_tensors_of_a_batch_share_memory(masks: bool) -> None:
    tensors = tensors_of(make_batch(COUNT, size=SMALL_SIZE, masks=masks))
    assert len({each.untyped_storage().data_ptr() for each in tensors.values()}) == len(tensors)


def test_the_peer_gets_no_padding() -> None:
    batch = make_batch(COUNT, size=SMALL_SIZE, masks=True)
    assert batch.targets.valid.sum(dim=1).tolist() == [NUM_OBJECTS] * COUNT
    for row, each in enumerate(peer_targets(batch)):
        assert (each["boxes"][:, 2:] > each["boxes"][:, :2]).all()
        torch.testing.assert_close(each["labels"], batch.targets.labels[row, :NUM_OBJECTS] + 1)
        assert each["masks"].shape == (NUM_OBJECTS, *SMALL_SIZE)
        # a mask is the left half of its box: its area is half of the box's, up to one pixel a side
        width, height = (each["boxes"][:, 2:] - each["boxes"][:, :2]).unbind(1)
        area = each["masks"].sum(dim=(1, 2))
        assert ((area - width * height / 2).abs() <= height + width / 2 + 1).all()


@pytest.mark.slow
def test_losses_that_were_compiled_for_one_take_the_other(tmp_path: Path) -> None:
    # eager: only what torch.compile traces and guards is of interest
    losses = torch.compile(make_task(R50_FPN.smaller()).losses, backend="eager")
    losses(make_batch(COUNT, size=SMALL_SIZE))
    with torch._dynamo.config.patch(error_on_recompile=True):
        losses(loaded_batch(tmp_path, masks=False))
