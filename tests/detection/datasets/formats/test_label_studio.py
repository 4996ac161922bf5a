"""Label Studio's JSON and JSON-MIN: units, rotation, brush masks, file names of URLs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.datasets.formats.label_studio import decode_brush
from detection.ops import rle
from engine.errors import UserError
from tests.detection.datasets.formats.conversions import read_checked, rows_of, write_files
from tests.detection.datasets.voc_files import write_image

SIZE = {"original_width": 60, "original_height": 40, "image_rotation": 0}
RECT = {"x": 10, "y": 25, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["cat"]}
ROW = ("a.jpg", "cat", [6, 10, 30, 20])


def result(kind: str, value: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a result as Label Studio 1.12 exports it."""
    names = {"id": "Dx_aB91ISN", "from_name": "label", "to_name": "image", "origin": "manual"}
    return {**names, **SIZE, "type": kind, "value": value} | changes


def task(
    results: list[dict[str, Any]], url: str = "/data/upload/1/1a2b3c4d-a.jpg"
) -> dict[str, Any]:
    annotation = {"id": 1, "result": results, "was_cancelled": False, "updated_at": "2024-05-01"}
    return {"id": 7, "annotations": [annotation], "predictions": [], "data": {"image": url}}


def write(folder: Path, tasks: list[dict[str, Any]]) -> Path:
    write_files(folder, {"export.json": json.dumps(tasks)})
    return folder / "export.json"


def pack(pixels: np.ndarray, *, widths: tuple[int, ...] = (3, 4, 8, 16)) -> list[int]:
    """Return values (N,) uint8 packed as runs of equal values, and single values in groups."""
    bits = f"{len(pixels):032b}{7:05b}" + "".join(f"{width - 1:04b}" for width in widths)
    place = 0
    while place < len(pixels):
        end = place
        while end < len(pixels) and pixels[end] == pixels[place]:
            end += 1
        if end - place == 1:  # a group of one value
            bits += f"0{0:02b}{0:0{widths[0]}b}{int(pixels[place]):08b}"
        else:
            number = next(i for i, width in enumerate(widths) if end - place <= 1 << width)
            bits += f"1{number:02b}{end - place - 1:0{widths[number]}b}{int(pixels[place]):08b}"
        place = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]


@pytest.mark.parametrize(
    "content",
    [
        task([result("rectanglelabels", RECT)]),
        {"id": 7, "completions": [{"result": [result("rectanglelabels", RECT)]}]}
        | {"data": {"photo": "a.jpg"}},
        {"image": "/data/upload/1/1a2b3c4d-a.jpg", "id": 7, "label": [RECT | SIZE], "annotator": 1},
        task(
            [
                result("rectangle", {k: v for k, v in RECT.items() if k != "rectanglelabels"}),
                result("labels", {"labels": ["cat"]}),
            ]
        ),
    ],
    ids=["json", "completions", "json-min", "labels-apart"],
)
def test_forms(tmp_path: Path, content: dict[str, Any]) -> None:
    assert rows_of(read_checked(write(tmp_path, [content]), "label-studio")) == [ROW]


def test_json_min_without_sizes_reads_the_images(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    content = {"image": "a.jpg", "id": 7, "label": [RECT]}
    assert rows_of(read_checked(write(tmp_path, [content]), "label-studio")) == [ROW]


def test_a_rectangle_turns_around_its_corner_in_pixels(tmp_path: Path) -> None:
    value = RECT | {"x": 50, "rotation": 90}  # the corner (30, 10) stays, the box lies left of it
    checked = read_checked(
        write(tmp_path, [task([result("rectanglelabels", value)])]), "label-studio"
    )
    assert rows_of(checked) == [("a.jpg", "cat", [10, 10, 20, 30])]
    assert dict(checked.rows)["rotated boxes turned into their enclosing box"] == 1


def test_polygons_and_ellipses(tmp_path: Path) -> None:
    polygon = {"points": [[10, 25], [60, 25], [60, 75]], "polygonlabels": ["cat"]}
    ellipse = {"x": 35, "y": 50, "radiusX": 25, "radiusY": 25, "ellipselabels": ["cat"]}
    results = [result("polygonlabels", polygon), result("ellipselabels", ellipse)]
    assert rows_of(read_checked(write(tmp_path, [task(results)]), "label-studio")) == [ROW, ROW]


def test_brush_masks(tmp_path: Path) -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:30, 6:36] = True
    mask[10, 6] = mask[29, 35] = False
    pixels = np.repeat(mask.ravel().astype(np.uint8) * 255, 4)
    value = {"format": "rle", "rle": pack(pixels), "brushlabels": ["cat"]}
    checked = read_checked(write(tmp_path, [task([result("brushlabels", value)])]), "label-studio")
    assert rows_of(checked) == [ROW]
    (found,) = checked.images[0].objects
    np.testing.assert_array_equal(rle.decode(found.run_lengths, (40, 60)), mask)


@pytest.mark.parametrize("seed", range(3))
def test_brush_code_of_random_values(seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 3, 200).astype(np.uint8)
    code = bytes(pack(values))
    np.testing.assert_array_equal(decode_brush(code, count=200), values)
    with pytest.raises(ValueError, match="cut short"):
        decode_brush(code[:-2], count=200)
    with pytest.raises(ValueError, match="expected 100 values"):
        decode_brush(code, count=100)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/data/upload/1/1a2b3c4d-my%20cat.jpg", "my cat.jpg"),
        ("/data/local-files/?d=set%20a/b/cat.jpg", "set a/b/cat.jpg"),
        ("/data/local-files/?d=set\\cat.jpg", "set/cat.jpg"),
        ("https://host/x/y/cat.jpg?sig=1", "cat.jpg"),
        ("s3://bucket/set/cat.jpg", "set/cat.jpg"),
        ("cat.jpg", "cat.jpg"),
    ],
)
def test_file_names_of_urls(tmp_path: Path, url: str, name: str) -> None:
    checked = read_checked(
        write(tmp_path, [task([result("rectanglelabels", RECT)], url)]), "label-studio"
    )
    assert rows_of(checked)[0][0] == name
    said = dict(checked.rows).get("file names derived from URLs", 0)
    assert said == (name != url)


@pytest.mark.parametrize("name", ["1a2b3c4d-a.jpg", "sub/a.jpg"])
def test_uploads_are_found_with_and_without_their_prefix(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "images" / name)
    path = write(tmp_path, [task([result("rectanglelabels", RECT)])])
    checked = read_checked(path, "label-studio", images=tmp_path / "images")
    assert rows_of(checked)[0][0] == name


def test_what_is_dropped_is_counted(tmp_path: Path) -> None:
    results = [
        result("rectanglelabels", RECT | {"rectanglelabels": ["cat", "dog"]}),
        result("choices", {"choices": ["good"]}),
        result("keypointlabels", {"x": 1, "y": 1, "width": 1, "keypointlabels": ["eye"]}),
    ]
    content = task(results)
    content["annotations"] += [
        {"result": [], "was_cancelled": False, "updated_at": "2023-01-01"},
        {"result": [], "was_cancelled": True},
    ]
    other = task([], "/data/upload/1/1a2b3c4d-b.jpg") | {"annotations": [], "predictions": [{}]}
    write_image(tmp_path / "b.jpg")
    counts = dict(read_checked(write(tmp_path, [content, other]), "label-studio").rows)
    assert [name for name in counts if name.startswith("dropped")] == [
        "dropped, cancelled annotations of a task",
        "dropped, older annotations of a task that has several",
        "dropped, further classes of a region with several",
        "dropped, results `choices`",
        "dropped, key points",
        "dropped, predictions of tasks without an annotation",
    ]
    assert counts["objects"] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (result("rectanglelabels", {"x": 1}), "expected a class, got none"),
        (result("rectanglelabels", {"x": 1, "rectanglelabels": ["a"]}), "expected numbers as x, y"),
        (result("polygonlabels", {"points": [[1, 1]], "polygonlabels": ["a"]}), "three or more"),
        (
            result("brushlabels", {"rle": "x", "brushlabels": ["a"]}),
            "rle: expected a list of bytes",
        ),
        (result("brushlabels", {"rle": [1], "brushlabels": ["a"]}), "rle: expected more bytes"),
    ],
)
def test_bad_results(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    path = write(tmp_path, [task([given])])
    with pytest.raises(UserError, match=f"task 7: result 1: .*{message}"):
        read_checked(path, "label-studio")
