"""Large-scale jitter and copy-paste against the slow references, on files."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from backbones.images import resize_pixels
from detection.config import AugmentConfig, DataConfig, SplitConfig
from detection.data.collate import Sample
from detection.data.dataset import CocoDetection
from detection.data.large_scale_jitter import SquareView, sample_view
from detection.data_config import LargeScaleJitterConfig
from detection.ops.masks import unpack_bits
from detection.structures import DetectionBatch
from engine.errors import SkippedSampleError, UserError
from engine.loader import BatchPart, LoadedBatch, SampleKey, read_batches
from engine.schema import LoaderConfig
from tests.detection.data.square_files import SIZES, document
from tests.reference import augmentation as reference
from tests.reference.images import encoded, smooth_image

CocoWriter = Callable[[dict[str, Any]], Path]

SIDE = 48


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, (name, (height, width)) in enumerate(SIZES.items()):
        pixels = np.roll(smooth_image(height, width), 80 * number, axis=2) // 2 + 40 * number
        cv2.imwrite(str(tmp_path / name), pixels)
    (tmp_path / "coco.json").write_text(json.dumps(document()))
    return tmp_path


def open_squares(folder: Path, *, with_masks: bool = True, **changes: Any) -> CocoDetection:
    jitter = LargeScaleJitterConfig(size=SIDE, scale=changes.pop("scale", (0.1, 2.0)))
    of_data = {
        key: changes.pop(key) for key in ("on_bad_image", "on_bad_box", "crowds") if key in changes
    }
    augment = AugmentConfig(large_scale_jitter=jitter, vertical_flip_prob=0.3, **changes)
    split = SplitConfig(images=str(folder), annotations=str(folder / "coco.json"))
    config = DataConfig(train=split, augment=augment, size_divisor=16, **of_data)
    return CocoDetection(split, config=config, training=True, with_masks=with_masks)


# reference


class Reference:
    """What a data set's sample should be: whole images and masks, with the same random numbers."""

    def __init__(self, data: CocoDetection) -> None:
        self.data = data
        self.augment = data._config.augment

    def load(self, index: int, seed: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Return the pixels, and of each object label, is_crowd, box and mask."""
        first, second = (
            np.random.default_rng(each) for each in np.random.SeedSequence(seed).spawn(2)
        )
        pixels, objects = self.view(index, first)
        first.integers(2**62)
        if second.random() < self.augment.copy_paste_prob:
            partner = (index + int(second.integers(len(self.data)))) % len(self.data)
            other, others = self.view(partner, second)
            shown = [number for number, each in enumerate(others) if each["is_shown"]]
            count = int(second.integers(len(shown) + 1))
            chosen = sorted(second.permutation(shown).tolist()[:count])
            pasted = [others[number] for number in chosen]
            plain = [each for each in objects if not each["is_crowd"]]
            pixels, masks = reference.paste(
                pixels,
                [each["mask"] for each in plain],
                other,
                [each["mask"] for each in pasted],
            )
            for each, mask in zip(plain, masks, strict=True):
                if each["box"] is not None:
                    each["box"] = reference.covered_box(each["box"], each["mask"], mask)
                each["mask"] = mask
            objects += pasted
        return pixels, [each for each in objects if is_left(each["box"])]

    def view(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, list[dict[str, Any]]]:
        found = self.data.annotations
        row = int(self.data._rows[index])
        height, width = found.sizes[row].tolist()
        view = sample_view((height, width), self.augment, rng=rng)
        place = {
            key: value for key, value in asdict(view).items() if key not in ("size", "resized")
        }
        image = resize_pixels(self.data._read(row), view.resized)
        pixels = reference.square(image, **place, pad_value=reference.GREY)
        objects = []
        for number in range(found.offsets[row], found.offsets[row + 1]):
            is_crowd = not found.is_plain()[number]
            mask = self.whole_mask(int(found.rows_in_file[number]), view)
            mask = reference.square(mask & (not is_crowd), **place, pad_value=0)
            box = reference.clipped_box(
                found.boxes[number].tolist(), size=view.size, resized=view.resized, **place
            )
            objects.append(
                {
                    "label": int(found.labels[number]),
                    "is_crowd": is_crowd,
                    "is_shown": is_left(box) and not is_crowd,
                    "box": box if is_crowd else reference.fitted_box(box, mask),
                    "mask": mask,
                }
            )
        return pixels, objects

    def whole_mask(self, row_in_file: int, view: SquareView) -> np.ndarray:
        """Return (H, W) bool of the whole resized image."""
        value = document()["annotations"][row_in_file]["segmentation"]
        if isinstance(value, dict):
            mask = coco_mask.decode(value) * np.uint8(255)
            shrinks = view.resized[0] < view.size[0]
            method = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST_EXACT
            resized = cv2.resize(mask, view.resized[::-1], interpolation=method)
            return np.asarray(resized > 127)
        scale = np.array([view.resized[1] / view.size[1], view.resized[0] / view.size[0]])
        parts = [
            (np.float32(part).reshape(-1, 2) * scale).ravel().tolist()
            for part in value  # in float32, as a training set stores them
        ]
        drawn = coco_mask.decode(coco_mask.frPyObjects(parts, *view.resized))
        return np.asarray(drawn.any(axis=2))


def is_left(box: Sequence[float] | None) -> bool:
    return box is not None and min(box[2] - box[0], box[3] - box[1]) >= 0.01


def check_same(sample: Sample, pixels: np.ndarray, objects: list[dict[str, Any]]) -> None:
    difference = np.abs(sample.pixels.astype(int) - pixels)
    assert difference.max() <= 1
    assert sample.labels.tolist() == [each["label"] for each in objects]
    assert sample.is_crowd.tolist() == [each["is_crowd"] for each in objects]
    expected = np.array([each["box"] for each in objects], np.float32).reshape(-1, 4)
    np.testing.assert_allclose(sample.boxes, expected, rtol=0, atol=1e-4)
    if sample.masks is not None:
        expected_masks = [each["mask"] for each in objects]
        np.testing.assert_array_equal(sample.masks, np.reshape(expected_masks, sample.masks.shape))


SCALES = {"small": (0.1, 0.9), "large": (1.0, 2.0), "all": (0.1, 2.0), "as it is": (1.0, 1.0)}


@pytest.mark.parametrize("copy_paste_prob", [0.0, 0.8], ids=["jitter", "pasted"])
@pytest.mark.parametrize("scale", SCALES)
def test_samples_are_those_of_the_reference(
    folder: Path, scale: str, copy_paste_prob: float
) -> None:
    data = open_squares(folder, scale=SCALES[scale], copy_paste_prob=copy_paste_prob)
    expected = Reference(data)
    for seed in range(5):
        for index in range(len(data)):
            check_same(data.load(index, seed), *expected.load(index, seed))


def test_a_detector_reads_masks_for_pasting_alone(folder: Path) -> None:
    """The same boxes and pixels as with masks, which the batch does not carry."""
    with_masks = open_squares(folder, copy_paste_prob=0.8)
    data = open_squares(folder, copy_paste_prob=0.8, with_masks=False)
    for seed in range(6):
        sample, expected = data.load(1, seed), with_masks.load(1, seed)
        assert sample.masks is None
        np.testing.assert_array_equal(sample.boxes, expected.boxes)
        np.testing.assert_array_equal(sample.pixels, expected.pixels)
    assert data.collate([data.load(1, 0)]).targets.masks is None


def test_without_masks_boxes_are_clipped(folder: Path) -> None:
    data = open_squares(folder, with_masks=False)
    augment = data._config.augment
    num_dropped = 0
    for seed in range(20):
        (rng,) = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(1))
        view = sample_view(SIZES["objects.png"], augment, rng=rng)
        place = {
            key: value for key, value in asdict(view).items() if key not in ("size", "resized")
        }
        found = data.annotations
        boxes = [
            reference.clipped_box(box, size=view.size, resized=view.resized, **place)
            for box in found.boxes[found.objects_of(0)].tolist()
        ]
        expected = [box for box in boxes if is_left(box)]
        num_dropped += len(boxes) - len(expected)
        sample = data.load(0, seed)
        np.testing.assert_allclose(sample.boxes, np.reshape(expected, (-1, 4)), rtol=0, atol=1e-4)
    assert num_dropped > 0


def test_dropped_crowds_change_nothing_else(folder: Path) -> None:
    kept, dropped = open_squares(folder), open_squares(folder, crowds="drop")
    num_dropped = 0
    for index, seed in product(range(len(kept)), range(5)):
        one, other = kept.load(index, seed), dropped.load(index, seed)
        assert one.masks is not None and other.masks is not None  # noqa: PT018
        num_dropped += len(one.labels) - len(other.labels)
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.boxes[~one.is_crowd], other.boxes[~other.is_crowd])
        np.testing.assert_array_equal(one.masks[~one.is_crowd], other.masks[~other.is_crowd])
    assert num_dropped > 0


def test_all_of_it_happens(folder: Path) -> None:
    """The cases that the comparison with the reference should contain do occur in it."""
    data = open_squares(folder, copy_paste_prob=1.0)
    counts = {index: {len(data.load(index, seed).labels) for seed in range(25)} for index in (0, 2)}
    assert min(counts[0]) < 5 < max(counts[0])  # some lost, some pasted
    assert min(counts[2]) == 0  # nothing chosen, or an empty partner
    assert max(counts[2]) >= 2
    grey = [(data.load(0, seed).pixels == reference.GREY).all(axis=2).mean() for seed in range(25)]
    assert min(grey) < 0.02
    assert max(grey) > 0.5


# properties


def check_box(box: np.ndarray, mask: np.ndarray) -> None:
    """Check that a box has a size and exceeds its mask by at most a pixel."""
    y, x = np.nonzero(mask)
    assert (box[2:] > box[:2]).all()
    assert (box[:2] >= [x.min() - 1, y.min() - 1]).all()
    assert (box[2:] <= [x.max() + 2, y.max() + 2]).all()


def test_batches_are_squares_of_one_size(folder: Path) -> None:
    data = open_squares(folder, copy_paste_prob=0.5)
    assert (data.groups == 0).all()
    keys = [(index, seed) for seed in range(3) for index in range(3)]
    shape = data.batch_shape(keys)
    batch = data.collate([data.load(*key, shape) for key in keys], shape)
    assert batch.images.pixels.shape == (9, 3, SIDE, SIDE)
    assert (batch.images.sizes == SIDE).all()
    assert batch.images.original_sizes[:3].tolist() == [list(size) for size in SIZES.values()]
    assert batch.targets.masks is not None
    masks = unpack_bits(batch.targets.masks, width=SIDE).bool().numpy()
    targets = batch.targets
    is_plain = (targets.valid & ~targets.is_crowd).numpy()
    for mask, box in zip(masks[is_plain], targets.boxes.numpy()[is_plain], strict=True):
        check_box(box, mask)


def test_a_transform_keeps_its_numbers_when_another_is_switched_off(folder: Path) -> None:
    """Where nothing is pasted, the sample is that without copy-paste; colours move nothing."""
    plain, pasted = open_squares(folder), open_squares(folder, copy_paste_prob=0.5)
    colored = open_squares(folder, copy_paste_prob=0.5, color_jitter=0.3)
    num_equal = 0
    for seed in range(12):
        one, other, third = (data.load(1, seed) for data in (plain, pasted, colored))
        num_equal += int((one.pixels == other.pixels).all())
        np.testing.assert_array_equal(other.boxes, third.boxes)
        np.testing.assert_array_equal(other.masks, third.masks)
        content = (other.pixels != reference.GREY).any(axis=2)
        assert (third.pixels[content] != other.pixels[content]).any()
        # the padding stays grey; other pixels are grey by chance
        assert (third.pixels[~content] == reference.GREY).sum() >= 2.7 * (~content).sum()
    assert 2 < num_equal < 12


@pytest.mark.extended
def test_workers_do_not_change_samples(folder: Path) -> None:
    parts = [BatchPart([SampleKey(i, 100 * seed + i) for i in range(3)]) for seed in range(4)]
    without, with_workers = (
        read(open_squares(folder, copy_paste_prob=0.5), parts, workers=workers)
        for workers in (0, 2)
    )
    for one, other in zip(without, with_workers, strict=True):
        assert isinstance(one.batch, DetectionBatch)
        assert isinstance(other.batch, DetectionBatch)
        torch.testing.assert_close(one.batch.images.pixels, other.batch.images.pixels)
        torch.testing.assert_close(one.batch.targets.masks, other.batch.targets.masks)


def read(data: CocoDetection, parts: list[BatchPart], *, workers: int = 0) -> list[LoadedBatch]:
    config = LoaderConfig(workers=workers)
    device = torch.device("cpu")
    return list(read_batches(data, parts, config=config, device=device, substitute=True))


# bad inputs


def test_a_bad_second_image_follows_the_policy(folder: Path) -> None:
    image = folder / "others.png"
    image.write_bytes(image.read_bytes()[:-30])
    data = open_squares(folder, copy_paste_prob=1.0, on_bad_image="skip")
    seeds = []
    for seed in range(40):
        try:
            data.load(0, seed)
        except SkippedSampleError:
            seeds.append(seed)
    assert 3 < len(seeds) < 20  # a third has this second image; not all paste one of its objects
    with pytest.raises(UserError, match=r"others\.png.*on_bad_image=skip skips it"):
        open_squares(folder, copy_paste_prob=1.0).load(0, seeds[0])
    # The sample is replaced: by image 1, which is bad itself, then by image 2 with another partner.
    for loaded in read(data, [BatchPart([SampleKey(0, seed)]) for seed in seeds]):
        assert isinstance(loaded.batch, DetectionBatch)
        assert loaded.batch.image_ids.tolist() == [3]
        assert len(loaded.skipped) == 2
        assert all("others.png" in reason for reason in loaded.skipped)


def test_an_object_without_a_mask_cannot_be_pasted(folder: Path) -> None:
    content = document()
    for each in content["annotations"][:2]:
        del each["segmentation"]
    del content["annotations"][4]["segmentation"]  # a crowd region is never pasted
    (folder / "coco.json").write_text(json.dumps(content))
    open_squares(folder, with_masks=False)
    with pytest.raises(UserError, match=r"coco\.json: annotation 0 .* segmentation"):
        open_squares(folder, with_masks=False, copy_paste_prob=0.1)
    data = open_squares(folder, with_masks=False, copy_paste_prob=0.1, on_bad_box="skip")
    assert len(data.annotations.labels) == len(document()["annotations"]) - 2


@pytest.mark.parametrize("size", [(40, 57), (80, 112)], ids=str)
def test_another_size_than_annotated_is_noticed_in_reduced_files(
    folder: Path, size: tuple[int, int]
) -> None:
    content = document()
    content["images"][0]["file_name"] = "objects.jpg"
    (folder / "coco.json").write_text(json.dumps(content))
    (folder / "objects.jpg").write_bytes(encoded(smooth_image(*size)))
    data = open_squares(folder, scale=(0.1, 0.1))
    with pytest.raises(UserError, match=r"objects\.jpg: expected 56x40 \(width x height\) as"):
        data.load(0, 0)
    (folder / "objects.jpg").write_bytes(encoded(smooth_image(40, 56)))
    assert data.load(0, 0).pixels.shape == (SIDE, SIDE, 3)


def test_real_images_are_consistent(data_dir: Path) -> None:
    split = SplitConfig(
        images=str(data_dir / "coco128/train2017"),
        annotations=str(data_dir / "coco128/annotations/instances_train2017.json"),
    )
    jitter = LargeScaleJitterConfig(size=256)
    augment = AugmentConfig(large_scale_jitter=jitter, copy_paste_prob=0.7)
    config = DataConfig(train=split, augment=augment)
    data = CocoDetection(split, config=config, training=True, with_masks=True)
    for index in range(0, len(data), 8):
        sample = data.load(index, index)
        assert sample.pixels.shape == (256, 256, 3)
        assert sample.masks is not None
        for mask, box, is_crowd in zip(sample.masks, sample.boxes, sample.is_crowd, strict=True):
            if is_crowd:
                assert not mask.any()
            else:
                check_box(box, mask)
