"""Near copies of images: those of all pairs, whatever the buckets."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection.data.image_content import Facts, read_facts
from detection.datasets.check import near_copies as module
from detection.datasets.check.near_copies import near_copies, thumbnails_of
from tests.detection.datasets.check.checking import QUIET


def thumbnails(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return smooth images, some of which are near others, and some just too far."""
    x, y = np.meshgrid(np.linspace(-1, 1, 32), np.linspace(-1, 1, 32))
    waves = [np.ones_like(x), x, y, x * y, np.sin(5 * x), np.cos(7 * y), np.sin(9 * x * y)]
    weights = rng.normal(0, [30, 20, 20, 20, 20, 20, 20], size=(count // 6, 7)).repeat(6, axis=0)
    smooth = np.tensordot(weights + rng.normal(0, 0.9, size=weights.shape), np.array(waves), 1)
    noisy = 128 + smooth + rng.normal(0, 1, size=smooth.shape)
    noisy[::11, 3, 3] += 40  # a small object of another brightness
    noisy[::13] = 100 + rng.normal(0, 1, size=noisy[::13].shape)  # without contrast
    return noisy.clip(0, 255).astype(np.uint8).reshape(len(noisy), -1)


def places_near(query: np.ndarray, images: np.ndarray) -> set[int]:
    difference = np.abs(query.astype(np.float64) - images)
    most = min(module.MOST_MEAN, module.MOST_SHARE * float(query.std()))
    near = (difference.mean(axis=1) <= most) & (difference.max(axis=1) <= module.MOST_CELL)
    return set(np.flatnonzero(near).tolist())


def test_copies_are_those_of_all_pairs() -> None:
    images = thumbnails(np.random.default_rng(0), 180)
    found, skipped = near_copies(images, images, limits=np.arange(180))
    expected = [places_near(images[at], images[:at]) for at in range(180)]
    assert 30 < sum(map(bool, expected)) < 150
    assert skipped == 0
    for place, near in zip(found.tolist(), expected, strict=True):
        assert place in near if near else place == -1


def test_copies_in_other_images() -> None:
    images = thumbnails(np.random.default_rng(1), 180)
    found, _ = near_copies(images[::2], images[1::2], limits=np.full(90, 90))
    for query, place in zip(images[::2], found.tolist(), strict=True):
        near = places_near(query, images[1::2])
        assert place in near if near else place == -1


def test_none_and_one() -> None:
    none = np.zeros((0, 1024), np.uint8)
    one = thumbnails(np.random.default_rng(2), 6)[1:2]
    assert near_copies(none, none, limits=np.arange(0))[0].shape == (0,)
    assert near_copies(one, none, limits=np.zeros(1, np.int64))[0].tolist() == [-1]
    assert near_copies(one, one, limits=np.arange(1))[0].tolist() == [-1]
    assert near_copies(one, one, limits=np.ones(1, np.int64))[0].tolist() == [0]


def test_what_is_not_compared_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TRIED", 3)
    rng = np.random.default_rng(3)
    images = thumbnails(rng, 6)[1:2].repeat(9, axis=0)
    for place, image in enumerate(images):  # one scene with an object elsewhere
        image[100 * place : 100 * place + 2] += np.array([30, -30], np.int8).view(np.uint8)
    found, skipped = near_copies(images, images, limits=np.arange(9))
    assert found.tolist() == [-1] * 9
    assert skipped == 5


def saved_again(path: Path, number: int) -> bytes:
    """Return a JPEG of quality 50 to 95, half of them of 0.5 to 1.1 times the size."""
    file = io.BytesIO()
    image = Image.open(path).convert("RGB")
    if number % 2:
        scale = (0.5, 0.7, 0.9, 1.1)[number // 2 % 4]
        image = image.resize((round(image.width * scale), round(image.height * scale)))
    image.save(file, "JPEG", quality=50 + number % 46)
    return file.getvalue()


@pytest.mark.extended
@pytest.mark.parametrize("folder", ["coco128/train2017", "bccd/images"])
def test_copies_of_real_images_are_found_and_no_others(
    data_dir: Path, tmp_path: Path, folder: str
) -> None:
    names = sorted(path.name for path in (data_dir / folder).iterdir())
    facts: Facts = read_facts(data_dir / folder, names, workers=0, log=QUIET)
    images = thumbnails_of([*facts.values()])
    assert (near_copies(images, images, limits=np.arange(len(images)))[0] == -1).all()
    different = [
        float(np.abs(first.astype(int) - second).mean())
        for first, second in itertools.combinations(images, 2)
    ]
    assert sorted(different)[0] > 1.5 * module.MOST_MEAN
    assert sorted(different)[1] > 5 * module.MOST_MEAN

    chosen = np.random.default_rng(0).choice(len(names), size=50, replace=False).tolist()
    for number, place in enumerate(chosen):
        content = saved_again(data_dir / folder / names[place], number)
        (tmp_path / f"{number}.jpg").write_bytes(content)
    copies = read_facts(tmp_path, [f"{at}.jpg" for at in range(50)], workers=0, log=QUIET)
    queries = thumbnails_of([*copies.values()])
    assert near_copies(queries, images, limits=np.full(50, len(images)))[0].tolist() == chosen
    assert np.abs(queries - images[chosen].astype(int)).mean(axis=1).max() < 0.6 * module.MOST_MEAN
