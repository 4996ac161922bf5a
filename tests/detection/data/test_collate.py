import numpy as np
import pytest
import torch

from detection.data.collate import Sample, collate_detection, round_up


def make_sample(height: int, width: int, count: int, *, image_id: int = 1) -> Sample:
    rng = np.random.default_rng(image_id)
    return Sample(
        pixels=rng.integers(1, 256, size=(height, width, 3), dtype=np.uint8),
        boxes=rng.uniform(0, 9, size=(count, 4)).astype(np.float32),
        labels=rng.integers(5, size=count),
        is_crowd=rng.random(count) < 0.5,
        original_size=(2 * height, 2 * width),
        image_id=image_id,
        seed=100 + image_id,
    )


def test_samples_are_padded_right_and_bottom() -> None:
    samples = [make_sample(20, 33, 3, image_id=1), make_sample(40, 10, 9, image_id=2)]
    batch = collate_detection(samples, size_divisor=16)
    assert len(batch) == 2
    assert batch.images.pixels.shape == (2, 3, 48, 48)
    assert batch.images.sizes.tolist() == [[20, 33], [40, 10]]
    assert batch.images.original_sizes.tolist() == [[40, 66], [80, 20]]
    assert batch.image_ids.tolist() == [1, 2]
    assert batch.images.seeds.tolist() == [101, 102]
    assert batch.targets.boxes.shape == (2, 16, 4)
    for i, sample in enumerate(samples):
        height, width = sample.pixels.shape[:2]
        pixels = batch.images.pixels[i]
        own = torch.from_numpy(sample.pixels).permute(2, 0, 1)
        torch.testing.assert_close(pixels[:, :height, :width], own)
        assert pixels.sum() == own.sum()
        count = len(sample.labels)
        targets = batch.targets
        assert targets.valid[i].tolist() == [True] * count + [False] * (16 - count)
        torch.testing.assert_close(targets.boxes[i, :count], torch.from_numpy(sample.boxes))
        torch.testing.assert_close(targets.labels[i, :count], torch.from_numpy(sample.labels))
        torch.testing.assert_close(targets.is_crowd[i, :count], torch.from_numpy(sample.is_crowd))
        assert not targets.boxes[i, count:].any()
        assert not targets.labels[i, count:].any()
        assert not targets.is_crowd[i, count:].any()


@pytest.mark.parametrize(
    ("counts", "multiple", "expected"),
    [([0], 8, 8), ([0, 0], 1, 1), ([8], 8, 8), ([9, 2], 8, 16), ([5], 3, 6)],
    ids=str,
)
def test_ground_truth_is_rounded_up(counts: list[int], multiple: int, expected: int) -> None:
    samples = [make_sample(8, 8, count) for count in counts]
    batch = collate_detection(samples, size_divisor=8, gt_multiple=multiple)
    assert batch.targets.valid.shape == (len(counts), expected)
    assert batch.targets.valid.sum() == sum(counts)


@pytest.mark.parametrize(
    ("batch_shape", "expected"), [((1, 1), (24, 40)), ((60, 8), (64, 40))], ids=str
)
def test_a_batch_shape_widens_the_batch(
    batch_shape: tuple[int, int], expected: tuple[int, int]
) -> None:
    batch = collate_detection([make_sample(20, 33, 1)], size_divisor=8, batch_shape=batch_shape)
    assert batch.images.pixels.shape[2:] == expected
    assert batch.images.sizes.tolist() == [[20, 33]]


def test_pixels_lie_channels_last() -> None:
    pixels = collate_detection([make_sample(8, 8, 1)] * 2, size_divisor=8).images.pixels
    assert pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("length", "expected"), [(1, 32), (32, 32), (33, 64)], ids=str)
def test_round_up(length: int, expected: int) -> None:
    assert round_up(length, 32) == expected
