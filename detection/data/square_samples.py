"""Training samples with large-scale jitter and copy-paste: squares of one size, from files.

N objects of one image, S side of the square.
"""

from collections.abc import Callable

import numpy as np

from detection.data.coco import Annotations
from detection.data.collate import Sample
from detection.data.copy_paste import Objects, paste
from detection.data.large_scale_jitter import PAD_VALUE, SquareView, sample_view
from detection.data.masks import TightMask, draw_mask
from detection.data.transforms import NO_MASKS, Augment
from detection.data_config import AugmentConfig

ReadImage = Callable[[int, int], np.ndarray]
"""Reads the image of a row of the annotations, (H, W, 3) uint8; a JPEG smaller by a reduction."""


class SquareSamples:
    """Reads training images as squares; each depends on its index and its seed alone.

    Boxes are clipped to the square. With masks, or to paste objects, they exceed the masks inside
    the square by at most a pixel. Objects of which nothing is left are dropped.

    Args:
        config: its `large_scale_jitter` must be set.
        annotations: of all images; with masks, if there are to be any or objects are pasted.
        read: reads one of them.
        with_masks: whether samples have masks.
        drop_crowds: whether crowd regions are dropped (`data.crowds`).
    """

    def __init__(
        self,
        config: AugmentConfig,
        annotations: Annotations,
        *,
        read: ReadImage,
        with_masks: bool,
        drop_crowds: bool = False,
    ) -> None:
        assert config.large_scale_jitter is not None, "no squares without large-scale jitter"
        self.side = config.large_scale_jitter.size
        self._config = config
        self._annotations = annotations
        self._read = read
        self._with_masks = with_masks
        self._drop_crowds = drop_crowds
        self._draws_masks = with_masks or config.copy_paste_prob > 0
        self._colors: Augment | None = None
        if config.color_jitter > 0:
            self._colors = Augment(
                short_sides=(self.side,),
                flip_prob=0.0,
                vertical_flip_prob=0.0,
                color_jitter=config.color_jitter,
            )

    def load(self, rows: np.ndarray, index: int, *, seed: int) -> Sample:
        """Read image `index`, and the image whose objects are pasted over it, if any.

        Args:
            rows: (images,) int64, the training images as rows of the annotations.
            index: into `rows`.
            seed: 0 or more; the only source of randomness.

        Raises:
            UserError: from `read`.
        """
        # Two streams of random numbers: what is pasted does not change the image below it.
        first, second = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(2))
        row = int(rows[index])
        view = self._sample_view(row, first)
        pixels = self._square(view, self._read(row, view.reduction), rng=first)
        crowds = self._annotations.is_crowd[self._annotations.objects_of(row)]
        objects = self._objects(row, view, chosen=~(crowds & self._drop_crowds))
        if second.random() < self._config.copy_paste_prob:
            # Counted from `index`: where a bad second image makes the loader read the next index
            # with the same seed in place of this one, the second image is another one too.
            partner = (index + int(second.integers(len(rows)))) % len(rows)
            objects = self._paste(pixels, objects, row=int(rows[partner]), rng=second)
        masks = None
        if self._with_masks:
            masks = np.zeros((len(objects.labels), self.side, self.side), np.bool_)
            for canvas, mask in zip(masks, objects.masks, strict=True):
                if mask is not None:
                    canvas[mask.rectangle.slices] = mask.pixels
        return Sample(
            pixels=pixels,
            boxes=objects.boxes,
            labels=objects.labels,
            is_crowd=objects.is_crowd,
            original_size=view.size,
            image_id=int(self._annotations.image_ids[row]),
            seed=seed,
            masks=masks,
        )

    def _sample_view(self, row: int, rng: np.random.Generator) -> SquareView:
        height, width = self._annotations.sizes[row].tolist()
        return sample_view((height, width), self._config, rng=rng)

    def _square(
        self, view: SquareView, image: np.ndarray, *, rng: np.random.Generator
    ) -> np.ndarray:
        """Return the pixels (S, S, 3) of a view, with its padding."""
        content = view.content
        pixels = np.empty((self.side, self.side, 3), np.uint8)
        if (content.height, content.width) != (self.side, self.side):
            pixels[:] = PAD_VALUE
        pixels[content.slices] = self._jitter_colors(view.cut(image, content), rng)
        return pixels

    def _paste(
        self, pixels: np.ndarray, objects: Objects, *, row: int, rng: np.random.Generator
    ) -> Objects:
        """Paste objects of image `row` over `pixels`, in place; return the objects of the result.

        Of the N objects that the square of image `row` shows, without regions to ignore, a random
        subset is pasted: its size is drawn uniformly from 0 to N, as in the authors' code
        (tensorflow/tpu, models/official/detection/dataloader/extract_objects_parser.py).
        """
        view = self._sample_view(row, rng)
        objects_of_row = self._annotations.objects_of(row)
        _, is_shown = view.place_boxes(self._annotations.boxes[objects_of_row])
        shown = np.flatnonzero(is_shown & self._annotations.is_plain(objects_of_row))
        count = rng.integers(len(shown) + 1)
        is_chosen = np.zeros(len(is_shown), np.bool_)
        is_chosen[rng.permutation(shown)[:count]] = True
        pasted = self._objects(row, view, chosen=is_chosen)
        if not len(pasted.labels):
            return objects
        patch = view.cut(self._read(row, view.reduction), pasted.rectangle)
        return paste(pixels, objects, pasted=pasted, patch=self._jitter_colors(patch, rng))

    def _objects(self, row: int, view: SquareView, *, chosen: np.ndarray) -> Objects:
        """Return the objects of image `row` that a view shows, of those `chosen` (N,) bool."""
        annotations = self._annotations
        objects = annotations.objects_of(row)
        boxes, is_shown = view.place_boxes(annotations.boxes[objects])
        is_plain = annotations.is_plain(objects)
        is_drawn = chosen & is_plain & self._draws_masks
        masks = tuple(
            self._draw(index, view) if drawn else None
            for index, drawn in zip(
                annotations.rows_in_file[objects].tolist(), is_drawn.tolist(), strict=True
            )
        )
        found = Objects(boxes, annotations.labels[objects], ~is_plain, masks)
        # where there is a mask, it decides whether anything of the object is left
        return found.take(chosen & (is_shown | is_drawn)).fitted()

    def _draw(self, index: int, view: SquareView) -> TightMask:
        segmentations = self._annotations.segmentations
        mask = draw_mask(
            segmentations, index, size=view.size, resized=view.resized, window=view.window
        )
        return view.place_mask(mask)

    def _jitter_colors(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change the colours of pixels (h, w, 3); uses one number of `rng` in any case."""
        seed = int(rng.integers(2**62))
        if self._colors is None:
            return pixels
        height, width = pixels.shape[:2]
        changed, _, _ = self._colors(
            pixels, np.zeros((0, 4), np.float32), NO_MASKS, seed=seed, size=(height, width)
        )
        return changed
