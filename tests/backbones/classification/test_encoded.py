"""Training images decoded on the device: the pixels of the workers, batches, runs."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from backbones.classification.config import AugmentConfig, DataConfig
from backbones.classification.encoded import EncodedBatch, augment_batch
from backbones.classification.folder import FolderDataset
from backbones.classification.load_and_export import recompute_batch_norm
from backbones.classification.structures import ClassificationBatch
from backbones.classification.task import ClassificationTask
from backbones.classification.transforms import TrainingTransform, augment
from backbones.images import BadImageError, decode
from engine.errors import UserError
from engine.loader import read_batches, split_batches, training_batches
from engine.schema import LoaderConfig
from engine.task import Batch
from engine.trainer import fit
from tests.backbones.classification.tiny import tiny_config
from tests.backbones.test_device_jpeg import gpu_that_decodes
from tests.reference.images import encoded, smooth_image

CPU = torch.device("cpu")
CROP = 32
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "area": {"area": (0.3, 1.0)},
    "short sides": {"short_sides": (32, 60), "pca_std": 0.1},
    "trivial": {"auto": "trivial"},
    "randaugment": {"auto": "randaugment", "auto_ops": 3, "pca_std": 0.1},
}


def write(root: Path) -> Path:
    """Write 12 images of two classes: plain JPEG files, a PNG, a turned JPEG and a bitmap."""
    for number in range(12):
        image = smooth_image(50 + 2 * number, 62 - number)
        path = root / "train" / "ab"[number % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        if number == 5:
            exif[0x0112] = 6
        path.write_bytes(encoded(image, quality=95, exif=exif))
        if number == 3:
            path.with_suffix(".png").write_bytes(encoded(image, "PNG"))
        if number == 4:
            cv2.imwrite(str(path.with_suffix(".bmp")), image)
    (root / "val").symlink_to(root / "train")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images; tests must not change it."""
    return write(tmp_path_factory.mktemp("images"))


def dataset_of(folder: Path, decode: Any, **augmentation: Any) -> FolderDataset:
    transform = TrainingTransform(AugmentConfig(crop=CROP, **augmentation))
    return FolderDataset(folder, transform=transform, decode=decode)


def open_training(root: Path, decode: Any, **augmentation: Any) -> FolderDataset:
    return dataset_of(root / "train", decode, **augmentation)


def batch_of(data: FolderDataset, device: torch.device) -> Batch:
    return data.collate([data.load(index, 7 + index) for index in range(len(data))]).to(device)


def check_batches(root: Path, name: str, device: torch.device) -> None:
    """Check that images decoded on a device are nearly those of the workers."""
    ours, expected = (
        batch_of(open_training(root, decode, **AUGMENTATIONS[name]), device)
        for decode in ("device", "workers")
    )
    assert isinstance(ours, ClassificationBatch)
    assert isinstance(expected, ClassificationBatch)
    for field in ("labels", "image_ids", "seeds"):
        torch.testing.assert_close(getattr(ours, field), getattr(expected, field))
    assert ours.pixels.shape == expected.pixels.shape
    for batch in (ours, expected):
        assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    difference = (ours.pixels.int() - expected.pixels.int()).abs().float()
    if device.type == "cpu":
        assert difference.mean() < 1
        assert (difference > 8).float().mean() < 0.01
    assert difference.mean() < 4  # nvJPEG does not interpolate subsampled colours


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_batches_are_nearly_those_of_the_workers(name: str, root: Path) -> None:
    check_batches(root, name, CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_batches_are_nearly_those_of_the_workers_on_a_gpu(name: str, root: Path) -> None:
    check_batches(root, name, gpu_that_decodes())


def test_only_plain_jpeg_files_are_left_to_the_device(root: Path) -> None:
    data = open_training(root, "device")
    batch = data.collate([data.load(index, index) for index in range(len(data))])
    assert isinstance(batch, EncodedBatch)
    assert len(batch) == 14
    left = {
        Path(name).name
        for name, length in zip(batch.names, batch.lengths, strict=True)
        if not length
    }
    assert left == {"03.png", "04.bmp", "05.jpg"}
    assert batch.crops.shape == (3, 3, CROP, CROP)


@pytest.mark.parametrize("name", ["03.png", "00.jpg"])
def test_a_batch_of_one_kind(name: str, root: Path) -> None:
    data = open_training(root, "device")
    names = [Path(data.file_name(index)).name for index in range(len(data))]
    index = names.index(name)
    batch = data.collate([data.load(index, seed) for seed in (0, 1)]).to(CPU)
    assert isinstance(batch, ClassificationBatch)
    assert batch.image_ids.tolist() == [index, index]
    assert not torch.equal(batch.pixels[0], batch.pixels[1])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_batches_are_augmented_as_images_are(name: str) -> None:
    transform = TrainingTransform(AugmentConfig(crop=CROP, **AUGMENTATIONS[name]))
    choices = [transform.sample((60, 70), seed=seed) for seed in range(40)]
    crop = smooth_image(CROP, CROP)
    pixels = torch.from_numpy(np.stack([crop] * 40)).permute(0, 3, 1, 2)
    ours = augment_batch(pixels, choices).permute(0, 2, 3, 1).numpy().astype(int)
    expected = np.stack([augment(crop, each) for each in choices])
    assert np.abs(ours - expected).mean() < 0.5


def test_worker_processes_send_encoded_batches(root: Path) -> None:
    data = open_training(root, "device")
    batches = islice(training_batches(data.groups, batch_size=4, seed=0), 3)
    plan = list(split_batches(data, batches, rank=0, world_size=1, accumulate=1))
    alone_and_sent = [
        read_batches(data, plan, config=LoaderConfig(workers=workers), device=CPU, substitute=True)
        for workers in (0, 2)
    ]
    count = 0
    for alone, sent in zip(*alone_and_sent, strict=True):
        assert isinstance(alone.batch, ClassificationBatch)
        assert isinstance(sent.batch, ClassificationBatch)
        torch.testing.assert_close(sent.batch.pixels, alone.batch.pixels, rtol=0, atol=0)
        count += 1
    assert count == 3


def test_a_run_decodes_on_the_device(root: Path, tmp_path: Path) -> None:
    config = tiny_config(root, data={"root": str(root), "decode": "device"})
    task = ClassificationTask.for_training(config)
    expected = "data.decode=device: 3 of 14 training images that were looked at are not plain JPEG"
    assert any(expected in note for note in task.notes())
    metrics = fit(task, config, output=tmp_path / "run", device="cpu")
    assert 0 <= metrics["top1"] <= 1
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[:1]
    assert 0 < json.loads(line)["class"] < 10
    assert recompute_batch_norm(task, limit=8) == 8


def test_cifar_cannot_be_decoded_on_the_device() -> None:
    with pytest.raises(ValidationError, match="decode: expected workers with kind=cifar10, got"):
        DataConfig(kind="cifar10", decode="device")


def test_damage_inside_a_file_may_not_be_noticed(tmp_path: Path) -> None:
    """Packing, and decoding by the workers, notice it."""
    noise = np.random.default_rng(0).integers(256, size=(60, 60, 3)).astype(np.uint8)
    data = encoded(noise, quality=95)
    data = data[: len(data) // 2] + b"\xff\xd9"
    path = tmp_path / "a" / "bad.jpg"
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(BadImageError, match="damaged"):
        dataset_of(tmp_path, "workers").load(0, 0)
    dataset = dataset_of(tmp_path, "device")
    assert len(dataset.collate([dataset.load(0, 0)]).to(CPU)) == 1


def test_an_image_too_large_to_decode_is_refused_by_the_worker(tmp_path: Path) -> None:
    data = bytearray(encoded(smooth_image(60, 60)))
    frame = data.index(b"\xff\xc0") + 5
    data[frame : frame + 4] = (60_000).to_bytes(2, "big") * 2
    path = tmp_path / "a" / "large.jpg"
    path.parent.mkdir()
    path.write_bytes(data)
    dataset = dataset_of(tmp_path, "device")
    with pytest.raises(BadImageError, match=r"large\.jpg: expected at most \d+ pixels"):
        dataset.load(0, 0)


def test_a_damaged_file_ends_the_run_with_its_name(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "train" / "a"
    copy.mkdir(parents=True)
    data = bytearray(encoded(smooth_image(60, 60)))
    start = data.index(b"\xff\xc4")  # the Huffman tables
    data[start + 5 : start + 21] = b"\xee" * 16
    (copy / "bad.jpg").write_bytes(data)
    with pytest.raises(BadImageError):
        decode(bytes(data), "bad.jpg")
    dataset = open_training(tmp_path, "device")
    with pytest.raises(UserError, match=r"bad\.jpg: expected a JPEG that can be decoded on cpu"):
        dataset.collate([dataset.load(0, 0)]).to(CPU)
