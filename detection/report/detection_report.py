"""A detector's report: numbers, galleries and page, from a results file and its annotations."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from backbones.images import decode, read_file
from detection.data.image_files import image_path
from detection.evaluation.errors import errors_as_dict, tide_errors
from detection.evaluation.uncertainty import as_dict, bootstrap, intervals, paired_difference
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
from detection.report.error_sections import comparison_section, error_section
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


def detection_report(
    scored: ScoredResults,
    *,
    image_folder: str,
    progress: Progress,
    against: ScoredResults | None = None,
    names: tuple[str, str] = ("this run", "the other run"),
) -> Report:
    """Analyse a results file.

    Args:
        scored: from `read_scored`.
        image_folder: folder of the images; "" if there are none.
        progress: shows how far the reading of images is.
        against: results of the same images to compare with.
        names: what the two are called.

    Raises:
        UserError: the two have other images, classes or annotations, or one has no boxes.
    """
    images = Images(image_folder, scored.file_names.__getitem__, scored.sizes)
    brightness = measure_brightness(images, progress) if image_folder else None
    numbers: dict[str, Any] = {"kind": "detection", "notes": list(scored.notes)}
    mistakes = {name: tide_errors(table) for name, table in scored.tables.items()}
    for name, table in scored.tables.items():
        numbers[name] = detection_numbers(table, sizes=scored.sizes, brightness=brightness)
        numbers[name]["intervals"] = as_dict(intervals(bootstrap(table)))
        numbers[name]["errors"] = errors_as_dict(mistakes[name])
    first = next(iter(scored.tables))
    if against is not None:
        # second minus first
        difference = as_dict(paired_difference(against.first, scored.first))
        numbers["comparison"] = {"against": names[1], "difference": difference}
    examples = Examples(
        scored.first,
        sizes=scored.sizes,
        file_names=scored.file_names,
        kinds=mistakes[first].kind,
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
        *(
            [comparison_section(numbers["comparison"]["difference"], names)]
            if against is not None
            else []
        ),
        class_section(scores),
        error_section(scores),
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
