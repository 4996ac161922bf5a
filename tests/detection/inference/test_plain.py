"""Without an addition every way of predicting gives the plain network's detections to the bit."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from detection.data.coco import ClassMap
from detection.inference.pipeline import InferencePipeline
from detection.inference.trained import TrainedDetector
from detection.predict import Detector
from detection.structures import Detections
from tests.detection.inference.networks import (
    NECKS,
    as_general,
    make_batches,
    make_config,
    make_network,
)
from tests.detection.tasks.tiny import tiny_task
from tests.reference.images import smooth_image

TRIVIAL: dict[str, dict[str, Any]] = {
    "defaults": {},
    "one scale": {"scales": [64]},
    "one scale, union": {"scales": [64], "merge": "union"},
}
"""`evaluation` sections without an addition."""


def assert_equal(found: Sequence[Detections], expected: Sequence[Detections]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert len(other) > 3
        for name in ("boxes", "scores", "labels"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert one.masks == other.masks


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("neck", "task", "roi"),
    [
        *product(NECKS, ["detection", "segmentation"], [{}]),
        *product(NECKS, ["detection"], [{"stages": 3, "global_context": True}]),
        *product(NECKS, ["detection"], [{"pool": "roi_pool"}]),
    ],
    ids=str,
)
def test_the_way_of_the_additions_is_that_of_the_network(
    neck: str, task: str, roi: dict[str, Any]
) -> None:
    network = make_network(make_config(neck, task=task, roi=roi))
    for evaluation in TRIVIAL.values():
        config = make_config(neck, task=task, roi=roi, evaluation=evaluation)
        (images,) = make_batches(config)
        expected = network.predict(images)
        pipeline = InferencePipeline([network], config)
        assert_equal(pipeline.predict([images]), expected)
        assert_equal(as_general(pipeline).predict([images]), expected)


@pytest.mark.parametrize(
    "evaluation",
    [
        {"refine_boxes": True},
        {"scales": [48, 64]},
        {"scales": [48, 64], "merge": "union"},
        {"merge": "union", "mirror": True},
        {"vote_iou_thresh": 0.5},
    ],
    ids=str,
)
def test_each_addition_takes_the_other_way_and_changes_something(
    evaluation: dict[str, Any],
) -> None:
    config = make_config(evaluation=evaluation)
    network, batches = make_network(config), make_batches(config)
    pipeline = InferencePipeline([network], config)
    assert not pipeline._is_plain
    found, plain = pipeline.predict(batches), network.predict(batches[0])
    assert any(
        len(one) != len(other) or not torch.equal(one.boxes, other.boxes)
        for one, other in zip(found, plain, strict=True)
    )


def test_an_ensemble_of_one_network_twice_finds_what_it_does() -> None:
    """Every proposal comes twice, and NMS drops the second."""
    config = make_config()
    network = make_network(config)
    (images,) = make_batches(config)
    found = InferencePipeline([network, network], config).predict([images])
    for one, other in zip(found, network.predict(images), strict=True):
        assert len(other) > 3
        assert one.labels.tolist() == other.labels.tolist()
        # not to the bit: sums of twice as many RoIs may be in another order
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("evaluation", TRIVIAL.values(), ids=TRIVIAL)
def test_a_detector_predicts_what_its_network_does(evaluation: dict[str, Any]) -> None:
    config = make_config(evaluation=evaluation)
    classes = ClassMap(("a", "b", "c"), (1, 2, 3))
    detector = Detector(
        TrainedDetector(config, classes, make_network(config)), device=torch.device("cpu")
    )
    arrays = [smooth_image(60, 80), smooth_image(60, 77)]
    first = detector.predict(arrays)
    plain = Detector(
        TrainedDetector(make_config(), classes, make_network(config)), device=torch.device("cpu")
    )
    assert_equal(first, plain.predict(arrays))


@pytest.mark.extended
@pytest.mark.parametrize("kind", ["detection", "segmentation"])
def test_a_task_predicts_what_its_network_does(tmp_path: Path, kind: str) -> None:
    evaluation = {"scales": [96]}
    task, _ = tiny_task(tmp_path, "fpn", task=kind, evaluation=evaluation)
    data = task.val_data()
    batch = data.collate([data.load(index, 0) for index in range(4)])
    assert batch.other_scales == ()
    task.eval()
    assert_equal(task.predict(batch), task.model.predict(batch.images))
