"""First stage of localization: losses, gradients, predictions, a run and its files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detection.commands.tasks import build_task, load_task
from detection.localization.config import LocalizationConfig
from detection.localization.task import LocalizationTask
from detection.structures import DetectionBatch
from engine.errors import UserError
from engine.evaluate import evaluate
from engine.trainer import fit
from tests.backbones.classification.tiny import tiny_config as classifier_config
from tests.backbones.classification.tiny import write_folder
from tests.detection.localization.tiny_localizer import (
    CLASSES,
    tiny_config,
    train_a_dozen_steps,
    write_tiny_imagenet,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_imagenet(tmp_path_factory.mktemp("patches"))


def task_and_batch(config: LocalizationConfig) -> tuple[LocalizationTask, DetectionBatch]:
    task = build_task(config)
    assert isinstance(task, LocalizationTask)
    data = task.train_data()
    return task, data.collate([data.load(index, 100 + index) for index in range(len(data))])


@pytest.mark.extended
@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
@pytest.mark.parametrize("per_class", [True, False], ids=["per class", "agnostic"])
def test_training_lowers_the_loss(root: Path, per_class: bool, box_loss: str) -> None:
    config = tiny_config(root)
    model = config.model.model_copy(update={"per_class": per_class, "box_loss": box_loss})
    task, batch = task_and_batch(config.model_copy(update={"model": model}))
    assert len(batch) == 8
    names, ratio = train_a_dozen_steps(task, config, batch)
    assert names == {"localization_class", "localization_box"}
    assert ratio < 0.6


def test_only_stages_in_use_are_trained(root: Path) -> None:
    task, batch = task_and_batch(tiny_config(root))
    torch.stack(list(task.losses(batch).values())).sum().backward()
    parameters = dict(task.model.named_parameters())
    with_gradient = {name for name, value in parameters.items() if value.grad is not None}
    assert with_gradient == {name for name, value in parameters.items() if value.requires_grad}
    unused = {
        name for name in parameters if name.startswith(("backbone.layer3", "backbone.layer4"))
    }
    assert unused == set(parameters) - with_gradient


def test_only_outputs_of_the_annotated_class_are_trained(root: Path) -> None:
    task, batch = task_and_batch(tiny_config(root))
    red = replace(batch.targets, labels=torch.ones_like(batch.targets.labels))
    torch.stack(list(task.losses(replace(batch, targets=red)).values())).sum().backward()
    for layer in (task.model.head.objectness, task.model.head.deltas):
        assert layer.weight.grad is not None
        blue_part, red_part = layer.weight.grad.chunk(2)
        assert not blue_part.any()
        assert red_part.any()


def test_losses_depend_only_on_the_seeds(root: Path) -> None:
    task, batch = task_and_batch(tiny_config(root))
    task.model.eval()
    first = task.losses(batch)
    torch.manual_seed(99)
    torch.testing.assert_close(task.losses(batch), first, rtol=0, atol=0)
    other = replace(batch, images=replace(batch.images, seeds=batch.images.seeds + 1))
    assert task.losses(other)["localization_class"] != first["localization_class"]


@pytest.mark.extended
def test_compiles_without_a_graph_break(root: Path) -> None:
    task, batch = task_and_batch(tiny_config(root))
    task.model.eval()
    compiled = torch.compile(task.losses, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch), task.losses(batch))


@pytest.mark.extended
def test_loaded_run_has_the_same_score(root: Path, tmp_path: Path) -> None:
    config = tiny_config(root)
    first = fit(build_task(config), config, output=tmp_path / "run", device="cpu")
    assert 0 <= first["localization_error"] == pytest.approx(1 - first["localization_accuracy"])
    again = load_task([tmp_path / "run"])
    assert isinstance(again, LocalizationTask)
    assert again.class_names == CLASSES
    second = evaluate(again, again.config, output=tmp_path / "eval", device="cpu")
    for name in ("localization_error", "mean_iou", "baseline_localization_error"):
        assert second[name] == first[name]
    rows = json.loads((tmp_path / "eval" / "localizations.json").read_text())
    assert [row["image"] for row in rows] == [
        f"val/images/{name}_{number}.png" for name in CLASSES for number in range(2)
    ]
    assert (tmp_path / "run" / "pictures").is_dir()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a classifier with the classes blue and red."""
    from backbones.classification.task import ClassificationTask

    folder = tmp_path_factory.mktemp("classifier")
    config = classifier_config(write_folder(folder / "data"), loop={"max_steps": 1})
    fit(ClassificationTask.for_training(config), config, output=folder / "run", device="cpu")
    return folder / "run"


def test_classes_of_the_classifier_are_localized(root: Path, classifier: Path) -> None:
    config = tiny_config(root, evaluation={"classifier": str(classifier), "resize": 40})
    task = LocalizationTask.for_training(config)
    task.model.eval()
    data = task.val_data()
    batch = data.collate([data.load(index, index) for index in range(len(data))])
    found = task.predict(batch)
    for each, label in zip(found, batch.targets.labels[:, 0].tolist(), strict=True):
        assert each.given.labels.tolist() == [label]
        assert sorted(each.predicted.labels.tolist()) == [0, 1]
        assert each.predicted.scores[0] >= each.predicted.scores[1]
        assert each.predicted.scores.sum().item() == pytest.approx(1, abs=1e-4)
        same = each.predicted.labels == label
        torch.testing.assert_close(each.predicted.boxes[same], each.given.boxes)
    evaluator = task.evaluator()
    evaluator.update(batch, found)
    metrics = evaluator.compute([evaluator.state()])
    # both classes are among the top five, so only boxes can be wrong
    assert metrics["top5_localization_error"] == metrics["localization_error"]
    assert metrics["top1_localization_error"] >= metrics["top5_localization_error"]


def test_a_classifier_with_other_classes_is_refused(root: Path, tmp_path: Path) -> None:
    from backbones.classification.task import ClassificationTask

    data = write_folder(tmp_path / "data")
    for split in ("train", "val"):
        (data / split / "red").rename(data / split / "green")
    config = classifier_config(data, loop={"max_steps": 1})
    fit(ClassificationTask.for_training(config), config, output=tmp_path / "run", device="cpu")
    with pytest.raises(UserError, match="expected the classes blue, red, got blue, green"):
        build_task(tiny_config(root, evaluation={"classifier": str(tmp_path / "run")}))


def test_a_missing_classifier_is_reported_before_data_is_read(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "no data", evaluation={"classifier": str(tmp_path / "run")})
    with pytest.raises(UserError, match="run: no such run folder or file"):
        LocalizationTask.for_training(config)


def test_drawings_show_ground_truth_and_prediction(root: Path) -> None:
    task, _ = task_and_batch(tiny_config(root))
    task.model.eval()
    data = task.val_data()
    batch = data.collate([data.load(0, 0)])
    (image,) = task.draw(batch, task.predict(batch))
    assert image.dtype == "uint8"
    assert image.ndim == 3


@pytest.mark.gpu
@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
def test_losses_and_predictions_on_a_gpu_equal_the_cpu_s(
    root: Path, box_loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    task, batch = task_and_batch(tiny_config(root, model={"box_loss": box_loss}))
    task.model.eval()
    losses, predictions = task.losses(batch), task.predict(batch)
    task.model.to("cuda")
    on_gpu = batch.to(torch.device("cuda"))
    found = {name: value.cpu() for name, value in task.losses(on_gpu).items()}
    torch.testing.assert_close(found, losses, rtol=1e-3, atol=1e-4)
    for one, other in zip(task.predict(on_gpu), predictions, strict=True):
        torch.testing.assert_close(one.given.scores, other.given.scores, rtol=1e-3, atol=1e-4)
