"""Fuzzing of image files: damaged and forged files of all formats, and files that are not images.

H, W: height and width of an image.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from backbones.images import read_image, read_size
from detection.config import SCHEMAS, DetectionConfig
from detection.data.coco import ClassMap
from detection.inference.trained import TrainedDetector
from detection.models.build import build_faster_rcnn
from detection.predict import Detector
from engine.config import parse_config
from tests.fuzz.harness import Call, Case, FaultError
from tests.fuzz.mutations import NAMES, mutate_bytes, replace_file

HEIGHT, WIDTH = 40, 56
SIZES = (0, 1, 2, 255, 4096, 30_000, 65_535, 65_536, 10**6, 2**31 - 1, 2**31, 2**32 - 1)
SMALL_MODEL = {
    "data": {"eval_short_side": 32, "eval_max_side": 64},
    "model": {
        "backbone": {"kind": "resnet18", "norm": "group", "frozen_stages": 0},
        "neck": {"kind": "fpn", "channels": 8},
        "rpn": {"post_nms_topk_test": 10, "pre_nms_topk_test": 20},
        "roi": {"hidden_dim": 8, "score_thresh": 0.0, "max_detections": 3},
    },
}


def _pixels() -> np.ndarray:
    small = np.random.default_rng(3).integers(
        256, size=(HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8
    )
    return np.asarray(cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))


def valid_images() -> dict[str, bytes]:
    """Return valid files of all formats that we read, by name."""
    rgb = Image.fromarray(_pixels())
    exif = Image.Exif()
    exif[0x0112] = 6
    grey16 = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    alpha = rgb.convert("RGBA")
    alpha.putalpha(rgb.convert("L"))
    specs: dict[str, tuple[Any, str, dict[str, Any]]] = {
        "baseline.jpg": (rgb, "JPEG", {}),
        "progressive.jpg": (rgb, "JPEG", {"progressive": True}),
        "grey.jpg": (rgb.convert("L"), "JPEG", {}),
        "cmyk.jpg": (rgb.convert("CMYK"), "JPEG", {}),
        "turned.jpg": (rgb, "JPEG", {"exif": exif}),
        "restarts.jpg": (rgb, "JPEG", {"restart_marker_blocks": 2}),
        "full_chroma.jpg": (rgb, "JPEG", {"subsampling": 0, "quality": 98}),
        "rgb.png": (rgb, "PNG", {}),
        "alpha.png": (alpha, "PNG", {}),
        "palette.png": (rgb.convert("P"), "PNG", {"transparency": 3}),
        "two_values.png": (rgb.convert("1"), "PNG", {}),
        "grey16.png": (grey16, "PNG", {}),
        "plain.tif": (rgb, "TIFF", {}),
        "lzw.tif": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "deflate.tif": (rgb, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "jpeg.tif": (rgb, "TIFF", {"compression": "jpeg"}),
        "grey16.tif": (grey16, "TIFF", {}),
        "cmyk.tif": (rgb.convert("CMYK"), "TIFF", {}),
        "lossy.webp": (rgb, "WEBP", {}),
        "lossless.webp": (alpha, "WEBP", {"lossless": True}),
        "moving.webp": (rgb, "WEBP", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        "rgb.bmp": (rgb, "BMP", {}),
        "palette.bmp": (rgb.convert("P"), "BMP", {}),
        "still.gif": (rgb, "GIF", {}),
        "moving.gif": (rgb, "GIF", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        "rgb.ppm": (rgb, "PPM", {}),
    }
    made = {}
    for name, (image, form, options) in specs.items():
        file = io.BytesIO()
        image.save(file, form, **options)
        made[name] = file.getvalue()
    made["late_exif.jpg"] = _exif_last(made["turned.jpg"])
    deep = _pixels().astype(np.uint16) * 257
    made["deep.png"] = cv2.imencode(".png", deep)[1].tobytes()
    made["deep.tif"] = cv2.imencode(".tif", deep)[1].tobytes()
    return made


def _exif_last(data: bytes) -> bytes:
    """Move a JPEG's EXIF data after the frame header, directly before the scan."""
    start, scan = data.index(b"\xff\xe1"), data.index(b"\xff\xda")
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return data[:start] + data[end:scan] + data[start:end] + data[scan:]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def forged_png(
    width: int, height: int, *, depth: int, colour: int, interlaced: int, rows: int
) -> bytes:
    """Return a PNG with valid checksums that claims a size and contains `rows` kB of zeros."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    data = zlib.compress(b"\0" * 1000 * rows, 1)
    parts = (_chunk(b"IHDR", header), _chunk(b"IDAT", data), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _edit_png(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Change, drop, duplicate or move a chunk; its checksum is right."""
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    index = rng.randrange(len(chunks))
    kind, content = chunks[index]
    action = rng.choice(("change", "change", "drop", "double", "move", "foreign"))
    label = ""
    if action == "change":
        content, label = mutate_bytes(content, rng)
        chunks[index] = kind, content
    elif action == "drop":
        del chunks[index]
    elif action == "double":
        chunks.insert(index, chunks[index])
    elif action == "move":
        chunks.append(chunks.pop(index))
    else:
        strange = rng.choice(
            (b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"gAMA", b"acTL", b"fdAT", b"zTXt")
        )
        chunks.insert(1, (strange, rng.randbytes(rng.choice((0, 1, 3, 700)))))
    return data[:8] + b"".join(_chunk(*each) for each in chunks), f"{kind!r} {action} {label}"


def _edit_jpeg(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Change, drop, duplicate or move a segment of the header."""
    segments, at = [], 2
    while data[at + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, at + 2)
        segments.append(data[at : at + 2 + length])
        at += 2 + length
    scan = data[at:]
    index = rng.randrange(len(segments))
    segment = segments[index]
    action = rng.choice(("change", "change", "drop", "double", "move", "length", "size"))
    label = f"segment {segment[1]:#x} {action}"
    if action == "change":
        segments[index], more = mutate_bytes(segment, rng, first=2)
        label += f" {more}"
    elif action == "drop":
        del segments[index]
    elif action == "double":
        segments.insert(index, segment)
    elif action == "move":
        segments.append(segments.pop(index))
    elif action == "length":
        segments[index] = (
            segment[:2] + struct.pack(">H", rng.choice((0, 1, 2, 65535))) + segment[4:]
        )
    else:
        size = rng.choice(SIZES[:7]), rng.choice(SIZES[:7])
        frame = next(i for i, each in enumerate(segments) if each[1] in (0xC0, 0xC2))
        header = segments[frame]
        segments[frame] = header[:5] + struct.pack(">HH", *size) + header[9:]
        label = f"size {size}"
    return data[:2] + b"".join(segments) + scan, label


def _damage_scan(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Change the coded pixels of a JPEG, but not its end marker."""
    start = data.rindex(b"\xff\xda") + 14
    body, label = mutate_bytes(data[start:-2], rng)
    return data[:start] + body + data[-2:], label


def _claim(name: str, data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Write random sizes into the header of a file."""
    width, height = rng.choice(SIZES), rng.choice(SIZES)
    label = f"claims {width} x {height}"
    if name.endswith(".png"):
        forged = forged_png(
            width,
            height,
            depth=rng.choice((1, 8, 16, 3)),
            colour=rng.choice((0, 2, 3, 4, 6, 1)),
            interlaced=rng.choice((0, 0, 1, 2)),
            rows=rng.choice((1, 100, 30_000)),
        )
        return forged, label
    if name.endswith(".bmp"):
        bits = rng.choice((0, 1, 8, 24, 32, 64))
        return data[:18] + struct.pack("<IIHH", width, height, 1, bits) + data[30:], label
    if name.endswith(".gif"):
        return data[:6] + struct.pack("<HH", width % 65536, height % 65536) + data[10:], label
    if name.endswith(".ppm"):
        return f"P{rng.randrange(1, 8)} {width} {height} 255\n".encode() + data[12:], label
    if name.endswith(".tif"):
        for value in (WIDTH, HEIGHT):  # all TIFF files here are little-endian
            data = data.replace(struct.pack("<I", value), struct.pack("<I", rng.choice(SIZES)), 1)
        return data, "claims other sizes"
    edited = data[:20] + struct.pack("<II", width, height) + data[28:]
    return edited, f"{label}, if read there"


OTHERS: dict[str, bytes] = {
    "empty": b"",
    "text": b"not an image\n" * 50,
    "half a magic": b"\x89PNG",
    "start of a JPEG": b"\xff\xd8",
    "JPEG of two markers": b"\xff\xd8\xff\xd9",
    "HTML": b"<!doctype html><title>404</title>",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "HDR": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 60000 +X 60000\n" + b"\x02\x02\xea\x60" * 9,
    "EXR": b"\x76\x2f\x31\x01\x02\x00\x00\x00" + b"\0" * 60,
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 60,
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + b"\0" * 60,
    "Sun raster": struct.pack(">8I", 0x59A66A95, 60_000, 60_000, 24, 0, 1, 0, 0),
    "PAM": b"P7\nWIDTH 60000\nHEIGHT 60000\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n",
    "PFM": b"PF\n60000 60000\n-1.0\n",
    "zip": b"PK\x03\x04" + b"\0" * 60,
    "zeros": b"\0" * 5000,
    "as large as it claims": b"",  # 100 kB for 112 MB; made on use
    "forged interlaced": forged_png(20_000, 20_000, depth=8, colour=2, interlaced=1, rows=1),
}
Edit = Callable[[bytes, random.Random], tuple[bytes, str]]
GROUPS = ("JPEG scan", "JPEG header", "PNG chunk", "bytes", "header bytes", "claimed size", "other")


class ImageFiles:
    """Files damaged by format, with forged sizes, not images; paths that are not files."""

    name = "images"
    full, quick = 600, 40

    def prepare(self, site: Path, count: int) -> None:
        """Make valid files and a small detector with random weights."""
        self._images = valid_images()
        config = parse_config(SMALL_MODEL, schemas=SCHEMAS, source="fuzz")
        assert isinstance(config, DetectionConfig)
        torch.manual_seed(0)
        model = build_faster_rcnn(config.model, num_classes=2, size_divisor=32, with_masks=False)
        classes = ClassMap(("ant", "cow"), (1, 2))
        self._detector = Detector(
            TrainedDetector(config, classes, model.eval()), device=torch.device("cpu")
        )

    def make(self, rng: random.Random, index: int, case: Path) -> Case:
        """Write one image."""
        group = GROUPS[index % len(GROUPS)]
        name = rng.choice(sorted(self._images))
        if group == "other" and index // len(GROUPS) % 2:
            return self._odd_path(rng, case)
        if group == "other":
            name = sorted(OTHERS)[index // len(GROUPS) // 2 % len(OTHERS)]
            data, label = OTHERS[name], ""
            if name == "as large as it claims":
                data = forged_png(30_000, 30_000, depth=1, colour=0, interlaced=0, rows=112_530)
        else:
            data, label, name = self._damaged(group, name, rng)
        path = case / f"image{Path(name).suffix or '.png'}"
        path.write_bytes(data)
        return Case(group, f"{name}: {label}", self._calls(path.name, group))

    def _damaged(self, group: str, name: str, rng: random.Random) -> tuple[bytes, str, str]:
        edits: dict[str, tuple[str, Edit]] = {
            "JPEG scan": (".jpg", _damage_scan),
            "JPEG header": (".jpg", _edit_jpeg),
            "PNG chunk": (".png", _edit_png),
        }
        if group in edits:
            suffix, edit = edits[group]
            name = rng.choice([each for each in sorted(self._images) if each.endswith(suffix)])
            data, label = edit(self._images[name], rng)
        elif group == "claimed size":
            name = rng.choice([each for each in sorted(self._images) if not each.endswith("jpg")])
            data, label = _claim(name, self._images[name], rng)
        elif group == "header bytes":
            data, label = mutate_bytes(self._images[name][:100], rng)
            data += self._images[name][100:]
        else:
            data, label = mutate_bytes(self._images[name], rng)
        return data, label, name

    def _odd_path(self, rng: random.Random, case: Path) -> Case:
        """Use an invalid file name, or replace the file with something that is not a file."""
        if rng.random() < 0.5:
            name = rng.choice(NAMES).removeprefix("/etc") or "/"
            return Case("path", f"name {name!r:.80}", self._calls(name, "path"))
        label = replace_file(case / "image.png", rng)
        return Case("path", label, self._calls("image.png", "path"))

    def _calls(self, name: str, group: str) -> list[tuple[str, Call]]:
        def read() -> str:
            check_array(read_image(name))
            return f"{group} read"

        def measure() -> None:
            size = read_size(name)
            try:
                pixels = read_image(name)
            except ValueError:
                return  # read_size may not notice a damaged end
            if size != pixels.shape[:2]:
                raise FaultError(f"read_size: {size}, read_image: {pixels.shape[:2]}")

        return [
            ("read_image", read),
            ("read_size", measure),
            ("unrotated", lambda: check_array(read_image(name, rotate=False))),
            ("predict", lambda: self._predict(name)),
        ]

    def _predict(self, name: str) -> None:
        (found,) = self._detector.predict([name])
        if not found.boxes.isfinite().all():
            raise FaultError("boxes that are not finite")


def check_array(pixels: np.ndarray) -> None:
    """Raise FaultError if an array is not (H, W, 3) uint8."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise FaultError(f"expected (H, W, 3) uint8, got {pixels.shape} {pixels.dtype}")
