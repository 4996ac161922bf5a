"""`data.crowds=drop`: training as if crowd regions were not annotated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from detection.config import DataConfig, SplitConfig
from detection.data.dataset import CocoDetection
from tests.detection.data.coco_data import open_data

Document = dict[str, Any]
CocoWriter = Callable[[Document], Path]


def with_a_crowd(document: Document) -> Document:
    """Return the document with a crowd region before the two objects of image 5."""
    segmentation = {"size": [50, 30], "counts": [0, 1500]}
    crowd = {"id": 10, "image_id": 5, "category_id": 7, "bbox": [0, 0, 30, 50], "iscrowd": 1}
    document["annotations"].insert(0, crowd | {"segmentation": segmentation})
    return document


def test_crowds_are_no_targets(document: Document, write_coco: CocoWriter) -> None:
    expected = open_data(write_coco(document)).load(1, 3)
    path = write_coco(with_a_crowd(document))
    assert open_data(path).load(1, 3).is_crowd.tolist() == [True, False, False]
    data = open_data(path, crowds="drop")
    found = data.load(1, 3)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.is_crowd, expected.is_crowd)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert len(data.load(0, 3).labels) == 0  # the image's only region is a crowd
    assert not data.collate([data.load(0, 3)]).targets.valid.any()


def test_masks_stay_with_their_objects(document: Document, write_coco: CocoWriter) -> None:
    document["annotations"][2]["segmentation"] = [[20, 30, 30, 30, 30, 50]]

    def masks(crowds: str) -> np.ndarray:
        path = write_coco(document)
        split = SplitConfig(images=str(path.parent), annotations=str(path))
        config = DataConfig.model_validate({"crowds": crowds})
        found = CocoDetection(split, config=config, training=True, with_masks=True).load(1, 3).masks
        assert found is not None
        return found

    expected = masks("ignore")
    assert expected.any(axis=(1, 2)).all()
    with_a_crowd(document)
    np.testing.assert_array_equal(masks("drop"), expected)
    np.testing.assert_array_equal(masks("ignore")[1:], expected)


def test_difficult_and_ignored_objects_are_still_ignored(
    document: Document, write_coco: CocoWriter
) -> None:
    document["annotations"][0]["difficult"] = 1
    document["annotations"].append(
        {"id": 15, "image_id": 5, "category_id": 3, "bbox": [1, 1, 9, 9], "ignore": 1}
    )
    found = open_data(write_coco(document), crowds="drop").load(1, 0)
    assert found.is_crowd.tolist() == [True, False, True]


def test_evaluation_keeps_crowds(document: Document, write_coco: CocoWriter) -> None:
    path = write_coco(document)
    data = open_data(path, training=False, crowds="drop")
    assert data.load(0, 0).is_crowd.tolist() == [True]
    assert data.annotations.is_crowd.sum() == 1
    assert not any("dropped" in note for note in data.notes("validation"))


def test_the_log_counts_them_and_the_data_are_the_same(
    document: Document, write_coco: CocoWriter
) -> None:
    path = write_coco(with_a_crowd(document))
    data = open_data(path, crowds="drop")
    note = "training data: 2 crowd regions dropped (data.crowds=drop)"
    assert note in data.notes("training")
    assert note not in open_data(path).notes("training")
    assert data.digest == open_data(path).digest
    assert data.image_ids.tolist() == [70, 5, 9]
    assert open_data(path, crowds="drop", keep_empty=False).image_ids.tolist() == [5]
