from typing import Any

import pytest
import torch

from backbones.classification.config import ClassificationConfig
from backbones.classification.task import ClassificationTask
from detection.commands.schemas import ALL_SCHEMAS
from detection.commands.tasks import check_weights
from detection.config import DetectionConfig
from detection.localization.config import LocalizationBaseConfig
from detection.localization.start_checks import check_localizer
from detection.models.build import build_faster_rcnn
from detection.tasks.start_checks import check_detector
from engine.config import parse_config
from engine.errors import UserError
from engine.schema import RunConfig

TRAINABLE = {"norm": "batch", "frozen_stages": 0}
TINY = {"short_sides": [32], "max_side": 32}


def config_of(task: str, *overrides: str) -> RunConfig:
    """A config whose network trains from random weights, and sees one image of 32 pixels a step."""
    values: dict[str, Any] = {
        "task": task,
        "model": {"backbone": dict(TRAINABLE)},
        "loop": {"batch_size": 1},
    }
    if task in ("detection", "segmentation"):
        values["model"] |= {"neck": {"kind": "fpn"}}
        values["data"] = {"augment": TINY}
    else:
        values["augment"] = {"crop": 32}
    if task == "classification":
        values["model"] = {"backbone": {"norm": "batch"}}
    if task == "localization_regions":
        values["model"] |= {"localizer": "x", "side": 32, "num_samples": 1}
    return parse_config(values, overrides, schemas=ALL_SCHEMAS, source="test")


def check(config: RunConfig) -> None:
    check_weights(config)
    if isinstance(config, DetectionConfig):
        check_detector(config)
    elif isinstance(config, LocalizationBaseConfig):
        check_localizer(config)
    else:
        assert isinstance(config, ClassificationConfig)
        ClassificationTask.for_training(config)


ONE_VALUE = {
    "detector": ("detection", []),
    "mask": ("segmentation", []),
    "parts": ("detection", ["loop.batch_size=4", "loop.accumulate=4"]),
    "smaller": ("detection", ["data.augment.short_sides=[64,9]"]),
    "cap": ("detection", ["data.augment.short_sides=[64]"]),
    "squares": (
        "detection",
        ["data.augment.short_sides=[800]", "data.augment.large_scale_jitter.size=32"],
    ),
    "c4": (
        "detection",
        ["model.neck.kind=c4", "data.size_divisor=16", "data.augment.max_side=16"],
    ),
    "neck": (
        "detection",
        ["model.backbone.norm=group", "model.neck.norm=batch"],
    ),
    "localizer": ("localization", []),
    "regions": ("localization_regions", []),
    "classifier": ("classification", []),
}


@pytest.mark.parametrize(("task", "overrides"), ONE_VALUE.values(), ids=ONE_VALUE)
def test_a_norm_of_one_value_is_refused(task: str, overrides: list[str]) -> None:
    with pytest.raises(UserError, match="expected more than one value per channel") as caught:
        check(config_of(task, *overrides))
    assert "loop.batch_size" in str(caught.value)
    assert "norm=group" in str(caught.value)


MORE_VALUES = {
    "two images": ("detection", ["loop.batch_size=2"]),
    "larger": ("detection", ["data.augment.short_sides=[33]", "data.augment.max_side=64"]),
    "larger squares": ("detection", ["data.augment.large_scale_jitter.size=64"]),
    "group": ("detection", ["model.backbone.norm=group"]),
    "stored statistics": (
        "detection",
        ["model.backbone.norm=fixed_statistics", "model.backbone.weights=x"],
    ),
    "frozen": (
        "detection",
        ["model.backbone.frozen_stages=5", "model.backbone.weights=x"],
    ),
    "c4": ("detection", ["model.neck.kind=c4"]),
    "finer level": ("localization", ["model.level=c4"]),
    "several regions": ("localization_regions", ["model.num_samples=2"]),
}


@pytest.mark.parametrize(("task", "overrides"), MORE_VALUES.values(), ids=MORE_VALUES)
def test_a_norm_of_more_values_passes(task: str, overrides: list[str]) -> None:
    check(config_of(task, *overrides))


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("frozen_stages", [0, 4, 5])
def test_refused_is_what_torch_cannot_train(side: int, frozen_stages: int) -> None:
    config = config_of(
        "detection",
        "model.backbone.kind=resnet18",
        f"data.augment.short_sides=[{side}]",
        f"data.augment.max_side={side}",
        f"model.backbone.frozen_stages={frozen_stages}",
        "model.backbone.weights=x",
    )
    assert isinstance(config, DetectionConfig)
    model = build_faster_rcnn(config.model, num_classes=2, size_divisor=32).train()
    if side == 32 and frozen_stages < 5:
        with pytest.raises(UserError):
            check(config)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            model.backbone(torch.zeros(1, 3, side, side))
    else:
        check(config)
        model.backbone(torch.zeros(1, 3, side, side))


@pytest.mark.parametrize(("synced", "refused"), [("true", False), ("false", True)])
def test_processes_share_a_norm_or_not(
    monkeypatch: pytest.MonkeyPatch, synced: str, refused: bool
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    overrides = ["loop.batch_size=2", f"loop.sync_batch_norm={synced}"]
    if refused:
        with pytest.raises(UserError, match="over 2 process"):
            check(config_of("detection", *overrides))
    else:
        check(config_of("detection", *overrides))


FROZEN = {
    "defaults": ("detection", ["norm=frozen", "frozen_stages=2"], "norm=frozen and frozen_stages"),
    "norm": ("segmentation", ["norm=frozen"], "with norm=frozen, got none"),
    "statistics": (
        "detection",
        ["norm=fixed_statistics"],
        "with norm=fixed_statistics, got none",
    ),
    "stages": ("detection", ["norm=group", "frozen_stages=1"], "with frozen_stages=1, got none"),
    "localizer": ("localization", ["frozen_stages=1"], "with frozen_stages=1, got none"),
    "regions": ("localization_regions", ["norm=frozen"], "with norm=frozen, got none"),
    "classifier": ("classification", ["norm=frozen"], "with norm=frozen, got none"),
    "statistics of a classifier": (
        "classification",
        ["norm=fixed_statistics"],
        "with norm=fixed_statistics, got none",
    ),
}


@pytest.mark.parametrize(("task", "overrides", "message"), FROZEN.values(), ids=FROZEN)
def test_random_weights_are_not_frozen(task: str, overrides: list[str], message: str) -> None:
    keys = [f"model.backbone.{override}" for override in overrides]
    config = config_of(task, *keys, "loop.batch_size=2")
    with pytest.raises(UserError, match=r"^model.backbone.weights: expected pretrained") as caught:
        check(config)
    assert message in str(caught.value)
    fixed = config_of(task, *keys, "loop.batch_size=2", "model.backbone.weights=x")
    if task != "classification":  # its data would be looked for next
        check(fixed)


def test_a_whole_detectors_weights_will_do() -> None:
    check(config_of("detection", "model.backbone.norm=frozen", "model.weights=x"))


def test_three_lines_of_paths_are_no_training() -> None:
    with pytest.raises(
        UserError, match=r"model.backbone.norm=batch model.backbone.frozen_stages=0"
    ):
        check(DetectionConfig())
