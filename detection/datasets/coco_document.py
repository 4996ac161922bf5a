"""A COCO JSON with all its keys, for tools that write a changed copy of it.

N images, M annotations, K classes.
"""

import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detection.data.coco_json import int_of, parse_coco, read_categories, read_images
from engine import paths
from engine.checkpoint import prepare_output
from engine.errors import UserError
from engine.files import refuse_existing, write_file


@dataclass(frozen=True)
class CocoDocument:
    """The content of a COCO file and how its entries refer to each other.

    content: the JSON, all keys. file_names: N, in file order. class_names: K, by category id.
    category_ids: K, ascending. image_rows: (M,) int64, the position of each annotation's image.
    labels: (M,) int64, the index of its category in `category_ids`.
    """

    path: Path
    content: Mapping[str, Any]
    file_names: tuple[str, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_rows: np.ndarray
    labels: np.ndarray

    @property
    def images(self) -> list[dict[str, Any]]:
        """The entries of `images`."""
        entries: list[dict[str, Any]] = self.content["images"]
        return entries

    @property
    def annotations(self) -> list[dict[str, Any]]:
        """The entries of `annotations`."""
        entries: list[dict[str, Any]] = self.content["annotations"]
        return entries


def read_document(path: Path) -> CocoDocument:
    """Read a COCO file and check its names, its ids and that every annotation's image exists.

    Boxes and masks are not looked at: copies keep them as they are.

    Raises:
        UserError: the file cannot be read or is inconsistent.
    """
    content = parse_coco(path)
    categories = read_categories(content["categories"], path)
    names = read_images(content["images"], path, need_sizes=False).names
    for row, entry in enumerate(content["images"]):  # LVIS's images have no `file_name`
        entry["file_name"] = names[row].decode()
    row_of = {entry["id"]: row for row, entry in enumerate(content["images"])}
    label_of = {key: label for label, (key, _) in enumerate(categories)}
    image_rows, labels = [], []
    for position, entry in enumerate(content["annotations"]):
        where = f"{path}: annotations[{position}]"
        image_id = int_of(entry, "image_id", where)
        category_id = int_of(entry, "category_id", where)
        if image_id not in row_of:
            raise UserError(f"{where}: image_id: no image has the id {image_id}")
        if category_id not in label_of:
            raise UserError(f"{where}: category_id: no category has the id {category_id}")
        image_rows.append(row_of[image_id])
        labels.append(label_of[category_id])
    return CocoDocument(
        path=path,
        content=content,
        file_names=tuple(entry["file_name"] for entry in content["images"]),
        class_names=tuple(name for _, name in categories),
        category_ids=tuple(key for key, _ in categories),
        image_rows=np.array(image_rows, np.int64),
        labels=np.array(labels, np.int64),
    )


def write_document(path: Path, content: Mapping[str, Any]) -> None:
    """Write a COCO document; its folder must exist.

    Raises:
        UserError: the file cannot be written.
    """
    # ASCII, because JSON can hold half of a surrogate pair, and UTF-8 cannot
    write_file(path, json.dumps(content))


def prepare_outputs(outputs: Sequence[Path], inputs: Sequence[Path], *, force: bool) -> None:
    """Create the folders of the outputs and check that no output replaces a file.

    Args:
        outputs: files that will be written.
        inputs: files of the user; they are never replaced, not even with `force`.
        force: whether other existing files may be replaced.

    Raises:
        UserError: a file would be replaced, or a folder cannot be created.
    """
    kept = {paths.resolved(path) for path in inputs}
    for path in outputs:
        if paths.resolved(path) in kept:
            raise UserError(f"{path}: expected another file for the output, got the input itself")
        refuse_existing(path, force=force)
    for folder in dict.fromkeys(path.parent for path in outputs):
        prepare_output(folder)


def plain_path(file_name: str) -> str:
    """Return a file name in one spelling: `/`, no leading slash, no `.` and no `..`."""
    return posixpath.normpath(file_name.replace("\\", "/").lstrip("/"))
