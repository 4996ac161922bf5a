from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from backbones.images import read_image
from detection.config import DataConfig, SplitConfig
from detection.data.coco_cache import CACHED_BYTES
from detection.data.dataset import BatchShape, CocoDetection
from engine.errors import SkippedSampleError, UserError
from engine.task import DataSet
from tests.detection.data.coco_data import open_data

Document = dict[str, Any]
CocoWriter = Callable[[Document], Path]


def test_evaluation_resizes_alone(document: Document, write_coco: CocoWriter) -> None:
    data: DataSet = open_data(write_coco(document), training=False)
    sample = data.load(1, 7)
    assert sample.pixels.shape == (107, 64, 3)
    assert sample.original_size == (50, 30)
    assert (sample.image_id, sample.seed) == (5, 7)
    assert sample.labels.tolist() == [1, 2]
    assert sample.is_crowd.tolist() == [False, False]
    scale = torch.tensor([64 / 30, 107 / 50] * 2)
    expected = torch.tensor([[2, 3, 12, 23.5], [20, 30, 30, 50]]) * scale
    torch.testing.assert_close(torch.from_numpy(sample.boxes), expected)


def test_training_depends_on_index_and_seed_alone(
    document: Document, write_coco: CocoWriter
) -> None:
    path = write_coco(document)
    first, second = open_data(path), open_data(path)
    second.load(0, 99)
    for seed in range(5):
        a, b = first.load(1, seed), second.load(1, seed)
        torch.testing.assert_close(a.pixels, b.pixels, rtol=0, atol=0)
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=0)


def test_annotations_are_not_changed_by_loading(document: Document, write_coco: CocoWriter) -> None:
    data = open_data(write_coco(document))
    before = data.annotations.boxes.copy()
    for seed in range(10):
        data.load(1, seed)
    torch.testing.assert_close(data.annotations.boxes, before, rtol=0, atol=0)


def test_the_digest_tells_other_annotations_and_no_other_settings(
    document: Document, write_coco: CocoWriter
) -> None:
    path = write_coco(document)
    digest = open_data(path).digest
    assert open_data(path, keep_empty=False).digest == digest
    assert open_data(path, training=False).digest == digest
    document["annotations"][0]["bbox"][2] -= 1
    assert open_data(write_coco(document)).digest != digest


def test_a_batch(document: Document, write_coco: CocoWriter) -> None:
    data = open_data(write_coco(document), training=False)
    batch = data.collate([data.load(index, index) for index in range(3)])
    assert batch.images.pixels.shape == (3, 3, 128, 96)
    assert batch.image_ids.tolist() == [70, 5, 9]
    assert batch.targets.valid.sum(dim=1).tolist() == [1, 2, 0]
    assert batch.targets.is_crowd.sum(dim=1).tolist() == [1, 0, 0]


def test_a_frame_holds_the_whole_batch(document: Document, write_coco: CocoWriter) -> None:
    data = open_data(write_coco(document))
    sample_keys = [(index, seed) for seed in range(5) for index in range(3)]
    batch_shape = data.batch_shape(sample_keys)
    samples = [data.load(index, seed, batch_shape) for index, seed in sample_keys]
    sizes = np.array([sample.pixels.shape[:2] for sample in samples])
    assert batch_shape.size == tuple(sizes.max(axis=0))
    whole, part = data.collate(samples, batch_shape), data.collate(samples[:1], batch_shape)
    assert whole.images.pixels.shape[2:] == part.images.pixels.shape[2:]


def test_evaluation_groups_are_padded_shapes(document: Document, write_coco: CocoWriter) -> None:
    document["images"][2].update(height=49)
    data = open_data(write_coco(document), training=False)
    shapes = []
    for index in range(3):
        shapes.append(data.collate([data.load(index, 0)]).images.pixels.shape)
    equal = [[a == b for a in shapes] for b in shapes]
    assert (data.groups[:, None] == data.groups).tolist() == equal
    assert data.groups.dtype == np.int64


def test_a_batch_shares_its_short_side(document: Document, write_coco: CocoWriter) -> None:
    data = open_data(write_coco(document))
    drawn = set()
    for seed in range(12):
        sample_keys = [(0, seed), (1, seed + 1), (2, seed + 2)]
        batch_shape = data.batch_shape(sample_keys)
        assert batch_shape.short_side is not None
        sizes = [data.load(index, own, batch_shape).pixels.shape[:2] for index, own in sample_keys]
        assert {min(size) for size in sizes[:1] + sizes[2:]} == {batch_shape.short_side}
        assert min(sizes[1]) == min(batch_shape.short_side, 54)  # 50x30 meets the cap of 90
        assert batch_shape.short_side == min(data.load(0, seed).pixels.shape[:2])
        drawn.add(batch_shape.short_side)
    assert drawn == {40, 60}


def test_the_short_side_of_a_batch_changes_nothing_else(
    document: Document, write_coco: CocoWriter
) -> None:
    data = open_data(write_coco(document))
    mirrored = set()
    for seed in range(6):
        samples = [data.load(1, seed, BatchShape(side, (1, 1))) for side in (40, 60)]
        assert [sample.pixels.shape[:2] for sample in samples] == [(67, 40), (90, 54)]
        relative = [sample.boxes / (2 * sample.pixels.shape[1::-1]) for sample in samples]
        torch.testing.assert_close(*relative, rtol=0, atol=1e-6)
        colors = [sample.pixels.mean(axis=(0, 1)) for sample in samples]
        torch.testing.assert_close(*colors, rtol=0, atol=1.0)
        mirrored.add(bool(relative[0][0, 0] > relative[0][1, 0]))
    assert mirrored == {True, False}


def test_empty_images_are_left_out_when_asked(document: Document, write_coco: CocoWriter) -> None:
    path = write_coco(document)
    assert open_data(path).image_ids.tolist() == [70, 5, 9]
    data = open_data(path, keep_empty=False)
    assert data.image_ids.tolist() == [5]  # a crowd region alone teaches nothing
    assert len(data) == len(data.groups) == 1
    assert data.load(0, 0).image_id == 5
    assert len(open_data(path, training=False, keep_empty=False)) == 3


def test_difficult_objects_are_ignored_as_crowds_are(
    document: Document, write_coco: CocoWriter
) -> None:
    document["annotations"][0]["difficult"] = 1
    document["annotations"].append(
        {"id": 15, "image_id": 9, "category_id": 3, "bbox": [1, 1, 9, 9], "difficult": 1}
    )
    path = write_coco(document)
    assert open_data(path).load(1, 0).is_crowd.tolist() == [True, False]
    data = open_data(path, keep_empty=False)
    assert data.image_ids.tolist() == [5]
    batch = data.collate([data.load(0, 0)])
    assert batch.targets.is_crowd[0, :3].tolist() == [True, False, False]
    assert batch.targets.valid[0, :3].tolist() == [True, True, False]


@pytest.mark.parametrize("cache", [True, False], ids=["by default", "switched off"])
def test_a_large_file_has_a_packed_copy(
    document: Document, write_coco: CocoWriter, cache: bool
) -> None:
    path = write_coco(document)
    assert open_data(path).annotations.cache_note is None
    path.write_text(path.read_text() + " " * CACHED_BYTES)
    copy = path.with_name(f"{path.name}.resdet-cache")
    expected = f"cached copy {copy} made" if cache else None
    assert open_data(path, cache=cache).annotations.cache_note == expected
    assert copy.exists() == cache


def test_another_size_than_annotated(document: Document, write_coco: CocoWriter) -> None:
    path = write_coco(document)
    Image.fromarray(np.zeros((50, 31, 3), np.uint8)).save(path.parent / "a.png")
    with pytest.raises(UserError) as error:
        open_data(path).load(1, 0)
    assert str(error.value) == (
        f"{path.parent / 'a.png'}: expected 30x50 (width x height) as annotated,"
        " got 31x50 (width x height); data.on_bad_image=skip skips it"
    )
    skipping = open_data(path, on_bad_image="skip")
    with pytest.raises(SkippedSampleError, match=r"a\.png: expected 30x50"):
        skipping.load(1, 0)
    assert skipping.load(0, 0).image_id == 70


def test_a_truncated_image_stops_or_is_skipped(document: Document, write_coco: CocoWriter) -> None:
    path = write_coco(document)
    image = path.parent / "a.png"
    content = image.read_bytes()[:-30]
    image.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png"):
        open_data(path).load(1, 0)
    with pytest.raises(SkippedSampleError, match=r"a\.png"):
        open_data(path, on_bad_image="skip").load(1, 0)
    assert image.read_bytes() == content


def test_a_missing_image_stops_in_any_case(document: Document, write_coco: CocoWriter) -> None:
    path = write_coco(document)
    (path.parent / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png: no such file"):
        open_data(path, on_bad_image="skip").load(1, 0)


def test_ignored_objects_are_as_crowds_are(document: Document, write_coco: CocoWriter) -> None:
    document["annotations"][0]["ignore"] = 1
    document["annotations"].append(
        {"id": 15, "image_id": 9, "category_id": 3, "bbox": [1, 1, 9, 9], "ignore": True}
    )
    path = write_coco(document)
    assert open_data(path).load(1, 0).is_crowd.tolist() == [True, False]
    data = open_data(path, keep_empty=False)
    assert data.image_ids.tolist() == [5]
    assert ("objects marked `ignore` among them", 2) in data.report.rows()


def test_validation_of_crowds_alone_says_so(document: Document, write_coco: CocoWriter) -> None:
    document["annotations"] = document["annotations"][1:2]
    notes = open_data(write_coco(document), training=False).notes("validation")
    assert notes[-1] == (
        "validation data: all 1 boxes are crowd regions, which are not scored: there will be no"
        " AP and AR"
    )


def test_a_missing_folder_is_named(document: Document, write_coco: CocoWriter) -> None:
    split = SplitConfig(images="nowhere", annotations=str(write_coco(document)))
    with pytest.raises(UserError, match="nowhere: expected the folder of images, got no"):
        CocoDetection(split, config=DataConfig(), training=True)


def test_validation_data_may_have_nothing_to_find(
    document: Document, write_coco: CocoWriter
) -> None:
    """As COCO's images of test-dev, which get detections for others to score."""
    document["annotations"] = []
    data = open_data(write_coco(document), training=False)
    assert (len(data), len(data.annotations.boxes)) == (3, 0)
    del document["annotations"]
    assert open_data(write_coco(document), training=False).image_ids.tolist() == [70, 5, 9]


def test_real_images_load(data_dir: Path) -> None:
    split = SplitConfig(
        images=str(data_dir / "coco128/train2017"),
        annotations=str(data_dir / "coco128/annotations/instances_train2017.json"),
    )
    data = CocoDetection(split, config=DataConfig(), training=False)
    for index in range(0, len(data), 16):
        sample = data.load(index, 0)
        path = data_dir / "coco128/train2017" / data.annotations.file_name(index)
        assert read_image(path).shape[:2] == sample.original_size
        assert min(sample.pixels.shape[:2]) == 800 or max(sample.pixels.shape[:2]) == 1333


def test_images_of_twelve_bits_are_said_in_training(
    document: Document, write_coco: CocoWriter, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((50, 30), 4000, np.uint16))
    path = write_coco(document)
    assert "a.png: 16 bits a channel, of which 12 are used" in open_data(path).notes("training")[-1]
    assert len(open_data(path, training=False).notes("validation")) == 1
    for image in document["images"]:
        image["file_name"] = f"/{image['file_name']}"
    assert "a.png: 16 bits a channel" in open_data(write_coco(document)).notes("training")[-1]
