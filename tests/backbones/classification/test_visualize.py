import numpy as np
import pytest
import torch

from backbones.classification.visualize import draw_confusion, draw_prediction


@pytest.mark.parametrize("size", [(32, 32), (20, 7), (300, 400)])
def test_prediction_is_written_above_the_image(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(256, size=(*size, 3), dtype=np.uint8)
    names = ["cat", "ñandú", "a name of more than thirty characters"]
    drawings = []
    for probabilities in ([0.2, 0.5, 0.3], [0.2, 0.2, 0.6]):
        drawing = draw_prediction(image, 1, torch.tensor(probabilities), class_names=names)
        factor = max(1, round(192 / max(size)))
        shown = image.repeat(factor, axis=0).repeat(factor, axis=1)
        height, width, _ = shown.shape
        left = (drawing.shape[1] - width) // 2
        np.testing.assert_array_equal(drawing[-height:, left : left + width], shown)
        drawings.append(drawing[:-height].reshape(-1, 3).astype(int))
    right, wrong = (strip.sum(axis=0) for strip in drawings)
    assert right[1] > right[0]  # green
    assert wrong[0] > wrong[1]  # red


@pytest.mark.parametrize("name", ["", "a", "a name of more than thirty characters"])
def test_cells_with_a_larger_share_are_darker(name: str) -> None:
    drawing = draw_confusion(np.array([[300, 100, 0], [0, 0, 0], [1, 1, 1]]), [name, "b", "c"])
    height, width, _ = drawing.shape
    assert max(height, width) < 600
    darkest = drawing.reshape(-1, 3).astype(int).sum(axis=1).min()
    assert darkest < 100  # text
    found = {tuple(color) for color in drawing.reshape(-1, 3).tolist()}
    blue = np.array((20, 60, 140))
    for share in (0, 1 / 4, 1 / 3, 3 / 4):
        assert tuple(np.round(255 + share * (blue - 255)).astype(int).tolist()) in found
