"""CSV with one box a line: TensorFlow's tutorials and Roboflow (a header), keras-retinanet (none).

Coordinates are the edges of the box in pixels. A line with an image and nothing else is an image
without objects.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from detection.data.coco_json import MAX_SIDE, shown
from detection.datasets.formats.checking import CheckedDocument
from detection.datasets.formats.document import (
    Box,
    Document,
    FoundImage,
    FoundObject,
    ReadOptions,
    Tally,
    WriteOptions,
    choose_splits,
)
from detection.datasets.formats.folders import class_lines, number_text, read_class_list
from detection.datasets.formats.image_names import posix_name
from detection.datasets.voc import number_classes
from engine import paths
from engine.errors import UserError
from engine.files import refuse_existing, write_file

ROBOFLOW_FILE = "_annotations.csv"
HEADER = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
ALIASES = {
    "filename": ("filename", "file_name", "file", "image", "image_path", "path", "img"),
    "width": ("width", "image_width", "img_width"),
    "height": ("height", "image_height", "img_height"),
    "class": ("class", "label", "class_name", "category", "name"),
    "xmin": ("xmin", "x1", "x_min", "left"),
    "ymin": ("ymin", "y1", "y_min", "top"),
    "xmax": ("xmax", "x2", "x_max", "right"),
    "ymax": ("ymax", "y2", "y_max", "bottom"),
}
"""Names of columns, in lower case."""
RETINANET = ("filename", "xmin", "ymin", "xmax", "ymax", "class")
"""Columns of keras-retinanet's files, which have no header."""
BAD_LINE = "bad line of the CSV"
SIDES = ("xmin", "ymin", "xmax", "ymax")
DELIMITERS = ",;\t|"


def read(source: Path, options: ReadOptions) -> Document:
    """Read a CSV, or a folder of Roboflow's export: `SPLIT/_annotations.csv`.

    Raises:
        UserError: the file cannot be read, or its columns are not known.
    """
    document = Document(root=source if paths.is_folder(source) else source.parent)
    files = _files_of(source, options)
    for prefix, path in files.items():
        rows = list(_rows(paths.read_text(path)))
        columns, first = _columns_of(rows, path)
        _add_rows(rows[first:], columns, prefix, path, document)
    boxes = [found.box for image in document.images for found in image.objects]
    if boxes and all(box is not None and max(box) <= 1 for box in boxes):
        document.notes.append("no coordinate is above 1: they are read as fractions of the image")
        for image in document.images:
            image.in_fractions = True
    names = source.with_suffix(".classes.txt")
    if len(files) == 1 and paths.is_file(names):
        document.classes = number_classes(read_class_list(names))
        document.notes.append(f"classes and their order are read from {names}")
    return document


def _files_of(source: Path, options: ReadOptions) -> dict[str, Path]:
    """Return the files to read by the folder that comes before their file names."""
    if not paths.is_folder(source):
        return {"": source}
    names = ["", *(f"{name}/" for name in paths.names_in(source))]
    files = {name: source / name / ROBOFLOW_FILE for name in names}
    files = {name: path for name, path in files.items() if paths.is_file(path)}
    if not files:
        found = paths.names_in(source, "*.csv")
        if len(found) != 1:
            raise UserError(f"{source}: expected one CSV file, got {len(found)}")
        files = {"": source / found[0]}
    chosen = choose_splits(options.split, [name.rstrip("/") for name in files], source)
    return {name: path for name, path in files.items() if name.rstrip("/") in chosen}


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, stripped cells) of each line that is not empty."""
    start = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=start.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    for cells in reader:
        stripped = [cell.strip() for cell in cells]
        if any(stripped):
            yield reader.line_num, stripped


def header_of(text: str) -> list[str]:
    """Return the cells of the first line in lower case; empty if there is none."""
    for _, cells in _rows(text[:100_000]):
        return [cell.lower().lstrip("#") for cell in cells]
    return []


def _columns_of(rows: Sequence[tuple[int, list[str]]], path: Path) -> tuple[dict[str, int], int]:
    """Return the position of each column by our name, and the number of header lines."""
    if not rows:
        raise UserError(f"{path}: expected lines with boxes, got none")
    cells = [cell.lower() for cell in rows[0][1]]
    found = {
        key: cells.index(alias)
        for key, aliases in ALIASES.items()
        for alias in reversed(aliases)
        if alias in cells
    }
    if all(key in found for key in RETINANET):
        return found, 1
    for columns in (HEADER, RETINANET):
        if len(cells) == len(columns) and not found:
            numbers = [cells[columns.index(side)] for side in SIDES]
            if all(_is_number(cell) for cell in numbers) or not any(numbers):
                return {key: place for place, key in enumerate(columns)}, 0
    expected = f"expected columns {', '.join(HEADER)}, or path,x1,y1,x2,y2,class without a header"
    raise UserError(f"{path}: line {rows[0][0]}: {expected}, got {','.join(cells)!r:.100}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _add_rows(
    rows: Sequence[tuple[int, list[str]]],
    columns: dict[str, int],
    prefix: str,
    path: Path,
    document: Document,
) -> None:
    images: dict[str, FoundImage] = {}
    for line, cells in rows:
        where = f"{path}: line {line}"
        try:
            name, size, found = _row_of(cells, columns, where)
        except ValueError as error:
            document.bad_objects.append((BAD_LINE, f"{where}: {error}"))
            continue
        image = images.setdefault(name, FoundImage(prefix + posix_name(name), size))
        if size != image.size:
            message = f"{where}: expected the size of the image's first line, got another"
            document.bad_objects.append((BAD_LINE, message))
        elif found is not None:
            image.objects.append(found)
    document.images += images.values()


def _row_of(
    cells: Sequence[str], columns: dict[str, int], where: str
) -> tuple[str, tuple[int, int] | None, FoundObject | None]:
    """Return file name, size and object of a line; a ValueError says what is wrong with it."""
    values = {key: cells[place] if place < len(cells) else "" for key, place in columns.items()}
    name = values["filename"]
    if not name:
        raise ValueError("expected a file name, got nothing")
    size = _size_of(values.get("height", ""), values.get("width", ""))
    corners = [values[side] for side in SIDES]
    if not any(corners) and not values["class"]:
        return name, size, None
    if not values["class"]:
        raise ValueError("expected a class, got nothing")
    if not all(map(_is_number, corners)):
        raise ValueError(f"expected numbers as {', '.join(SIDES)}, got {', '.join(corners)!r:.60}")
    x1, y1, x2, y2 = map(float, corners)
    box: Box = x1, y1, x2, y2
    return name, size, FoundObject(values["class"], f"{where} ({shown(values['class'])})", box)


def _size_of(height: str, width: str) -> tuple[int, int] | None:
    if not height and not width:
        return None
    if not (_is_number(height) and _is_number(width)):
        raise ValueError(f"expected width and height in pixels, got {width!r:.20}, {height!r:.20}")
    size = float(height), float(width)
    if not all(0 <= side <= MAX_SIDE and side == int(side) for side in size):
        raise ValueError(f"expected width and height in whole pixels, got {width}, {height}")
    return (int(size[0]), int(size[1])) if all(size) else None


def write(checked: CheckedDocument, output: Path, options: WriteOptions) -> list[str]:
    """Write a CSV with a header, and NAME.classes.txt with the order of the classes beside it.

    Crowd regions and masks are dropped and counted. Images without objects are lines without box.

    Raises:
        UserError: a file exists and `options.force` is not set, or cannot be written.
    """
    names = output.with_suffix(".classes.txt")
    refuse_existing(names, force=options.force)
    dropped = Tally()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for image in checked.images:
        assert image.size is not None
        start = [image.file_name, image.size[1], image.size[0]]
        rows = [
            _cells_of(found, dropped) for found in image.objects if not _is_crowd(found, dropped)
        ]
        writer.writerows([*start, *cells] for cells in rows or [[""] * 5])
    paths.make_folder(output.parent)
    write_file(output, text.getvalue())
    write_file(names, class_lines(checked))
    return [f"{output}: {len(checked.images)} images; {names}: classes", *dropped.rows()]


def _is_crowd(found: FoundObject, dropped: Tally) -> bool:
    if found.is_crowd:
        dropped.add("dropped, crowd regions, which CSV does not have", found.where)
    return found.is_crowd


def _cells_of(found: FoundObject, dropped: Tally) -> list[str]:
    assert found.box is not None
    if found.polygons or found.run_lengths:
        dropped.add("dropped, polygons and masks of objects, whose boxes are kept")
    if found.is_difficult:
        dropped.add("dropped, flags `difficult` of objects that are kept")
    return [found.name, *map(number_text, found.box)]
