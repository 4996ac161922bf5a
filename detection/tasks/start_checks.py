"""What cannot train, said before data is read: frozen random weights, norms of a single value."""

from backbones.classification.config import ClassificationConfig
from backbones.start_checks import check_frozen, check_norm
from detection.config import DetectionConfig
from detection.localization_config import (
    LocalizationConfig,
    OneClassConfig,
    RegionClassifierConfig,
)
from engine.schema import RunConfig

_LAST_STAGE = {"c2": 2, "c3": 3, "c4": 4, "c5": 5}


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


def check_detector(config: DetectionConfig) -> None:
    """Raise UserError where a norm of a detector would get a single value."""
    model, backbone = config.model, config.model.backbone
    augment, divisor = config.data.augment, config.data.size_divisor
    shortest = min(*augment.short_sides, augment.max_side)
    padded = -(-shortest // divisor) * divisor
    source = f"data.augment.short_sides={shortest}"
    # Of c4 networks the fifth stage sees regions: hundreds of values.
    last = 5 if model.neck.kind == "fpn" else 4
    if backbone.norm == "batch" and backbone.frozen_stages < last:
        key = "model.backbone.norm"
        check_norm(key, config.loop, side=padded, stride=2**last, source=source)
    if model.neck.kind == "fpn" and model.neck.norm == "batch":
        check_norm("model.neck.norm", config.loop, side=padded, stride=32, source=source)


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
        check_norm("model.backbone.norm", loop, side=side, stride=2**last, source=source)
