"""Classification task: losses, run folder, ensembles, and the exported backbone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from backbones import build_resnet, resnet18, vgg16
from backbones.classification.load_and_export import (
    export_backbone,
    load_classifier,
    recompute_batch_norm,
)
from backbones.classification.structures import ClassificationBatch
from backbones.classification.task import ClassificationTask
from backbones.config import NetworkConfig
from backbones.weights import load_backbone_weights, load_configured_weights
from engine.checkpoint import read_safetensors, write_safetensors
from engine.errors import UserError
from engine.step import LossModule
from engine.task import Task
from engine.trainer import fit
from tests.backbones.classification.tiny import tiny_config, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two classes; tests must not change it."""
    return write_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run with its exported backbone; tests must not change it."""
    output = tmp_path_factory.mktemp("runs") / "run"
    config = tiny_config(folder, loop={"max_steps": 30, "ema_decay": 0.9})
    metrics = fit(ClassificationTask.for_training(config), config, output=output)
    export_backbone(output, metrics=metrics)
    return output


def batch_of(task: ClassificationTask, count: int = 6) -> ClassificationBatch:
    data: Any = task.train_data()
    batch: ClassificationBatch = data.collate([data.load(i, seed=100 + i) for i in range(count)])
    return batch


def test_implements_the_task_protocol(folder: Path) -> None:
    assert isinstance(ClassificationTask.for_training(tiny_config(folder)), Task)


def test_loss_is_cross_entropy_and_the_error_is_not_minimised(folder: Path) -> None:
    task = ClassificationTask.for_training(tiny_config(folder, loss={"label_smoothing": 0.1}))
    task.eval()
    batch = batch_of(task)
    losses = task.losses(batch)
    logits = task.model(task.model.normalize(batch.pixels))
    expected = F.cross_entropy(logits, batch.labels, label_smoothing=0.1)
    torch.testing.assert_close(losses["class"], expected)
    error = (logits.argmax(1) != batch.labels).float().mean()
    torch.testing.assert_close(losses["train_error"], error)
    assert losses["class"].requires_grad
    assert not losses["train_error"].requires_grad


def test_binary_loss(folder: Path) -> None:
    task = ClassificationTask.for_training(tiny_config(folder, loss={"kind": "bce"})).eval()
    batch = batch_of(task)
    logits = task.model(task.model.normalize(batch.pixels)).double()
    target = F.one_hot(batch.labels, 2).double()
    expected = -(target * logits.sigmoid().log() + (1 - target) * (-logits).sigmoid().log()).mean()
    torch.testing.assert_close(task.losses(batch)["class"].double(), expected, rtol=1e-5, atol=1e-6)


AUGMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mixed": {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "erasing_prob": 0.5},
}


@pytest.mark.extended
@pytest.mark.parametrize("augment", AUGMENTS.values(), ids=AUGMENTS)
def test_a_training_step_compiles_without_a_graph_break(
    folder: Path, augment: dict[str, Any]
) -> None:
    config = tiny_config(folder, augment={"crop": 32, **augment})
    task = ClassificationTask.for_training(config)
    module = LossModule(task, device=torch.device("cpu"), precision="bf16")
    batch = batch_of(task)
    with torch.no_grad():
        expected = module(batch)
        found = torch.compile(module, fullgraph=True, backend="eager")(batch)
    assert set(expected) == ({"class", "train_error"} if not augment else {"class"})
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_run_folder_contents_and_metrics(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["top1"] >= 0.75  # eight images of two colours
    assert metrics["num_images"] == 8
    assert (run / "confusion.png").is_file()
    trained = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in trained if line["kind"] == "train")
    assert first["loss"] == first["class"]
    assert 0 <= first["train_error"] <= 1


def test_exported_backbone_has_the_weights_and_recomputed_statistics(run: Path) -> None:
    weights, metadata = read_safetensors(run / "backbone.safetensors")
    whole, _ = read_safetensors(run / "model.safetensors")
    assert json.loads(metadata["class_names"]) == ["blue", "red"]
    assert json.loads(metadata["metrics"])["num_images"] == 8
    assert json.loads(metadata["config"])["model"]["backbone"]["kind"] == "cifar_resnet8"
    assert not [name for name in weights if name.startswith("fc.")]
    changed = {name for name in weights if not weights[name].equal(whole[f"backbone.{name}"])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {name for name in weights if name.endswith(statistics)}


def test_recomputed_statistics_are_means_over_training_batches(run: Path) -> None:
    task = load_classifier([run])
    seen = []
    handle = task.model.backbone.get_submodule("conv1").register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.double())
    )
    assert recompute_batch_norm(task, limit=13) == 12  # three whole batches of four
    handle.remove()
    assert [len(each) for each in seen] == [4, 4, 4]
    norm = task.model.backbone.get_submodule("bn1")
    mean = torch.stack([each.mean((0, 2, 3)) for each in seen]).mean(0)
    var = torch.stack([each.var((0, 2, 3)) for each in seen]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, var.float(), rtol=1e-4, atol=1e-5)
    assert not task.model.training
    assert all(m.momentum == 0.1 for m in task.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_an_ensemble_of_two_is_the_mean_of_both(run: Path, folder: Path, tmp_path: Path) -> None:
    config = tiny_config(folder, loop={"max_steps": 1}, seed=1)
    fit(ClassificationTask.for_training(config), config, output=tmp_path)
    one = load_classifier([run])
    data: Any = one.val_data()
    batch = data.collate([data.load(i, seed=0) for i in range(3)])
    first, second, both = (
        torch.stack(load_classifier(runs).predict(batch))
        for runs in ([run], [tmp_path], [run, tmp_path])
    )
    assert (first - second).abs().amax(dim=1).min() > 0.01
    torch.testing.assert_close(both, (first + second) / 2)
    torch.testing.assert_close(both.sum(1), torch.ones(3))


def test_ensemble_with_different_classes_is_an_error(run: Path, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    for split in ("train", "val"):
        (root / split / "red").rename(root / split / "green")
    config = tiny_config(root, loop={"max_steps": 1})
    fit(ClassificationTask.for_training(config), config, output=tmp_path / "other")
    with pytest.raises(UserError, match=r"expected the classes of .* \(blue, red\), got"):
        load_classifier([run, tmp_path / "other"])


@pytest.mark.parametrize("num_classes", [None, 7])
def test_fc_stays_random_if_the_weights_have_other_classes(
    tmp_path: Path, num_classes: int | None
) -> None:
    torch.manual_seed(0)
    theirs = resnet18(num_classes=num_classes).state_dict()
    write_safetensors(tmp_path / "theirs.safetensors", theirs, {})
    ours, alike = resnet18(num_classes=3), resnet18(num_classes=3)
    alike.load_state_dict(ours.state_dict())
    config = NetworkConfig(weights=str(tmp_path / "theirs.safetensors"))
    (report,) = load_configured_weights(ours, config)
    expected = "is missing" if num_classes is None else "has 7 classes"
    note = f"fc {expected} in the file: starts from random weights, for 3 classes"
    assert report.notes == (note,)
    torch.testing.assert_close(ours.fc.state_dict(), alike.fc.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(ours.conv1.weight, theirs["conv1.weight"], rtol=0, atol=0)


@pytest.mark.extended
def test_exported_backbone_loads_into_a_detector(folder: Path, tmp_path: Path) -> None:
    config = tiny_config(
        folder, model={"backbone": {"kind": "resnet18"}}, loop={"max_steps": 1, "batch_size": 2}
    )
    metrics = fit(ClassificationTask.for_training(config), config, output=tmp_path / "run")
    export_backbone(tmp_path / "run", metrics=metrics)
    backbone = config.model.backbone
    network = build_resnet("resnet18", norm="frozen")
    pixels: Any = {"pixel_mean": backbone.pixel_mean, "pixel_std": backbone.pixel_std}
    report = load_backbone_weights(network, tmp_path / "run" / "backbone.safetensors", **pixels)
    assert report.source == "resdet"
    assert report.unexpected == ()
    trained, _ = read_safetensors(tmp_path / "run" / "model.safetensors")
    names = {name for name, _ in network.named_parameters()}
    assert {f"backbone.{name}" for name in names} < set(trained)
    for name, value in network.named_parameters():
        torch.testing.assert_close(value.data, trained[f"backbone.{name}"], rtol=0, atol=0)


def test_exported_vgg_loads_into_a_detectors_network(folder: Path, tmp_path: Path) -> None:
    backbone = {"kind": "vgg16", "width_multiplier": 1 / 16}
    loop = {"max_steps": 1, "batch_size": 2}
    config = tiny_config(folder, model={"backbone": backbone}, loop=loop)
    task = ClassificationTask.for_training(config)
    metrics = fit(task, config, output=tmp_path)
    export_backbone(tmp_path, metrics=metrics)  # there are no norms to recompute
    network = vgg16(None, width_multiplier=1 / 16)
    pixels: Any = {
        "pixel_mean": config.model.backbone.pixel_mean,
        "pixel_std": config.model.backbone.pixel_std,
    }
    for file, unused in (("backbone", 0), ("model", 2)):
        path = tmp_path / f"{file}.safetensors"
        report = load_backbone_weights(network, path, **pixels)
        assert (report.source, len(report.unexpected)) == ("resdet", unused)
        for name, tensor in network.state_dict().items():
            assert tensor.equal(task.model.backbone.state_dict()[name]), name
    batch = batch_of(task)
    found = load_classifier([tmp_path]).predict(batch)
    torch.testing.assert_close(found, task.eval().predict(batch))


def test_vgg_with_dropout_resumes_exactly(folder: Path, tmp_path: Path) -> None:
    model = {"backbone": {"kind": "vgg16", "width_multiplier": 1 / 16}}
    for name, steps in (("whole", [4]), ("cut", [2, 4])):
        for number, last in enumerate(steps):
            loop = {"max_steps": last, "checkpoint_every": 2, "export": "last"}
            config = tiny_config(folder, loop=loop, model=model)
            task = ClassificationTask.for_training(config)
            fit(task, config, output=tmp_path / name, resume=number > 0)
    whole, cut = (read_safetensors(tmp_path / n / "model.safetensors")[0] for n in ("whole", "cut"))
    assert all(whole[name].equal(cut[name]) for name in whole)


def test_vgg_slides_no_average_pool(folder: Path) -> None:
    message = "evaluation.view: expected center or ten_crop with model.backbone.kind=vgg16"
    views = {"view": "multi_scale", "resize": 36, "crop": 32}
    with pytest.raises(UserError, match=message):
        tiny_config(folder, model={"backbone": {"kind": "vgg16"}}, evaluation=views)


def test_resumed_run_equals_the_uninterrupted_one(folder: Path, tmp_path: Path) -> None:
    for name, steps in (("whole", [6]), ("cut", [3, 6])):
        for number, last in enumerate(steps):
            loop = {"max_steps": last, "checkpoint_every": 3}
            config = tiny_config(folder, loop=loop, augment={"crop": 32, "auto": "trivial"})
            task = ClassificationTask.for_training(config)
            fit(task, config, output=tmp_path / name, resume=number > 0)
    whole, cut = (read_safetensors(tmp_path / n / "model.safetensors")[0] for n in ("whole", "cut"))
    assert all(whole[name].equal(cut[name]) for name in whole)
