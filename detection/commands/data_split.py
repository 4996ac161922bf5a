"""Command `data split`: divide a COCO JSON into train, validation and test files.

Usage: resdet data split JSON --output DIR (--fractions 0.8 0.1 0.1 | --counts 800 100 100)
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detection.commands.data_inputs import add_workers, say_large, workers_of
from engine.cli import CommandParser
from engine.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from detection.datasets.coco_document import CocoDocument
    from detection.datasets.split import Split
    from engine.log import RunLog

NAMES = {2: ("train", "val"), 3: ("train", "val", "test")}
"""Default names of the parts, by their number."""

_MAX_CLASSES = 100  # rows of the table


def main() -> None:
    """Parse the command line, divide the images, write the files and print the shares."""
    arguments = _parser().parse_args()
    arguments.workers = workers_of(arguments)
    shares = arguments.fractions or arguments.counts
    names = _names(arguments.names, len(shares))

    from detection.datasets import split
    from detection.datasets.coco_document import prepare_outputs, read_document, write_document
    from engine.log import RunLog, make_console

    outputs = [arguments.output / f"{name}.json" for name in names]
    prepare_outputs(outputs, [arguments.json], force=arguments.force)
    log = RunLog(None, is_main=True)
    say_large(log, arguments.json)
    document = read_document(arguments.json)
    wanted = (
        split.sizes_of_fractions(arguments.fractions, len(document.file_names))
        if arguments.fractions
        else split.sizes_of_counts(arguments.counts)
    )
    groups = None
    if arguments.by is not None:
        groups = split.group_by_key(document, arguments.by)
    elif arguments.group_regex is not None:
        groups = split.group_by_pattern(document, arguments.group_regex)
    same, notes = _equal_images(document, arguments, groups, log)
    together = same if arguments.group_duplicates else ()
    found = split.split_images(
        document, wanted, names, groups=groups, same=together, seed=arguments.seed, log=log
    )
    for part, path in enumerate(outputs):
        write_document(path, found.content_of(part))
    show = make_console().print
    show(_table(found), soft_wrap=False)
    for note in [*notes, *_notes(found)]:
        show(f"{arguments.json}: {note}", highlight=False)
    show(f"written: {', '.join(map(str, outputs))}", highlight=False)


def _parser() -> CommandParser:
    parser = CommandParser(
        description="Divide a COCO JSON into files such as train, val and test, each with its "
        "share of every class."
    )
    parser.add_argument("json", type=Path, metavar="JSON", help="a COCO JSON")
    parser.add_argument("--output", type=Path, required=True, help="folder for the files")
    shares = parser.add_mutually_exclusive_group(required=True)
    shares.add_argument("--fractions", nargs="+", type=float, help="such as 0.8 0.1 0.1")
    shares.add_argument("--counts", nargs="+", type=int, help="images, such as 800 100 100")
    parser.add_argument("--names", nargs="+", help="of the files (default: train val test)")
    groups = parser.add_mutually_exclusive_group()
    groups.add_argument(
        "--by",
        metavar="KEY",
        help="images with an equal value under this key, such as video_id, stay together",
    )
    groups.add_argument(
        "--group-regex",
        metavar="RE",
        help="images stay together whose file names match in an equal text: the regular "
        "expression's groups in parentheses, or all that it matches",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the division (default: 0)")
    parser.add_argument("--images", type=Path, help="compare the images' content in this folder")
    duplicates = parser.add_mutually_exclusive_group()
    duplicates.add_argument(
        "--group-duplicates", action="store_true", help="keep equal images in one file"
    )
    duplicates.add_argument(
        "--allow-leakage", action="store_true", help="divide equal images like others"
    )
    add_workers(parser)
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    return parser


def _names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Return the names of the parts.

    Raises:
        UserError: their number is wrong, two are equal, or one is no file name.
    """
    if names is None and count not in NAMES:
        raise UserError(f"--names: expected {count} names, one for each part, got none")
    found = NAMES[count] if names is None else tuple(names)
    if len(found) != count:
        raise UserError(f"--names: expected {count} names, one for each part, got {len(found)}")
    if len({name.lower() for name in found}) < count:
        raise UserError(f"--names: expected different names, got {' '.join(found)}")
    for name in found:
        if name != Path(name).name or "\\" in name or name in ("", ".", ".."):
            raise UserError(f"--names: expected names of files without a folder, got {name!r}")
    return found


def _equal_images(
    document: "CocoDocument",
    arguments: argparse.Namespace,
    groups: Sequence[str] | None,
    log: "RunLog",
) -> tuple[list[list[int]], list[str]]:
    """Return sets of equal images, and what to say about them.

    Raises:
        UserError: equal images may come into different parts, and the arguments do not allow it.
    """
    from backbones.images import quiet_opencv
    from detection.data.image_content import read_facts
    from detection.datasets.split import duplicates, refuse_leakage
    from engine.paths import require_folder

    contents, notes = None, ["images were compared by name only; --images compares their content"]
    if arguments.images:
        folder = require_folder(arguments.images, "the folder of images")
        quiet_opencv()
        names = document.file_names
        facts = read_facts(folder, names, workers=arguments.workers, log=log)
        contents = [facts[name].digest for name in names]
        missing = sum(fact.is_missing for fact in facts.values())
        damaged = sum(fact.size is None for fact in facts.values()) - missing
        counts = {
            f"images cannot be read in {folder}: compared by name only": missing,
            f"images cannot be decoded in {folder}: compared by the bytes of the file": damaged,
        }
        notes = [f"{count} {what}" for what, count in counts.items() if count]
    same = duplicates(document, contents)
    if not (arguments.group_duplicates or arguments.allow_leakage):
        refuse_leakage(document, groups or list(map(str, range(len(document.file_names)))), same)
    if same:
        what = "kept together" if arguments.group_duplicates else "divided like others"
        notes.append(f"{len(same)} sets of equal images are {what}")
    return same, notes


def _table(found: "Split") -> "Table":
    """Return the numbers of images and objects of each part and their shares of the file."""
    from rich.table import Table

    columns = [*found.names, "in none"] if found.images_per_part()[-1] else list(found.names)
    table = Table("", title="images, and objects by class: number and share of the file")
    table.add_column("in all", justify="right")
    for name in columns:
        table.add_column(name, justify="right")
    objects = found.objects_per_part()
    rows = [
        ("images", found.images_per_part()),
        ("images without objects", found.empty_images_per_part()),
        ("objects", objects.sum(axis=0)),
    ]
    order = sorted(range(len(objects)), key=lambda label: -int(objects[label].sum()))
    rows += [(found.document.class_names[k], objects[k]) for k in order[:_MAX_CLASSES]]
    for place, (name, counts) in enumerate(rows):
        total = int(counts.sum())
        shares = [f"{n}  {n / max(total, 1):6.1%}" for n in counts[: len(columns)].tolist()]
        table.add_row(name, str(total), *shares, end_section=place == 2)
    if len(order) > _MAX_CLASSES:
        table.caption = f"{len(order) - _MAX_CLASSES} more classes are not shown"
    return table


def _notes(found: "Split") -> list[str]:
    """Return what a user should know: classes that a part lacks, sizes that differ, the rest."""
    from backbones.weights import listing
    from detection.datasets.split import missing_classes

    notes = [
        f"{part}: lacks {len(classes)} classes: {listing(classes)}"
        for part, classes in missing_classes(found).items()
    ]
    images = found.images_per_part()
    if found.num_groups < images.sum():
        notes.append(f"{found.num_groups} groups of images, none of them divided")
    notes += [
        f"{name}: {got} images, {want} were asked for; the groups do not allow it"
        for name, got, want in zip(found.names, images, found.wanted, strict=False)
        if got != want
    ]
    if images[-1]:
        notes.append(f"{images[-1]} images are in no part")
    return notes
