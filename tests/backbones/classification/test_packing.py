"""Packed copies of image folders: what is written, kept, packed anew and refused."""

import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from backbones.classification.config import AugmentConfig
from backbones.classification.folder import FolderDataset
from backbones.classification.packing import (
    MANIFEST,
    PackReport,
    PackSettings,
    pack_images,
)
from backbones.classification.transforms import TrainingTransform, augment
from backbones.images import read_image, resize_pixels
from backbones.jpeg import is_plain
from engine.errors import SkippedSampleError, UserError
from engine.log import RunLog
from tests.reference.images import encoded, smooth_image

SMALL = PackSettings(short_side=40, quality=90)
RAW = PackSettings(short_side=40, quality=None)
SIZES = {
    "a/one.jpg": (30, 60),
    "a/two.JPEG": (60, 90),
    "b/three.png": (80, 40),
    "b/four.jpg": (50, 50),
}


def write(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    """Write a smooth image, so that JPEG changes it little."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(256, size=(4, 4, 3)).astype(np.uint8)
    smooth = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_LINEAR)
    assert cv2.imwrite(str(path), smooth)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for seed, (name, size) in enumerate(SIZES.items()):
        write(tmp_path / "src/train" / name, size, seed)
    (tmp_path / "src/train/a/notes.txt").write_text("no image")
    return tmp_path / "src"


def pack(
    source: Path, settings: PackSettings = SMALL, *, policy: str = "error", name: str = "out"
) -> PackReport:
    return pack_images(
        source,
        source.parent / name,
        settings,
        workers=0,
        on_bad_image="skip" if policy == "skip" else "error",
        log=RunLog(None, is_main=True),
    )


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_copy_has_the_layout_and_smaller_images(source: Path) -> None:
    before = contents(source)
    report = pack(source)
    assert (report.packed, report.kept, report.removed, report.skipped) == (4, 0, 0, ())
    assert contents(source) == before
    out = source.parent / "out"
    sizes = {
        "a/one.jpg": (30, 60),
        "a/two.JPEG": (40, 60),
        "b/three.jpg": (80, 40),
        "b/four.jpg": (40, 40),
    }
    assert set(contents(out)) == {MANIFEST, *(f"train/{name}" for name in sizes)}
    for name, size in sizes.items():
        assert read_image(out / "train" / name).shape == (*size, 3)
    # not shrunk and a JPEG already: the same bytes
    assert (out / "train/a/one.jpg").read_bytes() == before["train/a/one.jpg"]
    assert report.bytes == sum(
        len(data) for name, data in contents(out).items() if name != MANIFEST
    )


def test_pixels_are_those_of_the_shrunk_image(source: Path) -> None:
    pack(source, PackSettings(short_side=30, quality=100))
    for name, copy in {"b/three.png": "b/three.jpg", "b/four.jpg": "b/four.jpg"}.items():
        pixels = read_image(source / "train" / name)
        found = read_image(source.parent / "out/train" / copy).astype(int)
        expected = cv2.resize(pixels, found.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(found - expected).mean() < 3


def test_the_manifest_has_both_checksums(source: Path) -> None:
    pack(source)
    out = source.parent / "out"
    header, *lines = (json.loads(line) for line in (out / MANIFEST).read_text().splitlines())
    assert header["settings"] == {"short_side": 40, "quality": 90}
    assert len(lines) == 4
    for line in lines:
        assert (
            line["source_sha256"]
            == hashlib.sha256((source / line["source"]).read_bytes()).hexdigest()
        )
        assert line["sha256"] == hashlib.sha256((out / line["file"]).read_bytes()).hexdigest()


def test_a_second_call_checks_and_mends(source: Path) -> None:
    pack(source)
    out = source.parent / "out"
    good = contents(out)
    assert pack(source).kept == 4
    assert contents(out) == good
    (out / "train/a/two.JPEG").write_bytes(b"damaged")
    (out / "train/b/four.jpg").unlink()
    report = pack(source)
    assert (report.packed, report.kept) == (2, 2)
    assert {name: data for name, data in contents(out).items() if name != MANIFEST} == {
        name: data for name, data in good.items() if name != MANIFEST
    }


def test_a_changed_source_is_packed_anew_and_a_missing_one_is_removed(source: Path) -> None:
    pack(source)
    write(source / "train/a/two.JPEG", (44, 44), 9)
    (source / "train/b/three.png").unlink()
    report = pack(source)
    assert (report.packed, report.kept, report.removed) == (1, 2, 1)
    out = source.parent / "out"
    assert read_image(out / "train/a/two.JPEG").shape[:2] == (40, 40)
    assert not (out / "train/b/three.jpg").exists()


def test_a_cut_line_of_the_manifest_is_dropped(source: Path) -> None:
    pack(source)
    manifest = source.parent / "out" / MANIFEST
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:3]) + lines[3][:20])
    report = pack(source)
    assert (report.packed, report.kept) == (2, 2)
    assert len(manifest.read_text().splitlines()) == 5


@pytest.mark.parametrize("settings", [SMALL, RAW], ids=["JPEG", "raw"])
def test_a_killed_copy_is_continued(source: Path, settings: PackSettings) -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from backbones.classification import packing\n"
        "from engine.log import RunLog\n"
        "write, count = packing._write, iter(range(9))\n"
        "def dying(path, content):\n"
        "    if next(count) == 2:\n"
        "        os._exit(9)\n"
        "    write(path, content)\n"
        "packing._write = dying\n"
        f"packing.pack_images(Path(sys.argv[1]), Path(sys.argv[2]), packing.{settings},\n"
        "    workers=0, on_bad_image='error', log=RunLog(None, is_main=True))\n"
    )
    out = source.parent / "out"
    done = subprocess.run([sys.executable, "-c", script, str(source), str(out)], check=False)
    assert done.returncode == 9
    report = pack(source, settings)
    assert (report.packed, report.kept) == (2, 2)
    whole = contents(out)
    pack(source, settings, name="other")
    assert contents(source.parent / "other") == whole


def test_exif_rotation_is_applied(source: Path) -> None:
    path = source / "train/a/turned.jpg"
    write(path, (20, 30))
    data = path.read_bytes()
    # orientation 6, a quarter turn: byte order, one entry of tag 0x0112
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    content = b"Exif\0\0" + tiff
    path.write_bytes(
        data[:2] + b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content + data[2:]
    )
    pack(source)
    copy = source.parent / "out/train/a/turned.jpg"
    assert read_image(copy, rotate=False).shape[:2] == (30, 20)
    np.testing.assert_allclose(read_image(copy).mean(), read_image(path).mean(), atol=2)


def test_copies_are_plain_jpeg_files(source: Path) -> None:
    path = source / "train/a/cmyk.jpg"
    path.write_bytes(encoded(smooth_image(20, 30), mode="CMYK"))
    pack(source)
    copies = contents(source.parent / "out/train")
    assert "a/cmyk.jpg" in copies
    assert all(map(is_plain, copies.values()))
    assert not is_plain(path.read_bytes())


def test_a_copy_that_cannot_be_removed_is_one_line(source: Path) -> None:
    pack(source)
    (source / "train/b/three.png").unlink()
    copy = source.parent / "out/train/b/three.jpg"
    copy.unlink()
    copy.mkdir()
    with pytest.raises(UserError, match=r"three\.jpg: cannot be written: "):
        pack(source)


def test_a_manifest_that_cannot_be_written_is_one_line(source: Path) -> None:
    pack(source)
    manifest = source.parent / "out" / MANIFEST
    (source / "train/a/one.jpg").write_bytes((source / "train/b/four.jpg").read_bytes())
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    # what is written at the start still fits, a further line does not
    resource.setrlimit(resource.RLIMIT_FSIZE, (manifest.stat().st_size + 1, limit[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written: File too large"):
            pack(source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_bad_images_stop_or_are_skipped(source: Path) -> None:
    (source / "train/b/bad.jpg").write_bytes(b"\xff\xd8 no image")
    with pytest.raises(UserError, match=r"bad\.jpg: .*; --on-bad-image skip skips it$"):
        pack(source)
    report = pack(source, policy="skip")
    assert len(report.skipped) == 1
    assert "bad.jpg" in report.skipped[0]
    assert report.packed + report.kept == 4
    assert not (source.parent / "out/train/b/bad.jpg").exists()


def test_raw_copies_hold_the_shrunk_pixels(source: Path) -> None:
    report = pack(source, RAW)
    assert report.packed == 4
    out = source.parent / "out/train"
    for name in SIZES:
        pixels = read_image(source / "train" / name)
        scale = min(1, 40 / min(pixels.shape[:2]))
        height, width = (round(side * scale) for side in pixels.shape[:2])
        copy = read_image((out / name).with_suffix(".bmp"))
        expected = pixels if scale == 1 else resize_pixels(pixels, (height, width))
        np.testing.assert_array_equal(copy, expected)
    assert pack(source, RAW).kept == 4
    whole = (out / "a/one.bmp").read_bytes()
    (out / "a/one.bmp").write_bytes(whole[:-1])
    assert pack(source, RAW).packed == 1
    assert (out / "a/one.bmp").read_bytes() == whole


def test_training_reads_the_same_crops_from_raw_copies(source: Path) -> None:
    """Crops read row by row are those of the same files, decoded as a whole."""
    pack(source, RAW)
    folder = source.parent / "out/train"
    recipes = (
        AugmentConfig(crop=16, auto="trivial"),
        AugmentConfig(crop=16, short_sides=(20, 60), pca_std=0.1),
    )
    for config in recipes:
        transform = TrainingTransform(config)
        data = FolderDataset(folder, transform=transform)
        for seed in range(12):
            path = folder / data.file_name(seed % 4)
            np.testing.assert_array_equal(
                data.load(seed % 4, seed).pixels,
                augment(*transform.crop(path.read_bytes(), path, seed=seed)),
            )


def test_a_cut_raw_copy_is_a_bad_image(source: Path) -> None:
    pack(source, RAW)
    folder = source.parent / "out/train"
    data = FolderDataset(folder, transform=TrainingTransform(AugmentConfig(crop=16)))
    path = folder / data.file_name(0)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=rf"{path.name}: expected a whole image"):
        data.load(0, 0)


def test_a_fifo_instead_of_a_raw_copy_is_skipped(source: Path) -> None:
    pack(source, RAW)
    folder = source.parent / "out/train"
    transform = TrainingTransform(AugmentConfig(crop=16))
    data = FolderDataset(folder, transform=transform, on_bad_image="skip")
    path = folder / data.file_name(0)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SkippedSampleError, match="a FIFO"):
        data.load(0, 0)


def refuse_raw(source: Path) -> None:
    pack(source)
    pack(source, RAW)


def refuse_raw_clash(source: Path) -> None:
    write(source / "train/b/four.png", (5, 5))
    pack(source, RAW)


def refuse_settings(source: Path) -> None:
    pack(source)
    pack(source, PackSettings(short_side=41))


def refuse_clash(source: Path) -> None:
    write(source / "train/b/three.jpg", (5, 5))
    pack(source)


def refuse_inside(source: Path) -> None:
    pack(source / "train", name="train/inside")


def refuse_others(source: Path) -> None:
    (source.parent / "out").mkdir()
    (source.parent / "out/mine.txt").write_text("mine")
    pack(source)


def refuse_flat(source: Path) -> None:
    pack(source / "train/a")


def refuse_outside(source: Path) -> None:
    pack(source)
    manifest = source.parent / "out" / MANIFEST
    manifest.write_text(manifest.read_text().replace("train/a/one.jpg", "../src/train/a/one.jpg"))
    pack(source)


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        (refuse_settings, r"expected a copy with .*41.*, got .*40.*; choose another folder"),
        (
            refuse_clash,
            r"got train/b/three\.(jpg|png) and train/b/three\.(jpg|png), which would both",
        ),
        (refuse_raw, r"expected a copy with .*null.*, got .*90.*; choose another folder"),
        (refuse_raw_clash, r"which would both become train/b/four\.bmp"),
        (refuse_inside, "expected a folder apart from"),
        (refuse_others, r"expected an empty folder or a packed copy, got mine\.txt"),
        (refuse_flat, "expected images in a folder for each class"),
        (refuse_outside, "expected a file below, got"),
    ],
    ids=["settings", "clash", "raw", "raw clash", "inside", "others", "flat", "outside"],
)
def test_refused(source: Path, refuse: object, message: str) -> None:
    assert callable(refuse)
    with pytest.raises(UserError, match=message):
        refuse(source)


@pytest.mark.parametrize("settings", [{"short_side": 0}, {"quality": 101}], ids=str)
def test_wrong_settings(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match="expected"):
        PackSettings(**settings)
