"""Simple copy-paste: objects of one image are pasted over another, without blending.

"Simple Copy-Paste is a Strong Data Augmentation Method" (Ghiasi et al., CVPR 2021). N objects of
one image, in pixels of a square of S x S.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from detection.data.box_checks import MIN_SIDE
from detection.data.masks import Rectangle, TightMask


@dataclass(frozen=True)
class Objects:
    """Objects of an image.

    boxes: (N, 4) float32 xyxy; N may be 0. labels: (N,) int64. is_crowd: (N,) bool, regions to
    ignore. masks: N; None for a region to ignore, and for all objects if masks are not used.
    """

    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    masks: tuple[TightMask | None, ...]

    def take(self, keep: np.ndarray) -> "Objects":
        """Return the objects where `keep` (N,) bool is true."""
        masks = tuple(mask for mask, kept in zip(self.masks, keep.tolist(), strict=True) if kept)
        return Objects(self.boxes[keep], self.labels[keep], self.is_crowd[keep], masks)

    def fitted(self) -> "Objects":
        """Return the objects with boxes that exceed their masks by at most a pixel.

        A box is not moved to the edge of its mask, which has whole pixels: small objects would lose
        a large part of their size. Objects with empty masks are dropped; those without a mask keep
        their boxes.
        """
        around = self._boxes_around_masks()
        low = np.maximum(self.boxes[:, :2], around[:, :2] - 1)
        high = np.minimum(self.boxes[:, 2:], around[:, 2:] + 1)
        return self._with_boxes(np.concatenate([low, high], axis=1))

    def covered(self, masks: tuple[TightMask | None, ...]) -> "Objects":
        """Return the objects with masks that lost pixels: a box loses what its mask loses.

        Objects of which nothing is left are dropped.
        """
        rest = replace(self, masks=masks)
        before, after = self._boxes_around_masks(), rest._boxes_around_masks()
        return rest._with_boxes(np.where(after == before, self.boxes, after))

    def _boxes_around_masks(self) -> np.ndarray:
        """Return (N, 4) float32; of an object without a mask its box."""
        boxes = self.boxes.copy()
        for box, mask in zip(boxes, self.masks, strict=True):
            if mask is not None:
                box[:] = mask.rectangle.xyxy
        return boxes

    def _with_boxes(self, boxes: np.ndarray) -> "Objects":
        """Return the objects with other boxes (N, 4), without those of empty masks.

        Along an axis where nothing of a box is left (box and mask disagree), it is its mask's.
        """
        low, high = boxes[:, :2], boxes[:, 2:]
        is_empty = np.tile(high - low < MIN_SIDE, 2)
        boxes = np.where(is_empty, self._boxes_around_masks(), boxes)
        keep = [mask is None or mask.pixels.size > 0 for mask in self.masks]
        return replace(self, boxes=boxes).take(np.array(keep, np.bool_))

    @property
    def rectangle(self) -> Rectangle:
        """The smallest box around the masks; one object or more, all with masks."""
        boxes = [mask.rectangle.xyxy for mask in self.masks if mask is not None]
        left, top = (min(box[axis] for box in boxes) for axis in (0, 1))
        right, bottom = (max(box[axis] for box in boxes) for axis in (2, 3))
        return Rectangle(top, left, bottom - top, right - left)


def paste(pixels: np.ndarray, objects: Objects, *, pasted: Objects, patch: np.ndarray) -> Objects:
    """Paste objects of a second image over a first one, and return the objects of the result.

    Pixels under the union of the pasted masks come from the second image. The first image's masks
    lose these pixels, and their boxes with them; an object is dropped if nothing is left. Regions
    to ignore of the first image stay as they are. Pasted objects are last.

    Args:
        pixels: (S, S, 3) uint8, the first image; changed in place.
        objects: of the first image; all but regions to ignore have masks.
        pasted: of the second image, one or more, all with masks.
        patch: the second image in `pasted.rectangle`, (height, width, 3) uint8.
    """
    frame = pasted.rectangle
    union = np.zeros((frame.height, frame.width), np.bool_)
    for mask in pasted.masks:
        assert mask is not None, "only objects with masks can be pasted"
        union[mask.rectangle.shifted(-frame.top, -frame.left).slices] |= mask.pixels
    cv2.copyTo(patch, union.view(np.uint8), pixels[frame.slices])
    left_over = [mask and _without(mask, union, frame=frame) for mask in objects.masks]
    rest = objects.covered(tuple(left_over))
    return Objects(
        np.concatenate([rest.boxes, pasted.boxes]),
        np.concatenate([rest.labels, pasted.labels]),
        np.concatenate([rest.is_crowd, pasted.is_crowd]),
        rest.masks + pasted.masks,
    )


def _without(mask: TightMask, union: np.ndarray, *, frame: Rectangle) -> TightMask:
    """Return the mask without the pixels of `union`, which fills the rectangle `frame`."""
    box = mask.rectangle
    common = box.intersection(frame)
    if common.height == 0 or common.width == 0:
        return mask
    pixels = mask.pixels.copy()
    pixels[common.shifted(-box.top, -box.left).slices] &= ~union[
        common.shifted(-frame.top, -frame.left).slices
    ]
    return TightMask.around(pixels, top=box.top, left=box.left)
