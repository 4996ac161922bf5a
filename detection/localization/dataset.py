"""The data set of a localization run: a picture, its class, and the boxes of its objects.

H, W height and width; N pictures; n boxes of one picture, xyxy pixels.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from backbones.bad_images import error_for
from backbones.classification.transforms import Window, draw_window, short_side_size
from backbones.images import BadPictureError, read_image
from detection.data.box_checks import shape
from detection.data.collate import Sample, collate_detection
from detection.data.transforms import NO_MASKS, Augment, resize
from detection.localization.annotations import BoxedPictures
from detection.localization.config import AugmentConfig, OneClassConfig
from detection.localization.demo import make_demo_localization
from detection.localization.ilsvrc import read_ilsvrc
from detection.localization.tiny_imagenet import read_tiny_imagenet
from detection.structures import DetectionBatch
from engine import paths
from engine.checksum import digest_of
from engine.errors import UserError

WINDOW_TRIES = 10
"""Windows drawn before the whole picture is taken, as many as torchvision's RandomResizedCrop."""


class LocalizationPictures:
    """Pictures of one split; implements `engine.task.DataSet`.

    A picture's boxes are all of one class. Training cuts a square out, of which at least one box
    keeps its share; boxes that keep less are marked as crowds, on which no loss is taken. Testing
    keeps the whole picture, its shorter side resized.

    Args:
        config: the run's.
        split: "train" or "val".
        training: with random windows and changes.
        class_names: those of training; None takes them from the data.

    Raises:
        UserError: as for the readers.
    """

    def __init__(
        self,
        config: OneClassConfig,
        split: str,
        *,
        training: bool,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.pictures = read_split(config, split, class_names=class_names)
        self._on_bad_image = config.data.on_bad_image
        self._view = TrainingWindow(config.augment) if training else None
        evaluation = config.evaluation
        dense = evaluation.view == "dense"
        self._short_side = max(evaluation.scales) if dense else evaluation.resize
        self.groups = np.zeros(len(self), dtype=np.int64)
        if not training:
            shapes = [self._tested_size((h, w)) for h, w in self.pictures.sizes.tolist()]
            self.groups = np.unique(shapes, axis=0, return_inverse=True)[1]

    def __len__(self) -> int:
        """Return the number of pictures with a good box."""
        return len(self.pictures)

    @cached_property
    def digest(self) -> str:
        """Checksum of the pictures' paths, classes and boxes."""
        found = self.pictures
        return digest_of([found.paths, found.labels, found.sizes, found.boxes, found.offsets])

    def file_name(self, index: int) -> str:
        """Return the path of a picture from the root of the data on."""
        return str(self.pictures.paths[index])

    def load(self, index: int, seed: int, frame: None = None) -> Sample:
        """Read picture `index`; all its randomness comes from `seed`.

        Raises:
            UserError: the picture is missing, or bad and `on_bad_image` is error.
            SkippedSampleError: the picture is bad and `on_bad_image` is skip.
        """
        try:
            pixels = self._read(index)
        except BadPictureError as error:
            raise error_for(error, self._on_bad_image) from error
        boxes = self.pictures.boxes_of(index)
        size = (pixels.shape[0], pixels.shape[1])
        is_partial = np.zeros(len(boxes), dtype=np.bool_)
        if self._view is not None:
            pixels, boxes, is_partial = self._view(pixels, boxes, seed=seed)
        else:
            pixels, boxes = resize(pixels, boxes, self._tested_size(size))
        return Sample(
            pixels=pixels,
            boxes=boxes,
            labels=np.full(len(boxes), self.pictures.labels[index]),
            is_crowd=is_partial,
            original_size=size,
            image_id=index,
            seed=seed,
        )

    def frame(self, draws: Sequence[tuple[int, int]]) -> None:
        """Agree on nothing: pictures of one group have one shape."""

    def collate(self, samples: Sequence[Sample], frame: None = None) -> DetectionBatch:
        """Make a batch of at least one sample of one shape."""
        return collate_detection(samples, size_divisor=1)

    def _read(self, index: int) -> np.ndarray:
        path = self.pictures.root / self.file_name(index)
        pixels = read_image(path)
        expected = tuple(self.pictures.sizes[index].tolist())
        if pixels.shape[:2] != expected:
            got = shape(pixels.shape)
            raise BadPictureError(f"{path}: expected {shape(expected)} as annotated, got {got}")
        return pixels

    def _tested_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return short_side_size(size, self._short_side)


def read_split(
    config: OneClassConfig, split: str, *, class_names: Sequence[str] | None
) -> BoxedPictures:
    """Read the annotations of a split; the demo's pictures are drawn first when they are asked for.

    Raises:
        UserError: as for the readers, or the root is no folder.
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


class TrainingWindow:
    """Cuts a random square out of a picture, boxes with it; the same for one seed in any process.

    Args:
        config: sizes and chances.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self._config = config
        self._change = Augment(
            short_sides=(config.crop,),
            flip_prob=config.flip_prob,
            vertical_flip_prob=0.0,
            color_jitter=config.color_jitter,
        )

    def __call__(
        self, pixels: np.ndarray, boxes: np.ndarray, *, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (crop, crop, 3), boxes in it, and (n,) bool: too little of the object is seen.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            boxes: (n, 4) float32 inside the picture, n of at least 1.
            seed: 0 or more; the only source of chance.
        """
        rng = np.random.default_rng(seed)
        window = self._draw(pixels, boxes, rng)
        top, left = round(window.top), round(window.left)
        bottom, right = round(window.top + window.height), round(window.left + window.width)
        inside = cut_boxes(boxes, (left, top, right, bottom))
        is_partial = visible_share(boxes, (left, top, right, bottom)) < self._config.min_visible
        side = self._config.crop
        square, inside = resize(pixels[top:bottom, left:right], inside, (side, side))
        seed = int(rng.integers(2**62))
        square, inside, _ = self._change(square, inside, NO_MASKS, seed=seed, size=(side, side))
        return square, inside, is_partial

    def _draw(self, pixels: np.ndarray, boxes: np.ndarray, rng: np.random.Generator) -> Window:
        height, width = pixels.shape[:2]
        for _ in range(WINDOW_TRIES):
            window = draw_window((height, width), rng, self._config)
            x1, y1 = round(window.left), round(window.top)
            x2, y2 = round(window.left + window.width), round(window.top + window.height)
            shares = visible_share(boxes, (x1, y1, x2, y2))
            if min(x2 - x1, y2 - y1) > 0 and shares.max() >= self._config.min_visible:
                return window
        return Window(0, 0, height, width)


def cut_boxes(boxes: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """Return the parts of boxes (n, 4) inside a window x1, y1, x2, y2, in its own frame."""
    x1, y1, x2, y2 = window
    low, high = (0, 0, 0, 0), (x2 - x1, y2 - y1, x2 - x1, y2 - y1)
    moved: np.ndarray = np.clip(boxes - np.array([x1, y1, x1, y1], dtype=np.float32), low, high)
    return moved


def visible_share(boxes: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """Return (n,), the share of each box's area that lies inside a window x1, y1, x2, y2."""
    sides = np.maximum(cut_boxes(boxes, window) @ _SIDES, 0)
    share: np.ndarray = sides.prod(axis=1) / (boxes @ _SIDES).prod(axis=1)
    return share


# boxes (n, 4) @ this: width and height
_SIDES = np.array([[-1, 0], [0, -1], [1, 0], [0, 1]], dtype=np.float32)
