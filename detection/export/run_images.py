"""Images to run an exported file on: given ones, the run's own, or drawn ones."""

from pathlib import Path
from typing import Literal

import numpy as np

from backbones.classification.config import ClassificationConfig
from backbones.images import images_in, read_image
from detection.config import DetectionConfig
from detection.datasets.demo import draw_scene
from detection.localization.config import LocalizationBaseConfig
from engine.errors import UserError
from engine.paths import is_folder
from engine.schema import RunConfig


def run_images(
    folder: Path | None, config: RunConfig, *, split: Literal["train", "val"], count: int
) -> tuple[list[np.ndarray], str]:
    """Return images (H, W, 3) uint8 RGB of several sizes, and a text that says what they are.

    Args:
        folder: where to take them from, at any depth; None: the run's own images of `split` if they
            are there, otherwise images are drawn.
        config: of the run.
        split: of the run's data.
        count: largest number of images.

    Raises:
        UserError: the given folder has no images, or an image cannot be read.
    """
    source = folder or _folder_of(config, split)
    if source is None:
        rng = np.random.default_rng(0)
        drawn = [_cut(draw_scene(rng).pixels, number) for number in range(count)]
        return drawn, f"{count} drawn images; the run's own are not there"
    if not is_folder(source):
        raise UserError(f"--images: expected a folder, got {source}")
    names, _ = images_in(source)
    if not names:
        raise UserError(f"{source}: expected images, got none")
    chosen = [names[place * len(names) // count] for place in range(min(count, len(names)))]
    images = [_cut(read_image(source / name), number) for number, name in enumerate(chosen)]
    return images, f"{len(images)} images of {source}"


def _folder_of(config: RunConfig, split: Literal["train", "val"]) -> Path | None:
    """Return the folder of a run's images if there is one."""
    named = None
    if isinstance(config, DetectionConfig):
        named = getattr(config.data, split).images
    elif isinstance(config, ClassificationConfig) and config.data.kind == "folder":
        named = f"{config.data.root}/{split}"
    elif isinstance(config, LocalizationBaseConfig) and config.data.root:
        below = "Data/CLS-LOC/" if config.data.kind == "ilsvrc" else ""
        named = f"{config.data.root}/{below}{split}"
    return Path(named) if named and is_folder(named) else None


def _cut(pixels: np.ndarray, number: int) -> np.ndarray:
    """Return a part of an image, so that images of one size become images of several."""
    height, width = pixels.shape[:2]
    parts = ((height, width), (height * 2 // 3, width), (height, width * 2 // 3))
    rows, columns = parts[number % len(parts)]
    return np.ascontiguousarray(pixels[: max(1, rows), : max(1, columns)])
