import numpy as np
import pytest
import torch

from detection.export.agreement import DetectionDifferences, compare_detections
from detection.ops.rle import encode_window
from detection.structures import Detections, RunLengthMasks


def detections(*rows: tuple[float, float, int]) -> Detections:
    """Return detections of 10 x 10 pixels at x; rows: x, score, label."""
    boxes = torch.tensor([[x, 0.0, x + 10, 10] for x, _, _ in rows]).view(-1, 4)
    scores = torch.tensor([score for _, score, _ in rows])
    return Detections(boxes, scores, torch.tensor([label for *_, label in rows], dtype=torch.int64))


def compare(expected: Detections, found: Detections, *, most: int = 100) -> DetectionDifferences:
    return compare_detections(expected, found, score_thresh=0.1, max_detections=most)


def test_equal_detections_have_no_differences() -> None:
    same = detections((0, 0.9, 1), (30, 0.8, 0))
    assert compare(same, same) == DetectionDifferences(0, 0, 0, 0)
    assert compare(detections(), detections()) == DetectionDifferences(0, 0, 0, 0)


def test_largest_differences_whatever_the_order() -> None:
    expected = detections((0, 0.5, 1), (30, 0.5, 1))
    found = detections((30.25, 0.52, 1), (0.5, 0.49, 1))
    result = compare(expected, found)
    assert result.boxes == 0.5
    assert result.scores == pytest.approx(0.02)
    assert result.unpaired == 0


@pytest.mark.parametrize(
    "found",
    [
        detections((0, 0.9, 1)),
        detections((0, 0.9, 1), (30, 0.8, 1), (60, 0.5, 0)),
        detections((0, 0.9, 1), (30, 0.8, 0), (36, 0.7, 0)),
    ],
    ids=["one less and one label", "another label, one more", "one more"],
)
def test_detections_without_a_partner_are_counted(found: Detections) -> None:
    expected = detections((0, 0.9, 1), (30, 0.8, 0))
    assert compare(expected, found).unpaired >= 1


def test_rounding_may_decide_what_is_next_to_a_limit() -> None:
    expected = detections((0, 0.9, 1), (30, 0.1002, 1))
    assert compare(expected, detections((0, 0.9, 1))).unpaired == 0
    # the last of the largest number of detections
    expected, found = (detections((0, 0.9, 1), (x, 0.5, 1)) for x in (30, 60))
    assert compare(expected, found, most=2).unpaired == 0
    assert compare(expected, found).unpaired == 2
    # a list that is not full has no reason to lack a detection
    assert compare(expected, detections(), most=2).unpaired == 2
    assert compare(detections((0, 0.9, 1)), detections((60, 0.5, 0)), most=1).unpaired == 1


def test_nan_is_never_within_a_limit() -> None:
    expected = detections((0, 0.9, 1))
    assert np.isnan(compare(expected, detections((0, np.nan, 1))).scores)
    assert compare(expected, detections((np.nan, 0.9, 1))).unpaired == 2


def test_masks_differ_by_the_share_of_their_pixels() -> None:
    one, other = np.zeros((10, 20), np.bool_), np.zeros((10, 20), np.bool_)
    one[:4, :5] = other[:4, :4] = True
    sides = []
    for mask in (one, other):
        code = encode_window(mask, top=0, left=0, size=(10, 20))
        found = detections((0, 0.9, 1))
        masks = RunLengthMasks((10, 20), (code,))
        sides.append(Detections(found.boxes, found.scores, found.labels, masks))
    assert compare(*sides).masks == 4 / 20
