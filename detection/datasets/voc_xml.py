"""One annotation file of PASCAL VOC's kind: VOC's own, ILSVRC's, those of labelling tools."""

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from detection.data.coco_json import MAX_PIXELS, MAX_SIDE, has_control_characters
from engine import paths
from engine.errors import UserError

SIDES = ("xmin", "ymin", "xmax", "ymax")


class BadXmlError(UserError):
    """An annotation file that is missing, is no XML, or lacks what it should say."""


@dataclass(frozen=True)
class XmlObject:
    """One object. corners: `SIDES` in the file's own convention, perhaps not finite or inverted."""

    name: str
    corners: tuple[float, float, float, float]
    is_difficult: bool


@dataclass(frozen=True)
class XmlAnnotation:
    """One file. size: (height, width), None where the file leaves it out or says 0."""

    size: tuple[int, int] | None
    objects: tuple[XmlObject, ...]


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Refuse it where it begins: entities in it can name other files, or grow without bound."""
        raise ValueError("expected no <!DOCTYPE> in an annotation, got one")


def read_voc_xml(path: Path) -> XmlAnnotation:
    """Read one annotation file; what it says beyond size and objects is left aside.

    Raises:
        BadXmlError: there is no such file, or it is broken.
    """
    root = _parse(path)
    if root.tag != "annotation":
        raise BadXmlError(f"{path}: expected <annotation>, got <{root.tag}>")
    found = enumerate(root.findall("object"), start=1)
    return XmlAnnotation(
        _size_of(root, path),
        tuple(_object_of(node, f"{path}: object {number}") for number, node in found),
    )


def _parse(path: Path) -> ElementTree.Element:
    try:
        content = paths.read_bytes(path)
    except UserError as error:
        raise BadXmlError(str(error)) from error
    try:
        return ElementTree.XML(content, ElementTree.XMLParser(target=_Builder()))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BadXmlError(f"{path}: not valid XML: {error}") from error


def _size_of(root: ElementTree.Element, path: Path) -> tuple[int, int] | None:
    sides = [(root.findtext(f"size/{key}") or "0").strip() for key in ("height", "width")]
    if not all(side.isdecimal() for side in sides):
        shown = [f"{side:.60}" for side in sides]
        raise BadXmlError(f"{path}: size: expected height and width in whole pixels, got {shown}")
    # of more digits than Python reads there may be too
    height, width = (int(side) if len(side) < 20 else MAX_SIDE + 1 for side in sides)
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        shown = [f"{side:.60}" for side in sides]
        most = f"{MAX_SIDE} pixels and {MAX_PIXELS} in all"
        raise BadXmlError(f"{path}: size: expected height and width of at most {most}, got {shown}")
    return (height, width) if height and width else None


def _object_of(node: ElementTree.Element, where: str) -> XmlObject:
    name = (node.findtext("name") or "").strip()
    if not name:
        raise BadXmlError(f"{where}: name: expected a class, got nothing")
    if has_control_characters(name):
        raise BadXmlError(f"{where}: name: expected no control characters, got {name!r:.60}")
    texts = [f"{node.findtext(f'bndbox/{side}') or 'nothing':.60}" for side in SIDES]
    try:
        left, top, right, bottom = map(float, texts)
    except ValueError as error:
        expected = f"expected numbers as {', '.join(SIDES)}"
        raise BadXmlError(f"{where} ({name}): bndbox: {expected}, got {texts}") from error
    difficult = (node.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise BadXmlError(f"{where} ({name}): difficult: expected 0 or 1, got {difficult!r:.60}")
    return XmlObject(name, (left, top, right, bottom), is_difficult=difficult == "1")
