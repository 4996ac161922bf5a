"""Content of image files: equal pixels have equal digests, whatever the file."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection.data.image_content import Facts, read_facts
from engine.log import RunLog


def read(folder: Path, *names: str) -> Facts:
    return read_facts(folder, names, workers=0, log=RunLog(None, is_main=False))


@pytest.fixture
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(256, size=(30, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_equal_pixels_have_equal_digests(tmp_path: Path, image: Image.Image) -> None:
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.png", compress_level=0)
    image.save(tmp_path / "c.bmp")
    image.rotate(180).save(tmp_path / "d.png")
    image.resize((30, 40)).save(tmp_path / "e.png")
    Image.fromarray(np.asarray(image).reshape(60, 20, 3)).save(tmp_path / "f.png")
    facts = read(tmp_path, *["a.png", "b.png", "c.bmp", "d.png", "e.png", "f.png"])
    digests = [fact.digest for fact in facts.values()]
    assert digests[0] == digests[1] == digests[2]
    assert len(set(digests)) == 4
    assert {fact.size for fact in facts.values()} == {(30, 40), (40, 30), (60, 20)}


def test_what_cannot_be_decoded_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    contents = {"a.jpg": b"x" * 3_000_000, "b.jpg": b"y", "c.png": b"x" * 3_000_000, "d": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    facts = read(tmp_path, *contents)
    for name, content in contents.items():
        assert facts[name].digest == hashlib.blake2b(content, digest_size=16).digest()
        assert facts[name].size is None
        assert facts[name].error
        assert not facts[name].is_missing


def test_what_cannot_be_read_has_no_digest(tmp_path: Path, image: Image.Image) -> None:
    image.save(tmp_path / "a.png")
    facts = read(tmp_path, "none.jpg", "n" * 300, "a.png", "a.png", "")
    assert [(fact.is_missing, fact.digest == b"") for fact in facts.values()] == [
        (True, True),
        (True, True),
        (False, False),
    ]
    assert read(tmp_path) == {}


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    fact = read(tmp_path, "a.jpg")["a.jpg"]
    assert fact.size is None
    assert fact.digest == b""
