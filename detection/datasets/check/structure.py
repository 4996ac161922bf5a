"""Findings about keys, ids, references and classes."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from detection.data.coco_json import has_control_characters
from detection.data.data_report import file_keys
from detection.datasets.check.columns import Columns
from detection.datasets.check.findings import FindingList

FEW_OBJECTS = 10
"""A class with fewer objects is hardly learned, and its AP is mostly chance."""


def find_faults(columns: Columns, findings: FindingList) -> None:
    """Add what the reader refuses in keys and entries."""
    document = columns.document
    faults = dict(document.faults)
    # COCO's files of images without annotations lack this key alone
    if faults.get("annotations", "").endswith("nothing") and len(faults) == 1:
        findings.add("no-annotations-key", 1)
        faults.clear()
    findings.add("missing-list", len(faults), [f"{key}: {text}" for key, text in faults.items()])
    for code, list_name in sorted(columns.faults):
        findings.add_entries(code, list_name, columns.faults[code, list_name])
    for name in ("images", "categories"):
        if name not in document.faults and not document.lists[name].rows():
            findings.add(f"no-{name}", 1)


def find_repeated_ids(columns: Columns, findings: FindingList) -> None:
    """Add ids and class names that occur more than once."""
    images, table = columns.images, columns.annotations
    findings.add_images("repeated-image-id", repeats_of(images.ids), lambda at: "")
    findings.add_annotations("repeated-annotation-id", repeats_of(table.ids), lambda at: "")
    ids = [key for _, key, _ in columns.categories]
    for code, values in (("repeated-category-id", ids), ("repeated-category-name", columns.names)):
        places = _repeats(values)
        faults = [(columns.categories[at][0], repr(values[at])) for at in places]
        findings.add_entries(code, "categories", faults)


def find_unknown(columns: Columns, findings: FindingList) -> None:
    """Add annotations whose image or category is not in the file."""
    table = columns.annotations
    findings.add_annotations(
        "unknown-image",
        np.flatnonzero(columns.image_places < 0),
        lambda at: f"no image has the id {table.image_ids[at]}",
    )
    findings.add_annotations(
        "unknown-category",
        np.flatnonzero(columns.labels < 0),
        lambda at: f"no category has the id {table.category_ids[at]}",
    )


def find_id_habits(columns: Columns, findings: FindingList) -> None:
    """Add ids that start at 0 or have gaps, which other tools may not expect."""
    ids = {
        "images": columns.images.ids,
        "annotations": columns.annotations.ids,
        "categories": np.array([key for _, key, _ in columns.categories], np.int64),
    }
    from_zero = [name for name, each in ids.items() if len(each) and each.min() == 0]
    findings.add("ids-from-zero", len(from_zero), from_zero)
    gaps = {
        name: int(each.max() - each.min()) + 1 - (len(each) - len(repeats_of(each)))
        for name, each in ids.items()
        if len(each)
    }
    values = [f"{name}: {count} ids are skipped" for name, count in gaps.items() if count]
    findings.add("id-gaps", len(values), values)


def find_classes(columns: Columns, is_plain: np.ndarray, findings: FindingList) -> None:
    """Add classes with few objects or none, and names that are hardly different.

    is_plain: (M,) bool, objects to train on.
    """
    counts = counts_by_class(columns, is_plain)
    if "no-annotations-key" in findings.found:
        return
    if not sum(counts.values()):
        findings.add("no-training-object", 1, [f"{len(is_plain)} annotations, none to train on"])
        return
    unused = [name for name, count in counts.items() if not count]
    few = {name: count for name, count in counts.items() if 0 < count < FEW_OBJECTS}
    findings.add("class-unused", len(unused), unused)
    by_count = sorted(few, key=lambda name: few[name])
    findings.add("class-few-objects", len(few), [f"{name}: {few[name]}" for name in by_count])
    groups = defaultdict(list)
    for name in counts:
        groups[_plain_name(name)].append(name)
    alike = [names for names in groups.values() if len(names) > 1]
    values = [", ".join(map(repr, names)) for names in alike]
    findings.add("class-similar-names", len(alike), values)


def counts_by_class(columns: Columns, chosen: np.ndarray) -> dict[str, int]:
    """Return the number of `chosen` (M,) bool objects of each class, by name."""
    labels = columns.labels[chosen & (columns.labels >= 0)]
    counts = np.bincount(labels, minlength=len(columns.categories)).tolist()
    found: Counter[str] = Counter()
    for name, count in zip(columns.names, counts, strict=True):
        found[name] += count
    return dict(found)


def find_shares(columns: Columns, findings: FindingList) -> None:
    """Add crowd regions, images without annotations, and odd or repeated file names."""
    table, images = columns.annotations, columns.images
    crowds = np.flatnonzero(table.is_crowd)
    findings.add_annotations("crowds", crowds, lambda at: "", detail=_share(crowds, len(table.ids)))
    places = columns.image_places[columns.image_places >= 0]
    empty = np.flatnonzero(np.bincount(places, minlength=len(images.ids)) == 0)
    share = _share(empty, len(images.ids))
    findings.add_images("images-empty", empty, lambda at: "", detail=share)
    odd = [at for at, name in enumerate(images.names) if has_control_characters(name)]
    findings.add_images("image-name-odd", np.array(odd, np.int64), lambda at: "")
    keys = file_keys(images.names)
    shared = [at for at in _repeats(keys) if images.names[at]]
    findings.add_images("shared-file", np.array(shared, np.int64), lambda at: "")


def repeats_of(values: np.ndarray) -> np.ndarray:
    """Return the places of `values` (n,) that repeat an earlier value, ascending."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    return np.sort(order[1:][ordered[1:] == ordered[:-1]])


def _repeats(values: Sequence[Hashable]) -> list[int]:
    seen: set[Hashable] = set()
    places = []
    for at, value in enumerate(values):
        if value in seen:
            places.append(at)
        seen.add(value)
    return places


def _plain_name(name: str) -> str:
    """Return a class name without what people write differently: case, spaces, `_` and `-`."""
    text = unicodedata.normalize("NFKC", name).casefold()
    return "".join(text.replace("_", " ").replace("-", " ").split())


def _share(some: np.ndarray, of: int) -> str:
    return f"{len(some) / max(of, 1):.1%} of {of}"
