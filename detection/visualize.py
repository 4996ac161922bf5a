"""Drawing of boxes, labels and masks on images, and of images side by side.

N boxes of one image. Images are (H, W, 3) uint8 RGB arrays, boxes are xyxy in their pixels. Small
images are enlarged before drawing, so that labels are readable.
"""

import colorsys
import math
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePath

import cv2
import numpy as np
from torch import Tensor

from backbones.images import enlarge
from backbones.text_places import place_texts
from backbones.text_rendering import paste_text, render_text
from detection.data.masks import TightMask
from detection.ops.rle import decode_columns
from detection.structures import Detections, RunLengthMasks
from engine.errors import UserError
from engine.files import write_file
from engine.paths import is_link, names_in, open_file, resolved

READABLE_SIDE = 480
"""Small images are enlarged until their longer side has about this many pixels."""

_JPEG_SIDE = 65535  # largest side of a JPEG: its header has 16 bits for each
_MARK = b"\xff\xfe\x00\x10resdet drawing"  # a JPEG comment of 16 bytes, its length included
_MARK_AT = 20  # behind two bytes and the first segment, of 18
_NAME_BYTES = 200  # longest stem of a drawing's file name; file systems allow 255 bytes in all
_TEXT = 18  # smallest text height in pixels
_GOLDEN = 0.618034  # steps of the golden ratio keep the hues of neighbouring labels far apart
_GAP = 8  # pixels between images
_GREY = 64  # colour of gaps and padding
_OPACITY = 0.5  # of masks
_STRIP = 2  # from the first to the last pixel of a strip, less the width or height of its text

Color = tuple[int, int, int]
_SizedMask = tuple[TightMask, tuple[int, ...]]
"""A mask and the (height, width) of its image."""


def class_color(label: int) -> Color:
    """Return the fixed colour of a label in 0..K-1, bright enough for black text."""
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN % 1.0, 0.65, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: np.ndarray,
    detections: Detections,
    *,
    class_names: Sequence[str],
    score_thresh: float,
) -> np.ndarray:
    """Draw boxes, class names and scores; higher scores are drawn on top.

    Each class has a colour. With masks, each object has its own colour for box and mask.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        detections: on the CPU, in the image's pixels; may be empty.
        class_names: by label.
        score_thresh: detections with a lower score are not drawn.

    Returns:
        A new image, enlarged if the given one is small.
    """
    scores = detections.scores.tolist()
    # by rising score, so that the best is drawn last
    kept = [i for i in np.argsort(scores, kind="stable").tolist() if scores[i] >= score_thresh]
    labels = detections.labels[kept].tolist()
    texts = [f"{class_names[label]} {scores[i]:.2f}" for i, label in zip(kept, labels, strict=True)]
    masks = None if detections.masks is None else _decoded(detections.masks, kept)
    return _draw(image, detections.boxes[kept], labels, texts, masks=masks)


def draw_ground_truth(
    image: np.ndarray,
    boxes: Tensor,
    labels: Tensor,
    *,
    class_names: Sequence[str],
    masks: Iterable[np.ndarray] | None = None,
) -> np.ndarray:
    """Draw ground truth as `draw_detections` draws detections.

    boxes: (N, 4). labels: (N,). masks: N masks (H, W) bool; None: no masks are drawn.
    """
    numbers = labels.tolist()
    texts = [class_names[label] for label in numbers]
    sized = None if masks is None else ((TightMask.around(mask), mask.shape) for mask in masks)
    return _draw(image, boxes, numbers, texts, masks=sized)


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
    """Draw the ground truth on the left and the detections on the right, each with a caption."""
    gt_image = draw_ground_truth(
        image, gt_boxes, gt_labels, class_names=class_names, masks=gt_masks
    )
    found = draw_detections(image, detections, class_names=class_names, score_thresh=score_thresh)
    gap = np.full((gt_image.shape[0] + _CAPTION, _GAP, 3), _GREY, np.uint8)
    return np.hstack([captioned(gt_image, "ground truth"), gap, captioned(found, "detections")])


def mosaic(images: Sequence[np.ndarray], *, columns: int | None = None) -> np.ndarray:
    """Arrange images of any size in a grid, row by row, each padded to the largest.

    Args:
        images: at least one.
        columns: number of columns; None: about as many as rows.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    rows = math.ceil(len(images) / columns)
    sheet = np.full((rows * (height + _GAP), columns * (width + _GAP), 3), _GREY, np.uint8)
    for place, image in enumerate(images):
        top, left = place // columns * (height + _GAP), place % columns * (width + _GAP)
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet[:-_GAP, :-_GAP]  # no gap after the last row and column


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a drawing in the format of the path's suffix.

    Raises:
        UserError: the file cannot be written, or the image is too large for a JPEG.
    """
    write_file(path, encode_drawing(path, image))


def encode_image(path: Path, image: np.ndarray) -> bytes:
    """Return the content of an image file, in the format of the path's suffix.

    Raises:
        UserError: the image is too large for a JPEG.
    """
    if path.suffix == ".jpg" and max(image.shape[:2]) > _JPEG_SIDE:
        size = f"{image.shape[1]}x{image.shape[0]} (width x height)"
        raise UserError(f"{path}: expected sides of at most {_JPEG_SIDE} pixels, got {size}")
    done, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done, f"no encoder for {path.suffix}"
    return data.tobytes()


def encode_drawing(path: Path, image: np.ndarray) -> bytes:
    """Return `encode_image`; a JPEG gets a comment by which `free_numbers` knows it."""
    content = encode_image(path, image)
    if path.suffix == ".jpg":
        content = content[:_MARK_AT] + _MARK + content[_MARK_AT:]
    return content


def _is_drawing(path: Path) -> bool:
    """Return whether a file is a drawing, which later ones may replace: no link, nor a photo."""
    with suppress(UserError, OSError), open_file(path) as file:
        found = file.read(_MARK_AT + len(_MARK))
        # a kill may leave an empty file
        return not is_link(path) and (not found or found.endswith(_MARK))
    return False


def free_paths(sources: Sequence[Path], directory: Path) -> list[Path]:
    """Return a different path in `directory` for the drawing of each source, named like the source.

    As `free_numbers` chooses them.
    """
    numbers = free_numbers(sources, directory)
    return [directory / numbered_name(*each) for each in zip(sources, numbers, strict=True)]


def free_numbers(sources: Sequence[Path | str], directory: Path | None) -> "array[int]":
    """Return the number of each source for `numbered_name`, so that no two names are equal.

    No name is that of a file in `directory`, except of an earlier drawing that is not a source
    itself. None: there is nothing to keep.

    Raises:
        UserError: the system does not allow looking into the folder.
    """
    taken: set[str] = set()
    earlier: set[str] = set()
    if directory and (names := names_in(directory)):
        folder = resolved(directory)
        found = (_resolved_if_any(source) for source in sources)
        taken = {path.name for path in found if path is not None and path.parent == folder}
        earlier = set(names) - taken

    def is_taken(name: str) -> bool:
        if name in earlier:
            earlier.remove(name)  # looked at once
            assert directory is not None
            if not _is_drawing(directory / name):
                taken.add(name)
        return name in taken

    last_number: dict[str, int] = {}
    numbers = array("L")
    for source in sources:
        # The search starts after the last number used; 1 need not be stored, as it is taken.
        stem = PurePath(source).stem
        number = last_number.get(stem, 0) + 1
        while is_taken(name := numbered_name(source, number)):
            number += 1
        if number > 1:
            last_number[stem] = number
        taken.add(name)
        numbers.append(number)
    return numbers


def numbered_name(source: Path | str, number: int) -> str:
    """Return the file name of a drawing: NAME.jpg, and NAME_2.jpg for the next of the same name.

    Long names are cut.
    """
    # cut by bytes; half a character at the end stays a valid name
    stem = os.fsdecode(os.fsencode(PurePath(source).stem)[:_NAME_BYTES])
    return f"{stem}.jpg" if number == 1 else f"{stem}_{number}.jpg"


def _resolved_if_any(source: Path | str) -> Path | None:
    """Return the resolved path of a source; None if the system cannot resolve it."""
    with suppress(UserError):
        return resolved(source)
    return None


def _decoded(masks: RunLengthMasks, idxs: Sequence[int]) -> Iterator[_SizedMask]:
    """Yield masks one by one; the cost is that of the object, not of its image."""
    for index in idxs:
        columns, left = decode_columns(masks.codes[index], masks.size, first=0, end=masks.size[1])
        yield TightMask.around(columns, left=left), masks.size


def _draw(
    image: np.ndarray,
    boxes: Tensor,
    labels: Sequence[int],
    texts: Sequence[str],
    *,
    masks: Iterable[_SizedMask] | None,
) -> np.ndarray:
    """Draw masks, boxes and texts; the last object is on top."""
    canvas = enlarge(image, max(image.shape[:2]), wanted=READABLE_SIDE)
    factor = canvas.shape[0] // image.shape[0]
    thickness = max(2, round(max(canvas.shape[:2]) / 500))
    colors = [class_color(label) for label in labels]
    if masks is not None:
        # One colour per object, because touching objects of a class would look like one. Reversed:
        # the last object, the best detection, always gets colour 0.
        colors = [class_color(number) for number in reversed(range(len(labels)))]
        for (mask, size), color in zip(masks, colors, strict=True):
            _tint(canvas, mask, size, color, thickness=thickness)
    # Clipped to the canvas: for corners far outside OpenCV draws nothing or takes very long.
    limits = [canvas.shape[1] - 1, canvas.shape[0] - 1] * 2
    corners = (boxes * factor).round().numpy().clip(0, limits).astype(int).tolist()
    for (x1, y1, x2, y2), color in zip(corners, colors, strict=True):
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, thickness)
    # Text height: 1/70 of the longer side, but at most 1/6 of the shorter one (for long, low
    # images), and never below _TEXT.
    height = max(_TEXT, round(min(max(canvas.shape[:2]) / 70, min(canvas.shape[:2]) / 6)))
    lines = [render_text(text, height) for text in texts]
    places = _places(canvas, corners, lines, thickness=thickness)
    for line, place, color in zip(lines, places, colors, strict=True):
        _write(canvas, line, place, color)
    return canvas


def _places(
    canvas: np.ndarray,
    boxes: Sequence[Sequence[int]],
    lines: Sequence[np.ndarray],
    *,
    thickness: int,
) -> list[tuple[int, int]]:
    """Return the left upper corner of each text's strip."""
    sizes = np.array([line.shape[::-1] for line in lines]).reshape(-1, 2) + _STRIP
    window = (0, 0, canvas.shape[1], canvas.shape[0])
    outlines = np.array(boxes).reshape(-1, 4)
    outlines[:, 3] += thickness  # a text below a box hides no side of a better one at its place
    places = place_texts(outlines, sizes, window, inside=False)
    return [(left, top) for left, top in places.astype(int).tolist()]


def _tint(
    canvas: np.ndarray, mask: TightMask, size: tuple[int, ...], color: Color, *, thickness: int
) -> None:
    """Colour and outline a mask of an image of some size, which is resized to the canvas."""
    box = mask.rectangle
    top, rows = _nearest(size[0], canvas.shape[0], box.top, box.bottom)
    left, columns = _nearest(size[1], canvas.shape[1], box.left, box.right)
    inside = mask.pixels[rows][:, columns]
    if not inside.size:  # OpenCV erodes no empty image
        return
    window = canvas[top : top + len(rows), left : left + len(columns)]
    tinted = window[inside] * (1 - _OPACITY) + np.array(color) * _OPACITY
    window[inside] = tinted.astype(np.uint8)
    # The outline is what erosion removes. Outside the window counts as 0, so that a mask at the
    # border of the canvas is outlined there too.
    kernel = np.ones((3, 3), np.uint8)
    inner = cv2.erode(inside.astype(np.uint8), kernel, iterations=thickness, borderValue=0)
    window[inner != inside] = color


def _nearest(length: int, new_length: int, first: int, end: int) -> tuple[int, np.ndarray]:
    """Return which rows (or columns) from `first` to `end` - 1 the resized image shows, and where.

    The first result is the row of the resized image where they begin, the second has for each from
    there on the row that OpenCV's nearest neighbour takes, counted from `first`.
    """
    places = np.arange(length, dtype=np.int32)[None]
    nearest = cv2.resize(places, (new_length, 1), interpolation=cv2.INTER_NEAREST)[0]
    start, stop = np.searchsorted(nearest, [first, end]).tolist()
    return start, nearest[start:stop] - first


def _write(canvas: np.ndarray, line: np.ndarray, place: tuple[int, int], color: Color) -> None:
    """Write a line of text on a filled strip whose left upper corner is given."""
    height, width = line.shape
    left, top = place
    corner = left + width + _STRIP, top + height + _STRIP
    cv2.rectangle(canvas, (left, top), corner, color, cv2.FILLED)
    paste_text(canvas, line, (left + 1, top + 1), (0, 0, 0))


_CAPTION = 24  # pixels, height of a caption's strip


def captioned(image: np.ndarray, caption: str) -> np.ndarray:
    """Return the image with a strip above it that contains a caption."""
    strip = np.full((_CAPTION, image.shape[1], 3), 255, np.uint8)
    paste_text(strip, render_text(caption, 16), (6, 1), (0, 0, 0))
    return np.vstack([strip, image])
