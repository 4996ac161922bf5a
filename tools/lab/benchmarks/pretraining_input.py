"""Benchmark: reading of pretraining images on one core, from packed copies and full-size files.

The full-size files are those of imagenette128, enlarged to 500 x 375, about ImageNet's mean size.
Files are in memory after the first round, so that no disk is measured. Rates are medians.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import cv2

from backbones.classification.config import SCHEMAS, ClassificationConfig, DecodePlace
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

RECIPES = {
    "modern recipe at 176": ("base_imagenet_modern.yaml", 176),
    "modern recipe at 224": ("base_imagenet_modern.yaml", 224),
    "paper's recipe at 224": ("base_imagenet_paper.yaml", 224),
}
"""By name, the config in configs/backbones and the side of the crop."""
SHORT_SIDES = (256, 232, 208, 192, 176)
JPEG = [PackSettings(side) for side in SHORT_SIDES]
RAW = [PackSettings(side, quality=None) for side in (400, *SHORT_SIDES)]
BATCH_SIZE = 64
FULL_SIZE = (500, 375)
"""Width and height."""
AIM = 3.0
AIMED_AT = {("modern recipe at 176", 232), ("modern recipe at 224", 256)}
"""Recipes and shorter sides at which uncompressed copies should be read `AIM` times as fast."""


def pretraining_input(settings: Settings) -> list[Row]:
    """Measure the reading of the same images from copies of several sizes and both formats."""
    count = 8 if settings.small else 512
    full = settings.folder / "full"
    write_enlarged(shared_folder("imagenette128") / "train", full, count=count)
    copies = {}
    for kind in (JPEG[0], RAW[1]) if settings.small else (*JPEG, *RAW):
        copies[kind] = settings.folder / f"{kind.short_side}_{kind.quality}"
        pack_images(
            full,
            copies[kind],
            kind,
            workers=0,
            on_bad_image="error",
            log=RunLog(None, is_main=False),
        )
    rows = []
    with one_thread():
        for recipe in RECIPES:
            whole = _dataset(full, recipe)
            for kind, folder in copies.items():
                rows.append(_row(recipe, kind, folder, whole, settings))
            encoded = _dataset(full, recipe, decode="device")
            name = f"{recipe}: data.decode=device (reading alone) against workers, full size"
            rows.append(_compared(name, encoded, whole, settings))
    return rows


def _row(
    recipe: str, kind: PackSettings, folder: Path, whole: FolderDataset, settings: Settings
) -> Row:
    is_raw = kind.quality is None
    row = _compared(
        f"{recipe}: {'raw' if is_raw else 'JPEG'} {kind.short_side} against full size",
        _dataset(folder, recipe),
        whole,
        settings,
    )
    return replace(
        row,
        aim=AIM if is_raw and (recipe, kind.short_side) in AIMED_AT else None,
        detail=f"{row.detail}; {_kilobytes(folder):.1f} kB a file",
    )


def _compared(name: str, data: FolderDataset, peer: FolderDataset, settings: Settings) -> Row:
    taken = compare(
        partial(_read, data), partial(_read, peer), rounds=settings.rounds, log=settings.log
    )
    rates = (len(data) / median(each) for each in (taken.ours, taken.peer))
    detail = " and ".join(f"{rate:.0f}" for rate in rates)
    return Row(name, taken.ratio, detail=f"{detail} images/s; {taken}")


def write_enlarged(source: Path, target: Path, *, count: int) -> None:
    """Write `count` images of a folder, evenly chosen, enlarged to `FULL_SIZE`, as JPEG files."""
    names, _ = images_in(source)
    for name in names[:: len(names) // count][:count]:
        enlarged = cv2.resize(read_image(source / name), FULL_SIZE, interpolation=cv2.INTER_CUBIC)
        path = (target / name).with_suffix(".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), enlarged[..., ::-1])  # OpenCV's quality is 95


def _dataset(folder: Path, recipe: str, *, decode: DecodePlace = "workers") -> FolderDataset:
    name, crop = RECIPES[recipe]
    path = REPOSITORY / "configs/backbones" / name
    config = load_config(path, [f"augment.crop={crop}"], schemas=SCHEMAS)
    assert isinstance(config, ClassificationConfig)
    return FolderDataset(folder, transform=TrainingTransform(config.augment), decode=decode)


def _read(data: FolderDataset) -> None:
    for first in range(0, len(data), BATCH_SIZE):
        indices = range(first, min(first + BATCH_SIZE, len(data)))
        data.collate([data.load(index, index) for index in indices])


def _kilobytes(folder: Path) -> float:
    names, _ = images_in(folder)
    return sum((folder / name).stat().st_size for name in names) / len(names) / 1000
