"""Benchmark: large-scale jitter and copy-paste on one core, from JPEG files to batches.

Batches hold two squares of 1024 pixels. The peer is torchvision's transforms.v2 as in its
references/detection: PIL, ScaleJitter, a fixed-size crop, a flip. It gets parsed boxes and
polygons. Both sides draw their own random numbers, from the same distributions.
"""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as image_ops

from detection.config import AugmentConfig, DataConfig, SplitConfig
from detection.data.dataset import CocoDetection
from detection.data_config import LargeScaleJitterConfig
from detection.ops.masks import unpack_bits
from detection.structures import DetectionBatch
from tools.lab.benchmarks.errors import DisagreementError
from tools.lab.benchmarks.measure import Row, check_close, compare, mean_seconds
from tools.lab.benchmarks.settings import Settings

SIDE, BATCH_SIZE = 1024, 2
MAX_PIXEL_DIFFERENCE = 2.0
"""Largest mean difference of an image's pixels, of 255: decoders and resize kernels differ."""
MAX_MASK_DIFFERENCE = 0.01
"""Largest share of an image's pixels in which a mask differs: the peer resizes drawn masks."""

Target = dict[str, Any]


def square_rows(split: SplitConfig, settings: Settings) -> list[Row]:
    """Measure boxes and masks against the peer, and copy-paste alone."""
    folder, rows = Path(split.images), []
    for with_masks in (False, True):
        data = _open(split, with_masks=with_masks)
        count = 8 if settings.small else len(data)
        check_same(split, range(count)[:: max(1, count // 8)], with_masks=with_masks)
        transform = v2.Compose([v2.ScaleJitter((SIDE, SIDE)), _crop, v2.RandomHorizontalFlip()])
        taken = compare(
            partial(_read_ours, data, count),
            partial(_read_peer, data, folder, count, transform, with_masks=with_masks),
            rounds=settings.rounds,
            log=settings.log,
        )
        rows.append(
            Row(
                f"large-scale jitter at {SIDE}, {'masks' if with_masks else 'boxes'}",
                count / statistics.median(taken.ours),
                unit="images/s",
                promised=40.0,
                detail=f"{count} images against torchvision's transforms.v2: {taken}",
            )
        )
    data = _open(split, with_masks=True, copy_paste_prob=1.0)
    _read_ours(data, count)
    times = [
        mean_seconds(partial(_read_ours, data, count), calls=1) for _ in range(settings.rounds)
    ]
    rows.append(
        Row(
            f"copy-paste at {SIDE}, masks",
            count / statistics.median(times),
            unit="images/s",
            promised=40.0,
            detail=f"{count} images, two files each: {min(times):.3g} to {max(times):.3g} s",
        )
    )
    return rows


def _open(
    split: SplitConfig,
    *,
    with_masks: bool,
    copy_paste_prob: float = 0.0,
    scale: tuple[float, float] = (0.1, 2.0),
    flip_prob: float = 0.5,
) -> CocoDetection:
    augment = AugmentConfig(
        large_scale_jitter=LargeScaleJitterConfig(size=SIDE, scale=scale),
        copy_paste_prob=copy_paste_prob,
        flip_prob=flip_prob,
    )
    config = DataConfig(train=split, augment=augment)
    return CocoDetection(split, config=config, training=True, with_masks=with_masks)


def _read_ours(data: CocoDetection, count: int) -> None:
    for first in range(0, count, BATCH_SIZE):
        _batch(data, range(first, min(first + BATCH_SIZE, count)))


def _batch(data: CocoDetection, indices: range) -> DetectionBatch:
    keys = [(index, index) for index in indices]
    shape = data.batch_shape(keys)
    return data.collate([data.load(index, seed, shape) for index, seed in keys], shape)


def _read_peer(
    data: CocoDetection,
    folder: Path,
    count: int,
    transform: Callable[[Target], Target],
    *,
    with_masks: bool,
) -> None:
    for first in range(0, count, BATCH_SIZE):
        indices = range(first, min(first + BATCH_SIZE, count))
        samples = [
            transform(_peer_sample(data, folder, index, with_masks=with_masks)) for index in indices
        ]
        torch.stack([sample["image"] for sample in samples])


def _peer_sample(data: CocoDetection, folder: Path, index: int, *, with_masks: bool) -> Target:
    """Return the image, boxes and masks of the file as torchvision's tensors."""
    found = data.annotations
    height, width = found.sizes[index].tolist()
    objects = found.objects_of(index)
    with Image.open(folder / found.file_name(index)) as file:
        sample: Target = {"image": tv_tensors.Image(file.convert("RGB"))}
    boxes = torch.from_numpy(found.boxes[objects])
    sample["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
    if with_masks:
        rows = found.rows_in_file[objects].tolist()
        masks = [_peer_mask(data, row, (height, width)) for row in rows]
        stacked = torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.uint8)
        sample["masks"] = tv_tensors.Mask(stacked)
    return sample


def _peer_mask(data: CocoDetection, row: int, size: tuple[int, int]) -> Tensor:
    """Return (H, W) uint8 as pycocotools draws it."""
    parts = [part.tolist() for part in data.annotations.segmentations.polygons(row)]
    if parts:
        return torch.from_numpy(
            coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, *size)))
        )
    code = data.annotations.segmentations.run_lengths[row]
    return torch.from_numpy(coco_mask.decode({"size": list(size), "counts": code}))


def _crop(sample: Target) -> Target:
    """Crop a random window, padded with zeros: references/detection's FixedSizeCrop."""
    height, width = sample["image"].shape[1:]
    top, left = (int(torch.randint(max(0, length - SIDE) + 1, ())) for length in (height, width))
    return {name: image_ops.crop(value, top, left, SIDE, SIDE) for name, value in sample.items()}


def check_same(split: SplitConfig, indices: range, *, with_masks: bool) -> None:
    """Compare both sides at scale 1 without flips, where nothing is random.

    torchvision truncates a resized side to whole pixels, ours rounds it. The peer's pixels and
    masks are therefore resized to the size of ours.

    Raises:
        DisagreementError: boxes, pixels or masks differ by more than rounding explains.
    """
    data = _open(split, with_masks=with_masks, scale=(1.0, 1.0), flip_prob=0.0)
    transform = v2.Compose([v2.ScaleJitter((SIDE, SIDE), (1.0, 1.0)), _crop])
    for index in indices:
        batch = _batch(data, range(index, index + 1))
        peer = transform(_peer_sample(data, Path(split.images), index, with_masks=with_masks))
        sides = data.annotations.sizes[index]
        size = [round(side) for side in (sides * (SIDE / sides.max())).tolist()]
        shown = [int(side) for side in (sides * (SIDE / sides.max())).tolist()]
        pixels = _resized(peer["image"], shown, size)
        difference = float((batch.images.pixels[0, :, : size[0], : size[1]] - pixels).abs().mean())
        if difference > MAX_PIXEL_DIFFERENCE:
            raise DisagreementError(
                f"pixels of image {index}: expected a mean difference of at most "
                f"{MAX_PIXEL_DIFFERENCE} of 255, got {difference:.3g}"
            )
        _check_objects(batch, peer, index, shown, size)


def _check_objects(
    batch: DetectionBatch, peer: Target, index: int, shown: list[int], size: list[int]
) -> None:
    """Compare the masks of a sample, or its boxes if it has none; see `check_same`."""
    targets = batch.targets
    if targets.masks is None:
        boxes = targets.boxes[0][targets.valid[0]]
        found = peer["boxes"].as_subclass(Tensor)
        check_close(f"boxes of image {index}", boxes, found, rtol=0, atol=1.5)
        return
    plain = targets.valid[0] & ~targets.is_crowd[0]
    masks = unpack_bits(targets.masks[0][plain], width=SIDE)[:, : size[0], : size[1]]
    if len(masks) == len(peer["masks"]):  # else one is a crowd region, or has no pixel
        others = _resized(peer["masks"], shown, size).round()
        shares = (masks != others).float().mean(dim=(1, 2))
        none = torch.zeros(len(masks))
        check_close(f"masks of image {index}", shares, none, rtol=0, atol=MAX_MASK_DIFFERENCE)


def _resized(values: Tensor, shown: list[int], size: list[int]) -> Tensor:
    """Return the part `shown` (height, width) of values (n, S, S) at another size, in float32."""
    part = values.as_subclass(Tensor)[None, :, : shown[0], : shown[1]].float()
    return F.interpolate(part, size, mode="bilinear")[0]
