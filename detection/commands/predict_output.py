"""What an output folder has before a prediction: what may be replaced, and what is refused."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from detection.commands.predict_formats import (
    ANNOTATIONS_FILE,
    ANNOTATIONS_START,
    CSV_FILE,
    CSV_HEADER,
    DATA_FILE,
    DATA_START,
    LABELS,
)
from detection.commands.predict_images import CROPS
from detection.datasets.formats.folders import CLASSES_FILE
from engine.errors import UserError
from engine.paths import exists, names_in, open_file
from engine.run_files import DETECTIONS_FILE

_FILES = {
    "coco": (DETECTIONS_FILE,),
    "csv": (CSV_FILE,),
    "yolo": (DATA_FILE, CLASSES_FILE),
    "coco-annotations": (ANNOTATIONS_FILE,),
}
"""The files of each format."""
_STARTS = {
    DETECTIONS_FILE: (b'[{"file_name": ', b"[]"),
    CSV_FILE: (",".join(CSV_HEADER).encode(),),
    DATA_FILE: (DATA_START.encode(),),
    ANNOTATIONS_FILE: (ANNOTATIONS_START.encode(),),
}
"""What files of predictions begin with."""


def check_files(output: Path, formats: Sequence[str]) -> None:
    """Raise UserError if a file would be replaced that is not of an earlier prediction."""
    for name in (name for key in ("coco", *formats) for name in _FILES[key]):
        if exists(output / name) and not _is_ours(output, name):
            expected = "expected no such file but an earlier prediction's, got another"
            raise UserError(f"{output / name}: {expected}; choose another --output")


def _is_ours(output: Path, name: str) -> bool:
    if name == CLASSES_FILE:  # it has names of classes alone
        name = DATA_FILE
    starts = _STARTS[name]
    with suppress(UserError, OSError), open_file(output / name) as file:
        return file.read(max(map(len, starts))).startswith(starts)
    return False


def filled_folders(output: Path) -> list[str]:
    """Return which of the folders for labels and crops have files."""
    return [name for name in (LABELS, CROPS) if names_in(output / name)]


def check_folders(
    output: Path, filled: Collection[str], formats: Sequence[str], *, crops: bool
) -> None:
    """Raise UserError if labels or crops of other images would stay among the new ones.

    filled: `filled_folders` when the prediction began.
    """
    for name in [LABELS] * ("yolo" in formats) + [CROPS] * crops:
        if name in filled:
            expected = "expected no files of an earlier prediction, got some"
            raise UserError(f"{output / name}: {expected}; remove it, or choose an --output")


def other_results(output: Path, formats: Sequence[str], *, crops: bool) -> list[Path]:
    """Return the files and folders of results that a prediction leaves as they are."""
    names = [names[0] for key, names in _FILES.items() if key not in ("coco", *formats)]
    names += [CROPS] * (not crops)
    return [output / name for name in names if exists(output / name)]
