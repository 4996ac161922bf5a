"""Options and output that the conversions of XML annotations to COCO JSON share."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli import CommandParser

if TYPE_CHECKING:
    from detection.datasets.voc import Category, ImageSet


def add_xml_options(
    parser: CommandParser, *, boxes: str | None, example: str, sets_required: bool
) -> None:
    """Add the options of a conversion.

    Args:
        parser: gets the options.
        boxes: default of `--boxes`; None detects the convention.
        example: a name of an image set, for the help text.
        sets_required: whether `--sets` must be given.
    """
    parser.add_argument("root", type=Path, help="folder to which file names are relative")
    help_of_sets = f"image sets, such as {example}"
    parser.add_argument("--sets", nargs="+", required=sets_required, help=help_of_sets)
    parser.add_argument("--output", type=Path, required=True, help="COCO JSON to write")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    parser.add_argument(
        "--boxes",
        choices=("pixels", "corners"),
        default=boxes,
        help="pixels: coordinates are the first and last pixel, counted from 1; corners: they "
        f"are the edges of the box (default: {boxes or 'detected from the boxes'})",
    )
    for flag in ("--on-bad-box", "--on-bad-image"):
        what = flag.removeprefix("--on-bad-")
        parser.add_argument(
            flag,
            choices=("error", "skip"),
            default="error",
            help=f"stop at a bad {what}, or drop it (default: %(default)s)",
        )


def convert_xml(
    arguments: argparse.Namespace,
    sets: "Sequence[ImageSet]",
    classes: "Mapping[str, Category] | None",
) -> None:
    """Convert image sets, write the JSON, and print what was read, dropped and filled in.

    Args:
        arguments: values of the options of `add_xml_options`.
        sets: the image sets.
        classes: by the name in the XML files; None takes all that occur.
    """
    from backbones.images import quiet_opencv
    from detection.datasets.voc_to_coco import convert
    from engine.log import RunLog, make_console

    quiet_opencv()
    root, output = arguments.root, arguments.output
    policies = {"on_bad_box": arguments.on_bad_box, "on_bad_image": arguments.on_bad_image}
    log = RunLog(None, is_main=True)
    converted = convert(root, sets, classes=classes, boxes=arguments.boxes, log=log, **policies)
    converted.write(output)
    show = make_console().print
    show(converted.checked.table(), soft_wrap=False)
    show("\n".join([*converted.checked.lines(), f"{output}: file names are relative to {root}"]))
