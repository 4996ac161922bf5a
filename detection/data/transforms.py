"""Resizing an image and the random changes of training.

H, W height and width; N boxes of one image, crowd regions among them. Images stay 8-bit RGB
(H, W, 3). No function drops, adds or reorders a box or a mask.
"""

from collections.abc import Sequence

import numpy as np

from backbones.images import resize_pixels

NO_MASKS = np.zeros((0, 1, 1), np.bool_)
"""The masks of an image of which none are wanted."""
MIN_SIDE = 0.01
"""Shortest side of a box after a resize, in pixels: its logarithm is finite."""


def resized_size(size: tuple[int, int], short_side: int, max_side: int) -> tuple[int, int]:
    """Return (height, width) with the shorter side `short_side`, or the longer one `max_side`."""
    scale = min(short_side / min(size), max_side / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def resize(
    pixels: np.ndarray, boxes: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the image at `size` (height, width) and its boxes (N, 4), scaled alike."""
    height, width = pixels.shape[:2]
    resized = resize_pixels(pixels, size)
    scale = np.array([size[1] / width, size[0] / height])
    far = np.clip(boxes[:, 2:] * scale, MIN_SIDE, size[::-1])
    near = np.clip(boxes[:, :2] * scale, 0, far - MIN_SIDE)
    return resized, np.concatenate([near, far], axis=1).astype(np.float32)


class Augment:
    """Mirrors and colour changes; the same for one seed in any process.

    Args:
        short_sides: lengths from which the shorter side of a batch is drawn.
        flip_prob: chance of a left-right mirror.
        vertical_flip_prob: chance of an up-down mirror.
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
        import albumentations as A  # half a second, which evaluation and prediction do without

        self._short_sides = tuple(short_sides)
        strength = dict.fromkeys(("brightness", "contrast", "saturation"), color_jitter)
        transforms: list[A.BasicTransform] = [
            A.HorizontalFlip(p=flip_prob),
            A.VerticalFlip(p=vertical_flip_prob),
            A.ColorJitter(**strength, hue=color_jitter / 10, p=float(color_jitter > 0)),
        ]
        # What is never done would take time all the same. The first one stays, because
        # albumentations warns of boxes that no transform takes.
        self._places = [
            place for place, transform in enumerate(transforms) if place == 0 or transform.p > 0
        ]
        # masks have the size after the resize, which the image may not have yet
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
        """Return the changed image, its boxes and its masks.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            boxes: (N, 4) float32 xyxy pixels inside the image; N may be 0.
            masks: (any, *size) bool; there may be none.
            seed: 0 or more; the only source of chance.
            size: (height, width) that the image gets.
        """
        rng = np.random.default_rng(seed)
        self._draw_short_side(rng)  # again, so that what follows has numbers of its own
        # Mirrors and colours go where the image is smaller.
        if size[0] < pixels.shape[0]:
            return self._change(*resize(pixels, boxes, size), masks, rng)
        pixels, boxes, masks = self._change(pixels, boxes, masks, rng)
        return *resize(pixels, boxes, size), masks

    def draw_short_side(self, seed: int) -> int:
        """Return the short side of the batch whose first image has this seed."""
        return self._draw_short_side(np.random.default_rng(seed))

    def _draw_short_side(self, rng: np.random.Generator) -> int:
        return int(rng.choice(self._short_sides))

    def _change(
        self, pixels: np.ndarray, boxes: np.ndarray, masks: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # Compose gives all its transforms one seed, and both mirrors would always come together.
        seeds = rng.integers(2**31, size=3)[self._places].tolist()
        for transform, seed in zip(self._compose.transforms, seeds, strict=True):
            transform.set_random_seed(seed)
        numbered = np.column_stack([boxes, np.arange(len(boxes))]).astype(np.float32)
        inputs = {"image": pixels, "bboxes": numbered}
        if len(masks):
            inputs["masks"] = masks.view(np.uint8)
        result = self._compose(**inputs)
        changed = np.asarray(result["bboxes"], dtype=np.float32).reshape(len(boxes), 5)
        assert (changed[:, 4] == numbered[:, 4]).all(), "albumentations dropped or moved a box"
        if len(masks):
            masks = np.asarray(result["masks"]).view(np.bool_)
        return result["image"], changed[:, :4], masks
