"""Overrides of configs/detection/bccd.yaml for small images and a small head."""

SMALL_BCCD = (
    "data.augment.short_sides=[192]",
    "data.augment.max_side=256",
    "data.eval_short_side=192",
    "data.eval_max_side=256",
    "model.neck.channels=64",
    "model.rpn.anchor_sizes=[8,16,32,64,128]",
    "model.roi.hidden_dim=128",
)
