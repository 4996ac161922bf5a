"""Benchmark: reading of pretraining images on one core, from packed copies and full-size files.

The full-size files are those of imagenette128, enlarged to 500 x 375, about ImageNet's mean size.
The training transform is that of the modern ImageNet recipe.
"""

from functools import partial
from pathlib import Path

import cv2

from backbones.classification.config import SCHEMAS, ClassificationConfig
from backbones.classification.folder import FolderDataset
from backbones.classification.packing import PackSettings, pack_images
from backbones.classification.transforms import TrainingTransform
from backbones.images import images_in, read_image
from engine.config import load_config
from engine.log import RunLog
from tools.lab import REPOSITORY
from tools.lab.benchmarks.images import shared_folder
from tools.lab.benchmarks.input import one_thread
from tools.lab.benchmarks.measure import Row, compare
from tools.lab.benchmarks.settings import Settings

CONFIG = "configs/backbones/base_imagenet_modern.yaml"
CROPS = (176, 224)
SHORT_SIDES = (256, 232, 208, 176, 144)
BATCH_SIZE = 64
FULL_SIZE = (500, 375)
"""Width and height."""
PROMISED = 3.0
"""Least ratio of the smallest copy."""


def pretraining_input(settings: Settings) -> list[Row]:
    """Measure the reading of the same images from copies of several sizes."""
    count = 8 if settings.small else 512
    full = settings.folder / "full"
    _write_enlarged(shared_folder("imagenette128") / "train", full, count=count)
    copies = {}
    for side in SHORT_SIDES[:1] if settings.small else SHORT_SIDES:
        copies[side] = settings.folder / str(side)
        pack_images(
            full,
            copies[side],
            PackSettings(short_side=side),
            workers=0,
            on_bad_image="error",
            log=RunLog(None, is_main=False),
        )
    rows = []
    with one_thread():
        for crop in CROPS:
            for side, folder in copies.items():
                ours, peer = (partial(_read, _dataset(each, crop)) for each in (folder, full))
                taken = compare(ours, peer, rounds=settings.rounds, log=settings.log)
                ours_rate, full_rate = (count / min(each) for each in (taken.ours, taken.peer))
                rows.append(
                    Row(
                        f"short side {side} against full size, crop {crop}",
                        taken.ratio,
                        promised=PROMISED if side == SHORT_SIDES[-1] else None,
                        detail=f"{ours_rate:.0f} and {full_rate:.0f} images/s at best; {taken}; "
                        f"{_kilobytes(folder):.1f} and {_kilobytes(full):.1f} kB a file",
                    )
                )
    return rows


def _write_enlarged(source: Path, target: Path, *, count: int) -> None:
    names, _ = images_in(source)
    for name in names[:: len(names) // count][:count]:
        enlarged = cv2.resize(read_image(source / name), FULL_SIZE, interpolation=cv2.INTER_CUBIC)
        path = (target / name).with_suffix(".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), enlarged[..., ::-1])  # OpenCV's quality is 95


def _dataset(folder: Path, crop: int) -> FolderDataset:
    config = load_config(REPOSITORY / CONFIG, [f"augment.crop={crop}"], schemas=SCHEMAS)
    assert isinstance(config, ClassificationConfig)
    return FolderDataset(folder, transform=TrainingTransform(config.augment))


def _read(data: FolderDataset) -> None:
    for first in range(0, len(data), BATCH_SIZE):
        indices = range(first, min(first + BATCH_SIZE, len(data)))
        data.collate([data.load(index, index) for index in indices])


def _kilobytes(folder: Path) -> float:
    names, _ = images_in(folder)
    return sum((folder / name).stat().st_size for name in names) / len(names) / 1000
