import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from pydantic import ValidationError

from backbones.classification.config import AugmentConfig, EvaluationConfig
from backbones.classification.operations import (
    OPERATIONS,
    RandomOperations,
    apply_operation,
    operation_ranges,
)
from backbones.classification.transforms import (
    CropWindow,
    EvaluationTransform,
    TrainingTransform,
    augment,
    crop_and_resize,
    largest_reduction,
    sample_area_crop,
    sample_color_shift,
    sample_resized_crop,
    shift_colors,
    size_for_short_side,
)
from backbones.images import BadImageError, decode, resize_pixels
from tests.backbones.classification.tiny import operate
from tests.reference.images import smooth_image

PATH = Path("a.jpg")
SIZES = [(48, 64), (64, 48), (48, 48), (300, 20), (1, 1), (7, 500)]


def jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return file.getvalue()


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def bounds(window: CropWindow) -> tuple[float, float, float, float]:
    """Return top, left, bottom, right."""
    bottom, right = window.top + window.height, window.left + window.width
    return window.top, window.left, bottom, right


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_shorter_side_is_exact(size: tuple[int, int]) -> None:
    for short_side in (1, 7, 224, 255, 257):
        resized = size_for_short_side(size, short_side)
        assert min(resized) == short_side
        assert abs(max(resized) - max(size) * short_side / min(size)) <= 0.5


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_resized_crop_is_a_crop_of_the_resized_image(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    short_sides, seen = set(), []
    for _ in range(300):
        window = sample_resized_crop(size, rng, short_sides=(20, 24), crop=20)
        top, left, bottom, right = bounds(window)
        assert top >= 0
        assert left >= 0
        assert bottom <= size[0] + 1e-9
        assert right <= size[1] + 1e-9
        shorter = window.height if size[0] <= size[1] else window.width
        short_sides.add(round(20 * min(size) / shorter))
        seen.append((top / size[0], bottom / size[0], left / size[1], right / size[1]))
    assert short_sides == {20, 21, 22, 23, 24}
    low, high = np.min(seen, axis=0), np.max(seen, axis=0)
    assert low[[0, 2]].max() < 0.01  # every border is reached
    assert high[[1, 3]].min() > 0.99


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_area_crop_is_inside_and_in_range(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        window = sample_area_crop(size, rng, area=(0.2, 0.6), aspect=(0.5, 2.0))
        height, width = int(window.height), int(window.width)
        top, left, bottom, right = bounds(window)
        assert 0 <= top < bottom <= size[0]
        assert 0 <= left < right <= size[1]
        # The area may be below the range only if ten samples did not fit, so in long images.
        slack = (height + width + 1) / (size[0] * size[1])
        assert height * width / (size[0] * size[1]) <= 0.6 + slack
        if max(size) < 2 * min(size):
            assert height * width / (size[0] * size[1]) >= 0.2 - slack
        assert (width - 0.51) / (height + 0.51) <= 2.0
        assert (width + 0.51) / (height - 0.51) >= 0.5


def test_area_and_aspect_have_the_stated_distributions() -> None:
    rng = np.random.default_rng(0)
    windows = [
        sample_area_crop((1000, 1000), rng, area=(0.1, 0.4), aspect=(0.5, 2.0)) for _ in range(2000)
    ]
    areas = np.array([window.height * window.width for window in windows]) / 1e6
    shapes = np.log2([window.width / window.height for window in windows])
    for values, low, high in ((areas, 0.1, 0.4), (shapes, -1, 1)):
        counts = np.histogram(values, bins=5, range=(low - 0.01, high + 0.01))[0]
        assert counts.min() > 300  # 400 each if uniform


@pytest.mark.parametrize(
    ("size", "expected"),
    [((10, 1000), (10, 20)), ((1000, 10), (20, 10)), ((50, 60), (50, 60))],
    ids=str,
)
def test_area_crop_that_never_fits_is_the_centre(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    area = (1.0, 1.0) if size != (50, 60) else (0.0, 0.0)
    window = sample_area_crop(size, np.random.default_rng(0), area=area, aspect=(0.5, 2.0))
    assert (window.height, window.width) == expected
    middle = ((size[0] - expected[0]) // 2, (size[1] - expected[1]) // 2)
    assert (window.top, window.left) == middle


@pytest.mark.parametrize("crop", [8, 20, 47])
def test_crop_equals_the_crop_of_the_resized_image(crop: int) -> None:
    image = smooth_image(96, 128)
    rng = np.random.default_rng(crop)
    for short_side, tolerance in ((48, 0), (96, 0), (64, 9), (120, 9)):
        size = size_for_short_side((96, 128), short_side)
        whole = resize_pixels(image, size)
        top, left = (int(rng.integers(side - crop + 1)) for side in size)
        down, across = 96 / size[0], 128 / size[1]
        window = CropWindow(top * down, left * across, crop * down, crop * across)
        expected = whole[top : top + crop, left : left + crop].astype(int)
        difference = np.abs(crop_and_resize(image, window, crop) - expected)
        assert difference.max() <= tolerance  # the window's edges lie between pixels


def test_reduced_decoding_leaves_enough_pixels() -> None:
    rng = np.random.default_rng(0)
    chosen: Counter[int] = Counter()
    for _ in range(500):
        height, width = (int(side) for side in rng.integers(1, 700, size=2))
        window = sample_area_crop((height, width), rng, area=(0.08, 1.0), aspect=(0.75, 1.33))
        factor = largest_reduction(window, 40)
        chosen[factor] += 1
        if factor > 1:
            assert min(window.height, window.width) / factor >= 40
        if factor < 8:
            assert min(window.height, window.width) / (2 * factor) < 40
    assert set(chosen) == {1, 2, 4, 8}


def test_reduced_and_full_decoding_agree() -> None:
    image = smooth_image(330, 403)
    data = jpeg(image)
    rng = np.random.default_rng(0)
    for aligned in (True, False):
        for _ in range(10):
            window = sample_resized_crop((330, 403), rng, short_sides=(40, 80), crop=40)
            if aligned:
                window = CropWindow(8 * (window.top // 8), 8 * (window.left // 8), 160, 160)
            factor = largest_reduction(window, 40)
            assert factor == 4 if aligned else factor in (4, 8)
            reduced = crop_and_resize(
                decode(data, PATH, reduction=factor), window, 40, reduction=factor
            )
            difference = np.abs(reduced.astype(int) - crop_and_resize(image, window, 40))
            # if not aligned, edges are rounded by up to half a reduced pixel, and the colours of
            # this image change by about 25 per reduced pixel
            assert difference.max() < (6 if aligned else 16)


def test_colour_noise_follows_the_formula() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(9, 7, 3), dtype=np.uint8)
    shift = sample_color_shift(np.random.default_rng(5), 0.1)
    alphas = np.random.default_rng(5).normal(0, 0.1, size=3)
    variances = [0.2175, 0.0188, 0.0045]
    axes = [  # one principal axis per row
        [-0.5675, -0.5808, -0.5836],
        [0.7192, -0.0045, -0.6948],
        [0.4009, -0.8140, 0.4203],
    ]
    expected_shift = np.zeros(3)
    for alpha, variance, axis in zip(alphas, variances, axes, strict=True):
        expected_shift += 255 * alpha * variance * np.array(axis)
    torch.testing.assert_close(shift, expected_shift)
    for scale in (1, 20):  # the second one clips
        expected = np.clip(np.rint(pixels + scale * shift), 0, 255).astype(np.uint8)
        torch.testing.assert_close(shift_colors(pixels, scale * shift), expected)


def test_principal_axes_are_orthonormal() -> None:
    shifts = [sample_color_shift(np.random.default_rng(seed), 0.1) for seed in range(4000)]
    variances = np.linalg.eigvalsh(np.cov(np.transpose(shifts) / 25.5))
    expected = np.array([0.0045, 0.0188, 0.2175]) ** 2
    torch.testing.assert_close(variances, expected, rtol=0.1, atol=0)


@pytest.mark.parametrize("kind", ["trivial", "randaugment"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_changes_an_image(name: str, kind: str) -> None:
    image = smooth_image() // 2 + 40  # not the full range, for autocontrast
    ranges = operation_ranges(kind, side=48)
    for strength in (1.0, -1.0):
        changed = operate(image, name, ranges, strength=strength)
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8
        assert (changed != image).any() == (name != "identity")
        again = operate(image, name, ranges, strength=strength)
        torch.testing.assert_close(again, changed, rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if OPERATIONS[name][0] != "nothing"])
def test_strength_zero_changes_nothing(name: str) -> None:
    image = smooth_image().clip(0, 254)  # solarize starts at 255
    changed = operate(image, name, operation_ranges("trivial", side=48), strength=0.0)
    torch.testing.assert_close(changed, image, rtol=0, atol=0)


@pytest.mark.parametrize("strength", [-1.0, -0.4, 0.3, 1.0])
@pytest.mark.parametrize(
    ("name", "enhancer"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("saturation", ImageEnhance.Color),
        ("contrast", ImageEnhance.Contrast),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
def test_colour_operations_equal_pillows(name: str, enhancer: Any, strength: float) -> None:
    image = smooth_image()
    changed = operate(image, name, operation_ranges("trivial", side=48), strength=strength)
    expected = np.asarray(enhancer(Image.fromarray(image)).enhance(1 + 0.99 * strength))
    inside = (slice(1, -1), slice(1, -1))  # Pillow does not sharpen the border
    assert np.abs(changed[inside].astype(int) - expected[inside]).max() <= 2


def test_posterize_and_solarize_equal_pillows() -> None:
    image = smooth_image()
    pillows = Image.fromarray(image)
    for kind, bits in (("trivial", 2), ("randaugment", 4)):
        changed = operate(image, "posterize", operation_ranges(kind, side=48), strength=-1.0)
        torch.testing.assert_close(changed, np.array(ImageOps.posterize(pillows, bits)))
    changed = operate(image, "solarize", operation_ranges("trivial", side=48), strength=0.5)
    torch.testing.assert_close(changed, np.array(ImageOps.solarize(pillows, 128)))


@pytest.mark.parametrize("sign", [1, -1])
def test_geometric_operations_move_in_the_right_direction(sign: int) -> None:
    line = np.zeros((101, 101, 3), np.uint8)
    line[:, 50] = 255
    trivial, randaugment = (
        operation_ranges("trivial", side=101),
        operation_ranges("randaugment", side=101),
    )
    moved = operate(line, "translate_x", trivial, strength=sign)
    assert moved[3].max(axis=1).argmax() == 50 + sign * 32
    moved = operate(line, "translate_x", randaugment, strength=sign * 0.5)
    assert moved[3].max(axis=1).argmax() == 50 + sign * 22  # 0.5 * 150 / 331 * 101
    turned = operate(line.transpose(1, 0, 2), "translate_y", trivial, strength=sign)
    assert turned[:, 3].max(axis=1).argmax() == 50 + sign * 32
    sheared = operate(line, "shear_x", randaugment, strength=sign)
    offsets = [sheared[row].max(axis=1).argmax() - 50 for row in (10, 50, 90)]
    assert offsets[1] == 0
    assert abs(offsets[0]) == abs(offsets[2]) == 12  # 0.3 * 40
    assert offsets[0] == -offsets[2]
    tilted = operate(line, "rotate", randaugment, strength=sign)
    assert abs(tilted[30].max(axis=1).argmax() - 50) == 12  # tan(30 degrees) * 20


def test_operations_have_equal_probability() -> None:
    image = smooth_image() // 2 + 40
    ranges = operation_ranges("randaugment", side=48)
    by_result = {
        operate(image, name, ranges, strength=sign * 0.5).tobytes(): name
        for name in OPERATIONS
        for sign in (1, -1)
    }
    assert len(by_result) == 9 * 2 + 5  # nine operations have two directions
    auto = RandomOperations(ranges, num_ops=1, strength=0.5)
    rng = np.random.default_rng(0)
    drawn = [operation for _ in range(1400) for operation in auto.sample(rng)]
    counts = Counter(by_result[apply_operation(image, each).tobytes()] for each in drawn)
    assert set(counts) == set(OPERATIONS)
    assert min(counts.values()) > 60  # 100 each if uniform


def make_transform(**changes: Any) -> TrainingTransform:
    return TrainingTransform(AugmentConfig(**{"crop": 32, "pca_std": 0.1, **changes}))


AUGMENTATIONS: list[dict[str, Any]] = [
    {},
    {"short_sides": (32, 60)},
    {"auto": "trivial"},
    {"auto": "randaugment", "auto_ops": 3, "auto_magnitude": 0.9},
]


@pytest.mark.parametrize("encode", [jpeg, png])
@pytest.mark.parametrize("changes", AUGMENTATIONS, ids=str)
def test_one_seed_always_gives_the_same_image(changes: dict[str, Any], encode: Any) -> None:
    data = encode(smooth_image(150, 200))
    transform = make_transform(**changes)
    first = [augment(*transform.crop(data, PATH, seed=seed)) for seed in range(10)]
    # another object, used in another order, as in another worker process
    other = make_transform(**changes)
    for seed in reversed(range(10)):
        again = augment(*other.crop(data, PATH, seed=seed))
        assert again.shape == (32, 32, 3)
        assert again.dtype == np.uint8
        torch.testing.assert_close(again, first[seed], rtol=0, atol=0)
    assert len({image.tobytes() for image in first}) == 10


def test_flip_is_random() -> None:
    image = smooth_image()
    for prob in (0.0, 0.25, 1.0):
        transform = make_transform(flip_prob=prob, pca_std=0.0)
        choices = [transform.sample((48, 48), seed=seed) for seed in range(200)]
        changed = [augment(image, each) for each in choices]
        flipped = [np.array_equal(each, image[:, ::-1]) for each in changed]
        plain = [np.array_equal(each, image) for each in changed]
        assert all(a != b for a, b in zip(flipped, plain, strict=True))
        assert abs(sum(flipped) - 200 * prob) < 25


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (31, 33)], ids=str)
def test_tiny_images_are_enlarged(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 77, np.uint8)
    for changes in AUGMENTATIONS[:2]:
        transform = make_transform(pca_std=0.0, **changes)
        out = augment(*transform.crop(png(image), PATH, seed=1))
        torch.testing.assert_close(out, np.full((32, 32, 3), 77, np.uint8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"short_sides": (31, 60)}, r"short_sides: .* above 31, got 31 and 60"),
        ({"short_sides": (60, 40)}, r"short_sides: .* got 60 and 40"),
        ({"area": (0.5, 0.1)}, r"area: expected two rising numbers above 0, got 0\.5 "),
        ({"area": (0.0, 0.1)}, r"area"),
        ({"aspect": (2.0, 1.0)}, r"aspect"),
    ],
    ids=str,
)
def test_wrong_ranges_give_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_transform(**changes)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (20, 20), (301, 404)], ids=str)
def test_center_view_is_the_centre_crop(size: tuple[int, int]) -> None:
    image = smooth_image(*size)
    view = EvaluationTransform(EvaluationConfig(resize=36, crop=30))
    assert view.has_one_shape
    whole = resize_pixels(image, size_for_short_side(size, 36))
    top, left = (whole.shape[0] - 30) // 2, (whole.shape[1] - 30) // 2
    expected = whole[top : top + 30, left : left + 30]
    for seed in range(2):
        pixels = view(png(image), PATH, seed=seed)
        torch.testing.assert_close(pixels, np.ascontiguousarray(expected), rtol=0, atol=0)
    assert view.output_size(size) == (30, 30)


@pytest.mark.parametrize(("kind", "side"), [("ten_crop", 36), ("multi_scale", 50)])
@pytest.mark.parametrize("size", [(48, 64), (64, 47), (20, 20)], ids=str)
def test_other_views_keep_the_whole_image(kind: Any, side: int, size: tuple[int, int]) -> None:
    view = EvaluationTransform(EvaluationConfig(view=kind, resize=36, crop=30, scales=(30, 50, 40)))
    assert not view.has_one_shape
    image = smooth_image(*size)
    pixels = view(png(image), PATH, seed=0)
    assert min(pixels.shape[:2]) == side
    assert pixels.shape[:2] == view.output_size(size)
    expected = resize_pixels(image, size_for_short_side(size, side))
    torch.testing.assert_close(pixels, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "view",
    [make_transform().crop, EvaluationTransform(EvaluationConfig())],
    ids=["training", "evaluation"],
)
def test_file_that_is_not_an_image_gives_an_error(view: Callable[..., Any]) -> None:
    for data in (b"", b"no image", jpeg(smooth_image())[:-9]):
        with pytest.raises(BadImageError, match=r"^a\.jpg: expected"):
            view(data, PATH, seed=0)
