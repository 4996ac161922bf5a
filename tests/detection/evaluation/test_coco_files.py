import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_codec

from detection.config import BackendChoice
from detection.evaluation.coco_ap import score_file
from engine.errors import UserError
from tests.detection.evaluation.coco_documents import (
    CATEGORIES,
    MASK,
    MASK_RESULT,
    make_document,
    mask_document,
    write,
)

GOOD = {"image_id": 1, "category_id": 18, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"a": 1}, "expected a list of detections, got an object"),
        ([GOOD, 7], "detection 1: expected an object, got a number"),
        ([{**GOOD, "image_id": 77}], "detection 0: image_id: expected one of .*truth.json, got 77"),
        ([{**GOOD, "image_id": "1"}], "detection 0: image_id: expected an integer, got '1'"),
        ([{**GOOD, "category_id": 2}], "detection 0: category_id: expected one of .*, got 2"),
        ([{**GOOD, "bbox": [1, 2, 3]}], r"detection 0: bbox: expected four .*, got \[1, 2, 3\]"),
        ([{**GOOD, "bbox": [1, 2, 3, math.nan]}], "detection 0: bbox: expected four finite"),
        ([{**GOOD, "bbox": [1, 2, 3, 10**400]}], "detection 0: bbox: expected four numbers"),
        ([{**GOOD, "bbox": [1, 2, 3, True]}], "detection 0: bbox: expected four numbers"),
        ([{**GOOD, "bbox": [1, 2, -3, 4]}], "bbox: expected four finite numbers, no negative"),
        ([{**GOOD, "score": "high"}], "detection 0: score: expected a number, got 'high'"),
        ([{**GOOD, "score": math.inf}], "detection 0: score: expected a number, got inf"),
        ([{**GOOD, "score": 10**400}], "detection 0: score: expected a number, got 1000"),
        ([{**GOOD, "score": True}], "detection 0: score: expected a number, got True"),
        ([{"image_id": 1, "category_id": 18, "score": 1}], "bbox: expected four .* got nothing"),
    ],
    ids=[
        "no list",
        "no object",
        "image",
        "image type",
        "category",
        "box shape",
        "box NaN",
        "box huge",
        "box bool",
        "box size",
        "score",
        "score infinite",
        "score huge",
        "score bool",
        "nothing to score",
    ],
)
def test_bad_results_are_one_line(tmp_path: Path, results: Any, message: str) -> None:
    truth = write(tmp_path / "truth.json", make_document())
    with pytest.raises(UserError, match=message) as caught:
        score_file(write(tmp_path / "results.json", results), truth)
    assert "results.json: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_results_that_are_no_json(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth.json", make_document())
    (tmp_path / "results.json").write_text('[{"image_id": 1,')
    with pytest.raises(UserError, match=r"results.json: not valid JSON: "):
        score_file(tmp_path / "results.json", truth)
    with pytest.raises(UserError, match=r"absent.json: no such file"):
        score_file(tmp_path / "absent.json", truth)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": []}, "annotations: expected at least one to score against, got none"),
        ({"categories": "many"}, "categories: expected a list, got a string"),
        ({"images": [{"id": 1}]}, "image_id: expected one of"),
        ({"categories": [{"id": 1}]}, r"categories\[0\]: name: expected a name, got nothing"),
        ({"categories": [*CATEGORIES, {"id": 38, "name": "cow"}]}, "category ids: .* got 38 more"),
        (
            {"categories": [*CATEGORIES, {"id": 2, "name": "dog"}]},
            "category names: .* got dog more",
        ),
        ({"images": [{"id": i % 8} for i in range(9)]}, "image ids: expected each one once, got 0"),
    ],
    ids=["empty", "shape", "image", "name", "category twice", "name twice", "image twice"],
)
def test_bad_truth_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    truth = write(tmp_path / "truth.json", {**make_document(), **change})
    with pytest.raises(UserError, match=message) as caught:
        score_file(write(tmp_path / "results.json", []), truth)
    assert str(caught.value).startswith(str(truth))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        [5, 5, 30, 5, 30, 40],
        {**MASK, "size": [400, 200]},
        {**MASK, "counts": "PXk4"},
        {**MASK, "counts": [159_999]},
        {**MASK, "counts": 7},
        {"size": [400, 400]},
    ],
    ids=["none", "number", "flat", "size", "too short", "runs", "no counts", "nothing"],
)
def test_bad_masks_in_the_truth_are_one_line(tmp_path: Path, value: Any) -> None:
    document = mask_document()
    document["annotations"][5]["segmentation"] = value
    truth = write(tmp_path / "truth.json", document)
    with pytest.raises(UserError) as caught:
        score_file(write(tmp_path / "results.json", [MASK_RESULT]), truth)
    assert str(caught.value) == (
        f"{truth}: annotations[5]: segmentation: expected polygons or an RLE of its image's size,"
        " got neither (1 of 40 annotations)"
    )


@pytest.mark.parametrize("backend", ["pycocotools", "hotcoco"])
@pytest.mark.parametrize("value", [None, 3, {**MASK, "size": [1, 2]}], ids=["none", "3", "size"])
def test_a_crowd_without_a_mask_covers_nothing(
    tmp_path: Path, value: Any, backend: BackendChoice
) -> None:
    document = mask_document()
    found = [
        {**MASK_RESULT, "image_id": each["image_id"], "segmentation": each["segmentation"]}
        for each in document["annotations"][2::2]
    ]
    results = write(tmp_path / "results.json", found)
    truth = write(tmp_path / "truth.json", document)
    document["annotations"][0]["segmentation"] = value
    score = score_file(results, write(truth, document), backend=backend).scores[0]
    assert "1 crowd regions have no readable mask and are treated as empty" in score.note
    del document["annotations"][0]
    expected = score_file(results, write(truth, document), backend=backend).scores[0]
    np.testing.assert_equal(score.metrics, expected.metrics)
    assert 0.1 < score.metrics["ap"] < 1
    assert "crowd" not in expected.note


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "expected an RLE, got 3"),
        ({**MASK, "size": [40, 400]}, r"expected size \[400, 400\], got \[40, 400\]"),
        ({**MASK, "counts": "PXk4"}, "expected runs of 400 x 400 pixels, got 158976"),
        ({**MASK, "counts": "PP"}, "expected run lengths, got a string that was cut short"),
        ({**MASK, "counts": "\ud800"}, "expected counts of an RLE, got '"),
        ({**MASK, "counts": 7}, "expected counts of an RLE, got 7"),
    ],
    ids=["number", "size", "too few", "cut", "half a character", "no counts"],
)
def test_bad_masks_in_results_are_one_line(tmp_path: Path, value: Any, message: str) -> None:
    truth = write(tmp_path / "truth.json", mask_document())
    results = write(
        tmp_path / "results.json", [MASK_RESULT, {**MASK_RESULT, "segmentation": value}]
    )
    with pytest.raises(UserError, match=f"detection 1: segmentation: {message}"):
        score_file(results, truth)


@pytest.mark.parametrize("backend", ["pycocotools", "hotcoco"])
def test_runs_score_as_their_compressed_string(tmp_path: Path, backend: BackendChoice) -> None:
    document = mask_document()
    polygon = document["annotations"][1]
    result = {key: polygon[key] for key in ("image_id", "category_id")} | {"score": 1}
    runs = {"size": [400, 400], "counts": [60_000, 50_000, 50_000]}
    height, width = runs["size"]
    code = mask_codec.frPyObjects(runs, height, width)["counts"].decode()
    polygon["segmentation"] = runs
    truth = write(tmp_path / "truth.json", document)
    metrics = [
        score_file(write(tmp_path / "results.json", [found]), truth, backend=backend).metrics
        for counts in (runs["counts"], code)
        for found in [{**result, "segmentation": {**runs, "counts": counts}}]
    ]
    np.testing.assert_equal(metrics[0], metrics[1])
    assert metrics[0]["ap"] > 0


def test_masks_need_the_size_of_images(tmp_path: Path) -> None:
    document = mask_document()
    del document["images"][4]["width"]
    truth = write(tmp_path / "truth.json", document)
    with pytest.raises(UserError, match="image 4: width: expected a positive integer, got nothing"):
        score_file(write(tmp_path / "results.json", [MASK_RESULT]), truth)
