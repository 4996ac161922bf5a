"""Division of a COCO file into train, validation and test files, stratified by class.

N images, M annotations, K classes, P parts. Images of one group (a video, a patient) stay together.
The result depends on names, counts and the seed, not on the order of the file.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backbones.weights import listing
from detection.data.coco_json import shown
from detection.datasets.coco_document import CocoDocument, plain_path
from detection.datasets.stratify import UnitCounts, stratify
from engine.errors import UserError
from engine.log import RunLog

SUM_TOLERANCE = 0.002
"""How far the fractions' sum may be from 1, so that three times 0.333 is a third each."""


@dataclass(frozen=True)
class Split:
    """A division of the images.

    parts: (N,) int64, the part of each image in file order, P where it is in none. names: P.
    wanted: (P,) int64, the numbers of images that were asked for. num_groups: groups of the images.
    """

    document: CocoDocument
    parts: np.ndarray
    names: tuple[str, ...]
    wanted: np.ndarray
    num_groups: int

    def images_per_part(self) -> np.ndarray:
        """Return the number of images of each part, and last of those in none, (P + 1,)."""
        return np.bincount(self.parts, minlength=len(self.names) + 1)

    def empty_images_per_part(self) -> np.ndarray:
        """Return the same for images without annotations."""
        has_objects = np.zeros(len(self.parts), np.bool_)
        has_objects[self.document.image_rows] = True
        return np.bincount(self.parts[~has_objects], minlength=len(self.names) + 1)

    def objects_per_part(self) -> np.ndarray:
        """Return the number of annotations by class and part, (K, P + 1)."""
        columns = len(self.names) + 1
        codes = self.document.labels * columns + self.parts[self.document.image_rows]
        num_classes = len(self.document.class_names)
        return np.bincount(codes, minlength=num_classes * columns).reshape(-1, columns)

    def content_of(self, part: int) -> dict[str, Any]:
        """Return the COCO document of a part: all keys, its images and their annotations."""
        chosen = self.parts == part
        chosen_rows = chosen[self.document.image_rows]
        kept = {
            "images": _selected(self.document.images, chosen),
            "annotations": _selected(self.document.annotations, chosen_rows),
        }
        return {key: kept.get(key, value) for key, value in self.document.content.items()}


def _selected(entries: Sequence[Any], chosen: np.ndarray) -> list[Any]:
    return [entries[row] for row in np.flatnonzero(chosen).tolist()]


def sizes_of_fractions(fractions: Sequence[float], num_images: int) -> np.ndarray:
    """Return the number of images of each part, (P,); their sum is `num_images`.

    Raises:
        UserError: a fraction is not positive, their sum is not 1, or a part would have no image.
    """
    text = " ".join(f"{each:g}" for each in fractions)
    if not all(0 < each < 1 for each in fractions) or abs(sum(fractions) - 1) > SUM_TOLERANCE:
        got = f"{text}, whose sum is {sum(fractions):g}"
        raise UserError(f"--fractions: expected numbers above 0 whose sum is 1, got {got}")
    exact = np.array(fractions) / sum(fractions) * num_images
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    # the largest remainders are rounded up
    order = np.argsort(sizes - exact, kind="stable")
    sizes[order[: num_images - sizes.sum()]] += 1
    if (sizes == 0).any():
        raise UserError(
            f"--fractions: expected an image in each part, got none in one: {text} of "
            f"{num_images} images"
        )
    return sizes


def sizes_of_counts(counts: Sequence[int]) -> np.ndarray:
    """Return the numbers of images of the parts as an array; UserError if one is below 1."""
    if min(counts) < 1:
        got = " ".join(map(str, counts))
        raise UserError(f"--counts: expected at least one image in each part, got {got}")
    return np.array(counts, np.int64)


def group_by_key(document: CocoDocument, key: str) -> list[str]:
    """Return the group of each image: the value that its entry has under `key`.

    Raises:
        UserError: an image has no such value, or one that is not a text or a number.
    """
    groups = []
    for entry in document.images:
        value = entry.get(key)
        if not isinstance(value, str | int | float):
            got = f"{value!r:.60}" if key in entry else "nothing"
            where = f"{document.path}: image {shown(entry['file_name'])}"
            raise UserError(f"{where}: {key}: expected a text or a number (--by), got {got}")
        groups.append(json.dumps(value))
    return groups


def group_by_pattern(document: CocoDocument, pattern: str) -> list[str]:
    """Return the group of each image: what a regular expression finds in its file name.

    It is the text of the expression's groups in parentheses, or all that matches if it has none.

    Raises:
        UserError: the expression is wrong, or a name does not match it.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--group-regex: expected a regular expression: {error}") from error
    found = [expression.search(name) for name in document.file_names]
    names = zip(found, document.file_names, strict=True)
    missed = [shown(name) for match, name in names if match is None]
    if missed:
        raise UserError(
            f"{document.path}: --group-regex: expected a match in each file_name, got none in "
            f"{len(missed)} of {len(found)}: {listing(missed, 3)}"
        )
    return [json.dumps(match.groups() or match[0]) for match in found if match is not None]


def duplicates(document: CocoDocument, contents: Sequence[bytes] | None) -> list[list[int]]:
    """Return sets of images that are the same: by file name, or by content where it is known.

    Args:
        document: the file.
        contents: digest of the content of each image, empty if unknown; None compares names only.

    Returns:
        Rows of images; each set has at least two.
    """
    rows: dict[tuple[str, str | bytes], list[int]] = defaultdict(list)
    for row, name in enumerate(document.file_names):
        rows["name", plain_path(name)].append(row)
    for row, content in enumerate(contents or ()):
        if content:
            rows["content", content].append(row)
    return [same for same in rows.values() if len(same) > 1]


def refuse_leakage(
    document: CocoDocument, groups: Sequence[str], same: Sequence[Sequence[int]]
) -> None:
    """Raise UserError if equal images are in different groups, and so could be in two parts."""
    apart = [rows for rows in same if len({groups[row] for row in rows}) > 1]
    if not apart:
        return
    names = [" = ".join(shown(document.file_names[row]) for row in rows[:2]) for rows in apart]
    raise UserError(
        f"{document.path}: {len(apart)} sets of equal images (by file name or content) could be "
        f"divided between parts, which lets the test set leak into training: {listing(names, 3)}; "
        "--group-duplicates keeps equal images together, --allow-leakage ignores them"
    )


def split_images(
    document: CocoDocument,
    wanted: np.ndarray,
    names: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    same: Sequence[Sequence[int]] = (),
    seed: int = 0,
    log: RunLog | None = None,
) -> Split:
    """Divide the images so that each part has its share of every class and of empty images.

    Args:
        document: the file.
        wanted: (P,) int64 numbers of images, exact where each image is a group of its own. If their
            sum is below N, the rest of the images is in no part.
        names: of the parts.
        groups: the group of each image; images of one stay together. None: there are none.
        same: rows of images that stay together too.
        seed: chooses among equally good divisions.
        log: shows the progress.

    Raises:
        UserError: more images are asked for than there are, or the groups are too large.
    """
    num_images = len(document.file_names)
    rest = num_images - int(wanted.sum())
    if rest < 0:
        raise UserError(
            f"{document.path}: --counts: expected at most {num_images} images in all, the number "
            f"in the file, got {wanted.sum()}"
        )
    sizes = np.append(wanted, rest) if rest else wanted
    units = _units(document, groups, same)
    images = np.bincount(units)
    if images.max() > sizes.max():
        row = int(np.flatnonzero(units == images.argmax())[0])
        raise UserError(
            f"{document.path}: the group of image {shown(document.file_names[row])} has "
            f"{images.max()} of {num_images} images, more than the largest part "
            f"({sizes.max()}), and cannot be divided"
        )
    parts = stratify(_count_units(document, units), sizes, seed=seed, log=log)
    if len(np.unique(parts[parts < len(wanted)])) < len(wanted):
        raise UserError(
            f"{document.path}: expected images in each of {len(wanted)} parts, got an empty part: "
            f"the {len(images)} groups of images are too few or too large"
        )
    return Split(document, parts[units], tuple(names), wanted, len(images))


def _units(
    document: CocoDocument, groups: Sequence[str] | None, same: Sequence[Sequence[int]]
) -> np.ndarray:
    """Return the unit of each image, (N,): images of a group, or equal ones, share it.

    Units are numbered by their first file name, so that the order in the file does not matter.
    """
    first_of: dict[str, int] = {}
    parent = list(range(len(document.file_names)))  # a forest: each root stands for a unit

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]  # shortens the path for the next search
            row = parent[row]
        return row

    for row, group in enumerate(groups or ()):
        parent[root(row)] = root(first_of.setdefault(group, row))
    for rows in same:
        for row in rows[1:]:
            parent[root(row)] = root(rows[0])
    # equal names are told apart by their ids
    ids = [entry["id"] for entry in document.images]
    order = sorted(range(len(parent)), key=lambda row: (document.file_names[row], ids[row]))
    number_of: dict[int, int] = {}
    units = np.zeros(len(parent), np.int64)
    for row in order:
        units[row] = number_of.setdefault(root(row), len(number_of))
    return units


def _count_units(document: CocoDocument, units: np.ndarray) -> UnitCounts:
    """Count for each unit its images, then by class its objects and its images with them.

    The last two columns count all objects, and images without annotations. F = 2 K + 3.
    """
    num_classes, num_units = len(document.class_names), int(units.max()) + 1
    num_columns = 2 * num_classes + 3
    # an image counts once for each class that it has
    present = np.unique(document.image_rows * num_classes + document.labels)
    has_objects = np.zeros(len(units), np.bool_)
    has_objects[document.image_rows] = True
    empty = units[~has_objects]
    objects = units[document.image_rows]
    owners = [units, objects, units[present // num_classes], objects, empty]
    columns = [
        np.zeros(len(units), np.int64),
        1 + document.labels,
        1 + num_classes + present % num_classes,
        np.full(len(objects), num_columns - 2),
        np.full(len(empty), num_columns - 1),
    ]
    codes = np.concatenate(owners) * num_columns + np.concatenate(columns)
    entries, values = np.unique(codes, return_counts=True)
    starts = np.searchsorted(entries, np.arange(num_units + 1) * num_columns)
    return UnitCounts(entries % num_columns, values.astype(np.float64), starts, num_columns)


def missing_classes(split: Split) -> Mapping[str, list[str]]:
    """Return for each part the classes of the file that it lacks, without parts that lack none."""
    objects = split.objects_per_part()
    names = np.array(split.document.class_names, object)
    occurs = objects.sum(axis=1) > 0
    lacking = {
        name: names[occurs & (objects[:, part] == 0)].tolist()
        for part, name in enumerate(split.names)
    }
    return {part: classes for part, classes in lacking.items() if classes}
