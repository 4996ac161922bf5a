"""Merging of several COCO files into one: ids renumbered, classes joined by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from backbones.weights import listing
from detection.data.coco_json import shown
from detection.datasets.coco_document import CocoDocument, plain_path
from engine.errors import UserError

SameImagePolicy = Literal["error", "keep-first", "join"]

_TABLES = ("images", "annotations", "categories")
_REFERENCES = {"licenses": ("license",), "videos": ("video_id",)}
"""For other lists of a COCO file, the keys of images and annotations that refer to an entry."""

References = dict[str, dict[Any, int]]
"""By a key of `_REFERENCES`' values, the new ids by the old ones."""


@dataclass(frozen=True)
class Source:
    """What came from one file.

    images, annotations: written. new_classes: classes that no earlier file has. joined_images:
    images of earlier files that got this file's annotations. dropped_images, dropped_annotations:
    of images that an earlier file has.
    """

    images: int
    annotations: int
    new_classes: int
    joined_images: int
    dropped_images: int
    dropped_annotations: int


@dataclass(frozen=True)
class Merged:
    """The merged document, what came from each file, and lines about what differed."""

    content: Mapping[str, Any]
    sources: tuple[Source, ...]
    notes: tuple[str, ...]


@dataclass
class _Contents:
    """The entries merged so far. image_of: by file name. category_of: by name."""

    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    image_of: dict[str, dict[str, Any]] = field(default_factory=dict)
    category_of: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def merge(
    documents: Sequence[CocoDocument],
    *,
    prefixes: Sequence[str] | None = None,
    on_same_image: SameImagePolicy = "error",
) -> Merged:
    """Merge COCO documents; the given ones are not changed.

    Images and annotations are numbered from 1. A class keeps the id of the first file that has it,
    or gets a new one if that id is taken. All keys of entries are kept, and all other keys of the
    files: equal values and lists without conflict are joined; otherwise the first file's value is
    kept, and a note says so.

    Args:
        documents: at least one.
        prefixes: for each document, the folder that is put before its file names; "" for none.
        on_same_image: what to do with a file name that an earlier file has: stop; drop the later
            image and its annotations; or give its annotations to the earlier image.

    Raises:
        UserError: two files have an image of the same name, or their values cannot be joined.
    """
    contents = _Contents()
    others, references = _join_other_keys(documents, contents.notes)
    names = [
        [_with_prefix(prefix, name) for name in document.file_names]
        for document, prefix in zip(documents, prefixes or [""] * len(documents), strict=True)
    ]
    if on_same_image == "error":
        _refuse_same_images(documents, names)
    join = on_same_image == "join"
    sources = [
        _add(contents, document, names[position], references[position], join=join)
        for position, document in enumerate(documents)
    ]
    categories = sorted(contents.category_of.values(), key=lambda entry: int(entry["id"]))
    merged = {
        "images": contents.images,
        "annotations": contents.annotations,
        "categories": categories,
    }
    content = {key: merged.get(key, value) for key, value in others.items()}
    return Merged(content, tuple(sources), tuple(contents.notes))


def _with_prefix(prefix: str, name: str) -> str:
    return f"{prefix.rstrip('/')}/{name.lstrip('/')}" if prefix else name


def _refuse_same_images(documents: Sequence[CocoDocument], names: Sequence[Sequence[str]]) -> None:
    """Raise UserError if a file name is in two documents."""
    first_in: dict[str, int] = {}
    same = []
    for position, each in enumerate(names):
        for name in each:
            first = first_in.setdefault(plain_path(name), position)
            if first != position:
                same.append((name, first, position))
    if not same:
        return
    _, first, second = same[0]
    raise UserError(
        f"{documents[second].path}: {len(same)} file names are also in "
        f"{documents[first].path if len({each[1] for each in same}) == 1 else 'earlier files'}: "
        f"{listing([shown(name) for name, _, _ in same], 3)}; --prefix puts a folder before the "
        "names of each file, --on-same-image keep-first or join takes them for the same image"
    )


def _add(
    contents: _Contents,
    document: CocoDocument,
    names: Sequence[str],
    references: References,
    *,
    join: bool,
) -> Source:
    """Add the entries of a document, with new ids; `join` as the policy."""
    known_images = dict(contents.image_of)
    num_classes = len(contents.category_of)
    category_ids = _add_categories(contents, document)
    # by row of this document: the new image id; None: dropped
    image_ids: list[int | None] = []
    joined = dropped = 0
    for entry, name in zip(document.images, names, strict=True):
        earlier = known_images.get(plain_path(name))
        if earlier is None:
            changed = {**_referring(entry, references), "file_name": name}
            added = {**entry, **changed, "id": len(contents.images) + 1}
            contents.images.append(added)
            contents.image_of.setdefault(plain_path(name), added)
            image_ids.append(added["id"])
        elif join:
            _check_same_size(earlier, entry, document)
            image_ids.append(earlier["id"])
            joined += 1
        else:
            image_ids.append(None)
            dropped += 1
    before = len(contents.annotations)
    rows = document.image_rows.tolist()
    for entry, row, label in zip(document.annotations, rows, document.labels.tolist(), strict=True):
        image_id = image_ids[row]
        if image_id is not None:
            changed = {"image_id": image_id, "category_id": category_ids[label]}
            changed |= _referring(entry, references)
            number = len(contents.annotations) + 1
            contents.annotations.append({**entry, **changed, "id": number})
    added_annotations = len(contents.annotations) - before
    return Source(
        images=len(names) - joined - dropped,
        annotations=added_annotations,
        new_classes=len(contents.category_of) - num_classes,
        joined_images=joined,
        dropped_images=dropped,
        dropped_annotations=len(rows) - added_annotations,
    )


def _add_categories(contents: _Contents, document: CocoDocument) -> list[int]:
    """Add the classes that are new; return the new id of each label of the document."""
    by_id = {entry["id"]: entry for entry in document.content["categories"]}
    taken = {int(entry["id"]) for entry in contents.category_of.values()}
    for key, name in zip(document.category_ids, document.class_names, strict=True):
        entry, known = by_id[key], contents.category_of.get(name)
        if known is None:
            new_id = max(taken) + 1 if key in taken else key
            taken.add(new_id)
            contents.category_of[name] = {**entry, "id": new_id}
        elif differing := [k for k in entry if k != "id" and entry[k] != known.get(k, entry[k])]:
            contents.notes.append(
                f"{document.path}: class {shown(name)}: {listing(differing)} differs from an "
                "earlier file's; the first is kept"
            )
        if known is not None:  # keys that only this file has
            contents.category_of[name] = {**entry, **known}
    return [int(contents.category_of[name]["id"]) for name in document.class_names]


def _check_same_size(
    earlier: Mapping[str, Any], entry: Mapping[str, Any], document: CocoDocument
) -> None:
    """Raise UserError if two entries for one image give different sizes."""
    sizes = [f"{each.get('width')}x{each.get('height')}" for each in (earlier, entry)]
    if sizes[0] != sizes[1]:
        name = shown(entry["file_name"])
        raise UserError(
            f"{document.path}: image {name}: expected {sizes[0]} (width x height) as in an earlier "
            f"file, got {sizes[1]}; their annotations cannot be joined"
        )


def _join_other_keys(
    documents: Sequence[CocoDocument], notes: list[str]
) -> tuple[dict[str, Any], list[References]]:
    """Join the keys that are no table.

    Returns:
        All keys of the files in order, with the joined values; and for each document the new ids of
        entries that its images and annotations refer to.

    Raises:
        UserError: see `_join_lists`.
    """
    joined: dict[str, Any] = {}
    references: list[References] = []
    for document in documents:
        references.append({})
        for key, value in document.content.items():
            known = joined.setdefault(key, value)
            if key in _TABLES or known == value:
                continue
            where = f"{document.path}: {key}"
            if not (isinstance(known, list) and isinstance(value, list)):
                notes.append(f"{where} differs; the first file's is kept")
                continue
            joined[key], new_ids = _join_lists(known, value, where, renumber=key in _REFERENCES)
            if new_ids:
                references[-1] |= dict.fromkeys(_REFERENCES[key], new_ids)
                notes.append(f"{where}: {len(new_ids)} ids were taken and are renumbered")
    return joined, references


def _join_lists(
    known: Sequence[Any], added: Sequence[Any], where: str, *, renumber: bool
) -> tuple[list[Any], dict[Any, int]]:
    """Return `known` and the entries of `added` that it lacks, and new ids for taken ones.

    Raises:
        UserError: an id is taken, and it is not known what refers to it, or the ids are no numbers.
    """
    joined = list(known)
    by_id = {key: entry for entry in known if (key := _id_of(entry)) is not None}
    ids = [*by_id, *(key for entry in added if (key := _id_of(entry)) is not None)]
    numbers = [key for key in ids if isinstance(key, int)]
    new_ids: dict[Any, int] = {}
    for entry in added:
        key = _id_of(entry)
        if key is None or key not in by_id:
            joined += [entry] if key is not None or entry not in known else []
        elif entry != by_id[key]:
            if not renumber or len(numbers) < len(ids):
                raise UserError(
                    f"{where}: id {key!r:.60} is another entry in an earlier file, so what refers "
                    "to it would be ambiguous; give the entries different ids, or remove them"
                )
            new_ids[key] = max(numbers) + 1 + len(new_ids)  # above the ids of both lists
            joined.append({**entry, "id": new_ids[key]})
    return joined, new_ids


def _id_of(entry: Any) -> int | str | None:
    """Return the id of an entry of a list; None if it has none."""
    key = entry.get("id") if isinstance(entry, dict) else None
    return key if isinstance(key, int | str) else None


def _referring(entry: Mapping[str, Any], references: References) -> dict[str, Any]:
    """Return the values of an entry's keys that refer to renumbered entries."""
    return {
        name: new_ids[entry[name]]
        for name, new_ids in references.items()
        if _id_of({"id": entry.get(name)}) in new_ids
    }
