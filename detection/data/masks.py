"""Masks of one image's objects, drawn at the size that the network sees.

N objects of one image, H, W the image's height and width after its resize.
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
        segmentations: of the whole file.
        idxs: N rows of `segmentations`; None gives a mask of zeros.
        size: (height, width) of the file's image.
        resized: (H, W).

    Raises:
        ValueError: run lengths that do not fill the image.
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
    if not code:  # polygons, drawn where they lie after the resize
        scale = np.array([resized[1] / size[1], resized[0] / size[0]])
        polygons = [
            # float32 whether the file was read for scoring or not, so that masks are the same
            (part.astype(np.float32).reshape(-1, 2) * scale).ravel().tolist()
            for part in segmentations.polygons(index)
        ]
        parts = coco_mask.frPyObjects(polygons, *resized)
        return np.asarray(coco_mask.decode(coco_mask.merge(parts)), np.bool_)
    mask = decode(code, size)
    # a smaller pixel is in the mask where more than half of it is
    method = cv2.INTER_AREA if resized[0] < size[0] else cv2.INTER_NEAREST_EXACT
    shares = cv2.resize(mask.astype(np.uint8) * 255, resized[::-1], interpolation=method)
    return np.asarray(shares > 127)
