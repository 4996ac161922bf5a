"""A detector and data small enough for tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from backbones.config import DemoConfig
from detection.commands.tasks import build_task
from detection.config import SCHEMAS, DetectionConfig
from detection.datasets.demo import make_demo
from detection.structures import DetectionBatch
from detection.tasks.detection import DetectionTask
from engine.config import parse_config
from engine.distributed import World
from engine.meter import StepMeter
from engine.optim import build_optimizer
from engine.step import HostCopy, WeightAverage, training_step, wrap_losses

NECKS = ("c4", "fpn")


def tiny_config(
    root: Path, *, neck: str = "fpn", task: str = "detection", **changes: Any
) -> DetectionConfig:
    """Return a config of a ResNet-18 detector on a few small demo images under `root`.

    Args:
        root: folder for the images; made on first use.
        neck: c4 or fpn.
        task: detection or segmentation.
        changes: top-level parts, merged into the defaults below.
    """
    demo = DemoConfig(root=str(root), num_train=10, num_val=7)
    make_demo(demo)
    values: dict[str, Any] = {
        "task": task,
        "data": {
            "train": {
                "images": str(root / "train"),
                "annotations": str(root / "annotations" / "train.json"),
            },
            "val": {
                "images": str(root / "val"),
                "annotations": str(root / "annotations" / "val.json"),
            },
            "augment": {"short_sides": [96, 128], "max_side": 160},
            "eval_short_side": 96,
            "eval_max_side": 160,
        },
        "model": {
            "backbone": {"kind": "resnet18", "norm": "group", "frozen_stages": 0},
            "neck": {"kind": neck, "channels": 32},
            "rpn": {
                "anchor_sizes": [16, 32, 64, 96, 128],
                "num_samples": 64,
                "pre_nms_topk_train": 100,
                "pre_nms_topk_test": 100,
                "post_nms_topk_train": 50,
                "post_nms_topk_test": 30,
            },
            "roi": {"num_samples": 32, "hidden_dim": 64, "score_thresh": 0.01},
            "mask": {"num_convs": 1, "hidden_dim": 16},
        },
        "optim": {"lr": 0.01, "clip_grad_norm": 10.0},
        "loader": {"workers": 0},
        "loop": {"max_steps": 4, "batch_size": 4, "checkpoint_every": 1, "log_every": 1},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value}
    config = parse_config(values, schemas=SCHEMAS, source="test")
    assert isinstance(config, DetectionConfig)
    return config


TODAYS = {
    "backbone": {"kind": "resnet18", "norm": "batch", "frozen_stages": 0},
    "neck": {"kind": "fpn", "channels": 32, "norm": "batch"},
    "rpn": {
        "num_convs": 2,
        "anchor_sizes": [16, 32, 64, 96, 128],
        "num_samples": 64,
        "pre_nms_topk_train": 20,
        "post_nms_topk_train": 8,
    },
    # more samples than proposals: some are not valid
    "roi": {
        "num_samples": 32,
        "hidden_dim": 32,
        "num_convs": 2,
        "conv_dim": 16,
        "num_fcs": 1,
        "norm": "batch",
        "fc_init": "caffe2_xavier",
    },
    "mask": {"num_convs": 2, "hidden_dim": 16, "norm": "batch"},
}
"""Model with the layers of today's recipe in neck and heads, and batch norm."""


def tiny_task(
    root: Path, neck: str, *, task: str = "detection", **changes: Any
) -> tuple[DetectionTask, DetectionBatch]:
    """Return a task for training and a batch of its first four images; see `tiny_config`."""
    made = build_task(tiny_config(root, neck=neck, task=task, **changes))
    assert isinstance(made, DetectionTask)
    data = made.train_data()
    return made, data.collate([data.load(index, 100 + index) for index in range(4)])


def make_step(
    task: DetectionTask, batch: DetectionBatch, world: World
) -> Callable[[int], HostCopy]:
    """Return the trainer's step on one batch, of a number: all of it that runs on the device."""
    config = task.config
    losses_of = wrap_losses(task, config.loop, world)
    optimizer = build_optimizer(task.model, config.optim, batch_size=len(batch))
    average, meter = WeightAverage(task.model, 0.99), StepMeter()

    def step(number: int) -> HostCopy:
        result = training_step(losses_of, optimizer, [batch], clip_grad_norm=1.0, stop=False)
        average.update(task.model, step=number, skipped=result.status[0])
        meter.add(result)
        return HostCopy(result.status)

    return step
