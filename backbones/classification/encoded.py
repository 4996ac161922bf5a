"""Training images that are decoded, cropped and augmented on the device. B images, S crop side."""

from collections.abc import Sequence
from dataclasses import dataclass
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
from backbones.device_resize import crop_and_resize
from backbones.images import MAX_PIXELS, read_file
from backbones.jpeg import is_plain, jpeg_size


@dataclass(frozen=True)
class EncodedSample:
    """A training image before augmentation, as `FolderDataset.load` returns it.

    file: the bytes of a plain JPEG; empty if the image is decoded already. size: (height, width) of
    the image in `file`; (0, 0) without one. pixels: (M, S, S, 3) uint8 RGB, M = 1: the crop of an
    image that is decoded already; M = 0 otherwise. choices: the random choices. name: the file's
    path. label, image_id, seed: as in `ClassificationSample`.
    """

    name: str
    file: bytes
    size: tuple[int, int]
    pixels: np.ndarray
    choices: TrainingChoices
    label: int
    image_id: int
    seed: int


@dataclass(frozen=True)
class EncodedBatch:
    """Encoded training images; `to` decodes them and makes a ClassificationBatch.

    files: the bytes of all files, one after the other, (N,) uint8. lengths: of each file; 0 for an
    image that was decoded already. crops: (M, 3, S, S) uint8, those images in their order.
    sizes, choices, names: of each image. labels, image_ids, seeds: as in `ClassificationBatch`.
    """

    files: Tensor
    lengths: tuple[int, ...]
    crops: Tensor
    sizes: tuple[tuple[int, int], ...]
    choices: tuple[TrainingChoices, ...]
    names: tuple[str, ...]
    labels: Tensor
    image_ids: Tensor
    seeds: Tensor

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.lengths)

    def pin_memory(self) -> Self:
        """Return the batch itself: the decoder reads the files on the CPU."""
        return self

    def to(self, device: torch.device, *, non_blocking: bool = False) -> ClassificationBatch:
        """Decode, crop and augment the images on `device`.

        Raises:
            UserError: torchcodec is missing.
            BadImageError: an image cannot be decoded.
        """
        pixels = self._crops_on(device, non_blocking=non_blocking)
        labels, image_ids, seeds = (
            each.to(device, non_blocking=non_blocking)
            for each in (self.labels, self.image_ids, self.seeds)
        )
        return ClassificationBatch(augment_batch(pixels, self.choices), labels, image_ids, seeds)

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
        windows = [whole_pixels(self.choices[n].window, self.sizes[n]) for n in encoded]
        found = crop_and_resize(images, windows, self.crops.shape[-1])
        if not decoded:
            return found
        places = torch.tensor([*encoded, *decoded]).argsort().to(device, non_blocking=non_blocking)
        return torch.cat([found, crops]).index_select(0, places)


def encode_sample(
    path: Path, transform: TrainingTransform, *, label: int, image_id: int, seed: int
) -> EncodedSample:
    """Read a training image without decoding it; what is not a plain JPEG is decoded and cropped.

    Raises:
        UserError, BadImageError: as for `TrainingTransform.crop_file`.
    """
    side = transform.side
    data = b"" if path.suffix == BITMAP_SUFFIX else read_file(path)
    size = jpeg_size(data) if is_plain(data) else None
    if size is not None and 0 < size[0] * size[1] <= MAX_PIXELS:
        choices, pixels = transform.sample(size, seed=seed), np.zeros((0, side, side, 3), np.uint8)
    else:
        data, size = b"", (0, 0)
        crop, choices = transform.crop_file(path, seed=seed)
        pixels = crop[None]
    return EncodedSample(
        str(path), data, size, pixels, choices, label=label, image_id=image_id, seed=seed
    )


def encoded_batch(samples: Sequence[EncodedSample]) -> EncodedBatch:
    """Make a batch of at least one sample."""
    data = np.frombuffer(bytearray(b"".join(sample.file for sample in samples)), np.uint8)
    crops = np.concatenate([sample.pixels for sample in samples])
    return EncodedBatch(
        files=torch.from_numpy(data),
        lengths=tuple(len(sample.file) for sample in samples),
        crops=torch.from_numpy(crops).permute(0, 3, 1, 2),
        sizes=tuple(sample.size for sample in samples),
        choices=tuple(sample.choices for sample in samples),
        names=tuple(sample.name for sample in samples),
        labels=torch.tensor([sample.label for sample in samples]),
        image_ids=torch.tensor([sample.image_id for sample in samples]),
        seeds=torch.tensor([sample.seed for sample in samples]),
    )


def augment_batch(pixels: Tensor, choices: Sequence[TrainingChoices]) -> Tensor:
    """Return the crops (B, 3, S, S) uint8 after flip, operations and colour shift.

    It is `transforms.augment` for a whole batch; see `device_operations` for how results differ.
    """
    device = pixels.device
    flips = torch.tensor([each.flip for each in choices]).to(device, non_blocking=True)
    pixels = torch.where(flips[:, None, None, None], pixels.flip(3), pixels)
    for step in range(max(len(each.operations) for each in choices)):
        pixels = apply_operations(pixels, [each.operations[step] for each in choices])
    shifts = [each.color_shift for each in choices if each.color_shift is not None]
    if shifts:
        shift = torch.tensor(np.stack(shifts)).to(device, non_blocking=True)[:, :, None, None]
        pixels = (pixels + shift).round().clamp(0, 255).to(torch.uint8)
    return pixels
