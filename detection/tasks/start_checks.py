"""Checks of a detector's config before data is read: batch norms over a single value."""

from backbones.start_checks import check_batch_norm_size
from detection.config import DetectionConfig


def check_detector(config: DetectionConfig) -> None:
    """Raise UserError if a batch norm of the detector would normalise a single value."""
    model, backbone = config.model, config.model.backbone
    augment, divisor = config.data.augment, config.data.size_divisor
    if augment.large_scale_jitter is not None:
        padded = augment.large_scale_jitter.size
        source = f"data.augment.large_scale_jitter.size={padded}"
    else:
        shortest = min(*augment.short_sides, augment.max_side)
        padded = -(-shortest // divisor) * divisor  # rounded up to a multiple
        source = f"data.augment.short_sides={shortest}"
    # The deepest stage on the whole image has the smallest map. In c4 networks the fifth stage runs
    # on RoIs, which have hundreds of values per channel.
    last = 5 if model.neck.kind == "fpn" else 4
    if backbone.has_norms and backbone.norm == "batch" and backbone.frozen_stages < last:
        key = "model.backbone.norm"
        check_batch_norm_size(key, config.loop, side=padded, stride=2**last, source=source)
    if model.neck.kind == "fpn" and model.neck.norm == "batch":
        check_batch_norm_size("model.neck.norm", config.loop, side=padded, stride=32, source=source)
