"""The kinds of findings: how bad each is, what to do about it, and what a repair does."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""error: training stops, or would learn something wrong. warning: it trains, but something is
probably wrong. note: a fact to know."""


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    what: in the plural, for the table. advice: what the user can do. repair: what the repaired copy
    has instead; None if only the user can decide.
    """

    severity: Severity
    what: str
    advice: str
    repair: str | None = None


_DROP_IMAGE = "image and its annotations dropped"
_EXPORT = "correct the export"

KINDS = {
    # keys and entries
    "missing-list": Kind("error", "keys that are not lists", _EXPORT),
    "no-annotations-key": Kind("note", "no key `annotations`", "such a file can only be predicted"),
    **{
        f"{name}-not-object": Kind("error", f"{plural} that are not objects", _EXPORT, "dropped")
        for name, plural in (
            ("image", "images"),
            ("annotation", "annotations"),
            ("category", "categories"),
        )
    },
    "no-images": Kind("error", "no images", _EXPORT),
    "no-categories": Kind("error", "no categories", _EXPORT, "one made for each id that is used"),
    "no-training-object": Kind(
        "error", "no object to train on", "annotate objects that are not crowd, difficult or ignore"
    ),
    "image-id": Kind("error", "image ids that are not integers", _EXPORT, "converted, or new ids"),
    "image-name": Kind("error", "images without a file name", _EXPORT, _DROP_IMAGE),
    "image-size": Kind(
        "error",
        "images without a possible width and height",
        "--images reads them from the files",
        f"from the file, else {_DROP_IMAGE}",
    ),
    "category-id": Kind(
        "error", "category ids that are not integers", _EXPORT, "converted, or new ids"
    ),
    "category-name": Kind(
        "error",
        "class names that are missing or have control characters",
        "name the class",
        "named class_ID, or spaces in place of control characters",
    ),
    "annotation-id": Kind("error", "annotation ids that are not integers", _EXPORT, "new ids"),
    "annotation-image-id": Kind(
        "error", "image_ids that are not integers", _EXPORT, "converted, else dropped"
    ),
    "annotation-category-id": Kind(
        "error", "category_ids that are not integers", _EXPORT, "converted, else dropped"
    ),
    "box-malformed": Kind(
        "error",
        "boxes that are not four numbers",
        _EXPORT,
        "converted, or the box of the polygons, else dropped",
    ),
    "area-malformed": Kind("error", "areas that are not numbers", _EXPORT, "computed"),
    "flag-malformed": Kind(
        "error", "iscrowd, difficult or ignore that is not 0 or 1", _EXPORT, "converted, else 0"
    ),
    "repeated-image-id": Kind(
        "error",
        "images with the id of an earlier image",
        _EXPORT,
        "equal ones dropped, others get new ids and lose their annotations",
    ),
    "repeated-annotation-id": Kind(
        "error", "annotations with the id of an earlier one", "renumber them", "new ids"
    ),
    "repeated-category-id": Kind(
        "error",
        "categories with the id of an earlier one",
        _EXPORT,
        "equal ones dropped, others get new ids and lose their objects",
    ),
    "repeated-category-name": Kind(
        "error", "categories with the name of an earlier one", "join them", "joined"
    ),
    "unknown-image": Kind(
        "error", "annotations whose image is not in the file", _EXPORT, "dropped"
    ),
    "unknown-category": Kind(
        "error", "annotations whose category is not in the file", _EXPORT, "dropped"
    ),
    # boxes
    "boxes-normalised": Kind(
        "error", "boxes in fractions of the image", "multiply by width and height", "multiplied"
    ),
    "boxes-xyxy": Kind(
        "error", "boxes that look like x1 y1 x2 y2", "write x, y, width, height", "converted"
    ),
    "boxes-swapped": Kind(
        "error", "boxes that fit only with width and height swapped", "swap them", "sides swapped"
    ),
    "boxes-unknown": Kind(
        "error", "boxes that do not fit their images", "compare box and image sizes of some"
    ),
    "sides-swapped": Kind(
        "error",
        "images whose boxes fit only with width and height swapped",
        "swap `width` and `height`; --images makes sure",
        "sides swapped",
    ),
    "box-not-finite": Kind(
        "error", "boxes with NaN or infinity", _EXPORT, "the box of the polygons, else dropped"
    ),
    "box-without-size": Kind(
        "error",
        "boxes without width or height",
        "redraw or delete them",
        "the box of the polygons, else dropped",
    ),
    "box-outside": Kind("error", "boxes outside their image", "redraw or delete them", "dropped"),
    "box-clipped": Kind(
        "warning", "boxes partly outside their image", "training clips them", "clipped"
    ),
    "duplicate-box": Kind(
        "warning", "boxes that repeat one of the same image and class", "delete them", "dropped"
    ),
    "near-duplicate-box": Kind(
        "warning", "boxes almost equal to one of the same image and class", "look at them"
    ),
    "unusual-size": Kind("note", "boxes far off the size of their class", "look at them"),
    "unusual-aspect": Kind("note", "boxes far off the shape of their class", "look at them"),
    "area-impossible": Kind("error", "areas that are negative or not finite", _EXPORT, "computed"),
    "area-misfit": Kind("warning", "areas that do not fit their boxes", _EXPORT, "computed"),
    "area-missing": Kind("note", "annotations without area", "the box's area is used", "computed"),
    "iscrowd-missing": Kind("note", "annotations without iscrowd", "0 is used", "0"),
    # masks
    "mask-unreadable": Kind(
        "warning", "masks that cannot be read", "training of masks refuses them", "emptied"
    ),
    "mask-parts": Kind(
        "warning", "masks with parts that are not polygons", "these parts are dropped", "dropped"
    ),
    "mask-missing": Kind(
        "note", "objects without a mask, others have one", "training of masks refuses them"
    ),
    "mask-outside-box": Kind("warning", "masks that leave their box", "correct box or mask"),
    # classes
    "class-unused": Kind("warning", "classes without objects", "annotate some, or drop the class"),
    "class-few-objects": Kind("warning", "classes with under ten objects", "annotate more"),
    "class-similar-names": Kind(
        "warning", "class names that differ in case or spaces only", "join the classes"
    ),
    # images
    "image-missing": Kind("error", "images that are missing", "restore them", _DROP_IMAGE),
    "image-damaged": Kind("error", "images that cannot be decoded", "restore them", _DROP_IMAGE),
    "image-other-size": Kind(
        "error",
        "images of another size than annotated",
        "annotate the files that you train on",
        f"size from the file if the boxes fit it, else {_DROP_IMAGE}",
    ),
    "exif-ignored": Kind(
        "error",
        "images annotated with the size before EXIF rotation",
        "swap `width` and `height`, or strip EXIF if the boxes are of the unrotated image",
        f"sides swapped if the boxes then fit, else {_DROP_IMAGE}",
    ),
    "shared-file": Kind("warning", "images with the file of an earlier image", "join the entries"),
    "image-name-odd": Kind(
        "warning", "file names with control characters", "rename the files; other tools fail"
    ),
    "duplicate-image": Kind(
        "warning", "images with the content of an earlier image", "keep one of each"
    ),
    "near-duplicate-image": Kind(
        "warning", "images that are almost an earlier image, saved again", "look at them"
    ),
    "images-alike": Kind(
        "note",
        "images with so many alike that near copies may be missed",
        "look at some; images of one scene belong in one split",
    ),
    "ids-from-zero": Kind("note", "ids start at 0", "some other tools take id 0 for background"),
    "id-gaps": Kind("note", "ids with gaps", "fine here; other tools may expect 1..K"),
    "crowds": Kind("note", "crowd regions", "neither foreground nor background in training"),
    "images-empty": Kind(
        "note", "images without objects", "trained on, unless data.keep_empty=false"
    ),
    # other split
    "classes-differ": Kind(
        "error", "classes with another id or name in the other file", "use one list of classes"
    ),
    "class-missing-in-split": Kind(
        "warning", "classes with objects in one file only", "split by class"
    ),
    "leakage": Kind("error", "images that are in the other file too", "take them out of one"),
    "near-leaked-image": Kind(
        "warning",
        "images that are almost one of the other file, saved again",
        "look at them, and take them out of one",
    ),
    "images-alike-in-split": Kind(
        "note",
        "images with so many alike in the other file that near copies may be missed",
        "look at some; images of one scene belong in one split",
    ),
    # network
    "object-small": Kind(
        "note", "objects too small for the network", "raise data.eval_short_side, or cut tiles"
    ),
    "anchors-miss": Kind(
        "note", "objects whose best anchor has IoU < 0.5", "set model.rpn.anchor_sizes"
    ),
    "anchors-miss-many": Kind(
        "warning", "objects whose best anchor has IoU < 0.5", "set model.rpn.anchor_sizes"
    ),
}
"""By code, which is stable: scripts may rely on it."""
