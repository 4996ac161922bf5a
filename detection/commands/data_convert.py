"""Command `data convert`: convert annotations between COCO JSON and what labelling tools export.

Usage: resdet data convert SOURCE [--from FORMAT] [--to FORMAT] --output OUT
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli import CommandParser
from engine.errors import UserError

if TYPE_CHECKING:
    from detection.datasets.formats.checking import CheckedDocument
    from engine.log import RunLog

# the keys of READERS and WRITERS, which are slow to import
SOURCES = (
    *("coco", "csv", "cvat", "label-studio", "labelme"),
    *("masks", "roboflow", "via", "voc", "yolo"),
)
TARGETS = ("coco", "csv", "cvat", "labelme", "masks", "via", "voc", "yolo")


def main() -> None:
    """Parse the command line, read, check, write, and say what was dropped and filled in."""
    arguments = _parse()

    from backbones.images import quiet_opencv
    from detection.datasets.formats.document import WriteOptions
    from detection.datasets.formats.folders import refuse_filled
    from detection.datasets.formats.tables import FILE_FORMATS, WRITERS
    from engine.files import refuse_existing
    from engine.log import RunLog, make_console

    quiet_opencv()
    output, target = arguments.output, arguments.to
    _refuse_source(arguments.source, output)
    (refuse_existing if target in FILE_FORMATS else refuse_filled)(output, force=arguments.force)
    log = RunLog(None, is_main=True)
    checked = _read(arguments, log)
    options = WriteOptions(
        images=arguments.images,
        force=arguments.force,
        boxes=arguments.boxes or "corners",
        copy_images=arguments.copy_images,
        segments=arguments.segments,
        log=log,
    )
    written = WRITERS[target](checked, output, options)
    show = make_console().print
    show(checked.table(), soft_wrap=False)
    show("\n".join([*checked.lines(), *written]))


def _refuse_source(source: Path, output: Path) -> None:
    """Raise UserError if writing the output could replace files of the source."""
    from engine import paths

    read, written = paths.resolved(source), paths.resolved(output)
    inside = written.is_relative_to(read) and paths.exists(output)
    if inside or (read.is_relative_to(written) and paths.is_folder(output)):
        raise UserError(f"--output: expected a place apart from the source {source}, got {output}")


def _parse() -> argparse.Namespace:
    parser = CommandParser(
        description="Convert annotations of labelling tools to COCO JSON, and back."
    )
    add = parser.add_argument
    add("source", type=Path, help="a file or folder of annotations; it is not changed")
    add("--from", dest="format", choices=("auto", *SOURCES), default="auto", help="(default: auto)")
    add("--to", choices=TARGETS, default="coco", help="(default: %(default)s)")
    add("--output", type=Path, required=True, help="file (coco, csv, cvat, via) or folder to write")
    add("--force", action="store_true", help="overwrite existing files")
    add("--images", type=Path, help="folder of the images, for sizes and file names")
    add("--split", help="part of the source, such as train, or all")
    add("--names", type=Path, help="file with one class per line, in order")
    add("--class-name", help="class of objects that have none (via, masks)")
    add("--class-attribute", help="attribute that holds the class (via)")
    values = parser.add_mutually_exclusive_group().add_argument
    values("--semantic", action="store_true", help="values are classes, not objects (masks)")
    values("--instances", action="store_true", help="values are objects, also with gaps (masks)")
    boxes_help = "voc: first and last pixel from 1, or edges (default: detected; written: corners)"
    add("--boxes", choices=("pixels", "corners"), help=boxes_help)
    add("--segments", action="store_true", help="write polygons in place of boxes (yolo)")
    copy_help = "link or copy images into the output (yolo, voc; default: %(default)s)"
    add("--copy-images", choices=("no", "link", "copy"), default="no", help=copy_help)
    for flag in ("--on-bad-box", "--on-bad-image"):
        what = flag.removeprefix("--on-bad-")
        text = f"stop at a bad {what}, or drop it (default: %(default)s)"
        add(flag, choices=("error", "skip"), default="error", help=text)
    return parser.parse_args()


def _read(arguments: argparse.Namespace, log: "RunLog") -> "CheckedDocument":
    """Read and check the source as the options say."""
    from detection.datasets.formats.checking import check_document
    from detection.datasets.formats.document import ReadOptions
    from detection.datasets.formats.folders import read_class_list
    from detection.datasets.formats.image_names import ImageIndex
    from detection.datasets.formats.tables import READERS, detect_format
    from detection.datasets.voc import number_classes
    from engine import paths

    source, name = arguments.source, arguments.format
    if not paths.exists(source):
        raise UserError(f"{source}: no such file or folder")
    if name == "auto":
        name, reason = detect_format(source)
        log.note(f"{source}: read as {name}, because {reason}; --from overrides this")
    names = read_class_list(arguments.names) if arguments.names else None
    options = ReadOptions(
        images=arguments.images,
        split=arguments.split,
        classes=names,
        class_name=arguments.class_name,
        class_attribute=arguments.class_attribute,
        boxes=arguments.boxes,
        semantic=arguments.semantic,
        instances=arguments.instances,
        log=log,
    )
    document = READERS[name](source, options)
    return check_document(
        document,
        classes=number_classes(names) if names else None,
        # VOC's reader has found the images already
        index=ImageIndex(arguments.images) if arguments.images and name != "voc" else None,
        on_bad_box=arguments.on_bad_box,
        on_bad_image=arguments.on_bad_image,
        log=log,
    )
