"""A detector of blood cells starts a detector of blood cells and one more class."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from backbones.weights import COUNTER
from detection.commands.tasks import build_task, load_task
from detection.config import SCHEMAS, DetectionConfig
from detection.tasks.detection import DetectionTask
from engine.checkpoint import read_safetensors
from engine.config import load_config
from engine.evaluate import evaluate
from engine.trainer import fit

REPOSITORY = Path(__file__).resolve().parents[3]
CELLS = ("RBC", "WBC", "Platelets")
NEW_CLASS = "Malaria parasite"
QUICK = [
    "data.augment.short_sides=[192]",
    "data.augment.max_side=256",
    "data.eval_short_side=192",
    "data.eval_max_side=256",
    "model.neck.channels=64",
    "model.rpn.anchor_sizes=[8,16,32,64,128]",
    "model.roi.hidden_dim=128",
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
    check_rows(task, *read_safetensors(weights))

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


def check_rows(
    task: DetectionTask, file: dict[str, torch.Tensor], metadata: dict[str, str]
) -> None:
    names = json.loads(metadata["class_names"])
    for name, tensor in task.model.state_dict().items():
        if name.endswith(COUNTER):
            continue
        if not name.startswith("box_predictor."):
            assert torch.equal(tensor, file[name])
            continue
        per_class = 4 if "deltas" in name else 1
        ours, theirs = (each.unflatten(0, (-1, per_class)) for each in (tensor, file[name]))
        for label, class_name in enumerate(task.class_names):
            if class_name != NEW_CLASS:
                assert torch.equal(ours[label], theirs[names.index(class_name)])
        if per_class == 1:
            assert torch.equal(ours[-1], theirs[-1])  # background
