"""The main job's network at its full size, on a CPU."""

import json
import resource
from pathlib import Path

import pytest

from detection.commands.tasks import build_task
from detection.config import SCHEMAS
from engine.config import load_config
from engine.trainer import fit

CONFIG = Path(__file__).resolve().parents[3] / "configs/detection/faster_rcnn_r101_c4_coco.yaml"
GIB = 2**20  # of the kilobytes that getrusage counts


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_r101_c4_learns_within_24_gib(data_dir: Path, tmp_path: Path) -> None:
    coco = data_dir / "coco128"
    document = json.loads((coco / "annotations/instances_train2017.json").read_text())
    # landscape images of 640x427: 800x1199 as resized, as large as most of COCO gets
    chosen = [each for each in document["images"] if (each["height"], each["width"]) == (427, 640)]
    document["images"] = chosen[:2]
    ids = {each["id"] for each in document["images"]}
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] in ids]
    (tmp_path / "two.json").write_text(json.dumps(document))
    split = [f"images={coco / 'train2017'}", f"annotations={tmp_path / 'two.json'}"]
    changes = [f"data.{part}.{each}" for part in ("train", "val") for each in split]
    changes += ["model.backbone.weights=", "model.backbone.norm=group", "optim.kind=adamw"]
    changes += ["model.backbone.frozen_stages=0", "optim.lr=1e-4", "optim.reference_batch_size="]
    changes += ["schedule.warmup_steps=0", "data.augment.short_sides=[800]", "loop.batch_size=2"]
    changes += ["loop.max_steps=20", "loop.log_every=5", "loop.eval_batch_size=1"]
    changes += ["loop.precision=bf16", "loader.workers=1", "optim.clip_grad_norm=10"]
    config = load_config(CONFIG, changes, schemas=SCHEMAS)
    fit(build_task(config), config, output=tmp_path / "run")
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = [each["loss"] for each in records if each["kind"] == "train"]
    assert losses[-1] < 0.7 * losses[0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB < 24
