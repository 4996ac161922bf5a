"""Configs of later recipes have their sources' numbers, on schedules that fit their epochs."""

from pathlib import Path
from typing import Any

import pytest

from detection.config import SCHEMAS, DetectionConfig
from engine.config import load_config
from tests.test_detectron2_configs import value_at

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
COCO_IMAGES = 117_266
"""Training images of COCO 2017 with objects."""

# detectron2, configs/new_baselines: mask_rcnn_R_50_FPN_100ep_LSJ.py, and *_400ep_LSJ.py, which has
# 4 times as many steps; the warm-up is a share of all steps there.
LSJ = {
    "data.augment.large_scale_jitter.size": 1024,
    "data.augment.large_scale_jitter.scale": [0.1, 2.0],
    "model.backbone.norm": "batch",
    "model.backbone.frozen_stages": 0,
    "model.neck.norm": "batch",
    "model.rpn.num_convs": 2,
    "model.roi.num_convs": 4,
    "model.roi.conv_dim": 256,
    "model.roi.num_fcs": 1,
    "model.roi.hidden_dim": 1024,
    "model.roi.norm": "batch",
    "model.mask.num_convs": 4,
    "model.mask.norm": "batch",
    "optim.kind": "sgd",
    "optim.lr": 0.1,
    "optim.reference_batch_size": 64,
    "optim.weight_decay": 4e-5,
    "schedule.warmup_factor": 0.067,
    "loop.batch_size": 64,
}
EPOCHS_100 = {
    "loop.max_steps": 184_375,
    "schedule.warmup_steps": 500,
    "schedule.milestones": [163_889, 177_546],
}
EPOCHS_400 = {
    "loop.max_steps": 4 * 184_375,
    "schedule.warmup_steps": 4 * 500,
    "schedule.milestones": [4 * 163_889, 4 * 177_546],
}
SOURCES: dict[str, dict[str, Any]] = {
    "segmentation/mask_rcnn_r50_fpn_lsj_coco": LSJ | EPOCHS_400,
    "segmentation/mask_rcnn_r101_fpn_lsj_coco": LSJ | EPOCHS_400,
    "detection/faster_rcnn_r101_fpn_lsj_coco": LSJ | EPOCHS_100,
    # Ghiasi et al. 2021, section 4.1; their config maskrcnn_resnet101_1280.yaml in tensorflow/tpu,
    # models/official/detection/projects/copy_paste; and detectron2's new baselines
    "segmentation/mask_rcnn_r101_fpn_copy_paste_coco": LSJ
    | {
        "data.augment.large_scale_jitter.size": 1280,
        "data.augment.copy_paste_prob": 1.0,
        "data.eval_short_side": 1280,
        "model.backbone.stride_in_1x1": False,
        "model.roi.num_fcs": 2,
        "optim.lr": 0.32,
        "optim.reference_batch_size": 256,
        "optim.decay_norm_and_bias": False,
        "schedule.warmup_factor": 0.01,
        "schedule.warmup_steps": 1000,
        "schedule.milestones": [243_000, 256_500, 263_250],
        "loop.batch_size": 256,
        "loop.max_steps": 270_000,
    },
    # mmdetection, configs/resnet_strikes_back/faster-rcnn_r50-rsb-pre_fpn_1x_coco.py
    "detection/faster_rcnn_r50_fpn_adamw_coco": {
        "data.augment.short_sides": [800],
        "data.crowds": "drop",
        "model.backbone.norm": "fixed_statistics",
        "optim.kind": "adamw",
        "optim.lr": 2e-4,
        "optim.weight_decay": 0.05,
        "optim.decay_norm": False,
        "schedule.warmup_steps": 500,
        "schedule.milestones": [8 * 7329, 11 * 7329],
        "loop.batch_size": 16,
        "loop.max_steps": 12 * 7329,
    },
    # detectron2, configs/Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml
    "segmentation/cascade_mask_rcnn_r50_fpn_coco": {
        "model.roi.stages": 3,
        "model.roi.class_agnostic_boxes": True,
        "model.roi.fg_iou_thresh": 0.5,
        "model.roi.later_fg_iou_thresh": [0.6, 0.7],
        "model.roi.box_weights": [10, 10, 5, 5],
        "model.roi.later_box_scale": [2, 3],
        "model.rpn.post_nms_topk_train": 2000,
        "data.crowds": "drop",
        "schedule.milestones": [210_000, 250_000],
        "loop.max_steps": 270_000,
    },
}


@pytest.mark.parametrize("name", SOURCES)
def test_values_are_those_of_the_source(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml", schemas=SCHEMAS)
    assert isinstance(config, DetectionConfig)
    values = config.model_dump(mode="json")
    assert {key: value_at(values, key) for key in SOURCES[name]} == SOURCES[name]


def test_schedules_have_the_epochs_of_their_headers() -> None:
    epochs = {
        "detection/faster_rcnn_r101_fpn_lsj_coco": 100,
        "segmentation/mask_rcnn_r101_fpn_lsj_coco": 400,
        "segmentation/mask_rcnn_r101_fpn_copy_paste_coco": 589,
        "detection/faster_rcnn_r50_fpn_adamw_coco": 12,
    }
    for name, count in epochs.items():
        path = CONFIGS / f"{name}.yaml"
        loop = load_config(path, schemas=SCHEMAS).loop
        # detectron2's 100 epochs are of 118,000 images
        assert loop.max_steps * loop.batch_size / COCO_IMAGES == pytest.approx(count, rel=0.01)
        assert f"{count} epochs" in path.read_text(encoding="utf-8")
