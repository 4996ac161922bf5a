"""Origin of a weights file (torchvision, detectron2, mmdetection, ...), found by tensor names.

The origin makes error messages helpful when a user loads the wrong file. Detectors of several
projects share tensor names with torchvision's, so the most specific names come first.
"""

import re
from collections.abc import Iterable

OURS, TORCHVISION_DETECTOR = "a resdet detector", "torchvision's Faster or Mask R-CNN with FPN"
DETECTRON2_DETECTOR = "a detectron2 detector"
MMDETECTION = "an mmdetection detector"
CLASSIFIER = "a classifier"
UNKNOWN, EMPTY = "an unknown network", "a file without tensors"

# Pairs of (pattern that matches the beginning of a tensor name, origin of a file with such a name).
_ORIGINS: tuple[tuple[str, str], ...] = (
    (r"(box_predictor\.class_logits|rpn_head\.objectness)\.", OURS),
    (r"backbone\.(bottom_up|stem|res[2-5])\.|proposal_generator\.", DETECTRON2_DETECTOR),
    (r"roi_heads\.(res5\.|box_predictor\.\d+\.)", DETECTRON2_DETECTOR),
    (r"stem\.conv1\.", "a backbone of detectron2"),
    (r"bbox_head\.|rpn_head\.rpn_|roi_head\.", MMDETECTION),
    (r"(\w+\.)?transformer\.(en|de)coder\.|class_embed\.|query_|class_labels_class", "a DETR"),
    (r"(model\.)*\d+\.(conv|cv\d|m|dfl|bn)\.", "an ultralytics (YOLO) model"),
    (r"head\.classification_head\.module_list\.", "torchvision's SSD"),
    (r"head\.regression_head\.bbox_ctrness\.", "torchvision's FCOS"),
    (r"head\.classification_head\.", "torchvision's RetinaNet"),
    (r"roi_heads\.keypoint_", "torchvision's Keypoint R-CNN"),
    (r"backbone\.body\.(\d|features)", "torchvision's Faster R-CNN on a MobileNet"),
    (r"roi_heads\.box_predictor\.cls_score\.", TORCHVISION_DETECTOR),
    (
        r"(\w+\.)?(blocks\.\d+\.attn|encoder\.layer|patch_embed|layers\.\d+\.blocks)",
        "a transformer",
    ),
    (r"conv1_w$", "a Caffe2 (MSRA) classifier"),
    (r"(model\.|backbone\.)?(fc|linear|classifier|head)\.", CLASSIFIER),
    (r"(backbone\.)?(conv1|layer1)\.", "a residual network without a head"),
    (r"(backbone\.)?conv1_1\.", "a VGG-16 without a head"),
)


def origin_of(names: Iterable[str]) -> str:
    """Return the kind of network that has tensors of these names: "a detectron2 detector"."""
    names = list(names)
    if not names:
        return EMPTY
    for pattern, origin in _ORIGINS:
        if any(re.match(pattern, name) for name in names):
            return origin
    return UNKNOWN
