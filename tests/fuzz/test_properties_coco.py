"""Properties of the COCO reader, on annotation files that hypothesis draws."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from detection.data.coco import Annotations, detections_to_coco, read_coco
from detection.structures import Detections
from tests.fuzz.strategies import QUICK

ids = st.lists(st.integers(1, 1000), min_size=1, max_size=5, unique=True)
starts = st.integers(0, 40).map(lambda value: value / 4)
extents = st.integers(1, 60).map(lambda value: value / 4)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a file whose boxes overlap their images, and may stick out to the right and below."""
    categories = [{"id": each, "name": f"class {each}"} for each in draw(ids)]
    images = [
        {
            "id": each,
            "file_name": f"{each}.png",
            "height": draw(st.integers(11, 40)),
            "width": draw(st.integers(11, 40)),
        }
        for each in draw(ids)
    ]
    annotations = [
        {
            "id": number + 1,
            "image_id": draw(st.sampled_from(images))["id"],
            "category_id": draw(st.sampled_from(categories))["id"],
            "bbox": [draw(starts), draw(starts), draw(extents), draw(extents)],
            "area": draw(st.integers(1, 99)),
            "iscrowd": draw(st.integers(0, 1)),
            "ignore": draw(st.integers(0, 1)),
        }
        for number in range(draw(st.integers(0, 4)))  # from five on, the file is doubted as a whole
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def read(document: dict[str, Any]) -> Annotations:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coco.json"
        path.write_text(json.dumps(document))
        return read_coco(path, need_boxes=False)


@QUICK
@given(documents())
def test_every_object_is_read_as_it_is_in_the_file(document: dict[str, Any]) -> None:
    found = read(document)
    labels = {each: n for n, each in enumerate(sorted(c["id"] for c in document["categories"]))}
    assert found.classes.category_ids == tuple(labels)
    assert found.image_ids.tolist() == [image["id"] for image in document["images"]]
    for row, image in enumerate(document["images"]):
        assert found.file_name(row) == image["file_name"]
        assert found.sizes[row].tolist() == [image["height"], image["width"]]
        objects = found.objects_of(row)
        own = [each for each in document["annotations"] if each["image_id"] == image["id"]]
        expected = [
            [x, y, min(x + width, image["width"]), min(y + height, image["height"])]
            for x, y, width, height in (each["bbox"] for each in own)
        ]
        assert found.boxes[objects].tolist() == expected
        assert found.labels[objects].tolist() == [labels[each["category_id"]] for each in own]
        assert found.is_crowd[objects].tolist() == [each["iscrowd"] == 1 for each in own]
        plain = [not each["iscrowd"] and not each["ignore"] for each in own]
        assert found.is_plain(objects).tolist() == plain
        assert found.areas[objects].tolist() == [each["area"] for each in own]
        numbers = [document["annotations"].index(each) for each in own]
        assert found.rows_in_file[objects].tolist() == numbers
    assert found.row_of(torch.arange(len(found.boxes)).numpy()).tolist() == [
        row for row in range(len(found)) for _ in range(*found.objects_of(row).indices(10**6))
    ]


@QUICK
@given(documents())
def test_results_name_what_was_read(document: dict[str, Any]) -> None:
    """Annotations written as results are those of the file, cut to their images."""
    found = read(document)
    for row, image in enumerate(document["images"]):
        objects = found.objects_of(row)
        boxes = torch.from_numpy(found.boxes[objects])
        scores = torch.linspace(1, 0, len(boxes))
        detections = Detections(boxes, scores, torch.from_numpy(found.labels[objects]))
        entries = detections_to_coco(image["id"], detections, found.classes)
        own = [each for each in document["annotations"] if each["image_id"] == image["id"]]
        assert [e["category_id"] for e in entries] == [each["category_id"] for each in own]
        assert [e["image_id"] for e in entries] == [image["id"]] * len(own)
        for entry, each in zip(entries, own, strict=True):
            x, y, width, height = each["bbox"]
            assert entry["bbox"] == [
                x,
                y,
                min(width, image["width"] - x),
                min(height, image["height"] - y),
            ]
        assert [e["score"] for e in entries] == scores.tolist()
