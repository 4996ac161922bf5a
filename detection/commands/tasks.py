"""Tasks, built from a config for training or loaded from a run for evaluation.

Each task is imported only when it is used, because importing all of them takes half a second.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backbones.classification.config import ClassificationConfig
from backbones.images import quiet_opencv
from backbones.metadata import check_demo_exists, without_writes
from backbones.start_checks import check_frozen_has_weights
from detection.config import DetectionConfig
from detection.localization.config import (
    LocalizationBaseConfig,
    LocalizationConfig,
    LocalizationRegionsConfig,
)
from engine.checkpoint import read_trained_weights
from engine.errors import UserError
from engine.schema import RunConfig

if TYPE_CHECKING:
    from backbones.classification.task import ClassificationTask
    from detection.localization.base_task import LocalizationBaseTask
    from detection.tasks.detection import DetectionTask

LOCALIZATION = ("localization", "localization_regions")


def check_weights(config: RunConfig) -> None:
    """Raise UserError if a config freezes random weights; commands call this before training."""
    if isinstance(config, ClassificationConfig):
        check_frozen_has_weights(
            config.model.backbone, has_weights=config.model.backbone.weights is not None
        )
        return
    assert isinstance(config, DetectionConfig | LocalizationBaseConfig)
    backbone = config.model.backbone
    model_weights = config.model.weights if isinstance(config, DetectionConfig) else None
    check_frozen_has_weights(
        backbone,
        frozen_stages=backbone.frozen_stages,
        has_weights=backbone.weights is not None or model_weights is not None,
    )


def build_task(config: RunConfig) -> "DetectionTask | LocalizationBaseTask | ClassificationTask":
    """Build the task of a config, ready to train; draw the demo's images first if it uses them.

    From then on OpenCV uses no threads of its own and logs nothing in this process.
    """
    quiet_opencv()
    if isinstance(config, ClassificationConfig):
        from backbones.classification.task import ClassificationTask

        if config.data.demo is not None:
            from detection.datasets.demo_objects import make_demo_objects

            make_demo_objects(config.data.demo)
        return ClassificationTask.for_training(config)
    if isinstance(config, LocalizationConfig | LocalizationRegionsConfig):
        return _localization_task(config.task).for_training(config)
    assert isinstance(config, DetectionConfig)
    return _detection_task(config.task).for_training(config)


def load_task(
    paths: Sequence[Path], overrides: Sequence[str] = ()
) -> "DetectionTask | LocalizationBaseTask | ClassificationTask":
    """Load the task of a run folder, a checkpoint or a .safetensors file, ready for evaluation.

    Args:
        paths: one path; several classifiers, or several detectors, form an ensemble.
        overrides: `a.b.c=value`, changes to the config in the file.

    Raises:
        UserError: a file is missing, damaged or not one of this project's, an override is wrong, or
            the run uses the images of a demo that does not exist.
    """
    # the metadata of a file names its task, which decides what to import
    metadata = read_trained_weights(paths[0])[2]
    kind = metadata.get("task", "")
    if kind in LOCALIZATION and len(paths) > 1:
        raise UserError(f"expected one localizer, got {len(paths)}: {paths[1]}")
    task: DetectionTask | LocalizationBaseTask | ClassificationTask
    if kind == "classification":
        from backbones.classification.load_and_export import load_classifier

        task = load_classifier(paths, overrides)
    elif kind in LOCALIZATION:
        task = _localization_task(kind).from_run(paths[0], overrides)
    else:
        from detection.inference.trained import load_ensemble

        trained = load_ensemble(paths, overrides)
        config = without_writes(trained.config, overrides)
        task = _detection_task(config.task)(
            config, trained.model, trained.classes, ensemble=trained.others
        )
    check_demo_exists(metadata, task.config, source=paths[0])
    return task


def _detection_task(task: str) -> "type[DetectionTask]":
    if task == "segmentation":
        from detection.tasks.segmentation import SegmentationTask

        return SegmentationTask
    from detection.tasks.detection import DetectionTask

    return DetectionTask


def _localization_task(task: str) -> "type[LocalizationBaseTask]":
    if task == "localization_regions":
        from detection.localization.regions_task import LocalizationRegionsTask

        return LocalizationRegionsTask
    from detection.localization.task import LocalizationTask

    return LocalizationTask
