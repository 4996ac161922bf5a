"""Images for benchmarks: the folder of real ones, and COCO documents about made-up ones."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detection.config import SplitConfig
from engine.errors import UserError
from engine.paths import is_file, resolved
from tools.lab import REPOSITORY


def coco128() -> SplitConfig:
    """Return 128 images of COCO's training set: `coco128` in the folder that RESDET_DATA names.

    Raises:
        UserError: they are not there.
    """
    default = REPOSITORY.parent / "shared" / "data"
    folder = resolved(os.environ.get("RESDET_DATA", default)) / "coco128"
    annotations = folder / "annotations" / "instances_train2017.json"
    if not is_file(annotations):
        raise UserError(
            f"{annotations}: no such file; RESDET_DATA is to name the folder of real images"
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
        sizes: (height, width) of each image; their ids count from 0.
        objects: annotations.
        num_classes: classes with the ids 1, 2 ...
        file_name: of an image, with {} in place of its id.
    """
    return {
        "images": [
            {"id": i, "file_name": file_name.format(i), "height": height, "width": width}
            for i, (height, width) in enumerate(sizes)
        ],
        "annotations": objects,
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, num_classes + 1)],
    }
