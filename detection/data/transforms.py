"""Resizing and random augmentation of an image, its boxes and masks.

H, W height and width; N boxes of one image, including crowd regions. Images stay 8-bit RGB
(H, W, 3). No function drops, adds or reorders boxes or masks.
"""

from collections.abc import Sequence

import numpy as np

from backbones.images import resize_pixels

NO_MASKS = np.zeros((0, 1, 1), np.bool_)
"""Placeholder for the masks if none are needed."""
MIN_SIDE = 0.01
"""Minimum side of a box after a resize, in pixels, so that its logarithm is finite."""


def resized_size(size: tuple[int, int], short_side: int, max_side: float) -> tuple[int, int]:
    """Return (height, width) with a shorter side of `short_side` and a longer one <= `max_side`."""
    scale = min(short_side / min(size), max_side / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def resize(
    pixels: np.ndarray, boxes: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Resize an image to `size` (height, width), and scale its boxes (N, 4) by the same factors."""
    height, width = pixels.shape[:2]
    resized = resize_pixels(pixels, size)
    scale = np.array([size[1] / width, size[0] / height])
    # Rounding of the size gives the axes slightly different factors. Clip x2, y2 first, then x1,
    # y1, so that every box stays inside the image with sides of at least MIN_SIDE.
    far = np.clip(boxes[:, 2:] * scale, MIN_SIDE, size[::-1])
    near = np.clip(boxes[:, :2] * scale, 0, far - MIN_SIDE)
    return resized, np.concatenate([near, far], axis=1).astype(np.float32)


class Augment:
    """Random flips and colour changes, determined by a seed in any process.

    Args:
        short_sides: lengths from which the shorter side of a batch, or an image, is sampled.
        flip_prob: probability of a horizontal flip.
        vertical_flip_prob: probability of a vertical flip.
        color_jitter: strength of brightness, contrast and saturation changes; hue has a tenth.
    """

    def __init__(
        self,
        *,
        short_sides: Sequence[int],
        flip_prob: float,
        vertical_flip_prob: float,
        color_jitter: float,
    ) -> None:
        import albumentations as A  # takes half a second; not needed in evaluation

        self._short_sides = tuple(short_sides)
        strength = dict.fromkeys(("brightness", "contrast", "saturation"), color_jitter)
        transforms: list[A.BasicTransform] = [
            A.HorizontalFlip(p=flip_prob),
            A.VerticalFlip(p=vertical_flip_prob),
            A.ColorJitter(**strength, hue=color_jitter / 10, p=float(color_jitter > 0)),
        ]
        # Drop transforms with probability 0, which take time too. The first one is always kept,
        # because albumentations warns if it gets boxes and no transform uses them.
        self._places = [
            place for place, transform in enumerate(transforms) if place == 0 or transform.p > 0
        ]
        # Without shape checks: masks have the final size, which the image may not have yet.
        self._compose = A.Compose(
            [transforms[place] for place in self._places],
            bbox_params=A.BboxParams(format="pascal_voc"),
            is_check_shapes=False,
        )

    def __call__(
        self,
        pixels: np.ndarray,
        boxes: np.ndarray,
        masks: np.ndarray,
        *,
        seed: int,
        size: tuple[int, int],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Augment and resize an image, its boxes and its masks.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            boxes: (N, 4) float32 xyxy pixels inside the image; N may be 0.
            masks: (any number, *size) bool; may be empty.
            seed: 0 or more; the only source of randomness.
            size: (height, width) of the result.
        """
        rng = np.random.default_rng(seed)
        self._sample_short_side(rng)  # skip the number that sample_short_side uses
        # Augment before or after the resize, whichever has fewer pixels.
        if size[0] < pixels.shape[0]:
            return self._change(*resize(pixels, boxes, size), masks, rng)
        pixels, boxes, masks = self._change(pixels, boxes, masks, rng)
        return *resize(pixels, boxes, size), masks

    def sample_short_side(self, seed: int) -> int:
        """Return a short side; `seed` is that of the image, or of its batch's first image."""
        return self._sample_short_side(np.random.default_rng(seed))

    def _sample_short_side(self, rng: np.random.Generator) -> int:
        return int(rng.choice(self._short_sides))

    def _change(
        self, pixels: np.ndarray, boxes: np.ndarray, masks: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # Compose would give all transforms the same seed, so both flips would always come together.
        # Three seeds are sampled even if fewer are used, so that a transform keeps its seed when
        # another one is switched off.
        seeds = rng.integers(2**31, size=3)[self._places].tolist()
        for transform, seed in zip(self._compose.transforms, seeds, strict=True):
            transform.set_random_seed(seed)
        # a fifth column with the box's number, to check that boxes keep their order
        numbered = np.column_stack([boxes, np.arange(len(boxes))]).astype(np.float32)
        inputs = {"image": pixels, "bboxes": numbered}
        if len(masks):
            # the same bytes as uint8, without a copy
            inputs["masks"] = masks.view(np.uint8)
        result = self._compose(**inputs)
        changed = np.asarray(result["bboxes"], dtype=np.float32).reshape(len(boxes), 5)
        assert (changed[:, 4] == numbered[:, 4]).all(), "albumentations dropped or moved a box"
        if len(masks):
            masks = np.asarray(result["masks"]).view(np.bool_)
        return result["image"], changed[:, :4], masks
