"""configs/*/*_detectron2.yaml have detectron2's settings, and only those differ from our own."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from detection.config import SCHEMAS, DetectionConfig
from engine.config import differences, load_config

CONFIGS = sorted(
    path
    for path in (Path(__file__).resolve().parent.parent / "configs").glob("*/*_detectron2.yaml")
    if not path.name.startswith("base_")
)
SAME = {
    "INPUT.MIN_SIZE_TRAIN": "data.augment.short_sides",
    "INPUT.MAX_SIZE_TRAIN": "data.augment.max_side",
    "MODEL.BACKBONE.FREEZE_AT": "model.backbone.frozen_stages",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS.0": "model.rpn.anchor_ratios",
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": "model.rpn.min_size",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": "model.rpn.num_samples",
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": "model.rpn.box_weight",
    "MODEL.RPN.IOU_THRESHOLDS.0": "model.rpn.bg_iou_thresh",
    "MODEL.RPN.IOU_THRESHOLDS.1": "model.rpn.fg_iou_thresh",
    "MODEL.RPN.LOSS_WEIGHT": "model.rpn.objectness_weight",
    "MODEL.RPN.NMS_THRESH": "model.rpn.nms_thresh",
    "MODEL.RPN.POSITIVE_FRACTION": "model.rpn.fg_fraction",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": "model.rpn.post_nms_topk_train",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": "model.rpn.pre_nms_topk_train",
    "MODEL.RPN.SMOOTH_L1_BETA": "model.rpn.smooth_l1_beta",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": "model.roi.box_weight",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": "model.roi.box_weights",
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": "model.roi.sampling_ratio",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": "model.roi.smooth_l1_beta",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "model.roi.num_samples",
    "MODEL.ROI_HEADS.IOU_THRESHOLDS.0": "model.roi.fg_iou_thresh",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "model.roi.nms_thresh",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": "model.roi.fg_fraction",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "model.roi.score_thresh",
    "SOLVER.BASE_LR": "optim.lr",
    "SOLVER.GAMMA": "schedule.gamma",
    "SOLVER.IMS_PER_BATCH": "loop.batch_size",
    "SOLVER.MAX_ITER": "loop.max_steps",
    "SOLVER.MOMENTUM": "optim.momentum",
    "SOLVER.STEPS": "schedule.milestones",
    "SOLVER.WARMUP_FACTOR": "schedule.warmup_factor",
    "SOLVER.WARMUP_ITERS": "schedule.warmup_steps",
    "SOLVER.WEIGHT_DECAY": "optim.weight_decay",
}
"""Our key with the same value, by detectron2's key (a number is the place in a list)."""
OTHER_VALUES: dict[str, tuple[Any, str, Any]] = {
    "DATALOADER.ASPECT_RATIO_GROUPING": (True, "data.aspect_groups", 2),  # portrait and landscape
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": (True, "data.keep_empty", False),
    "INPUT.RANDOM_FLIP": ("horizontal", "data.augment.flip_prob", 0.5),
    "MODEL.RESNETS.NORM": ("FrozenBN", "model.backbone.norm", "frozen"),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignV2", "model.roi.aligned", True),
    "SOLVER.AMP.ENABLED": (False, "loop.precision", "fp32"),
    "SOLVER.CLIP_GRADIENTS.ENABLED": (False, "optim.clip_grad_norm", None),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "schedule.kind", "steps"),
    "SOLVER.NESTEROV": (False, "optim.kind", "sgd"),  # torch's SGD without Nesterov's momentum
    "SOLVER.WARMUP_METHOD": ("linear", "schedule.warmup_kind", "linear"),
    "SOLVER.WEIGHT_DECAY_BIAS": (None, "optim.decay_norm_and_bias", True),  # None: as weights
}
"""Their value, our key and our value, by detectron2's key."""
OF_TESTS = {
    "data.eval_short_side": 800,
    "data.eval_max_side": 1333,
    "model.rpn.post_nms_topk_test": 1000,
    "model.roi.max_detections": 100,
}
"""detectron2's defaults of what detectron2_mini was computed with other values of."""


def value_at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[int(part)] if isinstance(values, list) else values[part]
    return values


def load(path: Path) -> DetectionConfig:
    config = load_config(path, schemas=SCHEMAS)
    assert isinstance(config, DetectionConfig)
    return config


def neck_of(path: Path) -> str:
    return path.name.split("_")[3]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_they_differ_from_our_own_in_detectron2s_settings_alone(path: Path) -> None:
    own = load(path.with_name(path.name.replace("_detectron2", "")))
    expected = [
        'data.augment.short_side_per: "batch" -> "image"',
        'data.crowds: "ignore" -> "drop"',
        "data.aspect_groups: 8 -> 2",
        "data.size_divisor: 32 -> 1",
        "model.rpn.round_anchors: true -> false",
        "model.rpn.min_size: 0.001 -> 0.0",
        "model.roi.sampling_ratio: 2 -> 0",
        'model.roi.fc_init: "torch" -> "caffe2_xavier"',
        'model.roi.drop_empty: "first" -> "last"',
        "model.mask.binary_targets: false -> true",
    ]
    if neck_of(path) == "fpn":
        expected.remove("data.size_divisor: 32 -> 1")
    assert sorted(differences(own, load(path))) == sorted(expected)


@pytest.mark.data
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_they_have_the_values_of_detectron2s_config(data_dir: Path, path: Path) -> None:
    neck = neck_of(path)
    text = (data_dir / f"detectron2_mini/mask_r50_{neck}.yaml").read_text(encoding="utf-8")
    theirs, config = yaml.safe_load(text), load(path)
    ours = config.model_dump(mode="json")
    for their_key, key in SAME.items():
        assert value_at(ours, key) == value_at(theirs, their_key), key
    for their_key, (their_value, key, value) in OTHER_VALUES.items():
        assert value_at(theirs, their_key) == their_value, their_key
        assert value_at(ours, key) == value, key
    for key, value in OF_TESTS.items():
        assert value_at(ours, key) == value, key
    resolution = value_at(theirs, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION")
    assert config.model.roi.resolution_with(config.model.neck.kind, "resnet50") == resolution
    sizes = value_at(theirs, "MODEL.ANCHOR_GENERATOR.SIZES")
    assert list(config.model.rpn.anchor_sizes) == [size for level in sizes for size in level]
    assert config.model.rpn.pre_nms_topk_test == {"c4": 6000, "fpn": 1000}[neck]
    if neck == "fpn":  # on c4 there are none
        assert config.model.mask.num_convs == value_at(theirs, "MODEL.ROI_MASK_HEAD.NUM_CONV")
