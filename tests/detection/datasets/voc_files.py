"""Writers of small data sets in PASCAL VOC's format, for tests."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

# name, xmin, ymin, xmax, ymax as in the file, further elements
XmlRow = tuple[str, float, float, float, float, str]

WHOLE_SIZE = "<size><width>60</width><height>40</height><depth>3</depth></size>"


def write_xml(path: Path, objects: Sequence[XmlRow], *, size: str = WHOLE_SIZE) -> None:
    """Write an annotation; `objects` may be empty."""
    rows = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>{more}</object>"
        for name, left, top, right, bottom, more in objects
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation>{size}{rows}</annotation>")


def write_image(path: Path, *, height: int = 40, width: int = 60) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    written = cv2.imencode(".jpg", pixels)[1]
    path.write_bytes(written.tobytes())


def write_voc(root: Path, year: str, sets: dict[str, str]) -> None:
    """Write VOC's layout: a list per set; each image has a cat and a difficult dog."""
    folder = root / year
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name, images in sets.items():
        (lists / f"{name}.txt").write_text("\n".join(images.split()) + "\n")
        for image in images.split():
            rows = [
                ("cat", 1, 1, 30, 20, "<difficult>0</difficult>"),
                ("dog", 11, 21, 60, 40, "<difficult>1</difficult>"),
            ]
            write_xml(folder / "Annotations" / f"{image}.xml", rows)
            write_image(folder / "JPEGImages" / f"{image}.jpg")
