"""torchvision's detectors as its users run them, and here from a file: the same detections."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)

from detection.config import SCHEMAS, DetectionConfig
from detection.data.coco import ClassMap
from detection.inference.trained import TrainedDetector
from detection.models.build import build_detector
from detection.predict import Detector
from detection.weights import (
    from_torchvision_fasterrcnn,
    load_detector_weights,
    to_torchvision_fasterrcnn,
)
from engine.config import parse_config
from engine.errors import UserError
from tests.detection.models.detectors import make_images
from tests.detection.models.test_torchvision_parity import enliven, normalized
from tests.detection.weights.matched_detections import check_detections

NAMES = ("cat", "dog", "eel", "fox")
SIZE = (192, 256)  # multiples of 64, so that torchvision has no anchors on padding
KEYS = [  # what docs/WEIGHTS.md says for torchvision's files, and images of SIZE are not resized
    "model.backbone.kind=resnet50",
    "model.neck.kind=fpn",
    "model.rpn.pre_nms_topk_test=1000",
    # as many detections as there may be: which of two with equal scores is the last is not defined
    "model.rpn.post_nms_topk_test=50",
    "model.roi.max_detections=250",
    "model.roi.aligned=false",
    "model.mask.aligned=false",
    "loop.precision=fp32",
    "data.eval_short_side=192",
    "data.eval_max_side=256",
]


VERSION_2 = [  # what docs/WEIGHTS.md says for version 2
    "model.neck.norm=batch",
    "model.rpn.num_convs=2",
    "model.roi.num_convs=4",
    "model.roi.norm=batch",
    "model.roi.num_fcs=1",
    "model.mask.norm=batch",
]
BUILDERS = {
    ("detection", 1): fasterrcnn_resnet50_fpn,
    ("segmentation", 1): maskrcnn_resnet50_fpn,
    ("detection", 2): fasterrcnn_resnet50_fpn_v2,
    ("segmentation", 2): maskrcnn_resnet50_fpn_v2,
}


def enliven_norms(model: nn.Module) -> None:
    """Give norms of heads and pyramid statistics and weights that are not the first ones."""
    for name, norm in model.named_modules():
        if isinstance(norm, nn.BatchNorm2d) and not name.startswith("backbone.body"):
            for tensor in (norm.weight, norm.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.8, 1.2)
            for tensor in (norm.bias, norm.running_mean):
                assert tensor is not None
                nn.init.normal_(tensor, std=0.05)


@pytest.mark.extended
@pytest.mark.parametrize(("task", "version"), BUILDERS)
def test_detects_what_torchvision_detects(tmp_path: Path, task: str, version: int) -> None:
    images = make_images([SIZE] * 2, padded_to=SIZE)
    theirs = BUILDERS[task, version](
        weights=None,
        weights_backbone=None,
        num_classes=len(NAMES) + 1,
        min_size=min(SIZE),
        max_size=max(SIZE),
        rpn_post_nms_top_n_test=50,
        box_detections_per_img=250,
    )
    with torch.no_grad():
        enliven(theirs, normalized(images).tensors)
        if version == 2:
            enliven_norms(theirs)
        theirs.roi_heads.box_predictor.cls_score.weight *= 0.15  # scores away from 1
    path = tmp_path / "detector.pth"
    torch.save(theirs.state_dict(), path)

    keys = [f"task={task}", *KEYS, *(VERSION_2 if version == 2 else [])]
    config = parse_config({}, keys, schemas=SCHEMAS, source="test")
    assert isinstance(config, DetectionConfig)
    model = build_detector(config, len(NAMES)).eval()
    ids = tuple(range(1, len(NAMES) + 1))
    report = load_detector_weights(model, path, config=config, class_names=NAMES, category_ids=ids)
    assert report.notes == ("no class names in a torchvision file: outputs taken in order",)
    trained = TrainedDetector(config, ClassMap(NAMES, ids), model)
    pixels = [image.permute(1, 2, 0).numpy() for image in images.pixels]
    found = Detector(trained, device=torch.device("cpu")).predict(pixels)
    with torch.no_grad():
        expected = theirs([image / 255 for image in images.pixels])
    for ours, reference in zip(found, expected, strict=True):
        assert len(ours) == len(reference["scores"]) > 20
        # Random layers amplify rounding, which depends on the processor: with AVX-512 it is 1.1e-4
        # in boxes and 1.3e-4 in scores. An error of half a pixel would be 2e-3 of the side.
        rows = check_detections(
            ours,
            reference["boxes"],
            reference["scores"],
            reference["labels"] - 1,
            tolerance=2e-4,
        )
        if task == "segmentation":
            assert ours.masks is not None
            masks = np.stack(list(ours.masks))[rows.numpy()]
            assert (masks != (reference["masks"][:, 0] > 0.5).numpy()).mean() < 1e-4


@pytest.mark.parametrize(("task", "version"), BUILDERS)
def test_there_and_back_with_the_keys_that_fit(tmp_path: Path, task: str, version: int) -> None:
    theirs = BUILDERS[task, version](weights=None, weights_backbone=None, num_classes=5)
    state = theirs.state_dict()
    path = tmp_path / "detector.pth"
    torch.save(state, path)
    plain = ["model.backbone.kind=resnet50", "model.neck.kind=fpn", "model.roi.aligned=false"]
    version_2 = VERSION_2 if task == "segmentation" else VERSION_2[:-1]
    for keys, fits in ((plain, version == 1), ([*plain, *version_2], version == 2)):
        config = parse_config({}, [f"task={task}", *keys], schemas=SCHEMAS, source="test")
        assert isinstance(config, DetectionConfig)
        with torch.device("meta"):
            model = build_detector(config, 4)
        if fits:
            ours = from_torchvision_fasterrcnn(state)
            shapes = {name: tensor.shape for name, tensor in ours.items()}
            assert shapes == {
                name: tensor.shape
                for name, tensor in model.state_dict().items()
                if not name.endswith("num_batches_tracked")
            }
            theirs.load_state_dict(to_torchvision_fasterrcnn(ours), strict=True)
            continue
        with pytest.raises(UserError) as caught:
            load_detector_weights(
                model, path, config=config, class_names=NAMES, category_ids=(1, 2, 3, 4)
            )
        needed = str(caught.value).partition("it fits with ")[2].split(" ")
        if version == 2:
            assert sorted(needed) == sorted(version_2)
        else:
            assert "model.rpn.num_convs=1" in needed
            assert "model.roi.num_convs=0" in needed
