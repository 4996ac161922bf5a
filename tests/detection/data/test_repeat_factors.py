"""Factors of images with rare classes, and how often a plan of batches uses such images."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.data.repeat_factors import RepeatFactors
from engine.loader import repeat_factors_of, training_batches
from tests.detection.data.coco_data import open_data
from tests.detection.data.test_dataset import CocoWriter
from tests.reference.sampling import repeat_factors

Document = dict[str, Any]


def document_of(classes: list[list[int]], *, num_classes: int) -> Document:
    """One image for each list, with an object of each of its classes (ids from 1)."""
    objects = [(image, label) for image, own in enumerate(classes) for label in own]
    return {
        "images": [
            {"id": i + 10, "file_name": f"{i}.png", "height": 40, "width": 30 if i % 3 else 60}
            for i in range(len(classes))
        ],
        "annotations": [
            {"id": i, "image_id": image + 10, "category_id": label + 1, "bbox": [2, 3, 9, 8]}
            for i, (image, label) in enumerate(objects)
        ],
        "categories": [{"id": i + 1, "name": f"class {i}"} for i in range(num_classes)],
    }


def factors_of(path: Path, thresh: float, **changes: Any) -> RepeatFactors:
    data = open_data(path, repeat_thresh=thresh, **changes)
    assert data._repeats is not None
    return data._repeats


@pytest.mark.parametrize("thresh", [0.0, 0.02, 0.3, 1.0])
def test_factors_equal_the_loops(thresh: float, write_coco: CocoWriter) -> None:
    rng = np.random.default_rng(0)
    # class 0 is in most images, class 5 in few, class 6 in none; some images have no object
    classes = [
        [label for label in range(6) for _ in range(2) if rng.random() < 0.6 / 3**label]
        for _ in range(80)
    ]
    assert [] in classes
    found = factors_of(write_coco(document_of(classes, num_classes=7)), thresh)
    np.testing.assert_allclose(found.by_image, repeat_factors(classes, thresh), rtol=1e-12)
    assert found.by_image[classes.index([])] == 1
    assert found.by_class[6] == 1
    counts = [sum(label in own for own in classes) for label in range(7)]
    assert found.image_counts.tolist() == counts


def test_the_paper_by_hand(write_coco: CocoWriter) -> None:
    # class 1 is in 1 of 8 images: sqrt(0.5 / 0.125) = 2; class 0 in half of them: 1
    classes = [[0], [0, 1], [0], [0], [], [], [], []]
    path = write_coco(document_of(classes, num_classes=2))
    assert factors_of(path, 0.5).by_image.tolist() == [1, 2, 1, 1, 1, 1, 1, 1]
    # without the empty images the fractions are 1 of 4 and 4 of 4
    found = factors_of(path, 0.5, keep_empty=False).by_image
    np.testing.assert_allclose(found, [1, math.sqrt(2), 1, 1])


@pytest.mark.parametrize("mark", ["iscrowd", "ignore", "difficult"])
def test_only_training_objects_count(mark: str, write_coco: CocoWriter) -> None:
    document = document_of([[0], [0], [0, 1], [0, 1]], num_classes=2)
    marked = document["annotations"][-1]
    assert marked["category_id"] == 2
    marked[mark] = 1
    # class 1 is in one image of four, and the last image does not contain it
    assert factors_of(write_coco(document), 1.0).by_image.tolist() == [1, 1, 2, 1]


def test_missing_images_are_not_counted(document: Document, write_coco: CocoWriter) -> None:
    data = open_data(write_coco(document), repeat_thresh=1.0, on_bad_image="skip")
    data._path_of(0).unlink()
    data.check_images()
    factors = repeat_factors_of(data)
    assert factors is not None
    assert len(factors) == len(data)


def test_none_without_the_key_and_in_evaluation(document: Document, write_coco: CocoWriter) -> None:
    path = write_coco(document)
    assert repeat_factors_of(open_data(path)) is None
    assert repeat_factors_of(open_data(path, repeat_thresh=0.5, training=False)) is None


def test_lines_name_the_rarest_classes(write_coco: CocoWriter) -> None:
    classes = [[0], [0, 1], [0], [0], [2, 0], [2, 0], [0], [0]]
    path = write_coco(document_of(classes, num_classes=4))
    assert open_data(path, repeat_thresh=0.5).notes("training")[1:3] == [
        "training data: data.repeat_thresh=0.5 repeats 3 of 8 images, at most 2.0 times on average;"
        " an epoch has 10 images on average",
        "training data: rarest classes: class 1 (images: 1, factor: 2.0), class 2 (images: 2, "
        "factor: 1.4), class 0 (images: 8, factor: 1.0)",
    ]
    (line,) = factors_of(path, 0.1).lines()
    assert line.startswith("data.repeat_thresh=0.1 repeats no image")


def test_images_occur_as_often_as_their_factors(write_coco: CocoWriter) -> None:
    classes = [[0]] * 20 + [[0, 1]] * 3 + [[2]]
    data = open_data(write_coco(document_of(classes, num_classes=3)), repeat_thresh=1.0)
    factors = repeat_factors_of(data)
    assert factors is not None
    assert len(np.unique(data.groups)) == 2
    epochs, batch_size = 2000, 4
    plan = training_batches(data.groups, batch_size=batch_size, seed=0, factors=factors)
    num_batches = round(epochs * factors.sum() / batch_size)
    keys = [key for batch in itertools.islice(plan, num_batches) for key in batch]
    counts = np.bincount([key.index for key in keys])
    # A factor's fraction is drawn in each epoch with variance fraction * (1 - fraction). Five
    # standard deviations, and two images of slack for the last epoch.
    fractions = factors % 1
    bounds = 5 * np.sqrt(epochs * (fractions * (1 - fractions)).sum()) + 2
    assert (np.abs(counts - epochs * factors) < bounds).all()
    assert len({key.seed for key in keys}) == len(keys)
