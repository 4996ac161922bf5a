"""COCO JSON in, packed arrays out: the only place where category ids become labels and back.

N images, M annotations, K classes. Every fault of a file is one line that names the file, the
annotation and the image.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detection.data.box_checks import CheckedBoxes, check_boxes, describe_bad_box, doubt_about_all
from detection.data.coco_cache import read_cached
from detection.data.coco_json import AnnotationTable, ImageTable, check_any, read_tables
from detection.data.packed import PackedBytes, Segmentations
from detection.ops.boxes import xyxy_to_xywh
from detection.structures import Detections
from engine.errors import UserError


@dataclass(frozen=True)
class ClassMap:
    """The classes of a data set, by rising category id: label `i` is `names[i]`."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of classes, background not counted."""
        return len(self.names)

    def label_of(self, category_id: int) -> int:
        """Return the label 0..K-1 of COCO's `category_id`.

        Raises:
            ValueError: no class has this id.
        """
        label = bisect_left(self.category_ids, category_id)
        if self.category_ids[label : label + 1] != (category_id,):
            raise ValueError(f"category_id: expected one of {self.category_ids}, got {category_id}")
        return label


@dataclass(frozen=True)
class Ledger:
    """What was read, filled in and dropped. `dropped`: boxes by (reason, class name)."""

    images: int
    images_without_boxes: int
    boxes_by_class: Mapping[str, int]
    crowds: int
    difficult: int
    filled_areas: int
    filled_iscrowds: int
    unreadable_masks: int
    clipped_boxes: int
    dropped: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, int]]:
        """Return (what, count) for the console; what did not happen is left out."""
        rows = [
            ("images", self.images),
            ("images without boxes", self.images_without_boxes),
            ("boxes", sum(self.boxes_by_class.values())),
            ("crowd regions among them", self.crowds),
            ("difficult objects among them", self.difficult),
            ("boxes clipped to their image", self.clipped_boxes),
            ("areas filled in", self.filled_areas),
            ("iscrowd filled in", self.filled_iscrowds),
            ("unreadable masks", self.unreadable_masks),
            *((f"boxes dropped, {why}: {name}", n) for (why, name), n in self.dropped.items()),
        ]
        return [row for row in rows if row[1] or row[0] in ("images", "boxes")]


@dataclass(frozen=True)
class Annotations:
    """One COCO file. The objects of image `i` are rows `offsets[i]` to `offsets[i + 1]`.

    image_ids: (N,) int64, in the order of the file. file_names: N, UTF-8. sizes: (N, 2) int64.
    offsets: (N + 1,) int64. boxes: (M, 4) float32 in original pixels, clipped to the image.
    labels: (M,) int64. is_crowd: (M,) bool. is_difficult: (M,) bool, PASCAL VOC's mark on what is
    hard to recognise. areas: (M,) float32, of the mask where there is one.
    segmentation_idxs: (M,) int64, rows of `segmentations`, which keep the order of the file.
    cache_note: what was done about a packed copy of the file, None where nothing was.
    """

    path: Path
    classes: ClassMap
    ledger: Ledger
    image_ids: np.ndarray
    file_names: PackedBytes
    sizes: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    is_difficult: np.ndarray
    areas: np.ndarray
    segmentation_idxs: np.ndarray
    segmentations: Segmentations
    cache_note: str | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)

    def file_name(self, row: int) -> str:
        """Return the file name of image `row`."""
        return self.file_names[row].decode()

    def objects_of(self, row: int) -> slice:
        """Return the rows of the objects of image `row`."""
        return slice(int(self.offsets[row]), int(self.offsets[row + 1]))


def read_coco(
    path: str | Path,
    *,
    classes: ClassMap | None = None,
    on_bad_box: Literal["error", "skip"] = "error",
    need_boxes: bool = True,
    cache_from: int | None = None,
) -> Annotations:
    """Read and check the COCO JSON at `path`.

    Args:
        path: the file.
        classes: what its categories must be; None takes them from the file.
        on_bad_box: what a box that is not finite, has no size or lies outside its image does:
            stop, or get dropped and counted. A box partly outside is clipped and counted.
        need_boxes: whether a file without a single box to learn from is an error.
        cache_from: size in bytes from which a packed copy is kept beside the file, see coco_cache;
            None keeps none. What is returned is the same.

    Raises:
        UserError: the file is missing, broken or contradicts itself or `classes`.
    """
    path = Path(path)
    cached = None if cache_from is None else read_cached(path, cache_from)
    tables, cache_note = (read_tables(path), None) if cached is None else cached
    images, columns = tables.images, tables.annotations
    category_ids, names = zip(*tables.categories, strict=True)
    found = ClassMap(names=names, category_ids=category_ids)
    if classes is not None:
        _check_same_classes(found, classes, path)
    image_rows, labels = _resolve(columns, images, found, path)
    checked = _check_boxes(columns, images, image_rows, path, stop=on_bad_box == "error")
    keep = ~np.any(list(checked.bad.values()), axis=0)
    if need_boxes:
        plain = keep & ~columns.is_crowd & ~columns.is_difficult
        check_any(plain.sum(), "box to train on", path)
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(image_rows[rows], kind="stable")]
    per_image = np.bincount(image_rows[rows], minlength=len(images.ids))
    per_class = np.bincount(labels[rows], minlength=len(found))
    ledger = Ledger(
        images=len(images.ids),
        images_without_boxes=int((per_image == 0).sum()),
        boxes_by_class=dict(zip(found.names, per_class.tolist(), strict=True)),
        crowds=int(columns.is_crowd[rows].sum()),
        difficult=int(columns.is_difficult[rows].sum()),
        filled_areas=columns.filled_areas,
        filled_iscrowds=columns.filled_iscrowds,
        unreadable_masks=columns.unreadable_masks,
        clipped_boxes=int(checked.clipped.sum()),
        dropped=_count_dropped(checked.bad, labels, found),
    )
    return Annotations(
        path=path,
        classes=found,
        ledger=ledger,
        image_ids=images.ids,
        file_names=images.names,
        sizes=images.sizes,
        offsets=np.concatenate([[0], np.cumsum(per_image)]),
        boxes=checked.boxes[rows],
        labels=labels[rows],
        is_crowd=columns.is_crowd[rows],
        is_difficult=columns.is_difficult[rows],
        areas=columns.areas[rows],
        segmentation_idxs=rows,
        segmentations=columns.segmentations,
        cache_note=cache_note,
    )


def detections_to_coco(
    image_id: int, detections: Detections, classes: ClassMap
) -> list[dict[str, Any]]:
    """Return one image's entries of a COCO results file, with the data set's category ids."""
    boxes = xyxy_to_xywh(detections.boxes).tolist()
    columns = zip(boxes, detections.labels.tolist(), detections.scores.tolist(), strict=True)
    entries: list[dict[str, Any]] = [
        {
            "image_id": image_id,
            "category_id": classes.category_ids[label],
            "bbox": box,
            "score": score,
        }
        for box, label, score in columns
    ]
    if detections.masks is not None:
        size = list(detections.masks.size)
        for entry, code in zip(entries, detections.masks.codes, strict=True):
            entry["segmentation"] = {"size": size, "counts": code.decode()}
    return entries


def _check_same_classes(found: ClassMap, expected: ClassMap, path: Path) -> None:
    """Raise UserError where one class is missing, added, renamed or has another id."""
    got = set(zip(found.category_ids, found.names, strict=True))
    want = set(zip(expected.category_ids, expected.names, strict=True))
    if got == want:
        return
    sides = [
        f"{text} " + ", ".join(f"{name!r} (id {key})" for key, name in sorted(pairs)[:10])
        for text, pairs in (("expected", want - got), ("got", got - want))
        if pairs
    ]
    raise UserError(f"{path}: categories differ from the model's: {'; '.join(sides)}")


def _resolve(
    columns: AnnotationTable, images: ImageTable, classes: ClassMap, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Return the image row (M,) and label (M,) of every annotation."""
    order = np.argsort(images.ids)
    image_at, known = _find(columns.image_ids, images.ids[order])
    if not known.all():
        first = int(np.flatnonzero(~known)[0])
        where = f"{path}: annotation {columns.ids[first]}"
        raise UserError(f"{where}: image_id: no image has the id {columns.image_ids[first]}")
    image_rows = order[image_at]
    labels, known = _find(columns.category_ids, np.array(classes.category_ids))
    if not known.all():
        first = int(np.flatnonzero(~known)[0])
        name = images.names[image_rows[first]].decode()
        where = f"{path}: annotation {columns.ids[first]} of image {name}"
        got = columns.category_ids[first]
        raise UserError(f"{where}: category_id: no category has the id {got}")
    return image_rows, labels


def _find(values: np.ndarray, ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where in `ascending` each of `values` is, and whether it is there at all."""
    at = np.searchsorted(ascending, values).clip(max=len(ascending) - 1)
    return at, ascending[at] == values


def _check_boxes(
    columns: AnnotationTable, images: ImageTable, image_rows: np.ndarray, path: Path, *, stop: bool
) -> CheckedBoxes:
    """Check all boxes; with `stop` the first bad one in the file raises UserError."""
    sizes = images.sizes[image_rows]
    doubt = doubt_about_all(columns.xywh, sizes)
    if doubt is not None:
        raise UserError(f"{path}: {doubt}")
    checked = check_boxes(columns.xywh, sizes)
    firsts = [(int(mask.argmax()), reason) for reason, mask in checked.bad.items() if mask.any()]
    if stop and firsts:
        row, reason = min(firsts)
        name = images.names[image_rows[row]].decode()
        problem = describe_bad_box(columns.xywh[row].tolist(), tuple(sizes[row]), reason)
        raise UserError(f"{path}: annotation {columns.ids[row]} of image {name}: {problem}")
    return checked


def _count_dropped(
    bad: Mapping[str, np.ndarray], labels: np.ndarray, classes: ClassMap
) -> dict[tuple[str, str], int]:
    """Return the number of bad boxes for each (reason, class name) that has any."""
    counts = {reason: np.bincount(labels[mask]) for reason, mask in bad.items()}
    return {
        (reason, classes.names[label]): int(count[label])
        for reason, count in counts.items()
        for label in np.flatnonzero(count)
    }
