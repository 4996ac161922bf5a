"""Image files that are damaged, not regular files, or too large."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.decoder_messages import with_messages
from backbones.images import MAX_FILE_BYTES, BadImageError, decode, read_image, read_size
from engine.errors import UserError
from tests.reference.images import encoded, smooth_image


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    """Return an image whose JPEG is long enough for damage at byte 6000."""
    return np.random.default_rng(0).integers(256, size=(120, 160, 3), dtype=np.uint8)


END = b"\xff\xd9"
DAMAGES: dict[str, Callable[[bytearray], object]] = {
    "overwritten": lambda data: data.__setitem__(slice(6000, 6064), bytes(range(64))),
    "zeros": lambda data: data.__setitem__(slice(6000, 6400), bytes(400)),
    "a hole": lambda data: data.__delitem__(slice(6000, 8000)),
    "more than its end": lambda data: data.__setitem__(slice(-2, None), b"left over!" * 3 + END),
}


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("reduction", [1, 4])
def test_damage_in_the_middle_gives_an_error(
    large: np.ndarray,
    damage: Callable[[bytearray], object],
    options: dict[str, Any],
    reduction: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = bytearray(encoded(large, **options))
    damage(data)
    with pytest.raises(BadImageError, match=r"^a\.jpg: expected a whole JPEG.*Corrupt JPEG data"):
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
def test_harmless_stray_bytes_are_accepted(
    large: np.ndarray, place: str, stray: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    data = encoded(large)
    at = {"end": len(data), "pad": len(data) - 2, "head": data.index(b"\xff\xdb")}[place]
    changed = data[:at] + stray + data[at:]
    np.testing.assert_array_equal(decode(changed, "a.jpg"), decode(data, "a.jpg"))
    assert capfd.readouterr() == ("", "")


def test_damaged_png_gives_an_error_with_the_reason(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(encoded(smooth_image(), "PNG"))
    data[len(data) // 2] ^= 255
    with pytest.raises(BadImageError, match=r"^a\.png: expected a whole .*libpng error"):
        decode(bytes(data), "a.png")
    assert capfd.readouterr() == ("", "")


def test_threads_get_the_decoder_messages_of_their_own_images(large: np.ndarray) -> None:
    whole = encoded(large)
    damaged = whole[:6000] + bytes(400) + whole[6400:]
    wrong: list[str] = []

    def read(data: bytes, is_damaged: bool) -> None:
        for _ in range(20):
            try:
                decode(data, "a.jpg")
                wrong.extend(["damage passed"] * is_damaged)
            except BadImageError:
                wrong.extend(["a whole image refused"] * (not is_damaged))

    threads = [threading.Thread(target=read, args=(whole, False)) for _ in range(2)]
    threads += [threading.Thread(target=read, args=(damaged, True)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_threads_decode_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=30)  # raises BrokenBarrierError if one waits for the other
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda _: with_messages(both.wait), range(2)))
    assert sorted(results) == [(0, ""), (1, "")]


def test_folders_fifos_and_devices_give_an_error_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # a sparse file: it uses no disk space
    cases = {"fifo.jpg": "a FIFO", "folder.jpg": "a folder", "huge.jpg": "at most .* bytes"}
    for name, got in cases.items():
        for read in (read_image, read_size):
            with pytest.raises(BadImageError, match=rf"{name}: expected .*{got}"):
                read(tmp_path / name)
    with pytest.raises(BadImageError, match="got a device"):
        read_image("/dev/zero")


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "a\0b.jpg", "file.jpg/below.jpg"])
def test_impossible_file_name_gives_a_one_line_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.jpg").touch()
    for read in (read_image, read_size):
        with pytest.raises(UserError):
            read(tmp_path / name)


def bomb(kind: str) -> bytes:
    """Return a small file whose header declares 30000 x 30000 pixels."""
    sides = {
        "JPEG": (">H", 2),
        "PNG": (">I", 4),
        "BMP": ("<I", 4),
        "TIFF": ("<H", 2),
        "GIF": ("<H", 2),
    }
    data = encoded(smooth_image(51, 53), kind)
    order, size = sides[kind]
    byteorder: Any = "big" if order[0] == ">" else "little"
    for side in (51, 53):
        data = data.replace(side.to_bytes(size, byteorder), (30000).to_bytes(size, byteorder))
    return data


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "GIF"])
def test_image_of_excessive_size_is_not_decoded(kind: str) -> None:
    with pytest.raises(BadImageError, match=r"^a: expected at most \d+ pixels, got"):
        decode(bomb(kind), "a")


def test_file_name_in_another_encoding_is_read(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xc3\xa8\xd6\xed.png")  # GBK
    Image.fromarray(smooth_image()).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / name)
    torch.testing.assert_close(read_image(tmp_path / name), smooth_image())
    assert read_size(str(tmp_path / name)) == (48, 64)
