"""Files of the predict command, each read back by a reader of its own."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from pycocotools import mask as coco_mask

from detection.commands import data, predict
from detection.data.coco import ClassMap, read_coco
from detection.datasets.formats import yolo
from detection.datasets.formats.document import ReadOptions
from engine.checkpoint import write_safetensors
from tests.cli.conftest import Call
from tests.detection.inference.networks import make_config, make_metadata, make_network
from tests.reference.images import smooth_image

CLASSES = ClassMap(("cow, brown", "../ant", "/Ant"), (4, 9, 17))
OPTIONS = ("--device", "cpu", "--output", "out", "--score", "0.05")
SHAPES = {"a.png": (60, 80), "b.png": (80, 60), "c.png": (61, 79), "deep/a.png": (64, 64)}


@pytest.fixture(scope="module")
def masks_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmentation run with random weights whose masks differ."""
    folder = tmp_path_factory.mktemp("run")
    config = make_config(task="segmentation")
    network = make_network(config)
    metadata = make_metadata(config, CLASSES)
    write_safetensors(folder / "model.safetensors", network.state_dict(), metadata)
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with images in `in` and `in/deep`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for number, (name, shape) in enumerate(SHAPES.items()):
        pixels = np.roll(smooth_image(*shape), number, axis=2)
        cv2.imwrite(str(tmp_path / "in" / name), pixels)
    (tmp_path / "in" / "bad.png").write_bytes(b"")
    return tmp_path


def entries(path: str = "out") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path(path, "detections.json").read_text())
    return found


@pytest.fixture
def found(folder: Path, masks_run: Path, call: Call) -> list[dict[str, Any]]:
    """What detections.json holds; the other files are in `out`."""
    more = ("--format", "csv,coco,yolo,coco-annotations", "--save-crops", "--skip-bad")
    outcome = call(predict, masks_run, "in", *OPTIONS, *more)
    assert outcome.code == 0, outcome.err
    written = entries()
    assert {entry["category_id"] for entry in written} == set(CLASSES.category_ids)
    masks = f"dropped, masks of detections whose boxes are kept: {len(written)}"
    assert outcome.out.count(masks) == 2
    assert "out/annotations.json: file names are relative to in/" in outcome.out
    return written


def corners(entry: dict[str, Any]) -> list[float]:
    x, y, width, height = entry["bbox"]
    return [x, y, x + width, y + height]


def test_csv_has_a_row_for_each_detection(found: list[dict[str, Any]]) -> None:
    with Path("out", "detections.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found)
    for row, entry in zip(rows, found, strict=True):
        assert (row["filename"], row["class"]) == (entry["file_name"], entry["category_name"])
        height, width = SHAPES[row["filename"].removeprefix("in/")]
        assert (row["width"], row["height"]) == (str(width), str(height))
        assert float(row["score"]) == entry["score"]
        box = [float(row[side]) for side in ("xmin", "ymin", "xmax", "ymax")]
        np.testing.assert_allclose(box, corners(entry), atol=1e-6)


def test_yolo_is_read_by_the_converter(found: list[dict[str, Any]]) -> None:
    # names of label files are unique: two images are a.png
    names = {"in/a.png": "a", "in/b.png": "b", "in/c.png": "c", "in/deep/a.png": "a_2"}
    assert sorted(path.stem for path in Path("out/labels").iterdir()) == sorted(names.values())
    Path("out/images").mkdir()
    for source, name in names.items():
        Path("out/images", f"{name}.png").write_bytes(Path(source).read_bytes())
    document = yolo.read(Path("out"), ReadOptions())
    assert document.bad_objects == []
    assert list(document.classes or ()) == list(CLASSES.names)
    assert yaml.safe_load(Path("out/data.yaml").read_text())["names"][1] == "../ant"
    assert Path("out/classes.txt").read_text().splitlines() == list(CLASSES.names)
    by_name = {Path(image.file_name).stem: image for image in document.images}
    for source, name in names.items():
        height, width = SHAPES[source.removeprefix("in/")]
        expected = [entry for entry in found if entry["file_name"] == source]
        objects = by_name[name].objects
        assert [each.name for each in objects] == [each["category_name"] for each in expected]
        for each, entry in zip(objects, expected, strict=True):
            assert each.box is not None
            pixels = np.array(each.box) * [width, height, width, height]
            np.testing.assert_allclose(pixels, corners(entry), atol=1e-5)
        lines = Path("out/labels", f"{name}.txt").read_text().splitlines()
        scores = [float(line.split()[5]) for line in lines]
        np.testing.assert_allclose(scores, [entry["score"] for entry in expected], atol=1e-7)


def test_annotations_are_read_by_our_reader(found: list[dict[str, Any]], call: Call) -> None:
    path = Path("out/annotations.json")
    outcome = call(data, "check", path, "--images", "in")
    assert outcome.code == 0, outcome.out
    read = read_coco(path, classes=CLASSES, need_masks=True)
    assert [read.file_name(row) for row in range(len(read))] == list(SHAPES)
    content = json.loads(path.read_text())
    ids = {entry["file_name"]: entry["image_id"] for entry in found}
    assert {f"in/{each['file_name']}": each["id"] for each in content["images"]} == ids
    assert [each["id"] for each in content["annotations"]] == [*range(1, len(found) + 1)]
    for annotation, entry in zip(content["annotations"], found, strict=True):
        kept = ("image_id", "category_id", "bbox", "score")
        assert [annotation[key] for key in kept] == [entry[key] for key in kept]
        assert annotation["iscrowd"] == 0
        code = entry["segmentation"]
        assert annotation["area"] == coco_mask.area(code)
        expected = filled(coco_mask.decode(code))
        polygons = coco_mask.frPyObjects(annotation["segmentation"], *code["size"])
        np.testing.assert_array_equal(coco_mask.decode(coco_mask.merge(polygons)), expected)


def filled(mask: np.ndarray) -> np.ndarray:
    """Return a mask (H, W) uint8 without its holes: what cannot be reached from outside."""
    padded = np.pad(np.ascontiguousarray(mask), 1)
    cv2.floodFill(padded, None, (0, 0), 2)
    inside: np.ndarray = (padded != 2)[1:-1, 1:-1].astype(np.uint8)
    return inside


def test_crops_are_in_folders_of_safe_names(found: list[dict[str, Any]]) -> None:
    folders = {4: "cow_brown", 9: "9__ant", 17: "17__Ant"}
    counts = Counter(path.parent.name for path in Path("out/crops").rglob("*.jpg"))
    expected = Counter(folders[entry["category_id"]] for entry in found)
    assert counts == expected
    first = next(entry for entry in found if entry["file_name"] == "in/deep/a.png")
    crop = cv2.imread(str(Path("out/crops", folders[first["category_id"]], "a_2_1.jpg")))
    assert crop is not None
    x1, y1, x2, y2 = corners(first)
    assert crop.shape[:2] == (np.ceil(y2) - np.floor(y1), np.ceil(x2) - np.floor(x1))


def test_the_same_images_are_refused_where_old_files_would_stay(
    found: list[dict[str, Any]], masks_run: Path, call: Call
) -> None:
    assert found
    for option in (("--format", "yolo"), ("--save-crops",)):
        outcome = call(predict, masks_run, "in/a.png", *OPTIONS, *option)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert "expected no files of an earlier prediction, got some" in outcome.err
    assert entries() == found


def test_classes_are_chosen_by_name(folder: Path, masks_run: Path, call: Call) -> None:
    inputs = ("in/a.png", "in/b.png")
    assert call(predict, masks_run, *inputs, *OPTIONS).code == 0
    everything = entries()
    options = (*OPTIONS, "--classes", "/Ant,../ant", "--no-drawings")
    assert call(predict, masks_run, *inputs, *options).code == 0
    assert entries() == [entry for entry in everything if entry["category_id"] != 4]
    outcome = call(predict, masks_run, *inputs, *OPTIONS, "--classes", "/Ant,cow brown")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "got 'cow brown'; did you mean 'cow, brown'?" in outcome.err


def test_no_drawings_write_no_images(folder: Path, masks_run: Path, call: Call) -> None:
    assert call(predict, masks_run, "in/a.png", *OPTIONS, "--no-drawings").code == 0
    assert [path.name for path in Path("out").iterdir()] == ["detections.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "coco,xml"), "--format: expected coco, csv, yolo, coco-annotations, got"),
        (("--threads", "0"), "--threads: expected at least 1, got 0"),
    ],
    ids=["format", "threads"],
)
def test_wrong_options_are_one_line(
    folder: Path, masks_run: Path, call: Call, options: tuple[str, ...], message: str
) -> None:
    outcome = call(predict, masks_run, "in", *OPTIONS, *options)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert message in outcome.err
    assert not Path("out").exists()


def test_detections_without_an_area_are_no_annotations(tmp_path: Path) -> None:
    from detection.commands.predict_formats import write_annotations

    lines = [
        {
            "image": 3,
            "file_name": "x/a.jpg",
            "size": [9, 9],
            "detections": [
                {"image_id": 3, "category_id": 4, "bbox": [1.0, 2.0, 0.0, 3.0], "score": 0.5},
                {"image_id": 3, "category_id": 4, "bbox": [1.0, 2.0, 2.0, 3.0], "score": 0.4},
            ],
        }
    ]
    notes = write_annotations(lines, tmp_path, CLASSES)
    assert notes[1] == "dropped, detections whose box or mask is empty: 1 (first: x/a.jpg)"
    content = json.loads((tmp_path / "annotations.json").read_text())
    assert [each["score"] for each in content["annotations"]] == [0.4]
    assert content["images"] == [{"id": 3, "file_name": "a.jpg", "width": 9, "height": 9}]
