import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from backbones.classification.config import (
    AugmentConfig,
    ClassificationConfig,
    DataConfig,
    EvaluationConfig,
)
from backbones.classification.folder import FolderDataset
from backbones.classification.structures import ClassificationBatch
from backbones.images import BadImageError, read_image, resize_pixels
from engine.errors import SkippedSampleError, UserError
from engine.loader import evaluation_batches
from engine.task import DataSet
from tests.reference.images import smooth_image

CLASSES = ("ant", "bee", "cow")


def write_image(path: Path, mode: str = "RGB", size: tuple[int, int] = (40, 50)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(smooth_image(*size)).convert(mode).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with three classes: two training images and one validation image each."""
    for name in CLASSES:
        write_image(tmp_path / "train" / name / "1.jpg")
        write_image(tmp_path / "train" / name / "2.png", size=(60, 45))
        write_image(tmp_path / "val" / name / "3.jpg")
    return tmp_path


def make_config(root: Path | str, *, data: Any = None, **evaluation: Any) -> ClassificationConfig:
    return ClassificationConfig(
        data=DataConfig(root=str(root), **(data or {})),
        augment=AugmentConfig(crop=24, pca_std=0.1, auto="trivial"),
        evaluation=EvaluationConfig(**{"resize": 32, "crop": 24, "scales": (24, 36), **evaluation}),
    )


def open_training(root: Path, **data: Any) -> FolderDataset:
    return FolderDataset.training(make_config(root, data=data))


def open_validation(
    root: Path, class_names: Sequence[str] = CLASSES, **evaluation: Any
) -> FolderDataset:
    return FolderDataset.validation(make_config(root, **evaluation), class_names)


def names(data: FolderDataset) -> list[str]:
    return [data.file_name(index) for index in range(len(data))]


def test_images_are_sorted_by_class_and_name(root: Path) -> None:
    write_image(root / "train" / "bee" / "deep" / "er" / "0.JPEG")
    data = open_training(root)
    assert data.class_names == CLASSES
    assert names(data) == [
        *("ant/1.jpg", "ant/2.png"),
        *("bee/1.jpg", "bee/2.png", "bee/deep/er/0.JPEG"),
        *("cow/1.jpg", "cow/2.png"),
    ]
    samples = [data.load(index, index) for index in range(len(data))]
    assert [sample.label for sample in samples] == [0, 0, 1, 1, 1, 2, 2]
    assert [sample.image_id for sample in samples] == list(range(7))
    assert data.groups.tolist() == [0] * 7
    assert data.notes == ()


def test_file_names_of_any_length_and_script(root: Path) -> None:
    odd = ["ü.jpg", "x" * 200 + ".png", "a b.png", "名.webp"]
    for name in odd:
        write_image(root / "train" / "bee" / name)
    data = open_training(root)
    assert {f"bee/{name}" for name in odd} < set(names(data))
    for index in range(len(data)):
        assert data.load(index, 0).pixels.shape == (24, 24, 3)


def test_training_samples_depend_only_on_index_and_seed(root: Path) -> None:
    first, second = open_training(root), open_training(root)
    second.load(0, 99)
    images = set()
    for index in (0, 1):
        for seed in range(5):
            a, b = first.load(index, seed), second.load(index, seed)
            torch.testing.assert_close(a.pixels, b.pixels, rtol=0, atol=0)
            images.add(a.pixels.tobytes())
    assert len(images) == 10


def test_collate_makes_a_batch(root: Path) -> None:
    data = open_training(root)
    as_engine_sees_it: DataSet = data
    assert as_engine_sees_it.batch_shape([(0, 1), (1, 2)]) is None
    pairs = [(1, 2**61), (4, 3)]
    batch = data.collate([data.load(*pair) for pair in pairs])
    assert isinstance(batch, ClassificationBatch)
    assert batch.pixels.shape == (2, 3, 24, 24)
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.tolist() == [0, 2]
    assert batch.image_ids.tolist() == [1, 4]
    assert batch.seeds.tolist() == [2**61, 3]
    expected = torch.from_numpy(data.load(4, 3).pixels).permute(2, 0, 1)
    torch.testing.assert_close(batch.pixels[1], expected, rtol=0, atol=0)


def test_validation_uses_the_centre_crop(root: Path) -> None:
    data = open_validation(root)
    assert data.class_names == CLASSES
    assert data.groups.tolist() == [0, 0, 0]
    whole = resize_pixels(read_image(root / "val" / "bee" / "3.jpg"), (32, 40))
    torch.testing.assert_close(data.load(1, 5).pixels, whole[4:28, 8:32].copy(), rtol=0, atol=0)


@pytest.mark.parametrize(("view", "side"), [("ten_crop", 32), ("multi_scale", 36)])
def test_images_of_one_shape_are_grouped(root: Path, view: Any, side: int) -> None:
    write_image(root / "val" / "ant" / "tall.png", size=(50, 40))
    write_image(root / "val" / "ant" / "large.jpg", size=(80, 100))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(smooth_image(40, 50)).save(root / "val/ant/turned.jpg", exif=turned)
    data = open_validation(root, view=view)
    shapes = [data.load(index, 0).pixels.shape[:2] for index in range(len(data))]
    assert {min(shape) for shape in shapes} == {side}
    by_group = set(zip(data.groups.tolist(), shapes, strict=True))
    assert len(by_group) == len(set(shapes)) == 2
    sizes = [
        len(data.collate([data.load(key.index, key.seed) for key in part.sample_keys]))
        for part in evaluation_batches(data.groups, batch_size=8)
    ]
    assert sorted(sizes) == [2, 4]


def test_images_of_every_format_and_mode(root: Path) -> None:
    folder = root / "train" / "ant"
    write_image(folder / "grey.jpg", "L")
    write_image(folder / "grey.png", "LA")
    write_image(folder / "cmyk.jpg", "CMYK")
    write_image(folder / "alpha.PNG", "RGBA")
    write_image(folder / "palette.png", "P")
    cv2.imwrite(str(folder / "deep.png"), smooth_image().astype(np.uint16) * 257)
    (folder / "1.jpg").rename(folder / "a jpeg.png")
    data = open_training(root)
    assert len(data) == 12
    for index in range(len(data)):
        sample = data.load(index, 0)
        assert sample.pixels.shape == (24, 24, 3)
        assert sample.pixels.dtype == np.uint8


@pytest.mark.parametrize("suffix", ["1.jpg", "2.png"])
@pytest.mark.parametrize("bad", [b"", b"no image", None], ids=["empty", "text", "truncated"])
def test_bad_image_is_an_error_or_skipped(root: Path, suffix: str, bad: bytes | None) -> None:
    path = root / "train" / "bee" / suffix
    path.write_bytes(path.read_bytes()[:-30] if bad is None else bad)
    index = 2 if suffix == "1.jpg" else 3
    with pytest.raises(BadImageError, match=rf"bee/{suffix}: expected a whole"):
        open_training(root).load(index, 0)
    skipping = open_training(root, on_bad_image="skip")
    with pytest.raises(SkippedSampleError, match=rf"bee/{suffix}: expected a whole"):
        skipping.load(index, 0)
    assert skipping.load(0, 0).label == 0
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        skipping.load(index, 0)


def test_bad_image_while_sizes_are_read(root: Path) -> None:
    path = root / "val" / "bee" / "3.jpg"
    path.write_bytes(b"no image")
    with pytest.raises(BadImageError, match=r"bee/3\.jpg"):
        open_validation(root, view="ten_crop")
    config = make_config(root, data={"on_bad_image": "skip"}, view="ten_crop")
    data = FolderDataset.validation(config, CLASSES)
    assert data.groups[0] == data.groups[2] != data.groups[1]
    with pytest.raises(SkippedSampleError):
        data.load(1, 0)


def test_other_files_are_skipped_and_counted(root: Path) -> None:
    train = root / "train"
    for name in ("list.txt", "cow/notes.md", "cow/deep/1.gif", ".cache/1.jpg", "cow/._1.jpg"):
        (train / name).parent.mkdir(exist_ok=True)
        (train / name).write_bytes(b"something")
    data = open_training(root)
    assert data.class_names == CLASSES
    assert len(data) == 6
    assert data.notes == (f"{train}: 3 files that are not images were skipped",)


def test_note_on_classes_without_validation_images(root: Path) -> None:
    (root / "val" / "bee" / "3.jpg").unlink()
    (root / "val" / "ant" / "3.jpg").unlink()
    (root / "val" / "ant").rmdir()
    data = open_validation(root)
    assert data.class_names == CLASSES
    assert names(data) == ["cow/3.jpg"]
    assert data.load(0, 0).label == 2
    assert data.notes == (
        f"{root / 'val'}: 2 of 3 classes have no image and are not in the metrics: ant, bee",
    )
    many = [f"class{number:02}" for number in range(20)]
    (note,) = open_validation(root, [*many, *CLASSES]).notes
    assert note.endswith(f": {', '.join(many[:10])} and 12 more")


def remove(folder: Path) -> None:
    """Remove a folder and its contents."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("removed", "made", "message"),
    [
        (["."], [], r"^data\.root .*: expected the folder with train/ and val/, got no such"),
        (["train"], [], r"train: expected a folder for each class in it, got no such folder"),
        (["val"], [], r"val: expected a folder for each class in it, got no such folder"),
        (["train"], ["train/1.jpg"], r"train: expected a folder .*, got none \(files: 1\)"),
        (["val"], ["val/1.jpg", "val/2.jpg"], r"val: expected a folder .*, got none \(files: 2\)"),
        (["train/bee/1.jpg", "train/bee/2.png"], [], r"train/bee: expected images of the class"),
        ([], ["train/dog/readme.txt"], r"train/dog: expected images of the class \(\.bmp .*none"),
        (
            [],
            ["val/cows/1.jpg"],
            r"val/cows: expected a class .*nearest is cow\), got an unknown class",
        ),
        (["val/ant", "val/bee", "val/cow/3.jpg"], [], r"val: expected images in it, got empty"),
    ],
    ids=str,
)
def test_wrong_folders_give_an_error(
    root: Path, removed: list[str], made: list[str], message: str
) -> None:
    for name in removed:
        if (root / name).is_dir():
            remove(root / name)
        else:
            (root / name).unlink()
    for name in made:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"")
    with pytest.raises(UserError, match=message) as error:
        open_validation(root, open_training(root).class_names)
    assert "\n" not in str(error.value)


def test_empty_root_does_not_mean_the_current_folder(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match=r"data\.root .*got nothing"):
        FolderDataset.training(make_config(""))


def test_real_images(data_dir: Path) -> None:
    folder = data_dir / "imagenette128"
    config = ClassificationConfig(
        data=DataConfig(root=str(folder)), evaluation=EvaluationConfig(view="ten_crop")
    )
    train = FolderDataset.training(config)
    val = FolderDataset.validation(config, train.class_names)
    assert (len(train), len(val), len(train.class_names)) == (7000, 1500, 10)
    assert train.class_names[0] == "n01440764"
    assert train.file_name(0).startswith("n01440764/ILSVRC2012_val_")
    batch = train.collate([train.load(index, index) for index in range(0, 7000, 700)])
    assert isinstance(batch, ClassificationBatch)
    assert batch.pixels.shape == (10, 3, 224, 224)
    assert batch.labels.tolist() == list(range(10))
    assert 80 < batch.pixels.float().mean() < 150
    assert val.load(1499, 0).pixels.shape == (256, 256, 3)
    assert val.groups.tolist() == [0] * 1500


def test_class_folder_name_in_another_encoding_is_an_error(root: Path) -> None:
    name = os.fsdecode("狗".encode("gbk"))
    write_image(root / "train" / "x" / "1.jpg")
    (root / "train" / "x").rename(root / "train" / name)
    with pytest.raises(
        UserError, match="class folders with names in UTF-8, got 1 others"
    ) as caught:
        open_training(root)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["猫", "a\x1b[31mb", "two\nlines", " "], ids=ascii)
def test_any_utf8_name_is_a_class_name(root: Path, name: str) -> None:
    write_image(root / "train" / name / "1.jpg")
    data = open_training(root)
    assert name in data.class_names
    assert {data.load(index, 0).label for index in range(len(data))} == {0, 1, 2, 3}


def test_image_names_in_another_encoding_are_read(root: Path) -> None:
    for place in (root / "train" / "bee", root / "val" / "bee"):
        write_image(place / "x.jpg")
        (place / "x.jpg").rename(place / os.fsdecode("狗.jpg".encode("gbk")))
    (root / "train" / "bee" / "a\nb.jpg").write_bytes(b"no image")
    data = open_training(root, on_bad_image="skip")
    skipped = []
    for index in range(len(data)):
        try:
            data.load(index, 0)
        except SkippedSampleError:
            skipped.append(data.file_name(index))
    assert skipped == ["bee/a\nb.jpg"]
    assert len(open_validation(root, view="ten_crop")) == 4


def test_note_on_images_with_twelve_bits(root: Path) -> None:
    for split in ("train", "val"):
        cv2.imwrite(str(root / split / "cow" / "0.png"), np.full((40, 40), 4000, np.uint16))
        (root / split / "bee" / "3.jpg").touch()
    notes = [open_training(root).notes, open_validation(root).notes]
    assert [len(each) for each in notes] == [1, 0]
    assert "cow/0.png: 16 bits a channel, of which 12 are used" in notes[0][0]


@pytest.mark.parametrize("root", ["a\0b", "x" * 300, "file/below"], ids=ascii)
def test_impossible_root_gives_a_one_line_error(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError):
        open_training(tmp_path / root)
