"""Who matches detections with objects by COCO's rules: pycocotools, the judge, or hotcoco.

hotcoco is an optional package that leaves the same numbers, many times sooner. Either returns
what pycocotools' `accumulate` does, and pycocotools summarises it.

K categories, T=10 IoU thresholds, R=101 recall thresholds, A=4 ranges of area, D=3 limits on the
detections of an image.
"""

import contextlib
import io
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.config import EngineChoice
from detection.evaluation.detection_table import DetectionTable, IoUType
from detection.evaluation.ground_truth import GroundTruth
from engine.errors import UserError

Engine = Literal["pycocotools", "hotcoco"]


class Accumulated(NamedTuple):
    """precision (T, R, K, A, D) and recall (T, K, A, D) in [0, 1], -1 where there is no object."""

    precision: np.ndarray
    recall: np.ndarray


def choose_engine(wanted: EngineChoice, *, final: bool) -> Engine:
    """Return the engine of one scoring.

    Args:
        wanted: `evaluation.engine`.
        final: whether the numbers are to be reported. `auto` gives those to pycocotools, and the
            others to hotcoco where it is installed.

    Raises:
        UserError: hotcoco is wanted and not installed.
    """
    if wanted == "pycocotools" or (wanted == "auto" and final):
        return "pycocotools"
    installed = find_spec("hotcoco") is not None
    if wanted == "hotcoco" and not installed:
        raise UserError(
            "evaluation.engine: expected hotcoco to be installed (pip install hotcoco), got none; "
            "evaluation.engine=pycocotools needs nothing more"
        )
    return "hotcoco" if installed else "pycocotools"


def accumulate(
    found: DetectionTable, ground_truth: GroundTruth, *, iou_type: IoUType, engine: Engine
) -> Accumulated:
    """Match detections with the objects of some images, and take precision over recall.

    Args:
        found: detections, of the scored images alone.
        ground_truth: of the scored images, see `GroundTruth.within`.
        iou_type: compare boxes or masks.
        engine: who does it.
    """
    if engine == "hotcoco":
        return _by_hotcoco(found, ground_truth, iou_type=iou_type)
    # One category at a time: they do not touch each other in COCO's rules, so the numbers are those
    # of a single call, and memory holds one category's matches instead of all.
    with _silence():
        parts = [
            _match_category(ground_truth, category_id, found, iou_type=iou_type)
            for category_id in ground_truth.names
        ]
    return Accumulated(
        np.concatenate([part.precision for part in parts], axis=2),
        np.concatenate([part.recall for part in parts], axis=1),
    )


def summarize(accumulated: Accumulated, iou_type: IoUType) -> np.ndarray:
    """Return pycocotools' twelve numbers, -1 where there is no such object."""
    judge = COCOeval(iouType=iou_type)
    judge.eval = accumulated._asdict()
    with _silence():
        judge.summarize()
    numbers: np.ndarray = judge.stats
    return numbers


def _silence() -> contextlib.redirect_stdout[io.StringIO]:
    return contextlib.redirect_stdout(io.StringIO())  # pycocotools prints as it goes


def _match_category(
    ground_truth: GroundTruth, category_id: int, found: DetectionTable, *, iou_type: IoUType
) -> Accumulated:
    objects = ground_truth.of_category(category_id, with_masks=iou_type == "segm")
    detections = found.of_category(category_id)
    # the images without this category change nothing
    image_ids = {each["image_id"] for each in (*objects, *detections)}
    images = [
        {"id": image_id, "height": height, "width": width}
        for image_id in image_ids
        for height, width in [ground_truth.size_of(image_id)]
    ]
    shared = {"images": images, "categories": [{"id": category_id}]}
    judge = COCOeval(_indexed(shared, objects), _indexed(shared, detections), iou_type)
    judge.evaluate()
    judge.accumulate()
    return Accumulated(judge.eval["precision"], judge.eval["recall"])


def _indexed(shared: Mapping[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {**shared, "annotations": annotations}
    coco.createIndex()
    return coco


def _by_hotcoco(
    found: DetectionTable, ground_truth: GroundTruth, *, iou_type: IoUType
) -> Accumulated:
    import hotcoco  # optional

    # Ids are handed over as places in ascending order: results are an array of floating-point
    # numbers, which do not hold every id.
    images, categories = ground_truth.image_ids, np.array(list(ground_truth.names))
    table, rows = ground_truth.table, ground_truth.rows
    masks = iou_type == "segm"
    coco = hotcoco.COCO.from_arrays(
        [
            {"id": place, "height": height, "width": width}
            for place, image_id in enumerate(images.tolist())
            for height, width in [ground_truth.size_of(image_id)]
        ],
        [{"id": place, "name": name} for place, name in enumerate(ground_truth.names.values())],
        np.searchsorted(images, table.image_ids[rows]),
        np.searchsorted(categories, table.category_ids[rows]),
        table.xywh[rows],
        ids=rows + 1,
        area=table.areas[rows],
        iscrowd=table.is_crowd[rows].astype(np.int64),
        segmentation=[ground_truth.segmentation_of(row) for row in rows.tolist()]
        if masks
        else None,
    )
    results = np.column_stack(
        [
            np.searchsorted(images, found.image_ids),
            found.boxes,
            found.scores,
            np.searchsorted(categories, found.category_ids),
        ]
    )
    detections = coco.load_res(results, segmentation=[*found.masks] if masks else None)
    if found.masks:  # whose area counts, not that of the boxes beside them
        ids = np.arange(1, len(found.masks) + 1)  # load_res counts from 1
        detections.update_anns(ids=ids, area=found.areas)
    judge = hotcoco.COCOeval(coco, detections, iou_type)
    judge.evaluate()
    judge.accumulate()
    assert judge.eval is not None
    return Accumulated(judge.eval["precision"], judge.eval["recall"])
