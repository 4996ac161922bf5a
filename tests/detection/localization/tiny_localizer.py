"""A localizer and a data set small enough for tests: one bright patch per image, two colors."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from detection.commands.schemas import SCHEMAS
from detection.commands.tasks import build_task
from detection.localization.base_task import LocalizationBaseTask
from detection.localization.config import (
    LocalizationBaseConfig,
    LocalizationConfig,
    LocalizationRegionsConfig,
)
from detection.structures import DetectionBatch
from engine.config import parse_config
from engine.optim import build_optimizer
from engine.trainer import fit

CLASSES = ("blue", "red")
SIDE = 32


def write_tiny_imagenet(root: Path, *, num_train: int = 4, num_val: int = 2) -> Path:
    """Write Tiny ImageNet's layout: `num_train` and `num_val` images of each class."""
    rng = np.random.default_rng(0)
    (root / "wnids.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "wnids.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    (root / "words.txt").write_text("blue\tblue patch, azure\nred\tred patch\n")
    lines: list[str] = []
    for split, count in (("train", num_train), ("val", num_val)):
        for channel, name in enumerate(("blue", "red")):
            folder = root / (f"train/{name}" if split == "train" else "val")
            (folder / "images").mkdir(parents=True, exist_ok=True)
            boxes = []
            for number in range(count):
                pixels = rng.integers(0, 60, size=(SIDE, SIDE, 3), dtype=np.uint8)
                x1, y1 = rng.integers(0, 12, size=2).tolist()
                x2, y2 = (rng.integers(10, 20, size=2) + np.array([x1, y1])).tolist()
                pixels[y1 : y2 + 1, x1 : x2 + 1, 2 * channel] = 255
                image = f"{name}_{number}.png"
                cv2.imwrite(str(folder / "images" / image), pixels)  # BGR
                boxes.append((image, f"{x1}\t{y1}\t{x2}\t{y2}"))
            if split == "train":
                text = "".join(f"{image}\t{box}\n" for image, box in boxes)
                (folder / f"{name}_boxes.txt").write_text(text)
            lines += [f"{image}\t{name}\t{box}\n" for image, box in boxes * (split == "val")]
    (root / "val/val_annotations.txt").write_text("".join(lines))
    return root


def tiny_config(root: Path, **changes: Any) -> LocalizationConfig:
    """Return the config of a short run; `changes` are merged into its sections."""
    values: dict[str, Any] = {
        "task": "localization",
        "data": {"kind": "tiny_imagenet", "root": str(root)},
        "augment": {"crop": SIDE, "area": [0.6, 1.0]},
        "model": {
            "backbone": {"kind": "resnet18", "norm": "batch", "frozen_stages": 0},
            "level": "c3",
            "anchor_sizes": [8, 16, 24],
            "fg_iou_thresh": 0.5,
        },
        "evaluation": {"resize": SIDE, "crop": SIDE, "scales": [SIDE]},
        "optim": {"kind": "adamw", "lr": 1e-3},
        "loader": {"workers": 0},
        "loop": {"max_steps": 2, "batch_size": 4, "log_every": 1},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value}
    schemas = {"localization": LocalizationConfig}
    return parse_config(values, schemas=schemas, source="test")


def train_first_stage(folder: Path) -> Path:
    """Train briefly on data in `folder`/patches; return the run folder, `folder`/run."""
    config = tiny_config(write_tiny_imagenet(folder / "patches"))
    fit(build_task(config), config, output=folder / "run", device="cpu")
    return folder / "run"


def regions_config(first: Path, **model: Any) -> LocalizationRegionsConfig:
    """Return the config of a second stage on the data of the first (see `train_first_stage`)."""
    stage_one = tiny_config(first.parent / "patches").model_dump(mode="json")
    values = {key: stage_one[key] for key in ("data", "augment", "evaluation", "optim", "loop")}
    values |= {
        "task": "localization_regions",
        "loader": {"workers": 0},
        "model": {
            "backbone": stage_one["model"]["backbone"],
            "localizer": str(first),
            "num_proposals": 10,
            "side": 32,
            **model,
        },
    }
    config = parse_config(values, schemas=SCHEMAS, source="test")
    assert isinstance(config, LocalizationRegionsConfig)
    return config


def train_a_dozen_steps(
    task: LocalizationBaseTask, config: LocalizationBaseConfig, batch: DetectionBatch
) -> tuple[set[str], float]:
    """Train on one batch; return the names of the losses, and the last total over the first."""
    optimizer = build_optimizer(task.model, config.optim, batch_size=len(batch))
    task.model.train()
    seen = []
    for _ in range(12):
        optimizer.zero_grad()
        losses = task.losses(batch)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        optimizer.step()
        seen.append(total.item())
    return set(losses), seen[-1] / seen[0]
