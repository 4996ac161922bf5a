"""The segmentation task: its losses, its stages, and the whole way from JSON to mask AP."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detection import load_detector
from detection.commands.tasks import build_task, load_task
from detection.models.box_head import next_stage_boxes
from detection.models.proposals import make_proposals
from detection.samples import most_foreground
from detection.structures import DetectionBatch
from detection.tasks.segmentation import SegmentationTask
from engine.distributed import World
from engine.errors import UserError
from engine.evaluate import evaluate
from engine.loader import SampleKey, split_batches
from engine.optim import build_optimizer
from engine.step import training_step, wrap_losses
from engine.trainer import fit
from tests.detection.tasks.tiny import NECKS, tiny_config


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def make_task(root: Path, neck: str, *, stages: int = 1) -> tuple[SegmentationTask, DetectionBatch]:
    """Return a task for training and a batch of its first four images."""
    config = tiny_config(root, neck=neck, task="segmentation")
    roi = config.model.roi.model_copy(update={"stages": stages})
    model = config.model.model_copy(update={"roi": roi})
    task = build_task(config.model_copy(update={"model": model}))
    assert isinstance(task, SegmentationTask)
    data = task.train_data()
    return task, data.collate([data.load(index, 100 + index) for index in range(4)])


@pytest.mark.extended
@pytest.mark.parametrize(
    ("neck", "stages"),
    [
        ("fpn", 1),
        ("fpn", 3),
        pytest.param("c4", 2, marks=pytest.mark.slow),
    ],
)
def test_every_trained_parameter_gets_a_gradient(root: Path, neck: str, stages: int) -> None:
    task, batch = make_task(root, neck, stages=stages)
    losses = task.losses(batch)
    later = {f"roi_{kind}_{stage}" for kind in ("class", "box") for stage in (2, 3)}
    assert later & set(losses) == {name for name in later if int(name[-1]) <= stages}
    torch.stack(list(losses.values())).sum().backward()
    trained = {name: p.grad for name, p in task.model.named_parameters() if p.requires_grad}
    assert all(g is not None and g.isfinite().all() for g in trained.values())


def mask_gradients(root: Path, accumulate: int, *, norm: str) -> dict[str, Tensor]:
    """Return gradients and buffers of the mask head and batch norm after a step in parts."""
    config = tiny_config(root, task="segmentation")
    backbone = config.model.backbone.model_copy(update={"norm": norm})
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"backbone": backbone})}
    )
    task = build_task(config)
    assert isinstance(task, SegmentationTask)
    data = task.train_data()
    plan = [[SampleKey(index, 100 + index) for index in range(4)]]
    shares = split_batches(data, plan, rank=0, world_size=1, accumulate=accumulate)
    parts = [
        data.collate(
            [data.load(key.index, key.seed, share.batch_shape) for key in share.sample_keys],
            share.batch_shape,
        )
        for share in shares
    ]
    losses_of = wrap_losses(task, config.loop, World(0, 1, torch.device("cpu")))
    optimizer = build_optimizer(task.model, config.optim, batch_size=4)
    training_step(losses_of, optimizer, parts, clip_grad_norm=None, stop=False)
    values = {name: value.grad for name, value in task.model.named_parameters()}
    found = {name: value for name, value in values.items() if value is not None}
    return found | {n: b for n, b in task.model.named_buffers() if n.endswith("batches_tracked")}


@pytest.mark.extended
@pytest.mark.parametrize("accumulate", [2, 4])
def test_parts_of_a_step_give_the_gradients_of_the_whole(root: Path, accumulate: int) -> None:
    whole = mask_gradients(root, 1, norm="group")
    found = mask_gradients(root, accumulate, norm="group")
    assert found.keys() == whole.keys()
    for name, expected in whole.items():
        # of the whole tensor: a ReLU at 0 may open or close by rounding, which moves single values
        difference = (found[name] - expected).norm() / expected.norm()
        assert difference < 0.02, name


@pytest.mark.extended
def test_counting_does_not_move_the_statistics(root: Path) -> None:
    found = mask_gradients(root, 2, norm="batch")
    tracked = [int(value) for name, value in found.items() if name.endswith("batches_tracked")]
    assert tracked
    assert set(tracked) == {2}  # one for each part


@pytest.mark.extended
@pytest.mark.parametrize(
    ("neck", "stages"),
    [
        ("fpn", 2),
        pytest.param("c4", 1, marks=pytest.mark.slow),
    ],
)
def test_compiles_without_a_graph_break(root: Path, neck: str, stages: int) -> None:
    task, batch = make_task(root, neck, stages=stages)
    compiled = torch.compile(task.losses, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch), task.losses(batch))


@pytest.mark.extended
@pytest.mark.parametrize("neck", NECKS)
def test_masks_of_foreground_alone_give_the_same_loss(
    root: Path, neck: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, batch = make_task(root, neck)
    counted = task.losses(batch)
    monkeypatch.setattr("detection.tasks.segmentation.most_foreground", lambda _, limit: limit)
    torch.testing.assert_close(counted, task.losses(batch))


@pytest.mark.parametrize(
    ("num_fg", "limit", "expected"), [((0, 0), 8, 1), ((3, 5), 8, 5), ((3, 9), 8, 8)], ids=str
)
def test_most_foreground(num_fg: tuple[int, int], limit: int, expected: int) -> None:
    is_fg = torch.arange(10) < torch.tensor(num_fg)[:, None]
    assert most_foreground(is_fg, limit) == expected


def test_images_without_objects_train(root: Path) -> None:
    task, batch = make_task(root, "fpn", stages=2)
    nothing = replace(batch.targets, valid=torch.zeros_like(batch.targets.valid))
    losses = task.losses(replace(batch, targets=nothing))
    assert losses["mask"] == 0
    assert losses["roi_box_2"] == 0
    assert losses["roi_class_2"] > 0


def test_later_stages_start_from_the_boxes_before(root: Path) -> None:
    task, batch = make_task(root, "fpn", stages=2)
    task.eval()
    sizes = batch.images.sizes
    with torch.no_grad():
        features = task.model.features(batch.images)
        rpn = task.model.rpn(features, batch.images)
        boxes = make_proposals(rpn, sizes, config=task.model.config.rpn, training=False).boxes
        outputs = task.model.box_outputs(task.model.region_features(features, boxes))
        moved = next_stage_boxes(
            *outputs, boxes, sizes, box_weights=task.config.model.roi.box_weights_of(0)
        )
    assert moved.shape == boxes.shape
    assert not torch.equal(moved, boxes)
    limits = sizes.flip(1).repeat(1, 2)[:, None]
    assert ((moved >= 0) & (moved <= limits)).all()


@pytest.mark.slow
@pytest.mark.parametrize("neck", NECKS)
def test_from_json_to_mask_ap(tmp_path: Path, neck: str) -> None:
    config = tiny_config(
        tmp_path / "demo",
        neck=neck,
        task="segmentation",
        model={"roi": {"num_samples": 16, "score_thresh": 0.0, "max_detections": 8}},
        loop={"max_steps": 2, "eval_every": 2},
        evaluation={"draw_score_thresh": 0.01},
    )
    run = tmp_path / "run"
    metrics = fit(build_task(config), config, output=run)
    assert {"ap", "ap50", "mask_ap", "mask_ap75", "mask_ap/disc"} <= set(metrics)
    assert (run / "mask_pr_curves.png").stat().st_size > 0
    results = json.loads((run / "detections.json").read_text())
    assert {"bbox", "segmentation"} <= set(results[0])

    task = load_task([run])
    again = evaluate(task, task.config, output=tmp_path / "eval")
    for name in ("ap", "mask_ap", "mask_ap50", "mask_ap/disc", "num_detections"):
        assert again[name] == pytest.approx(metrics[name], nan_ok=True)

    image = sorted((tmp_path / "demo" / "val").iterdir())[0]
    (found,) = load_detector(run).predict([image])
    assert found.masks is not None
    assert len(found.masks) == len(found)
    for mask, (x1, y1, x2, y2) in zip(found.masks, found.boxes.tolist(), strict=True):
        y, x = np.nonzero(mask)
        if len(y):
            assert x1 - 1 <= x.min() <= x.max() <= x2
            assert y1 - 1 <= y.min() <= y.max() <= y2


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_object_without_a_mask_is_named(tmp_path: Path, split: str) -> None:
    config = tiny_config(tmp_path / "demo", task="segmentation")
    path = tmp_path / "demo" / "annotations" / f"{split}.json"
    document = json.loads(path.read_text())
    first = next(entry for entry in document["annotations"] if not entry["iscrowd"])
    first["segmentation"] = []
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(document))
    changed = getattr(config.data, split).model_copy(update={"annotations": str(bare)})
    data = config.data.model_copy(update={split: changed})
    with pytest.raises(UserError, match=r"image 000001\.jpg: segmentation: expected polygons or"):
        build_task(config.model_copy(update={"data": data}))


@pytest.mark.extended
@pytest.mark.parametrize("neck", NECKS)
def test_images_without_detections_have_no_masks(root: Path, neck: str) -> None:
    task, batch = make_task(root, neck)
    config = task.model.config
    strict = config.roi.model_copy(update={"score_thresh": 1.0})
    task.model.config = config.model_copy(update={"roi": strict})
    for found in task.eval().predict(batch):
        assert len(found) == 0
        assert found.masks is not None
        assert len(found.masks) == 0
