"""YOLO's label files: `class cx cy w h`, or `class x y x y ...`, in fractions of the image.

Three layouts are read: Ultralytics' data.yaml (Roboflow writes it too), Darknet's obj.data with
lists of images (CVAT's "YOLO 1.1"), and a folder with classes.txt (labelImg, Label Studio).
"""

import math
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones.images import files_below, images_in
from detection.data.coco_json import shown
from detection.datasets.formats.document import (
    Document,
    FoundImage,
    FoundObject,
    ReadOptions,
    choose_splits,
)
from detection.datasets.formats.folders import CLASSES_FILE, read_class_list
from detection.datasets.formats.image_names import ImageIndex, posix_name
from detection.datasets.voc import number_classes
from engine import paths
from engine.errors import UserError
from engine.files import read_lines
from engine.yaml_text import parse_yaml

NOT_LABELS = ("classes.txt", "labels.txt", "notes.txt", "train.txt", "valid.txt", "val.txt")
BAD_LINE = "bad line of a label file"


@dataclass(frozen=True)
class _Layout:
    """Where images and labels are. splits: by name, folders or lists of images below `root`.

    has_keypoints: lines have keypoints after the box.
    """

    root: Path
    names: list[str]
    splits: dict[str, list[str]]
    has_keypoints: bool = False


def read(source: Path, options: ReadOptions) -> Document:
    """Read label files; images are needed for their sizes.

    Raises:
        UserError: the layout or the class names cannot be read.
    """
    document = Document(root=source if paths.is_folder(source) else source.parent)
    layout = _find_layout(source, options, document)
    document.root = layout.root
    document.classes = number_classes(layout.names)
    chosen = choose_splits(options.split, list(layout.splits), source)
    entries = [entry for split in chosen for entry in layout.splits[split]]
    labels = _LabelFiles(layout.root)
    pairs = [
        pair
        for entry in entries
        for pair in _pairs(entry, layout, labels, has_images=options.images is None)
    ]
    for image, label in options.log.progress(pairs, len(pairs), "reading labels"):
        if label is None:
            document.changed.add("images without a label file, kept without objects")
        else:
            path = layout.root / label
            try:
                lines = paths.read_text(path).splitlines()
            except UserError as error:
                document.bad_images.append(shown(str(error)))
                continue
            _add_objects(image, path, lines, layout, document)
        document.images.append(image)
    for name in labels.unused():
        document.dropped.add("label files without an image", name)
    return document


class _LabelFiles:
    """The label files of folders, each listed once, and which of them an image has used."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: dict[str, set[str]] = {}
        self._used: set[str] = set()

    def use(self, image: str) -> str | None:
        """Return the label file of an image: in `labels` in place of `images`, or beside it."""
        stem = image.rpartition(".")[0]
        before, found, after = f"/{stem}".rpartition("/images/")
        candidates = [f"{before}/labels/{after}".lstrip("/")] if found else []
        for candidate in [*candidates, stem]:
            folder, _, last = candidate.rpartition("/")
            if folder not in self._files:
                names = paths.files_in(self._root / folder)
                self._files[folder] = {name for name in names if name.lower().endswith(".txt")}
            for name in (f"{last}.txt", f"{last}.TXT"):
                if name in self._files[folder]:
                    path = f"{folder}/{name}".lstrip("/")
                    self._used.add(path)
                    return path
        return None

    def unused(self) -> list[str]:
        """Return the label files that no image has used, sorted, of the folders looked into."""
        found = {
            f"{folder}/{name}".lstrip("/")
            for folder, names in self._files.items()
            for name in names
            if name not in NOT_LABELS
        }
        return sorted(found - self._used)


def _pairs(
    entry: str, layout: _Layout, labels: _LabelFiles, *, has_images: bool
) -> Iterator[tuple[FoundImage, str | None]]:
    """Yield each image of a folder or list, and its label file if there is one."""
    if entry.lower().endswith(".txt"):
        # CVAT writes `data/` before the folder that it packs, other tools `./`
        index = ImageIndex(layout.root) if has_images else None
        for line in read_lines(layout.root / entry):
            name = posix_name(line)
            found = index.find(name) if index else None
            label = labels.use(found or name) or labels.use(name.partition("/")[2])
            if not has_images:  # below a folder of images that is not in the layout
                name = f"/{name}".rpartition("/images/")[2].lstrip("/")
            yield FoundImage(found or name, in_fractions=True), label
        return
    if has_images:
        if not paths.is_folder(layout.root / entry):
            expected = "expected a folder of images, whose sizes the labels need"
            raise UserError(f"{layout.root / entry}: {expected}, got none; --images DIR names it")
        for name in images_in(layout.root / entry)[0]:
            path = posixpath.normpath(f"{entry}/{name}")
            yield FoundImage(path, in_fractions=True), labels.use(path)
        return
    before, found_folder, after = f"/{entry}/".rpartition("/images/")
    folder = f"{before}/labels/{after}".strip("/") if found_folder else entry
    if not paths.is_folder(layout.root / folder):
        folder = entry
    for name in files_below(layout.root / folder, ".txt"):
        if name not in NOT_LABELS:
            path = posixpath.normpath(f"{folder}/{name}")
            yield FoundImage(name[: -len(".txt")], in_fractions=True, stem_only=True), path


def _add_objects(
    image: FoundImage, path: Path, lines: list[str], layout: _Layout, document: Document
) -> None:
    file = str(path)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file}: line {number}"
        try:
            image.objects.append(_object_of(line.split(), layout, where, document))
        except ValueError as error:
            document.bad_objects.append((BAD_LINE, f"{where}: {error}"))


def _object_of(parts: list[str], layout: _Layout, where: str, document: Document) -> FoundObject:
    """Return the object of a line; a ValueError says what is wrong with it."""
    try:
        number, values = float(parts[0]), list(map(float, parts[1:]))  # some tools write 0.0
    except ValueError as error:
        raise ValueError(f"expected numbers, got {' '.join(parts)!r:.60}") from error
    last = len(layout.names) - 1
    if not (0 <= number <= last and number == int(number)):
        raise ValueError(f"expected a class from 0 to {last}, got {parts[0]:.20}")
    found = FoundObject(layout.names[int(number)], where)
    if layout.has_keypoints and len(values) > 4:
        document.dropped.add("keypoints of objects, whose boxes are kept", where)
        values = values[:4]
    if len(values) == 5:
        document.dropped.add("confidences of predicted objects, whose boxes are kept", where)
        values = values[:4]
    if len(values) == 4:
        x, y, width, height = values
        found.box = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    elif len(values) >= 6 and len(values) % 2 == 0:
        if not all(map(math.isfinite, values)):
            raise ValueError("expected finite numbers in a polygon")
        found.polygons = [values]
    else:
        raise ValueError(
            "expected a class and 4 numbers (a box; a fifth is its confidence), or 6 or more (the "
            "points of a polygon), "
            f"got {len(values)}"
        )
    if max(map(abs, values)) > 2:
        raise ValueError(f"expected fractions of the image, 0 to 1, got {max(values):g}")
    return found


def _find_layout(source: Path, options: ReadOptions, document: Document) -> _Layout:
    if not paths.exists(source):
        raise UserError(f"{source}: no such file or folder")
    folder = source if paths.is_folder(source) else source.parent
    given = [source.name] if folder != source else []
    yaml_files = given or [*paths.names_in(folder, "*.yaml"), *paths.names_in(folder, "*.yml")]
    data_files = given or paths.names_in(folder, "*.data")
    for name in yaml_files:
        if name.lower().endswith((".yaml", ".yml")):
            found = _ultralytics(folder / name, options, document)
            if found is not None:
                return found
    for name in data_files:
        if name.lower().endswith(".data"):
            return _darknet(folder / name, options)
    images = "images" if paths.is_folder(folder / "images") else "."
    if images == "." and paths.is_folder(folder / "labels"):
        images = "images"  # the images are elsewhere
    classes = folder / CLASSES_FILE
    if options.classes is None and not paths.is_file(classes):
        expected = "expected class names in data.yaml, obj.data or classes.txt, got none of them"
        raise UserError(f"{source}: {expected}; --names FILE gives them")
    names = list(options.classes) if options.classes else read_class_list(classes)
    return _Layout(folder, names, {"all": [images]})


def _ultralytics(path: Path, options: ReadOptions, document: Document) -> _Layout | None:
    """Read a data.yaml; None if it is another YAML file."""
    content = parse_yaml(paths.read_text(path), source=str(path), scalars="text")
    if not isinstance(content, dict) or "names" not in content:
        return None
    names = list(options.classes) if options.classes else _names_of(content["names"], path)
    root = path.parent
    given = content.get("path")
    if isinstance(given, str) and given not in ("", "."):
        # relative to the folder of the file, or to Ultralytics' folder of data sets
        if paths.is_folder(root / given):
            root = root / given
        else:
            document.notes.append(f"{path}: path: there is no {shown(given)}; {root} is read")
    splits = {}
    for split in ("train", "val", "test"):
        value = content.get(split)
        entries = [value] if isinstance(value, str) else value
        if entries is None or entries in ([""], [None]):
            continue
        if not (isinstance(entries, list) and all(isinstance(each, str) for each in entries)):
            raise UserError(
                f"{path}: {split}: expected a folder, a list file or several, got {value!r:.60}"
            )
        splits[split] = [_entry_of(each, root, path, document) for each in entries]
    if not splits:
        raise UserError(f"{path}: expected train, val or test, got none of them")
    return _Layout(root, names, splits, has_keypoints="kpt_shape" in content)


def _entry_of(entry: str, root: Path, path: Path, document: Document) -> str:
    """Return a folder or list of images, relative to the root."""
    name = entry.replace("\\", "/")
    if paths.exists(root / name):
        full, base = paths.resolved(root / name), paths.resolved(root)
        if not full.is_relative_to(base):
            raise UserError(f"{path}: expected images below {root}, got {shown(entry)}")
        return full.relative_to(base).as_posix()
    # Roboflow writes ../train/images for train/images
    inside = posixpath.normpath(name)
    while inside.startswith("../"):
        inside = inside[3:]
    if inside != posixpath.normpath(name):
        document.notes.append(f"{path}: there is no {shown(entry)}; {inside} is read")
    return inside


def _names_of(value: Any, path: Path) -> list[str]:
    """Return class names by index, from a list, or from a mapping of index to name."""
    names = value
    if isinstance(value, dict):
        try:
            by_index = {int(key): name for key, name in value.items()}
        except ValueError as error:
            raise UserError(f"{path}: names: expected indices 0, 1, ..., got others") from error
        if sorted(by_index) != list(range(len(by_index))):
            indices = sorted(by_index)[:10]
            raise UserError(f"{path}: names: expected indices 0, 1, ..., got {indices}")
        names = [by_index[index] for index in range(len(by_index))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path}: names: expected a list of classes, got {value!r:.60}")
    names = [str(name) for name in names]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        got = shown(repeated[0])
        raise UserError(f"{path}: names: expected each class once, got {got} more than once")
    return names


def _darknet(path: Path, options: ReadOptions) -> _Layout:
    """Read an obj.data: lines `key = value`."""
    pairs = [line.partition("=") for line in read_lines(path)]
    values = {key.strip(): value.strip() for key, _, value in pairs}
    # CVAT packs `data/obj.names` as obj.names
    listed = {
        split: posix_name(values[split])
        for split in ("train", "valid", "test")
        if values.get(split)
    }
    splits = {}
    for split, name in listed.items():
        inside = [
            each for each in (name, name.rpartition("/")[2]) if paths.is_file(path.parent / each)
        ]
        if not inside:
            raise UserError(
                f"{path}: {split}: expected a list of images, got no file {shown(name)}"
            )
        splits[split] = inside[:1]
    if options.classes:
        return _Layout(path.parent, list(options.classes), splits)
    names = posix_name(values.get("names", "obj.names"))
    candidates = [path.parent / names, path.parent / Path(names).name]
    found = next((each for each in candidates if paths.is_file(each)), candidates[0])
    return _Layout(path.parent, read_class_list(found), splits)
