"""Command `data pack`: a copy of an image folder that is read faster in pretraining.

Usage: resdet data pack SRC OUT [--short-side 400] [--quality 95 | --format raw]
"""

from pathlib import Path

from detection.commands.data_inputs import add_workers, workers_of
from engine.cli import CommandParser
from engine.errors import UserError

_QUALITY = 95
_MAX_SHOWN = 10  # lines about skipped images


def main() -> None:
    """Parse the command line, write the copy and print what was done."""
    arguments = _parser().parse_args()
    workers = workers_of(arguments)
    quality = arguments.quality
    if arguments.format == "raw" and quality is not None:
        raise UserError(f"--quality: expected none with --format raw, got {quality}")
    if arguments.format == "jpeg" and quality is None:
        quality = _QUALITY

    from backbones.classification.packing import PackSettings, pack_images
    from engine.log import RunLog, make_console

    report = pack_images(
        arguments.source,
        arguments.output,
        PackSettings(arguments.short_side, quality),
        workers=workers,
        on_bad_image=arguments.on_bad_image,
        log=RunLog(None, is_main=True),
    )
    show = make_console().print
    for line in report.skipped[:_MAX_SHOWN]:
        show(f"skipped: {line}", highlight=False)
    if len(report.skipped) > _MAX_SHOWN:
        show(f"skipped: {len(report.skipped) - _MAX_SHOWN} more", highlight=False)
    show(
        f"{arguments.output}: {report.packed} images packed, {report.kept} kept, "
        f"{report.removed} removed (no longer in {arguments.source}), {len(report.skipped)} "
        f"skipped; {report.bytes / 1e6:.1f} MB",
        highlight=False,
    )


def _parser() -> CommandParser:
    parser = CommandParser(
        description="Write a copy of a folder of images, with a folder for each class, whose files "
        "have a shorter side of at most --short-side. The same command continues an "
        "interrupted copy, and checks a complete one by the checksums in its packed.jsonl."
    )
    parser.add_argument(
        "source", type=Path, metavar="SRC", help="train/ and val/, or class folders"
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="folder of the copy")
    parser.add_argument(
        "--short-side", type=int, default=400, help="longest shorter side, pixels (default: 400)"
    )
    parser.add_argument("--quality", type=int, help=f"of JPEG, 1 to 100 (default: {_QUALITY})")
    parser.add_argument(
        "--format",
        choices=("jpeg", "raw"),
        default="jpeg",
        help="raw: uncompressed BMP files, about ten times as large; training reads and decodes "
        "nothing but the crop (default: jpeg)",
    )
    parser.add_argument(
        "--on-bad-image",
        choices=("error", "skip"),
        default="error",
        help="stop at an image that cannot be decoded, or skip it (default: error)",
    )
    add_workers(parser)
    return parser
