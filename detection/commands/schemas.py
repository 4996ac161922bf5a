"""Which configs the tools of this package take."""

from backbones.classification.config import SCHEMAS as CLASSIFIERS
from detection.config import SCHEMAS as DETECTORS
from detection.localization.config import LocalizationConfig, LocalizationRegionsConfig
from engine.schema import RunConfig

SCHEMAS: dict[str, type[RunConfig]] = {
    **DETECTORS,
    "localization": LocalizationConfig,
    "localization_regions": LocalizationRegionsConfig,
}
"""Schema of each `task` that a config can name; the first one is meant where it names none."""
ALL_SCHEMAS: dict[str, type[RunConfig]] = {**SCHEMAS, **CLASSIFIERS}
"""The same with classifiers, which tools/pretrain_backbone.py trains."""
