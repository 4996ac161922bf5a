"""Results files of others: scored as by pycocotools, matched by names, refused in one line."""

import contextlib
import copy
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.config import BackendChoice
from detection.evaluation.coco_ap import SUMMARY, CocoReport, score_file
from engine.errors import UserError
from tests.detection.evaluation.coco_documents import CATEGORIES, make_document, write

SIDE = 400
Result = dict[str, Any]
Results = list[Result]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """Objects with polygons; crowds too."""
    made = make_document()
    for annotation in made["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x, y, width, height] = [x, y, width / 2, height / 2]
        annotation["area"] = 0.6 * width * height
        annotation["segmentation"] = [
            [x, y, x + width, y, x + width, y + height, x + width / 3, y + height]
        ]
    return made


@pytest.fixture
def found(document: dict[str, Any]) -> Results:
    """Shaken copies of three in four objects, boxes and polygons of two parts."""
    rng = np.random.default_rng(3)
    results = []
    for annotation in document["annotations"][::4] + document["annotations"][1::2]:
        x, y, width, height = (np.array(annotation["bbox"]) * rng.uniform(0.97, 1.03, 4)).tolist()
        right, bottom = x + width, y + height
        results.append(
            {
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": [x, y, width, height],
                "score": float(rng.integers(1, 9)) / 10,
                "segmentation": [
                    [x, y, right, y, right, y + height / 2, x, y + height / 2],
                    [x + width / 2, y + height / 3, right, bottom, x + width / 2, bottom],
                ],
            }
        )
    return results


def run_length(polygons: Any) -> dict[str, Any]:
    code = mask_codec.merge(mask_codec.frPyObjects(polygons, SIDE, SIDE))["counts"]
    return {"size": [SIDE, SIDE], "counts": code.decode()}


def uncompressed(polygons: Any) -> dict[str, Any]:
    flat = mask_codec.decode(run_length(polygons)).ravel(order="F")
    starts = np.flatnonzero(np.diff(flat, prepend=0))
    return {"size": [SIDE, SIDE], "counts": np.diff([0, *starts, len(flat)]).tolist()}


def by_pycocotools(truth: Path, results: Results, iou_type: str) -> list[float]:
    """Return the twelve numbers of `loadRes` and `COCOeval`."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        judge = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), iou_type)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [math.nan if value < 0 else value for value in judge.stats.tolist()]


def changed(results: Results, **values: Callable[[Result], Any] | None) -> Results:
    """Return results with some keys set, or taken out where the value is None."""
    kept = []
    for each in copy.deepcopy(results):
        made = {key: value(each) for key, value in values.items() if value is not None}
        out = [key for key, value in values.items() if value is None]
        kept.append({k: v for k, v in (each | made).items() if k not in out})
    return kept


def rle(each: Result) -> Any:
    return run_length(each["segmentation"])


FORMS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "SAHI's boxes": (
        {"segmentation": lambda _: [], "iscrowd": lambda _: 0, "area": lambda _: 7},
        ["bbox"],
    ),
    "boxes beside null": ({"segmentation": lambda _: None}, ["bbox"]),
    "boxes alone": ({"segmentation": None}, ["bbox"]),
    "masks beside no box": ({"bbox": lambda _: [], "segmentation": rle}, ["segm"]),
    "masks alone": ({"bbox": None, "segmentation": rle}, ["segm"]),
    "polygons": ({}, ["bbox", "segm"]),
}


@pytest.mark.parametrize("backend", ["pycocotools", "hotcoco"])
@pytest.mark.parametrize(("values", "iou_types"), FORMS.values(), ids=FORMS)
def test_forms_of_others_score_as_by_pycocotools(
    tmp_path: Path,
    document: dict[str, Any],
    found: Results,
    values: dict[str, Any],
    iou_types: list[str],
    backend: BackendChoice,
) -> None:
    truth, results = write(tmp_path / "truth.json", document), changed(found, **values)
    report = score_file(write(tmp_path / "results.json", results), truth, backend=backend)
    assert [score.iou_type for score in report.scores] == iou_types
    for score in report.scores:
        expected = by_pycocotools(truth, results, score.iou_type)
        np.testing.assert_equal([score.metrics[name] for name in SUMMARY], expected)
        assert 0.1 < expected[0] < 0.9
        assert score.note.count("\n") == 1  # 1 image is not named


def score(folder: Path, document: dict[str, Any], results: Results) -> CocoReport:
    truth = write(folder / "truth.json", document)
    return score_file(write(folder / "results.json", results), truth)


def test_null_boxes_and_runs_score_as_masks(
    tmp_path: Path, document: dict[str, Any], found: Results
) -> None:
    """pycocotools' loadRes takes neither."""
    masks = changed(found, bbox=None, segmentation=rle)
    expected = score(tmp_path, document, masks).metrics
    runs = changed(found, bbox=None, segmentation=lambda each: uncompressed(each["segmentation"]))
    for results in (changed(masks, bbox=lambda _: None), runs):
        np.testing.assert_equal(score(tmp_path, document, results).metrics, expected)


def test_masks_beside_boxes_keep_their_own_area(
    tmp_path: Path, document: dict[str, Any], found: Results
) -> None:
    """As in a run's own scores, and as those have it who take the boxes out (detectron2)."""
    report = score(tmp_path, document, changed(found, segmentation=rle))
    expected = score(tmp_path, document, changed(found, bbox=None, segmentation=rle)).metrics
    np.testing.assert_equal(
        [report.metrics[f"mask_{k}"] for k in SUMMARY], list(expected.values())[:12]
    )


@pytest.mark.parametrize("nothing", ["no key", [], None, {}], ids=str)
def test_what_some_results_lack_is_filled_in_and_counted(
    tmp_path: Path, document: dict[str, Any], found: Results, nothing: Any
) -> None:
    truth = write(tmp_path / "truth.json", document)

    def without(key: str, index: int) -> Result:
        own = {k: v for k, v in found[index].items() if k != key}
        return own if nothing == "no key" else {**own, key: nothing}

    mixed = [without("segmentation", i) if i % 3 == 0 else found[i] for i in range(len(found))]
    plain = [{k: v for k, v in each.items() if k != "segmentation" or v} for each in mixed]
    boxes, masks = score(tmp_path, document, mixed).scores
    for each in (boxes, masks):
        expected = by_pycocotools(truth, plain, each.iou_type)
        np.testing.assert_equal([each.metrics[name] for name in SUMMARY], expected)
    assert f"{len(mixed[::3])} detections have no mask: their box is used as the mask" in masks.note
    assert "stands" not in boxes.note

    mixed = [without("bbox", 0), *found[1:]]
    around = mask_codec.toBbox(run_length(found[0]["segmentation"])).tolist()
    report = score(tmp_path, document, mixed)
    assert "1 detections have no bbox: the box around the mask is scored" in report.scores[0].note
    expected = by_pycocotools(truth, [{**found[0], "bbox": around}, *found[1:]], "bbox")
    np.testing.assert_equal([report.scores[0].metrics[name] for name in SUMMARY], expected)


def test_degenerate_parts_are_dropped_and_counted(
    tmp_path: Path, document: dict[str, Any], found: Results
) -> None:
    expected = score(tmp_path, document, found).metrics
    found[0]["segmentation"] += [[1, 2, 3, 4], []]
    report = score(tmp_path, document, found)
    np.testing.assert_equal(report.metrics, expected)
    note = report.scores[1].note
    assert "2 parts of masks with fewer than three points were dropped" in note
    found[0]["segmentation"] = [[1, 2, 3, 4]]
    assert "1 detections have no mask: their box" in score(tmp_path, document, found).scores[1].note


def test_masks_are_not_scored_where_annotations_have_none(tmp_path: Path, found: Results) -> None:
    report = score(tmp_path, make_document(), found)
    boxes = score(tmp_path, make_document(), changed(found, segmentation=None))
    np.testing.assert_equal(report.metrics, boxes.metrics)
    note = "masks of the results are not scored: the annotations have no masks"
    assert (note in report.scores[0].note, note in boxes.scores[0].note) == (True, False)


def renamed(document: dict[str, Any], name_of: Callable[[int], str]) -> dict[str, Any]:
    images = [{**each, "file_name": name_of(each["id"])} for each in document["images"]]
    return {**document, "images": images}


def folder_of(image_id: int) -> str:
    return f"/set/{'ab'[image_id % 2]}/{image_id // 2}.jpg"


NAMES: dict[str, tuple[Callable[[int], str], Callable[[int], str]]] = {
    "the same": (str, str),
    "behind folders": (lambda i: f"{i}.jpg", lambda i: f"data/val/{i}.jpg"),
    "from the root on": (lambda i: f"val/{i}.jpg", lambda i: f"/home/me/val/{i}.jpg"),
    "without folders": (lambda i: f"train/{i}.jpg", lambda i: f"{i}.jpg"),
    "other folders": (lambda i: f"train/{i}.jpg", lambda i: f"copy/{i}.jpg"),
    "alike in two folders": (folder_of, lambda i: f"data{folder_of(i)}"),
    "the first folder alone": (lambda i: f"./{i}/x.jpg", lambda i: f"data/{i}/x.jpg"),
}


@pytest.mark.parametrize(("known", "given"), NAMES.values(), ids=NAMES)
def test_images_are_matched_by_name(
    tmp_path: Path,
    document: dict[str, Any],
    found: Results,
    known: Callable[[int], str],
    given: Callable[[int], str],
) -> None:
    """Numbers that another program gave collide with the ids of other images."""
    document = renamed(document, known)
    expected = score(tmp_path, document, found)
    named = [{**each, "file_name": given(each["image_id"])} for each in found]
    agreeing = score(tmp_path, document, named)
    assert agreeing.scores[0].note == expected.scores[0].note
    strange: list[Callable[[Result], Any] | None] = [lambda _: "x", lambda _: [{}], None]
    for number_of in (lambda each: (each["image_id"] + 1) % 9, lambda _: 0, *strange):
        report = score(tmp_path, document, changed(named, image_id=number_of))
        np.testing.assert_equal(report.metrics, expected.metrics)
        assert "images are matched by file_name: " in report.scores[0].note


def test_the_same_name_twice(tmp_path: Path, document: dict[str, Any], found: Results) -> None:
    document = renamed(document, lambda i: f"{i // 2}.jpg")
    named = [{**each, "file_name": f"{each['image_id'] // 2}.jpg"} for each in found]
    expected = score(tmp_path, document, found).metrics
    np.testing.assert_equal(score(tmp_path, document, named).metrics, expected)
    named[0]["image_id"] = 99
    with pytest.raises(UserError, match=r"detection 0: file_name: expected the name of one image "):
        score(tmp_path, document, named)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"file_name": "z.jpg"},
            "detection 0: file_name: expected the name of an image of .*'z.jpg'",
        ),
        ({"file_name": None, "image_id": 9}, "detection 0: image_id: expected one of .*, got 9"),
        ({"file_name": 5}, "detection 0: file_name: expected a name, got 5"),
        ({"category_name": 5}, "detection 0: category_name: expected a name, got 5"),
    ],
    ids=["unknown", "none", "number", "category"],
)
def test_names_that_do_not_help(
    tmp_path: Path, document: dict[str, Any], found: Results, change: Result, message: str
) -> None:
    named = [{**each, "file_name": f"{each['image_id']}.jpg"} for each in found]
    with pytest.raises(UserError, match=message):
        score(tmp_path, document, [{**named[0], **change}, *named[1:]])


def test_names_of_some_results_are_only_compared(
    tmp_path: Path, document: dict[str, Any], found: Results
) -> None:
    own = f"{found[1]['image_id']}.jpg"
    score(tmp_path, document, [found[0], {**found[1], "file_name": own}])
    with pytest.raises(
        UserError, match=r"detection 1: file_name: expected '.*', of image .*'8\.jpg'"
    ):
        score(tmp_path, document, [found[0], {**found[1], "file_name": "8.jpg"}])


def test_classes_are_matched_by_name(
    tmp_path: Path, document: dict[str, Any], found: Results
) -> None:
    names = {each["id"]: each["name"] for each in CATEGORIES}
    expected = score(tmp_path, document, found)
    named = [{**each, "category_name": names[each["category_id"]]} for each in found]
    assert score(tmp_path, document, named).scores[0].note == expected.scores[0].note
    other = {1: 38, 18: 5, 38: 1}
    swapped = changed(named, category_id=lambda each: other[each["category_id"]])
    report = score(tmp_path, document, swapped)
    np.testing.assert_equal(report.metrics, expected.metrics)
    count = f"{len(found)} of {len(found)} category_ids differ"
    assert f"classes are matched by category_name: {count}" in report.scores[0].note
    strange = [{**each, "category_name": "x"} for each in found]
    report = score(tmp_path, document, strange)
    np.testing.assert_equal(report.metrics, expected.metrics)
    assert f"{len(found)} detections are matched by category_id" in report.scores[0].note
    with pytest.raises(UserError, match=r"detection 0: category_id: expected .* detection 1 is"):
        score(tmp_path, document, [swapped[0], strange[1]])


WRONG: list[Any] = [
    *(None, True, -1, 0, 5, 1.5, math.nan, math.inf, 2**63, 10**400, "", "x", "\ud800", "\0"),
    *([], [[]], [[[]]], {}, {"size": 3}, [1, 2, 3, 4], [1, 2, math.nan, 4], ["1", "2", "3", "4"]),
    *([[1, 2, 3]], [[1, 2, "3", 4, 5, 6]], [[1, 2, 3, 4, 5, math.inf]], [[1e300] * 6], [None]),
    *({"size": [400, 400]}, {"size": [400, 400], "counts": []}, {"size": 400, "counts": ""}),
    *({"size": [400, 400], "counts": each} for each in ("", "~", [1], [-1, 160_001], [160_000.0])),
    *({"size": [400, 400], "counts": each} for each in ([[160_000]], [2**70], ["160000"], [None])),
    *({"size": [1, 10**30], "counts": [1]}, {"size": [True, 400], "counts": "PXl4"}),
]


@pytest.mark.extended
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("key", ["image_id", "category_id", "bbox", "score", "segmentation"])
def test_any_value_is_scored_or_refused_in_one_line(
    tmp_path: Path, document: dict[str, Any], found: Results, key: str
) -> None:
    truth, path = write(tmp_path / "truth.json", document), tmp_path / "results.json"
    lines = []
    for value in WRONG:
        for result in (found[1], changed(found[1:2], segmentation=rle)[0]):
            path.write_text(json.dumps([found[0], {**result, key: value}]))
            try:
                score_file(path, truth)
            except UserError as error:
                lines.append(str(error))
    assert len(lines) > len(WRONG)
    for line in lines:
        assert "\n" not in line
        assert line.startswith(f"{path}: detection 1: ")
