"""Findings about boxes and areas. M annotations; boxes xyxy in original pixels."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from detection.data.box_checks import (
    NO_SIZE,
    NOT_FINITE,
    OUTSIDE,
    check_boxes,
    describe_bad_box,
    find_bad_areas,
    find_systematic_fault,
    format_size,
)
from detection.data.data_report import box_keys, find_misfit_areas, find_swapped_images
from detection.datasets.box_outliers import near_pairs, robust_deviations
from detection.datasets.check.columns import Columns
from detection.datasets.check.findings import FindingList
from detection.datasets.check.structure import repeats_of
from detection.ops.boxes import xyxy_to_xywh

MANY_OBJECTS = 30
"""Objects that a class needs before its usual size and shape are known."""
FAR_OFF = 4.0
"""Robust standard deviations; a normal distribution has one in 16,000 objects beyond."""
BORDER = 2.0
"""Pixels; tools that count from 1 leave one free."""
LEAST_DEVIATION = 0.1
"""Smallest standard deviation of log size and log aspect: 10 %, what annotators differ by."""

_BAD_CODES = {NOT_FINITE: "box-not-finite", NO_SIZE: "box-without-size", OUTSIDE: "box-outside"}
_FAULT_CODES = {
    "fractions": "boxes-normalised",
    "corners": "boxes-xyxy",
    "swapped sides": "boxes-swapped",
    "unknown": "boxes-unknown",
}


@dataclass(frozen=True)
class BoxColumns:
    """Boxes after the checks. What a systematic fault hides is looked at as if it were mended.

    xywh: (M, 4) float64. boxes: (M, 4) float32 xyxy, clipped. is_good: (M,) bool, boxes that the
    reader takes; the others are undefined. sizes: (N, 2) height and width that the boxes fit.
    """

    xywh: np.ndarray
    boxes: np.ndarray
    is_good: np.ndarray
    sizes: np.ndarray


def find_boxes(
    columns: Columns, true_sizes: Mapping[str, tuple[int, int]], findings: FindingList
) -> BoxColumns:
    """Add bad boxes and areas, and boxes that are given twice.

    Args:
        columns: the file.
        true_sizes: (height, width) of images by file name, where they are known.
        findings: gets them.
    """
    table, images = columns.annotations, columns.images
    sizes = images.sizes.copy()
    known = np.flatnonzero(columns.are_sized)  # the others cannot be checked
    places = columns.image_places[known]
    xywh = _find_systematic(columns, known, sizes, findings)
    checked = check_boxes(xywh, sizes[places])
    found = find_swapped_images(places, checked.fits, checked.fits_swapped)
    if len(found):
        # where the file's size is known, it decides, and another size is a finding of its own
        known_sizes = [true_sizes.get(images.names[at]) for at in found.tolist()]
        unknown = found[[size is None for size in known_sizes]]
        findings.add_images("sides-swapped", unknown, lambda at: format_size(images.sizes[at]))
        sizes[unknown] = sizes[unknown][:, ::-1]
        for at, size in zip(found.tolist(), known_sizes, strict=True):
            sizes[at] = sizes[at] if size is None else size
        checked = check_boxes(xywh, sizes[places])

    def described(reason: str, at: int) -> str:
        row = int(np.searchsorted(known, at))
        height, width = sizes[places[row]].tolist()
        return describe_bad_box(xywh[row].tolist(), (height, width), reason)

    for reason, code in _BAD_CODES.items():
        findings.add_annotations(code, known[checked.bad[reason]], partial(described, reason))
    findings.add_annotations(
        "box-clipped", known[checked.clipped], lambda at: _shown(table.xywh[at])
    )
    boxes = np.zeros((len(table.ids), 4), np.float32)
    boxes[known] = checked.boxes
    is_good = np.zeros(len(table.ids), np.bool_)
    is_good[known] = ~np.any(list(checked.bad.values()), axis=0)
    is_good &= columns.labels >= 0
    mended = table.xywh.copy()
    mended[known] = xywh
    _find_areas(columns, mended, is_good, findings)
    _find_duplicates(columns, boxes, is_good, findings)
    return BoxColumns(mended, boxes, is_good, sizes)


def _find_systematic(
    columns: Columns, known: np.ndarray, sizes: np.ndarray, findings: FindingList
) -> np.ndarray:
    """Add faults of the boxes as a whole; return the xywh of `known` without them.

    Swaps `sizes` in place if all images have swapped sides.
    """
    xywh: np.ndarray = columns.annotations.xywh[known]
    places = columns.image_places[known]
    for _ in range(len(_FAULT_CODES)):  # fractions may be of corners
        fault = find_systematic_fault(xywh, sizes[places])
        code = "" if fault is None else _FAULT_CODES[fault.kind]
        if fault is None or code in findings.found:
            break
        findings.add_annotations(
            code,
            known,
            lambda at: _shown(columns.annotations.xywh[at]),
            detail=fault.message,
        )
        if fault.kind == "fractions":
            xywh = xywh * np.tile(sizes[places][:, ::-1], 2)
        elif fault.kind == "corners":
            xywh = xyxy_to_xywh(xywh)
        elif fault.kind == "swapped sides":
            sizes[:] = sizes[:, ::-1]
    return xywh


def _find_areas(
    columns: Columns, xywh: np.ndarray, is_good: np.ndarray, findings: FindingList
) -> None:
    table = columns.annotations
    impossible = find_bad_areas(table.areas) & ~table.lacks_area
    misfit = is_good & ~impossible & ~table.lacks_area
    misfit[misfit] = find_misfit_areas(table.areas[misfit], xywh[misfit])
    for code, mask in (("area-impossible", impossible), ("area-misfit", misfit)):
        findings.add_annotations(
            code,
            np.flatnonzero(mask),
            lambda at: f"area {table.areas[at]:g} of bbox {_shown(table.xywh[at])}",
        )
    for code, mask in (
        ("area-missing", table.lacks_area),
        ("iscrowd-missing", table.lacks_iscrowd),
    ):
        findings.add_annotations(code, np.flatnonzero(mask), lambda at: "")


def _find_duplicates(
    columns: Columns, boxes: np.ndarray, is_good: np.ndarray, findings: FindingList
) -> None:
    table = columns.annotations
    good = np.flatnonzero(is_good)
    repeats = repeats_of(box_keys(columns.image_places[good], columns.labels[good], boxes[good]))
    findings.add_annotations("duplicate-box", good[repeats], lambda at: _shown(table.xywh[at]))
    single = np.delete(good, repeats)
    single = single[~table.is_crowd[single]]
    groups = columns.image_places[single] * max(1, len(columns.categories)) + columns.labels[single]
    later, earlier, _ = near_pairs(groups, boxes[single])
    partners = dict(zip(single[later].tolist(), single[earlier].tolist(), strict=True))
    findings.add_annotations(
        "near-duplicate-box",
        np.array(sorted(partners), np.int64),
        lambda at: f"{_shown(table.xywh[at])} beside annotation {table.ids[partners[at]]}",
    )


def find_unusual(columns: Columns, found: BoxColumns, findings: FindingList) -> None:
    """Add boxes that are far off the size or the shape that their class has.

    The size is the square root of the box's area over that of its image, so that images of several
    sizes can be mixed. Boxes at the border of their image are not regarded: it cuts their objects.
    """
    table = columns.annotations
    good = np.flatnonzero(found.is_good & ~table.is_crowd)
    borders = np.tile(found.sizes[columns.image_places[good]][:, ::-1], 2) * [0, 0, 1, 1]
    good = good[(np.abs(found.boxes[good] - borders) > BORDER).all(axis=1)]
    labels = columns.labels[good]
    sides = xyxy_to_xywh(found.boxes[good])[:, 2:].astype(np.float64)
    images = found.sizes[columns.image_places[good]].astype(np.float64)
    sizes = 0.5 * np.log(sides.prod(axis=1) / images.prod(axis=1))
    aspects = np.log(sides[:, 0] / sides[:, 1])

    def described(ratios: Mapping[int, float], what: str, at: int) -> str:
        name, box = columns.names[columns.labels[at]], _shown(table.xywh[at])
        return f"{name}, {box}: {what} is {ratios[at]:.3g} times the median of its class"

    for code, values in (("unusual-size", sizes), ("unusual-aspect", aspects)):
        off, medians = robust_deviations(
            values, labels, least=LEAST_DEVIATION, min_count=MANY_OBJECTS
        )
        far = np.flatnonzero(np.abs(off) > FAR_OFF)
        # the three examples are the strangest
        far = far[np.argsort(-np.abs(off[far]), kind="stable")]
        ratios = dict(zip(good[far].tolist(), np.exp(values - medians)[far].tolist(), strict=True))
        what = "size" if code == "unusual-size" else "width / height"
        findings.add_annotations(code, good[far], partial(described, ratios, what))


def _shown(xywh: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in xywh) + "]"
