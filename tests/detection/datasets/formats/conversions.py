"""Reading of a source in tests, and what is compared of it."""

from pathlib import Path
from typing import Any

from detection.datasets.formats.checking import CheckedDocument, check_document
from detection.datasets.formats.coco import to_coco
from detection.datasets.formats.document import ReadOptions
from detection.datasets.formats.image_names import ImageIndex
from detection.datasets.formats.tables import READERS
from engine.schema import BadInputPolicy


def read_checked(
    source: Path, name: str, *, policy: BadInputPolicy = "error", **options: Any
) -> CheckedDocument:
    """Read and check a source as the command does."""
    given = ReadOptions(**options)
    document = READERS[name](source, given)
    index = ImageIndex(given.images) if given.images and name != "voc" else None
    return check_document(document, index=index, on_bad_box=policy, on_bad_image=policy)


def rows_of(checked: CheckedDocument) -> list[tuple[str, str, list[float]]]:
    """Return (file name, class, xywh rounded to 0.01) of each object."""
    coco = to_coco(checked)
    files = {image["id"]: image["file_name"] for image in coco["images"]}
    names = {each["id"]: each["name"] for each in coco["categories"]}
    return [
        (
            files[each["image_id"]],
            names[each["category_id"]],
            [round(value, 2) for value in each["bbox"]],
        )
        for each in coco["annotations"]
    ]


def write_files(root: Path, files: dict[str, str]) -> Path:
    """Write texts by relative path, with line ends as given; return the root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return root
