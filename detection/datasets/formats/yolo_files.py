"""Writing of YOLO's label files in Ultralytics' layout: labels/, images/ and data.yaml."""

from collections.abc import Iterator
from pathlib import Path

from detection.datasets.formats.checking import CheckedDocument
from detection.datasets.formats.document import FoundImage, FoundObject, Tally, WriteOptions
from detection.datasets.formats.folders import copy_images, output_names, write_folder
from detection.datasets.formats.shapes import box_points, join_parts
from engine import paths
from engine.yaml_text import dump_yaml

DECIMALS = 8
"""Of fractions: 0.01 pixels in an image of a million pixels a side."""


def write(checked: CheckedDocument, output: Path, options: WriteOptions) -> list[str]:
    """Write labels/NAME.txt, data.yaml and train.txt; images/ only with `options.copy_images`.

    Crowd regions are dropped and counted; masks too, unless `options.segments` is set. Then each
    object is one polygon: parts are joined, and an object without polygons gets its box's corners.

    Raises:
        UserError: as for `write_folder`, or a file name leaves the folder.
    """
    ordered = sorted(checked.classes.values())
    numbers = {each.name: number for number, each in enumerate(ordered)}
    dropped = Tally()
    named = output_names(checked.images, ".txt", strip="images")
    images = [
        (image, Path(name).with_suffix(Path(image.file_name).suffix)) for image, name in named
    ]

    def files() -> Iterator[tuple[str, str]]:
        for image, name in options.log.progress(named, len(named), "writing"):
            lines = _lines(image, numbers, options, dropped)
            yield f"labels/{name}", "".join(lines)
        yield "train.txt", "".join(f"./images/{name.as_posix()}\n" for _, name in images)
        data = {"path": str(paths.resolved(output)), "train": "train.txt"}
        yield "data.yaml", dump_yaml(data | {"names": dict(enumerate(e.name for e in ordered))})

    count = write_folder(output, files(), force=options.force)
    lines = [f"{output}: {count - 2} label files, data.yaml and train.txt"]
    target = output / "images"
    if options.copy_images != "no":
        pairs = ((image, name.as_posix()) for image, name in images)
        folder = options.images or checked.root
        copied = copy_images(pairs, folder, target, method=options.copy_images)
        lines.append(f"{target}: {sum(1 for _ in copied)} images")
    else:
        lines.append(
            f"images were not copied, but YOLO expects them in {target}: "
            "--copy-images link or copy puts them there"
        )
    lines.append("data.yaml has no `val`: add the validation images before training with it")
    return lines + dropped.rows()


def _lines(
    image: FoundImage, numbers: dict[str, int], options: WriteOptions, dropped: Tally
) -> Iterator[str]:
    assert image.size is not None
    height, width = image.size
    for found in image.objects:
        assert found.box is not None
        if found.is_crowd:
            dropped.add("dropped, crowd regions, which YOLO does not have", found.where)
            continue
        if found.is_difficult:
            dropped.add("dropped, flags `difficult` of objects that are kept")
        if options.segments:
            values = _outline(found, dropped)
            fractions = [
                value / (height if place % 2 else width) for place, value in enumerate(values)
            ]
        else:
            if found.polygons or found.run_lengths:
                dropped.add("dropped, polygons and masks of objects (--segments keeps polygons)")
            x1, y1, x2, y2 = found.box
            centre = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height)
            fractions = [*centre, (x2 - x1) / width, (y2 - y1) / height]
        text = " ".join(f"{value:.{DECIMALS}f}" for value in fractions)
        yield f"{numbers[found.name]} {text}\n"


def _outline(found: FoundObject, dropped: Tally) -> list[float]:
    """Return one polygon for an object."""
    assert found.box is not None
    if len(found.polygons) == 1:
        return found.polygons[0]
    if found.polygons:
        dropped.add("polygons of several parts joined to one", found.where)
        return join_parts(found.polygons)
    dropped.add("objects without polygons, written as the corners of their box", found.where)
    return box_points(found.box)
