"""Repair of a COCO file: a copy that training reads, and a list of every change.

Repairs go in stages, because one fault can hide another: the boxes of an image without a size
cannot be checked. After each stage the copy is checked again.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from detection.datasets.check.box_repairs import BOX_REPAIRS, MASK_REPAIRS, SYSTEMATIC_REPAIRS
from detection.datasets.check.changes import Changes, Repair
from detection.datasets.check.columns import Columns, read_columns
from detection.datasets.check.entry_repairs import ENTRY_REPAIRS, ID_REPAIRS
from detection.datasets.check.findings import Finding
from detection.datasets.check.image_repairs import IMAGE_REPAIRS, REFERENCE_REPAIRS, SIZE_REPAIRS
from detection.datasets.check.run import Context, Report, check_columns

STAGES: tuple[Mapping[str, Repair], ...] = (
    ENTRY_REPAIRS,
    ID_REPAIRS,
    SIZE_REPAIRS,
    SYSTEMATIC_REPAIRS,
    IMAGE_REPAIRS,
    REFERENCE_REPAIRS,
    BOX_REPAIRS,
    MASK_REPAIRS,
)
MOST_ROUNDS = 2 * len(STAGES)
"""A repair of a late stage may bring back a stage; two passes mend all that can be mended."""


def repair_columns(
    columns: Columns, report: Report, context: Context, *, note: Callable[[str], None]
) -> tuple[Report, Changes]:
    """Repair the document of `columns` in memory.

    Args:
        columns: the file as it was read.
        report: its findings.
        context: what it is checked with.
        note: gets a line for each stage.

    Returns:
        The report, in which each finding says how many cases remain, and the changes.
    """
    changes = Changes(columns.document)
    now = report
    for _ in range(MOST_ROUNDS):
        before = len(changes.lines)
        found = {finding.code: finding for finding in now.findings}
        for stage in STAGES:
            for code in (each for each in stage if each in found):
                changes.code = code
                stage[code](changes, found[code], columns, context)
            if len(changes.lines) > before:
                break
        else:
            break  # what is left cannot be mended
        note(f"{len(changes.lines) - before} changes, checking again")
        columns = read_columns(columns.document)
        now = check_columns(columns, context)
    return replace(report, findings=_with_remaining(report.findings, now.findings)), changes


def _with_remaining(before: list[Finding], after: list[Finding]) -> list[Finding]:
    """Return the findings with the count that the copy has, and what only the copy has."""
    left = {finding.code: finding for finding in after}
    known = [
        replace(finding, remaining=left[finding.code].count if finding.code in left else 0)
        for finding in before
    ]
    codes = {finding.code for finding in before}
    return known + [
        replace(finding, count=0, examples=finding.examples, remaining=finding.count)
        for finding in after
        if finding.code not in codes
    ]
