"""Small detectors whose predictions overlap and differ, and batches of images at several scales."""

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from detection.config import DetectionConfig
from detection.data.coco import ClassMap
from detection.data.collate import Sample, collate_detection
from detection.data.eval_sizes import EvalSizes
from detection.data.transforms import resize
from detection.inference.pipeline import InferencePipeline
from detection.models.build import build_detector
from detection.models.faster_rcnn import FasterRCNN
from detection.structures import ImageBatch
from tests.reference.images import smooth_image

Neck = Literal["c4", "fpn"]
NECKS: tuple[Neck, ...] = ("c4", "fpn")
SHAPES = ((60, 80), (60, 77), (30, 39))
"""Images of one padded shape at each of the scales below; the last is smaller than all of them."""
SCALES = (48, 64, 96)


def make_config(
    neck: str = "fpn",
    *,
    roi: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
    task: str = "detection",
) -> DetectionConfig:
    """Return the config of a detector with few proposals and cheap heads."""
    values = {
        "task": task,
        "data": {"eval_short_side": 64, "eval_max_side": 96},
        "model": {
            "backbone": {"kind": "resnet18", "frozen_stages": 0},
            "neck": {"kind": neck, "channels": 8},
            "rpn": {
                "anchor_sizes": [16, 24, 32, 48, 64],
                "pre_nms_topk_test": 40,
                "post_nms_topk_test": 8,
            },
            "roi": {
                "resolution": 4,
                "hidden_dim": 16,
                "score_thresh": 0.1,
                "max_detections": 12,
                **(roi or {}),
            },
            "mask": {"num_convs": 1, "hidden_dim": 8},
        },
        "evaluation": evaluation or {},
    }
    return DetectionConfig.model_validate(values)


def make_metadata(config: DetectionConfig, classes: ClassMap) -> dict[str, str]:
    """Return the metadata of a trained detector's weights."""
    return {
        "task": config.task,
        "config": config.model_dump_json(),
        "class_names": json.dumps(classes.names),
        "category_ids": json.dumps(classes.category_ids),
    }


def make_network(config: DetectionConfig, *, seed: int = 0, num_classes: int = 3) -> FasterRCNN:
    """Return a detector whose scores and boxes differ from RoI to RoI."""
    torch.manual_seed(seed)
    network = build_detector(config, num_classes).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("class_logits.weight"):
                parameter.mul_(60)
            if name.endswith("deltas.weight"):
                parameter.mul_(100 if "predictor" in name else 10)
            if name == "mask_head.logits.weight":
                parameter.mul_(1000)
    return network


def make_batches(
    config: DetectionConfig, shapes: Sequence[tuple[int, int]] = SHAPES
) -> list[ImageBatch]:
    """Return images of these shapes at each of the sizes of a config."""
    sizes = EvalSizes.of(config.data, config.evaluation)
    samples = []
    for number, shape in enumerate(shapes):
        pixels = np.roll(smooth_image(*shape), number, axis=2)  # other colours
        resized, boxes = resize(pixels, np.zeros((0, 4), np.float32), sizes.sizes(shape)[0])
        none = np.zeros(0, np.int64)
        samples.append(
            Sample(
                pixels=resized,
                boxes=boxes,
                labels=none,
                is_crowd=none.astype(np.bool_),
                original_size=shape,
                image_id=number,
                seed=0,
                other_pixels=sizes.other_pixels(pixels),
            )
        )
    return list(collate_detection(samples, size_divisor=config.data.size_divisor).at_all_scales)


def row_of(batch: ImageBatch, row: int) -> ImageBatch:
    """Return one image of a batch, padded as it is."""
    part = slice(row, row + 1)
    return ImageBatch(
        batch.pixels[part],
        batch.sizes[part],
        batch.original_sizes[part],
        batch.image_ids[part],
        batch.seeds[part],
    )


def as_general(pipeline: InferencePipeline) -> InferencePipeline:
    """Make a pipeline that needs no addition take the way of those that do."""
    assert pipeline._is_plain
    pipeline._is_plain = False
    return pipeline
