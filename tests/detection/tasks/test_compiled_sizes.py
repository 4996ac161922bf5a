"""A compiled training run over images of many sizes: one graph, and the losses of an eager one."""

from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from detection.commands.tasks import build_task
from detection.structures import DetectionBatch
from detection.tasks.detection import DetectionTask
from engine.distributed import World
from engine.loader import read_batches, split_batches, training_batches
from engine.schema import LoaderConfig, LoopConfig
from engine.step import wrap_losses
from tests.detection.tasks.tiny import tiny_config

NUM_BATCHES = 60
CPU = torch.device("cpu")


def coco_task(root: Path, data_dir: Path, *, neck: str, kind: str) -> DetectionTask:
    """Return a tiny detector that trains on coco128 at several small sizes."""
    split = {
        "images": str(data_dir / "coco128/train2017"),
        "annotations": str(data_dir / "coco128/annotations/instances_train2017.json"),
    }
    augment = {"short_sides": [96, 128, 160], "max_side": 256}
    data = {"train": split, "val": split, "on_bad_box": "skip", "augment": augment, "cache": False}
    model = {"roi": {"num_samples": 8, "hidden_dim": 32}}  # conv5 of more RoIs takes minutes on c4
    task = build_task(tiny_config(root, neck=neck, task=kind, data=data, model=model))
    assert isinstance(task, DetectionTask)
    return task


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "neck"), [("detection", "c4"), ("detection", "fpn"), ("segmentation", "fpn")]
)
def test_one_graph_serves_all_sizes_of_coco(
    tmp_path: Path, data_dir: Path, kind: str, neck: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The compiler up to the generation of code, which takes minutes on a CPU.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()
    counters.clear()
    # as in a compiled graph
    monkeypatch.setattr("detection.tasks.segmentation.most_foreground", lambda _, limit: limit)
    task = coco_task(tmp_path, data_dir, neck=neck, kind=kind)
    losses_of = wrap_losses(task, LoopConfig(compile=True), World(0, 1, CPU))
    data = task.train_data()
    plan = training_batches(data.groups, batch_size=2, seed=0)
    parts = split_batches(data, plan, rank=0, world_size=1, accumulate=1)
    loaded = read_batches(data, parts, config=LoaderConfig(workers=0), device=CPU, substitute=True)
    sizes, object_counts = set(), set()
    for number, each in enumerate(islice(loaded, NUM_BATCHES)):
        batch = each.batch
        assert isinstance(batch, DetectionBatch)
        losses = losses_of(batch)
        torch.testing.assert_close(losses, task.losses(batch), rtol=1e-4, atol=1e-5)
        if number % 20 == 0:
            torch.stack(list(losses.values())).sum().backward()
        sizes.add(batch.images.pixels.shape)
        object_counts.add(batch.targets.boxes.shape[1])
    assert len(sizes) > 10
    assert len(object_counts) > 2
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
