"""A detector's report: numbers, galleries and page, from a results file and its annotations."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from backbones.images import decode, read_file
from detection.data.image_files import image_path
from detection.report.cards import Examples
from detection.report.detection_numbers import detection_numbers
from detection.report.detection_sections import (
    calibration_section,
    class_section,
    confusion_section,
    gallery_sections,
    part_section,
    score_section,
    summary_section,
)
from detection.report.gallery import Images, draw_galleries
from detection.report.inputs import ScoredResults
from detection.report.markup import plain
from detection.report.page import Section
from engine.errors import UserError

MOST_BRIGHTNESSES = 2000
"""Most images whose brightness is measured, evenly spaced over all."""
_REDUCTION = 8  # JPEGs are decoded at an eighth of their size for it

Progress = Callable[[Iterable[int], int, str], Iterator[int]]
"""Passes items through and shows how far it is; gets their number and what is done."""


@dataclass(frozen=True)
class Report:
    """Numbers for report.json, and the sections of the page that show them."""

    numbers: dict[str, Any]
    sections: list[Section]


def detection_report(scored: ScoredResults, *, image_folder: str, progress: Progress) -> Report:
    """Analyse a results file.

    Args:
        scored: from `read_scored`.
        image_folder: folder of the images; "" if there are none.
        progress: shows how far the reading of images is.
    """
    images = Images(image_folder, scored.file_names.__getitem__, scored.sizes)
    brightness = measure_brightness(images, progress) if image_folder else None
    numbers: dict[str, Any] = {"kind": "detection", "notes": list(scored.notes)}
    for name, table in scored.tables.items():
        numbers[name] = detection_numbers(table, sizes=scored.sizes, brightness=brightness)
    first = next(iter(scored.tables))
    examples = Examples(
        scored.first,
        sizes=scored.sizes,
        file_names=scored.file_names,
        score_thresh=numbers[first]["score_thresh"],
    )
    numbers["examples"] = examples.numbers()
    galleries = draw_galleries(
        examples.galleries(),
        images,
        class_names=scored.first.names,
        progress=lambda items, total: progress(items, total, "drawing examples"),
    )
    numbers["images"] = {
        "folder": image_folder or None,
        "not_shown": [{"file_name": scored.file_names[k], "reason": why}
                      for k, why in images.problems.items()],
        "not_shown_for_size": images.left_out,
        "brightness_measured": 0 if brightness is None else int((~np.isnan(brightness)).sum()),
    }
    numbers = plain(numbers)
    scores = numbers[first]
    sections = [
        summary_section(numbers),
        class_section(scores),
        confusion_section(scores),
        score_section(scores),
        calibration_section(scores),
        part_section(scores),
        *gallery_sections(galleries, numbers["examples"], images_note(images)),
    ]
    return Report(numbers, sections)


def images_note(images: Images) -> str:
    """Say what of the images cannot be shown, and why."""
    if not images.folder:
        return "No images were given, so the boxes are drawn alone; data.val.images=DIR shows them."
    parts = []
    if images.problems:
        parts.append(
            f"{len(images.problems)} images cannot be shown, such as: "
            f"{next(iter(images.problems.values()))}."
        )
    if images.left_out:
        parts.append(f"{images.left_out} examples are without an image, to keep the page small.")
    return " ".join(parts)


def measure_brightness(images: Images, progress: Progress) -> np.ndarray:
    """Return the mean pixel value of images: (I,) from 0 to 255, NaN where it was not measured.

    At most `MOST_BRIGHTNESSES` images are read. What cannot be read is recorded in
    `images.problems`.
    """
    count = len(images.sizes)
    result = np.full(count, np.nan)
    some = np.unique(np.linspace(0, count - 1, min(count, MOST_BRIGHTNESSES)).astype(int)).tolist()
    for image in progress(some, len(some), "measuring brightness"):
        try:
            path = image_path(images.folder, images.names(image))
            result[image] = decode(read_file(path), path, reduction=_REDUCTION).mean()
        except UserError as error:
            images.problems[image] = str(error)
    return result
