"""A detector of blood cells starts a detector of blood cells and one more class."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backbones.weights import COUNTER
from detection.commands.tasks import build_task, load_task
from detection.config import SCHEMAS, DetectionConfig
from detection.models.build import build_detector
from detection.tasks.detection import DetectionTask
from detection.weights import load_detector_weights
from engine.checkpoint import read_safetensors, write_safetensors
from engine.config import load_config, parse_config
from engine.evaluate import evaluate
from engine.trainer import fit
from tests.detection.small_bccd import SMALL_BCCD

REPOSITORY = Path(__file__).resolve().parents[3]
CELLS = ("RBC", "WBC", "Platelets")
NEW_CLASS = "Malaria parasite"
QUICK = [
    *SMALL_BCCD,
    "schedule.warmup_steps=10",
    "loop.max_steps=60",
    "loop.batch_size=4",
    "loop.ema_decay=0.9",
    "loop.eval_every=60",
    "loop.precision=fp32",
    "loader.workers=1",
]


def make_config(splits: dict[str, Path], images: Path, *changes: str) -> DetectionConfig:
    files = [f"data.{split}.annotations={path}" for split, path in splits.items()]
    folders = [f"data.{split}.images={images}" for split in splits]
    config = load_config(
        REPOSITORY / "configs/detection/bccd.yaml",
        [*QUICK, *files, *folders, *changes],
        schemas=SCHEMAS,
    )
    assert isinstance(config, DetectionConfig)
    return config


def with_new_class(path: Path, output: Path) -> Path:
    """Write a copy of a COCO file with one more class, in front of the others, and its object."""
    values = json.loads(path.read_text(encoding="utf-8"))
    assert {each["name"] for each in values["categories"]} == set(CELLS)
    values["categories"].insert(0, {"id": 99, "name": NEW_CLASS})
    values["annotations"].append({**values["annotations"][0], "id": 10**6, "category_id": 99})
    output.write_text(json.dumps(values), encoding="utf-8")
    return output


@pytest.mark.slow
def test_old_classes_keep_their_rows_and_their_ap(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "bccd"
    splits = {split: folder / f"annotations/{split}.json" for split in ("train", "val")}
    config = make_config(splits, folder / "images")
    fit(build_task(config), config, output=tmp_path / "run", device="cpu")
    weights = tmp_path / "run/model.safetensors"
    trained = load_task([tmp_path / "run"])
    assert isinstance(trained, DetectionTask)
    old = evaluate(trained, trained.config, device="cpu")

    more = {split: with_new_class(path, tmp_path / path.name) for split, path in splits.items()}
    config = make_config(more, folder / "images", f"model.weights={weights}")
    task = build_task(config)
    assert isinstance(task, DetectionTask)
    note = f"classes: 3 carried over ({', '.join(sorted(CELLS, key=task.class_names.index))})"
    assert any(line.startswith(f"{note}, 1 new at random ({NEW_CLASS})") for line in task.notes())
    check_rows(task.model, task.class_names, *read_safetensors(weights))

    new = evaluate(task, config, device="cpu")
    for name in CELLS:
        assert new[f"ap/{name}"] == pytest.approx(old[f"ap/{name}"], abs=1e-3)
    assert old["ap"] > 0.05
    # a score of an old class is also what it was
    batch = task.val_data().collate([task.val_data().load(row, 0) for row in range(4)])
    task.eval()
    for before, after in zip(trained.predict(batch), task.predict(batch), strict=True):
        count = min(len(before), len(after))
        np.testing.assert_allclose(before.scores[:count], after.scores[:count], atol=1e-3)


def test_rows_of_later_stages_and_of_masks(tmp_path: Path) -> None:
    keys = ["task=segmentation", "model.neck.kind=fpn", "model.backbone.kind=resnet18"]
    small = ["model.neck.channels=16", "model.roi.hidden_dim=16", "model.mask.hidden_dim=16"]
    config = parse_config({}, [*keys, *small, "model.roi.stages=2"], schemas=SCHEMAS, source="test")
    assert isinstance(config, DetectionConfig)
    path, metadata = tmp_path / "model.safetensors", {"class_names": json.dumps(CELLS)}
    state = dict(build_detector(config, len(CELLS)).state_dict())
    write_safetensors(path, state, metadata)
    names = ("Platelets", NEW_CLASS, "RBC")
    model = build_detector(config, len(names))
    report = load_detector_weights(
        model, path, config=config, class_names=names, category_ids=(1, 2, 3)
    )
    assert report.notes == (
        f"classes: 2 carried over (Platelets, RBC), 1 new at random ({NEW_CLASS}), "
        "1 of the file dropped (WBC)",
    )
    check_rows(model, names, state, metadata)


def check_rows(
    model: nn.Module, names: Sequence[str], file: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    """Check that all tensors, and the rows of the classes in both, are the file's to the bit."""
    in_file = json.loads(metadata["class_names"])
    for name, tensor in model.state_dict().items():
        if name.endswith(COUNTER):
            continue
        if "box_predictor." not in name and not name.startswith("mask_head.logits."):
            assert torch.equal(tensor, file[name])
            continue
        per_class = 4 if "deltas" in name else 1
        ours, theirs = (each.unflatten(0, (-1, per_class)) for each in (tensor, file[name]))
        for label, class_name in enumerate(names):
            if class_name != NEW_CLASS:
                assert torch.equal(ours[label], theirs[in_file.index(class_name)])
        if "class_logits" in name:
            assert torch.equal(ours[-1], theirs[-1])  # background
