"""What cannot train, said before data is read: norms of a single value."""

from backbones.start_checks import check_batch_norm_size
from detection.localization.config import (
    LocalizationConfig,
    OneClassConfig,
    RegionClassifierConfig,
)

_LAST_STAGE = {"c2": 2, "c3": 3, "c4": 4, "c5": 5}


def check_localizer(config: OneClassConfig) -> None:
    """Raise UserError where a norm of either stage of localization would get a single value."""
    model, backbone = config.model, config.model.backbone
    side, last, source = config.augment.crop, 5, f"augment.crop={config.augment.crop}"
    loop = config.loop
    if isinstance(model, RegionClassifierConfig):  # it sees several regions of each image
        side, source = model.side, f"model.side={model.side}"
        if model.num_samples > 1:
            return
    elif isinstance(config, LocalizationConfig):
        last = _LAST_STAGE[config.model.level]
    if backbone.norm == "batch" and backbone.frozen_stages < last:
        check_batch_norm_size("model.backbone.norm", loop, side=side, stride=2**last, source=source)
