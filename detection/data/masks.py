"""Masks of the objects of one image, drawn at the size of the network's input.

N objects of one image; H, W height and width of the image after its resize.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from detection.data.segmentations import Segmentations
from detection.ops.rle import decode


def draw_masks(
    segmentations: Segmentations,
    idxs: Sequence[int | None],
    size: tuple[int, int],
    resized: tuple[int, int],
) -> np.ndarray:
    """Return masks (N, H, W) bool of one image.

    Args:
        segmentations: segmentations of the whole file.
        idxs: N rows of `segmentations`; None gives a mask of zeros.
        size: (height, width) of the image in the file.
        resized: (H, W).

    Raises:
        ValueError: the run lengths do not sum to the number of pixels of the image.
    """
    masks = np.zeros((len(idxs), *resized), np.bool_)
    for mask, index in zip(masks, idxs, strict=True):
        if index is not None:
            mask[:] = _draw(segmentations, index, size, resized)
    return masks


def _draw(
    segmentations: Segmentations, index: int, size: tuple[int, int], resized: tuple[int, int]
) -> np.ndarray:
    code = segmentations.run_lengths[index]
    if not code:  # polygons are scaled and then drawn, which is more exact than resizing a mask
        scale = np.array([resized[1] / size[1], resized[0] / size[0]])
        polygons = [
            # in float32 even if read in float64 for scoring, so that masks are the same
            (part.astype(np.float32).reshape(-1, 2) * scale).ravel().tolist()
            for part in segmentations.polygons(index)
        ]
        # one RLE per polygon; their union is the object's mask
        parts = coco_mask.frPyObjects(polygons, *resized)
        return np.asarray(coco_mask.decode(coco_mask.merge(parts)), np.bool_)
    mask = decode(code, size)
    # INTER_AREA averages the pixels that fall into a smaller one, which is in the mask if more than
    # half of its area is.
    method = cv2.INTER_AREA if resized[0] < size[0] else cv2.INTER_NEAREST_EXACT
    coverage = cv2.resize(mask.astype(np.uint8) * 255, resized[::-1], interpolation=method)
    return np.asarray(coverage > 127)
