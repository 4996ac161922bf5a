"""AP of prediction in tiles on images put together from others, beside the AP of these images.

Usage: python -m tools.lab.tile_accuracy RUN IMAGES ANNOTATIONS
IMAGES is a folder of images of one size, ANNOTATIONS their COCO JSON.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbones.images import read_image
from detection.data.coco import ClassMap, detections_to_coco
from detection.data.json_files import parse_json
from detection.evaluation.coco_ap import score_file
from detection.ops.boxes import clip_boxes
from detection.predict import load_detector
from detection.structures import Detections
from detection.tiled import TiledDetector
from engine.cli import run_command
from engine.errors import UserError

GRID = 4
"""Images along each side of a mosaic."""
SETTINGS = (
    ((480, 640), 0.0),
    ((480, 480), 0.2),
    ((480, 480), 0.35),
    ((480, 480), 0.5),
    ((480, 640), 0.5),
)
"""Tiles, (height, width) in pixels, and their overlap. BCCD's images are 640 x 480."""


@dataclass(frozen=True)
class Mosaics:
    """Images of one size, in groups of GRID * GRID, each of which is one large image, a mosaic.

    paths: the files of the images, as many as fill groups. image_ids: of them. document: COCO JSON
    of these images. size: (height, width) of an image.
    """

    paths: tuple[Path, ...]
    image_ids: tuple[int, ...]
    document: dict[str, Any]
    size: tuple[int, int]

    @classmethod
    def read(cls, folder: Path, annotations: Path) -> "Mosaics":
        """Read annotations, and take their images in a random order.

        Raises:
            UserError: the images are of several sizes, or fewer than a mosaic holds.
        """
        document = parse_json(annotations)
        images = document["images"]
        sizes = {(image["height"], image["width"]) for image in images}
        count = len(images) // GRID**2 * GRID**2
        if len(sizes) != 1 or not count:
            raise UserError(
                f"{annotations}: expected at least {GRID**2} images of one size, got "
                f"{len(images)} of {len(sizes)}"
            )
        order = np.random.default_rng(0).permutation(len(images))[:count].tolist()
        images = [images[place] for place in order]
        ids = tuple(image["id"] for image in images)
        kept = [each for each in document["annotations"] if each["image_id"] in ids]
        paths = tuple(folder / image["file_name"] for image in images)
        return cls(paths, ids, {**document, "images": images, "annotations": kept}, sizes.pop())

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the mosaics, (height, width, 3) RGB uint8 each."""
        for first in range(0, len(self.paths), GRID**2):
            images = [read_image(path) for path in self.paths[first : first + GRID**2]]
            rows = [np.hstack(images[place : place + GRID]) for place in range(0, GRID**2, GRID)]
            yield np.vstack(rows)

    def split(self, found: Sequence[Detections]) -> list[Detections]:
        """Return the detections of each image from those of the mosaics.

        A detection is of the image that its centre is in. It cannot overlap an object of another
        image by half. So AP is that of the mosaics, without COCO's limit of 100 detections of an
        image and class: a mosaic has more objects than that.
        """
        height, width = self.size
        parts = []
        for each in found:
            centres = (each.boxes[:, :2] + each.boxes[:, 2:]) / 2
            columns, rows = (centres / torch.tensor([width, height])).floor().unbind(1)
            for place in range(GRID**2):
                row, column = divmod(place, GRID)
                mine = (rows == row) & (columns == column)
                boxes = each.boxes[mine] - torch.tensor([column * width, row * height] * 2)
                parts.append(Detections(boxes, each.scores[mine], each.labels[mine]))
        return parts

    def ap(self, found: Sequence[Detections], classes: ClassMap) -> float:
        """Return COCO AP of the detections of each image."""
        entries = [
            entry
            for image_id, each in zip(self.image_ids, found, strict=True)
            for entry in detections_to_coco(image_id, each, classes)
        ]
        with tempfile.TemporaryDirectory() as folder:
            results, truth = Path(folder, "results.json"), Path(folder, "annotations.json")
            results.write_text(json.dumps(entries), encoding="utf-8")
            truth.write_text(json.dumps(self.document), encoding="utf-8")
            return score_file(results, truth).metrics["ap"]


def clipped(found: Detections, size: tuple[int, int]) -> Detections:
    """Return detections whose boxes end at the borders of an image, as a detector's do."""
    boxes = clip_boxes(found.boxes[None], torch.tensor([size]))[0]
    return Detections(boxes, found.scores, found.labels)


def measure(
    mosaics: Mosaics, run: Path, settings: Sequence[tuple[tuple[int, int], float]]
) -> Iterator[tuple[str, float, float]]:
    """Yield what is predicted on, and AP of the boxes as found and cut off at the images' borders.

    settings: tiles, (height, width) and overlap.
    """
    detector = load_detector(run, device="cpu")
    classes = ClassMap(detector.class_names, detector.category_ids)

    def scores(found: Sequence[Detections]) -> tuple[float, float]:
        cut = [clipped(each, mosaics.size) for each in found]
        return mosaics.ap(found, classes), mosaics.ap(cut, classes)

    yield "the images", *scores(detector.predict(mosaics.paths))
    yield "the mosaics", *scores(mosaics.split(detector.predict(mosaics)))
    for (height, width), overlap in settings:
        tiled = TiledDetector(detector, tile=(height, width), overlap=overlap)
        name = f"tiles of {width} x {height}, overlap {overlap}"
        yield name, *scores(mosaics.split(tiled.predict(mosaics)))


def main() -> None:
    """Print a table of COCO AP in percent."""
    if len(sys.argv) != 4:
        raise UserError("expected RUN IMAGES ANNOTATIONS")
    run, folder, annotations = map(Path, sys.argv[1:])
    mosaics = Mosaics.read(folder, annotations)
    write = sys.stdout.write
    write(f"{len(mosaics.paths)} images\n\n| predicted on | AP | AP of clipped boxes |\n")
    write("| --- | --- | --- |\n")
    for name, ap, ap_clipped in measure(mosaics, run, SETTINGS):
        write(f"| {name} | {100 * ap:.2f} | {100 * ap_clipped:.2f} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    run_command(main)
