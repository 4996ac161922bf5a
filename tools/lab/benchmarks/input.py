"""Benchmark: the input pipeline on one core, from JPEG files to batches, against two others.

Batches hold two images with a shorter side of 800 and a longer one of at most 1333 pixels. All
images are flipped, so that every pipeline does the same work. The peers get parsed boxes, and
return normalised float pixels; ours returns uint8 pixels, which the model normalises.
"""

import contextlib
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import functional as image_ops

from detection.config import AugmentConfig, DataConfig
from detection.data.collate import round_up
from detection.data.dataset import CocoDetection
from detection.data.transforms import resized_size
from tools.lab.benchmarks.errors import DisagreementError
from tools.lab.benchmarks.images import coco128
from tools.lab.benchmarks.input_squares import square_rows
from tools.lab.benchmarks.measure import Row, check_close, compare
from tools.lab.benchmarks.settings import Settings

BATCH_SIZE, SHORT_SIDE, MAX_SIDE, DIVISOR = 2, 800, 1333, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's pixels in 0..1, for the normalisation of both peers."""
MAX_PIXEL_DIFFERENCE = 2.0
"""Largest mean difference of an image's pixels, of 255: decoders and resize kernels differ."""

Batch = tuple[Tensor, list[Tensor], list[tuple[int, int]]]
"""Pixels (B, 3, H, W), then for each image its boxes (n, 4) and its (height, width)."""
Reader = Callable[[list[int]], Batch]


def input_pipeline(settings: Settings) -> list[Row]:
    """Measure the reading of the 128 images of coco128 with each pipeline."""
    split = coco128()
    augment = AugmentConfig(short_sides=(SHORT_SIDE,), max_side=MAX_SIDE, flip_prob=1.0)
    config = DataConfig(train=split, augment=augment, size_divisor=DIVISOR)
    data = CocoDetection(split, config=config, training=True)
    count = 8 if settings.small else len(data)
    plan = [list(range(first, first + BATCH_SIZE)) for first in range(0, count, BATCH_SIZE)]
    folder = Path(split.images)
    ours = partial(_read_ours, data)
    rows = []
    with one_thread():
        for name, peer, promised, aim in (
            ("PIL and torchvision's transforms", _torchvision_reader(data, folder), 3.2, 4.3),
            ("cv2 and albumentations, float", _albumentations_reader(data, folder), 1.6, 2.1),
        ):
            differences = [_check_same(ours(batch), peer(batch), data, batch) for batch in plan]
            taken = compare(
                partial(_read, ours, plan),
                partial(_read, peer, plan),
                rounds=settings.rounds,
                log=settings.log,
            )
            seen = f"pixels differ by {np.mean(differences):.2g} of 255"
            rows.append(
                Row(
                    f"against {name}",
                    taken.ratio,
                    promised=promised,
                    aim=aim,
                    detail=f"{count} images: {taken}; {seen}",
                )
            )
        rows += square_rows(split, settings)
    return rows


def _read(reader: Reader, plan: list[list[int]]) -> None:
    """Read all batches of a plan."""
    for batch in plan:
        reader(batch)


def _read_ours(data: CocoDetection, indices: list[int]) -> Batch:
    sample_keys = [(index, index) for index in indices]
    batch_shape = data.batch_shape(sample_keys)
    batch = data.collate(
        [data.load(index, seed, batch_shape) for index, seed in sample_keys], batch_shape
    )
    targets = batch.targets
    # without the rows that pad the ground truth of a batch
    boxes = [one[real] for one, real in zip(targets.boxes, targets.valid, strict=True)]
    return batch.images.pixels, boxes, [(h, w) for h, w in batch.images.sizes.tolist()]


def _torchvision_reader(data: CocoDetection, folder: Path) -> Reader:
    """Return the pipeline of torchvision's references/detection with its default backend, PIL."""
    transform = GeneralizedRCNNTransform(
        SHORT_SIDE, MAX_SIDE, list(MEAN), list(STD), size_divisible=DIVISOR
    )
    transform.train()

    def read(indices: list[int]) -> Batch:
        images, targets = [], []
        for index in indices:
            with Image.open(folder / data.annotations.file_name(index)) as file:
                image = image_ops.hflip(file.convert("RGB"))
            images.append(image_ops.convert_image_dtype(image_ops.pil_to_tensor(image)))
            boxes = torch.from_numpy(data.annotations.boxes[data.annotations.objects_of(index)])
            width = image.width
            # Flip the boxes as well: x becomes width - x, so the right side becomes the left one.
            targets.append(
                {
                    "boxes": torch.stack(
                        [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1
                    )
                }
            )
        batch, resized = transform(images, targets)
        return batch.tensors, [target["boxes"] for target in resized], batch.image_sizes

    return read


def _albumentations_reader(data: CocoDetection, folder: Path) -> Reader:
    """Return a pipeline of cv2 and albumentations; its transforms are built beforehand."""
    sizes = [
        resized_size((height, width), SHORT_SIDE, MAX_SIDE)
        for height, width in data.annotations.sizes.tolist()
    ]
    transforms = {
        size: A.Compose(
            [A.Resize(*size), A.HorizontalFlip(p=1.0), A.Normalize(MEAN, STD), ToTensorV2()],
            bbox_params=A.BboxParams(format="pascal_voc", label_fields=["labels"]),
        )
        for size in set(sizes)
    }

    def read(indices: list[int]) -> Batch:
        images, boxes = [], []
        for index in indices:
            objects = data.annotations.objects_of(index)
            image = cv2.imread(str(folder / data.annotations.file_name(index)))
            assert image is not None
            done = transforms[sizes[index]](
                image=cv2.cvtColor(image, cv2.COLOR_BGR2RGB),
                bboxes=data.annotations.boxes[objects],
                labels=data.annotations.labels[objects],
            )
            images.append(done["image"])
            boxes.append(torch.as_tensor(done["bboxes"], dtype=torch.float32).reshape(-1, 4))
        height, width = (
            round_up(max(sizes[index][axis] for index in indices), DIVISOR) for axis in (0, 1)
        )
        batch = torch.zeros(len(images), 3, height, width)
        for row, image in zip(batch, images, strict=True):  # padding at the right and bottom
            row[:, : image.shape[1], : image.shape[2]] = image
        return batch, boxes, [sizes[index] for index in indices]

    return read


def _check_same(ours: Batch, peer: Batch, data: CocoDetection, indices: list[int]) -> float:
    """Return the mean difference of the pixels, on the scale 0..255.

    torchvision truncates a resized side to whole pixels, ours rounds it. Boxes are therefore
    compared in pixels of the file, and the peer's image is resized to the size of ours.

    Raises:
        DisagreementError: boxes or pixels differ by more than rounding explains.
    """
    differences = []
    for row, index in enumerate(indices):
        size = torch.from_numpy(data.annotations.sizes[index].copy())
        # Boxes of both sides in pixels of the file: divide by resized size / original size, flipped
        # from (height, width) to x, y and repeated for x1, y1, x2, y2.
        boxes, found = (
            side[1][row] / (torch.tensor(side[2][row]) / size).flip(0).repeat(2)
            for side in (ours, peer)
        )
        check_close(f"boxes of image {index}", boxes, found, rtol=0, atol=0.5)
        # both images without padding
        image, other = (
            side[0][row, :, : side[2][row][0], : side[2][row][1]].float() for side in (ours, peer)
        )
        # undo the peer's normalisation: back to 0..1
        other = other * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
        if other.shape != image.shape:
            (other,) = F.interpolate(other[None], image.shape[1:], mode="bilinear")
        difference = float((image - other * 255).abs().mean())
        if difference > MAX_PIXEL_DIFFERENCE:
            raise DisagreementError(
                f"pixels of image {index}: expected a mean difference of at most "
                f"{MAX_PIXEL_DIFFERENCE} of 255, got {difference:.3g}"
            )
        differences.append(difference)
    return float(np.mean(differences))


@contextlib.contextmanager
def one_thread() -> Generator[None]:
    """Compute with one thread of torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
