"""Layout and classes of PASCAL VOC, and of other data sets with VOC's XML files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from backbones.images import files_below
from engine import paths
from engine.errors import UserError
from engine.files import read_lines

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


class Category(NamedTuple):
    """A class in a COCO document."""

    category_id: int
    name: str


@dataclass(frozen=True)
class ImageSet:
    """The files of an image set, below a root that is common to all sets.

    xml, images: folders, relative to the root. names: file names without suffix, relative to these
    folders; an image and its XML file have the same name.
    """

    xml: str
    images: str
    names: tuple[str, ...]


def number_classes(names: Iterable[str]) -> dict[str, Category]:
    """Assign category ids, starting at 1, in the given order."""
    return {name: Category(number, name) for number, name in enumerate(names, start=1)}


def read_names(path: Path) -> tuple[str, ...]:
    """Read the list of an image set: the first word of each non-empty line.

    Some lists of VOC and ILSVRC have a number after the name. Names are relative to the folder of
    the set, even with a leading slash.

    Raises:
        UserError: the file cannot be read, or contains no name.
    """
    return tuple(line.split()[0].lstrip("/") for line in read_lines(path))


def voc_set(root: Path, name: str) -> ImageSet:
    """Find a set in VOC's layout: `VOC2007/trainval`, or `trainval` if `root` is one year.

    Raises:
        UserError: its list cannot be read.
    """
    # VOC2007/trainval: the folder of the year, then the name of the list
    path = PurePosixPath(name)
    names = read_names(root / path.parent / "ImageSets" / "Main" / f"{path.name}.txt")
    return ImageSet(str(path.parent / "Annotations"), str(path.parent / "JPEGImages"), names)


def find_sets(
    root: Path,
    names_of_sets: Sequence[str],
    *,
    xml: str | None = None,
    images: str | None = None,
    names: Path | None = None,
) -> list[ImageSet]:
    """Find image sets in VOC's layout (`voc_set`), or one set in plain folders (`folder_set`).

    Args:
        root: the common root.
        names_of_sets: sets in VOC's layout; may be empty.
        xml: folder of XML files, as for `folder_set`.
        images: folder of images; None: the folder of the XML files.
        names: list of the images of the set, as for `folder_set`.

    Raises:
        UserError: both or neither of sets and folders are given, or a file cannot be read.
    """
    if bool(names_of_sets) == bool(xml):
        raise UserError("command line: expected either --sets or --xml")
    if xml:
        return [folder_set(root, xml=xml, images=images or xml, names=names)]
    if images or names:
        raise UserError("command line: expected --images and --list with --xml, got --sets")
    return [voc_set(root, name) for name in names_of_sets]


def folder_set(root: Path, *, xml: str, images: str, names: Path | None = None) -> ImageSet:
    """Find an image set in two plain folders.

    Args:
        root: folder to which both are relative.
        xml: folder of the XML files, searched at any depth.
        images: folder of the images with the same names; may be `xml` itself.
        names: file that lists the names of the set; None takes all XML files.

    Raises:
        UserError: the list cannot be read, or there is no XML file.
    """
    if names is not None:
        return ImageSet(xml, images, read_names(names))
    folder = root / xml
    names_below = files_below(folder, ".xml") if paths.is_folder(folder) else []
    # by parts of the path, without the suffix, which is in lower case in VOC's layout
    found = sorted(PurePosixPath(n).with_suffix("") for n in names_below if n.endswith(".xml"))
    if not found:
        raise UserError(f"{folder}: expected XML files, got none")
    return ImageSet(xml, images, tuple(path.as_posix() for path in found))
