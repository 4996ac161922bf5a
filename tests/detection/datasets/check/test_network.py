"""Small objects, and how well anchors fit."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from detection.datasets.box_outliers import NEAR_IOU, near_pairs
from detection.datasets.check.network import best_iou, suggest_anchors
from detection.datasets.check.run import Inputs, check_columns, read_inputs
from detection.models.anchors import AnchorGenerator
from detection.ops.boxes import box_iou
from tests.detection.datasets.check.checking import NETWORK, QUIET, write


def test_the_best_anchor_is_that_of_the_network() -> None:
    sides = np.random.default_rng(0).uniform(5, 600, size=(200, 2))
    sizes, ratios = (32.0, 64.0, 200.0), (0.5, 1.0, 2.0)
    anchors = AnchorGenerator([sizes], ratios=ratios, strides=[16]).cell_anchors[0]
    boxes = torch.from_numpy(np.concatenate([-sides / 2, sides / 2], axis=1)).float()
    expected = box_iou(boxes, anchors).amax(dim=1)
    found = torch.from_numpy(best_iou(sides, sizes, ratios)).float()
    torch.testing.assert_close(found, expected)


def test_suggested_anchors_fit() -> None:
    rng = np.random.default_rng(0)
    sizes = np.concatenate([[20.0] * 50, [90.0] * 50, [300.0] * 50])
    ratios = np.exp(rng.normal(0, 0.1, size=150))
    sides = np.column_stack([sizes / np.sqrt(ratios), sizes * np.sqrt(ratios)])
    found, shapes = suggest_anchors(sides, 3)
    assert found == [20, 90, 300]
    assert (best_iou(sides, found, shapes) > 0.8).all()
    assert suggest_anchors(np.array([[10.0, 40.0]]), 2) == ([20, 20], [4.0, 4.0, 4.0])


def test_objects_are_measured_on_the_resized_image(tmp_path: Path) -> None:
    sides = [3, 5, 40, 400]
    document = {
        "images": [{"id": 1, "file_name": "a", "width": 1000, "height": 500}],
        "annotations": [
            {"id": at, "image_id": 1, "category_id": 1, "bbox": [5 + at, 5, side, side]}
            for at, side in enumerate(sides)
        ],
        "categories": [{"id": 1, "name": "ant"}],
    }
    columns, context = read_inputs(
        Inputs(write(tmp_path / "a.json", document)), network=NETWORK, log=QUIET
    )
    # the short side of 500 becomes 1000: 6, 10, 80 and 800 pixels
    network = dataclasses.replace(NETWORK, short_side=1000, max_side=2000, stride=4)
    found = check_columns(columns, dataclasses.replace(context, network=network))
    by_code = {finding.code: finding for finding in found.findings}
    assert by_code["object-small"].rows.tolist() == [0]
    assert "under 8 pixels" in by_code["object-small"].detail
    # anchors from 32 to 512 pixels: the first two and the last have an IoU under 0.5
    assert by_code["anchors-miss-many"].count == 3
    assert json.dumps(found.as_json())
    network = dataclasses.replace(network, stride=16)
    found = check_columns(columns, dataclasses.replace(context, network=network))
    small = next(each for each in found.findings if each.code == "object-small")
    assert small.rows.tolist() == [0, 1]
    assert "one cell of 16 pixels" in small.detail


def test_near_pairs_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    near = rng.uniform(0, 100, size=(60, 2)).repeat(4, axis=0) + rng.normal(0, 0.4, size=(240, 2))
    boxes = np.concatenate([near, near + rng.uniform(24, 26, size=(240, 2))], axis=1)
    boxes = boxes.astype(np.float32)
    groups = rng.integers(0, 2, size=240)
    later, earlier, _ = near_pairs(groups, boxes)
    iou = box_iou(torch.from_numpy(boxes), torch.from_numpy(boxes)).numpy()
    expected = {
        (i, j)
        for i in range(240)
        for j in range(i)
        if groups[i] == groups[j] and iou[i, j] >= NEAR_IOU
    }
    assert len(expected) > 20
    assert set(zip(later.tolist(), earlier.tolist(), strict=True)) == expected
    assert [len(each) for each in near_pairs(groups[:0], boxes[:0])] == [0, 0, 0]
