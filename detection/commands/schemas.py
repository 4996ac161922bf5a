"""Config schemas of all tasks, by task name."""

from backbones.classification.config import SCHEMAS as CLASSIFIERS
from detection.config import SCHEMAS as DETECTORS
from detection.localization.config import LocalizationConfig, LocalizationRegionsConfig
from engine.schema import RunConfig

SCHEMAS: dict[str, type[RunConfig]] = {
    **DETECTORS,
    "localization": LocalizationConfig,
    "localization_regions": LocalizationRegionsConfig,
}
"""Schemas of the tasks of train_det.py; a config without `task` uses the first one."""
ALL_SCHEMAS: dict[str, type[RunConfig]] = {**SCHEMAS, **CLASSIFIERS}
"""The same with classification, the task of pretrain_backbone.py."""
