"""Drawing of annotated images, and of contact sheets: crops of objects with captions.

Images are (H, W, 3) uint8 RGB arrays. One image and one page of crops are in memory at a time.
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch

from backbones.images import read_image, resize_pixels
from backbones.text_rendering import paste_text, render_text
from detection.data.box_checks import format_size
from detection.data.coco import Annotations
from detection.data.image_files import image_path
from detection.data.masks import draw_masks
from detection.datasets.object_choice import ChosenObject, annotation_id
from detection.visualize import captioned, class_color, draw_ground_truth, mosaic
from engine.errors import UserError

COLUMNS, CELLS_A_PAGE = 6, 48

# pixels
_SIDE = 220  # of a crop in a sheet
_TEXT, _LINE = 12, 17  # height of a caption's letters and lines
_LINES, _CHARACTERS = 4, 36  # of a caption
_MIN_CONTEXT = 24  # around a small object
_CONTEXT = 0.5  # around an object, of its longer side


@dataclass
class ImageReader:
    """Reads the images of a data set; those that cannot be read are skipped and named.

    skipped: by row, why.
    """

    annotations: Annotations
    folder: Path
    skipped: dict[int, str] = field(default_factory=dict)

    def path_of(self, row: int) -> Path:
        """Return the path of the image of a row."""
        return image_path(self.folder, self.annotations.file_name(row))

    def read(self, row: int) -> np.ndarray | None:
        """Return the image, or None if it is missing, broken or of another size than annotated."""
        if row in self.skipped:
            return None
        try:
            pixels = read_image(self.path_of(row))
        except UserError as error:
            self.skipped[row] = str(error)
            return None
        expected = tuple(self.annotations.sizes[row].tolist())
        if pixels.shape[:2] != expected:
            sizes = format_size(expected), format_size(pixels.shape)
            self.skipped[row] = (
                f"{self.path_of(row)}: expected {sizes[0]} as annotated, got {sizes[1]}"
            )
            return None
        return pixels


def draw_annotated(reader: ImageReader, row: int) -> np.ndarray | None:
    """Return an image with its boxes, masks and class names; None if it cannot be read."""
    pixels = reader.read(row)
    if pixels is None:
        return None
    annotations = reader.annotations
    objects = annotations.objects_of(row)
    # large objects first, so that small ones are on top
    order = objects.start + np.argsort(-annotations.areas[objects], kind="stable")
    masks = None
    rows_in_file = annotations.rows_in_file[order]
    if annotations.segmentations.are_there[rows_in_file].any():
        masks = _masks(annotations, row, rows_in_file.tolist())
    return draw_ground_truth(
        pixels,
        torch.from_numpy(annotations.boxes[order]),
        torch.from_numpy(annotations.labels[order]),
        class_names=annotations.classes.names,
        masks=masks,
    )


def _masks(annotations: Annotations, row: int, rows_in_file: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield one mask at a time: those of a crowded image together may not fit into memory."""
    height, width = annotations.sizes[row].tolist()
    size = height, width
    for index in rows_in_file:
        yield draw_masks(annotations.segmentations, [index], size, size)[0]


def contact_sheets(
    reader: ImageReader, chosen: Sequence[ChosenObject], *, title: str
) -> Iterator[np.ndarray]:
    """Yield pages of crops of the chosen objects, in their order.

    Args:
        reader: reads the images; objects of images that cannot be read are dropped.
        chosen: the objects.
        title: written above each page.
    """
    cells: list[np.ndarray] = []
    number = 0
    for each in chosen:
        cell = _cell(reader, each)
        if cell is not None:
            cells.append(cell)
        if len(cells) == CELLS_A_PAGE:
            number += 1
            yield _page(cells, f"{title}, page {number}")
            cells = []
    if cells:
        yield _page(cells, f"{title}, page {number + 1}" if number else title)


def _page(cells: Sequence[np.ndarray], title: str) -> np.ndarray:
    # at least as wide as three cells, for the title
    return captioned(mosaic(cells, columns=max(3, min(COLUMNS, len(cells)))), title)


def _cell(reader: ImageReader, chosen: ChosenObject) -> np.ndarray | None:
    """Return the crop of an object above its caption; None if its image cannot be read."""
    annotations = reader.annotations
    row = int(annotations.row_of(np.array([chosen.row]))[0])
    pixels = reader.read(row)
    if pixels is None:
        return None
    key = annotation_id(annotations, chosen.row)
    color = class_color(int(annotations.labels[chosen.row]))
    crop = crop_with_box(pixels, annotations.boxes[chosen.row], color)
    # the end of a long file name tells more than its start
    name = annotations.file_name(row)
    name = name if len(name) <= _CHARACTERS else f"..{name[2 - _CHARACTERS :]}"
    caption = [name, f"annotation {key}", *textwrap.wrap(chosen.reason, _CHARACTERS)]
    cell = np.full((_SIDE + _LINES * _LINE + 4, _SIDE, 3), 255, np.uint8)
    cell[:_SIDE] = crop
    for number, line in enumerate(caption[:_LINES]):
        paste_text(cell, render_text(line, _TEXT), (3, _SIDE + 2 + number * _LINE), (0, 0, 0))
    return cell


def crop_with_box(pixels: np.ndarray, box: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Return a square of `_SIDE` pixels with an object, its surroundings and its box.

    Args:
        pixels: the image.
        box: (4,) xyxy in it.
        color: of the box.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    longer = max(width, height)
    half = longer / 2 + max(_CONTEXT * longer, _MIN_CONTEXT)
    middle = (box[:2] + box[2:]) / 2
    left, top = np.floor(middle - half).astype(int).clip(0).tolist()
    right, bottom = np.ceil(middle + half).astype(int).clip(1, pixels.shape[1::-1]).tolist()
    part = pixels[top:bottom, left:right]
    scale = _SIDE / max(part.shape[:2])
    size = [max(1, round(side * scale)) for side in part.shape[:2]]
    part = np.ascontiguousarray(resize_pixels(part, (size[0], size[1])))
    corners = ((box - [left, top, left, top]) * scale).round().astype(int).tolist()
    cv2.rectangle(part, corners[:2], corners[2:], (0, 0, 0), 4)  # an edge, for bright images
    cv2.rectangle(part, corners[:2], corners[2:], color, 2)
    square = np.full((_SIDE, _SIDE, 3), 40, np.uint8)
    down, along = ((_SIDE - side) // 2 for side in part.shape[:2])
    square[down : down + part.shape[0], along : along + part.shape[1]] = part
    return square
