"""Run by test_masks.py: the memory, in kB, that two hundred masks of a large image take."""

import sys
from pathlib import Path

import numpy as np
import torch

from detection.data.collate import Sample, collate_detection
from detection.data.masks import draw_masks
from detection.data.segmentations import SegmentationsBuilder
from detection.data.transforms import Augment
from detection.ops.masks import crop_masks

SIZE, COUNT = (800, 1333), 200


def main() -> None:
    """From the file's polygons to what the loss wants, flips and bits included."""
    augment = Augment(short_sides=[800], flip_prob=1.0, vertical_flip_prob=0.0, color_jitter=0.0)
    packer = SegmentationsBuilder()
    corners = np.random.default_rng(0).uniform(0, 600, size=(COUNT, 2))
    boxes = np.concatenate([corners, corners + 200], axis=1).astype(np.float32)
    for x1, y1, x2, y2 in boxes.tolist():
        packer.add([[x1, y1, x2, y1, x2, y2, x1, y2]], SIZE)
    segmentations = packer.pack()
    before = memory("VmRSS")
    masks = draw_masks(segmentations, list(range(COUNT)), SIZE, SIZE)
    pixels, boxes, masks = augment(np.zeros((*SIZE, 3), np.uint8), boxes, masks, seed=1, size=SIZE)
    sample = Sample(
        pixels=pixels,
        boxes=boxes,
        labels=np.zeros(COUNT, np.int64),
        is_crowd=np.zeros(COUNT, np.bool_),
        original_size=SIZE,
        image_id=1,
        seed=1,
        masks=masks,
    )
    targets = collate_detection([sample], size_divisor=32).targets
    assert targets.masks is not None
    cut = crop_masks(
        targets.masks,
        torch.arange(COUNT)[None],
        targets.boxes,
        width=1344,
        resolution=28,
        aligned=True,
    )
    torch.testing.assert_close(cut, torch.ones_like(cut), rtol=0, atol=0.15)
    sys.stdout.write(str(memory("VmHWM") - before))


def memory(key: str) -> int:
    """Return a line of /proc/self/status, in kB: VmRSS is now, VmHWM the most so far.

    getrusage would count the process that started this one in as well.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
