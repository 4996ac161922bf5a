"""A data set of the tests, as a run opens it."""

from pathlib import Path
from typing import Any

from detection.config import AugmentConfig, DataConfig, SplitConfig
from detection.data.dataset import CocoDetection


def open_data(path: Path, *, training: bool = True, **changes: Any) -> CocoDetection:
    config = DataConfig(
        augment=AugmentConfig(short_sides=(40, 60), max_side=90, color_jitter=0.2),
        eval_short_side=64,
        eval_max_side=120,
        **changes,
    )
    split = SplitConfig(images=str(path.parent), annotations=str(path))
    return CocoDetection(split, config=config, training=training)
