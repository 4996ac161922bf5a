"""Reference metrics and crops of a classifier, image by image."""

import math
from collections.abc import Iterator, Sequence

import numpy as np


def best_labels(probabilities: Sequence[float], count: int) -> list[int]:
    """Return labels by falling probability, ties by rising label."""
    return sorted(range(len(probabilities)), key=lambda k: -probabilities[k])[:count]


def score(labels: Sequence[int], rows: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return top-1, top-5 and mean log loss of rows of probabilities."""
    count = len(labels)
    pairs = list(zip(labels, rows, strict=True))
    return {
        "top1": sum(best_labels(row, 1) == [label] for label, row in pairs) / count,
        "top5": sum(label in best_labels(row, 5) for label, row in pairs) / count,
        "nll_loss": -sum(math.log(row[label]) for label, row in pairs) / count,
    }


def calibration_error(
    confidences: Sequence[float], correct: Sequence[bool], num_bins: int
) -> float:
    """Return the expected calibration error, bin by bin; bins are ((m - 1) / M, m / M]."""
    error = 0.0
    for m in range(1, num_bins + 1):
        inside = [
            (confidence, right)
            for confidence, right in zip(confidences, correct, strict=True)
            if (m - 1) / num_bins < confidence <= m / num_bins
        ]
        if inside:
            accuracy = sum(right for _, right in inside) / len(inside)
            confidence = sum(confidence for confidence, _ in inside) / len(inside)
            error += len(inside) / len(confidences) * abs(accuracy - confidence)
    return error


def ten_crops(image: np.ndarray, crop: int) -> list[np.ndarray]:
    """Return the centre crop, four corner crops and their flips, of one (3, H, W) image."""
    _, height, width = image.shape
    top, left = (height - crop) // 2, (width - crop) // 2
    crops = [
        image[:, top : top + crop, left : left + crop],
        image[:, :crop, :crop],
        image[:, :crop, width - crop :],
        image[:, height - crop :, :crop],
        image[:, height - crop :, width - crop :],
    ]
    return [*crops, *(each[:, :, ::-1] for each in crops)]


def all_crops(
    image: np.ndarray, pad: int, size: tuple[int, int]
) -> Iterator[tuple[tuple[int, int, bool], np.ndarray]]:
    """Yield (top, left, is_flipped) and the crop, for all crops of the padded (3, H, W) image."""
    height, width = size
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    for top in range(padded.shape[1] - height + 1):
        for left in range(padded.shape[2] - width + 1):
            crop = padded[:, top : top + height, left : left + width]
            yield (top, left, False), crop
            yield (top, left, True), crop[:, :, ::-1]
