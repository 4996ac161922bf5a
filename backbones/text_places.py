"""Places of the texts beside boxes on images, so that few texts hide each other."""

import numpy as np

# (vertical, horizontal) places of a text, the best first. A text begins above the box, at its top,
# ends at its bottom, or begins below it; and has its left or its right side.
_OUTSIDE = ("above", "left"), ("below", "left"), ("above", "right"), ("below", "right")
_INSIDE = ("top", "left"), ("bottom", "left"), ("top", "right"), ("bottom", "right")
_CELLS = 4  # what is covered is counted in squares, so many to the height of the lowest text


def place_texts(
    boxes: np.ndarray, sizes: np.ndarray, window: tuple[float, ...], *, inside: bool
) -> np.ndarray:
    """Return where the text of each box begins, its left upper corner: (N, 2) x and y.

    The last text is placed first. Each takes the first of its places that covers no text placed
    before it; if there is none, the place that covers least of them.

    Args:
        boxes: (N, 4) xyxy, in the order of drawing: the last one lies on top.
        sizes: (N, 2) width and height of each text.
        window: xyxy; all texts are moved into it, larger ones to its left upper corner.
        inside: prefer places inside the box to those above and below it.
    """
    if not len(boxes):
        return np.zeros((0, 2))
    order = (*_INSIDE, *_OUTSIDE) if inside else (*_OUTSIDE, *_INSIDE)
    start, end = np.array(window[:2]), np.array(window[2:])
    corners = np.stack([_corners(boxes, sizes, *each) for each in order], axis=1)
    corners = corners.clip(start, np.maximum(end - sizes, start)[:, None])  # (N, 8, 2)
    cell = sizes[:, 1].min() / _CELLS
    spans = np.concatenate([corners - start, corners + sizes[:, None] - start], axis=2) / cell
    columns, rows = np.ceil((end - start) / cell).astype(int)
    is_taken = np.zeros((rows, columns), np.bool_)
    chosen = np.zeros(len(boxes), int)
    for index in reversed(range(len(boxes))):
        areas = [is_taken[y1:y2, x1:x2] for x1, y1, x2, y2 in spans[index].round().astype(int)]
        covered = [np.count_nonzero(area) for area in areas]
        chosen[index] = np.argmin(covered)  # the first of the smallest
        areas[chosen[index]][...] = True
    return corners[np.arange(len(boxes)), chosen]


def _corners(boxes: np.ndarray, sizes: np.ndarray, vertical: str, horizontal: str) -> np.ndarray:
    """Return the left upper corners of all texts in one kind of place, (N, 2)."""
    (x1, y1, x2, y2), (width, height) = boxes.T, sizes.T
    tops = {"above": y1 - height, "top": y1, "bottom": y2 - height, "below": y2}
    lefts = {"left": x1, "right": x2 - width}
    return np.stack([lefts[horizontal], tops[vertical]], axis=1)
