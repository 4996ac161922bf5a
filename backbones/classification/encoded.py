"""Training images that are decoded, cropped and augmented on the device. B images, S crop side."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from backbones.bitmaps import BITMAP_SUFFIX
from backbones.classification.device_operations import apply_operations
from backbones.classification.structures import ClassificationBatch
from backbones.classification.transforms import TrainingChoices, TrainingTransform, whole_pixels
from backbones.device_jpeg import decode_jpegs
from backbones.device_resize import resized_crops
from backbones.images import MAX_PIXELS, read_file
from backbones.jpeg import is_plain, jpeg_size
from engine.device_copies import copy_of_array
from engine.errors import UserError


@dataclass(frozen=True)
class EncodedSample:
    """A training image before augmentation, as `FolderDataset.load` returns it.

    file: the bytes of a plain JPEG; empty for an image that the worker decoded. crop: (S, S, 3)
    uint8 RGB, the crop of an image that the worker decoded; None for a plain JPEG. choices: the
    random choices. name: the file's path. label, image_id, seed: as in `ClassificationSample`.
    """

    name: str
    file: bytes
    crop: np.ndarray | None
    choices: TrainingChoices
    label: int
    image_id: int
    seed: int


@dataclass(frozen=True)
class EncodedBatch:
    """Encoded training images; `to` decodes them and makes a ClassificationBatch.

    files: the bytes of all files, one after the other, (N,) uint8. lengths: of each image's file; 0
    for an image that a worker decoded. crops: (M, 3, S, S) uint8, of these M images in their order.
    choices, names: of each image. labels, image_ids, seeds: as in `ClassificationBatch`.
    """

    files: Tensor
    lengths: tuple[int, ...]
    crops: Tensor
    choices: tuple[TrainingChoices, ...]
    names: tuple[str, ...]
    labels: Tensor
    image_ids: Tensor
    seeds: Tensor

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.lengths)

    def pin_memory(self) -> Self:
        """Return a copy with all but the files, which the decoder reads, in page-locked memory."""
        names = ("crops", "labels", "image_ids", "seeds")
        return replace(self, **{name: getattr(self, name).pin_memory() for name in names})

    def to(self, device: torch.device, *, non_blocking: bool = False) -> ClassificationBatch:
        """Decode, crop and augment the images on `device`; pixels are channels last.

        Raises:
            UserError: torchcodec is missing, or does not work on the device.
            BadImageError: an image cannot be decoded.
        """
        pixels = augment_batch(self._crops_on(device, non_blocking=non_blocking), self.choices)
        labels, image_ids, seeds = (
            each.to(device, non_blocking=non_blocking)
            for each in (self.labels, self.image_ids, self.seeds)
        )
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return ClassificationBatch(pixels, labels, image_ids, seeds)

    def _crops_on(self, device: torch.device, *, non_blocking: bool) -> Tensor:
        """Return the crops (B, 3, S, S) of all images."""
        encoded = [number for number, length in enumerate(self.lengths) if length]
        decoded = [number for number, length in enumerate(self.lengths) if not length]
        crops = self.crops.to(device, non_blocking=non_blocking)
        if not encoded:
            return crops
        parts = self.files.split([self.lengths[number] for number in encoded])
        names = [self.names[number] for number in encoded]
        images = decode_jpegs(parts, names, device=device)
        windows = [
            whole_pixels(self.choices[number].window, (image.shape[1], image.shape[2]))
            for number, image in zip(encoded, images, strict=True)
        ]
        found = resized_crops(images, windows, crops.shape[-1])
        places = copy_of_array(np.argsort([*encoded, *decoded]), device)
        return torch.cat([found, crops]).index_select(0, places) if decoded else found


def read_sample(
    path: Path, transform: TrainingTransform, *, label: int, image_id: int, seed: int
) -> EncodedSample:
    """Read a training image without decoding it; what is not a plain JPEG is decoded and cropped.

    Raises:
        UserError, BadImageError: as for `TrainingTransform.crop_file`.
    """
    file, crop = b"", None
    if path.suffix == BITMAP_SUFFIX:
        crop, choices = transform.crop_file(path, seed=seed)
    else:
        data = read_file(path)
        size = jpeg_size(data) if is_plain(data) else None
        if size is not None and 0 < size[0] * size[1] <= MAX_PIXELS:
            file, choices = data, transform.sample(size, seed=seed)
        else:
            crop, choices = transform.crop(data, path, seed=seed)
    return EncodedSample(str(path), file, crop, choices, label, image_id=image_id, seed=seed)


def collate_encoded(samples: Sequence[EncodedSample], *, side: int) -> EncodedBatch:
    """Make a batch of at least one sample; `side` is that of the crops."""
    data = np.frombuffer(bytearray(b"".join(sample.file for sample in samples)), np.uint8)
    decoded = [sample.crop for sample in samples if sample.crop is not None]
    crops = np.stack(decoded) if decoded else np.zeros((0, side, side, 3), np.uint8)
    return EncodedBatch(
        files=torch.from_numpy(data),
        lengths=tuple(len(sample.file) for sample in samples),
        crops=torch.from_numpy(crops).permute(0, 3, 1, 2),
        choices=tuple(sample.choices for sample in samples),
        names=tuple(sample.name for sample in samples),
        labels=torch.tensor([sample.label for sample in samples]),
        image_ids=torch.tensor([sample.image_id for sample in samples]),
        seeds=torch.tensor([sample.seed for sample in samples]),
    )


def augment_batch(pixels: Tensor, choices: Sequence[TrainingChoices]) -> Tensor:
    """Return crops after flip, operations and colour shift: `transforms.augment` for a batch.

    `device_operations` says how results differ.

    Args:
        pixels: (B, 3, S, S) uint8 RGB, B at least 1.
        choices: of each image, from one transform.
    """
    flips = copy_of_array(np.array([each.flip for each in choices]), pixels.device)
    pixels = torch.where(flips[:, None, None, None], pixels.flip(3), pixels)
    for step in range(len(choices[0].operations)):
        pixels = apply_operations(pixels, [each.operations[step] for each in choices])
    shifts = [each.color_shift for each in choices if each.color_shift is not None]
    if shifts:
        shift = copy_of_array(np.stack(shifts), pixels.device)[:, :, None, None]
        pixels = (pixels + shift).round().clamp(0, 255).to(torch.uint8)
    return pixels


def undecoded_note(paths: Sequence[Path]) -> str | None:
    """Return a log line if some of `paths`, a sample of a set, are not left to the device.

    Files that cannot be read are skipped: reading them later says why.
    """
    count = 0
    for path in paths:
        with suppress(UserError):
            count += path.suffix == BITMAP_SUFFIX or not is_plain(read_file(path))
    if not count:
        return None
    return (
        f"data.decode=device: {count} of {len(paths)} training images that were looked at are not "
        "plain JPEG files; the workers decode and crop such images"
    )
