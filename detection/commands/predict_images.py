"""Image files of a prediction: a drawing of each image, and a crop of each detection."""

import re
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from detection.data.coco import ClassMap
from detection.predict import ImageResult
from detection.structures import Detections
from detection.visualize import draw_detections, encode_drawing, encode_image, numbered_name
from engine.errors import UserError
from engine.paths import make_folder
from engine.text import one_line

CROPS = "crops"
"""Folder of the crops, with a folder for each class."""

_NAME_CHARACTERS = 80  # longest start of a class name in a folder's name


class ImageFiles:
    """Writes the drawings and crops of images.

    Args:
        output: an existing folder.
        classes: of the detector.
        draw_thresh: smallest score of a detection that is drawn; None: nothing is drawn.
        crops: whether each detection is saved as an image of its own.
    """

    def __init__(
        self, output: Path, classes: ClassMap, *, draw_thresh: float | None, crops: bool
    ) -> None:
        self._output, self._names = output, classes.names
        self._draw_thresh = draw_thresh
        self._crop_folders = _class_folders(output / CROPS, classes) if crops else None
        self._made: set[Path] = set()

    @property
    def need_pixels(self) -> bool:
        """Whether images are written at all."""
        return self._draw_thresh is not None or self._crop_folders is not None

    def write(self, source: str, number: int, result: ImageResult) -> str | None:
        """Write the files of an image; return the first error message, None on success.

        number: of the image, see `numbered_name`.
        """
        if not self.need_pixels:
            return None
        assert result.pixels is not None
        assert result.found is not None
        name = numbered_name(source, number)
        problem = None
        for work in (self._draw, self._save_crops):
            try:
                work(name, result.pixels, result.found)
            except UserError as error:
                problem = problem or str(error)
            except (cv2.error, MemoryError) as error:
                problem = problem or f"{source}: cannot be drawn: {one_line(error)}"
        return problem

    def _draw(self, name: str, pixels: np.ndarray, found: Detections) -> None:
        thresh = self._draw_thresh
        if thresh is not None:
            drawing = draw_detections(pixels, found, class_names=self._names, score_thresh=thresh)
            path = self._output / name
            _write(path, encode_drawing(path, drawing))

    def _save_crops(self, name: str, pixels: np.ndarray, found: Detections) -> None:
        """Write FOLDER/NAME_1.jpg for the first detection, and so on."""
        if self._crop_folders is None:
            return
        stem = name.removesuffix(".jpg")
        rows = zip(found.boxes.numpy(), found.labels.tolist(), strict=True)
        for place, (box, label) in enumerate(rows, start=1):
            folder = self._crop_folders[label]
            if folder not in self._made:
                make_folder(folder)
                self._made.add(folder)
            path = folder / f"{stem}_{place}.jpg"
            _write(path, encode_image(path, _crop(pixels, box)))


def _write(path: Path, data: bytes) -> None:
    """Write a file, without waiting for the disk: what a kill leaves half is repeated."""
    try:
        path.write_bytes(data)
    except OSError as error:
        with suppress(OSError):  # a part of it, on a full disk
            path.unlink()
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def _crop(pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the pixels (h, w, 3) that a box (4,) touches; at least one."""
    limits = np.array(pixels.shape[1::-1])
    x1, y1 = np.clip(np.floor(box[:2]), 0, limits - 1).astype(int)
    x2, y2 = np.clip(np.ceil(box[2:]), (x1 + 1, y1 + 1), limits).astype(int)
    return pixels[y1:y2, x1:x2]


def _class_folders(parent: Path, classes: ClassMap) -> list[Path]:
    """Return a folder for each class: its name in letters that any file system takes."""
    names = [re.sub(r"[^\w-]+", "_", name)[:_NAME_CHARACTERS] for name in classes.names]
    same = [name.casefold() for name in names]
    return [
        # an id in front keeps apart what is one name for the file system
        parent / (name if name and same.count(name.casefold()) == 1 else f"{category_id}_{name}")
        for name, category_id in zip(names, classes.category_ids, strict=True)
    ]
