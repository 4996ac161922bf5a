"""Where the files of PASCAL VOC, and of data sets of its kind, lie, and what its classes are."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from backbones.images import list_folder
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
    """Where a set's files lie, below a root that is common to all sets.

    xml, images: folders, relative to the root. names: of both files, without suffix and relative
    to these folders.
    """

    xml: str
    images: str
    names: tuple[str, ...]


def number_classes(names: Iterable[str]) -> dict[str, Category]:
    """Return category ids from 1 on, in the order given."""
    return {name: Category(number, name) for number, name in enumerate(names, start=1)}


def read_names(path: Path) -> tuple[str, ...]:
    """Return the first word of each line that is not empty: an image set's list.

    VOC and ILSVRC put a number behind it in some of their lists. Names are relative to the folder
    of the set, those with a leading slash too.

    Raises:
        UserError: the file cannot be read, or names nothing.
    """
    return tuple(line.split()[0].lstrip("/") for line in read_lines(path))


def voc_set(root: Path, name: str) -> ImageSet:
    """Find a set in VOC's layout: `VOC2007/trainval`, or `trainval` where `root` is one year.

    Raises:
        UserError: its list cannot be read.
    """
    place = PurePosixPath(name)
    names = read_names(root / place.parent / "ImageSets" / "Main" / f"{place.name}.txt")
    return ImageSet(str(place.parent / "Annotations"), str(place.parent / "JPEGImages"), names)


def find_sets(
    root: Path,
    names_of_sets: Sequence[str],
    *,
    xml: str | None = None,
    images: str | None = None,
    names: Path | None = None,
) -> list[ImageSet]:
    """Find sets of VOC's layout (`voc_set`), or in place of them one of plain folders.

    Args:
        root: the common root.
        names_of_sets: of VOC's layout, or none.
        xml: folder of XML files, as for `folder_set`.
        images: folder of images; None: that of the XML files.
        names: list of those that belong to the set, as for `folder_set`.

    Raises:
        UserError: sets and folders are given, or neither; or a file cannot be read.
    """
    if bool(names_of_sets) == bool(xml):
        raise UserError("command line: expected one of --sets and --xml")
    if xml:
        return [folder_set(root, xml=xml, images=images or xml, names=names)]
    if images or names:
        raise UserError("command line: expected --images and --list with --xml, got --sets")
    return [voc_set(root, name) for name in names_of_sets]


def folder_set(root: Path, *, xml: str, images: str, names: Path | None = None) -> ImageSet:
    """Find a set in two plain folders.

    Args:
        root: to which both are relative.
        xml: folder of the XML files, searched at any depth.
        images: folder of images of the same names, perhaps `xml` itself.
        names: list of those that belong to the set; None takes all that have an XML file.

    Raises:
        UserError: the list cannot be read, or there is no XML file.
    """
    if names is not None:
        return ImageSet(xml, images, read_names(names))
    folder = root / xml
    found = sorted(_xml_below(folder)) if paths.is_folder(folder) else []
    if not found:
        raise UserError(f"{folder}: expected XML files in it, got none")
    return ImageSet(xml, images, tuple(path.as_posix() for path in found))


def _xml_below(folder: Path) -> Iterator[PurePosixPath]:
    """Yield the paths from `folder` on, without suffix; folders that links lead to are read once.

    Hidden files are not taken: macOS writes one beside each file on other disks.
    """
    seen: set[Path] = set()
    waiting = [""]
    while waiting:
        below = waiting.pop()
        place = paths.resolved(folder / below)
        if place in seen:
            continue
        seen.add(place)
        folders, files = list_folder(f"{folder}/{below}")
        waiting += [f"{below}{name}/" for name in folders]
        yield from (
            PurePosixPath(f"{below}{name}").with_suffix("")
            for name in files
            if name.endswith(".xml")
        )
