"""Synthetic localization data: the demo's scenes in Tiny ImageNet's layout.

The class of an image is the class of its largest object.
"""

from pathlib import Path

import cv2
import numpy as np

from backbones.config import DemoConfig
from detection.datasets.demo import CATEGORIES, draw_once, draw_scene


def make_demo_localization(config: DemoConfig) -> None:
    """Draw `train/` and `val/` with their box files, and `wnids.txt`, under `config.root`.

    Does nothing if the folder already holds images of the same parameters; see `draw_once`.

    Raises:
        UserError: the folder holds files that are not an earlier demo's, or cannot be written.
    """
    draw_once(config, _make_split, streams=(4, 5))


def _make_split(root: Path, split: str, count: int, *, seed: tuple[int, int]) -> list[str]:
    """Write `count` images and their annotations; return all file names, relative to `root`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "wnids.txt").write_text("".join(f"{name}\n" for name in CATEGORIES.values()))
    lines: dict[str, list[str]] = {name: [] for name in CATEGORIES.values()}
    names = ["wnids.txt"]
    number = 0
    while sum(map(len, lines.values())) < count:
        scene = draw_scene(np.random.default_rng([*seed, number]))
        number += 1  # scenes without objects are skipped, so numbers have gaps
        objects = [row for row in scene.annotations() if not row["iscrowd"]]
        if not objects:
            continue
        # Tiny ImageNet has one object per image; the other shapes of the scene have no box
        largest = max(objects, key=lambda row: row["bbox"][2] * row["bbox"][3])
        kind = CATEGORIES[largest["category_id"]]
        folder = f"train/{kind}" if split == "train" else split
        image = f"{number:06d}.png"
        (root / folder / "images").mkdir(parents=True, exist_ok=True)
        done, encoded = cv2.imencode(".png", scene.pixels[..., ::-1])
        assert done
        (root / folder / "images" / image).write_bytes(encoded.tobytes())
        names.append(f"{folder}/images/{image}")
        x, y, width, height = largest["bbox"]
        box = (x, y, x + width - 1, y + height - 1)  # x2, y2 are the last pixel, as in the real set
        fields = [image, *([] if split == "train" else [kind]), *map(str, box)]
        lines[kind].append("\t".join(fields))
    files = {f"train/{kind}/{kind}_boxes.txt": rows for kind, rows in lines.items() if rows}
    if split == "val":
        files = {"val/val_annotations.txt": [row for rows in lines.values() for row in rows]}
    for name, rows in files.items():
        (root / name).write_text("".join(f"{row}\n" for row in rows))
    return names + list(files)
