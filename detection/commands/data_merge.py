"""Command `data merge`: merge several COCO JSON files into one.

Usage: resdet data merge A.json B.json ... --output OUT.json [--prefix DIR DIR ...]
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detection.commands.data_inputs import say_large
from engine.cli import CommandParser
from engine.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from detection.datasets.merge import Source


def main() -> None:
    """Parse the command line, merge, write the file and print what came from where."""
    parser = CommandParser(
        description="Merge COCO JSON files: ids are renumbered, classes are joined by name."
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="JSON", help="COCO JSON files")
    parser.add_argument("--output", type=Path, required=True, help="COCO JSON to write")
    parser.add_argument(
        "--prefix",
        nargs="+",
        metavar="DIR",
        help='for each file, the folder to put before its file names; "" for none',
    )
    parser.add_argument(
        "--on-same-image",
        choices=("error", "keep-first", "join"),
        default="error",
        help="for a file name that an earlier file has: stop; drop the later image with its "
        "annotations; or add these to the earlier image (default: %(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    arguments = parser.parse_args()
    files, prefixes = arguments.files, arguments.prefix
    if len(files) < 2:
        raise UserError(f"command line: expected two JSON files or more, got {len(files)}")
    if prefixes is not None and len(prefixes) != len(files):
        raise UserError(f"--prefix: expected {len(files)}, one for each file, got {len(prefixes)}")

    from detection.datasets.coco_document import prepare_outputs, read_document, write_document
    from detection.datasets.merge import merge
    from engine.log import RunLog, make_console

    prepare_outputs([arguments.output], files, force=arguments.force)
    log = RunLog(None, is_main=True)
    say_large(log, *files)
    documents = [read_document(path) for path in log.progress(files, len(files), "reading")]
    merged = merge(documents, prefixes=prefixes, on_same_image=arguments.on_same_image)
    write_document(arguments.output, merged.content)
    show = make_console().print
    show(_table(files, merged.sources), soft_wrap=False)
    for note in merged.notes:
        show(note, highlight=False)
    counts = ", ".join(
        f"{len(merged.content[key])} {key}" for key in ("images", "annotations", "categories")
    )
    show(f"written: {arguments.output}: {counts}", highlight=False)


def _table(files: Sequence[Path], sources: "Sequence[Source]") -> "Table":
    """Return what came from each file; columns of zeros are dropped, but the first two."""
    from rich.table import Table

    columns = {
        "images": [each.images for each in sources],
        "annotations": [each.annotations for each in sources],
        "new classes": [each.new_classes for each in sources],
        "images joined": [each.joined_images for each in sources],
        "images dropped": [each.dropped_images for each in sources],
        "annotations dropped": [each.dropped_annotations for each in sources],
    }
    kept = {
        name: counts
        for name, counts in columns.items()
        if any(counts) or name in ("images", "annotations")
    }
    table = Table("file", title="merged files")
    for name in kept:
        table.add_column(name, justify="right")
    for path, *counts in zip(files, *kept.values(), strict=True):
        table.add_row(str(path), *map(str, counts))
    return table
