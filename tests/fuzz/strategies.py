"""What the property tests draw: boxes on a grid, many of them equal, touching or empty.

Coordinates are multiples of a half, so that float32 holds them, their areas and sums exactly.
"""

from hypothesis import settings
from hypothesis import strategies as st

QUICK = settings(max_examples=25, deadline=None, derandomize=True, database=None)
"""The same few examples in every run."""

Box = tuple[float, float, float, float]

coordinates = st.integers(0, 24).map(lambda value: value / 2)
sides = st.integers(1, 24).map(lambda value: value / 2)


def _sorted(values: Box) -> Box:
    x1, y1, x2, y2 = values
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


any_boxes = st.tuples(coordinates, coordinates, coordinates, coordinates)
"""xyxy, the corners in any order: boxes turned around are empty."""
boxes = any_boxes.map(_sorted)
"""xyxy, some without area."""
full_boxes = st.tuples(coordinates, coordinates, sides, sides).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)
"""xyxy, all with an area."""
