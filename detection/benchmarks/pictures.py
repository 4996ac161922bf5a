"""The folder of real pictures that some benchmarks measure with."""

import os
from pathlib import Path

from detection.config import SplitConfig
from engine.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def coco128() -> SplitConfig:
    """Return 128 pictures of COCO's training set: `coco128` in the folder that RESDET_DATA names.

    Raises:
        UserError: they are not there.
    """
    default = REPOSITORY.parent / "shared" / "data"
    folder = Path(os.environ.get("RESDET_DATA", default)).resolve() / "coco128"
    annotations = folder / "annotations" / "instances_train2017.json"
    if not annotations.is_file():
        raise UserError(
            f"{annotations}: no such file; RESDET_DATA is to name the folder of real pictures"
        )
    return SplitConfig(images=str(folder / "train2017"), annotations=str(annotations))
