"""Data set of a localization run: an image, its class, and the boxes of its objects.

H height, W width, N images, n boxes of one image (xyxy pixels).
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from backbones.bad_images import bad_image_error
from backbones.classification.transforms import CropWindow, sample_crop_window, size_for_short_side
from backbones.images import BadImageError, read_image
from detection.data.box_checks import format_size
from detection.data.collate import Sample, collate_detection
from detection.data.transforms import NO_MASKS, Augment, resize
from detection.localization.annotations import LocalizationAnnotations
from detection.localization.config import AugmentConfig, LocalizationBaseConfig
from detection.localization.demo import make_demo_localization
from detection.localization.ilsvrc import read_ilsvrc
from detection.localization.tiny_imagenet import read_tiny_imagenet
from detection.structures import DetectionBatch
from engine import paths
from engine.checksum import digest_of
from engine.errors import UserError

CROWD_IOA_THRESH = 0.5
"""A candidate with at least this share of its area in a barely visible box is ignored."""
CROP_ATTEMPTS = 10
"""Crops sampled before the whole image is used, as many as in torchvision's RandomResizedCrop."""


class LocalizationDataset:
    """Images of one split; implements `engine.task.DataSet`.

    All boxes of an image have the same class. Training takes a square crop in which at least
    `augment.min_visible` of one box is visible; boxes that show less are marked as crowds, which
    get no loss. Evaluation keeps the whole image and resizes its shorter side.

    Args:
        config: the run's config.
        split: "train" or "val".
        training: whether to crop and augment at random.
        class_names: the training classes; None takes them from the data.

    Raises:
        UserError: the annotations cannot be read (see `read_split`).
    """

    def __init__(
        self,
        config: LocalizationBaseConfig,
        split: str,
        *,
        training: bool,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.images = read_split(config, split, class_names=class_names)
        self._on_bad_image = config.data.on_bad_image
        self._crop = TrainingCrop(config.augment) if training else None
        self._short_side = config.evaluation.short_side
        # (N,) batches hold images of one group. Crops all have one shape; whole images are grouped
        # by shape, so that no batch needs padding.
        self.groups = np.zeros(len(self), dtype=np.int64)
        if not training:
            shapes = [self._evaluation_size((h, w)) for h, w in self.images.sizes.tolist()]
            self.groups = np.unique(shapes, axis=0, return_inverse=True)[1]

    def __len__(self) -> int:
        """Return the number of images; each has a valid box."""
        return len(self.images)

    @cached_property
    def digest(self) -> str:
        """Checksum of the images' paths, classes and boxes."""
        found = self.images
        return digest_of([found.paths, found.labels, found.sizes, found.boxes, found.offsets])

    def file_name(self, index: int) -> str:
        """Return the path of an image, relative to the root of the data set."""
        return str(self.images.paths[index])

    def load(self, index: int, seed: int, batch_shape: None = None) -> Sample:
        """Read image `index`; `seed` determines its crop and augmentation.

        Raises:
            UserError: the image is missing, or bad and `on_bad_image` is "error".
            SkippedSampleError: the image is bad and `on_bad_image` is "skip".
        """
        try:
            pixels = self._read(index)
        except BadImageError as error:
            raise bad_image_error(error, self._on_bad_image) from error
        boxes = self.images.boxes_of(index)
        size = (pixels.shape[0], pixels.shape[1])
        is_partial = np.zeros(len(boxes), dtype=np.bool_)  # none in evaluation: no crop
        if self._crop is not None:
            pixels, boxes, is_partial = self._crop(pixels, boxes, seed=seed)
        else:
            pixels, boxes = resize(pixels, boxes, self._evaluation_size(size))
        return Sample(
            pixels=pixels,
            boxes=boxes,
            labels=np.full(len(boxes), self.images.labels[index]),
            is_crowd=is_partial,
            original_size=size,
            image_id=index,
            seed=seed,
        )

    def batch_shape(self, sample_keys: Sequence[tuple[int, int]]) -> None:
        """Return None: images of one group have one shape, so a batch needs no common size."""

    def collate(self, samples: Sequence[Sample], batch_shape: None = None) -> DetectionBatch:
        """Collate one or more samples of the same shape into a batch."""
        return collate_detection(samples, size_divisor=1)

    def _read(self, index: int) -> np.ndarray:
        path = self.images.root / self.file_name(index)
        pixels = read_image(path)
        expected = tuple(self.images.sizes[index].tolist())
        if pixels.shape[:2] != expected:
            got = format_size(pixels.shape)
            raise BadImageError(f"{path}: expected {format_size(expected)} as annotated, got {got}")
        return pixels

    def _evaluation_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size_for_short_side(size, self._short_side)


def read_split(
    config: LocalizationBaseConfig, split: str, *, class_names: Sequence[str] | None
) -> LocalizationAnnotations:
    """Read the annotations of a split, after drawing the demo's images if the config asks for them.

    Raises:
        UserError: `data.root` is not a folder, or the reader of the layout raises it.
    """
    data = config.data
    if data.demo is not None and paths.resolved(data.demo.root) == paths.resolved(data.root):
        make_demo_localization(data.demo)
    root = Path(data.root)
    if not data.root or not paths.is_folder(root):
        got = "no such folder" if data.root else "nothing"
        raise UserError(f"data.root {root}: expected the folder of the data set, got {got}")
    if data.kind == "ilsvrc":
        return read_ilsvrc(
            root,
            split,
            class_names=class_names,
            on_bad_box=data.on_bad_box,
            on_bad_image=data.on_bad_image,
        )
    return read_tiny_imagenet(
        root,
        split,
        class_names=class_names,
        on_bad_box=data.on_bad_box,
        on_bad_image=data.on_bad_image,
    )


class TrainingCrop:
    """Random square crop and augmentation of an image and its boxes, determined by a seed.

    Args:
        config: sizes and probabilities.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self._config = config
        self._augment = Augment(
            short_sides=(config.crop,),
            flip_prob=config.flip_prob,
            vertical_flip_prob=0.0,
            color_jitter=config.color_jitter,
        )

    def __call__(
        self, pixels: np.ndarray, boxes: np.ndarray, *, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Crop and augment an image.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            boxes: (n, 4) float32 inside the image, n >= 1.
            seed: 0 or more; the only source of randomness.

        Returns:
            pixels (crop, crop, 3); boxes (n, 4) in the crop; (n,) bool, whether less than
            `min_visible` of the box is inside the crop.
        """
        rng = np.random.default_rng(seed)
        window = self._sample_window(pixels, boxes, rng)
        # whole pixels; boxes are clipped to the same window as the image
        top, left = round(window.top), round(window.left)
        bottom, right = round(window.top + window.height), round(window.left + window.width)
        inside = crop_boxes(boxes, (left, top, right, bottom))
        # computed before the resize, in original pixels
        is_partial = visible_fraction(boxes, (left, top, right, bottom)) < self._config.min_visible
        side = self._config.crop
        square, inside = resize(pixels[top:bottom, left:right], inside, (side, side))
        seed = int(rng.integers(2**62))  # a new one: flips must not depend on the window
        square, inside, _ = self._augment(square, inside, NO_MASKS, seed=seed, size=(side, side))
        return square, inside, is_partial

    def _sample_window(
        self, pixels: np.ndarray, boxes: np.ndarray, rng: np.random.Generator
    ) -> CropWindow:
        """Sample a window that shows enough of a box, or return the whole image."""
        height, width = pixels.shape[:2]
        for _ in range(CROP_ATTEMPTS):
            window = sample_crop_window((height, width), rng, self._config)
            x1, y1 = round(window.left), round(window.top)
            x2, y2 = round(window.left + window.width), round(window.top + window.height)
            fractions = visible_fraction(boxes, (x1, y1, x2, y2))
            # rounding can make a small window empty
            if min(x2 - x1, y2 - y1) > 0 and fractions.max() >= self._config.min_visible:
                return window
        return CropWindow(0, 0, height, width)


def crop_boxes(boxes: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """Clip boxes (n, 4) to a window x1, y1, x2, y2, and shift them to the window's coordinates."""
    x1, y1, x2, y2 = window
    # limits of x1, y1, x2, y2 in the window's coordinates; a box outside gets zero size
    low, high = (0, 0, 0, 0), (x2 - x1, y2 - y1, x2 - x1, y2 - y1)
    moved: np.ndarray = np.clip(boxes - np.array([x1, y1, x1, y1], dtype=np.float32), low, high)
    return moved


def visible_fraction(boxes: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """Return (n,), the fraction of each box's area inside a window x1, y1, x2, y2."""
    sides = np.maximum(crop_boxes(boxes, window) @ _SIDES, 0)
    fraction: np.ndarray = sides.prod(axis=1) / (boxes @ _SIDES).prod(axis=1)
    return fraction


# boxes (n, 4) @ _SIDES (4, 2) = widths and heights (n, 2)
_SIDES = np.array([[-1, 0], [0, -1], [1, 0], [0, 1]], dtype=np.float32)
