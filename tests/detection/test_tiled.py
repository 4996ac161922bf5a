import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detection.data.coco import ClassMap
from detection.inference.tiles import Tile, join_tiles, tile_grid
from detection.inference.trained import TrainedDetector
from detection.predict import Detector
from detection.structures import Detections
from detection.tiled import TiledDetector
from engine.errors import UserError
from tests.detection.inference.networks import make_config, make_network
from tests.reference.images import smooth_image

REPOSITORY = Path(__file__).resolve().parents[2]
CLASSES = ClassMap(("a", "b", "c"), (1, 2, 3))


def make_detector(task: str = "segmentation") -> Detector:
    config = make_config(task=task)
    return Detector(
        TrainedDetector(config, CLASSES, make_network(config)), device=torch.device("cpu")
    )


def varied(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a smooth image whose parts differ."""
    return np.roll(smooth_image(height, width), seed, axis=2)


def assert_close(one: Detections, other: Detections) -> None:
    """Assert that two are equal, apart from rounding: a batch of another size rounds otherwise."""
    torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(one.scores, other.scores)
    assert one.labels.tolist() == other.labels.tolist()


def assert_equal(one: Detections, other: Detections) -> None:
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert one.masks == other.masks


@pytest.mark.parametrize("batch_size", [1, 3])
def test_images_that_a_tile_holds_are_predicted_as_without_tiles(batch_size: int) -> None:
    images = [varied(60, 80), varied(60, 77, 1), varied(80, 40), varied(60, 80, 2), varied(9, 9)]
    detector = make_detector()
    tiled = TiledDetector(detector, tile=(80, 80), overlap=0.5)
    assert (tiled.class_names, tiled.category_ids) == (detector.class_names, detector.category_ids)
    assert tiled.config is detector.config
    expected = dict(detector.stream(images, batch_size=batch_size))
    found = dict(tiled.stream(images, batch_size=batch_size))
    assert list(found) == list(expected)  # the same batches
    for index, each in expected.items():
        assert len(each) > 3
        assert_equal(found[index], each)


def test_tiles_that_are_images_find_what_the_images_have() -> None:
    parts = [varied(60, 80, seed) for seed in range(3)] + [varied(60, 80)[::-1].copy()]
    image = np.vstack([np.hstack(parts[:2]), np.hstack(parts[2:])])
    detector = make_detector()
    size, tiles = (120, 160), tile_grid((120, 160), (60, 80), overlap=0)
    (whole,), singles = detector.predict([image]), detector.predict(parts)
    (tiled,) = TiledDetector(detector, tile=(60, 80), overlap=0).predict([image])
    tiles = [Tile(0, 0, *size), *tiles]
    assert_close(tiled, join_tiles([whole, *singles], tiles, size, nms_thresh=0.5))
    # without the whole image, nothing but the place of the detections changes
    found = join_tiles([whole.above(2), *singles], tiles, size, nms_thresh=0.5)
    scores = torch.cat([each.scores for each in singles])
    order = scores.sort(descending=True, stable=True).indices
    corners = [torch.tensor([tile.left, tile.top] * 2) for tile in tiles[1:]]
    boxes = [each.boxes + corner for each, corner in zip(singles, corners, strict=True)]
    assert torch.equal(found.scores, scores[order])
    assert torch.equal(found.boxes, torch.cat(boxes)[order])
    masks = []
    for each, (top, left, height, width) in zip(singles, tiles[1:], strict=True):
        for mask in each.masks or ():
            masks.append(np.zeros(size, np.bool_))
            masks[-1][top : top + height, left : left + width] = mask
    assert found.masks is not None
    np.testing.assert_array_equal(list(found.masks), [masks[index] for index in order])


def test_tiles_are_listed_once_and_only_of_images_that_are_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed = []

    def counted(size: tuple[int, int], *args: Any, **options: Any) -> list[Tile]:
        listed.append(size)
        return tile_grid(size, *args, **options)

    monkeypatch.setattr("detection.tiled.tile_grid", counted)
    sizes = [(64, 80), (65, 80), (64, 81), (1, 80), (64, 1), (64, 120)]
    TiledDetector(make_detector("detection"), tile=(64, 80)).predict([varied(*s) for s in sizes])
    assert listed == [(65, 80), (64, 81), (64, 120)]


def test_large_images_and_small_ones_and_bad_ones_together() -> None:
    detector = make_detector()
    lines: list[str] = []
    bad: list[str] = []
    tiled = TiledDetector(detector, tile=(64, 64), overlap=0.25, on_cut=lines.append)
    images: list[Any] = [varied(60, 60), "absent.png", varied(64, 160), varied(120, 64, 1)]
    found = dict(tiled.stream(images, on_bad=bad.append))
    assert sorted(found) == [0, 2, 3]
    assert len(bad) == 1
    assert bad[0].startswith("absent.png: ")
    assert lines == ["image 2: 160 x 64 pixels, 3 tiles", "image 3: 64 x 120 pixels, 3 tiles"]
    for index, each in found.items():
        assert_close(each, tiled.predict([images[index]], batch_size=1)[0])
        assert (each.scores.diff() <= 0).all()
        assert each.masks is not None
        assert each.masks.size == images[index].shape[:2]
        assert (each.boxes[:, 2:] <= torch.tensor(images[index].shape[1::-1])).all()
    assert (found[2].boxes[:, 2] > 100).any()
    assert len(found[2]) > make_config().model.roi.max_detections
    with pytest.raises(UserError, match="absent"):
        tiled.predict(images)


@pytest.mark.parametrize("threads", [0, 2])
def test_after_any_batch_the_images_that_are_left_give_the_same(threads: int) -> None:
    sizes = [(60, 60), (64, 160), (60, 80), (60, 60), (120, 64), (60, 60), (50, 64), (64, 100)]
    images = [varied(*size, seed) for seed, size in enumerate(sizes)]
    tiled = TiledDetector(make_detector(), tile=(64, 80), overlap=0.25)
    batches = list(tiled.batches(images, batch_size=2, keep_pixels=True))
    cut = {index for index, size in enumerate(sizes) if max(size) > 80}
    assert max(map(len, batches)) == 2
    for done in range(len(batches)):
        finished = {result.index for batch in batches[:done] for result in batch}
        left = [index for index in range(len(images)) if index not in finished]
        again = tiled.batches([images[index] for index in left], batch_size=2, threads=threads)
        for batch, expected in zip(again, batches[done:], strict=True):
            assert len(batch) == 1 or cut.isdisjoint(left[result.index] for result in batch)
            for one, other in zip(batch, expected, strict=True):
                assert (left[one.index], one.size, one.pixels) == (other.index, other.size, None)
                assert other.pixels is images[other.index]
                assert one.found is not None
                assert other.found is not None
                assert_equal(one.found, other.found)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tile": (0, 0)}, "tile: expected at least 32 pixels, got 0"),
        ({"tile": (800, 4)}, "tile: expected at least 32 pixels, got 4"),
        ({"tile": 100}, r"tile: expected \(height, width\) in pixels, got 100"),
        ({"tile": (64,)}, r"tile: expected \(height, width\) in pixels, got \(64,\)"),
        ({"tile": (64, 64, 3)}, r"tile: expected \(height, width\) in pixels, got \(64, 64, 3\)"),
        ({"tile": (100.5, 100)}, r"tile: expected \(height, width\) in pixels, got \(100.5, 100\)"),
        ({"tile": "800"}, r"tile: expected \(height, width\) in pixels, got '800'"),
        ({"tile": (80, 80), "overlap": "x"}, "overlap: expected a fraction .* got 'x'"),
        ({"tile": (80, 80), "overlap": np.ones(2)}, "overlap: expected a fraction .* got array"),
        ({"tile": (80, 80), "overlap": 1.0}, "overlap: expected a fraction from 0 to below 1"),
        ({"tile": (80, 80), "overlap": -0.1}, "overlap: expected a fraction .* got -0.1"),
        ({"tile": (80, 80), "overlap": float("nan")}, "overlap: expected a fraction .* got nan"),
    ],
    ids=str,
)
def test_wrong_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TiledDetector(make_detector("detection"), **values)


def test_numbers_may_be_those_of_numpy() -> None:
    image, detector = varied(60, 80), make_detector("detection")
    (expected,) = TiledDetector(detector, tile=(60, 40)).predict([image], batch_size=2)
    tiled = TiledDetector(detector, tile=tuple(np.array([60, 40])))
    ((index, found),) = tiled.stream([image], batch_size=np.int64(2), threads=np.int8(1))  # type: ignore[arg-type]
    assert index == 0
    assert_equal(found, expected)


def test_one_image_is_no_list() -> None:
    tiled = TiledDetector(make_detector("detection"), tile=(80, 80))
    with pytest.raises(UserError, match="expected a list of images"):
        tiled.predict(varied(60, 80))


@pytest.mark.extended
def test_memory_is_bounded_whatever_the_number_of_tiles() -> None:
    """An image of 6,000 x 6,000 pixels is 105,000 kB, which are not counted; 49 or 1,024 tiles."""
    taken = []
    for tile in ("1080", "232"):
        command = [sys.executable, "-m", "tests.detection.large_image", "6000", tile]
        # glibc returns what is freed at once, so that only what is held counts (docs/LOG.md)
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
        outcome = subprocess.run(
            command, check=True, capture_output=True, cwd=REPOSITORY, env=settings
        )
        taken.append(int(outcome.stdout))
    assert max(taken) < 50_000
    assert taken[1] < taken[0] + 10_000  # the tiles themselves have 165,000
