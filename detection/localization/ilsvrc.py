"""ILSVRC's localization set, `CLS-LOC`: lists, pictures and XML in folders of their own.

`ImageSets/CLS-LOC/{train_loc,val}.txt` hold lines `NAME NUMBER`; NAME is `WNID/WNID_1234` in train.
`Data/CLS-LOC/SPLIT/NAME.JPEG` is the picture, `Annotations/CLS-LOC/SPLIT/NAME.xml` its boxes.
`LOC_synset_mapping.txt`, if there, says what an id means.
"""

from collections.abc import Sequence
from pathlib import Path

from detection.data.image_files import unreadable_images
from detection.datasets.voc_xml import BadXmlError, read_voc_xml
from detection.localization.annotations import (
    BoxedPictures,
    Gathering,
    read_words,
)
from engine.errors import UserError
from engine.files import read_lines
from engine.schema import BadInputPolicy

LISTS = {"train": "train_loc", "val": "val"}
"""Of the training pictures 544,546 have boxes; train_loc.txt lists those."""
OF_OTHER_CLASS = "boxes of another class than their picture's left out"


def read_ilsvrc(
    root: Path,
    split: str,
    *,
    class_names: Sequence[str] | None = None,
    on_bad_box: BadInputPolicy,
    on_bad_image: BadInputPolicy = "error",
) -> BoxedPictures:
    """Read one split.

    Coordinates count from 0 and reach up to the picture's width and height: far corners lie
    outside. The class of a training picture is its folder's, of another one its first object's.

    Args:
        root: folder with Annotations/, Data/ and ImageSets/.
        split: "train" or "val".
        class_names: those of training; None takes the folders of the training list, sorted.
        on_bad_box: what to do with a box without width or height, or outside its picture.
        on_bad_image: what to do where the picture or its XML is missing, or the XML is broken.

    Raises:
        UserError: a file is missing or wrong, or something is bad and the policy is to stop.
    """
    list_file = root / f"ImageSets/CLS-LOC/{LISTS[split]}.txt"
    names = [line.split()[0] for line in read_lines(list_file)]
    if class_names is None:
        class_names = sorted({Path(name).parent.name for name in names})
    words = read_words(root / "LOC_synset_mapping.txt")
    gathering = Gathering(root, class_names, words, on_bad_box=on_bad_box, last_pixel=False)
    pictures = [f"Data/CLS-LOC/{split}/{name}.JPEG" for name in names]
    faults = {
        pictures[place]: f"{root / pictures[place]}: {reason}"
        for place, reason in unreadable_images(root, pictures).items()
    }
    for name, path in zip(names, pictures, strict=True):
        source = root / f"Annotations/CLS-LOC/{split}/{name}.xml"
        try:
            annotation = read_voc_xml(source)
        except BadXmlError as error:
            faults[path] = str(error)
        if path in faults:
            continue
        if annotation.size is None:
            raise UserError(f"{source}: size: expected height and width, got none")
        if not annotation.objects:
            raise UserError(f"{source}: expected at least one <object>, got none")
        class_name = Path(name).parent.name or annotation.objects[0].name
        boxes = [list(each.corners) for each in annotation.objects if each.name == class_name]
        for each in annotation.objects:
            if each.name != class_name:
                gathering.count(f"{source.name} ({each.name})", OF_OTHER_CLASS)
        gathering.add(path, class_name, size=annotation.size, boxes=boxes, source=str(source))
    gathering.drop_images(faults, on_bad_image)
    return gathering.finish()
