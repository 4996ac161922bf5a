"""Data set of a detection run: images in one folder, annotations in one COCO file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from backbones.bad_images import bad_image_error
from backbones.images import (
    BadImageError,
    bit_depth_note,
    decode,
    image_size,
    read_file,
    read_image,
)
from backbones.weights import listing
from detection.config import DataConfig, EvaluationConfig, SplitConfig
from detection.data.box_checks import format_size
from detection.data.coco import Annotations, ClassMap, read_coco
from detection.data.coco_cache import CACHED_BYTES
from detection.data.coco_json import shown
from detection.data.collate import Sample, collate_detection, round_up
from detection.data.data_report import DataReport
from detection.data.eval_sizes import EvalSizes
from detection.data.grouping import aspect_groups
from detection.data.image_files import image_path, unreadable_images
from detection.data.masks import draw_masks
from detection.data.repeat_factors import RepeatFactors
from detection.data.sides_swapped import describe_swapped_sides
from detection.data.square_samples import SquareSamples
from detection.data.transforms import Augment, resize, resized_size
from detection.structures import DetectionBatch
from engine import paths
from engine.checksum import digest_of
from engine.errors import SkippedSampleError, UserError


@dataclass(frozen=True)
class BatchShape:
    """The common shape of all parts of a global training batch.

    short_side: shorter side of its images after the resize; None: each samples its own from its
    seed. size: (height, width) that contains all resized images.
    """

    short_side: int | None
    size: tuple[int, int]


class CocoDetection:
    """Images and boxes of one split; implements `engine.task.DataSet`.

    Args:
        split: folder and JSON file.
        config: policies, sizes and augmentation.
        training: if True, images are augmented at random and grouped by aspect ratio. If False,
            they are only resized, and grouped by padded shape so that the result of an image does
            not depend on the other images of its batch.
        classes: the expected categories; None takes them from the file.
        with_masks: whether samples have masks; all objects except crowd regions must have one.
        batch_size: images in a training batch, see `aspect_groups`.
        evaluation: its `scales` are those of multi-scale testing; None: one scale.

    Raises:
        UserError: the folder or the file is missing, or the file is wrong.
    """

    def __init__(
        self,
        split: SplitConfig,
        *,
        config: DataConfig,
        training: bool,
        classes: ClassMap | None = None,
        with_masks: bool = False,
        batch_size: int = 1,
        evaluation: EvaluationConfig | None = None,
    ) -> None:
        if not split.annotations:
            name = "train" if training else "val"
            raise UserError(f"data.{name}.annotations: expected a COCO JSON, got none")
        self._folder = paths.require_folder(Path(split.images), "the folder of images")
        self.annotations: Annotations = read_coco(
            split.annotations,
            classes=classes,
            on_bad_box=config.on_bad_box,
            need_boxes=training,
            need_masks=with_masks or (training and config.augment.copy_paste_prob > 0),
            for_scoring=not training,
            cache_from=CACHED_BYTES if config.cache else None,
        )
        found = self.annotations
        self._with_masks = with_masks
        self._config = config
        self._eval_sizes = EvalSizes.of(config, evaluation or EvaluationConfig())
        self._augment: Augment | None = None
        self._squares: SquareSamples | None = None
        self._missing: frozenset[int] = frozenset()  # rows that are skipped without a try
        self._batch_size = batch_size
        self._drops_crowds = training and config.crowds == "drop"
        rows = np.arange(len(found))
        if training:
            augment = config.augment
            self._augment = Augment(
                short_sides=augment.short_sides,
                flip_prob=augment.flip_prob,
                vertical_flip_prob=augment.vertical_flip_prob,
                color_jitter=augment.color_jitter,
            )
            if augment.large_scale_jitter is not None:
                self._squares = SquareSamples(
                    augment,
                    found,
                    read=self._read,
                    with_masks=with_masks,
                    drop_crowds=self._drops_crowds,
                )
            if not config.keep_empty:
                rows = rows[_has_objects(found)]
        self._select_rows(rows)

    def _select_rows(self, rows: np.ndarray) -> None:
        """Restrict the data set to these rows of the file."""
        self._rows = rows
        sizes = self.annotations.sizes[rows]
        self.groups: np.ndarray = (
            self._shape_groups(sizes) if self._augment is None else self._aspect_groups(sizes)
        )
        thresh = None if self._augment is None else self._config.repeat_thresh
        self._repeats = None if thresh is None else RepeatFactors.of(self.annotations, rows, thresh)

    @property
    def classes(self) -> ClassMap:
        """The classes and their category ids."""
        return self.annotations.classes

    @property
    def report(self) -> DataReport:
        """The counts of reading the file and of `check_images`."""
        return self.annotations.report

    @property
    def repeat_factors(self) -> np.ndarray | None:
        """(N,) mean number of times that each image occurs in an epoch; None: once."""
        return None if self._repeats is None else self._repeats.by_image

    def notes(self, name: str) -> list[str]:
        """Return log lines about the data; `name` is the name of the split."""
        counts = ", ".join(f"{count} {what}" for what, count in self.report.rows())
        notes = [f"{name} data: {counts}"]
        if self.annotations.cache_note is not None:
            notes.append(f"{name} annotations: {self.annotations.cache_note}")
        if len(self.annotations.boxes) and self.annotations.is_crowd.all():
            notes.append(
                f"{name} data: all {len(self.annotations.boxes)} boxes are crowd regions, which"
                " are not scored: there will be no AP and AR"
            )
        if self._repeats is not None:
            notes += [f"{name} data: {line}" for line in self._repeats.lines()]
        if self._drops_crowds and self.report.crowds:
            notes.append(
                f"{name} data: {self.report.crowds} crowd regions dropped (data.crowds=drop)"
            )
        if self._augment is not None:  # once per run: validation images usually have the same depth
            depth = bit_depth_note(map(self._path_of, self._rows.tolist()))
            notes += [depth] if depth else []
        return notes

    @cached_property
    def digest(self) -> str:
        """Checksum of all annotations of the file, including images without a training object."""
        found = self.annotations
        parts = [found.image_ids, found.sizes, found.offsets, found.boxes, found.labels]
        parts += [found.is_crowd, found.is_difficult, found.is_ignored, found.areas]
        parts += [found.file_names.data, found.file_names.offsets]
        if self._with_masks or self._config.augment.copy_paste_prob > 0:
            masks = found.segmentations.in_float32()
            parts += [masks.coordinates, masks.part_offsets, masks.object_offsets]
            parts += [masks.run_lengths.data, masks.run_lengths.offsets]
        return digest_of(parts)

    @property
    def image_ids(self) -> np.ndarray:
        """(N,) int64 image ids, in the order of `load`'s index."""
        ids: np.ndarray = self.annotations.image_ids[self._rows]
        return ids

    def __len__(self) -> int:
        """Return the number of images, without the empty ones if the config drops them."""
        return len(self._rows)

    def load(self, index: int, seed: int, batch_shape: BatchShape | None = None) -> Sample:
        """Read and transform image `index`.

        Args:
            index: in 0..N-1.
            seed: determines flips and colours, and the size of a training image if `batch_shape` is
                None or has no `short_side`.
            batch_shape: the shape of its training batch; has no effect with large-scale jitter.

        Raises:
            UserError: the image is missing, or bad and `on_bad_image` is "error".
            SkippedSampleError: the image is bad, or was missing in `check_images`, and
                `on_bad_image` is "skip".
        """
        row = int(self._rows[index])
        if row in self._missing:
            raise SkippedSampleError(f"{self._path_of(row)}: missing at the start of the run")
        try:
            if self._squares is not None:
                return self._squares.load(self._rows, index, seed=seed)
            pixels = self._read(row)
        except BadImageError as error:
            raise bad_image_error(error, self._config.on_bad_image) from error
        objects = self._objects_of(row)
        original_size = (pixels.shape[0], pixels.shape[1])
        boxes = self.annotations.boxes[objects]
        # Difficult and ignored objects are treated like crowd regions: neither foreground nor
        # background.
        is_ignored = ~self.annotations.is_plain(objects)
        other_pixels: tuple[np.ndarray, ...] = ()
        if self._augment is not None:
            short_side = batch_shape.short_side if batch_shape else None
            if short_side is None:
                short_side = self._augment.sample_short_side(seed)
            size = resized_size(original_size, short_side, self._config.augment.max_side)
            # masks are drawn at the final size; pixels and boxes are still in original pixels
            masks = self._draw_masks(row, size)
            pixels, boxes, masks = self._augment(pixels, boxes, masks, seed=seed, size=size)
        else:
            other_pixels = self._eval_sizes.other_pixels(pixels)
            size = self._eval_sizes.sizes(original_size)[0]
            masks = self._draw_masks(row, size)
            pixels, boxes = resize(pixels, boxes, size)
        return Sample(
            pixels=pixels,
            boxes=boxes,
            labels=self.annotations.labels[objects],
            is_crowd=is_ignored,
            original_size=original_size,
            image_id=int(self.annotations.image_ids[row]),
            seed=seed,
            masks=masks if self._with_masks else None,
            other_pixels=other_pixels,
        )

    def batch_shape(self, sample_keys: Sequence[tuple[int, int]]) -> BatchShape:
        """Sample the short sides of a global training batch, and return the shape of the batch.

        All its images get the same short side, unless `short_side_per` gives each its own; then a
        fifth of a batch of 8 is padding, instead of a twentieth. With large-scale jitter the shape
        is its square.

        Args:
            sample_keys: (index, seed) of its images. The sizes come from the annotations; no image
                is read.
        """
        assert self._augment is not None, "evaluation batches have one padded shape already"
        if self._squares is not None:
            return BatchShape(self._squares.side, (self._squares.side, self._squares.side))
        # every process gets all keys of the global batch, so all sample the same numbers
        if self._config.augment.short_side_per == "image":
            shared = None
            short_sides = [self._augment.sample_short_side(seed) for _, seed in sample_keys]
        else:  # by the first image's seed
            shared = self._augment.sample_short_side(sample_keys[0][1])
            short_sides = [shared] * len(sample_keys)
        sizes = [
            resized_size((height, width), short_side, self._config.augment.max_side)
            for (index, _), short_side in zip(sample_keys, short_sides, strict=True)
            # a list of one element, to unpack the row
            for height, width in [self.annotations.sizes[self._rows[index]].tolist()]
        ]
        largest = max(height for height, _ in sizes), max(width for _, width in sizes)
        return BatchShape(shared, largest)

    def collate(
        self, samples: Sequence[Sample], batch_shape: BatchShape | None = None
    ) -> DetectionBatch:
        """Collate one or more samples, padded to at least the size of the batch shape."""
        divisor = self._config.size_divisor
        return collate_detection(
            samples, size_divisor=divisor, batch_shape=batch_shape.size if batch_shape else (1, 1)
        )

    def check_images(self) -> None:
        """Check that all images exist, without opening them.

        If `on_bad_image` is "skip", missing images are counted and named. Training drops them; in
        validation they count as images without detections.

        Raises:
            UserError: images are missing and `on_bad_image` is "error", or all are missing.
        """
        names = [self.annotations.file_name(row) for row in self._rows.tolist()]
        reasons = unreadable_images(self._folder, names)
        if not reasons:
            return
        missing = [f"{shown(names[place])} ({reason})" for place, reason in reasons.items()]
        if self._config.on_bad_image == "error" or len(missing) == len(names):
            policy = "; data.on_bad_image=skip skips them" if len(missing) < len(names) else ""
            raise UserError(
                f"{self._folder}: expected the {len(names)} images of {self.annotations.path}, "
                f"got {len(names) - len(missing)}, without {listing(missing)}{policy}"
            )
        report = replace(self.annotations.report, missing=tuple(missing))
        self.annotations = replace(self.annotations, report=report)
        places = list(reasons)
        self._missing = frozenset(self._rows[places].tolist())
        if self._augment is not None:
            self._select_rows(np.delete(self._rows, places))

    def _objects_of(self, row: int) -> np.ndarray:
        """Return the rows (N,) of the objects of image `row`, without crowd regions if dropped."""
        rows = self.annotations.objects_of(row)
        objects = np.arange(rows.start, rows.stop)
        return objects[~self.annotations.is_crowd[objects]] if self._drops_crowds else objects

    def _path_of(self, row: int) -> Path:
        return image_path(self._folder, self.annotations.file_name(row))

    def _read(self, row: int, reduction: int = 1) -> np.ndarray:
        """Return the image of `row`, and check that it has the annotated size.

        A JPEG is decoded at 1 / `reduction` of its size, see `backbones.images.decode`.
        """
        path = self._path_of(row)
        data = read_file(path)
        expected = tuple(self.annotations.sizes[row].tolist())
        if reduction > 1 and image_size(data) == expected:  # of a JPEG's header; else None
            return decode(data, path, reduction=reduction)
        pixels = decode(data, path)
        if pixels.shape[:2] == expected:
            return pixels
        got = format_size(pixels.shape)
        message = f"{path}: expected {format_size(expected)} as annotated, got {got}"
        # shape[1::-1] is (width, height): the sides are swapped, usually by an EXIF rotation
        if pixels.shape[1::-1] == expected:
            is_unrotated = read_image(path, rotate=False).shape[:2] == expected
            message += " after its EXIF rotation" if is_unrotated else ""
            message += f"; {describe_swapped_sides(self.annotations, row, self._path_of)}"
        raise BadImageError(message)

    def _draw_masks(self, row: int, resized: tuple[int, int]) -> np.ndarray:
        """Return the masks (N, *resized) bool of the objects of `row`; (0, ...) without masks."""
        if not self._with_masks:
            return np.zeros((0, *resized), np.bool_)
        annotations = self.annotations
        objects = self._objects_of(row)
        # segmentations are in file order, not grouped by image like the other arrays
        rows = annotations.rows_in_file[objects].tolist()
        crowds = annotations.is_crowd[objects].tolist()
        height, width = annotations.sizes[row].tolist()
        return draw_masks(
            annotations.segmentations,
            [None if crowd else index for index, crowd in zip(rows, crowds, strict=True)],
            (height, width),
            resized,
        )

    def _aspect_groups(self, sizes: np.ndarray) -> np.ndarray:
        """Return the aspect ratio group of each image, (N,) int64; see `aspect_groups`."""
        if self._squares is not None:  # all batches have one shape
            return np.zeros(len(sizes), np.int64)
        augment = self._config.augment
        return aspect_groups(
            sizes,
            self._config.aspect_groups,
            batch_size=self._batch_size,
            short_side=max(augment.short_sides),
            max_side=augment.max_side,
        )

    def _shape_groups(self, sizes: np.ndarray) -> np.ndarray:
        """Return (N,) int64, a group number per padded shape (of all scales) at evaluation."""
        divisor = self._config.size_divisor
        shapes = [
            [round_up(side, divisor) for size in self._eval_sizes.sizes(original) for side in size]
            for original in sizes.tolist()
        ]
        # the inverse indices number the distinct rows: height and width at each scale
        groups: np.ndarray = np.unique(shapes, axis=0, return_inverse=True)[1]
        return groups


def _has_objects(annotations: Annotations) -> np.ndarray:
    """Return (N,) bool: the image has a training object."""
    # Prefix sum: single[i] training objects precede object i. The difference between an image's two
    # offsets is its own count. np.add.reduceat is wrong for images without objects.
    single = np.concatenate([[0], np.cumsum(annotations.is_plain())])
    has: np.ndarray = np.diff(single[annotations.offsets]) > 0
    return has
