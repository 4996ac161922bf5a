"""Exported localizers of both stages: their boxes, what is refused, and the script for users."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detection.export.loading import load_for_export
from detection.export.localizer import ExportedLocalizer
from detection.export.model import Arrays
from detection.export.onnx_file import onnx_runner, write_onnx
from detection.export.program import Program
from detection.export.run_images import run_images
from detection.export.torch_file import program_runner, write_program
from detection.localization.regions_task import LocalizationRegionsTask
from detection.localization.task import LocalizationTask
from engine.checkpoint import write_safetensors
from engine.errors import UserError
from tests.detection.localization.tiny_localizer import (
    CLASSES,
    regions_config,
    tiny_config,
    write_tiny_imagenet,
)
from tests.reference.images import smooth_image

Task = LocalizationTask | LocalizationRegionsTask
SIZES = ((60, 80), (90, 33), (20, 41), (36, 36))
"""Images that shrink, shrink much, grow, and are not resized at a short side of 36."""
NARROW = {
    "kind": "resnet18",
    "norm": "batch",
    "frozen_stages": 0,
    "width_multiplier": 0.125,
}
MEAN_BOX = (0.2, 0.2, 0.8, 0.8)
VIEWS: dict[str, dict[str, Any]] = {
    "center, best": {"resize": 36},
    "center, vote": {"resize": 36, "merge": "vote"},
    "whole image": {"view": "dense", "scales": [36]},
    "more candidates than anchors": {"view": "dense", "scales": [36], "candidates": 3000},
}


def make_task(folder: Path, *, second: bool = False, **changes: Any) -> Task:
    """Return a stage with random weights; that of a first stage are saved in `folder`."""
    torch.manual_seed(0)
    model = {"backbone": NARROW, **changes.pop("model", {})}
    config = tiny_config(folder, model=model, **changes)
    first = LocalizationTask(
        config, LocalizationTask.build(config, num_classes=2), CLASSES, mean_box=MEAN_BOX
    )
    # scores that differ clearly
    nn.init.normal_(first.model.head.objectness.weight, std=0.2)
    first.eval()
    write_safetensors(folder / "first.safetensors", first.model.state_dict(), first.metadata())
    if not second:
        return first
    regions = regions_config(folder / "first.safetensors", backbone=NARROW)
    values = {"evaluation": config.evaluation, "data": config.data}
    regions = regions.model_copy(update=values)
    network = LocalizationRegionsTask.build(regions, num_classes=2)
    nn.init.normal_(network.box_predictor.class_logits.weight, std=0.2)
    return LocalizationRegionsTask(regions, network, CLASSES, mean_box=MEAN_BOX).eval()


def batches() -> list[np.ndarray]:
    """Return images of several sizes, one or three of each."""
    images = [smooth_image(*size) for size in SIZES]
    flipped = [np.stack([image, image[::-1], image[:, ::-1]]) for image in images]
    return [image[None] for image in images] + flipped


def run_graph(program: Program, inputs: Arrays) -> Arrays:
    with torch.no_grad():
        outputs = program.graph(*(torch.from_numpy(each) for each in inputs.values()))
    return {name: each.numpy() for name, each in zip(program.outputs, outputs, strict=True)}


@pytest.mark.parametrize("second", [False, True], ids=["first stage", "second stage"])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_agrees_with_the_task(view: dict[str, Any], second: bool, tmp_path: Path) -> None:
    model = ExportedLocalizer(make_task(tmp_path, second=second, evaluation=view))
    program = model.program()
    for images in batches():
        outputs = run_graph(program, model.inputs(images))
        found = model.differences(images, outputs)
        assert found.are_allowed(), found
        assert found.count == 2 * len(images)
        assert np.ptp(outputs["boxes"][..., 2]) > 0


@pytest.mark.parametrize("second", [False, True], ids=["first stage", "second stage"])
def test_agrees_with_images_of_one_size(second: bool, tmp_path: Path) -> None:
    model = ExportedLocalizer(make_task(tmp_path, second=second))
    program = model.program(batch=1, size=SIZES[0])
    assert program.fixed == {"images": (1, 2, 3), "classes": ()}
    images = batches()[0]
    assert model.differences(images, run_graph(program, model.inputs(images))).are_allowed()


@pytest.mark.parametrize("per_class", [False, True], ids=["agnostic", "per class"])
def test_raw_agrees_with_the_network(per_class: bool, tmp_path: Path) -> None:
    model = ExportedLocalizer(make_task(tmp_path, model={"per_class": per_class}), raw=True)
    program = model.program()
    for images in batches():
        found = model.differences(images, run_graph(program, model.inputs(images)))
        assert set(found.values) == {"logits", "deltas", "anchors"}
        assert found.are_allowed(), found


def test_other_results_are_not_allowed(tmp_path: Path) -> None:
    model = ExportedLocalizer(make_task(tmp_path))
    images = batches()[0]
    outputs = dict(run_graph(model.program(), model.inputs(images)))
    outputs["boxes"] = outputs["boxes"] + np.float32(2e-3)
    assert not model.differences(images, outputs).are_allowed()


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ({"mirror": True}, "evaluation.mirror: expected false, .* add evaluation.mirror=false"),
        (
            {"view": "dense", "scales": [32, 64]},
            r"evaluation.scales: expected one scale, .* got \[32, 64\]; add "
            r"evaluation.scales=\[32\] or evaluation.view=center",
        ),
    ],
    ids=["mirror", "scales"],
)
def test_several_views_are_refused(view: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        ExportedLocalizer(make_task(tmp_path, evaluation=view))


def test_the_second_stage_has_no_raw_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--raw: expected a run of task localization, got"):
        ExportedLocalizer(make_task(tmp_path, second=True), raw=True)


def test_a_run_is_loaded_without_its_classifier(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    evaluation = task.config.evaluation.model_copy(update={"classifier": str(tmp_path / "none")})
    task.config = task.config.model_copy(update={"evaluation": evaluation})
    path = tmp_path / "run.safetensors"
    write_safetensors(path, task.model.state_dict(), task.metadata())
    model, metadata = load_for_export(path, ["evaluation.merge=vote"])
    assert isinstance(model, ExportedLocalizer)
    assert model.config.evaluation.merge == "vote"
    assert json.loads(metadata["class_names"]) == list(CLASSES)
    assert metadata["task"] == "localization"


def test_a_run_is_compared_on_its_own_images(tmp_path: Path) -> None:
    config = tiny_config(write_tiny_imagenet(tmp_path / "patches"))
    images, origin = run_images(None, config, split="val", count=2)
    assert origin == f"2 images of {tmp_path / 'patches' / 'val'}"
    assert [image.shape for image in images] == [(32, 32, 3), (21, 32, 3)]


@pytest.fixture(scope="module", params=[False, True], ids=["first stage", "second stage"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ExportedLocalizer:
    # the first stage sees the whole image, so that its number of anchors is dynamic
    view = VIEWS["center, best" if request.param else "more candidates than anchors"]
    folder = tmp_path_factory.mktemp("localizer")
    return ExportedLocalizer(make_task(folder, second=request.param, evaluation=view))


@pytest.fixture(scope="module")
def onnx_path(exported: ExportedLocalizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(exported.program(), path, metadata=exported.metadata())
    return path


def check_file(model: ExportedLocalizer, run: Callable[[Arrays], Arrays]) -> None:
    for images in batches():
        inputs = model.inputs(images)
        outputs = run(inputs)
        found = model.differences(images, outputs)
        assert found.are_allowed(), found
        single = run({**inputs, "classes": inputs["classes"][:, 1:]})
        np.testing.assert_allclose(single["boxes"], outputs["boxes"][:, 1:], atol=1e-3)


@pytest.mark.extended
def test_onnx_file_agrees_with_the_task(exported: ExportedLocalizer, onnx_path: Path) -> None:
    check_file(exported, onnx_runner(onnx_path, exported.program().outputs))


@pytest.mark.extended
def test_torch_program_agrees_with_the_task(exported: ExportedLocalizer, tmp_path: Path) -> None:
    program = exported.program()
    write_program(program, tmp_path / "model.pt2", metadata=exported.metadata())
    check_file(exported, program_runner(tmp_path / "model.pt2", program.outputs))


@pytest.mark.extended
def test_script_prints_the_box_of_each_class(onnx_path: Path, tmp_path: Path) -> None:
    Image.fromarray(smooth_image(50, 70)).save(tmp_path / "image.png")
    script = Path(__file__).parents[3] / "detection" / "export" / "run_onnx.py"
    command = [sys.executable, str(script), str(onnx_path), str(tmp_path / "image.png")]
    done = subprocess.run(
        [*command, "--class", "red", "--class", "blue"], capture_output=True, text=True, check=True
    )
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[1] for row in rows] == ["red", "blue"]
    assert all(len(row[3].split()) == 4 for row in rows)
    for names, got in ((["--class", "green"], "green"), ([], "none")):
        done = subprocess.run([*command, *names], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert f"--class: expected names such as blue, red, got {got}" in done.stderr
