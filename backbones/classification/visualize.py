"""Drawings of a classifier's predictions and confusion matrix: (H, W, 3) uint8 RGB. K classes."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from backbones.images import enlarge
from backbones.text_rendering import paste_text, render_text

# Lengths are in pixels.
_READABLE_SIDE = 192  # small images are enlarged until the longer side is about this
_CELL = 36  # side of a cell of the confusion matrix
_GAP = 6  # around text
_TEXT = 13  # height of text
_MAX_CHARACTERS = 24  # of a class name
_CAPTION = "rows: true class, columns: predicted class, shade: share of the row"
_BLUE = np.array((20, 60, 140))
_BLACK, _WHITE, _GREEN, _RED = (0, 0, 0), (255, 255, 255), (0, 110, 0), (190, 0, 0)


def draw_prediction(
    image: np.ndarray, label: int, prediction: Tensor, *, class_names: Sequence[str]
) -> np.ndarray:
    """Draw an image below its true class and the best prediction, green if correct, else red.

    Args:
        image: (H, W, 3) uint8 RGB; not changed. A small image is enlarged in the drawing.
        label: the true class.
        prediction: (K,) probabilities on the CPU.
        class_names: K names, by label; long names are shortened.
    """
    best = int(prediction.argmax())
    lines = (
        (f"true: {_shortened(class_names[label])}", _BLACK),
        (
            f"predicted: {_shortened(class_names[best])} {float(prediction[best]):.2f}",
            _GREEN if best == label else _RED,
        ),
    )
    enlarged = enlarge(image, max(image.shape[:2]), wanted=_READABLE_SIDE)
    height, width, _ = enlarged.shape
    sizes = [_text_size(text) for text, _ in lines]
    line = max(size[1] for size in sizes) + 2 * _GAP
    top = line * len(lines)  # height of the text above the image
    canvas_width = max(width, max(size[0] for size in sizes) + 2 * _GAP)
    canvas = np.full((top + height, canvas_width, 3), 255, np.uint8)
    canvas[top:, (canvas_width - width) // 2 :][:, :width] = enlarged
    for number, (text, color) in enumerate(lines):
        middle = (canvas_width // 2, line * number + line // 2)
        _write(canvas, text, center=middle, color=color)
    return canvas


def draw_confusion(counts: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Draw a confusion matrix. Each cell shows its count, unless it is 0.

    Args:
        counts: (K, K) numbers of images, true class by predicted class; K of at least 1.
        class_names: K names, by label; long names are shortened.
    """
    num_classes = len(class_names)
    names = [_shortened(name) for name in class_names]
    margin = max(_text_size(name)[0] for name in names) + 2 * _GAP
    line = _text_size(_CAPTION)[1] + 2 * _GAP
    top, side = line + margin, num_classes * _CELL
    width = max(margin + side + _GAP, _text_size(_CAPTION)[0] + 2 * _GAP)
    canvas = np.full((top + side + _GAP, width, 3), 255, np.uint8)
    _write(canvas, _CAPTION, center=(width // 2, line // 2), color=_BLACK)

    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # from white (share 0) to blue (share 1)
    colors = np.round(255 + shares[..., None] * (_BLUE - 255)).astype(np.uint8)
    cells = colors.repeat(_CELL, axis=0).repeat(_CELL, axis=1)
    cells[::_CELL], cells[:, ::_CELL] = 208, 208  # grey grid lines
    canvas[top : top + side, margin : margin + side] = cells

    for place, name in enumerate(names):
        # the row's name on the left, and the column's above, rotated
        strip = np.full((_CELL, margin, 3), 255, np.uint8)
        _write(strip, name, center=(margin // 2, _CELL // 2), color=_BLACK)
        start = place * _CELL
        canvas[top + start : top + start + _CELL, :margin] = strip
        canvas[line:top, margin + start : margin + start + _CELL] = np.rot90(strip)
    for row, column in zip(*np.nonzero(counts), strict=True):
        middle = (margin + column * _CELL + _CELL // 2, top + row * _CELL + _CELL // 2)
        color = _WHITE if shares[row, column] > 0.5 else _BLACK
        _write(canvas, str(counts[row, column]), center=middle, color=color)
    return canvas


def _shortened(name: str) -> str:
    return name if len(name) <= _MAX_CHARACTERS else f"{name[: _MAX_CHARACTERS - 2]}.."


def _text_size(text: str) -> tuple[int, int]:
    height, width = render_text(text, _TEXT).shape
    return width, height


def _write(
    canvas: np.ndarray, text: str, *, center: tuple[int, int], color: tuple[int, int, int]
) -> None:
    line = render_text(text, _TEXT)
    corner = (center[0] - line.shape[1] // 2, center[1] - line.shape[0] // 2)
    paste_text(canvas, line, corner, color)
