"""The check of one COCO file: all its findings in one run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from detection.data.image_content import Facts, read_facts
from detection.datasets.check.boxes import find_boxes, find_unusual
from detection.datasets.check.columns import Columns, read_columns
from detection.datasets.check.document import read_document
from detection.datasets.check.findings import Finding, FindingList
from detection.datasets.check.image_facts import find_images
from detection.datasets.check.kinds import SEVERITIES
from detection.datasets.check.masks import find_masks
from detection.datasets.check.network import NetworkView, find_unseen
from detection.datasets.check.splits import OtherSplit, find_split_faults
from detection.datasets.check.structure import (
    find_classes,
    find_faults,
    find_id_habits,
    find_repeated_ids,
    find_shares,
    find_unknown,
)
from engine import paths
from engine.errors import UserError
from engine.log import RunLog


@dataclass(frozen=True)
class Context:
    """What a file is checked with. facts: of its images, None if they were not read."""

    network: NetworkView
    facts: Facts | None = None
    other: OtherSplit | None = None


@dataclass(frozen=True)
class Report:
    """The findings of a file, worst first, and the counts of what could be read of it."""

    path: Path
    images: int
    annotations: int
    classes: int
    findings: list[Finding]

    def counts(self) -> dict[str, int]:
        """Return the number of findings by severity, zeros included."""
        found = [finding.kind.severity for finding in self.findings]
        return {severity: found.count(severity) for severity in SEVERITIES}

    def summary(self) -> str:
        """Return one line: what was read, and how many kinds of findings there are."""
        counts = self.counts()
        kinds = ", ".join(
            f"{counts[severity]} {severity}{'s' * (counts[severity] != 1)}"
            for severity in SEVERITIES
        )
        return (
            f"{self.images} images, {self.annotations} annotations, {self.classes} classes: "
            f"{kinds if self.findings else 'No findings'}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the report for a file."""
        return {
            "file": str(self.path),
            "images": self.images,
            "annotations": self.annotations,
            "classes": self.classes,
            "findings": [finding.as_json() for finding in self.findings],
        }


@dataclass(frozen=True)
class Inputs:
    """What the user has.

    path: the COCO JSON. images: folder of its images. against, against_images: the other split's.
    workers: processes that decode images; 0: none but this one.
    """

    path: Path
    images: Path | None = None
    against: Path | None = None
    against_images: Path | None = None
    workers: int = 0


def read_inputs(inputs: Inputs, *, network: NetworkView, log: RunLog) -> tuple[Columns, Context]:
    """Read the file, its images and the other split, as far as they are given.

    The other split's images are decoded only if there is something to compare them with.

    Raises:
        UserError: a file cannot be read or is not a JSON object, or a folder is missing.
    """
    if inputs.against_images and not inputs.against:
        raise UserError("--against-images: expected --against too, got none")
    for folder in (inputs.images, inputs.against_images):
        if folder is not None:
            paths.require_folder(folder, "the folder of images")
    columns = open_columns(inputs.path)
    facts = other = other_facts = None
    workers = inputs.workers
    if inputs.images is not None:
        facts = read_facts(inputs.images, columns.images.names, workers=workers, log=log)
    if inputs.against is not None:
        others = open_columns(inputs.against)
        if inputs.images is not None and inputs.against_images is not None:
            names = others.images.names
            other_facts = read_facts(inputs.against_images, names, workers=workers, log=log)
        other = OtherSplit(others, other_facts)
    return columns, Context(network, facts, other)


def open_columns(path: Path) -> Columns:
    """Read a COCO file; raise UserError if it is not JSON or not an object."""
    try:
        return read_columns(read_document(path))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return read_columns(read_document(path, encoded=False))


def check_columns(columns: Columns, context: Context) -> Report:
    """Find everything that is wrong with a file."""
    findings = FindingList(columns)
    table, facts = columns.annotations, context.facts
    find_faults(columns, findings)
    find_repeated_ids(columns, findings)
    find_unknown(columns, findings)
    if facts is not None:
        find_images(columns, facts, findings)
    boxes = find_boxes(columns, _true_sizes(facts), findings)
    is_plain = boxes.is_good & ~(table.is_crowd | table.is_difficult | table.is_ignored)
    find_unusual(columns, boxes, findings)
    find_masks(columns, boxes, findings)
    find_classes(columns, is_plain, findings)
    find_shares(columns, findings)
    find_id_habits(columns, findings)
    if context.other is not None:
        find_split_faults(columns, facts, context.other, is_plain=is_plain, findings=findings)
    find_unseen(columns, boxes, context.network, findings)
    return Report(
        path=columns.document.path,
        images=len(columns.images.ids),
        annotations=len(table.ids),
        classes=len(columns.categories),
        findings=findings.in_order(),
    )


def _true_sizes(facts: Facts | None) -> Mapping[str, tuple[int, int]]:
    return {name: fact.size for name, fact in (facts or {}).items() if fact.size is not None}
