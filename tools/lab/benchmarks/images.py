"""Data of the benchmarks: the coco128 images, and COCO annotations of synthetic images."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detection.config import SplitConfig
from engine.errors import UserError
from engine.paths import is_file, resolved
from tools.lab import REPOSITORY


def shared_folder(name: str) -> Path:
    """Return a folder in `RESDET_DATA`; it may be missing."""
    default = REPOSITORY.parent / "shared" / "data"
    return resolved(os.environ.get("RESDET_DATA", default)) / name


def coco128() -> SplitConfig:
    """Return 128 images of COCO's training set: `coco128` in the folder `RESDET_DATA`.

    Raises:
        UserError: the images are missing.
    """
    folder = shared_folder("coco128")
    annotations = folder / "annotations" / "instances_train2017.json"
    if not is_file(annotations):
        raise UserError(
            f"{annotations}: no such file; set RESDET_DATA to the folder that holds coco128"
        )
    return SplitConfig(images=str(folder / "train2017"), annotations=str(annotations))


def coco_document(
    sizes: Iterable[tuple[int, int]],
    objects: Sequence[Mapping[str, Any]],
    *,
    num_classes: int,
    file_name: str = "{}.jpg",
) -> dict[str, Any]:
    """Return the content of a COCO file.

    Args:
        sizes: (height, width) of each image; image ids count from 0.
        objects: entries of `annotations`.
        num_classes: number of categories; their ids count from 1.
        file_name: file name of an image, with {} for its id.
    """
    return {
        "images": [
            {"id": i, "file_name": file_name.format(i), "height": height, "width": width}
            for i, (height, width) in enumerate(sizes)
        ],
        "annotations": objects,
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, num_classes + 1)],
    }
