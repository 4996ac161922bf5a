"""Checks of a localization config before training: no batch norm may get a single value."""

from backbones.start_checks import check_batch_norm_size
from detection.localization.config import (
    LocalizationBaseConfig,
    LocalizationConfig,
    RegionClassifierConfig,
)

_LAST_STAGE = {"c2": 2, "c3": 3, "c4": 4, "c5": 5}


def check_localizer(config: LocalizationBaseConfig) -> None:
    """Raise UserError if a batch norm would get a single value per channel, which has no variance.

    Args:
        config: of either stage.
    """
    model, backbone = config.model, config.model.backbone
    side, last_stage, source = config.augment.crop, 5, f"augment.crop={config.augment.crop}"
    loop = config.loop
    if isinstance(model, RegionClassifierConfig):  # it gets several regions of each image
        side, source = model.side, f"model.side={model.side}"
        if model.num_samples > 1:
            return
    elif isinstance(config, LocalizationConfig):
        last_stage = _LAST_STAGE[config.model.level]
    has_batch_norm = backbone.has_norms and backbone.norm == "batch"
    if has_batch_norm and backbone.frozen_stages < last_stage:
        # stage n has a stride of 2^n
        check_batch_norm_size(
            "model.backbone.norm", loop, side=side, stride=2**last_stage, source=source
        )
