"""ILSVRC's localization set, `CLS-LOC`: lists, pictures and XML in folders of their own.

`ImageSets/CLS-LOC/{train_loc,val}.txt` hold lines `NAME NUMBER`; NAME is `WNID/WNID_1234` in train.
`Data/CLS-LOC/SPLIT/NAME.JPEG` is the picture, `Annotations/CLS-LOC/SPLIT/NAME.xml` its boxes.
`LOC_synset_mapping.txt`, if there, says what an id means.
"""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from detection.data.boxed_pictures import (
    BoxedPictures,
    Gathering,
    Policy,
    read_lines,
    read_words,
)
from engine.errors import UserError

LISTS = {"train": "train_loc", "val": "val"}
"""Of the training pictures 544,546 have boxes; train_loc.txt lists those."""
OF_OTHER_CLASS = "boxes of another class than their picture's left out"


def read_ilsvrc(
    root: Path, split: str, *, class_names: Sequence[str] | None = None, on_bad_box: Policy
) -> BoxedPictures:
    """Read one split.

    Coordinates count from 0 and reach up to the picture's width and height: far corners lie
    outside. The class of a training picture is its folder's, of another one its first object's.

    Args:
        root: folder with Annotations/, Data/ and ImageSets/.
        split: "train" or "val".
        class_names: those of training; None takes the folders of the training list, sorted.
        on_bad_box: what to do with a box without width or height, or outside its picture.

    Raises:
        UserError: a file is missing or wrong, or something is bad and the policy is to stop.
    """
    list_file = root / f"ImageSets/CLS-LOC/{LISTS[split]}.txt"
    names = [line.split()[0] for line in read_lines(list_file)]
    if class_names is None:
        class_names = sorted({Path(name).parent.name for name in names})
    words = read_words(root / "LOC_synset_mapping.txt")
    gathering = Gathering(root, class_names, words, on_bad_box=on_bad_box, last_pixel=False)
    for name in names:
        source = root / f"Annotations/CLS-LOC/{split}/{name}.xml"
        size, objects = read_cls_loc_xml(source)
        class_name = Path(name).parent.name or objects[0][0]
        boxes = [box for kind, box in objects if kind == class_name]
        for kind, _ in objects:
            if kind != class_name:
                gathering.count(f"{source.name} ({kind})", OF_OTHER_CLASS)
        path = f"Data/CLS-LOC/{split}/{name}.JPEG"
        gathering.add(path, class_name, size=size, boxes=boxes, source=str(source))
    return gathering.finish()


def read_cls_loc_xml(path: Path) -> tuple[tuple[int, int], list[tuple[str, list[float]]]]:
    """Return (height, width) of the picture, and WordNet id and x1, y1, x2, y2 of each object.

    Raises:
        UserError: the file is missing, no XML, or without one of these; or it has no object.
    """
    try:
        top = ElementTree.fromstring(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ElementTree.ParseError as error:
        raise UserError(f"{path}: expected XML, got: {error}") from error
    try:
        height, width = (int(_text(top, f"size/{side}")) for side in ("height", "width"))
        objects = [
            (
                _text(each, "name").strip(),
                [float(_text(each, f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")],
            )
            for each in top.iter("object")
        ]
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    if not objects:
        raise UserError(f"{path}: expected at least one <object>, got none")
    return (height, width), objects


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"expected <{path}> in <{element.tag}>, got none")
    return text
