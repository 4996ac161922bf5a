"""Pictures of one class each with the boxes of its objects, gathered from whatever layout.

N pictures, M boxes, K classes. Boxes are xyxy pixels of the file. A set of half a million pictures
is held in flat arrays, whose pages worker processes share.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from backbones.weights import listing
from detection.data.box_checks import NO_SIZE, check_boxes, shape
from detection.ops.boxes import xyxy_to_xywh
from engine import paths
from engine.errors import UserError
from engine.files import read_lines
from engine.schema import BadInputPolicy

UNREADABLE = "pictures that cannot be read left out"
WITHOUT_BOX = "pictures without a good box left out"
CUT = "boxes cut at the border of their picture"
NAMES_SHOWN = 20
"""Of the boxes or pictures in one entry of the ledger, those that are named."""


@dataclass(frozen=True)
class BoxedPictures:
    """What one split holds.

    class_names: WordNet ids, by label. words: the first word for each, or its id. paths: (N,) str,
    from `root` on. labels: (N,) int64. sizes: (N, 2) int64 height and width. boxes: (M, 4) float32,
    inside their pictures; those of picture i are offsets[i] to offsets[i + 1]. ledger: by what was
    done, the name of each picture or box that was left out or changed.
    """

    root: Path
    class_names: tuple[str, ...]
    words: tuple[str, ...]
    paths: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    boxes: np.ndarray
    offsets: np.ndarray
    ledger: dict[str, list[str]]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.labels)

    def boxes_of(self, index: int) -> np.ndarray:
        """Return the boxes of a picture, at least one: (n, 4)."""
        boxes: np.ndarray = self.boxes[self.offsets[index] : self.offsets[index + 1]]
        return boxes

    def mean_box(self) -> np.ndarray:
        """Return (4,) float64, the mean of all boxes as shares of their pictures."""
        counts = np.diff(self.offsets)
        sides = np.tile(self.sizes[:, ::-1].repeat(counts, axis=0), 2)
        mean: np.ndarray = (self.boxes / sides).mean(axis=0, dtype=np.float64)
        return mean

    def lines(self) -> list[str]:
        """Say what there is, and what was left out or changed."""
        first = f"{len(self)} pictures of {len(self.class_names)} classes, {len(self.boxes)} boxes"
        return [first] + [
            f"{len(names)} {what}: {listing(names, NAMES_SHOWN)}"
            for what, names in self.ledger.items()
        ]


@dataclass
class Gathering:
    """Takes pictures one by one, checks their boxes, and makes `BoxedPictures` of them.

    Args:
        root: folder from which paths count.
        class_names: WordNet ids, by label.
        words: what is shown for an id, where it is known.
        on_bad_box: whether a bad box stops the run or is left out.
        last_pixel: a box's far corner is the last pixel inside, not the first one outside.
    """

    root: Path
    class_names: Sequence[str]
    words: dict[str, str]
    on_bad_box: BadInputPolicy
    last_pixel: bool
    _paths: list[str] = field(default_factory=list, init=False)
    _labels: list[int] = field(default_factory=list, init=False)
    _sizes: list[tuple[int, int]] = field(default_factory=list, init=False)
    _boxes: list[list[float]] = field(default_factory=list, init=False)
    _owners: list[int] = field(default_factory=list, init=False)
    _ledger: dict[str, list[str]] = field(default_factory=dict, init=False)

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
        """Take a picture.

        Args:
            path: from the root on.
            class_name: its WordNet id.
            size: (height, width).
            boxes: x1, y1, x2, y2 of each object of the class, as the file has them; may be empty.
            source: file (and line) that says so, for messages.

        Raises:
            UserError: the class is none of `class_names`.
        """
        if class_name not in self._label_of:
            near = difflib.get_close_matches(class_name, self._label_of, n=1, cutoff=0.0)[0]
            raise UserError(
                f"{source}: expected a class of training (the nearest is {near}), got {class_name}"
            )
        self._boxes += [list(box) for box in boxes]
        self._owners += [len(self._paths)] * len(boxes)
        self._paths.append(path)
        self._labels.append(self._label_of[class_name])
        self._sizes.append(size)

    def count(self, name: str, what: str) -> None:
        """Enter a picture or box into the ledger."""
        self._ledger.setdefault(what, []).append(name)

    def drop_images(self, faults: Mapping[str, str], policy: BadInputPolicy) -> None:
        """Enter images that were not taken into the ledger.

        Args:
            faults: by name, what is wrong with each, with its path.
            policy: whether they stop the run.

        Raises:
            UserError: there are some, and the policy is to stop.
        """
        if faults and policy == "error":
            first = next(iter(faults.values()))
            count = f"{len(faults)} bad in all; data.on_bad_image=skip drops them"
            raise UserError(f"{first} ({count})")
        for name in faults:
            self.count(name, UNREADABLE)

    def finish(self) -> BoxedPictures:
        """Check all boxes, and drop the pictures that have no good one.

        Raises:
            UserError: a bad box, and the policy is to stop; or no picture is left.
        """
        raw = np.array(self._boxes, dtype=np.float64).reshape(-1, 4)
        owners = np.array(self._owners, dtype=np.int64)
        sizes = np.array(self._sizes, dtype=np.int64).reshape(-1, 2)
        # A box is without size as its file has it, before the last pixel is counted in.
        xywh = xyxy_to_xywh(torch.from_numpy(raw)).numpy()
        checked = check_boxes(xywh, sizes[owners])
        good = ~np.any(list(checked.bad.values()), axis=0)
        if self.on_bad_box == "error" and not good.all():
            row = int(good.argmin())
            reason = next(reason for reason, bad in checked.bad.items() if bad[row])
            self._refuse(row, int(owners[row]), reason, count=int((~good).sum()))
        for reason, bad in checked.bad.items():
            for at in np.flatnonzero(bad).tolist():
                name = self._name(int(owners[at]))
                self.count(f"{name} ({self._numbers(at)})", f"boxes left out ({reason})")
        for at in np.flatnonzero(checked.clipped).tolist():
            self.count(self._name(int(owners[at])), CUT)
        boxes = checked.boxes[good]
        if self.last_pixel:
            boxes[:, 2:] = np.minimum(boxes[:, 2:] + 1, sizes[owners[good]][:, ::-1])
        counts = np.bincount(owners[good], minlength=len(sizes))
        for index in np.flatnonzero(counts == 0):
            self.count(self._name(int(index)), WITHOUT_BOX)
        kept = counts > 0
        if not kept.any():
            raise UserError(f"{self.root}: expected pictures with a good box, got none")
        return BoxedPictures(
            root=self.root,
            class_names=tuple(self.class_names),
            words=tuple(self.words.get(name, name) for name in self.class_names),
            paths=np.array(self._paths)[kept],
            labels=np.array(self._labels, dtype=np.int64)[kept],
            sizes=sizes[kept],
            boxes=boxes,
            offsets=np.concatenate([[0], np.cumsum(counts[kept])]),
            ledger=self._ledger,
        )

    def _refuse(self, row: int, owner: int, reason: str, *, count: int) -> None:
        rule = "x1 < x2 and y1 < y2" if reason == NO_SIZE else "finite numbers inside"
        raise UserError(
            f"{self.root / self._paths[owner]}: expected a box with {rule} in a picture of "
            f"{shape(self._sizes[owner])}, got {self._numbers(row)} ({count} bad in all;"
            " data.on_bad_box=skip drops them)"
        )

    def _numbers(self, row: int) -> str:
        return ", ".join(f"{value:g}" for value in self._boxes[row])

    def _name(self, index: int) -> str:
        return Path(self._paths[index]).name


def read_words(path: Path) -> dict[str, str]:
    """Return the first word for each WordNet id: lines `n01443537 goldfish, Carassius auratus`.

    The file is there for the reader's sake: {} without it.
    """
    if not paths.is_file(path):
        return {}
    pairs = (line.split(maxsplit=1) for line in read_lines(path))
    return {pair[0]: pair[1].split(",")[0].strip() for pair in pairs if len(pair) == 2}
