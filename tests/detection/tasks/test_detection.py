"""The detection task: its losses, its samples, what processes and compilers make of it."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detection.commands.tasks import build_task
from detection.data.coco_cache import CACHED_BYTES
from detection.data.dataset import CocoDetection
from detection.models.proposals import make_proposals
from detection.samples import sample_anchors, sample_rois, with_ground_truth
from detection.structures import DetectionBatch
from detection.tasks.detection import DetectionTask
from engine.errors import UserError
from tests.detection.tasks.tiny import NECKS, tiny_config, tiny_task


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def gradients(task: DetectionTask, batch: DetectionBatch) -> dict[str, Tensor]:
    task.model.zero_grad(set_to_none=True)
    torch.stack(list(task.losses(batch).values())).sum().backward()
    return {
        name: parameter.grad
        for name, parameter in task.model.named_parameters()
        if parameter.grad is not None
    }


BOTTLENECKS = {"backbone": {"kind": "resnet50", "norm": "frozen", "frozen_stages": 2}}


@pytest.mark.extended
@pytest.mark.parametrize("model", [{}, BOTTLENECKS], ids=["basic", "bottlenecks"])
@pytest.mark.parametrize("neck", [pytest.param("c4", marks=pytest.mark.slow), "fpn"])
def test_every_trained_parameter_gets_a_gradient(
    root: Path, neck: str, model: dict[str, Any]
) -> None:
    task, batch = tiny_task(root, neck, model=model)
    found = gradients(task, batch)
    assert set(found) == {n for n, p in task.model.named_parameters() if p.requires_grad}
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.extended
@pytest.mark.parametrize("neck", [pytest.param("c4", marks=pytest.mark.slow), "fpn"])
def test_losses_repeat_and_depend_on_the_draw_alone(root: Path, neck: str) -> None:
    task, batch = tiny_task(root, neck)
    first = task.losses(batch)
    torch.manual_seed(99)  # the global generator has no part in it
    torch.testing.assert_close(task.losses(batch), first, rtol=0, atol=0)
    other = replace(batch, images=replace(batch.images, seeds=batch.images.seeds + 1))
    assert task.losses(other)["rpn_objectness"] != first["rpn_objectness"]


@pytest.mark.extended
@pytest.mark.parametrize("neck", [pytest.param("c4", marks=pytest.mark.slow), "fpn"])
def test_compiles_without_a_graph_break(root: Path, neck: str) -> None:
    task, batch = tiny_task(root, neck)
    compiled = torch.compile(task.losses, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch), task.losses(batch))


@pytest.mark.extended
@pytest.mark.parametrize("neck", NECKS)
def test_images_without_objects_train(root: Path, neck: str) -> None:
    task, batch = tiny_task(root, neck)
    nothing = replace(batch.targets, valid=torch.zeros_like(batch.targets.valid))
    losses = task.losses(replace(batch, targets=nothing))
    assert losses["rpn_box"] == 0
    assert losses["roi_box"] == 0
    assert losses["roi_class"] > 0


@pytest.mark.parametrize("neck", NECKS)
def test_nothing_in_a_crowd_is_sampled(root: Path, neck: str) -> None:
    task, batch = tiny_task(root, neck)
    targets = batch.targets
    boxes = torch.zeros_like(targets.boxes)
    boxes[:, 0] = torch.tensor([-1e3, -1e3, 64.0, 1e3])  # the left of every image
    first = torch.zeros_like(targets.valid)
    first[:, 0] = True
    crowd = replace(targets, boxes=boxes, valid=first, is_crowd=first)
    batch = replace(batch, targets=crowd)
    features = task.model.features(batch.images)
    rpn = task.model.rpn(features, batch.images)
    config, thresh = task.model.config, task.model.config.crowd_ioa_thresh
    anchors = sample_anchors(
        rpn.anchors, rpn.anchor_valid, batch, config=config.rpn, crowd_ioa_thresh=thresh
    )
    proposals = make_proposals(rpn, batch.images.sizes, config=config.rpn, training=True)
    boxes, valid = with_ground_truth(proposals, batch.targets)
    rois = sample_rois(boxes, valid, batch, config=config.roi, crowd_ioa_thresh=thresh)
    for samples in (anchors, rois):
        assert samples.valid.any()
        assert not samples.is_fg.any()
        x1, _, x2, _ = samples.boxes[samples.valid].unbind(1)
        inside = (x2.clamp(max=64) - x1).clamp(min=0) / (x2 - x1)
        assert (inside < 0.5).all()


@pytest.mark.extended
@pytest.mark.parametrize("neck", NECKS)
def test_predictions_do_not_depend_on_the_batch(root: Path, neck: str) -> None:
    task, _ = tiny_task(root, neck)
    task.model.eval()
    data = task.val_data()
    groups = torch.from_numpy(data.groups)
    members = (groups == groups.mode().values).nonzero()[:, 0].tolist()
    assert len(members) > 1
    samples = [data.load(index, 0) for index in members]
    with torch.inference_mode():
        together = task.predict(data.collate(samples))
        alone = [task.predict(data.collate([sample]))[0] for sample in samples]
    for one, other in zip(together, alone, strict=True):
        assert len(one) > 0
        torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("neck", NECKS)
def test_drawn_images_have_the_network_input_size(root: Path, neck: str) -> None:
    task, _ = tiny_task(root, neck)
    task.model.eval()
    data = task.val_data()
    batch = data.collate([data.load(0, 0)])
    with torch.inference_mode():
        (image,) = task.draw(batch, task.predict(batch))
    assert image.dtype == "uint8"
    assert image.shape[0] >= int(batch.images.sizes[0, 0])


@pytest.mark.parametrize(("final", "backend"), [(True, "pycocotools"), (False, "hotcoco")])
def test_reported_numbers_are_those_of_pycocotools(
    root: Path, tmp_path: Path, final: bool, backend: str
) -> None:
    task = DetectionTask.for_training(tiny_config(root, data={"on_bad_image": "skip"}))
    evaluator = task.evaluator(final=final)
    evaluator.compute([])  # all images skipped
    evaluator.write(tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["engine"] == backend


def split_of(root: Path, tmp_path: Path, change: dict[str, Any]) -> dict[str, Any]:
    """Return the demo's validation data with a JSON of its own, of which some keys are others."""
    tiny_config(root)  # makes the demo
    path = tmp_path / "val.json"
    content = json.loads((root / "annotations" / "val.json").read_text())
    path.write_text(json.dumps({**content, **change}))
    return {"images": str(root / "val"), "annotations": str(path)}


EDITS: dict[str, str | None] = {"no objects": '{"images": []}', "no JSON": "x", "gone": None}


@pytest.mark.parametrize("task", ["detection", "segmentation"])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_evaluations_score_against_what_was_read_at_the_start(
    root: Path, tmp_path: Path, edit: str | None, task: str
) -> None:
    split = split_of(root, tmp_path, {})
    data = {"val": split, "on_bad_image": "skip"}
    made = build_task(tiny_config(root, task=task, data=data))
    expected = made.evaluator().compute([])
    made = build_task(tiny_config(root, task=task, data=data))
    path = Path(split["annotations"])
    path.unlink() if edit is None else path.write_text(edit)
    for final in (False, True):  # the first evaluation comes after the edit too
        evaluator = made.evaluator(final=final)
        np.testing.assert_equal(evaluator.compute([]), expected)
    assert expected["ap"] == 0


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_file_that_changes_while_it_is_read(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: str | None
) -> None:
    """Between the two that read it."""
    config = tiny_config(root, data={"val": split_of(root, tmp_path, {})})
    check_images = CocoDetection.check_images

    def check_and_edit(data: CocoDetection) -> None:
        check_images(data)
        path = data.annotations.path
        if path.parent == tmp_path:
            path.unlink() if edit is None else path.write_text(edit)

    monkeypatch.setattr(CocoDetection, "check_images", check_and_edit)
    with pytest.raises(UserError, match=r"val\.json: .* changed while it was read; start again"):
        DetectionTask.for_training(config)


def test_training_needs_something_to_score(root: Path, tmp_path: Path) -> None:
    val = split_of(root, tmp_path, {"annotations": []})
    message = r"val\.json: annotations: expected at least one to score against, got none"
    with pytest.raises(UserError, match=message):
        DetectionTask.for_training(tiny_config(root, data={"val": val}))


def test_a_missing_engine_shows_before_training(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hotcoco", None)  # so that importing it fails
    with pytest.raises(UserError, match=r"evaluation.backend: expected hotcoco to be installed"):
        DetectionTask.for_training(tiny_config(root, evaluation={"backend": "hotcoco"}))


def test_notes_say_what_was_done_about_packed_copies(root: Path, tmp_path: Path) -> None:
    config = tiny_config(root)
    source = Path(config.data.train.annotations)
    large = tmp_path / "large.json"
    large.write_text(source.read_text() + " " * CACHED_BYTES)
    split = config.data.train.model_copy(update={"annotations": str(large)})
    data = config.data.model_copy(update={"train": split})
    task = DetectionTask.for_training(config.model_copy(update={"data": data}))
    expected = f"training annotations: cached copy {large}.resdet-cache made"
    notes = [note for note in task.notes() if "cached copy" in note]
    assert notes == [expected]


@pytest.mark.parametrize(("batch_size", "counts"), [(4, [60] * 4), (32, [120] * 2)])
def test_a_group_holds_two_batches(
    root: Path, tmp_path: Path, batch_size: int, counts: list[int]
) -> None:
    config = tiny_config(root)
    document = json.loads(Path(config.data.train.annotations).read_text())
    document["images"] = [
        {"id": number, "file_name": "none.png", "height": 60 + number % 4 * 20, "width": 100}
        for number in range(240)
    ]
    category = document["categories"][0]["id"]
    box = {"id": 1, "image_id": 0, "category_id": category, "bbox": [1, 1, 9, 9]}
    document["annotations"] = [box]
    (tmp_path / "many.json").write_text(json.dumps(document))
    (tmp_path / "none.png").touch()
    split = {"images": str(tmp_path), "annotations": str(tmp_path / "many.json")}
    config = tiny_config(root, loop={"batch_size": batch_size}, data={"train": split})
    trained = DetectionTask.for_training(config)
    for task in (trained, DetectionTask(config, trained.model, trained.classes)):
        assert np.bincount(task.train_data().groups).tolist() == counts
