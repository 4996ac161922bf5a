"""Localization annotations: images with one class each, and the boxes of their objects.

N images, M boxes, K classes. Boxes are xyxy in pixels of the image file. The readers of all
layouts (ilsvrc.py, tiny_imagenet.py) return `LocalizationAnnotations`. They are flat arrays and not
Python objects, because ILSVRC has half a million images: worker processes then share the memory
pages of the arrays, while reference counts would copy the pages of objects.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from backbones.weights import listing
from detection.data.box_checks import NO_SIZE, check_boxes, format_size
from detection.ops.boxes import xyxy_to_xywh
from engine import paths
from engine.errors import UserError
from engine.files import read_lines
from engine.schema import BadInputPolicy

UNREADABLE = "unreadable images skipped"
WITHOUT_BOX = "images without a valid box dropped"
CLIPPED = "boxes clipped to their image"
NAMES_SHOWN = 20
"""Maximum number of boxes or images that the log names for one kind of problem."""


@dataclass(frozen=True)
class LocalizationAnnotations:
    """The annotations of one split.

    class_names: WordNet ids, by label. descriptions: a readable name for each class, or its id if
    none is known. paths: (N,) str, relative to `root`. labels: (N,) int64. sizes: (N, 2) int64,
    height and width. boxes: (M, 4) float32, inside their images. offsets: (N + 1,) int64; the boxes
    of image i are boxes[offsets[i]:offsets[i + 1]]. problems: names of the images and boxes that
    were dropped or changed, by kind of problem.
    """

    root: Path
    class_names: tuple[str, ...]
    descriptions: tuple[str, ...]
    paths: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    boxes: np.ndarray
    offsets: np.ndarray
    problems: dict[str, list[str]]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def boxes_of(self, index: int) -> np.ndarray:
        """Return the boxes of an image: (n, 4), n >= 1."""
        boxes: np.ndarray = self.boxes[self.offsets[index] : self.offsets[index + 1]]
        return boxes

    def mean_box(self) -> np.ndarray:
        """Return the mean of all boxes, (4,) float64 xyxy as fractions of the image's sides."""
        counts = np.diff(self.offsets)
        # (M, 4): width, height, width, height of each box's image
        sides = np.tile(self.sizes[:, ::-1].repeat(counts, axis=0), 2)
        mean: np.ndarray = (self.boxes / sides).mean(axis=0, dtype=np.float64)
        return mean

    def lines(self) -> list[str]:
        """Return log lines: the counts, then what was dropped or changed."""
        first = f"{len(self)} images of {len(self.class_names)} classes, {len(self.boxes)} boxes"
        return [first] + [
            f"{len(names)} {problem}: {listing(names, NAMES_SHOWN)}"
            for problem, names in self.problems.items()
        ]


@dataclass
class AnnotationsBuilder:
    """Collects images one by one, checks their boxes and builds `LocalizationAnnotations`.

    Args:
        root: folder to which image paths are relative.
        class_names: WordNet ids, by label.
        descriptions: readable class names by WordNet id; ids may be missing.
        on_bad_box: whether a bad box stops the run or is dropped.
        last_pixel: whether x2, y2 are the last pixel inside the box (True) or its outer edge.
    """

    root: Path
    class_names: Sequence[str]
    descriptions: dict[str, str]
    on_bad_box: BadInputPolicy
    last_pixel: bool
    _paths: list[str] = field(default_factory=list, init=False)
    _labels: list[int] = field(default_factory=list, init=False)
    _sizes: list[tuple[int, int]] = field(default_factory=list, init=False)
    _boxes: list[list[float]] = field(default_factory=list, init=False)
    _image_idxs: list[int] = field(default_factory=list, init=False)  # image of each box
    _problems: dict[str, list[str]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._label_of = {name: label for label, name in enumerate(self.class_names)}

    def add(
        self,
        path: str,
        class_name: str,
        *,
        size: tuple[int, int],
        boxes: Sequence[Sequence[float]],
        source: str,
    ) -> None:
        """Add one image.

        Args:
            path: relative to the root.
            class_name: its WordNet id.
            size: (height, width).
            boxes: x1, y1, x2, y2 of each object of the class, unchanged from the file; may be
                empty.
            source: annotation file (and line), for error messages.

        Raises:
            UserError: the class is not one of `class_names`.
        """
        if class_name not in self._label_of:
            near = difflib.get_close_matches(class_name, self._label_of, n=1, cutoff=0.0)[0]
            raise UserError(
                f"{source}: expected a training class (nearest match: {near}), got {class_name}"
            )
        self._boxes += [list(box) for box in boxes]
        self._image_idxs += [len(self._paths)] * len(boxes)
        self._paths.append(path)
        self._labels.append(self._label_of[class_name])
        self._sizes.append(size)

    def record_problem(self, name: str, problem: str) -> None:
        """Record the name of an image or box under a kind of problem."""
        self._problems.setdefault(problem, []).append(name)

    def record_unreadable(self, faults: Mapping[str, str], policy: BadInputPolicy) -> None:
        """Record the images that were not added because they cannot be read.

        Args:
            faults: error message, with its path, by image name.
            policy: whether they stop the run.

        Raises:
            UserError: `faults` is not empty and the policy is "error".
        """
        if faults and policy == "error":
            first = next(iter(faults.values()))
            count = f"{len(faults)} bad in total; data.on_bad_image=skip skips them"
            raise UserError(f"{first} ({count})")
        for name in faults:
            self.record_problem(name, UNREADABLE)

    def build(self) -> LocalizationAnnotations:
        """Check all boxes, drop images without a valid box, and return the annotations.

        Raises:
            UserError: a box is bad and the policy is "error", or no image is left.
        """
        raw = np.array(self._boxes, dtype=np.float64).reshape(-1, 4)
        image_idxs = np.array(self._image_idxs, dtype=np.int64)
        sizes = np.array(self._sizes, dtype=np.int64).reshape(-1, 2)
        # Check widths and heights before the last pixel is added below: a box from x to x in the
        # file is degenerate (tiny_imagenet.py), and would have a width of 1 afterwards.
        xywh = xyxy_to_xywh(raw)
        checked = check_boxes(xywh, sizes[image_idxs])
        good = ~np.any(list(checked.bad.values()), axis=0)
        if self.on_bad_box == "error" and not good.all():
            row = int(good.argmin())  # the first False
            reason = next(reason for reason, bad in checked.bad.items() if bad[row])
            self._raise_bad_box(row, int(image_idxs[row]), reason, count=int((~good).sum()))
        for reason, bad in checked.bad.items():
            for row in np.flatnonzero(bad).tolist():
                name = self._name(int(image_idxs[row]))
                self.record_problem(
                    f"{name} ({self._coordinates(row)})", f"boxes dropped ({reason})"
                )
        # an image name per clipped box, so the number of names is the number of boxes
        for row in np.flatnonzero(checked.clipped).tolist():
            self.record_problem(self._name(int(image_idxs[row])), CLIPPED)
        boxes = checked.boxes[good]
        if self.last_pixel:
            # from the last pixel inside to the outer edge, at most the image's width and height
            boxes[:, 2:] = np.minimum(boxes[:, 2:] + 1, sizes[image_idxs[good]][:, ::-1])
        counts = np.bincount(image_idxs[good], minlength=len(sizes))
        for index in np.flatnonzero(counts == 0):
            self.record_problem(self._name(int(index)), WITHOUT_BOX)
        # Boxes of dropped images were all bad, so `boxes` needs no further selection. It is in the
        # order of the images, so the counts give the offsets.
        kept = counts > 0
        if not kept.any():
            raise UserError(f"{self.root}: expected images with a valid box, got none")
        return LocalizationAnnotations(
            root=self.root,
            class_names=tuple(self.class_names),
            descriptions=tuple(self.descriptions.get(name, name) for name in self.class_names),
            paths=np.array(self._paths)[kept],
            labels=np.array(self._labels, dtype=np.int64)[kept],
            sizes=sizes[kept],
            boxes=boxes,
            offsets=np.concatenate([[0], np.cumsum(counts[kept])]),
            problems=self._problems,
        )

    def _raise_bad_box(self, row: int, index: int, reason: str, *, count: int) -> None:
        rule = "x1 < x2 and y1 < y2" if reason == NO_SIZE else "finite numbers inside"
        raise UserError(
            f"{self.root / self._paths[index]}: expected a box with {rule} in an image of "
            f"{format_size(self._sizes[index])}, got {self._coordinates(row)} ({count} bad in "
            "total; data.on_bad_box=skip drops them)"
        )

    def _coordinates(self, row: int) -> str:
        return ", ".join(f"{value:g}" for value in self._boxes[row])

    def _name(self, index: int) -> str:
        return Path(self._paths[index]).name


def read_descriptions(path: Path) -> dict[str, str]:
    """Read a readable name for each WordNet id: the first of its synonyms.

    Lines are like `n01443537 goldfish, Carassius auratus`. The file only serves the reader of logs
    and tables: {} if it does not exist.
    """
    if not paths.is_file(path):
        return {}
    pairs = (line.split(maxsplit=1) for line in read_lines(path))
    return {pair[0]: pair[1].split(",")[0].strip() for pair in pairs if len(pair) == 2}
