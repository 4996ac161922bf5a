"""Tiny ImageNet's layout, with a box for each picture.

`wnids.txt` lists the classes; `train/WNID/WNID_boxes.txt` holds lines `NAME x1 y1 x2 y2` about
`train/WNID/images/NAME`, `val/val_annotations.txt` lines `NAME WNID x1 y1 x2 y2` about
`val/images/NAME`, separated by tabs. `words.txt`, if there, says what an id means.
"""

from collections.abc import Sequence
from pathlib import Path

from backbones.images import read_size
from detection.data.image_files import image_path
from detection.localization.annotations import (
    BoxedPictures,
    Gathering,
    read_words,
)
from engine.errors import UserError
from engine.files import read_lines
from engine.schema import BadInputPolicy


def read_tiny_imagenet(
    root: Path,
    split: str,
    *,
    class_names: Sequence[str] | None = None,
    on_bad_box: BadInputPolicy,
    on_bad_image: BadInputPolicy,
) -> BoxedPictures:
    """Read one split.

    In the real set the largest number is 63, in pictures of 64 pixels, at more than a third of the
    right and of the lower edges: the far corner is the last pixel inside. Boxes from x to x or y to
    y are what was left of objects that lay outside when the pictures were cut; they are bad.

    Args:
        root: folder with wnids.txt, train/ and val/.
        split: "train" or "val".
        class_names: those of training; None takes wnids.txt.
        on_bad_box: what to do with a box without width or height, or outside its picture.
        on_bad_image: what to do with a picture that is missing or whose size cannot be read.

    Raises:
        UserError: a file is missing or wrong, or something is bad and the policy is to stop.
    """
    names = read_lines(root / "wnids.txt")
    gathering = Gathering(
        root,
        names if class_names is None else class_names,
        read_words(root / "words.txt"),
        on_bad_box=on_bad_box,
        last_pixel=True,
    )
    sources: list[tuple[Path, str | None]] = [(root / "val/val_annotations.txt", None)]
    if split == "train":
        sources = [(root / f"train/{name}/{name}_boxes.txt", name) for name in names]
    faults: dict[str, str] = {}
    for source, of_file in sources:
        for number, line in enumerate(read_lines(source), start=1):
            place = f"{source}: line {number}"
            picture, class_name, box = _read_line(line, of_file, place=place)
            try:
                path = image_path(source.parent / "images", picture)
                if not path.is_relative_to(root):
                    raise UserError(f"{place}: expected a picture below {root}, got {path}")
                size = read_size(path)
            except UserError as error:
                faults[picture] = str(error)
                continue
            below = path.relative_to(root).as_posix()
            gathering.add(below, class_name, size=size, boxes=[box], source=place)
    gathering.drop_images(faults, on_bad_image)
    return gathering.finish()


def _read_line(
    line: str, class_name: str | None, *, place: str
) -> tuple[str, str, tuple[float, ...]]:
    """Return picture, class and box of a line; `class_name` where the line does not give it."""
    fields = line.split("\t")
    try:
        name, *more = fields[:-4]
        (wnid,) = [class_name] if class_name is not None and not more else more
        return name, str(wnid), tuple(float(value) for value in fields[-4:])
    except ValueError as error:
        expected = "NAME" if class_name is not None else "NAME, WNID"
        raise UserError(
            f"{place}: expected {expected} and x1, y1, x2, y2 separated by tabs, got {line[:60]!r}"
        ) from error
