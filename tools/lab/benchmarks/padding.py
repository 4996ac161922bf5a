"""Benchmark: the share of padding in training batches, for the image sizes of COCO."""

import itertools
import json
from pathlib import Path

import numpy as np
import torch

from detection.config import AugmentConfig, DataConfig, SplitConfig
from detection.data.coco import read_coco
from detection.data.collate import Sample
from detection.data.dataset import CocoDetection
from detection.data.transforms import resized_size
from engine.loader import split_batches, training_batches
from tools.lab.benchmarks.images import coco128, coco_document
from tools.lab.benchmarks.measure import Row, check_close
from tools.lab.benchmarks.settings import Settings

IMAGES = 50_000
"""Number of image sizes, drawn with replacement from those of the 128 images of coco128."""
SIDES = {"800": (800,), "640 to 800": AugmentConfig().short_sides}


def padding(settings: Settings) -> list[Row]:
    """Measure batch pixels / image pixels over the batches of one epoch."""
    folder = settings.folder
    count = 1000 if settings.small else IMAGES
    _write_json(folder, count=count)
    settings.log(f"{count} images with the sizes of 128 of COCO's training set")
    split = SplitConfig(images=str(folder), annotations=str(folder / "sizes.json"))
    rows = []
    for (name, sides), (batch_size, promised, aim) in itertools.product(
        SIDES.items(), ((2, 1.06, 1.03), (8, 1.10, 1.05))
    ):
        config = DataConfig(train=split, augment=AugmentConfig(short_sides=sides))
        data = CocoDetection(split, config=config, training=True)
        rows.append(
            Row(
                f"batches of {batch_size}, short side {name}",
                _padded_share(data, config, batch_size),
                "padded / real pixels",
                promised,
                aim,
                smaller_is_better=True,
                detail=f"{len(np.unique(data.groups))} groups of aspect ratios",
            )
        )
    return rows


def _write_json(folder: Path, *, count: int) -> None:
    """Write sizes.json: `count` images without files, and a single box."""
    found = read_coco(coco128().annotations).sizes
    sizes = found[np.random.default_rng(0).integers(len(found), size=count)].tolist()
    height, width = sizes[0]
    box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, width, height]}
    (folder / "sizes.json").write_text(json.dumps(coco_document(sizes, [box], num_classes=1)))


def _padded_share(data: CocoDetection, config: DataConfig, batch_size: int) -> float:
    """Return the mean of batch pixels / image pixels over the batches of an epoch.

    The batch size is computed from the image sizes, without reading files. The first batch is also
    collated, as a check of that arithmetic.
    """
    plan = training_batches(data.groups, batch_size=batch_size, seed=0)
    epoch = itertools.islice(plan, len(data) // batch_size)
    shares: list[float] = []
    for part in split_batches(data, epoch, rank=0, world_size=1, accumulate=1):
        sizes = [
            resized_size((height, width), part.batch_shape.short_side, config.augment.max_side)
            for key in part.sample_keys
            for height, width in [data.annotations.sizes[key.index].tolist()]
        ]
        # as `collate` pads: up to a multiple of size_divisor
        sides = np.ceil(np.array(part.batch_shape.size) / config.size_divisor) * config.size_divisor
        pixels = torch.tensor(sides.prod() * len(sizes))
        if not shares:
            blank = data.collate([_blank(size) for size in sizes], part.batch_shape)
            made = torch.tensor(blank.images.pixels[:, 0].numel())
            check_close("pixels of a batch", pixels, made, rtol=0, atol=0)
        # padded area of the whole batch / areas of its images
        shares.append(float(pixels) / np.array(sizes).prod(axis=1).sum())
    return float(np.mean(shares))


def _blank(size: tuple[int, int]) -> Sample:
    """Return a black image of a (height, width), without objects."""
    none = np.zeros(0, np.int64)
    return Sample(
        pixels=np.zeros((*size, 3), np.uint8),
        boxes=np.zeros((0, 4), np.float32),
        labels=none,
        is_crowd=none.astype(np.bool_),
        original_size=size,
        image_id=0,
        seed=0,
    )
