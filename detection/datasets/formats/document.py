"""The content of an annotation file in any format: what readers return and writers take.

A reader never stops at a bad object or image. It records them, and `checking.check_document` stops
or drops them, whichever the user chose.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from detection.datasets.voc import Category
from engine.errors import UserError
from engine.log import RunLog

EXAMPLES = 3
"""Number of places that are named for each reason."""
ALL_SPLITS = "all"

Box = tuple[float, float, float, float]
BoxConvention = Literal["pixels", "corners"]
CopyMethod = Literal["no", "link", "copy"]


class Tally:
    """Counts by reason, with the first places of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._places: dict[str, list[str]] = {}

    def add(self, reason: str, place: str = "") -> None:
        """Count one more, at a place such as `a.xml: object 3`; without a place only count it."""
        self.counts[reason] += 1
        places = self._places.setdefault(reason, [])
        if place and len(places) < EXAMPLES:
            places.append(place)

    def rows(self) -> list[str]:
        """Return one line for each reason, with its count and the first place."""
        lines = []
        for reason, count in self.counts.items():
            places = self._places.get(reason)
            lines.append(f"{reason}: {count}" + (f" (first: {places[0]})" if places else ""))
        return lines

    def lines(self) -> list[str]:
        """Return one line for each place that is kept."""
        return [f"{reason}: {place}" for reason, all_ in self._places.items() for place in all_]


@dataclass(slots=True)
class FoundObject:
    """An object in a file.

    name: its class. where: file and line or position, for messages. box: xyxy; None if the file has
    only a mask. polygons: parts, each x y x y ...; run_lengths: COCO's compressed `counts` for an
    image of the file's size. An object has polygons, run lengths, or neither. area: only if the
    file has one.
    """

    name: str
    where: str
    box: Box | None = None
    polygons: list[list[float]] = field(default_factory=list)
    run_lengths: bytes = b""
    area: float | None = None
    is_crowd: bool = False
    is_difficult: bool = False


@dataclass(slots=True)
class FoundImage:
    """An image in a file.

    size: (height, width); None if the file has none. in_fractions: boxes and polygons are fractions
    of the image's sides, not pixels. stem_only: `file_name` has no suffix; the image is searched.
    size_is_of_masks: the image itself is read too, and must have this size.
    """

    file_name: str
    size: tuple[int, int] | None = None
    objects: list[FoundObject] = field(default_factory=list)
    in_fractions: bool = False
    stem_only: bool = False
    size_is_of_masks: bool = False


@dataclass
class Document:
    """All images and objects that were read.

    root: folder to which file names are relative. classes: in the order of the file; None if the
    file has no list of classes. notes: lines for the console. bad_images: a message for each.
    bad_objects: (reason, message) for each. dropped: what the format of COCO does not have.
    changed: what was filled in or converted.
    """

    root: Path
    images: list[FoundImage] = field(default_factory=list)
    classes: Mapping[str, Category] | None = None
    notes: list[str] = field(default_factory=list)
    bad_images: list[str] = field(default_factory=list)
    bad_objects: list[tuple[str, str]] = field(default_factory=list)
    dropped: Tally = field(default_factory=Tally)
    changed: Tally = field(default_factory=Tally)


def _silent() -> RunLog:
    return RunLog(None, is_main=False)


@dataclass(frozen=True)
class ReadOptions:
    """What the user says about a source.

    images: folder of the images. split: the part to read, or "all". classes: names in order.
    class_name: class of objects without one. class_attribute: key that holds the class (VIA).
    boxes: convention of VOC's coordinates; None detects it. semantic: the values of PNG masks are
    classes, not instances. instances: they are instances, even if not numbered 1, 2, .... log:
    shows the progress.
    """

    images: Path | None = None
    split: str | None = None
    classes: Sequence[str] | None = None
    class_name: str | None = None
    class_attribute: str | None = None
    boxes: BoxConvention | None = None
    semantic: bool = False
    instances: bool = False
    log: RunLog = field(default_factory=_silent)


@dataclass(frozen=True)
class WriteOptions:
    """How to write. images: folder of the images. boxes: VOC's coordinates.

    copy_images: whether to link or copy the images into the output. segments: write polygons to
    YOLO's label files. log: shows the progress.
    """

    images: Path | None = None
    force: bool = False
    boxes: BoxConvention = "corners"
    copy_images: CopyMethod = "no"
    segments: bool = False
    log: RunLog = field(default_factory=_silent)


def choose_splits(wanted: str | None, available: Sequence[str], source: Path) -> list[str]:
    """Return the splits to read: the wanted one, all of them, or the only one.

    Raises:
        UserError: there are several and none was chosen, or the chosen one does not exist.
    """
    if wanted == ALL_SPLITS or (wanted is None and len(available) <= 1):
        return list(available)
    if wanted is None or wanted not in available:
        expected = ", ".join([*available, ALL_SPLITS])
        raise UserError(f"{source}: --split: expected one of {expected}, got {wanted or 'nothing'}")
    return [wanted]
