"""Parts of objects: polygons and masks that a tool joins to one object by a group number."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from detection.datasets.formats.document import Box, Document, FoundImage, FoundObject
from detection.datasets.formats.shapes import box_points, enclosing_box, merge_masks


@dataclass(slots=True)
class Part:
    """One shape: a box, a polygon, or a mask. group: None, or what parts of an object share."""

    name: str
    where: str
    group: Any = None
    box: Box | None = None
    polygon: list[float] = field(default_factory=list)
    run_lengths: bytes = b""
    is_crowd: bool = False


def add_parts(
    image: FoundImage, parts: Sequence[Part], document: Document, *, join_boxes: bool = True
) -> None:
    """Add objects to an image: each part, or the parts of one class that share a group.

    Args:
        image: gets the objects; has a size if any part is a mask.
        parts: in the order of the file; may be empty.
        document: counts the joined parts.
        join_boxes: whether boxes are joined too. In CVAT a group of boxes is several objects.
    """
    groups: dict[Any, list[Part]] = {}
    for number, part in enumerate(parts):
        alone = part.group is None or (part.box is not None and not join_boxes)
        # a number of its own for each part outside groups; repr, because a group may be any value
        key = number if alone else (part.name, repr(part.group))
        groups.setdefault(key, []).append(part)
    for members in groups.values():
        found = _joined(members, image)
        if len(members) > 1:
            document.changed.add("objects joined from parts of one group", found.where)
        image.objects.append(found)


def _joined(members: Sequence[Part], image: FoundImage) -> FoundObject:
    first = members[0]
    found = FoundObject(first.name, first.where, is_crowd=any(each.is_crowd for each in members))
    if len(members) == 1 and first.box is not None:
        found.box = first.box
        return found
    masks = [each.run_lengths for each in members if each.run_lengths]
    boxes = [each.box for each in members if each.box is not None]
    polygons = [each.polygon for each in members if each.polygon]
    if len(boxes) == len(members):  # only boxes: no mask is known
        found.box = enclosing_box([value for box in boxes for value in box])
        return found
    polygons += map(box_points, boxes)
    if len(masks) == 1 and not polygons:
        found.run_lengths = masks[0]
    elif masks:
        assert image.size is not None
        found.run_lengths = merge_masks(polygons, masks, image.size)
    else:
        found.polygons = polygons
    return found
