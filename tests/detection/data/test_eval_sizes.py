"""Sizes of images at evaluation, and batches of images at several scales."""

from pathlib import Path

import numpy as np
import pytest
import torch

from detection.config import DataConfig, EvaluationConfig
from detection.data.collate import round_up
from detection.data.eval_sizes import EvalSizes
from detection.data.transforms import resized_size
from detection.tasks.detection import DetectionTask
from engine.loader import evaluation_batches
from tests.detection.tasks.tiny import tiny_task
from tests.reference.images import smooth_image

DATA = DataConfig(eval_short_side=600, eval_max_side=1000)


def sizes_of(*scales: int) -> EvalSizes:
    return EvalSizes.of(DATA, EvaluationConfig(scales=scales))


@pytest.mark.parametrize(
    ("scales", "short_sides", "max_sides", "tested"),
    [
        ((), (600,), (1000,), (0,)),
        ((600,), (600,), (1000,), (0,)),
        ((300,), (300,), (500,), (0,)),
        ((300, 600, 900), (600, 300, 900), (1000, 500, 1500), (1, 0, 2)),
        ((300, 900), (600, 300, 900), (1000, 500, 1500), (1, 2)),
    ],
    ids=str,
)
def test_the_size_of_proposals_comes_first(
    scales: tuple[int, ...],
    short_sides: tuple[int, ...],
    max_sides: tuple[float, ...],
    tested: tuple[int, ...],
) -> None:
    assert sizes_of(*scales) == EvalSizes(short_sides, max_sides, tested)


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (100, 3000), (1, 1), (7, 5000)], ids=str)
def test_each_size_is_that_of_a_config_with_that_scale_alone(size: tuple[int, int]) -> None:
    sizes = sizes_of(200, 400, 600, 800, 1000)
    found = sizes.sizes(size)
    assert found[0] == resized_size(size, 600, 1000)  # as without several scales
    for short_side, each in zip(sizes.short_sides, found, strict=True):
        assert each == sizes_of(short_side).sizes(size)[0]
        assert min(each) <= short_side
    areas = [found[index][0] * found[index][1] for index in sizes.scale_idxs]
    assert areas == sorted(areas)


def test_other_pixels_are_the_image_at_the_other_sizes() -> None:
    image = smooth_image(45, 60)
    sizes = sizes_of(30, 90)
    small, large = sizes.other_pixels(image)
    assert (small.shape, large.shape) == ((30, 40, 3), (90, 120, 3))
    assert np.abs(small.mean((0, 1)) - image.mean((0, 1))).max() < 2
    assert sizes_of(600).other_pixels(image) == ()


def val_task(root: Path, *scales: int) -> DetectionTask:
    values = {"scales": list(scales), "merge": "union"}
    return tiny_task(root, "fpn", evaluation=values)[0]


@pytest.mark.extended
def test_images_of_a_group_have_one_padded_shape_at_each_scale(tmp_path: Path) -> None:
    data = val_task(tmp_path, 48, 96, 200).val_data()
    # the first two are alike at the first scale and not at the last
    sizes = np.array([[90, 120], [90, 115], [120, 90], [90, 121], [45, 60], [90, 123], [90, 126]])
    data.annotations.sizes[:] = sizes
    data._select_rows(np.arange(len(sizes)))
    expected = EvalSizes.of(
        DataConfig(eval_short_side=96, eval_max_side=160),
        EvaluationConfig(scales=(48, 96, 200), merge="union"),
    )
    shapes = {
        tuple(round_up(side, 32) for each in expected.sizes((height, width)) for side in each)
        for height, width in sizes.tolist()
    }
    groups = data.groups.tolist()
    assert len(set(groups)) == len(shapes)
    for batch in evaluation_batches(data.groups, batch_size=4):
        rows = sizes[[key.index for key in batch.sample_keys]]
        found = {
            tuple(round_up(side, 32) for each in expected.sizes((h, w)) for side in each)
            for h, w in rows.tolist()
        }
        assert len(found) == 1


@pytest.mark.extended
def test_batches_hold_every_image_at_every_scale(tmp_path: Path) -> None:
    data = val_task(tmp_path, 48, 96, 200).val_data()
    samples = [data.load(index, 0) for index in range(3)]
    batch = data.collate(samples)
    alone = val_task(tmp_path, 48).val_data()
    small = alone.collate([alone.load(index, 0) for index in range(3)]).images
    assert len(batch.at_all_scales) == 3
    first, second, third = batch.at_all_scales
    assert first is batch.images
    assert torch.equal(second.pixels, small.pixels)
    assert torch.equal(second.sizes, small.sizes)
    for each in (second, third):
        assert torch.equal(each.image_ids, first.image_ids)
        assert torch.equal(each.original_sizes, first.original_sizes)
        assert [side % 32 for side in each.pixels.shape[2:]] == [0, 0]
        assert each.pixels.is_contiguous(memory_format=torch.channels_last)
    assert (third.sizes > first.sizes).all()
    assert val_task(tmp_path, 48, 96).train_data().load(0, 0).other_pixels == ()
