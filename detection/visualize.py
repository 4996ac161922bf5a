"""Boxes and masks on pictures. Pictures are (H, W, 3) uint8 RGB arrays, boxes xyxy in their pixels.

N boxes of one picture. Small pictures are enlarged before drawing, so that labels can be read.
"""

import colorsys
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from backbones.pictures import enlarge
from detection.structures import Detections
from engine.files import write_file

READABLE_SIDE = 480
"""Pixels of the longer side to about which a small picture is enlarged."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_GOLDEN = 0.618034  # steps of the golden ratio keep the hues of neighbouring labels far apart
_GAP = 8
_GREY = 64
_OPACITY = 0.5

Color = tuple[int, int, int]


def class_color(label: int) -> Color:
    """Return the colour of a label in 0..K-1: always the same, bright enough for black text."""
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN % 1.0, 0.65, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: np.ndarray,
    detections: Detections,
    *,
    class_names: Sequence[str],
    score_thresh: float,
) -> np.ndarray:
    """Draw boxes, class names and scores.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        detections: on the CPU, in the picture's pixels; may be empty.
        class_names: by label.
        score_thresh: detections below are not drawn.

    Returns:
        A new picture, enlarged when the given one is small.
    """
    detections = detections.above(score_thresh)
    labels = detections.labels.tolist()
    texts = [
        f"{class_names[label]} {score:.2f}"
        for label, score in zip(labels, detections.scores.tolist(), strict=True)
    ]
    return _draw(image, detections.boxes, labels, texts, masks=detections.masks or ())


def draw_truth(
    image: np.ndarray,
    boxes: Tensor,
    labels: Tensor,
    *,
    class_names: Sequence[str],
    masks: np.ndarray | None = None,
) -> np.ndarray:
    """Draw ground truth as `draw_detections` draws detections.

    boxes: (N, 4). labels: (N,). masks: (N, H, W) bool, or none.
    """
    numbers = labels.tolist()
    texts = [class_names[label] for label in numbers]
    return _draw(image, boxes, numbers, texts, masks=() if masks is None else masks)


def draw_comparison(
    image: np.ndarray,
    detections: Detections,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    *,
    class_names: Sequence[str],
    score_thresh: float,
    gt_masks: np.ndarray | None = None,
) -> np.ndarray:
    """Draw the truth on the left and the detections on the right, under a caption each."""
    truth = draw_truth(image, gt_boxes, gt_labels, class_names=class_names, masks=gt_masks)
    found = draw_detections(image, detections, class_names=class_names, score_thresh=score_thresh)
    gap = np.full((truth.shape[0] + _CAPTION, _GAP, 3), _GREY, np.uint8)
    return np.hstack([captioned(truth, "truth"), gap, captioned(found, "detections")])


def mosaic(pictures: Sequence[np.ndarray], *, columns: int | None = None) -> np.ndarray:
    """Put pictures of any size on one sheet, row by row, padded to the largest.

    Args:
        pictures: at least one.
        columns: None takes about as many as rows.
    """
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    height = max(picture.shape[0] for picture in pictures)
    width = max(picture.shape[1] for picture in pictures)
    rows = math.ceil(len(pictures) / columns)
    sheet = np.full((rows * (height + _GAP), columns * (width + _GAP), 3), _GREY, np.uint8)
    for place, picture in enumerate(pictures):
        top, left = place // columns * (height + _GAP), place % columns * (width + _GAP)
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet[:-_GAP, :-_GAP]


def write_picture(path: Path, image: np.ndarray) -> None:
    """Write a picture in the format of the path's suffix.

    Raises:
        UserError: the file cannot be written.
    """
    done, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done, f"no encoder for {path.suffix}"
    write_file(path, data.tobytes())


def free_paths(sources: Sequence[Path], directory: Path, *, replace: bool) -> list[Path]:
    """Return a path in `directory` for the drawing of each source: named alike, all different.

    None is the path of a source, so that drawing into the folder of the pictures spares them;
    without `replace` none is of a file that is there.
    """
    taken = {source.resolve() for source in sources}
    paths = []
    for source in sources:
        path, number = directory / f"{source.stem}.jpg", 1
        while path.resolve() in taken or (path.exists() and not replace):
            number += 1
            path = directory / f"{source.stem}_{number}.jpg"
        taken.add(path.resolve())
        paths.append(path)
    return paths


def _draw(
    image: np.ndarray,
    boxes: Tensor,
    labels: Sequence[int],
    texts: Sequence[str],
    *,
    masks: Iterable[np.ndarray] = (),
) -> np.ndarray:
    canvas = enlarge(image, max(image.shape[:2]), wanted=READABLE_SIDE)
    factor = canvas.shape[0] // image.shape[0]
    # the last come first: by falling score, so that the best lies on top
    for mask, label in reversed(list(zip(masks, labels, strict=False))):
        _tint(canvas, mask, class_color(label))
    # ends that lie outside would make OpenCV draw nothing at all, or take very long
    limits = [canvas.shape[1] - 1, canvas.shape[0] - 1] * 2
    corners = (boxes * factor).round().numpy().clip(0, limits).astype(int).tolist()
    thickness = max(2, round(max(canvas.shape[:2]) / 500))
    for (x1, y1, x2, y2), label in zip(corners, labels, strict=True):
        cv2.rectangle(canvas, (x1, y1), (x2, y2), class_color(label), thickness)
    for (x1, y1, _, _), label, text in zip(corners, labels, texts, strict=True):
        _write(canvas, text, (x1, y1), class_color(label))
    return canvas


def _tint(canvas: np.ndarray, mask: np.ndarray, color: Color) -> None:
    """Colour the pixels of a mask (h, w) bool of the whole picture at any size."""
    enlarged = cv2.resize(
        mask.astype(np.uint8), canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST
    )
    inside = enlarged.astype(np.bool_)
    canvas[inside] = (canvas[inside] * (1 - _OPACITY) + np.array(color) * _OPACITY).astype(np.uint8)


def _write(canvas: np.ndarray, text: str, corner: tuple[int, int], color: Color) -> None:
    """Write on a filled strip above the corner, or where there is room."""
    scale = max(0.4, max(canvas.shape[:2]) / 1600)
    text = text.encode("ascii", "replace").decode()  # OpenCV's font holds no more
    (width, height), baseline = cv2.getTextSize(text, _FONT, scale, 1)
    left = max(0, min(corner[0], canvas.shape[1] - width - 2))
    bottom = max(corner[1], height + baseline + 2)
    top_left, bottom_right = (left, bottom - height - baseline - 2), (left + width + 2, bottom)
    cv2.rectangle(canvas, top_left, bottom_right, color, cv2.FILLED)
    place = (left + 1, bottom - baseline)
    cv2.putText(canvas, text, place, _FONT, scale, (0, 0, 0), 1, cv2.LINE_AA)


_CAPTION = 24


def captioned(image: np.ndarray, caption: str) -> np.ndarray:
    """Return the picture under a strip with a caption."""
    strip = np.full((_CAPTION, image.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, caption, (6, 17), _FONT, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, image])
