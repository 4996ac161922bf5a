"""Localization metrics: agreement with the reference, merging over processes, output files."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from detection.localization.evaluation import Localization, LocalizationEvaluator
from detection.structures import DetectionBatch, Detections, ImageBatch, Targets
from engine.errors import UserError
from tests.reference import localization as reference

NAMES = ("n01", "n02", "n03")
MEAN_BOX = (0.25, 0.25, 0.75, 0.75)


def evaluator() -> LocalizationEvaluator:
    return LocalizationEvaluator(
        NAMES,
        descriptions=("tench", "crane", "[ray]"),
        mean_box=MEAN_BOX,
        file_name=lambda i: f"{i}.jpg",
    )


def random_boxes(*shape: int) -> torch.Tensor:
    near, far = torch.rand(*shape, 2) * 0.4, 0.5 + torch.rand(*shape, 2) * 0.5
    return torch.cat([near, far], dim=-1) * 100


def random_batch(count: int, first: int = 0) -> tuple[DetectionBatch, list[Localization]]:
    """Images of 100 x 100, resized to 50 x 50, with one or two boxes; three predictions each."""
    valid = torch.rand(count, 2) < 0.5
    valid[:, 0] = True
    boxes = random_boxes(count, 2) / 2 * valid[..., None]
    labels = torch.randint(3, (count, 1)).expand(-1, 2) * valid
    images = ImageBatch(
        pixels=torch.zeros(count, 3, 50, 50, dtype=torch.uint8),
        sizes=torch.full((count, 2), 50),
        original_sizes=torch.full((count, 2), 100),
        image_ids=torch.arange(first, first + count),
        seeds=torch.arange(count),
    )
    targets = Targets(boxes, labels, valid, torch.zeros_like(valid))
    found = [
        Localization(
            given=Detections(random_boxes(1), torch.rand(1), labels[row, :1]),
            predicted=Detections(random_boxes(2), torch.rand(2), torch.randperm(3)[:2]),
        )
        for row in range(count)
    ]
    return DetectionBatch(images, targets), found


def test_errors_equal_the_reference() -> None:
    batch, found = random_batch(60)
    scorer = evaluator()
    scorer.update(batch, found)
    metrics = scorer.compute([scorer.state()])
    labels = batch.targets.labels[:, 0].tolist()
    boxes = [(batch.targets.boxes[row][batch.targets.valid[row]] * 2).tolist() for row in range(60)]
    given = [
        [(label, each.given.boxes[0].tolist())] for label, each in zip(labels, found, strict=True)
    ]
    predicted = [
        list(zip(each.predicted.labels.tolist(), each.predicted.boxes.tolist(), strict=True))
        for each in found
    ]
    mean = [[(label, (25.0, 25.0, 75.0, 75.0))] for label in labels]
    expected = {
        "localization_error": reference.error(labels, boxes, given),
        "top5_localization_error": reference.error(labels, boxes, predicted),
        "top1_localization_error": reference.error(labels, boxes, [each[:1] for each in predicted]),
        "baseline_localization_error": reference.error(labels, boxes, mean),
    }
    for name, value in expected.items():
        assert 0 < value < 1, name
        assert metrics[name] == pytest.approx(value), name
    assert metrics["localization_accuracy"] == pytest.approx(1 - metrics["localization_error"])
    assert metrics["num_images"] == 60


def test_iou_of_exactly_one_half_is_correct() -> None:
    batch, _ = random_batch(1)
    boxes = torch.tensor([[[0.0, 0, 50, 50], [0, 0, 0, 0]]])
    targets = Targets(boxes, batch.targets.labels * 0, boxes[..., 2] > 0, boxes[..., 2] < 0)
    half = Detections(torch.tensor([[0.0, 0, 50, 100]]), torch.ones(1), torch.zeros(1).long())
    scorer = evaluator()
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())
    scorer.update(DetectionBatch(batch.images, targets), [Localization(half, nothing)])
    metrics = scorer.compute([scorer.state()])
    assert metrics["localization_error"] == 0
    assert metrics["mean_iou"] == pytest.approx(0.5)
    assert "top5_localization_error" not in metrics


def test_metrics_do_not_depend_on_the_split_over_processes(tmp_path: Path) -> None:
    parts = [random_batch(5), random_batch(7, first=5)]
    states = []
    for batch, found in parts:
        one = evaluator()
        one.update(batch, found)
        states.append(one.state())
    first, second = evaluator(), evaluator()
    assert first.compute(states) == second.compute(states[::-1])
    first.write(tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["num_images"] == 12
    rows = json.loads((tmp_path / "localizations.json").read_text())
    assert [row["image"] for row in rows] == [f"{number}.jpg" for number in range(12)]
    assert len(rows[0]["predicted"]) == 2
    assert rows[0]["given"]["class"] in NAMES


def test_table_shows_the_error_and_the_baseline() -> None:
    scorer = evaluator()
    scorer.update(*random_batch(9))
    scorer.compute([scorer.state()])
    console = Console(width=120)
    with console.capture() as shown:
        console.print(scorer.table())
    assert "error, class given" in shown.get()
    assert "error of the mean box" in shown.get()
    assert "[ray]" in shown.get()


def test_no_images_is_a_user_error() -> None:
    with pytest.raises(UserError, match="expected at least one validation image"):
        evaluator().compute([[]])
