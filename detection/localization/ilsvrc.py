"""Reader of ILSVRC's localization data set (`CLS-LOC`).

The layout:

- `ImageSets/CLS-LOC/{train_loc,val}.txt`: lines `NAME NUMBER`; in train, NAME is `WNID/WNID_1234`.
- `Data/CLS-LOC/SPLIT/NAME.JPEG`: the image.
- `Annotations/CLS-LOC/SPLIT/NAME.xml`: its boxes.
- `LOC_synset_mapping.txt` (optional): readable class names.
"""

from collections.abc import Sequence
from pathlib import Path

from detection.data.image_files import unreadable_images
from detection.datasets.voc_xml import BadXmlError, read_voc_xml
from detection.localization.annotations import (
    AnnotationsBuilder,
    LocalizationAnnotations,
    read_descriptions,
)
from engine.errors import UserError
from engine.files import read_lines
from engine.schema import BadInputPolicy

LISTS = {"train": "train_loc", "val": "val"}
"""List file by split. train_loc.txt lists the 544,546 training images that have boxes."""
OF_OTHER_CLASS = "boxes dropped (class differs from their image's)"


def read_ilsvrc(
    root: Path,
    split: str,
    *,
    class_names: Sequence[str] | None = None,
    on_bad_box: BadInputPolicy,
    on_bad_image: BadInputPolicy = "error",
) -> LocalizationAnnotations:
    """Read one split.

    Coordinates start at 0 and reach the image's width and height, so x2 and y2 are outer edges. The
    class of a training image is its folder name; the class of a validation image is that of its
    first object.

    Args:
        root: folder with Annotations/, Data/ and ImageSets/.
        split: "train" or "val".
        class_names: the training classes; None takes the folders of the training list, sorted.
        on_bad_box: what to do with a box of zero width or height, or outside its image.
        on_bad_image: what to do if the image or its XML is missing, or the XML is broken.

    Raises:
        UserError: a file is missing or malformed, or data is bad and its policy is "error".
    """
    list_file = root / f"ImageSets/CLS-LOC/{LISTS[split]}.txt"
    names = [line.split()[0] for line in read_lines(list_file)]
    if class_names is None:
        class_names = sorted({Path(name).parent.name for name in names})
    builder = AnnotationsBuilder(
        root,
        class_names,
        read_descriptions(root / "LOC_synset_mapping.txt"),
        on_bad_box=on_bad_box,
        last_pixel=False,
    )
    images = [f"Data/CLS-LOC/{split}/{name}.JPEG" for name in names]
    faults = {
        images[index]: f"{root / images[index]}: {reason}"
        for index, reason in unreadable_images(root, images).items()
    }
    for name, path in zip(names, images, strict=True):
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
        # training names are WNID/NAME; validation names have no folder
        class_name = Path(name).parent.name or annotation.objects[0].name
        boxes = [list(each.corners) for each in annotation.objects if each.name == class_name]
        for each in annotation.objects:
            if each.name != class_name:
                builder.record_problem(f"{source.name} ({each.name})", OF_OTHER_CLASS)
        builder.add(path, class_name, size=annotation.size, boxes=boxes, source=str(source))
    builder.record_unreadable(faults, on_bad_image)
    return builder.build()
