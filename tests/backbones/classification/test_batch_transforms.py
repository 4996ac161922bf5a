from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backbones.classification.batch_transforms import (
    mixup_cutmix,
    pad_crop_flip,
    random_erase,
    smooth_targets,
)
from tests.reference import classification as reference


def noise(count: int, height: int = 8, width: int = 8) -> Tensor:
    return torch.randint(1, 256, (count, 3, height, width), dtype=torch.uint8)


def one_hot(count: int, num_classes: int = 4) -> Tensor:
    return torch.eye(num_classes)[torch.arange(count) % num_classes]


def mixing_ratios(alpha: float, count: int) -> Tensor:
    """Return mixup's ratios, read from the targets of a batch with one class in each half."""
    x, targets = torch.zeros(count, 3, 1, 1), torch.eye(2).repeat_interleave(count // 2, dim=0)
    _, mixed = mixup_cutmix(x, targets, torch.arange(count), mixup_alpha=alpha, cutmix_alpha=0.0)
    return (mixed * targets).sum(dim=1)


@pytest.mark.parametrize(("crop", "size", "num_places"), [(None, (5, 7), 25), (6, (6, 6), 24)])
def test_crops_and_flips_equal_the_reference_and_all_occur(
    crop: int | None, size: tuple[int, int], num_places: int
) -> None:
    pixels, seeds = noise(1500, 5, 7), torch.arange(1500)
    found = pad_crop_flip(pixels, seeds, pad=2, flip_prob=0.5, crop=crop)
    assert found.dtype == torch.uint8
    assert found.shape == (1500, 3, *size)
    places: Counter[tuple[int, int, bool]] = Counter()
    for image, result in zip(pixels.numpy(), found.numpy(), strict=True):
        cuts = reference.all_crops(image, 2, size)
        places.update(key for key, cut in cuts if np.array_equal(cut, result))
    assert places.total() == 1500
    assert len(places) == 2 * num_places
    assert min(places.values()) > 10


@pytest.mark.parametrize("flip_prob", [0.0, 0.25, 1.0])
def test_flips_occur_with_the_given_probability(flip_prob: float) -> None:
    pixels = noise(2000, 1, 4)
    found = pad_crop_flip(pixels, torch.arange(2000), pad=0, flip_prob=flip_prob)
    is_same, is_mirrored = (
        (found == other).flatten(1).all(dim=1) for other in (pixels, pixels.flip(3))
    )
    assert (is_same | is_mirrored).all()
    assert is_mirrored.float().mean().item() == pytest.approx(flip_prob, abs=0.03)


def test_without_shift_and_flip_pixels_are_unchanged() -> None:
    pixels = noise(3)
    torch.testing.assert_close(pad_crop_flip(pixels, torch.arange(3), pad=0, flip_prob=0.0), pixels)


def test_erased_rectangles_have_the_papers_sizes() -> None:
    x = torch.ones(400, 3, 64, 48)
    holes = (random_erase(x, torch.arange(400), prob=1.0) == 0).numpy()
    areas, aspects = [], []
    for hole in holes:
        assert (hole == hole[0]).all()
        rows, columns = hole[0].any(axis=1).sum(), hole[0].any(axis=0).sum()
        assert hole[0].sum() == rows * columns
        areas.append(rows * columns / (64 * 48))
        aspects.append(rows / columns)
    assert 0.017 < min(areas) < 0.03 < 0.3 < max(areas) < 0.35
    assert np.mean(areas) == pytest.approx(0.175, abs=0.02)
    assert 0.27 < min(aspects) < 0.4 < 2.6 < max(aspects) < 3.7
    assert holes.any(axis=(0, 1, 2)).all()  # every column and every row is reached
    assert holes.any(axis=(0, 1, 3)).all()


@pytest.mark.parametrize("prob", [0.0, 0.3])
def test_erasing_does_not_change_the_other_images(prob: float) -> None:
    x = torch.randn(1000, 3, 8, 8)
    found = random_erase(x, torch.arange(1000), prob=prob)
    is_erased = (found != x).flatten(1).any(dim=1)
    assert is_erased.float().mean().item() == pytest.approx(prob, abs=0.05)
    assert (found[found != x] == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 30)])
def test_erased_rectangle_fits_into_tiny_images(size: tuple[int, int]) -> None:
    found = random_erase(torch.ones(50, 3, *size), torch.arange(50), prob=1.0)
    assert (found == 0).flatten(1).any(dim=1).all()


def test_mixup_blends_each_image_with_one_from_the_other_half() -> None:
    x, targets = torch.randn(6, 3, 4, 5), one_hot(6)
    mixed, mixed_targets = mixup_cutmix(
        x, targets, torch.arange(6), mixup_alpha=1.0, cutmix_alpha=0.0
    )
    for i in range(6):
        share = mixed_targets[i, i % 4]
        assert 0 < share < 1
        torch.testing.assert_close(mixed[i], share * x[i] + (1 - share) * x[i - 3])
        torch.testing.assert_close(
            mixed_targets[i], share * targets[i] + (1 - share) * targets[i - 3]
        )


def test_cutmix_pastes_a_rectangle_from_the_other_half() -> None:
    x, targets = torch.randn(198, 3, 16, 12), one_hot(198)
    mixed, mixed_targets = mixup_cutmix(
        x, targets, torch.arange(198), mixup_alpha=0.0, cutmix_alpha=1.0
    )
    areas = []
    for i in range(198):
        pasted = (mixed[i] == x[i - 99]).all(dim=0)
        torch.testing.assert_close(mixed[i], torch.where(pasted, x[i - 99], x[i]))
        rows, columns = pasted.any(dim=1).sum(), pasted.any(dim=0).sum()
        assert pasted.sum() == rows * columns
        areas.append(pasted.float().mean())
        share = 1 - areas[-1]
        torch.testing.assert_close(
            mixed_targets[i], share * targets[i] + (1 - share) * targets[i - 99]
        )
    # A side with share s of the image has s - s**2 / 4 inside the border on average. This is the
    # mean of its square for uniform s**2.
    assert np.mean(areas) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.07)


def test_with_both_on_half_of_the_images_get_each() -> None:
    x = torch.arange(1000.0)[:, None, None, None].expand(-1, 3, 8, 8)
    mixed, _ = mixup_cutmix(x, one_hot(1000), torch.arange(1000), mixup_alpha=1.0, cutmix_alpha=1.0)
    is_cut = ((mixed == x) | (mixed == x.roll(500, 0))).flatten(1).all(dim=1)
    assert is_cut.float().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.0, 0.0), (0.2, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_targets_keep_their_sum(mixup: float, cutmix: float) -> None:
    x, targets = torch.randn(64, 3, 8, 8), smooth_targets(torch.arange(64) % 5, 5, 0.1)
    mixed, found = mixup_cutmix(
        x, targets, torch.arange(64), mixup_alpha=mixup, cutmix_alpha=cutmix
    )
    assert mixed.shape == x.shape
    torch.testing.assert_close(found.sum(dim=1), torch.ones(64))
    assert (found >= 0).all()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_batch_of_one_image_is_not_mixed(mixup: float, cutmix: float) -> None:
    x, targets, seeds = torch.randn(1, 3, 8, 8), one_hot(1), torch.tensor([5])
    mixed = mixup_cutmix(x, targets, seeds, mixup_alpha=mixup, cutmix_alpha=cutmix)
    torch.testing.assert_close(mixed, (x, targets))


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.2, 0.5, 1.0, 3.0, 50.0])
def test_mixing_ratios_follow_the_beta_distribution(alpha: float) -> None:
    ratios = mixing_ratios(alpha, 20_000).double()
    assert ratios.isfinite().all()
    assert 0 <= ratios.min() <= ratios.max() <= 1
    deviation = (1 / (4 * (2 * alpha + 1))) ** 0.5  # of Beta(alpha, alpha)
    assert ratios.mean().item() == pytest.approx(0.5, abs=0.03 * deviation)
    assert ratios.std().item() == pytest.approx(deviation, rel=0.03)
    theirs = torch.from_numpy(np.random.default_rng(0).beta(alpha, alpha, 20_000))
    for level in torch.linspace(0.01, 0.99, 50):
        below, expected = ((values < level).double().mean().item() for values in (ratios, theirs))
        assert below == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("num_classes", [1, 3, 10])
def test_smooth_targets_equal_torchs(num_classes: int, smoothing: float) -> None:
    logits, labels = torch.randn(6, num_classes), torch.randint(num_classes, (6,))
    found = smooth_targets(labels, num_classes, smoothing)
    torch.testing.assert_close(
        nn.functional.cross_entropy(logits, found),
        nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, labels),
    )
    torch.testing.assert_close(found.sum(dim=1), torch.ones(6))


def augment(pixels: Tensor, labels: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Apply every operation once, in the order of a training step."""
    x = pad_crop_flip(pixels, seeds, pad=4, flip_prob=0.5).float() / 255
    targets = smooth_targets(labels, 5, 0.1)
    x, targets = mixup_cutmix(x, targets, seeds, mixup_alpha=0.2, cutmix_alpha=1.0)
    return random_erase(x, seeds, prob=0.5), targets


def test_augmentation_depends_on_the_seeds() -> None:
    pixels, labels, seeds = noise(8), torch.arange(8) % 5, torch.arange(8)
    first = augment(pixels, labels, seeds)
    torch.testing.assert_close(augment(pixels, labels, seeds), first, rtol=0, atol=0)
    assert not torch.equal(augment(pixels, labels, seeds + 1)[0], first[0])


def test_augmentation_does_not_depend_on_other_images_in_the_batch() -> None:
    pixels, seeds, order = noise(32), torch.arange(32), torch.randperm(32)
    found = pad_crop_flip(pixels, seeds, pad=4, flip_prob=0.5)
    permuted = pad_crop_flip(pixels[order], seeds[order], pad=4, flip_prob=0.5)
    torch.testing.assert_close(permuted, found[order])
    x = pixels.float()
    torch.testing.assert_close(
        random_erase(x[order], seeds[order], prob=0.5), random_erase(x, seeds, prob=0.5)[order]
    )


@pytest.mark.extended
def test_augmentation_compiles_into_one_graph() -> None:
    pixels, labels, seeds = noise(8, 16, 12), torch.arange(8) % 5, torch.arange(8)
    compiled = torch.compile(augment, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(pixels, labels, seeds), augment(pixels, labels, seeds))
