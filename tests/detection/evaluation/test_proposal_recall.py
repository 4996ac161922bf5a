"""Recall of proposals: by hand, and against a loop over objects."""

from pathlib import Path

import numpy as np
import pytest

from detection.evaluation.ground_truth import read_ground_truth
from detection.evaluation.matching import AREA_RANGES
from detection.evaluation.proposal_recall import proposal_recall
from tests.detection.evaluation.coco_documents import make_document, write
from tests.reference.boxes import iou


def test_recall_is_the_share_of_objects_overlapped(tmp_path: Path) -> None:
    document = make_document()
    truth = read_ground_truth(write(tmp_path / "truth.json", document))
    rng = np.random.default_rng(0)
    proposals = [np.zeros((0, 4))] + [
        np.concatenate(
            [corners := rng.uniform(0, 200, (n, 2)), corners + rng.uniform(20, 150, (n, 2))], 1
        )
        for n in (1, 40, 40, 40, 60, 60, 60, 60)
    ]
    got = proposal_recall(proposals, truth, limits=(20, 1000))
    for limit in (20, 1000):
        for size, (low, high) in AREA_RANGES.items():
            best = [
                max((iou((x, y, x + w, y + h), box) for box in own), default=0.0)
                for each in document["annotations"]
                if not each["iscrowd"] and low <= each["area"] <= high
                for x, y, w, h in [each["bbox"]]
                for own in [proposals[each["image_id"]][:limit]]
            ]
            numbers = got[str(limit)][size]
            assert numbers["objects"] == len(best)
            if best:
                assert numbers["recall50"] == pytest.approx(np.mean(np.array(best) >= 0.5))
                levels = np.linspace(0.5, 0.95, 10)
                assert numbers["recall"] == pytest.approx(
                    (np.array(best)[:, None] >= levels).mean()
                )
    assert 0 < got["20"]["all"]["recall50"] < got["1000"]["all"]["recall50"] < 1


def test_the_objects_themselves_have_full_recall_and_none_has_null(tmp_path: Path) -> None:
    truth = read_ground_truth(write(tmp_path / "truth.json", make_document()))
    table = truth.table
    boxes = np.concatenate([table.xywh[:, :2], table.xywh[:, :2] + table.xywh[:, 2:]], axis=1)
    own = [boxes[table.image_ids == image_id] for image_id in truth.image_ids.tolist()]
    assert proposal_recall(own, truth)["100"]["all"] == {"objects": 36, "recall50": 1, "recall": 1}
    assert proposal_recall(own[:1], truth.within({0}))["300"]["small"]["recall"] is None
