import csv
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from backbones.classification.metrics import ClassificationEvaluator, calibration_error
from backbones.classification.structures import ClassificationBatch
from backbones.classification.visualize import draw_confusion
from engine.errors import UserError
from tests.reference import classification as reference


def labelled(labels: Sequence[int], image_ids: Sequence[int] | None = None) -> ClassificationBatch:
    count = len(labels)
    return ClassificationBatch(
        pixels=torch.zeros(count, 3, 1, 1, dtype=torch.uint8),
        labels=torch.tensor(labels),
        image_ids=torch.arange(count) if image_ids is None else torch.tensor(image_ids),
        seeds=torch.zeros(count, dtype=torch.int64),
    )


def class_names(count: int) -> list[str]:
    return [f"class {k}" for k in range(count)]


def evaluated(labels: Sequence[int], rows: Tensor) -> ClassificationEvaluator:
    evaluator = ClassificationEvaluator(class_names(rows.shape[1]))
    evaluator.update(labelled(labels), list(rows))
    evaluator.compute([evaluator.state()])
    return evaluator


def printed(evaluator: ClassificationEvaluator) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(evaluator.table())
    return capture.get()


@pytest.mark.parametrize("num_classes", [1, 3, 5, 12])
def test_metrics_equal_the_reference(num_classes: int) -> None:
    rows = (2 * torch.randn(60, num_classes)).softmax(dim=1)
    labels = torch.randint(num_classes, (60,)).tolist()
    evaluator = ClassificationEvaluator(class_names(num_classes))
    evaluator.update(labelled(labels[:41], range(41)), list(rows[:41]))
    evaluator.update(labelled(labels[41:], range(41, 60)), list(rows[41:]))
    metrics = evaluator.compute([evaluator.state()])

    expected = reference.score(labels, rows.tolist())
    confidences = rows.amax(dim=1).tolist()
    predicted = [reference.best_labels(row, 1)[0] for row in rows.tolist()]
    correct = [guess == label for guess, label in zip(predicted, labels, strict=True)]
    expected |= {
        "top1_error": 1 - expected["top1"],
        "top5_error": 1 - expected["top5"],
        "calibration_error": reference.calibration_error(confidences, correct, 15),
        "num_images": 60,
    }
    for k in set(labels):
        own = [right for right, label in zip(correct, labels, strict=True) if label == k]
        expected[f"top1/class {k}"] = sum(own) / len(own)
    assert metrics.keys() == expected.keys()
    assert metrics == pytest.approx(expected, abs=1e-6)


def test_top5_of_fewer_than_five_classes_is_one() -> None:
    rows = torch.tensor([[0.2, 0.3, 0.5]])
    metrics = evaluated([0], rows).compute([evaluated([0], rows).state()])
    assert (metrics["top1"], metrics["top5"]) == (0, 1)


def test_ties_are_sorted_by_label() -> None:
    evaluator = ClassificationEvaluator(class_names(8))
    evaluator.update(labelled(range(8)), [torch.full((8,), 1 / 8)] * 8)
    metrics = evaluator.compute([evaluator.state()])
    assert (metrics["top1"], metrics["top5"]) == (1 / 8, 5 / 8)
    assert metrics["top1/class 0"] == 1


def test_class_without_images_has_no_metric() -> None:
    evaluator = evaluated([0, 2], torch.eye(3)[[0, 1]])
    metrics = evaluator.compute([evaluator.state()])
    assert {k for k in metrics if "/" in k} == {"top1/class 0", "top1/class 2"}
    assert "class 1" in printed(evaluator)


def test_metrics_are_identical_for_any_number_of_processes() -> None:
    rows = torch.randn(50, 7).softmax(dim=1)
    labels = torch.randint(7, (50,))
    results = []
    for size in (1, 2, 3):
        states = []
        for rank in range(size):
            part = ClassificationEvaluator(class_names(7))
            mine = list(range(rank, 50, size))
            for ids in mine[10:], mine[:10]:
                part.update(labelled(labels[ids].tolist(), ids), list(rows[ids]))
            states.append(pickle.loads(pickle.dumps(part.state())))
        evaluator = ClassificationEvaluator(class_names(7))
        results.append(evaluator.compute(states))
    assert results[0] == results[1] == results[2]


def test_state_does_not_hold_probabilities() -> None:
    evaluator = ClassificationEvaluator(class_names(1000))
    evaluator.update(labelled([3] * 20), list(torch.rand(20, 1000)))
    assert len(pickle.dumps(evaluator.state())) < 20 * 50 + 1000


def test_image_counted_twice_fails_an_assertion() -> None:
    evaluator = ClassificationEvaluator(class_names(2))
    evaluator.update(labelled([0, 1], [5, 5]), list(torch.eye(2)))
    with pytest.raises(AssertionError, match="1 images occur more than once"):
        evaluator.compute([evaluator.state()])


def test_no_images_are_an_error() -> None:
    evaluator = ClassificationEvaluator(class_names(2))
    with pytest.raises(UserError, match="expected at least one validation image, got none"):
        evaluator.compute([evaluator.state(), []])


def test_zero_and_nan_probabilities_give_finite_metrics() -> None:
    rows = torch.tensor([[1.0, 0.0], [torch.nan, torch.nan]])
    evaluator = evaluated([1, 1], rows)
    metrics = evaluator.compute([evaluator.state()])
    assert metrics["top1"] == 0
    assert np.isfinite(list(metrics.values())).all()


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_calibration_error_equals_the_reference(num_bins: int) -> None:
    generator = np.random.default_rng(0)
    confidences = generator.uniform(0.05, 1, 200).astype(np.float32)
    confidences[:4] = (0.2, 0.5, 1.0, 0.1)  # edges of bins
    correct = generator.uniform(size=200) < confidences**2
    found = calibration_error(confidences, correct, num_bins=num_bins)
    expected = reference.calibration_error(confidences.tolist(), correct.tolist(), num_bins)
    assert found == pytest.approx(expected, abs=1e-12)


def test_a_calibrated_network_has_no_calibration_error() -> None:
    confidences, correct = np.full(8, 0.75, np.float32), np.arange(8) < 6
    assert calibration_error(confidences, correct, num_bins=15) == 0


def test_written_files_hold_metrics_and_confusions(tmp_path: Path) -> None:
    names = ["cat, tabby", "ñandú", "dog"]
    evaluator = ClassificationEvaluator(names)
    evaluator.update(labelled([0, 0, 1, 2]), list(torch.eye(3)[[0, 2, 1, 0]]))
    metrics = evaluator.compute([evaluator.state()])
    evaluator.write(tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == metrics
    with (tmp_path / "confusion.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file))
    assert table == [
        ["true / predicted", *names],
        ["cat, tabby", "1", "0", "1"],
        ["ñandú", "0", "1", "0"],
        ["dog", "1", "0", "0"],
    ]
    drawing = cv2.imread(str(tmp_path / "confusion.png"))
    assert drawing is not None
    expected = draw_confusion(np.array([[1, 0, 1], [0, 1, 0], [1, 0, 0]]), names)
    np.testing.assert_array_equal(drawing[..., ::-1], expected)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"metrics.json", "confusion.csv", "confusion.png"}


def test_confusions_of_many_classes_are_not_drawn(tmp_path: Path) -> None:
    evaluated([0], torch.rand(1, 51)).write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "confusion.csv"}


def test_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.json: cannot be written: No such file"):
        evaluated([0], torch.rand(1, 2)).write(tmp_path / "missing")


def test_table_lists_classes_and_the_most_frequent_confusions_first() -> None:
    evaluator = ClassificationEvaluator(["zebra", "[bold]cat", "dog"])
    evaluator.update(labelled([0, 0, 0, 1, 2]), list(torch.eye(3)[[1, 1, 2, 1, 2]]))
    evaluator.compute([evaluator.state()])
    text = printed(evaluator)
    accuracies, confusions = text.split("most frequent confusions")
    assert accuracies.index("[bold]cat") < accuracies.index("dog") < accuracies.index("zebra")
    assert "5 images" in text
    assert "40.00" in text
    lines = [line.split() for line in confusions.splitlines() if "zebra" in line]
    assert [(line[3], line[5]) for line in lines] == [("[bold]cat", "2"), ("dog", "1")]


def test_table_lists_at_most_a_hundred_classes_and_ten_confusions() -> None:
    wrong = [(k + 1) % 101 for k in range(101)]
    text = printed(evaluated(range(101), torch.eye(101)[wrong]))
    assert "by class" not in text
    assert text.count("class ") == 2 * 10
    assert "confusions" not in printed(evaluated(range(4), torch.eye(4)))
