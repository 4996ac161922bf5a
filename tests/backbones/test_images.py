from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from backbones.images import (
    REDUCTIONS,
    BadImageError,
    bit_depth_note,
    decode,
    enlarge,
    files_below,
    image_size,
    images_in,
    read_image,
    read_size,
    resize_pixels,
)
from engine.errors import UserError
from tests.reference.images import encoded, smooth_image

ORIENTATION = 0x0112


@pytest.mark.parametrize(
    ("suffix", "mode", "options", "tolerance"),
    [
        ("jpg", "RGB", {"quality": 95, "subsampling": 0}, 6),
        ("jpg", "RGB", {"quality": 95, "subsampling": 0, "progressive": True}, 6),
        ("jpg", "L", {"quality": 95}, 6),
        ("jpg", "CMYK", {"quality": 95}, 8),
        ("png", "RGB", {}, 0),
        ("png", "L", {}, 0),
        ("png", "LA", {}, 0),
        ("png", "RGBA", {}, 0),
        ("png", "P", {}, 0),
        ("png", "1", {}, 0),
        ("bmp", "RGB", {}, 0),
        ("webp", "RGB", {"lossless": True}, 0),
    ],
    ids=str,
)
def test_every_format_is_read_as_rgb(
    tmp_path: Path, suffix: str, mode: str, options: dict[str, Any], tolerance: int
) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(smooth_image()).convert(mode).save(path, **options)
    pixels = read_image(path)
    expected = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= tolerance


def test_transparency_is_dropped_and_not_blended(tmp_path: Path) -> None:
    image = smooth_image()
    alpha = np.random.default_rng(1).integers(256, size=image.shape[:2], dtype=np.uint8)
    Image.fromarray(np.dstack([image, alpha])).save(tmp_path / "a.png")
    torch.testing.assert_close(read_image(tmp_path / "a.png"), image)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_eight(tmp_path: Path, channels: int) -> None:
    image = smooth_image()[..., :channels]
    cv2.imwrite(str(tmp_path / "deep.png"), image[..., ::-1].astype(np.uint16) * 257)
    expected = np.repeat(image, 4 - channels, axis=2)[..., :3]
    torch.testing.assert_close(read_image(tmp_path / "deep.png"), expected)


DEEP: dict[str, tuple[str, int]] = {
    "png grey": (".png", 1),
    "png rgb": (".png", 3),
    "png rgba": (".png", 4),
    "tiff grey": (".tiff", 1),
    "tiff rgb": (".tiff", 3),
    "ppm": (".ppm", 3),
}


@pytest.mark.parametrize(("suffix", "channels"), DEEP.values(), ids=DEEP)
@pytest.mark.parametrize("bits", [8, 9, 10, 12, 13, 14, 16])
def test_sixteen_bit_images_are_scaled_by_their_used_bits(
    suffix: str, channels: int, bits: int
) -> None:
    deep = np.random.default_rng(0).integers(2**bits, size=(9, 12, channels)).astype(np.uint16)
    deep[0, 0, :3] = 2**bits - 1
    deep[..., 3:] = 65535  # the alpha channel must not count as used bits
    data = cv2.imencode(suffix, deep)[1].tobytes()
    used = bits + bits % 2
    expected = deep[..., :3][..., ::-1] >> (used - 8)
    pixels = decode(data, "a")
    assert pixels.dtype == np.uint8
    tolerance = int(bits == 16 and suffix == ".tiff")  # libtiff rounds
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize(("suffix", "channels"), DEEP.values(), ids=DEEP)
def test_full_sixteen_bit_images_equal_opencvs(suffix: str, channels: int) -> None:
    deep = np.random.default_rng(0).integers(65536, size=(30, 40, channels)).astype(np.uint16)
    data = cv2.imencode(suffix, deep)[1]
    expected = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    assert expected is not None
    np.testing.assert_array_equal(decode(data.tobytes(), "a"), expected)


def test_note_on_sixteen_bit_images(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.jpg", "b.png", "none.png", "c.png", "d.png")]
    for path, top in zip(paths, (200, 200, None, 4000, 60000), strict=True):
        if top is not None:
            dtype = np.uint8 if top < 256 else np.uint16
            cv2.imwrite(str(path), np.full((4, 4), top, dtype))
    note = bit_depth_note(paths)
    assert note is not None
    assert "c.png: 16 bits a channel, of which 12 are used" in note
    assert bit_depth_note(paths[:2]) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_bit_depths_are_an_error(dtype: Any, channels: int) -> None:
    data = cv2.imencode(".tiff", np.ones((4, 5, channels), dtype))[1].tobytes()
    with pytest.raises(BadImageError, match=r"^a\.tiff: expected"):
        decode(data, "a.tiff")


ROTATED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, 1),
}


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("orientation", ROTATED)
def test_exif_is_applied_once(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"rotated.{suffix}"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(smooth_image()).save(path, exif=exif)
    plain = read_image(path, rotate=False)
    assert plain.shape == (48, 64, 3)
    expected = np.ascontiguousarray(ROTATED[orientation](plain))
    torch.testing.assert_close(read_image(path), expected)


@pytest.mark.parametrize("missing", [2, 20, 1500], ids=str)
@pytest.mark.parametrize(
    ("suffix", "options"),
    [("jpg", {}), ("jpg", {"progressive": True}), ("png", {}), ("webp", {})],
    ids=str,
)
def test_truncated_file_gives_an_error(
    tmp_path: Path, suffix: str, options: dict[str, Any], missing: int
) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(BadImageError, match=rf"cut\.{suffix}: expected a whole"):
        read_image(path)


def test_end_marker_of_a_thumbnail_is_not_the_files(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(smooth_image()).save(path, comment=b"\xff\xd8 thumbnail \xff\xd9")
    whole = path.read_bytes()
    assert read_image(path).shape == (48, 64, 3)
    path.write_bytes(whole + b"left over")
    assert read_image(path).shape == (48, 64, 3)
    path.write_bytes(whole[:-40])
    with pytest.raises(BadImageError):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xd9"], ids=str)
def test_file_that_is_not_an_image_gives_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.jpg"
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=r"odd\.jpg: expected a whole image"):
        read_image(path)


def test_missing_file_is_not_a_bad_image_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jpg: no such file") as error:
        read_image(tmp_path / "none.jpg")
    assert not isinstance(error.value, BadImageError)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_jpeg_decoded_at_reduced_size_looks_like_the_full_one(
    reduction: int, mode: str, progressive: bool
) -> None:
    data = encoded(smooth_image(150, 203), mode=mode, quality=95, progressive=progressive)
    whole, reduced = decode(data, "a.jpg"), decode(data, "a.jpg", reduction=reduction)
    height, width = -(-150 // reduction), -(-203 // reduction)
    assert reduced.shape == (height, width, 3)
    padding = ((0, height * reduction - 150), (0, width * reduction - 203), (0, 0))
    cells = np.pad(whole, padding, mode="edge").reshape(height, reduction, width, reduction, 3)
    difference = np.abs(reduced - cells.mean(axis=(1, 3)))
    assert difference[:-1, :-1].max() < 6  # the last row and column are partly padding
    assert difference.mean() < 1


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_other_formats_are_decoded_at_full_size(kind: str) -> None:
    data = encoded(smooth_image(), kind)
    torch.testing.assert_close(decode(data, "a", reduction=4), decode(data, "a"))
    assert image_size(data) is None


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", [*ROTATED, 0, 9])
def test_size_is_read_before_decoding(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"rotated.{suffix}"
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    exif[ORIENTATION] = orientation
    Image.fromarray(smooth_image(31, 53)).save(path, exif=exif)
    expected = (53, 31) if orientation in range(5, 9) else (31, 53)
    assert read_size(path) == read_image(path).shape[:2] == expected
    if suffix == "jpg":
        data = path.read_bytes()
        assert image_size(data) == expected
        reduced = decode(data, path, reduction=2)
        assert reduced.shape[:2] == tuple(-(-side // 2) for side in expected)


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


EXIF = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01"


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ([(0xE1, EXIF + b"\x00\x06\x00\x00")], (64, 48)),
        ([(0xE1, EXIF + b"\x00\x03\x00\x00")], (48, 64)),
        ([(0xE1, EXIF)], (48, 64)),
        ([(0xE1, EXIF[:9])], (48, 64)),
        ([(0xE1, b"http://ns.adobe.com/xap/1.0/"), (0xE1, EXIF + b"\x00\x06\x00\x00")], (64, 48)),
        ([(0xE2, b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01")], (48, 64)),
    ],
    ids=["big-endian", "upside down", "truncated", "no entry", "after XMP", "frame in a segment"],
)
def test_segments_before_the_image(
    segments: list[tuple[int, bytes]], expected: tuple[int, int]
) -> None:
    data = encoded(smooth_image())
    data = data[:2] + b"".join(segment(*each) for each in segments) + data[2:]
    assert image_size(data) == decode(data, "a.jpg").shape[:2] == expected


def test_incomplete_header_gives_no_size() -> None:
    data = encoded(smooth_image())
    sizes = {image_size(data[:count]) for count in range(len(data))}
    assert sizes == {None, (48, 64)}


def test_size_after_a_long_header_is_read(tmp_path: Path) -> None:
    data = encoded(smooth_image())
    path = tmp_path / "long.jpg"
    path.write_bytes(data[:2] + segment(0xE2, bytes(65000)) * 2 + data[2:])
    assert read_size(path) == (48, 64)
    with pytest.raises(UserError, match="no such file"):
        read_size(tmp_path / "none.jpg")


@pytest.mark.parametrize("size", [(24, 32), (96, 128), (24, 128), (48, 64), (1, 1)], ids=str)
def test_resizing(size: tuple[int, int]) -> None:
    image = smooth_image()
    resized = resize_pixels(image, size)
    assert resized.shape == (*size, 3)
    assert resized.dtype == np.uint8
    if size == (24, 32):
        mean = image.reshape(24, 2, 32, 2, 3).mean(axis=(1, 3))
        assert np.abs(resized - mean).max() <= 1


@pytest.mark.parametrize(
    ("length", "wanted", "factor"), [(4, 12, 3), (4, 13, 3), (4, 15, 4), (4, 4, 1), (400, 4, 1)]
)
def test_enlarging_uses_a_whole_factor(length: int, wanted: int, factor: int) -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    enlarged = enlarge(pixels, length, wanted=wanted)
    assert not np.shares_memory(enlarged, pixels)
    assert enlarged.shape == (2 * factor, 3 * factor, 3)
    for top, left in np.ndindex(factor, factor):
        np.testing.assert_array_equal(enlarged[top::factor, left::factor], pixels)


@pytest.mark.parametrize("length", [12, 20, 60])
def test_size_of_a_png_that_ends_too_early(tmp_path: Path, length: int) -> None:
    (tmp_path / "a.png").write_bytes(encoded(smooth_image(), "PNG")[:length])
    with pytest.raises(BadImageError):
        read_size(tmp_path / "a.png")


def test_links_to_folders_are_followed_until_they_come_back(tmp_path: Path) -> None:
    for name in ("train/ant/1.jpg", "train/ant/notes.txt", "train/.hidden/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "val").symlink_to("train")
    (tmp_path / "train" / "ant" / "up").symlink_to(tmp_path)
    assert images_in(tmp_path) == (["train/ant/1.jpg", "val/ant/1.jpg"], 2)
    assert [name[-13:] for name in files_below(tmp_path, ".txt")] == ["ant/notes.txt"]


def test_links_to_themselves_are_an_error_by_default(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to("x")
    with pytest.raises(UserError, match=r"/x: cannot be read: Too many levels of symbolic links$"):
        images_in(tmp_path)


@pytest.mark.parametrize(
    ("folder", "skipped", "images"),
    [
        ("set", "set/images", ["a.jpg"]),
        ("set/images", "set", ["b.jpg", "deep/c.jpg"]),
        ("set", "set", []),
        ("set", "set/images/deep", ["a.jpg", "images/b.jpg"]),
        ("link", "set", ["b.jpg", "deep/c.jpg"]),
    ],
)
def test_skipped_folder(tmp_path: Path, folder: str, skipped: str, images: list[str]) -> None:
    (tmp_path / "set" / "images" / "deep").mkdir(parents=True)
    for name in ("set/a.jpg", "set/images/b.jpg", "set/images/deep/c.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "set" / "images" / "up").symlink_to("..")
    (tmp_path / "link").symlink_to("set/images")
    assert images_in(tmp_path / folder, skip_folder=tmp_path / skipped)[0] == images
