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
from detection.evaluation.coco_files import Found, IoUType, Truth
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
    found: Found, truth: Truth, *, image_ids: set[int], iou_type: IoUType, engine: Engine
) -> Accumulated:
    """Match detections with the objects of some pictures, and take precision over recall.

    Args:
        found: detections in these pictures alone.
        truth: objects, of these pictures and others.
        image_ids: the pictures.
        iou_type: compare boxes or masks.
        engine: who does it.
    """
    if engine == "hotcoco":
        return _by_hotcoco(found, truth, image_ids=image_ids, iou_type=iou_type)
    # One category at a time: they do not touch each other in COCO's rules, so the numbers are those
    # of a single call, and memory holds one category's matches instead of all.
    with _silence():
        parts = [
            _match_category(truth, category_id, found, image_ids=image_ids, iou_type=iou_type)
            for category_id in truth.names
        ]
    return Accumulated(
        np.concatenate([part.precision for part in parts], axis=2),
        np.concatenate([part.recall for part in parts], axis=1),
    )


def summarize(accumulated: Accumulated, iou_type: IoUType) -> np.ndarray:
    """Return pycocotools' twelve numbers, -1 where the truth has no such object."""
    judge = COCOeval(iouType=iou_type)
    judge.eval = accumulated._asdict()
    with _silence():
        judge.summarize()
    numbers: np.ndarray = judge.stats
    return numbers


def _silence() -> contextlib.redirect_stdout[io.StringIO]:
    return contextlib.redirect_stdout(io.StringIO())  # pycocotools prints as it goes


def _match_category(
    truth: Truth, category_id: int, found: Found, *, image_ids: set[int], iou_type: IoUType
) -> Accumulated:
    # the pictures without this category change nothing; pycocotools writes into what it is given
    objects = [dict(each) for each in truth.objects[category_id] if each["image_id"] in image_ids]
    detections = found.of_category(category_id)
    images = [truth.images[i] for i in {each["image_id"] for each in (*objects, *detections)}]
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
    found: Found, truth: Truth, *, image_ids: set[int], iou_type: IoUType
) -> Accumulated:
    import hotcoco  # optional

    # Ids are handed over as places in ascending order: results are an array of floating-point
    # numbers, which do not hold every id.
    images, categories = np.sort(list(image_ids)), np.array(list(truth.names))
    objects = [
        each for row in truth.objects.values() for each in row if each["image_id"] in image_ids
    ]
    columns = {
        key: np.array([each[key] for each in objects])
        for key in ("id", "image_id", "category_id", "area", "iscrowd")
    }
    masks = iou_type == "segm"
    size = ("height", "width") if masks else ()  # boxes need none, and files may have none
    coco = hotcoco.COCO.from_arrays(
        [
            {"id": row} | {key: truth.images[image_id].get(key) or 0 for key in size}
            for row, image_id in enumerate(images.tolist())
        ],
        [{"id": row, "name": name} for row, name in enumerate(truth.names.values())],
        np.searchsorted(images, columns["image_id"]),
        np.searchsorted(categories, columns["category_id"]),
        np.array([each["bbox"] for each in objects], dtype=np.float64).reshape(-1, 4),
        ids=columns["id"],
        area=columns["area"],
        iscrowd=columns["iscrowd"],
        segmentation=[each["segmentation"] for each in objects] if masks else None,
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
