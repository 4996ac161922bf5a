"""A detector's report: numbers, galleries and page, from a results file and its annotations."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backbones.images import decode, read_file
from detection.data.image_files import image_path
from detection.evaluation.errors import errors_as_dict, tide_errors
from detection.evaluation.oracle_ladder import ladder_as_dict, oracle_ladder
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
from detection.report.gallery import Images, draw_galleries, read_annotated
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
    proposals: Mapping[str, Any] | None = None,
    against: ScoredResults | None = None,
    names: tuple[str, str] = ("this run", "the other run"),
) -> Report:
    """Analyse a results file.

    Args:
        scored: from `read_scored`.
        image_folder: folder of the images; "" if there are none.
        progress: shows how far the reading of images is.
        proposals: from `proposal_recall`, None if they are not known.
        against: results of the same images to compare with.
        names: what the two are called.

    Raises:
        UserError: the two have other images, classes or annotations, or one has no boxes.
    """
    images = Images(None, scored.sizes)
    brightness = None
    if image_folder:
        images.load = lambda image: read_annotated(
            image_folder, scored.file_names[image], scored.sizes[image].tolist()
        )
        brightness = measure_brightness(
            image_folder, scored.file_names, problems=images.problems, progress=progress
        )
    numbers: dict[str, Any] = {"kind": "detection", "notes": list(scored.notes)}
    mistakes = {name: tide_errors(table) for name, table in scored.tables.items()}
    for name, table in scored.tables.items():
        numbers[name] = detection_numbers(table, sizes=scored.sizes, brightness=brightness)
        numbers[name]["intervals"] = as_dict(intervals(bootstrap(table)))
        numbers[name]["errors"] = errors_as_dict(mistakes[name])
        numbers[name]["oracle_ladder"] = ladder_as_dict(oracle_ladder(table))
    first = next(iter(scored.tables))
    if proposals is not None:
        numbers["proposals"] = proposals
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
        "not_shown": [
            {"file_name": scored.file_names[k], "reason": why} for k, why in images.problems.items()
        ],
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
        error_section(scores, numbers.get("proposals")),
        confusion_section(scores),
        score_section(scores),
        calibration_section(scores),
        part_section(scores),
        *gallery_sections(galleries, numbers["examples"], images.note()),
    ]
    return Report(numbers, sections)


def measure_brightness(
    folder: str, names: Sequence[str], *, problems: dict[int, str], progress: Progress
) -> np.ndarray:
    """Return the mean pixel value of images: (I,) from 0 to 255, NaN where it was not measured.

    At most `MOST_BRIGHTNESSES` images are read.

    Args:
        folder: of the images.
        names: file names of the I images.
        problems: gets the message of each image that cannot be read, by its index.
        progress: shows how far it is.
    """
    result = np.full(len(names), np.nan)
    some = np.linspace(0, len(names) - 1, min(len(names), MOST_BRIGHTNESSES)).astype(int)
    for image in progress(some.tolist(), len(some), "measuring brightness"):
        try:
            path = image_path(folder, names[image])
            result[image] = decode(read_file(path), path, reduction=_REDUCTION).mean()
        except UserError as error:
            problems[image] = str(error)
    return result
