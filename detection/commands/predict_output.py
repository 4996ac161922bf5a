"""What an output folder has before a prediction: what may be replaced, and what is refused."""

from collections.abc import Collection, Iterable, Sequence
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
from engine.paths import exists, is_file, is_folder, names_in, open_file
from engine.run_files import DETECTIONS_FILE

PARTIAL = "detections.partial.jsonl"
"""The JSON lines, until the prediction is complete."""
_FILES = {
    "coco": (DETECTIONS_FILE,),
    "csv": (CSV_FILE,),
    "yolo": (DATA_FILE, CLASSES_FILE),
    "coco-annotations": (ANNOTATIONS_FILE,),
}
"""The files of each format."""
_STARTS = {
    PARTIAL: (b'{"job": ',),
    DETECTIONS_FILE: (b'[{"file_name": ', b"[]"),
    CSV_FILE: (",".join(CSV_HEADER).encode(),),
    DATA_FILE: (DATA_START.encode(),),
    ANNOTATIONS_FILE: (ANNOTATIONS_START.encode(),),
}
"""What files of predictions begin with."""


def files_of(formats: Sequence[str]) -> list[str]:
    """Return the names of the files in the formats, and of those that are always written."""
    return [name for key in ("coco", *formats) for name in _FILES[key]]


def check_files(output: Path, names: Iterable[str]) -> None:
    """Raise UserError if a file would be replaced that is not of an earlier prediction."""
    for name in names:
        if is_file(output / name) and not _is_ours(output, name):
            expected = "expected none, or that of an earlier prediction, got another file"
            raise UserError(f"{output / name}: {expected}; choose another --output")


def _is_ours(output: Path, name: str) -> bool:
    if name == CLASSES_FILE:  # it has names of classes alone
        name = DATA_FILE
    starts = _STARTS[name]
    with suppress(UserError, OSError), open_file(output / name) as file:
        found = file.read(max(map(len, starts)))
        # a kill may leave a part
        return found.startswith(starts) or any(start.startswith(found) for start in starts)
    return False


def filled_folders(output: Path) -> list[str]:
    """Return which of the folders for labels and crops have files."""
    folders = (name for name in (LABELS, CROPS) if is_folder(output / name))
    return [name for name in folders if names_in(output / name)]


def check_folders(
    output: Path, filled: Collection[str], formats: Sequence[str], *, crops: bool
) -> None:
    """Raise UserError if labels or crops of other images would stay among the new ones.

    filled: `filled_folders` when the prediction began.
    """
    for name in [LABELS] * ("yolo" in formats) + [CROPS] * crops:
        if exists(output / name) and not is_folder(output / name):
            raise UserError(f"{output / name}: expected a folder, got a file")
        if name in filled:
            expected = "expected no files of an earlier prediction, got some"
            raise UserError(f"{output / name}: {expected}; remove it, or choose an --output")


def other_results(output: Path, formats: Sequence[str], *, crops: bool) -> list[Path]:
    """Return the files and folders of results that a prediction leaves as they are."""
    names = [name for name in files_of(list(_FILES)) if name not in files_of(formats)]
    names += [LABELS] * ("yolo" not in formats) + [CROPS] * (not crops)
    return [output / name for name in names if exists(output / name)]
