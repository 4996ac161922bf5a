"""The tasks of this package: made from a config, or read from what a run left."""

from collections.abc import Sequence
from pathlib import Path

from backbones.classification.config import ClassificationConfig
from backbones.classification.task import ClassificationTask
from backbones.classification.trained import load_trained as load_classifier
from detection.config import DetectionConfig
from detection.data.demo_objects import make_demo_objects
from detection.localization_config import LocalizationConfig, LocalizationRegionsConfig
from detection.predict import load_trained
from detection.tasks.detection import DetectionTask
from detection.tasks.localization import LocalizationTask
from detection.tasks.localization_regions import LocalizationRegionsTask
from detection.tasks.one_class import OneClassTask
from detection.tasks.segmentation import SegmentationTask
from engine.checkpoint import read_trained
from engine.errors import UserError
from engine.schema import RunConfig

_DETECTORS: dict[str, type[DetectionTask]] = {
    "detection": DetectionTask,
    "segmentation": SegmentationTask,
}


def build_task(config: RunConfig) -> DetectionTask | OneClassTask | ClassificationTask:
    """Make the task that a config asks for, ready to train; the demo's pictures are drawn first."""
    if isinstance(config, ClassificationConfig):
        if config.data.demo is not None:
            make_demo_objects(config.data.demo)
        return ClassificationTask.for_training(config)
    if isinstance(config, LocalizationConfig):
        return LocalizationTask.for_training(config)
    if isinstance(config, LocalizationRegionsConfig):
        return LocalizationRegionsTask.for_training(config)
    assert isinstance(config, DetectionConfig)
    return _DETECTORS[config.task].for_training(config)


def load_task(
    paths: Sequence[Path], overrides: Sequence[str] = ()
) -> DetectionTask | OneClassTask | ClassificationTask:
    """Read the task of a run folder, a checkpoint or a .safetensors file, ready to be scored.

    Args:
        paths: one; several classifiers are an ensemble.
        overrides: `a.b.c=value`, changes to the config that the file holds.

    Raises:
        UserError: a file is missing, damaged or foreign, or an override is wrong.
    """
    kind = read_trained(paths[0])[2].get("task")
    if kind == "classification":
        return load_classifier(paths, overrides)
    if len(paths) > 1:
        raise UserError(f"expected one detector or localizer, got {len(paths)}: {paths[1]}")
    if kind == "localization":
        return LocalizationTask.from_run(paths[0], overrides)
    if kind == "localization_regions":
        return LocalizationRegionsTask.from_run(paths[0], overrides)
    trained = load_trained(paths[0], overrides)
    detector = _DETECTORS[trained.config.task]
    return detector(trained.config, trained.model, trained.classes)
