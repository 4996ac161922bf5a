import numpy as np
import pytest

from detection.data.box_checks import _BLOCK, check_boxes, describe_bad_box, find_systematic_fault

SIZE = (50, 100)


@pytest.mark.parametrize(
    ("xywh", "expected", "clipped", "reason"),
    [
        ([10, 20, 30, 20], [10, 20, 40, 40], False, None),
        ([0, 0, 100, 50], [0, 0, 100, 50], False, None),
        ([0, 0, 100.0005, 50], [0, 0, 100, 50], False, None),
        ([-0.5, 20, 30, 20], [0, 20, 29.5, 40], True, None),
        ([90, 40, 30, 20], [90, 40, 100, 50], True, None),
        ([10, 20, 0, 20], None, False, "no width or height"),
        ([10, 20, 5, -1], None, False, "no width or height"),
        ([10, 20, 5, 1e-6], None, False, "no width or height"),
        ([100, 20, 5, 5], None, False, "outside its image"),
        ([-5, 20, 5, 5], None, False, "outside its image"),
        ([10, 60, 5, 5], None, False, "outside its image"),
        ([10, 20, float("nan"), 5], None, False, "not finite"),
        ([float("inf"), 20, 5, 5], None, False, "not finite"),
    ],
    ids=str,
)
def test_one_box(
    xywh: list[float], expected: list[float] | None, clipped: bool, reason: str | None
) -> None:
    checked = check_boxes(np.array([xywh], dtype=np.float64), np.array([SIZE]))
    assert [name for name, mask in checked.bad.items() if mask[0]] == [reason] * (
        reason is not None
    )
    assert checked.clipped.tolist() == [clipped]
    if expected is not None:
        assert checked.boxes.tolist() == [expected]
    if reason is not None:
        assert "\n" not in describe_bad_box(xywh, SIZE, reason)


def test_no_boxes() -> None:
    empty, sizes = np.zeros((0, 4)), np.zeros((0, 2), dtype=np.int64)
    checked = check_boxes(empty, sizes)
    assert checked.boxes.shape == (0, 4)
    assert checked.clipped.shape == (0,)
    assert find_systematic_fault(empty, sizes) is None


def random_corners(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (count, 4) xyxy, spread over images of 50x100, and the sizes."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1, size=(count, 2, 2)) * (100, 50)
    return np.sort(corners, axis=1).reshape(count, 4), np.tile(SIZE, (count, 1))


def test_many_boxes_are_checked_as_each_alone() -> None:
    xywh, sizes = random_corners(_BLOCK + 3)
    sizes += np.arange(len(sizes))[:, None] % 7
    xywh[_BLOCK - 2 : _BLOCK + 2] = [
        [10, 20, np.nan, 5],
        [10, 20, 0, 20],
        [200, 20, 5, 5],
        [-5, 20, 15, 5],
    ]
    checked = check_boxes(xywh, sizes)
    assert len(checked.boxes) == len(checked.clipped) == len(xywh)
    for row in range(_BLOCK - 3, len(xywh)):
        alone = check_boxes(xywh[row : row + 1], sizes[row : row + 1])
        np.testing.assert_array_equal(checked.boxes[row], alone.boxes[0])
        assert checked.clipped[row] == alone.clipped[0]
        assert {name: mask[row] for name, mask in checked.bad.items()} == {
            name: mask[0] for name, mask in alone.bad.items()
        }
    assert [int(mask.sum()) for mask in checked.bad.values()] == [1, 1, 1]


def test_good_boxes_leave_no_doubt() -> None:
    corners, sizes = random_corners(200)
    corners[:, 2:] -= corners[:, :2]
    assert find_systematic_fault(corners, sizes) is None


def test_corners_in_place_of_sizes_are_recognised() -> None:
    doubt = find_systematic_fault(*random_corners(200))
    assert doubt is not None
    assert doubt.kind == "corners"
    assert "as [x1, y1, x2, y2]; expected COCO's [x, y, width, height]" in doubt.message


def test_fractions_are_recognised() -> None:
    corners, sizes = random_corners(20)
    doubt = find_systematic_fault(corners / 100, sizes)
    assert doubt is not None
    assert doubt.kind == "fractions"
    assert "got fractions of the image" in doubt.message


def test_boxes_of_a_larger_image_are_recognised() -> None:
    corners, sizes = random_corners(200)
    corners[:, 2:] -= corners[:, :2]
    doubt = find_systematic_fault(corners * 3, sizes)
    assert doubt is not None
    assert "images as large as their entries say" in doubt.message


def test_a_few_odd_boxes_leave_no_doubt() -> None:
    xywh = np.array([[50.0, 25.0, 100.0, 50.0]] * 4)
    assert find_systematic_fault(xywh, np.tile(SIZE, (4, 1))) is None
