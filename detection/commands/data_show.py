"""Command `data show`: draw annotated images, and contact sheets of objects by class.

Usage: resdet data show JSON --images DIR --output DIR [--class NAME ...] [--strangest]
"""

import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detection.commands.data_inputs import say_large
from engine.cli import CommandParser
from engine.errors import UserError

if TYPE_CHECKING:
    from detection.commands.contact_sheets import ImageReader
    from detection.data.coco import Annotations
    from detection.datasets.object_choice import ChosenObject
    from engine.log import RunLog

DRAWN, SHEETS = "drawn", "sheets"
"""Folders in the output: annotated images, and contact sheets."""

_NAME_CHARACTERS = 40  # of a class name, in the name of its sheet


def main() -> None:
    """Parse the command line, choose objects and images, draw them."""
    parser = CommandParser(
        description="Draw annotated images, and a contact sheet of objects for each class."
    )
    parser.add_argument("json", type=Path, metavar="JSON", help="a COCO JSON")
    parser.add_argument("--images", type=Path, required=True, help="the folder of its images")
    parser.add_argument(
        "--output", type=Path, required=True, help=f"folder for {DRAWN}/ and {SHEETS}/"
    )
    parser.add_argument(
        "--class", nargs="+", dest="classes", metavar="NAME", help="only these (default: all)"
    )
    parser.add_argument(
        "--strangest",
        action="store_true",
        help="in place of random objects, those farthest from their class in size or aspect, "
        "near-duplicates, and tiny ones",
    )
    parser.add_argument(
        "--count", type=int, default=24, help="objects a class, and images (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default: 0)")
    parser.add_argument("--force", action="store_true", help="overwrite existing drawings")
    arguments = parser.parse_args()
    if arguments.count < 1 or arguments.seed < 0:
        raise UserError("command line: expected --count of at least 1 and --seed of at least 0")

    from backbones.images import quiet_opencv
    from detection.commands.contact_sheets import ImageReader
    from detection.data.coco import read_coco
    from engine.log import RunLog
    from engine.paths import require_folder

    quiet_opencv()
    require_folder(arguments.images, "the folder of images")
    log = RunLog(None, is_main=True)
    say_large(log, arguments.json)
    # for_scoring keeps the ids of annotations
    annotations = read_coco(arguments.json, on_bad_box="skip", need_boxes=False, for_scoring=True)
    labels = _labels_of(annotations, arguments.classes)
    reader = ImageReader(annotations, arguments.images)
    for folder in (DRAWN, SHEETS):
        _prepare(arguments.output / folder, reader, force=arguments.force)
    choice = _choose(
        annotations, labels, arguments.count, arguments.seed, strangest=arguments.strangest
    )
    what = "the strangest" if arguments.strangest else "random"
    num_sheets = _write_sheets(reader, choice, arguments.output / SHEETS, log, what=what)
    rows = _rows_to_draw(
        annotations, choice, arguments.count, arguments.seed, strangest=arguments.strangest
    )
    num_drawn = _write_drawings(reader, rows, arguments.output / DRAWN, log)
    for (reason, name), number in annotations.report.dropped.items():
        log.note(f"{arguments.json}: {number} boxes of {name} are not shown: {reason}")
    log.note(f"{num_sheets} contact sheets of {what} objects: {arguments.output / SHEETS}")
    log.note(f"{num_drawn} images with their annotations: {arguments.output / DRAWN}")
    if reader.skipped and not num_drawn:
        first = next(iter(reader.skipped.values()))
        raise UserError(
            f"{arguments.images}: expected images of {arguments.json}, but none of "
            f"{len(reader.skipped)} could be read: {first}"
        )
    if reader.skipped:
        log.note(f"{len(reader.skipped)} images skipped:")
        for reason in reader.skipped.values():
            log.note(f"  {reason}")


def _labels_of(annotations: "Annotations", names: Sequence[str] | None) -> list[int]:
    """Return the labels of the classes with these names, or of all.

    Raises:
        UserError: there is no class of a name.
    """
    from backbones.weights import listing

    known = annotations.classes.names
    if names is None:
        return list(range(len(known)))
    for name in names:
        if name not in known:
            expected = f"a class of {annotations.path} ({listing(known, 10)})"
            raise UserError(f"--class: expected {expected}, got {name}")
    return [known.index(name) for name in dict.fromkeys(names)]


def _prepare(folder: Path, reader: "ImageReader", *, force: bool) -> None:
    """Create an output folder and check that no image or earlier drawing would be replaced.

    Raises:
        UserError: it has files, or it is a folder of the data set's images.
    """
    from engine.checkpoint import prepare_output
    from engine.paths import names_in, resolved

    sources = {reader.path_of(row).parent for row in range(len(reader.annotations))}
    if resolved(folder) in {resolved(source) for source in sources}:
        raise UserError(f"{folder}: expected a folder for drawings, got the folder of the images")
    if names_in(folder) and not force:
        raise UserError(
            f"{folder}: expected an empty folder, got one with files; --force adds to "
            "it and replaces drawings of the same name"
        )
    prepare_output(folder)


def _choose(
    annotations: "Annotations", labels: Sequence[int], count: int, seed: int, *, strangest: bool
) -> "dict[int, list[ChosenObject]]":
    """Return the chosen objects by label."""
    from detection.datasets.object_choice import (
        random_objects,
        strangeness_of,
        strangest_objects,
    )

    if not strangest:
        return {label: random_objects(annotations, label, count, seed=seed) for label in labels}
    found = strangeness_of(annotations)
    return {
        label: strangest_objects(annotations, label, count, strangeness=found) for label in labels
    }


def _write_sheets(
    reader: "ImageReader",
    choice: "dict[int, list[ChosenObject]]",
    folder: Path,
    log: "RunLog",
    *,
    what: str,
) -> int:
    """Write the contact sheets of each class; return their number."""
    from detection.commands.contact_sheets import contact_sheets
    from detection.visualize import write_image

    classes = reader.annotations.classes
    totals = np.bincount(reader.annotations.labels, minlength=len(classes))
    written = 0
    for label, chosen in log.progress(choice.items(), len(choice), "contact sheets"):
        name = classes.names[label]
        plain_name = re.sub(r"[^\w-]+", "_", name)[:_NAME_CHARACTERS]
        title = f"{name}: {what} {len(chosen)} of {totals[label]} objects"
        for page, sheet in enumerate(contact_sheets(reader, chosen, title=title), start=1):
            end = f"_{page}" if page > 1 else ""
            # the id keeps apart what is one name for the file system
            write_image(folder / f"{classes.category_ids[label]}_{plain_name}{end}.jpg", sheet)
            written += 1
    return written


def _rows_to_draw(
    annotations: "Annotations",
    choice: "dict[int, list[ChosenObject]]",
    count: int,
    seed: int,
    *,
    strangest: bool,
) -> list[int]:
    """Return the rows of up to `count` images: random ones, or those of the chosen objects."""
    if strangest:
        # of each class the strangest, then of each the second, ...
        turns = zip_longest(*choice.values())
        objects = [each.row for turn in turns for each in turn if each is not None]
        rows = annotations.row_of(np.array(objects, np.int64)).tolist()
        return list(dict.fromkeys(rows))[:count]
    candidates = np.arange(len(annotations))
    if len(choice) < len(annotations.classes):
        chosen_classes = np.isin(annotations.labels, list(choice))
        candidates = np.unique(annotations.row_of(np.flatnonzero(chosen_classes)))
    rng = np.random.default_rng(seed)
    return sorted(map(int, rng.permutation(candidates)[:count]))


def _write_drawings(reader: "ImageReader", rows: Sequence[int], folder: Path, log: "RunLog") -> int:
    """Write the annotated images; return their number."""
    from detection.commands.contact_sheets import draw_annotated
    from detection.visualize import free_paths, write_image

    written = 0
    targets = free_paths([reader.path_of(row) for row in rows], folder)
    pairs = zip(rows, targets, strict=True)
    for row, target in log.progress(pairs, len(rows), "drawing images"):
        drawing = draw_annotated(reader, row)
        if drawing is not None:
            write_image(target, drawing)
            written += 1
    return written
