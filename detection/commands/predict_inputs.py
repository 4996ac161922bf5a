"""The images that a prediction is asked for: files, folders, and a list on standard input."""

import codecs
import os
import sys
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from backbones.images import SUFFIXES, images_in
from detection.inference.image_inputs import refuse_url
from engine.errors import UserError
from engine.paths import exists, is_folder, resolved

STDIN = Path("-")
"""In place of an image: paths of images come on standard input."""


@dataclass(frozen=True)
class FoundImages:
    """Image files to predict on.

    paths: the images; text, which takes less memory than a Path. problems: a message for each input
    without images, and for each folder or link in them that cannot be read. num_others: number of
    other files in the folders. num_repeats: number of images that were given before, and dropped.
    """

    paths: list[str]
    problems: list[str]
    num_others: int = 0
    num_repeats: int = 0


def find_images(inputs: Iterable[Path], *, skip_folder: Path) -> FoundImages:
    """Return the given files, and the images in the given folders at any depth, sorted by name.

    Of an image that is given several times the first is taken.

    Args:
        inputs: files and folders; `STDIN` once. Hidden files and folders inside them are skipped.
        skip_folder: a folder to skip, such as the output folder, unless an input is inside it.

    Raises:
        UserError: no input gives an image; the message is that of the first input.
    """
    found: list[str] = []
    problems: list[str] = []
    num_others = 0
    for path in inputs:
        try:
            inside = _images_of(path, skip_folder=skip_folder)
        except UserError as error:
            problems.append(str(error))
            continue
        found += inside.paths
        problems += inside.problems
        num_others += inside.num_others
    if not found:
        raise UserError(problems[0])
    paths = _without_repeats(found)
    return FoundImages(paths, list(dict.fromkeys(problems)), num_others, len(found) - len(paths))


def _images_of(path: Path, *, skip_folder: Path) -> FoundImages:
    """Return the images of one input; UserError if it has neither images nor other problems."""
    if path == STDIN:
        return FoundImages(_listed_images(sys.stdin.buffer.read()), [])
    refuse_url(path)
    if not exists(path):
        raise UserError(f"{path}: no such image or folder")
    if not is_folder(path):
        return FoundImages([str(path)], [])
    problems: list[str] = []
    inside, others = images_in(
        path, skip_folder=skip_folder, on_error=lambda error: problems.append(str(error))
    )
    if not inside and not problems:
        raise UserError(
            f"{path}: expected images ({' '.join(SUFFIXES)}) apart from those in {skip_folder}, "
            "got none"
        )
    return FoundImages([str(path / name) for name in inside], problems, others)


def _listed_images(data: bytes) -> list[str]:
    """Return the paths of a list, one a line, or with NUL after each (`find -print0`).

    They are not looked for: there may be a million, and reading a missing one says so.
    """
    data = data.removeprefix(codecs.BOM_UTF8)  # Windows' editors write it
    lines = data.split(b"\0") if b"\0" in data else data.splitlines()
    paths = [os.fsdecode(line) for line in lines if line.strip()]
    if not paths:
        raise UserError("-: expected paths of images on standard input, one a line, got none")
    return paths


def _without_repeats(paths: Iterable[str]) -> list[str]:
    """Drop the later ones of equal names in one folder, whichever links or `..` lead to it.

    Names are not looked for, as in `_listed_images`: links to one image are different images.
    """
    seen: defaultdict[Path, set[str]] = defaultdict(set)  # names by folder

    @cache
    def names_seen(folder: str) -> set[str]:
        with suppress(UserError):  # reading the image says what is wrong
            return seen[resolved(folder)]
        return set()

    kept = []
    for path in paths:
        folder, name = os.path.split(path)
        names = names_seen(folder)
        if name not in names:
            names.add(name)
            kept.append(path)
    return kept
