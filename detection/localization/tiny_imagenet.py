"""Reader of Tiny ImageNet's layout, with one box per image.

The files; fields are separated by tabs:

- `wnids.txt`: the classes, one per line.
- `train/WNID/WNID_boxes.txt`: lines `NAME x1 y1 x2 y2` for the images `train/WNID/images/NAME`.
- `val/val_annotations.txt`: lines `NAME WNID x1 y1 x2 y2` for the images `val/images/NAME`.
- `words.txt` (optional): readable class names.
"""

from collections.abc import Sequence
from pathlib import Path

from backbones.images import read_size
from detection.data.image_files import image_path
from detection.localization.annotations import (
    AnnotationsBuilder,
    LocalizationAnnotations,
    read_descriptions,
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
) -> LocalizationAnnotations:
    """Read one split.

    x2 and y2 are the last pixel inside the box: the images have 64 pixels a side, and more than a
    third of the boxes of the real data set end at 63, none at 64. A box from x to x or from y to y
    is the rest of an object that lay outside when the images were cropped; it counts as bad.

    Args:
        root: folder with wnids.txt, train/ and val/.
        split: "train" or "val".
        class_names: the training classes; None reads wnids.txt.
        on_bad_box: what to do with a box of zero width or height, or outside its image.
        on_bad_image: what to do with an image that is missing or whose size cannot be read.

    Raises:
        UserError: a file is missing or malformed, or data is bad and its policy is "error".
    """
    names = read_lines(root / "wnids.txt")
    builder = AnnotationsBuilder(
        root,
        names if class_names is None else class_names,
        read_descriptions(root / "words.txt"),
        on_bad_box=on_bad_box,
        last_pixel=True,
    )
    sources: list[tuple[Path, str | None]] = [(root / "val/val_annotations.txt", None)]
    if split == "train":
        sources = [(root / f"train/{name}/{name}_boxes.txt", name) for name in names]
    faults: dict[str, str] = {}
    for source, file_class in sources:
        for number, line in enumerate(read_lines(source), start=1):
            where = f"{source}: line {number}"
            image, class_name, box = _read_line(line, file_class, where=where)
            try:
                path = image_path(source.parent / "images", image)
                if not path.is_relative_to(root):
                    raise UserError(f"{where}: expected an image below {root}, got {path}")
                size = read_size(path)
            except UserError as error:
                faults[image] = str(error)
                continue
            relative = path.relative_to(root).as_posix()
            builder.add(relative, class_name, size=size, boxes=[box], source=where)
    builder.record_unreadable(faults, on_bad_image)
    return builder.build()


def _read_line(
    line: str, class_name: str | None, *, where: str
) -> tuple[str, str, tuple[float, ...]]:
    """Return the image name, class and box of a line.

    Args:
        line: NAME, WNID (only if `class_name` is None) and four coordinates.
        class_name: the class of all lines of the file, if the file has only one.
        where: file and line number, for error messages.
    """
    fields = line.split("\t")
    try:
        # the last four fields are coordinates; before them the name, and a WNID if required. The
        # unpacking fails with ValueError if there are more or fewer fields.
        name, *more = fields[:-4]
        (wnid,) = [class_name] if class_name is not None and not more else more
        return name, str(wnid), tuple(float(value) for value in fields[-4:])
    except ValueError as error:
        expected = "NAME" if class_name is not None else "NAME, WNID"
        raise UserError(
            f"{where}: expected {expected} and x1, y1, x2, y2 separated by tabs, got {line[:60]!r}"
        ) from error
