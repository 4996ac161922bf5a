"""Findings from a comparison with the other split of a data set."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from detection.data.data_report import file_keys
from detection.data.image_content import Facts
from detection.datasets.check.columns import Columns
from detection.datasets.check.findings import FindingList
from detection.datasets.check.near_copies import near_copies, thumbnails_of
from detection.datasets.check.structure import counts_by_class


@dataclass(frozen=True)
class OtherSplit:
    """What is compared of the other file. facts: None if its images were not read."""

    columns: Columns
    facts: Facts | None


def find_split_faults(
    columns: Columns,
    facts: Facts | None,
    other: OtherSplit,
    *,
    is_plain: np.ndarray,
    findings: FindingList,
) -> None:
    """Add images that both files have, and classes that differ.

    Images are compared by content if both folders were read, else by file name.

    Args:
        columns: the file.
        facts: of its images.
        other: the other file.
        is_plain: (M,) bool, objects to train on.
        findings: gets them.
    """
    pairs = [{(key, name) for _, key, name in each.categories} for each in (columns, other.columns)]
    values = [f"only here: {name} (id {key})" for key, name in sorted(pairs[0] - pairs[1])]
    values += [f"only there: {name} (id {key})" for key, name in sorted(pairs[1] - pairs[0])]
    findings.add("classes-differ", len(values), values)
    table = other.columns.annotations
    there = counts_by_class(
        other.columns, ~(table.is_crowd | table.is_difficult | table.is_ignored)
    )
    here = counts_by_class(columns, is_plain)
    missing = [
        f"{name}: {mine} here, {theirs} there"
        for name in here
        if name in there
        for mine, theirs in [(here[name], there[name])]
        if bool(mine) != bool(theirs)
    ]
    findings.add("class-missing-in-split", len(missing), missing)
    by_content = facts is not None and other.facts is not None
    twins = _same_content(columns, facts, other) if by_content else _same_name(columns, other)
    detail = "by content" if by_content else "by file name, content was not read"
    findings.add_images(
        "leakage",
        np.array([*twins], np.int64),
        lambda at: f"is {twins[at]} there",
        detail=detail,
    )
    if facts is not None and other.facts is not None:
        _find_near_leaks(columns, facts, other.facts, twins, findings)


def _find_near_leaks(
    columns: Columns, facts: Facts, theirs: Facts, leaked: Mapping[int, str], findings: FindingList
) -> None:
    """Add images of which the other split has a copy in another encoding or size."""
    own = {
        facts[name].digest: facts[name]
        for at, name in enumerate(columns.images.names)
        if at not in leaked and name in facts and facts[name].size
    }
    others = {fact.digest: name for name, fact in theirs.items() if fact.size}
    names = [*others.values()]
    found, skipped = near_copies(
        thumbnails_of([*own.values()]),
        thumbnails_of([theirs[name] for name in names]),
        limits=np.full(len(own), len(names)),
    )
    twins = {key: names[twin] for key, twin in zip(own, found.tolist(), strict=True) if twin >= 0}
    places = {
        at: twins[facts[name].digest]
        for at, name in enumerate(columns.images.names)
        if name in facts and facts[name].digest in twins
    }
    findings.add_images(
        "near-leaked-image",
        np.array([*places], np.int64),
        lambda at: f"almost like {places[at]} there",
    )
    findings.add("images-alike-in-split", skipped)


def _same_name(columns: Columns, other: OtherSplit) -> dict[int, str]:
    """Return the other file's name for each image of the same file name, by place."""
    names = other.columns.images.names
    theirs = {key: name for key, name in zip(file_keys(names), names, strict=True) if name}
    keys = file_keys(columns.images.names)
    return {at: theirs[key] for at, key in enumerate(keys) if key in theirs}


def _same_content(columns: Columns, facts: Facts | None, other: OtherSplit) -> dict[int, str]:
    """Return the other file's name for each image of the same pixels, by place."""
    theirs = {fact.digest: name for name, fact in (other.facts or {}).items() if fact.size}
    found = {}
    for at, name in enumerate(columns.images.names):
        fact = (facts or {}).get(name)
        if fact is not None and fact.size and fact.digest in theirs:
            found[at] = theirs[fact.digest]
    return found
