"""Tasks: made from a config to be trained, or read from a run to be scored.

Each is imported when it is asked for: the packages of all of them take a command half a second.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backbones.classification.config import ClassificationConfig
from backbones.images import quiet_opencv
from backbones.metadata import require_demo, writing_nothing
from backbones.start_checks import check_frozen
from detection.config import DetectionConfig
from detection.localization.config import (
    LocalizationConfig,
    LocalizationRegionsConfig,
    OneClassConfig,
)
from engine.checkpoint import read_trained
from engine.errors import UserError
from engine.schema import RunConfig

if TYPE_CHECKING:
    from backbones.classification.task import ClassificationTask
    from detection.localization.base_task import OneClassTask
    from detection.tasks.detection import DetectionTask


def check_weights(config: RunConfig) -> None:
    """Raise UserError where a config freezes random weights; the commands ask before a training."""
    if isinstance(config, ClassificationConfig):
        check_frozen(config.model.backbone, has_weights=config.model.backbone.weights is not None)
        return
    assert isinstance(config, DetectionConfig | OneClassConfig)
    backbone = config.model.backbone
    whole = config.model.weights if isinstance(config, DetectionConfig) else None
    check_frozen(
        backbone,
        frozen_stages=backbone.frozen_stages,
        has_weights=backbone.weights is not None or whole is not None,
    )


def build_task(config: RunConfig) -> "DetectionTask | OneClassTask | ClassificationTask":
    """Make the task that a config asks for, ready to train; the demo's pictures are drawn first.

    From then on OpenCV neither threads nor logs in this process.
    """
    quiet_opencv()
    if isinstance(config, ClassificationConfig):
        from backbones.classification.task import ClassificationTask

        if config.data.demo is not None:
            from detection.datasets.demo_objects import make_demo_objects

            make_demo_objects(config.data.demo)
        return ClassificationTask.for_training(config)
    if isinstance(config, LocalizationConfig | LocalizationRegionsConfig):
        return _localizer(config.task).for_training(config)
    assert isinstance(config, DetectionConfig)
    return _detector(config.task).for_training(config)


def load_task(
    paths: Sequence[Path], overrides: Sequence[str] = ()
) -> "DetectionTask | OneClassTask | ClassificationTask":
    """Read the task of a run folder, a checkpoint or a .safetensors file, ready to be scored.

    Args:
        paths: one; several classifiers are an ensemble.
        overrides: `a.b.c=value`, changes to the config that the file holds.

    Raises:
        UserError: a file is missing, damaged or foreign, an override is wrong, or the images are
            those of a demo that is not there.
    """
    quiet_opencv()
    metadata = read_trained(paths[0])[2]
    kind = metadata.get("task", "")
    if kind != "classification" and len(paths) > 1:
        raise UserError(f"expected one detector or localizer, got {len(paths)}: {paths[1]}")
    task: DetectionTask | OneClassTask | ClassificationTask
    if kind == "classification":
        from backbones.classification.trained import load_trained as load_classifier

        task = load_classifier(paths, overrides)
    elif kind in ("localization", "localization_regions"):
        task = _localizer(kind).from_run(paths[0], overrides)
    else:
        from detection.predict import load_trained

        trained = load_trained(paths[0], overrides)
        config = writing_nothing(trained.config, overrides)
        task = _detector(config.task)(config, trained.model, trained.classes)
    require_demo(metadata, task.config, source=paths[0])
    return task


def _detector(task: str) -> "type[DetectionTask]":
    if task == "segmentation":
        from detection.tasks.segmentation import SegmentationTask

        return SegmentationTask
    from detection.tasks.detection import DetectionTask

    return DetectionTask


def _localizer(task: str) -> "type[OneClassTask]":
    if task == "localization_regions":
        from detection.localization.regions_task import LocalizationRegionsTask

        return LocalizationRegionsTask
    from detection.localization.task import LocalizationTask

    return LocalizationTask
