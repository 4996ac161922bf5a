"""Command `data stats`: print and plot what a COCO JSON contains.

Usage: resdet data stats JSON [--images DIR] [--output DIR]
"""

from pathlib import Path
from typing import TYPE_CHECKING

from detection.commands.data_inputs import say_large
from engine.cli import CommandParser

if TYPE_CHECKING:
    from rich.table import Table

    from detection.data.coco import Annotations
    from detection.datasets.statistics import Statistics

_MAX_CLASSES, _MAX_SIZES, _MAX_PAIRS = 100, 8, 12  # rows of the tables; stats.json has all
PLOT, NUMBERS = "stats.png", "stats.json"


def main() -> None:
    """Parse the command line, read the file, print the tables and write the files."""
    parser = CommandParser(description="Print and plot what a COCO JSON contains.")
    parser.add_argument("json", type=Path, metavar="JSON", help="a COCO JSON")
    parser.add_argument("--images", type=Path, help="also look for the images in this folder")
    parser.add_argument("--output", type=Path, help=f"folder for {PLOT} and {NUMBERS}")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    arguments = parser.parse_args()

    import json

    from detection.data.coco import read_coco
    from detection.datasets.coco_document import prepare_outputs
    from detection.datasets.statistics import statistics_of
    from detection.datasets.statistics_plot import write_statistics_plot
    from engine.files import write_file
    from engine.log import RunLog, make_console

    outputs = [arguments.output / name for name in (PLOT, NUMBERS)] if arguments.output else []
    prepare_outputs(outputs, [arguments.json], force=arguments.force)
    say_large(RunLog(None, is_main=True), arguments.json)
    annotations = read_coco(arguments.json, on_bad_box="skip", need_boxes=False, with_masks=False)
    statistics = statistics_of(annotations)
    notes = [f"{count} {what}" for what, count in annotations.report.rows()]
    if arguments.images:
        notes.append(_missing_images(arguments.images, annotations))
    if outputs:
        plot, numbers = outputs
        write_statistics_plot(plot, statistics, title=arguments.json.name)
        content = statistics.numbers() | {"notes": notes}
        write_file(numbers, json.dumps(content, indent=1) + "\n")
        notes.append(f"numbers and plot are in {arguments.output}")
    show = make_console().print
    for table in (_summary(statistics), _classes(statistics), _sizes(statistics)):
        show(table, soft_wrap=False)
    if statistics.pairs:
        show(_pairs(statistics), soft_wrap=False)
    for note in notes:
        show(f"{arguments.json}: {note}", highlight=False)


def _missing_images(folder: Path, annotations: "Annotations") -> str:
    """Return a line about the images that are not in a folder."""
    from backbones.weights import listing
    from detection.data.image_files import unreadable_images
    from engine.paths import require_folder

    require_folder(folder, "the folder of images")
    names = [annotations.file_name(row) for row in range(len(annotations))]
    missing = unreadable_images(folder, names)
    if not missing:
        return f"all {len(names)} images are in {folder}"
    first = listing([f"{names[row]} ({reason})" for row, reason in missing.items()], 3)
    return f"{len(missing)} of {len(names)} images cannot be read in {folder}: {first}"


def _summary(statistics: "Statistics") -> "Table":
    from rich.table import Table

    table = Table(title="numbers of images and objects, and their distributions")
    table.add_column()
    quantiles = {what: each for what, each in statistics.quantiles().items() if each}
    for name in next(iter(quantiles.values())):
        table.add_column(name, justify="right")
    for what, values in quantiles.items():
        table.add_row(what, *(f"{value:.4g}" for value in values.values()))
    table.caption = (
        f"{statistics.images} images, {statistics.empty_images} of them without objects; "
        f"{statistics.objects} objects"
    )
    return table


def _classes(statistics: "Statistics") -> "Table":
    from rich.table import Table

    table = Table("class", title="classes, by number of objects")
    headings = ("images", "objects", "crowd", "small", "medium", "large")
    for heading in (*headings, "side", "relative", "aspect"):
        table.add_column(heading, justify="right")
    ordered = sorted(statistics.classes, key=lambda each: -each.objects)
    for each in ordered[:_MAX_CLASSES]:
        counts = [str(getattr(each, heading)) for heading in headings]
        medians = (each.median_side, each.median_relative_side, each.median_aspect)
        formats = (".1f", ".3f", ".2f")
        cells = ["-" if x is None else f"{x:{f}}" for x, f in zip(medians, formats, strict=True)]
        table.add_row(each.name, *counts, *cells)
    caption = "small, medium, large: COCO's, without crowd; side (pixels), relative to the image, "
    table.caption = f"{caption}aspect: medians"
    if len(ordered) > _MAX_CLASSES:
        table.caption += f"; {len(ordered) - _MAX_CLASSES} more classes are not shown"
    return table


def _sizes(statistics: "Statistics") -> "Table":
    from rich.table import Table

    table = Table("width x height", title="image sizes")
    table.add_column("images", justify="right")
    for width, height, count in statistics.image_sizes[:_MAX_SIZES]:
        table.add_row(f"{width} x {height}", str(count))
    more = statistics.image_sizes[_MAX_SIZES:]
    if more:
        table.add_row(f"{len(more)} other sizes", str(sum(count for *_, count in more)))
    return table


def _pairs(statistics: "Statistics") -> "Table":
    from rich.table import Table

    table = Table("classes", title="classes that occur together")
    table.add_column("images", justify="right")
    table.add_column("lift", justify="right")
    names = [each.name for each in statistics.classes]
    for pair in statistics.pairs[:_MAX_PAIRS]:
        both = f"{names[pair.first]} + {names[pair.second]}"
        table.add_row(both, str(pair.images), f"{pair.lift:.2f}")
    table.caption = "lift: images with both, over the number if classes were independent"
    return table
