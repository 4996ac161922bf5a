"""Uncompressed files: windows are those of the whole image, other files are not misread."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from backbones.bitmaps import as_bitmap, encode_bitmap
from backbones.images import decode


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 6), (7, 8), (3, 13)], ids=str)
def test_windows_are_those_of_the_image(tmp_path: Path, size: tuple[int, int]) -> None:
    pixels = noise(*size)
    path = tmp_path / "a.bmp"
    path.write_bytes(encode_bitmap(pixels))
    np.testing.assert_array_equal(decode(path.read_bytes(), path), pixels)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), pixels)
    with path.open("rb") as file:
        bitmap = as_bitmap(file)
        assert bitmap is not None
        assert bitmap.size == size
        for top in range(size[0]):
            for left in range(size[1]):
                rows, columns = slice(top, size[0]), slice(left // 2, left + 1)
                np.testing.assert_array_equal(
                    bitmap.read_bgr(rows, columns)[..., ::-1], pixels[rows, columns]
                )


def as_grey(path: Path) -> None:
    assert cv2.imwrite(str(path), noise(4, 5)[..., 0])


def as_bottom_up(path: Path) -> None:
    assert cv2.imwrite(str(path), noise(4, 5))


def as_jpeg(path: Path) -> None:
    path.write_bytes(cv2.imencode(".jpg", noise(4, 5))[1].tobytes())


def as_cut(path: Path) -> None:
    path.write_bytes(encode_bitmap(noise(4, 5))[:-1])


def as_cut_header(path: Path) -> None:
    path.write_bytes(encode_bitmap(noise(4, 5))[:20])


def as_empty(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize("write", [as_grey, as_bottom_up, as_jpeg, as_cut, as_cut_header, as_empty])
def test_other_files_are_decoded_as_a_whole(tmp_path: Path, write: object) -> None:
    assert callable(write)
    write(tmp_path / "a.bmp")
    with (tmp_path / "a.bmp").open("rb") as file:
        assert as_bitmap(file) is None
