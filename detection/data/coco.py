"""Reader of COCO JSON files, and conversion between category ids and labels.

N images, M annotations, K classes. Category ids become labels here and nowhere else. Error messages
are one line that names the file, the annotation and the image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from detection.data.box_checks import (
    CheckedBoxes,
    check_boxes,
    describe_bad_box,
    find_bad_areas,
    find_systematic_fault,
)
from detection.data.coco_boxes import read_box_tables
from detection.data.coco_cache import read_cached
from detection.data.coco_json import (
    AnnotationTable,
    ImageTable,
    parse_coco,
    read_tables,
    shown,
)
from detection.data.data_report import (
    DataReport,
    count_repeated_boxes,
    count_shared_files,
    find_misfit_areas,
    find_swapped_images,
)
from detection.data.segmentations import ByteStrings, Segmentations, mask_fault
from detection.ops.boxes import xyxy_to_xywh
from detection.structures import Detections
from engine.errors import UserError
from engine.schema import BadInputPolicy

BAD_AREA, NO_MASK = "area negative or not finite", "no readable mask"


@dataclass(frozen=True)
class ClassMap:
    """The classes of a data set in ascending order of category id: label `i` is `names[i]`."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of classes, background not counted."""
        return len(self.names)


@dataclass(frozen=True)
class Annotations:
    """One COCO file. The objects of image `i` are rows `offsets[i]:offsets[i + 1]`.

    image_ids: (N,) int64, in file order. file_names: N, UTF-8. sizes: (N, 2) int64, height and
    width. offsets: (N + 1,) int64. boxes: (M, 4) float32 xyxy in original pixels, clipped to the
    image. labels: (M,) int64. is_crowd: (M,) bool. is_difficult: (M,) bool, PASCAL VOC's flag for
    objects that are hard to recognise. is_ignored: (M,) bool, marked `ignore`. fits, fits_swapped:
    (M,) bool, whether the unclipped box of the file is inside its image, and whether it would be
    with the image's width and height swapped. areas: (M,) float32, from the file, else of the box.
    rows_in_file: (M,) int64, the position of each object in the file, which indexes
    `segmentations` and `table`. segmentations: polygons in float64 if there is a table, else in
    float32. table: all annotations, unchanged and including dropped ones; None unless the file was
    read for scoring. cache_note: a log line about the cached copy of the file, None if no copy is
    kept.
    """

    path: Path
    classes: ClassMap
    report: DataReport
    image_ids: np.ndarray
    file_names: ByteStrings
    sizes: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    is_difficult: np.ndarray
    is_ignored: np.ndarray
    fits: np.ndarray
    fits_swapped: np.ndarray
    areas: np.ndarray
    rows_in_file: np.ndarray
    segmentations: Segmentations
    table: AnnotationTable | None = None
    cache_note: str | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)

    def file_name(self, row: int) -> str:
        """Return the file name of image `row`."""
        return self.file_names[row].decode()

    def row_of(self, objects: np.ndarray) -> np.ndarray:
        """Return the image row of each of `objects` (n,): (n,) int64."""
        # the last offset that is <= the object's row; images without objects are skipped
        rows: np.ndarray = np.searchsorted(self.offsets, objects, side="right") - 1
        return rows

    def is_plain(self, objects: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Return bool per object: it is a training object, not crowd, difficult or ignored."""
        plain: np.ndarray = ~(
            self.is_crowd[objects] | self.is_difficult[objects] | self.is_ignored[objects]
        )
        return plain

    def objects_of(self, row: int) -> slice:
        """Return the rows of the objects of image `row`."""
        return slice(int(self.offsets[row]), int(self.offsets[row + 1]))


def read_coco(
    path: str | Path,
    *,
    classes: ClassMap | None = None,
    on_bad_box: BadInputPolicy = "error",
    need_boxes: bool = True,
    need_masks: bool = False,
    for_scoring: bool = False,
    cache_from: int | None = None,
    with_masks: bool = True,
) -> Annotations:
    """Read and check the COCO JSON at `path`.

    Args:
        path: the file.
        classes: the expected categories; None takes them from the file.
        on_bad_box: what to do with an object whose box is not finite, has no size or is outside its
            image, or whose area is negative or not finite: stop, or drop and count it. A box partly
            outside its image is clipped and counted.
        need_boxes: whether a file without any training object is an error.
        need_masks: whether an object without a readable mask is bad too, except crowd regions.
        for_scoring: whether to keep the table of the file's unchanged values, which ground truth is
            made from. For a training set of COCO's size it would take 0.2 GB and not be used.
        cache_from: minimum size of the file in bytes for a cached copy beside it, see coco_cache;
            None keeps no copy. The result is the same.
        with_masks: whether to read `segmentations`. Without them and without a copy, reading takes
            a third of the time; their faults are then not counted.

    Raises:
        UserError: the file is missing, broken or inconsistent, or its categories are not `classes`.
    """
    path = Path(path)
    cached = None if cache_from is None else read_cached(path, cache_from, exact=for_scoring)
    read = read_tables if with_masks else read_box_tables
    tables, cache_note = (read(path), None) if cached is None else cached
    images, columns = tables.images, tables.annotations
    if not for_scoring:
        columns = replace(columns, segmentations=columns.segmentations.in_float32())
    category_ids, names = zip(*tables.categories, strict=True)
    found = ClassMap(names=names, category_ids=category_ids)
    if classes is not None:
        _check_same_classes(found, classes, path)
    image_rows, labels = _resolve(columns, images, found, path)
    with np.errstate(over="ignore"):  # areas too large for float32 are bad, see _check_objects
        areas = columns.areas.astype(np.float32)
    checked = _check_objects(
        columns, images, image_rows, path, stop=on_bad_box == "error", need_masks=need_masks
    )
    # rows: positions in the file of the objects that are kept
    rows = np.flatnonzero(~np.any(list(checked.bad.values()), axis=0))
    if need_boxes:
        _check_any_plain(columns, rows, path)
    # Group objects by image, so that one pair of offsets per image is enough. The stable sort keeps
    # the file's order within an image.
    rows = rows[np.argsort(image_rows[rows], kind="stable")]
    per_image = np.bincount(image_rows[rows], minlength=len(images.ids))
    per_class = np.bincount(labels[rows], minlength=len(found))
    report = DataReport(
        images=len(images.ids),
        images_without_boxes=int((per_image == 0).sum()),
        boxes_by_class=dict(zip(found.names, per_class.tolist(), strict=True)),
        crowds=int(columns.is_crowd[rows].sum()),
        difficult=int(columns.is_difficult[rows].sum()),
        ignored=int(columns.is_ignored[rows].sum()),
        filled_areas=int(columns.lacks_area.sum()),
        filled_iscrowds=int(columns.lacks_iscrowd.sum()),
        unreadable_masks=columns.unreadable_masks,
        dropped_mask_parts=columns.dropped_mask_parts,
        clipped_boxes=int(checked.clipped.sum()),
        shared_files=count_shared_files(images.names),
        swapped_images=len(find_swapped_images(image_rows, checked.fits, checked.fits_swapped)),
        repeated_boxes=count_repeated_boxes(image_rows[rows], labels[rows], checked.boxes[rows]),
        misfit_areas=int(find_misfit_areas(areas[rows], columns.xywh[rows]).sum()),
        dropped=_count_dropped(checked.bad, labels, found),
    )
    return Annotations(
        path=path,
        classes=found,
        report=report,
        image_ids=images.ids,
        file_names=images.names,
        sizes=images.sizes,
        offsets=np.concatenate([[0], np.cumsum(per_image)]),
        boxes=checked.boxes[rows],
        labels=labels[rows],
        is_crowd=columns.is_crowd[rows],
        is_difficult=columns.is_difficult[rows],
        is_ignored=columns.is_ignored[rows],
        fits=checked.fits[rows],
        fits_swapped=checked.fits_swapped[rows],
        areas=areas[rows],
        rows_in_file=rows,
        segmentations=columns.segmentations,
        table=columns if for_scoring else None,
        cache_note=cache_note,
    )


def detections_to_coco(
    image_id: int, detections: Detections, classes: ClassMap
) -> list[dict[str, Any]]:
    """Return the entries of one image for a COCO results file, with the original category ids."""
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
    """Raise UserError if a class is missing, added, renamed or has another id."""
    # compare pairs: a renamed class shows on both sides of the message
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
    # _find needs ascending ids; `order` maps a position in them back to the image's row in the file
    order = np.argsort(images.ids)
    image_at, known = _find(columns.image_ids, images.ids[order])
    if not known.all():
        first = int(np.flatnonzero(~known)[0])
        where = f"{path}: annotation {columns.ids[first]}"
        raise UserError(f"{where}: image_id: no image has the id {columns.image_ids[first]}")
    image_rows = order[image_at]
    # category ids are ascending already, so the position is the label
    labels, known = _find(columns.category_ids, np.array(classes.category_ids))
    if not known.all():
        first = int(np.flatnonzero(~known)[0])
        name = images.names[image_rows[first]].decode()
        where = f"{path}: annotation {columns.ids[first]} of image {shown(name)}"
        got = columns.category_ids[first]
        raise UserError(f"{where}: category_id: no category has the id {got}")
    return image_rows, labels


def _find(values: np.ndarray, ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the position of each of `values` in `ascending`, and whether it is contained."""
    # searchsorted returns an insertion point, which is len(ascending) for values above all others
    at = np.searchsorted(ascending, values).clip(max=len(ascending) - 1)
    return at, ascending[at] == values


def _check_objects(
    columns: AnnotationTable,
    images: ImageTable,
    image_rows: np.ndarray,
    path: Path,
    *,
    stop: bool,
    need_masks: bool,
) -> CheckedBoxes:
    """Check all objects; if `stop`, raise UserError for the first bad one in the file."""
    sizes = images.sizes[image_rows]
    fault = find_systematic_fault(columns.xywh, sizes)
    if fault is not None:
        raise UserError(f"{path}: {fault.message}")
    checked = check_boxes(columns.xywh, sizes)
    bad = dict(checked.bad)
    faults = {BAD_AREA: find_bad_areas(columns.areas)}
    if need_masks:
        faults[NO_MASK] = ~columns.segmentations.are_there & ~columns.is_crowd
    # an object gets only the first reason that applies, so that counts add up
    for reason, mask in faults.items():
        bad[reason] = mask & ~np.any(list(bad.values()), axis=0)
    # argmax of a bool array is its first True
    firsts = [(int(mask.argmax()), reason) for reason, mask in bad.items() if mask.any()]
    if stop and firsts:
        row, reason = min(firsts)
        name = images.names[image_rows[row]].decode()
        where = f"{path}: annotation {columns.ids[row]} of image {shown(name)}"
        problem = _describe(columns, row, tuple(sizes[row].tolist()), reason, path)
        count = sum(int(mask.sum()) for mask in bad.values())
        policy = f"({count} bad in all; data.on_bad_box=skip drops them)"
        raise UserError(f"{where}: {problem} {policy}")
    return replace(checked, bad=bad)


def _describe(
    columns: AnnotationTable, row: int, size: tuple[int, int], reason: str, path: Path
) -> str:
    """Describe one bad object for an error message; for a mask, read the file again."""
    if reason == BAD_AREA:
        with np.errstate(over="ignore"):
            area = np.float32(columns.areas[row])
        return f"area: expected a finite number of 0 or more, got {area:g}"
    if reason == NO_MASK:
        # unreadable masks are not kept in the arrays
        value = parse_coco(path)["annotations"][row].get("segmentation")
        return f"segmentation: {mask_fault(value, size)}"
    return describe_bad_box(columns.xywh[row].tolist(), size, reason)


def _check_any_plain(columns: AnnotationTable, rows: np.ndarray, path: Path) -> None:
    """Raise UserError if `rows` contain no training object; the message counts the others."""
    crowd, difficult = columns.is_crowd[rows], columns.is_difficult[rows]
    ignored = columns.is_ignored[rows]
    if (~(crowd | difficult | ignored)).any():
        return
    # disjoint kinds, so that the counts add up to len(rows)
    kinds = {
        "crowd regions": crowd,
        "difficult objects": difficult & ~crowd,
        "objects marked `ignore`": ignored & ~crowd & ~difficult,
    }
    counts = {what: int(mask.sum()) for what, mask in kinds.items() if mask.any()}
    got = "none"
    if len(counts) == 1:
        got = f"{len(rows)}, all {next(iter(counts))}"
    elif counts:
        got = f"{len(rows)}: " + ", ".join(f"{count} {what}" for what, count in counts.items())
    raise UserError(f"{path}: annotations: expected at least one box to train on, got {got}")


def _count_dropped(
    bad: Mapping[str, np.ndarray], labels: np.ndarray, classes: ClassMap
) -> dict[tuple[str, str], int]:
    """Return the number of bad boxes by (reason, class name), without zeros."""
    counts = {reason: np.bincount(labels[mask]) for reason, mask in bad.items()}
    return {
        (reason, classes.names[label]): int(count[label])
        for reason, count in counts.items()
        for label in np.flatnonzero(count)
    }
