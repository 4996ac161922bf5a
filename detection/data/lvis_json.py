"""Reader of what LVIS adds to COCO's JSON: what is known to be absent or incomplete in an image.

LVIS has over 1,000 classes, and no image is annotated for all of them (Gupta et al. 2019,
section 3). Training needs nothing of this; LVIS's metric does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from detection.data.coco_json import class_name_of, int_of, parse_coco
from detection.data.json_files import without_garbage_collection
from engine import paths
from engine.errors import UserError

Frequency = Literal["r", "c", "f"]
FREQUENCIES: tuple[Frequency, ...] = ("r", "c", "f")
"""Rare, common and frequent: at most 10, at most 100, and more training images have the class."""

_NEEDED = "evaluation.protocols: lvis"


@dataclass(frozen=True)
class FederatedLabels:
    """For which classes each image is annotated, and how frequent each class is in training.

    negative: by image id, the category ids that are known to have no object in it. not_exhaustive:
    by image id, the category ids of which it may have objects that are not annotated. frequencies:
    by category id.
    """

    negative: dict[int, list[int]]
    not_exhaustive: dict[int, list[int]]
    frequencies: dict[int, Frequency]


class _Document(msgspec.Struct):
    """The keys that are decoded; the annotations are skipped as text."""

    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]


@without_garbage_collection()
def read_federated_labels(path: Path | str) -> FederatedLabels:
    """Read the additional keys of LVIS's images and categories, which all must have.

    Raises:
        UserError: the file cannot be read; a key is missing or malformed, or names an unknown
            category.
    """
    path = Path(path)
    images, categories = _entries_of(path)
    frequencies: dict[int, Frequency] = {}
    for position, entry in enumerate(categories):
        where = f"{path}: categories[{position}]"
        where = f"{path}: category {class_name_of(entry, where)!r}"
        value = entry.get("frequency")
        if value not in FREQUENCIES:
            expected = f"r, c or f as in LVIS ({_NEEDED})"
            raise UserError(
                f"{where}: frequency: expected {expected}, got {_shown(entry, 'frequency')}"
            )
        frequencies[int_of(entry, "id", where)] = value
    negative, not_exhaustive = {}, {}
    for position, entry in enumerate(images):
        image_id = int_of(entry, "id", f"{path}: images[{position}]")
        where = f"{path}: image {image_id}"
        negative[image_id] = _ids_of(entry, "neg_category_ids", frequencies, where)
        not_exhaustive[image_id] = _ids_of(entry, "not_exhaustive_category_ids", frequencies, where)
    return FederatedLabels(negative, not_exhaustive, frequencies)


def _entries_of(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the entries of `images` and `categories`."""
    try:
        document = msgspec.json.decode(paths.read_bytes(path), type=_Document)
        return document.images, document.categories
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # the slow reader decides what is accepted, and says what is wrong
        content = parse_coco(path)
        return content["images"], content["categories"]


def _ids_of(entry: dict[str, Any], key: str, known: Mapping[int, object], where: str) -> list[int]:
    """Return the category ids under `key`; the message of a UserError begins with `where`."""
    ids: Any = entry.get(key)
    if isinstance(ids, list) and all(type(each) is int and each in known for each in ids):
        return ids
    expected = f"a list of ids of categories, as in LVIS ({_NEEDED})"
    raise UserError(f"{where}: {key}: expected {expected}, got {_shown(entry, key)}")


def _shown(entry: dict[str, Any], key: str) -> str:
    return f"{entry[key]!r:.60}" if key in entry else "nothing"
