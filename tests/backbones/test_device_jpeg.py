"""JPEG decoding on a device: the pixels of OpenCV, errors, and which files any decoder reads."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.device_jpeg import decode_jpegs, require_decoder
from backbones.images import BadImageError, decode
from backbones.jpeg import is_plain
from engine.errors import UserError
from tests.reference.images import encoded, smooth_image

CPU = torch.device("cpu")
IMAGE = smooth_image()


def with_orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded(IMAGE, exif=exif)


PLAIN = {
    "4:2:0": encoded(IMAGE),
    "4:4:4": encoded(IMAGE, subsampling=0),
    "grey": encoded(IMAGE, mode="L"),
    "progressive": encoded(IMAGE, progressive=True),
    "optimised": encoded(IMAGE, optimize=True, quality=50),
    "upright by EXIF": with_orientation(1),
}
FRAME = PLAIN["4:2:0"].index(b"\xff\xc0")
"""Offset of the frame header: marker, length, precision, size, components."""


def with_frame(offset: int, values: bytes) -> bytes:
    data = bytearray(PLAIN["4:2:0"])
    data[FRAME + offset : FRAME + offset + len(values)] = values
    return bytes(data)


OTHERS = {
    "turned": with_orientation(6),
    "mirrored": with_orientation(2),
    "CMYK": encoded(IMAGE, mode="CMYK"),
    "RGB": encoded(IMAGE, keep_rgb=True),
    "PNG": encoded(IMAGE, "PNG"),
    "cut": PLAIN["4:2:0"][:-2],
    "empty": b"",
    "arithmetic coding": with_frame(1, b"\xc9"),
    "12 bits": with_frame(4, b"\x0c"),
    "four components": with_frame(9, b"\x04"),
    "a cut frame": with_frame(2, b"\x00\x07"),
    "RGB by the ids": with_frame(10, b"R\x22\x00G\x11\x01B\x11\x01"),
    "rare subsampling": with_frame(10, b"\x01\x22\x00\x02\x12\x01\x03\x11\x01"),
}


@pytest.mark.parametrize(("name", "data"), PLAIN.items(), ids=list(PLAIN))
def test_plain_files_have_the_pixels_of_opencv(name: str, data: bytes) -> None:
    assert is_plain(data)
    check_pixels(data, CPU, tolerance=0)


def gpu_that_decodes() -> torch.device:
    """Return the GPU; skips the test where the optional package is missing or too old."""
    try:
        require_decoder()
    except UserError as error:
        pytest.skip(str(error))
    return torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "data"), PLAIN.items(), ids=list(PLAIN))
def test_nvjpegs_pixels_are_near_opencvs(name: str, data: bytes) -> None:
    # its inverse DCT rounds differently, and it repeats subsampled colours instead of interpolating
    is_subsampled = name not in ("4:4:4", "grey")
    check_pixels(data, gpu_that_decodes(), tolerance=20 if is_subsampled else 3)


def check_pixels(data: bytes, device: torch.device, *, tolerance: int) -> None:
    file = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    (image,) = decode_jpegs([file], ["a.jpg"], device=device)
    assert image.device.type == device.type
    difference = np.abs(image.permute(1, 2, 0).cpu().numpy().astype(int) - decode(data, "a.jpg"))
    assert difference.max() <= tolerance
    assert difference.mean() <= tolerance / 4


@pytest.mark.parametrize(("name", "data"), OTHERS.items(), ids=list(OTHERS))
def test_other_files_are_told_apart(name: str, data: bytes) -> None:
    assert not is_plain(data)


def test_no_files_are_no_images() -> None:
    assert decode_jpegs([], [], device=CPU) == []


def test_a_file_that_cannot_be_decoded_is_named() -> None:
    good, bad = PLAIN["grey"], b"\xff\xd8 no image \xff\xd9"
    files = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in (good, bad)]
    with pytest.raises(BadImageError, match=r"^bad\.jpg: expected a JPEG .* on cpu, got "):
        decode_jpegs(files, ["good.jpg", "bad.jpg"], device=CPU)


def test_a_device_that_cannot_decode_is_not_blamed_on_a_file() -> None:
    file = torch.frombuffer(bytearray(PLAIN["grey"]), dtype=torch.uint8)
    device = torch.device("xpu")
    with pytest.raises(UserError, match=r"data\.decode=device: decoding on xpu fails: ") as caught:
        decode_jpegs([file], ["good.jpg"], device=device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        pytest.param(None, "expected the package torchcodec, from 0.16 on", id="not installed"),
        pytest.param(object(), "expected torchcodec from 0.16 on, got an older", id="too old"),
    ],
)
def test_without_torchcodec_one_line_says_what_to_install(
    module: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    with pytest.raises(UserError, match=message) as caught:
        require_decoder()
    assert "\n" not in str(caught.value)
