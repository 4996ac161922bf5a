import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from backbones.pictures import (
    MAX_FILE_BYTES,
    REDUCTIONS,
    BadPictureError,
    bit_depth_note,
    decode,
    enlarge,
    picture_size,
    read_image,
    read_size,
    resize_pixels,
)
from engine.errors import UserError
from tests.reference.pictures import smooth_picture

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
def test_every_kind_of_file_is_read_as_rgb(
    tmp_path: Path, suffix: str, mode: str, options: dict[str, Any], tolerance: int
) -> None:
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(smooth_picture()).convert(mode).save(path, **options)
    pixels = read_image(path)
    expected = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= tolerance


def test_transparency_is_dropped_and_not_blended(tmp_path: Path) -> None:
    picture = smooth_picture()
    alpha = np.random.default_rng(1).integers(256, size=picture.shape[:2], dtype=np.uint8)
    Image.fromarray(np.dstack([picture, alpha])).save(tmp_path / "a.png")
    torch.testing.assert_close(read_image(tmp_path / "a.png"), picture)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_eight(tmp_path: Path, channels: int) -> None:
    picture = smooth_picture()[..., :channels]
    cv2.imwrite(str(tmp_path / "deep.png"), picture[..., ::-1].astype(np.uint16) * 257)
    expected = np.repeat(picture, 4 - channels, axis=2)[..., :3]
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
def test_sixteen_bits_are_scaled_by_those_that_are_used(
    suffix: str, channels: int, bits: int
) -> None:
    deep = np.random.default_rng(0).integers(2**bits, size=(9, 12, channels)).astype(np.uint16)
    deep[0, 0, :3] = 2**bits - 1
    deep[..., 3:] = 65535  # transparency says nothing about the colours
    data = cv2.imencode(suffix, deep)[1].tobytes()
    used = bits + bits % 2
    expected = deep[..., :3][..., ::-1] >> (used - 8)
    pixels = decode(data, "a")
    assert pixels.dtype == np.uint8
    tolerance = int(bits == 16 and suffix == ".tiff")  # libtiff rounds
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize(("suffix", "channels"), DEEP.values(), ids=DEEP)
def test_all_sixteen_bits_give_what_opencv_gives(suffix: str, channels: int) -> None:
    deep = np.random.default_rng(0).integers(65536, size=(30, 40, channels)).astype(np.uint16)
    data = cv2.imencode(suffix, deep)[1]
    expected = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    assert expected is not None
    np.testing.assert_array_equal(decode(data.tobytes(), "a"), expected)


def test_sixteen_bits_that_are_dark_are_said_once(tmp_path: Path) -> None:
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
def test_other_depths_are_refused(dtype: Any, channels: int) -> None:
    data = cv2.imencode(".tiff", np.ones((4, 5, channels), dtype))[1].tobytes()
    with pytest.raises(BadPictureError, match=r"^a\.tiff: expected"):
        decode(data, "a.tiff")


TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
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
@pytest.mark.parametrize("orientation", TURNED)
def test_exif_is_applied_once(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"turned.{suffix}"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(smooth_picture()).save(path, exif=exif)
    plain = read_image(path, rotate=False)
    assert plain.shape == (48, 64, 3)
    expected = np.ascontiguousarray(TURNED[orientation](plain))
    torch.testing.assert_close(read_image(path), expected)


@pytest.mark.parametrize("missing", [2, 20, 1500], ids=str)
@pytest.mark.parametrize(
    ("suffix", "options"),
    [("jpg", {}), ("jpg", {"progressive": True}), ("png", {}), ("webp", {})],
    ids=str,
)
def test_a_truncated_file_is_named(
    tmp_path: Path, suffix: str, options: dict[str, Any], missing: int
) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(BadPictureError, match=rf"cut\.{suffix}: expected a whole"):
        read_image(path)


def test_the_end_of_a_thumbnail_is_not_the_end(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(smooth_picture()).save(path, comment=b"\xff\xd8 thumbnail \xff\xd9")
    whole = path.read_bytes()
    assert read_image(path).shape == (48, 64, 3)
    path.write_bytes(whole + b"left over")
    assert read_image(path).shape == (48, 64, 3)
    path.write_bytes(whole[:-40])
    with pytest.raises(BadPictureError):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xd9"], ids=str)
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.jpg"
    path.write_bytes(content)
    with pytest.raises(BadPictureError, match=r"odd\.jpg: expected a whole picture"):
        read_image(path)


def test_a_missing_file_is_no_bad_picture(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jpg: no such file") as error:
        read_image(tmp_path / "none.jpg")
    assert not isinstance(error.value, BadPictureError)


def encoded(picture: np.ndarray, kind: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    """Return the picture as a file."""
    file = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_reduced_jpeg_looks_like_the_whole(reduction: int, mode: str, progressive: bool) -> None:
    data = encoded(smooth_picture(150, 203), mode=mode, quality=95, progressive=progressive)
    whole, reduced = decode(data, "a.jpg"), decode(data, "a.jpg", reduction=reduction)
    height, width = -(-150 // reduction), -(-203 // reduction)
    assert reduced.shape == (height, width, 3)
    padding = ((0, height * reduction - 150), (0, width * reduction - 203), (0, 0))
    cells = np.pad(whole, padding, mode="edge").reshape(height, reduction, width, reduction, 3)
    difference = np.abs(reduced - cells.mean(axis=(1, 3)))
    assert difference[:-1, :-1].max() < 6  # the last row and column are made up in part
    assert difference.mean() < 1


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_other_formats_come_whole(kind: str) -> None:
    data = encoded(smooth_picture(), kind)
    torch.testing.assert_close(decode(data, "a", reduction=4), decode(data, "a"))
    assert picture_size(data) is None


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", [*TURNED, 0, 9])
def test_the_size_is_known_before_decoding(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"turned.{suffix}"
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    exif[ORIENTATION] = orientation
    Image.fromarray(smooth_picture(31, 53)).save(path, exif=exif)
    expected = (53, 31) if orientation in range(5, 9) else (31, 53)
    assert read_size(path) == read_image(path).shape[:2] == expected
    if suffix == "jpg":
        data = path.read_bytes()
        assert picture_size(data) == expected
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
    ids=["big-endian", "upside down", "cut short", "no entry", "after XMP", "frame in a segment"],
)
def test_segments_before_the_picture(
    segments: list[tuple[int, bytes]], expected: tuple[int, int]
) -> None:
    data = encoded(smooth_picture())
    data = data[:2] + b"".join(segment(*each) for each in segments) + data[2:]
    assert picture_size(data) == decode(data, "a.jpg").shape[:2] == expected


def test_a_header_that_is_not_whole_gives_no_size() -> None:
    data = encoded(smooth_picture())
    sizes = {picture_size(data[:count]) for count in range(len(data))}
    assert sizes == {None, (48, 64)}


def test_a_long_header_is_read_all_the_same(tmp_path: Path) -> None:
    data = encoded(smooth_picture())
    path = tmp_path / "long.jpg"
    path.write_bytes(data[:2] + segment(0xE2, bytes(65000)) * 2 + data[2:])
    assert read_size(path) == (48, 64)
    with pytest.raises(UserError, match="no such file"):
        read_size(tmp_path / "none.jpg")


@pytest.mark.parametrize("size", [(24, 32), (96, 128), (24, 128), (48, 64), (1, 1)], ids=str)
def test_resizing(size: tuple[int, int]) -> None:
    picture = smooth_picture()
    resized = resize_pixels(picture, size)
    assert resized.shape == (*size, 3)
    assert resized.dtype == np.uint8
    if size == (24, 32):
        mean = picture.reshape(24, 2, 32, 2, 3).mean(axis=(1, 3))
        assert np.abs(resized - mean).max() <= 1


@pytest.mark.parametrize(
    ("length", "wanted", "factor"), [(4, 12, 3), (4, 13, 3), (4, 15, 4), (4, 4, 1), (400, 4, 1)]
)
def test_a_picture_is_enlarged_by_a_whole_factor(length: int, wanted: int, factor: int) -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    enlarged = enlarge(pixels, length, wanted=wanted)
    assert not np.shares_memory(enlarged, pixels)
    assert enlarged.shape == (2 * factor, 3 * factor, 3)
    for top, left in np.ndindex(factor, factor):
        np.testing.assert_array_equal(enlarged[top::factor, left::factor], pixels)


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    """An image whose JPEG is long enough to be damaged anywhere."""
    return np.random.default_rng(0).integers(256, size=(120, 160, 3), dtype=np.uint8)


DAMAGES: dict[str, Callable[[bytearray], object]] = {
    "overwritten": lambda data: data.__setitem__(slice(6000, 6064), bytes(range(64))),
    "zeros": lambda data: data.__setitem__(slice(6000, 6400), bytes(400)),
    "a hole": lambda data: data.__delitem__(slice(6000, 8000)),
    "more than its end": lambda data: data.__setitem__(slice(-2, None), b"left over!" * 3 + END),
}
END = b"\xff\xd9"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("reduction", [1, 4])
def test_damage_in_the_middle_is_named(
    large: np.ndarray,
    damage: Callable[[bytearray], object],
    options: dict[str, Any],
    reduction: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = bytearray(encoded(large, **options))
    damage(data)
    with pytest.raises(BadPictureError, match=r"^a\.jpg: expected a whole JPEG.*Corrupt JPEG data"):
        decode(bytes(data), "a.jpg", reduction=reduction)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("place", "stray"),
    [
        ("end", END * 9),
        ("end", b"junk"),
        ("pad", bytes(90)),
        ("pad", b"abcde"),
        ("head", b"x" * 90),
    ],
)
def test_stray_bytes_that_harm_no_pixel_are_fine(
    large: np.ndarray, place: str, stray: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    data = encoded(large)
    at = {"end": len(data), "pad": len(data) - 2, "head": data.index(b"\xff\xdb")}[place]
    changed = data[:at] + stray + data[at:]
    np.testing.assert_array_equal(decode(changed, "a.jpg"), decode(data, "a.jpg"))
    assert capfd.readouterr() == ("", "")


def test_a_damaged_png_is_named_with_the_reason(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(encoded(smooth_picture(), "PNG"))
    data[len(data) // 2] ^= 255
    with pytest.raises(BadPictureError, match=r"^a\.png: expected a whole .*libpng error"):
        decode(bytes(data), "a.png")
    assert capfd.readouterr() == ("", "")


def test_threads_get_the_messages_of_their_own_images(large: np.ndarray) -> None:
    whole = encoded(large)
    damaged = whole[:6000] + bytes(400) + whole[6400:]
    wrong: list[str] = []

    def read(data: bytes, is_damaged: bool) -> None:
        for _ in range(20):
            try:
                decode(data, "a.jpg")
                wrong.extend(["damage passed"] * is_damaged)
            except BadPictureError:
                wrong.extend(["a whole image refused"] * (not is_damaged))

    threads = [threading.Thread(target=read, args=(whole, False)) for _ in range(2)]
    threads += [threading.Thread(target=read, args=(damaged, True)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # sparse: it takes no room on the disk
    cases = {"fifo.jpg": "a FIFO", "folder.jpg": "a folder", "huge.jpg": "at most .* bytes"}
    for name, got in cases.items():
        for read in (read_image, read_size):
            with pytest.raises(BadPictureError, match=rf"{name}: expected .*{got}"):
                read(tmp_path / name)
    with pytest.raises(BadPictureError, match="got a device"):
        read_image("/dev/zero")


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "a\0b.jpg", "file.jpg/below.jpg"])
def test_a_name_that_no_file_can_have_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.jpg").touch()
    for read in (read_image, read_size):
        with pytest.raises(UserError):
            read(tmp_path / name)


def bomb(kind: str) -> bytes:
    """Return a small file whose header asks for 30000 x 30000 pixels."""
    sides = {
        "JPEG": (">H", 2),
        "PNG": (">I", 4),
        "BMP": ("<I", 4),
        "TIFF": ("<H", 2),
        "GIF": ("<H", 2),
    }
    data = encoded(smooth_picture(51, 53), kind)
    order, size = sides[kind]
    byteorder: Any = "big" if order[0] == ">" else "little"
    for side in (51, 53):
        data = data.replace(side.to_bytes(size, byteorder), (30000).to_bytes(size, byteorder))
    return data


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "GIF"])
def test_an_image_of_absurd_size_is_not_decoded(kind: str) -> None:
    with pytest.raises(BadPictureError, match=r"^a: expected at most \d+ pixels, got"):
        decode(bomb(kind), "a")


def test_an_image_file_with_a_name_of_another_encoding_is_read(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xc3\xa8\xd6\xed.png")  # GBK
    Image.fromarray(smooth_picture()).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / name)
    torch.testing.assert_close(read_image(tmp_path / name), smooth_picture())
    assert read_size(str(tmp_path / name)) == (48, 64)
