import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from detection.config import ApProtocol
from detection.evaluation.coco_ap import CocoScore, score_file
from detection.evaluation.voc_ap import (
    FALSE_POSITIVE,
    NOT_COUNTED,
    TRUE_POSITIVE,
    ClassBoxes,
    area_ap,
    eleven_point_ap,
    match_ilsvrc,
    match_voc,
)
from engine.errors import UserError
from tests.reference import voc_ap as reference

ALL: tuple[ApProtocol, ...] = ("voc07", "voc12", "ilsvrc")
VALUES = {"right": TRUE_POSITIVE, "neither": NOT_COUNTED, "wrong": FALSE_POSITIVE}
Rows = Sequence[tuple[int, Sequence[float]]]


def boxes(rows: Rows) -> ClassBoxes:
    return ClassBoxes(
        np.array([box for _, box in rows], dtype=float).reshape(-1, 4),
        np.array([image for image, _ in rows], dtype=np.int64),
    )


def random_case(seed: int) -> tuple[list[reference.Detection], list[reference.Object]]:
    """Crowded images of small and large objects on whole pixels, with ties of score and IoU."""
    rng = np.random.default_rng(seed)
    objects: list[reference.Object] = []
    detections: list[reference.Detection] = []
    for image in rng.permutation(6).tolist():
        for _ in range(rng.integers(0, 8)):
            near = rng.integers(0, 40, size=2)
            box = (*near.tolist(), *(near + rng.integers(4, 30, size=2)).tolist())
            objects.append((image, box, bool(rng.random() < 0.25)))
        own = [box for where, box, _ in objects if where == image]
        for found in [*own, *own, (1, 1, 9, 9)]:
            shaken = (np.array(found) + rng.integers(-3, 4, size=4)).tolist()
            detections.append((image, float(rng.integers(1, 9)) / 8, shaken))
    return detections, objects


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_obvious_reference(seed: int) -> None:
    detections, objects = random_case(seed)
    ordered = sorted(detections, key=lambda each: -each[1])
    found = boxes([(image, box) for image, _, box in ordered])
    truth = boxes([(image, box) for image, box, _ in objects])
    is_difficult = np.array([difficult for *_, difficult in objects], dtype=bool)
    num_objects = int((~is_difficult).sum())
    for match, expected in (
        (match_voc, reference.voc_outcomes(detections, objects)),
        (match_ilsvrc, reference.ilsvrc_outcomes(detections, objects)),
    ):
        outcome = match(found, truth, is_difficult)
        assert outcome.tolist() == [VALUES[each] for each in expected]
        assert {TRUE_POSITIVE, NOT_COUNTED, FALSE_POSITIVE} == set(outcome.tolist())
        eleven = reference.voc07_ap(expected, num_objects)
        assert eleven_point_ap(outcome, num_objects) == pytest.approx(eleven)
        area = reference.voc12_ap(expected, num_objects)
        assert area_ap(outcome, num_objects) == pytest.approx(area)


A, B, FAR = (0, 0, 20, 20), (0, 4, 20, 24), (50, 50, 60, 60)
NEAR_A, HALF_A = (0, 1, 20, 21), (0, 0, 20, 10)
MATCHES: dict[str, tuple[Rows, Rows, list[bool], list[int], list[int]]] = {
    "no detection": ([], [(0, A)], [False], [], []),
    "no object": ([(0, A)], [], [], [FALSE_POSITIVE], [FALSE_POSITIVE]),
    "another image": ([(1, A)], [(0, A)], [False], [FALSE_POSITIVE], [FALSE_POSITIVE]),
    "half of it is enough": ([(0, HALF_A)], [(0, A)], [False], [TRUE_POSITIVE], [TRUE_POSITIVE]),
    "less than half": ([(0, (0, 0, 20, 9))], [(0, A)], [False], [FALSE_POSITIVE], [TRUE_POSITIVE]),
    "twice": (
        [(0, A), (0, A)],
        [(0, A)],
        [False],
        [TRUE_POSITIVE, FALSE_POSITIVE],
        [TRUE_POSITIVE, FALSE_POSITIVE],
    ),
    "the second goes to a neighbour": (
        [(0, A), (0, NEAR_A)],
        [(0, A), (0, B)],
        [False, False],
        [TRUE_POSITIVE, FALSE_POSITIVE],
        [TRUE_POSITIVE, TRUE_POSITIVE],
    ),
    "difficult, many times": (
        [(0, A), (0, NEAR_A), (0, FAR)],
        [(0, A)],
        [True],
        [NOT_COUNTED, NOT_COUNTED, FALSE_POSITIVE],
        [NOT_COUNTED, NOT_COUNTED, FALSE_POSITIVE],
    ),
    "difficult beside a plain one": (
        [(0, A), (0, B)],
        [(0, A), (0, B)],
        [True, False],
        [NOT_COUNTED, TRUE_POSITIVE],
        [NOT_COUNTED, TRUE_POSITIVE],
    ),
    "equal overlaps go to the first": (
        [(0, A), (0, A)],
        [(0, A), (0, A)],
        [False, False],
        [TRUE_POSITIVE, FALSE_POSITIVE],
        [TRUE_POSITIVE, TRUE_POSITIVE],
    ),
    # 10 x 10: from 0.25 on for ILSVRC
    "small": (
        [(0, (50, 50, 60, 53)), (0, (50, 50, 60, 52))],
        [(0, FAR)],
        [False],
        [FALSE_POSITIVE, FALSE_POSITIVE],
        [TRUE_POSITIVE, FALSE_POSITIVE],
    ),
}


@pytest.mark.parametrize(
    ("found", "objects", "difficult", "voc", "ilsvrc"), MATCHES.values(), ids=MATCHES
)
def test_by_hand(
    found: Rows, objects: Rows, difficult: list[bool], voc: list[int], ilsvrc: list[int]
) -> None:
    arguments = boxes(found), boxes(objects), np.array(difficult, dtype=bool)
    assert match_voc(*arguments).tolist() == voc
    assert match_ilsvrc(*arguments).tolist() == ilsvrc


@pytest.mark.parametrize(
    ("outcome", "num_objects", "eleven", "area"),
    [
        ([], 3, 0, 0),
        ([TRUE_POSITIVE], 1, 1, 1),
        ([FALSE_POSITIVE, TRUE_POSITIVE], 1, 1 / 2, 1 / 2),
        # found: 1 of 2 at precision 1, then 2 of 2 at 2/3
        ([TRUE_POSITIVE, FALSE_POSITIVE, TRUE_POSITIVE], 2, (6 + 5 * 2 / 3) / 11, (1 + 2 / 3) / 2),
        ([NOT_COUNTED, TRUE_POSITIVE, NOT_COUNTED], 2, 6 / 11, 1 / 2),
        # a recall of exactly 0.3 reaches the fourth of the eleven points
        ([TRUE_POSITIVE, TRUE_POSITIVE, TRUE_POSITIVE], 10, 4 / 11, 3 / 10),
    ],
    ids=["nothing", "all", "late", "half", "neither", "three of ten"],
)
def test_precision_by_hand(
    outcome: list[int], num_objects: int, eleven: float, area: float
) -> None:
    assert eleven_point_ap(np.array(outcome, dtype=np.int8), num_objects) == pytest.approx(eleven)
    assert area_ap(np.array(outcome, dtype=np.int8), num_objects) == pytest.approx(area)


def test_without_objects_there_is_no_number() -> None:
    assert math.isnan(eleven_point_ap(np.array([FALSE_POSITIVE]), 0))
    assert math.isnan(area_ap(np.array([FALSE_POSITIVE]), 0))


def document() -> dict[str, Any]:
    """Two cats, one of them difficult, in one image; a dog in another; no cow."""
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 100} for i in (3, 4, 5)
        ],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 7, "bbox": [0, 0, 20, 20]},
            {"id": 2, "image_id": 3, "category_id": 7, "bbox": [50, 50, 20, 20], "difficult": 1},
            {"id": 3, "image_id": 4, "category_id": 9, "bbox": [10, 10, 10, 30]},
        ],
        "categories": [
            {"id": 7, "name": "cat"},
            {"id": 8, "name": "cow"},
            {"id": 9, "name": "dog"},
        ],
    }


RESULTS = [
    {"image_id": 3, "category_id": 7, "bbox": [50, 50, 20, 20], "score": 0.9},
    {"image_id": 4, "category_id": 7, "bbox": [0, 0, 20, 20], "score": 0.8},
    {"image_id": 3, "category_id": 7, "bbox": [1, 0, 20, 20], "score": 0.7},
    {"image_id": 4, "category_id": 9, "bbox": [10, 10, 10, 30], "score": 0.6},
    {"image_id": 5, "category_id": 8, "bbox": [0, 0, 9, 9], "score": 0.5},
]


def score(
    tmp_path: Path,
    truth: dict[str, Any] | None = None,
    *,
    protocols: Sequence[ApProtocol] = (),
    image_id: int | None = None,
) -> CocoScore:
    """Score all images, or one of them."""
    results = [each for each in RESULTS if image_id in (None, each["image_id"])]
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "truth.json").write_text(json.dumps(truth or document()))
    return score_file(
        tmp_path / "results.json",
        tmp_path / "truth.json",
        named_images=image_id is not None,
        protocols=protocols,
    ).scores[0]


def test_metrics_stand_beside_cocos(tmp_path: Path) -> None:
    plain, scored = score(tmp_path), score(tmp_path, protocols=ALL)
    for protocol in ALL:
        assert scored.metrics[f"{protocol}_ap/cat"] == 0.5
        assert scored.metrics[f"{protocol}_ap/dog"] == 1
        assert math.isnan(scored.metrics[f"{protocol}_ap/cow"])
        assert scored.metrics[f"{protocol}_map"] == 0.75
    added = {key for key in scored.metrics if "voc" in key or "ilsvrc" in key}
    assert len(added) == 3 * 4
    rest = {key: value for key, value in scored.metrics.items() if key not in added}
    np.testing.assert_equal(rest, plain.metrics)


def test_images_that_are_not_scored_do_not_count(tmp_path: Path) -> None:
    metrics = score(tmp_path, protocols=["voc12"], image_id=3).metrics
    assert metrics["voc12_ap/cat"] == metrics["voc12_map"] == 1
    assert math.isnan(metrics["voc12_ap/dog"])


def test_crowds_are_as_difficult(tmp_path: Path) -> None:
    content = document()
    content["annotations"][1].update(difficult=0, iscrowd=1)
    metrics = score(tmp_path, content, protocols=["voc12"]).metrics
    assert metrics["voc12_ap/cat"] == 0.5


def test_table_and_note_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Console(width=100).print(score(tmp_path, protocols=["voc07", "ilsvrc"]).table())
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if "voc07_map" in line)
    assert "75.0" in row
    assert "ilsvrc_map" in row
    assert "voc12" not in shown
    assert "1 difficult objects count like any other in COCO's numbers" in shown
    Console(width=100).print(score(tmp_path, image_id=4).table())
    shown = capsys.readouterr().out
    assert "difficult" not in shown
    assert "other rules" not in shown


def test_masks_have_no_such_rules(tmp_path: Path) -> None:
    mask = {"size": [100, 100], "counts": "PPo42"}
    result = {"image_id": 3, "category_id": 7, "segmentation": mask, "score": 1}
    (tmp_path / "results.json").write_text(json.dumps([result]))
    (tmp_path / "truth.json").write_text(json.dumps(document()))
    with pytest.raises(UserError, match=r"results.json: expected boxes with evaluation.protocols"):
        score_file(tmp_path / "results.json", tmp_path / "truth.json", protocols=["voc07"])
