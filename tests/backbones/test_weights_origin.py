import pytest

from backbones.weights_origin import (
    DETECTRON2_DETECTOR,
    MMDETECTION,
    OURS,
    TORCHVISION_DETECTOR,
    origin_of,
)

LOGITS = "roi_heads.box_predictor.cls_score.weight"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "a file without tensors"),
        (["w"], "an unknown network"),
        (
            ["backbone.conv1.weight", "box_predictor.class_logits.bias"],
            OURS,
        ),
        (["backbone.body.conv1.weight", "rpn.head.conv.weight", LOGITS], TORCHVISION_DETECTOR),
        (["backbone.body.0.0.weight", LOGITS], "torchvision's Faster R-CNN on a MobileNet"),
        ([LOGITS, "roi_heads.box_head.0.0.weight"], TORCHVISION_DETECTOR),  # version 2
        ([LOGITS, "roi_heads.keypoint_head.0.weight"], "torchvision's Keypoint R-CNN"),
        (["head.classification_head.conv.0.0.weight"], "torchvision's RetinaNet"),
        (
            ["head.classification_head.a", "head.regression_head.bbox_ctrness.weight"],
            "torchvision's FCOS",
        ),
        (["backbone.bottom_up.stem.conv1.weight", LOGITS], DETECTRON2_DETECTOR),
        (["backbone.res2.0.conv1.weight", LOGITS], DETECTRON2_DETECTOR),
        (["proposal_generator.rpn_head.conv.weight", LOGITS], DETECTRON2_DETECTOR),
        (["backbone.conv1.weight", "roi_head.bbox_head.fc_cls.weight"], MMDETECTION),
        (["backbone.conv1.weight", "bbox_head.fc_cls.weight"], MMDETECTION),
        (["backbone.0.body.conv1.weight", "transformer.encoder.layers.0.norm1.bias"], "a DETR"),
        (["0.conv.weight", "22.cv2.0.0.conv.weight"], "an ultralytics (YOLO) model"),
        (["model.0.conv.weight"], "an ultralytics (YOLO) model"),
        (["conv1.weight", "layer1.0.conv1.weight", "fc.weight"], "a classifier"),
        (["conv1.weight", "layer1.0.conv1.weight"], "a residual network without a head"),
        (["blocks.0.attn.qkv.weight", "head.weight"], "a transformer"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_origin_is_found_by_tensor_names(names: list[str], expected: str) -> None:
    assert origin_of(names) == expected
    assert origin_of(reversed(names)) == expected
