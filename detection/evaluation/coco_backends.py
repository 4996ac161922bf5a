"""Matching of detections and objects by COCO's rules, with pycocotools or hotcoco.

pycocotools is the reference. hotcoco is an optional package that gives the same numbers many times
faster. Both return the arrays of pycocotools' `accumulate`, which pycocotools then summarises.

K categories, T=10 IoU thresholds, R=101 recall thresholds, A=4 ranges of area, D=3 limits on the
number of detections per image.
"""

import contextlib
import io
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.config import BackendChoice
from detection.evaluation.detection_table import DetectionTable, IoUType
from detection.evaluation.ground_truth import GroundTruth
from engine.errors import UserError

Backend = Literal["pycocotools", "hotcoco"]


class Accumulated(NamedTuple):
    """precision (T, R, K, A, D) and recall (T, K, A, D) in [0, 1], -1 if there are no objects."""

    precision: np.ndarray
    recall: np.ndarray


def choose_backend(wanted: BackendChoice, *, final: bool) -> Backend:
    """Return the backend to use.

    Args:
        wanted: `evaluation.backend`.
        final: whether these are final numbers. `auto` uses pycocotools for them, and for others
            hotcoco if it is installed.

    Raises:
        UserError: hotcoco is wanted and not installed.
    """
    if wanted == "pycocotools" or (wanted == "auto" and final):
        return "pycocotools"
    installed = find_spec("hotcoco") is not None
    if wanted == "hotcoco" and not installed:
        raise UserError(
            "evaluation.backend: expected hotcoco to be installed (pip install hotcoco), got none; "
            "evaluation.backend=pycocotools is always available"
        )
    return "hotcoco" if installed else "pycocotools"


def accumulate(
    found: DetectionTable, ground_truth: GroundTruth, *, iou_type: IoUType, backend: Backend
) -> Accumulated:
    """Match detections with objects, and return precision over recall.

    Args:
        found: detections in the scored images only.
        ground_truth: ground truth of the scored images, see `GroundTruth.within`.
        iou_type: whether to compare boxes or masks.
        backend: the package to use.
    """
    if backend == "hotcoco":
        return _by_hotcoco(found, ground_truth, iou_type=iou_type)
    # One category at a time: COCO's rules never compare categories, so the numbers are the same as
    # from a single call, and memory holds the matches of only one category.
    with _silence():
        parts = [
            _match_category(ground_truth, category_id, found, iou_type=iou_type)
            for category_id in ground_truth.names
        ]
    return Accumulated(  # the category axes of the two arrays
        np.concatenate([part.precision for part in parts], axis=2),
        np.concatenate([part.recall for part in parts], axis=1),
    )


def summarize(accumulated: Accumulated, iou_type: IoUType) -> np.ndarray:
    """Return pycocotools' twelve numbers, -1 if there is no such object."""
    # no ground truth is needed: summarize reads only `eval` and the default parameters
    evaluator = COCOeval(iouType=iou_type)
    evaluator.eval = accumulated._asdict()
    with _silence():
        evaluator.summarize()
    numbers: np.ndarray = evaluator.stats
    return numbers


def _silence() -> contextlib.redirect_stdout[io.StringIO]:
    return contextlib.redirect_stdout(io.StringIO())  # pycocotools prints its progress


def _match_category(
    ground_truth: GroundTruth, category_id: int, found: DetectionTable, *, iou_type: IoUType
) -> Accumulated:
    objects = ground_truth.of_category(category_id, with_masks=iou_type == "segm")
    detections = found.of_category(category_id)
    # images with neither objects nor detections of the category do not change its numbers
    image_ids = {each["image_id"] for each in (*objects, *detections)}
    images = [
        {"id": image_id, "height": height, "width": width}
        for image_id in image_ids
        for height, width in [ground_truth.size_of(image_id)]
    ]
    shared = {"images": images, "categories": [{"id": category_id}]}
    evaluator = COCOeval(_indexed(shared, objects), _indexed(shared, detections), iou_type)
    evaluator.evaluate()
    evaluator.accumulate()
    return Accumulated(evaluator.eval["precision"], evaluator.eval["recall"])


def _indexed(shared: Mapping[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()  # without a path it reads nothing
    coco.dataset = {**shared, "annotations": annotations}
    coco.createIndex()
    return coco


def _by_hotcoco(
    found: DetectionTable, ground_truth: GroundTruth, *, iou_type: IoUType
) -> Accumulated:
    import hotcoco  # optional

    evaluator = hotcoco.COCOeval(*hotcoco_tables(found, ground_truth, iou_type=iou_type), iou_type)
    evaluator.evaluate()
    evaluator.accumulate()
    assert evaluator.eval is not None
    return Accumulated(evaluator.eval["precision"], evaluator.eval["recall"])


def hotcoco_tables(
    found: DetectionTable, ground_truth: GroundTruth, *, iou_type: IoUType
) -> tuple[Any, Any]:
    """Return ground truth and detections as two `hotcoco.COCO`.

    The ids of images and categories are replaced by their positions in ascending order. With
    `ground_truth.federated`, images and categories have LVIS's keys, too.
    """
    import hotcoco  # optional

    # hotcoco takes results as one float64 array, which cannot represent all int64 ids. So image and
    # category ids are replaced by their positions in the ascending lists, found by searchsorted.
    images, categories = ground_truth.image_ids, np.array(list(ground_truth.names))
    table, rows = ground_truth.table, ground_truth.rows
    masks = iou_type == "segm"
    coco = hotcoco.COCO.from_arrays(
        *_hotcoco_entries(ground_truth),
        np.searchsorted(images, table.image_ids[rows]),
        np.searchsorted(categories, table.category_ids[rows]),
        table.xywh[rows],
        ids=rows + 1,  # from 1, see `GroundTruth.of_category`
        area=table.areas[rows],
        iscrowd=table.is_crowd[rows].astype(np.int64),
        segmentation=[ground_truth.segmentation_of(row) for row in rows.tolist()]
        if masks
        else None,
    )
    # columns of COCO's array form: image, x, y, width, height, score, category
    results = np.column_stack(
        [
            np.searchsorted(images, found.image_ids),
            found.boxes,
            found.scores,
            np.searchsorted(categories, found.category_ids),
        ]
    )
    detections = coco.load_res(results, segmentation=[*found.masks] if masks else None)
    if found.masks:  # areas of masks; load_res takes those of the boxes
        ids = np.arange(1, len(found.masks) + 1)  # load_res numbers results from 1
        detections.update_anns(ids=ids, area=found.areas)
    return coco, detections


def _hotcoco_entries(
    ground_truth: GroundTruth,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the entries of images and categories, numbered from 0."""
    images: list[dict[str, Any]] = [
        {"id": place, "height": height, "width": width}
        for place, image_id in enumerate(ground_truth.image_ids.tolist())
        for height, width in [ground_truth.size_of(image_id)]
    ]
    categories: list[dict[str, Any]] = [
        {"id": place, "name": name} for place, name in enumerate(ground_truth.names.values())
    ]
    if (federated := ground_truth.federated) is not None:
        place_of = {category_id: place for place, category_id in enumerate(ground_truth.names)}
        for entry, image_id in zip(images, ground_truth.image_ids.tolist(), strict=True):
            for key, lists in (
                ("neg_category_ids", federated.negative),
                ("not_exhaustive_category_ids", federated.not_exhaustive),
            ):
                entry[key] = [place_of[category_id] for category_id in lists[image_id]]
        for entry, category_id in zip(categories, ground_truth.names, strict=True):
            entry["frequency"] = federated.frequencies[category_id]
    return images, categories
