"""Sixteen real images learned by heart: the whole way from JSON to AP, on real annotations."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from detection.commands.tasks import build_task
from detection.config import SCHEMAS, DetectionConfig
from engine.config import parse_config
from engine.trainer import fit

# 438 holds a crowd region beside its 13 single objects. No object is smaller than 50 pixels at 320:
# on a map of stride 16 a RoI of a cell or two holds too little to tell its box by.
IMAGE_IDS = (30, 34, 36, 42, 72, 73, 78, 142, 326, 370, 438, 443, 502, 514, 575, 581)


@dataclass(frozen=True)
class Lesson:
    """A network, the shorter and longer side of its images, its anchors, and its steps."""

    model: dict[str, Any]
    sides: tuple[int, int]
    smallest_anchor: int
    steps: int


def settings(images: Path, annotations: Path, lesson: Lesson, *, task: str) -> DetectionConfig:
    short_side, max_side = lesson.sides
    split = {"images": str(images), "annotations": str(annotations)}
    augment = {"short_sides": [short_side], "max_side": max_side, "flip_prob": 0.0}
    data = {"augment": augment, "eval_short_side": short_side, "eval_max_side": max_side}
    model = {**lesson.model, "mask": {"num_convs": 2, "hidden_dim": 128}}
    if task == "segmentation":  # masks make regions dear, and an image has three objects
        model["roi"] = {**model["roi"], "num_samples": min(64, model["roi"]["num_samples"])}
    values = {
        "task": task,
        "data": {"train": split, "val": split, **data},
        "model": {
            "backbone": {"kind": "resnet18", "norm": "batch", "frozen_stages": 0},
            "rpn": {
                "anchor_sizes": [lesson.smallest_anchor * 2**i for i in range(5)],
                "pre_nms_topk_train": 1000,
                "pre_nms_topk_test": 1000,
                "post_nms_topk_train": 300,
                "post_nms_topk_test": 300,
                "smooth_l1_beta": 0.0,
            },
            **model,
        },
        "optim": {"kind": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "clip_grad_norm": 10.0},
        "schedule": {"kind": "cosine", "warmup_steps": 20},
        "loader": {"workers": 1},
        "loop": {
            "max_steps": lesson.steps,
            "batch_size": 4,
            "precision": "auto",
            "log_every": 50,
            "eval_every": 250,
        },
    }
    config = parse_config(values, schemas=SCHEMAS, source="test")
    assert isinstance(config, DetectionConfig)
    return config


C4 = Lesson(
    model={
        "neck": {"kind": "c4"},
        "roi": {  # RoIPool rounds to 16 pixels: boxes that start far off cannot be told apart
            "pool": "roi_pool",
            "fg_iou_thresh": 0.7,
            "num_samples": 32,
            "fg_fraction": 0.5,
            "smooth_l1_beta": 0.0,
        },
    },
    sides=(320, 480),
    smallest_anchor=16,
    steps=1200,
)
FPN = Lesson(
    model={
        "neck": {"kind": "fpn", "channels": 128},
        "roi": {
            "hidden_dim": 512,
            "num_samples": 128,
            "fg_fraction": 0.5,
            "smooth_l1_beta": 0.0,
        },
    },
    sides=(288, 448),
    smallest_anchor=16,
    steps=900,
)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)  # c4: 6 s a step on two cores without bf16
@pytest.mark.parametrize("task", ["detection", "segmentation"])
@pytest.mark.parametrize("lesson", [C4, FPN], ids=["c4-roi_pool", "fpn"])
def test_sixteen_images(data_dir: Path, tmp_path: Path, lesson: Lesson, task: str) -> None:
    coco = data_dir / "coco128"
    document = json.loads((coco / "annotations/instances_train2017.json").read_text())
    for key, name in (("images", "id"), ("annotations", "image_id")):
        document[key] = [entry for entry in document[key] if entry[name] in IMAGE_IDS]
    used = {entry["category_id"] for entry in document["annotations"]}
    document["categories"] = [entry for entry in document["categories"] if entry["id"] in used]
    assert len(document["images"]) == 16
    assert any(entry["iscrowd"] for entry in document["annotations"])
    (tmp_path / "sixteen.json").write_text(json.dumps(document))
    config = settings(coco / "train2017", tmp_path / "sixteen.json", lesson, task=task)
    metrics = fit(build_task(config), config, output=tmp_path / "run")
    assert metrics["ap"] >= 0.9
    if task == "segmentation":
        assert metrics["mask_ap"] >= 0.8
