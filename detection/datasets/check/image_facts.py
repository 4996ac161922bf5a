"""Findings about image files: missing, damaged, of another size, or there twice."""

from collections.abc import Sequence

import numpy as np

from detection.data.box_checks import format_size
from detection.data.data_report import file_keys
from detection.data.image_content import Facts
from detection.datasets.check.columns import Columns
from detection.datasets.check.findings import FindingList
from detection.datasets.check.near_copies import near_copies, thumbnails_of


def find_images(columns: Columns, facts: Facts, findings: FindingList) -> None:
    """Add images that are missing, damaged, of another size, or there twice."""
    images = columns.images
    known = [facts.get(name) for name in images.names]
    missing: list[int] = []
    damaged: list[int] = []
    rotated: list[int] = []
    resized: list[int] = []
    for at, fact in enumerate(known):
        if fact is None:
            continue
        size = tuple(images.sizes[at].tolist())
        if fact.size is None:
            (missing if fact.is_missing else damaged).append(at)
        elif size not in ((0, 0), fact.size):
            is_rotated = fact.stored == size and fact.size == size[::-1]
            (rotated if is_rotated else resized).append(at)

    def sizes_of(at: int) -> str:
        fact = known[at]
        assert fact is not None
        assert fact.size is not None
        size = tuple(images.sizes[at].tolist())
        swapped = ": width and height are swapped" if fact.size == size[::-1] else ""
        return f"the file has {format_size(fact.size)}, annotated {format_size(size)}{swapped}"

    no_image = "none is there: is --images the folder that file names are relative to?"
    for code, places, detail in (
        ("image-missing", missing, no_image if len(missing) == len(known) else ""),
        ("image-damaged", damaged, ""),
    ):
        findings.add_images(
            code, _array(places), lambda at: getattr(known[at], "error", ""), detail=detail
        )
    for code, places in (("exif-ignored", rotated), ("image-other-size", resized)):
        findings.add_images(code, _array(places), sizes_of)
    # one file that several images name is a finding of its own
    first: dict[bytes, int] = {}
    twins, keys = {}, file_keys(images.names)
    for at, fact in enumerate(known):
        if fact is not None and fact.size is not None:
            earlier = first.setdefault(fact.digest, at)
            if keys[earlier] != keys[at]:
                twins[at] = earlier
    findings.add_images(
        "duplicate-image", _array([*twins]), lambda at: f"like {images.names[twins[at]]}"
    )
    _find_near_copies(columns, facts, [*first.values()], findings)


def _find_near_copies(
    columns: Columns, facts: Facts, places: Sequence[int], findings: FindingList
) -> None:
    """Add near copies among images `places`, each of other content."""
    names = columns.images.names
    thumbnails = thumbnails_of([facts[names[at]] for at in places])
    found, skipped = near_copies(thumbnails, thumbnails, limits=np.arange(len(places)))
    twins = {at: places[twin] for at, twin in zip(places, found.tolist(), strict=True) if twin >= 0}
    findings.add_images(
        "near-duplicate-image",
        _array([*twins]),
        lambda at: f"almost like {names[twins[at]]}",
    )
    findings.add("images-alike", skipped)


def _array(places: Sequence[int]) -> np.ndarray:
    return np.array(places, np.int64)
