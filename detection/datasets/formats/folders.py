"""Writing of many files as one folder, and finding the files of a source."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from backbones.images import files_below
from detection.data.coco_json import shown
from detection.data.image_files import image_path
from detection.datasets.formats.checking import CheckedDocument
from detection.datasets.formats.document import CopyMethod, FoundImage
from detection.datasets.formats.image_names import safe_parts
from engine import paths
from engine.errors import UserError
from engine.files import read_lines

CLASSES_FILE = "classes.txt"
"""File beside the annotations with one class a line, in order, as labelImg writes it."""


def read_class_list(path: Path) -> list[str]:
    """Return the names of a file with one class a line, in order.

    In keras-retinanet's class files, lines are `NAME,NUMBER`, with the numbers 0, 1, ....

    Raises:
        UserError: the file cannot be read, or a name is repeated.
    """
    names = read_lines(path)
    parts = [name.rpartition(",") for name in names]
    by_number = {number.strip(): name.strip() for name, _, number in parts if name.strip()}
    if by_number.keys() == set(map(str, range(len(names)))):
        names = [by_number[str(number)] for number in range(len(names))]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: expected each class once, got {shown(name)} more than once")
    return names


def classes_beside(source: Path, notes: list[str]) -> list[str] | None:
    """Return the classes of a folder's classes.txt, or None; a note says that it was read."""
    path = source / CLASSES_FILE
    if not paths.is_file(path):
        return None
    notes.append(f"classes and their order are read from {path}")
    return read_class_list(path)


def output_names(
    images: Sequence[FoundImage], suffix: str, *, strip: str = ""
) -> list[tuple[FoundImage, str]]:
    """Return each image with the relative path of its file: its own name with another suffix.

    Args:
        images: checked images.
        suffix: such as `.xml`.
        strip: a first folder that is removed.

    Raises:
        UserError: a name leaves the output folder, or two images would get the same file.
    """
    owners: dict[str, str] = {}
    named = []
    for image in images:
        path = safe_parts(image.file_name)
        if strip and path.parts[0] == strip and len(path.parts) > 1:
            path = path.relative_to(strip)
        name = path.with_suffix(suffix).as_posix()
        if name in owners:
            both = f"{shown(owners[name])} and {shown(image.file_name)}"
            raise UserError(f"{both}: expected one image for each {name}, got two")
        owners[name] = image.file_name
        named.append((image, name))
    return named


def refuse_filled(folder: Path, *, force: bool) -> None:
    """Raise UserError if a folder has files, unless `force` allows replacing those of our names."""
    if paths.exists(folder) and not paths.is_folder(folder):
        raise UserError(f"{folder}: expected a folder, got a file")
    if paths.names_in(folder) and not force:
        raise UserError(f"{folder}: expected no files yet, got some; --force replaces them")


def write_folder(folder: Path, files: Iterable[tuple[str, bytes | str]], *, force: bool) -> int:
    """Write files into a folder: first all of them into one beside it, which is then renamed.

    A command that is killed leaves no half-written folder of this name. A folder that has files
    keeps them, except those that are replaced.

    Args:
        folder: created if it is missing.
        files: (relative path, content).
        force: whether files may be replaced.

    Returns:
        The number of files.

    Raises:
        UserError: the folder has files and `force` is false, or a file cannot be written.
    """
    refuse_filled(folder, force=force)
    partial = folder.with_name(f".{folder.name}.partial")
    count = 0
    made: set[Path] = set()
    try:
        if paths.exists(partial):  # of a command that was killed
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        for name, content in files:
            path = partial / name
            if path.parent not in made:
                path.parent.mkdir(parents=True, exist_ok=True)
                made.add(path.parent)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            count += 1
        _move(partial, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            shutil.rmtree(partial)
    return count


def _move(partial: Path, folder: Path) -> None:
    if not paths.names_in(folder):
        with suppress(NotADirectoryError):  # a link to an empty folder
            os.replace(partial, folder)  # noqa: PTH105
            return
    for name in files_below(partial, ""):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).replace(folder / name)


def copy_images(
    named: Iterable[tuple[FoundImage, str]], source: Path, target: Path, method: CopyMethod
) -> Iterator[str]:
    """Link or copy images to `target` one by one; yield the new path of each. Existing are kept.

    Args:
        named: images, and their relative paths below `target`.
        source: folder of the images.
        target: folder to create.
        method: "link" makes symbolic links to the absolute paths.

    Raises:
        UserError: an image is missing, or cannot be linked or copied.
    """
    for image, name in named:
        path, new = image_path(source, image.file_name), target / name
        if not paths.is_file(path):
            raise UserError(f"{path}: no such file; --images DIR is the folder of the images")
        try:
            new.parent.mkdir(parents=True, exist_ok=True)
            if paths.exists(new):
                pass
            elif method == "link":
                new.symlink_to(paths.resolved(path))
            else:
                shutil.copyfile(path, new)
        except OSError as error:
            raise UserError(f"{new}: cannot be written: {error.strerror}") from error
        yield name


def json_text(content: Any) -> str:
    """Return JSON with one indented line for each value, as labelling tools write it."""
    return json.dumps(content, ensure_ascii=False, indent=2)


def number_text(value: float) -> str:
    """Return a coordinate with at most 6 decimals, and none if it is whole."""
    return repr(round(value, 6) + 0.0).removesuffix(".0")


def class_lines(checked: CheckedDocument) -> str:
    """Return the content of classes.txt: names in the order of their ids."""
    ordered = sorted(checked.classes.values())
    return "".join(f"{each.name}\n" for each in ordered)
