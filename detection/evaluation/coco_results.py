"""Reader of COCO results files: matches detections with annotated images and classes.

M detections. A file gets the score of pycocotools (`COCO.loadRes`, then `COCOeval`) in all forms:
boxes with empty `segmentation`, masks with empty `bbox`, polygons, uncompressed run lengths.
"""

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_codec

from detection.data.coco_json import box_of, is_number
from detection.data.json_files import json_kind, parse_json
from detection.data.segmentations import FARTHEST
from detection.evaluation.detection_table import (
    DetectionTable,
    IoUType,
    areas_of,
    check_numbers,
)
from detection.evaluation.ground_truth import GroundTruth, known_id
from detection.ops.rle import code_of
from engine.errors import UserError

Result = dict[str, Any]


def read_results(path: Path | str) -> list[Result]:
    """Read a COCO results file, and check only that it is a list of objects.

    Raises:
        UserError: the file cannot be read, or is not a JSON list of objects.
    """
    results = parse_json(Path(path))
    if not isinstance(results, list):
        raise UserError(f"{path}: expected a list of detections, got {json_kind(results)}")
    for index, result in enumerate(results):
        if not isinstance(result, dict):
            got = json_kind(result)
            raise UserError(f"{path}: detection {index}: expected an object, got {got}")
    return results


def iou_types_of(results: Sequence[Result]) -> tuple[IoUType, ...]:
    """Return whether boxes, masks or both can be scored: those that at least one result has."""
    boxes, masks = (any(_has(each, key) for each in results) for key in ("bbox", "segmentation"))
    if not masks:
        return ("bbox",)
    return ("bbox", "segm") if boxes else ("segm",)


def _has(result: Result, key: str) -> bool:
    """Return whether a result has a value; SAHI and others write `[]` or null for a missing one."""
    value = result.get(key)
    return value is not None and value != [] and value != {}


@dataclass(frozen=True)
class Matches:
    """The annotated image and class of each result.

    image_ids, category_ids: (M,) int64 ids of the annotations. notes: lines on how they were found,
    if not by the ids of the results alone.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    notes: tuple[str, ...]


def match_results(results: Sequence[Result], ground_truth: GroundTruth, *, source: str) -> Matches:
    """Find the annotated image and class of each result: by its ids, or by its names.

    tools/predict.py assigns its own image ids, uses the category ids of the detector's training
    data, and adds `file_name` and `category_name`. If every result has a name and at least one id
    contradicts its name, then names decide for all results.

    Args:
        results: the results, from `read_results`.
        ground_truth: ground truth of the annotations.
        source: name of the results in messages.

    Raises:
        UserError: an id or a name is malformed, not annotated or ambiguous; or an id contradicts
            its name and not every result has a name.
    """
    image_ids, image_notes = _match_images(results, ground_truth, source)
    category_ids, category_notes = _match_categories(results, ground_truth, source)
    return Matches(
        np.array(image_ids, np.int64),
        np.array(category_ids, np.int64),
        (*image_notes, *category_notes),
    )


def _match_images(
    results: Sequence[Result], ground_truth: GroundTruth, source: str
) -> tuple[list[int], list[str]]:
    names = [
        _name_of(each, "file_name", f"{source}: detection {i}") for i, each in enumerate(results)
    ]
    # for each result, the ids of all images that its name fits; None without a name
    finder = _ImageFinder(ground_truth)
    found = [None if name is None else finder.find(name) for name in names]
    contradicted = [
        index
        for index, (result, named) in enumerate(zip(results, found, strict=True))
        if named is not None and not _id_fits(result.get("image_id"), named, ground_truth)
    ]
    path = ground_truth.path
    # Names decide for all, or a contradiction that names cannot decide is an error, or ids decide.
    if contradicted and None not in names:
        return [
            _single_id(*each, path, source) for each in enumerate(zip(names, found, strict=True))
        ], [
            f"images are matched by file_name: {len(contradicted)} of {len(results)} image_ids "
            "differ from the annotations"
        ]
    for index in contradicted[:1]:  # report the first one
        where = f"{source}: detection {index}"
        image_id = known_id(results[index], "image_id", ground_truth.places, path, where)
        expected = ground_truth.file_name_of(image_id)
        got = f"got {names[index]!r:.200} (names decide if every detection has one)"
        raise UserError(f"{where}: file_name: expected {expected!r}, of image {image_id}, {got}")
    return [
        known_id(result, "image_id", ground_truth.places, path, f"{source}: detection {index}")
        for index, result in enumerate(results)
    ], []


def _id_fits(image_id: Any, named: Sequence[int], ground_truth: GroundTruth) -> bool:
    """Return whether an id belongs to an image with that name, or to one without a name."""
    if type(image_id) is not int:
        return False
    return image_id in named or (
        image_id in ground_truth.places and not ground_truth.file_name_of(image_id)
    )


def _single_id(index: int, named: tuple[Any, Any], path: Path, source: str) -> int:
    """Return the only image id of `named` (a name, the ids that it fits), or raise UserError."""
    name, image_ids = named
    if len(image_ids) == 1:
        return int(image_ids[0])
    where = f"{source}: detection {index}: file_name"
    if image_ids:
        got = f"got {name!r:.200}, which fits the images {', '.join(map(str, image_ids[:5]))}"
        raise UserError(f"{where}: expected the name of one image of {path}, {got}")
    raise UserError(f"{where}: expected the name of an image of {path}, got {name!r:.200}")


class _ImageFinder:
    """Lookup of annotated images by file name, with or without parent folders."""

    def __init__(self, ground_truth: GroundTruth) -> None:
        # ids by all parts of the path, and by the last part; names may be repeated
        self._by_path: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self._by_name: dict[str, list[int]] = defaultdict(list)
        self._known: dict[str, tuple[int, ...]] = {}
        for image_id in ground_truth.places:
            if parts := _parts_of(ground_truth.file_name_of(image_id)):
                self._by_path[parts].append(image_id)
                self._by_name[parts[-1]].append(image_id)

    def find(self, name: str) -> tuple[int, ...]:
        """Return the ids of the images that fit a name best: none, one or several.

        A name fits an image if it ends with the image's whole annotated path. If no image fits in
        this way, those with the same last part of the path fit.
        """
        if name not in self._known:  # an image has many detections, so keep its result
            parts = _parts_of(name)
            # the longest tail first: a/b/c.jpg, b/c.jpg, c.jpg
            tails = (parts[start:] for start in range(len(parts)))
            fitting = next((self._by_path[tail] for tail in tails if tail in self._by_path), None)
            if fitting is None:
                fitting = self._by_name.get(parts[-1], []) if parts else []
            self._known[name] = tuple(fitting)
        return self._known[name]


def _parts_of(name: str) -> tuple[str, ...]:
    return tuple(part for part in PurePosixPath(name).parts if part != "/")


def _match_categories(
    results: Sequence[Result], ground_truth: GroundTruth, source: str
) -> tuple[list[int], list[str]]:
    ids = {name: category_id for category_id, name in ground_truth.names.items()}
    names = [
        _name_of(each, "category_name", f"{source}: detection {i}")
        for i, each in enumerate(results)
    ]
    named = [None if name is None else ids.get(name) for name in names]
    contradicted = [
        index
        for index, (result, category_id) in enumerate(zip(results, named, strict=True))
        if category_id is not None and not _is_id(result.get("category_id"), category_id)
    ]
    unknown = Counter(  # names that are not annotated, None for results without a name
        name for name, category_id in zip(names, named, strict=True) if category_id is None
    )
    if not contradicted:
        known = [
            known_id(
                each,
                "category_id",
                ground_truth.names,
                ground_truth.path,
                f"{source}: detection {i}",
            )
            for i, each in enumerate(results)
        ]
        del unknown[None]  # results without a name need no note; no error if there are none
        first = next(iter(unknown), None)
        return known, [] if first is None else [
            f"{unknown.total()} detections are matched by category_id, because the annotations "
            f"lack their category_name, such as {first!r:.60}"
        ]
    if unknown:  # names may decide only if all are known
        index, other = contradicted[0], named.index(None)
        raise UserError(
            f"{source}: detection {index}: category_id: expected {named[index]}, that of "
            f"{names[index]!r:.60} in {ground_truth.path}, got "
            f"{results[index].get('category_id')!r:.60}; names decide only if all are known, "
            f"and that of detection {other} is {names[other]!r:.60}"
        )
    return [each for each in named if each is not None], [
        f"classes are matched by category_name: {len(contradicted)} of {len(results)} category_ids "
        "differ from the annotations"
    ]


def _is_id(value: Any, expected: int) -> bool:
    return type(value) is int and value == expected  # neither True nor 1.0


def _name_of(result: Result, key: str, where: str) -> str | None:
    value = result.get(key)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: {key}: expected a name, got {value!r:.60}")
    return value


def table_of_results(
    results: Sequence[Result],
    matches: Matches,
    ground_truth: GroundTruth,
    *,
    iou_type: IoUType,
    source: str,
) -> tuple[DetectionTable, list[str]]:
    """Check the boxes or masks of results and return them as a table.

    As in pycocotools, a result without a mask gets the mask of its box, and one without a box gets
    the box around its mask.

    Args:
        results: each with `score`, and `bbox` or `segmentation` (RLE or polygons).
        matches: result of `match_results`.
        ground_truth: ground truth of the annotations; with image sizes if there are masks.
        iou_type: whether boxes or masks are scored.
        source: name of the results in messages.

    Returns:
        The detections, and lines on what was filled in or dropped.

    Raises:
        UserError: a result is malformed.
    """
    scores = array("d")
    for index, result in enumerate(results):
        score: Any = result.get("score")
        if not is_number(score):
            where = f"{source}: detection {index}"
            raise UserError(f"{where}: score: expected a number, got {score!r:.60}")
        scores.append(score)
    sizes = [ground_truth.size_of(image_id) for image_id in matches.image_ids.tolist()]
    read = _boxes_of if iou_type == "bbox" else _masks_of
    boxes, masks, areas, notes = read(results, sizes, source)
    found = DetectionTable(
        image_ids=matches.image_ids,
        category_ids=matches.category_ids,
        scores=np.frombuffer(scores, np.float64),
        boxes=boxes,
        masks=masks,
        areas=areas,
    )
    check_numbers(found, source)
    return found, notes


class _Shapes(NamedTuple):
    boxes: np.ndarray
    masks: list[dict[str, Any]]
    areas: np.ndarray
    notes: list[str]


def _boxes_of(results: Sequence[Result], sizes: Sequence[list[Any]], source: str) -> _Shapes:
    """Return the boxes of results, or the boxes around their masks; sizes: [height, width] each."""
    values, from_masks = array("d"), 0  # x y width height x y ...
    for index, (result, size) in enumerate(zip(results, sizes, strict=True)):
        where = f"{source}: detection {index}"
        if _has(result, "bbox") or not _has(result, "segmentation"):  # neither: box_of raises
            values.extend(box_of(result, where))
            continue
        mask = _mask_of(result, size, where)
        if mask.code is None:
            raise UserError(f"{where}: expected a bbox or a mask with an area, got neither")
        values.extend(mask_codec.toBbox({"size": size, "counts": mask.code}).tolist())
        from_masks += 1
    boxes = np.frombuffer(values, np.float64).reshape(-1, 4)
    note = f"{from_masks} detections have no bbox: the box around the mask is scored"
    return _Shapes(boxes, [], areas_of(boxes, []), [note] if from_masks else [])


def _masks_of(results: Sequence[Result], sizes: Sequence[list[Any]], source: str) -> _Shapes:
    """Return the masks of results, or their boxes as masks; sizes: [height, width] each."""
    masks: list[dict[str, Any]] = []
    box_areas: dict[int, float] = {}
    from_boxes = dropped = 0
    for index, (result, size) in enumerate(zip(results, sizes, strict=True)):
        where = f"{source}: detection {index}"
        mask = _mask_of(result, size, where)
        code, has_box = mask.code, _has(result, "bbox")
        dropped += mask.num_dropped
        if code is None and not has_box:
            got = f"{result.get('segmentation')!r:.60}" if "segmentation" in result else "nothing"
            raise UserError(f"{where}: segmentation: expected an RLE or polygons, got {got}")
        # loadRes takes a box's area (small, medium or large?) in place of the mask's, and so does
        # this code for polygons. RLEs have their own area, as in detectron2, which drops the boxes.
        if has_box and not mask.is_run_length:
            x, y, width, height = _finite_box(result, where)
            box_areas[index] = width * height
            if code is None:
                corners = [x, y, x, y + height, x + width, y + height, x + width, y]
                code = _rasterise([corners], size, where)
                from_boxes += 1
        assert code is not None
        masks.append({"size": size, "counts": code})
    areas = areas_of(np.zeros((0, 4)), masks)
    areas[list(box_areas)] = list(box_areas.values())
    counts = {
        "detections have no mask: their box is used as the mask": from_boxes,
        "parts of masks with fewer than three points were dropped": dropped,
    }
    notes = [f"{count} {what}" for what, count in counts.items() if count]
    return _Shapes(np.zeros((len(masks), 4)), masks, areas, notes)


class _Mask(NamedTuple):
    """One mask. code: COCO's compressed string, None if a result has no mask."""

    code: bytes | None
    is_run_length: bool
    num_dropped: int


def _mask_of(result: Result, size: Sequence[int], where: str) -> _Mask:
    """Read `segmentation`: nothing, an RLE, or polygons; degenerate polygons are dropped."""
    value: Any = result.get("segmentation")
    if not _has(result, "segmentation"):
        return _Mask(None, is_run_length=False, num_dropped=0)
    if not isinstance(value, list):
        try:
            return _Mask(code_of(value, size), is_run_length=True, num_dropped=0)
        except ValueError as error:
            raise UserError(f"{where}: segmentation: {error}") from error
    for part in value:
        if not (isinstance(part, list) and len(part) % 2 == 0 and all(map(is_number, part))):
            raise UserError(
                f"{where}: segmentation: expected polygons [[x1, y1, x2, y2, ...], ...], got a "
                f"part {part!r:.60}"
            )
    parts = [part for part in value if len(part) >= 6]  # three points or more
    code = _rasterise(parts, size, where) if parts else None
    return _Mask(code, is_run_length=False, num_dropped=len(value) - len(parts))


def _rasterise(polygons: list[list[float]], size: Sequence[int], where: str) -> bytes:
    """Return the compressed RLE of the union of polygons, rasterised by pycocotools."""
    if not all(math.hypot(*part) < FARTHEST for part in polygons):  # false for NaN too
        raise UserError(f"{where}: expected coordinates near the image, got {polygons!r:.60}")
    code: bytes = mask_codec.merge(mask_codec.frPyObjects(polygons, *size))["counts"]
    return code


def _finite_box(result: Result, where: str) -> list[float]:
    box = box_of(result, where)
    if not (all(map(math.isfinite, box)) and min(box[2:]) >= 0):
        expected = "four finite numbers, no negative width or height"
        raise UserError(f"{where}: bbox: expected {expected}, got {box}")
    return box
