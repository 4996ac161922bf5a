"""Configs of tiny trainings on the demo, for the studies of detectors."""

from pathlib import Path

CLASSIFIER = """\
task: classification
data: {root: objects, demo: {root: objects, num_train: 24, num_val: 12}}
augment: {crop: 32}
evaluation: {resize: 32, crop: 32}
model: {backbone: {width_multiplier: 0.125}}
loader: {workers: 0}
loop: {max_steps: 2, batch_size: 8, log_every: 1}
"""
DETECTOR = """\
data:
  demo: {root: demo, num_train: 4, num_val: 4}
  augment: {short_sides: [64], max_side: 96}
  eval_short_side: 64
  eval_max_side: 96
model:
  backbone: {width_multiplier: 0.125, norm: frozen, frozen_stages: 0}
  rpn: {anchor_sizes: [16, 32], post_nms_topk_train: 30, post_nms_topk_test: 20}
  roi: {num_samples: 16, score_thresh: 0.0}
loader: {workers: 0}
loop: {max_steps: 2, batch_size: 4, log_every: 1}
"""
DATA = {
    "data.demo.root": "demo",
    "data.train.images": "demo/train",
    "data.train.annotations": "demo/annotations/train.json",
    "data.val.images": "demo/val",
    "data.val.annotations": "demo/annotations/val.json",
}
"""Paths below the folder that `--data` names."""


def write_configs(folder: Path, *, detector: str = DETECTOR) -> Path:
    """Write both configs into a new folder, and return it."""
    folder.mkdir()
    (folder / "classifier.yaml").write_text(CLASSIFIER)
    (folder / "detector.yaml").write_text(detector)
    return folder
