"""Synthetic classification data: single objects of the demo, in a folder for each class.

They serve to pretrain the demo's backbone. They are cropped from separate scenes, so they contain
no image of the detection demo.
"""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from backbones.config import DemoConfig
from detection.datasets.demo import CATEGORIES, Scene, draw_once, draw_scene

SIDE = 64
"""Width and height of the images, in pixels."""
MARGIN_RANGE = (1.05, 1.5)
"""Side of the square crop, relative to the longer side of the object's box."""
PADDING = 96
"""Rows and columns of mirrored padding around a scene, for crops that reach outside it."""


def make_demo_objects(config: DemoConfig) -> None:
    """Draw `train/CLASS/` and `val/CLASS/` under `config.root`, 64x64 images.

    Does nothing if the folder already holds images of the same parameters; see `draw_once`.

    Raises:
        UserError: the folder holds files that are not an earlier demo's, or cannot be written.
    """
    draw_once(config, _make_split, streams=(2, 3))


def _make_split(root: Path, split: str, count: int, *, seed: tuple[int, int]) -> list[str]:
    """Write `count` images; return their names, relative to `root`."""
    for name in CATEGORIES.values():
        (root / split / name).mkdir(parents=True)
    names = []
    for number, (class_name, pixels) in zip(range(1, count + 1), _objects(seed), strict=False):
        # OpenCV expects BGR
        done, encoded = cv2.imencode(".png", pixels[..., ::-1])
        assert done
        names.append(f"{split}/{class_name}/{number:06d}.png")
        (root / names[-1]).write_bytes(encoded.tobytes())
    return names


def _objects(seed: tuple[int, int]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (class name, image of one object) endlessly."""
    number = 0
    while True:
        # one generator per scene: image k does not depend on how many images are drawn
        rng = np.random.default_rng([*seed, number])
        number += 1
        scene = draw_scene(rng)
        for row in scene.annotations():
            if not row["iscrowd"]:
                yield CATEGORIES[row["category_id"]], _crop(scene, row["bbox"], rng)


def _crop(scene: Scene, bbox: list[int], rng: np.random.Generator) -> np.ndarray:
    """Return (SIDE, SIDE, 3) uint8: a square crop around the box [x, y, width, height]."""
    x, y, width, height = bbox
    side = round(max(width, height) * rng.uniform(*MARGIN_RANGE))
    # top left corner in the padded scene, in which all coordinates are larger by PADDING
    left = PADDING + round(x + width / 2 - side / 2)
    top = PADDING + round(y + height / 2 - side / 2)
    padded = cv2.copyMakeBorder(
        scene.pixels, PADDING, PADDING, PADDING, PADDING, cv2.BORDER_REFLECT
    )
    square = padded[top : top + side, left : left + side]
    # averages pixels if the crop shrinks, interpolates if it grows
    method = cv2.INTER_AREA if side > SIDE else cv2.INTER_LINEAR
    pixels: np.ndarray = cv2.resize(square, (SIDE, SIDE), interpolation=method)
    return pixels
