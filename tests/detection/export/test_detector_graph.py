"""The graphs of detectors, run by torch: what a file holds, without the formats."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from detection.export.detector import ExportedDetector
from detection.export.detector_graph import paste_masks
from detection.export.model import Arrays
from detection.ops.masks import paste_mask
from detection.ops.rle import decode
from engine.errors import UserError
from tests.detection.export.models import make_images, make_trained

KINDS: dict[str, dict[str, Any]] = {
    "fpn": {},
    "c4": {"neck": "c4"},
    "c4, roi_pool": {"neck": "c4", "roi": {"pool": "roi_pool"}},
    "adaptive RoIAlign": {"roi": {"sampling_ratio": 0, "aligned": False}},
    "cascade": {"roi": {"stages": 3, "class_agnostic_boxes": True}},
    "global context": {"neck": "c4", "roi": {"global_context": True}},
    "masks": {"task": "segmentation"},
    "masks on c4": {"neck": "c4", "task": "segmentation"},
}


def run_graph(model: ExportedDetector, inputs: Arrays) -> Arrays:
    program = model.program()
    tensors = [torch.from_numpy(np.ascontiguousarray(each)) for each in inputs.values()]
    with torch.no_grad():
        outputs = program.graph(*tensors)
    return {name: each.numpy() for name, each in zip(program.outputs, outputs, strict=True)}


@pytest.mark.parametrize("raw", [False, True], ids=["whole", "raw"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_agrees_with_the_detector(kind: dict[str, Any], raw: bool) -> None:
    model = ExportedDetector(make_trained(**kind), raw=raw)
    for image in make_images():
        images = np.stack([image, image[::-1], image[:, ::-1]])
        found = model.differences(images, run_graph(model, model.inputs(images)))
        assert found.count > 0
        # a raw file has no masks
        values = dict(found.values) | ({"masks": 0.0} if raw else {})
        assert max(values.values()) < 1e-3, found


def test_masks_as_cells_are_those_that_are_pasted() -> None:
    trained = make_trained(task="segmentation")
    image = make_images()[0][None]
    for masks in ("pasted", "cells"):
        model = ExportedDetector(copy.deepcopy(trained), masks=masks)
        outputs = run_graph(model, {"images": image})
        shape = (60, 80) if masks == "pasted" else (28, 28)
        assert outputs["masks"].shape[2:] == shape
        assert model.differences(image, outputs).are_allowed()


def test_rows_beyond_an_images_detections_are_marked() -> None:
    images = np.stack([make_images()[0], np.zeros((60, 80, 3), np.uint8)])
    highest = [
        float(each.scores[0]) for each in ExportedDetector(make_trained()).detector.predict(images)
    ]
    # a threshold between the two, so that one image has no detections
    model = ExportedDetector(make_trained(roi={"score_thresh": sum(highest) / 2}))
    outputs = run_graph(model, {"images": images})
    counts = [len(found) for found in model.detector.predict(images)]
    assert min(counts) == 0 < max(counts)
    for row, count in enumerate(counts):
        assert (outputs["labels"][row, :count] >= 0).all()
        assert (outputs["labels"][row, count:] == -1).all()
        assert not outputs["scores"][row, count:].any()
        assert not outputs["boxes"][row, count:].any()
    assert outputs["labels"].shape[1] == max(counts)


@pytest.mark.parametrize("aligned", [False, True])
def test_pasted_masks_are_paste_masks(aligned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand(2, 6, 14, 14, generator=generator)
    corners = torch.rand(2, 6, 2, 2, generator=generator) * torch.tensor([50.0, 40.0])
    boxes = torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=2)
    boxes[0, 0] = torch.tensor([10.0, 20, 10, 20])  # no area
    boxes[0, 1] = torch.tensor([0.0, 0, 50, 40])  # the whole image
    found = paste_masks(cells, boxes, (40, 50), aligned=aligned)
    for image in range(2):
        for row in range(6):
            code = paste_mask(
                cells[image, row].numpy(), boxes[image, row].numpy(), (40, 50), aligned=aligned
            )
            np.testing.assert_array_equal(found[image, row].numpy(), decode(code, (40, 50)))


ADDITIONS: dict[str, dict[str, Any]] = {
    "scales": {"scales": [48, 64]},  # one scale is allowed
    "refine_boxes": {"refine_boxes": True},
    "vote_iou_thresh": {"vote_iou_thresh": 0.5},
    "mirror": {"mirror": True, "merge": "union"},
}


def test_one_scale_at_test_time_is_the_size_of_images() -> None:
    model = ExportedDetector(make_trained(evaluation={"scales": [48]}))
    image = make_images()[0][None]
    assert model.differences(image, run_graph(model, {"images": image})).are_allowed()
    assert model.inputs(image)["images"] is image


@pytest.mark.parametrize("scores", [np.nan, 0.5])
def test_wrong_outputs_are_not_allowed(scores: float) -> None:
    model = ExportedDetector(make_trained())
    image = make_images()[0][None]
    outputs = dict(run_graph(model, {"images": image}))
    outputs["scores"] = outputs["scores"] * np.float32(scores)
    assert not model.differences(image, outputs).are_allowed()


@pytest.mark.parametrize("key", ADDITIONS)
def test_additions_at_test_time_are_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"evaluation\.{key}: .*add evaluation\.{key}="):
        ExportedDetector(make_trained(evaluation=ADDITIONS[key]))
