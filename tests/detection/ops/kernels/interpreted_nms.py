"""Run by test_nms_triton.py in Triton's interpreter: the kernel of NMS against torchvision's."""

import os
import sys

import numpy as np
import torch

from detection.ops.kernels.nms_triton import keep_on_device
from detection.ops.nms import nms_keep
from tests.detection.ops.crowded_boxes import CASES, Batch

# A block of the kernel holds 64 boxes.
COUNTS = (0, 1, 2, 63, 64, 65, 127, 128, 129, 191, 192, 193)


def any_case(rng: np.random.Generator) -> tuple[Batch, float, int | None]:
    """Return a random batch, `iou_thresh` and `max_kept`.

    Boxes at whole pixels often have an IoU of exactly a half, no area, or the place of another one;
    the others have fractions, so that the arithmetic rounds. Invalid boxes hold nonsense.
    """
    batch, count = int(rng.integers(1, 3)), int(rng.choice(COUNTS))
    shape = (batch, count)
    corners = rng.random((*shape, 2)) * rng.choice([0, 4, 20, 60])
    boxes = np.concatenate([corners, corners + rng.random((*shape, 2)) * 20], axis=2)
    if rng.random() < 0.7:
        boxes = np.floor(boxes)
    valid = rng.random(shape) < rng.choice([0.05, 0.7, 1.0])
    boxes[~valid] = rng.choice([np.nan, np.inf, -7.0, 0.0], size=(np.sum(~valid), 4))
    scores = rng.integers(rng.choice([1, 5, 1000]), size=shape) / 10  # the fewer, the more ties
    groups = rng.integers(rng.choice([1, 2, 5]), size=shape)
    floats = [torch.tensor(values, dtype=torch.float32) for values in (boxes, scores)]
    limits = [None, 0, 1, 63, 64, 65, count]
    max_kept = limits[rng.integers(len(limits))]
    return (
        (floats[0], floats[1], torch.from_numpy(groups), torch.from_numpy(valid)),
        float(rng.choice([0.0, 0.3, 0.5, 0.7, 1.0])),
        max_kept,
    )


def main(count: int) -> None:
    """Compare with torchvision in the named cases and `count` random ones."""
    torch.set_num_threads(1)
    os.environ["RESDET_KERNELS"] = "reference"
    cases = dict(CASES)
    cases |= {f"seed {seed}": any_case(np.random.default_rng(seed)) for seed in range(count)}
    for name, (batch, iou_thresh, max_kept) in cases.items():
        expected = nms_keep(*batch, iou_thresh=iou_thresh, max_kept=max_kept)
        num_boxes = batch[0].shape[1]
        limit = num_boxes if max_kept is None else min(max_kept, num_boxes)
        found = keep_on_device(*batch, iou_thresh=iou_thresh, max_kept=limit)
        assert torch.equal(found, expected), f"{name}: {found.sum(1)} kept, not {expected.sum(1)}"


if __name__ == "__main__":
    main(int(sys.argv[1]))
