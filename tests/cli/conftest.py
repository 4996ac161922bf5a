"""Fixtures of the command tests: a tiny data set and config, a trained run, in-process calls."""

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from detection.commands import train as train_det
from engine.cli import run_command

CONFIG = """\
data:
  train: {images: data, annotations: data/train.json}
  val: {images: data, annotations: data/val.json}
  augment: {short_sides: [64], max_side: 96}
  eval_short_side: 64
  eval_max_side: 96
model:
  backbone: {kind: resnet18, norm: group, frozen_stages: 0}
  neck: {kind: fpn, channels: 8}
  rpn:
    anchor_sizes: [16, 32, 64, 96, 128]
    num_samples: 16
    pre_nms_topk_train: 50
    post_nms_topk_train: 20
    pre_nms_topk_test: 50
    post_nms_topk_test: 10
  roi: {hidden_dim: 16, num_samples: 16, score_thresh: 0.0, max_detections: 5}
optim: {lr: 1e-3, clip_grad_norm: 1}
loader: {workers: 0}
loop: {max_steps: 2, batch_size: 2, log_every: 1}
"""

DOCUMENT: dict[str, Any] = {
    "images": [
        {"id": 10 + i, "file_name": f"{i}.jpg", "height": 64, "width": 64} for i in range(3)
    ],
    "annotations": [
        {"id": 1, "image_id": 10, "category_id": 4, "bbox": [5, 5, 30, 40]},
        {"id": 2, "image_id": 11, "category_id": 9, "bbox": [20, 10, 25, 25]},
    ],
    "categories": [{"id": 4, "name": "cow"}, {"id": 9, "name": "ant"}],
}


@dataclass(frozen=True)
class Outcome:
    """Exit code and output streams of a command."""

    code: int
    out: str
    err: str


Call = Callable[..., Outcome]


def write_site(folder: Path) -> None:
    """Write tiny.yaml, and a folder data/ with three images, train.json and val.json."""
    (folder / "data").mkdir(parents=True)
    (folder / "tiny.yaml").write_text(CONFIG)
    rng = np.random.default_rng(0)
    for image in DOCUMENT["images"]:
        pixels = rng.integers(256, size=(64, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "data" / image["file_name"]), pixels)
    for split in ("train", "val"):
        (folder / "data" / f"{split}.json").write_text(json.dumps(DOCUMENT))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new folder with the tiny data set and config; the working directory of the test."""
    write_site(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def document() -> dict[str, Any]:
    """A copy of the content of train.json and val.json; tests may change it."""
    return copy.deepcopy(DOCUMENT)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return a function that runs a command in this process, as its console script does."""

    def call(tool: ModuleType, *arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", [tool.__name__, *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            run_command(tool.main)
        streams = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Outcome(caught.value.code, streams.out, streams.err)

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a detector trained for two steps, shared by tests; do not change it."""
    folder = tmp_path_factory.mktemp("trained")
    write_site(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train_det", "tiny.yaml", "--output", "run", "--device", "cpu"])
        train_det.main()
    return folder / "run"
