"""Reader of PASCAL VOC's XML annotation files, as VOC, ILSVRC and labelling tools write them."""

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from detection.data.coco_json import MAX_PIXELS, MAX_SIDE, has_control_characters
from engine import paths
from engine.errors import UserError

SIDES = ("xmin", "ymin", "xmax", "ymax")


class BadXmlError(UserError):
    """An annotation file that is missing, is not XML, or lacks required elements."""


@dataclass(frozen=True)
class XmlObject:
    """One object.

    corners: the values of `SIDES`, unchecked: in the convention of the file, and possibly inverted
    or not finite.
    """

    name: str
    corners: tuple[float, float, float, float]
    is_difficult: bool


@dataclass(frozen=True)
class XmlAnnotation:
    """The content of one file.

    file_name: the image's, "" if the file has none. size: (height, width), None if the file has
    none or has zeros.
    """

    file_name: str
    size: tuple[int, int] | None
    objects: tuple[XmlObject, ...]


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Refuse any DOCTYPE: its entities can read other files or expand without bound."""
        raise ValueError("expected no <!DOCTYPE> in an annotation, got one")


def read_voc_xml(path: Path) -> XmlAnnotation:
    """Read the image size and the objects of one annotation file; other elements are ignored.

    Raises:
        BadXmlError: the file is missing or malformed.
    """
    root = parse_xml(path)
    if root.tag != "annotation":
        raise BadXmlError(f"{path}: expected <annotation>, got <{root.tag}>")
    found = enumerate(root.findall("object"), start=1)
    return XmlAnnotation(
        (root.findtext("filename") or "").strip(),
        _size_of(root, path),
        tuple(_object_of(node, f"{path}: object {number}") for number, node in found),
    )


def parse_xml(path: Path) -> ElementTree.Element:
    """Return the root element of an annotation file of any format.

    Raises:
        BadXmlError: the file is missing, or is not XML.
    """
    try:
        content = paths.read_bytes(path)
    except UserError as error:
        raise BadXmlError(str(error)) from error
    try:
        return ElementTree.XML(content, ElementTree.XMLParser(target=_Builder()))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BadXmlError(f"{path}: not valid XML: {error}") from error


def _size_of(root: ElementTree.Element, path: Path) -> tuple[int, int] | None:
    # a missing or empty element counts as 0
    sides = [(root.findtext(f"size/{key}") or "0").strip() for key in ("height", "width")]
    # isdecimal is False for signs, fractions and empty text
    if not all(side.isdecimal() for side in sides):
        shown = [f"{side:.60}" for side in sides]
        raise BadXmlError(f"{path}: size: expected height and width in whole pixels, got {shown}")
    # int() refuses very long strings of digits, so these become a size that is refused below
    height, width = (int(side) if len(side) < 20 else MAX_SIDE + 1 for side in sides)
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        shown = [f"{side:.60}" for side in sides]
        most = f"{MAX_SIDE} pixels and {MAX_PIXELS} in total"
        raise BadXmlError(f"{path}: size: expected height and width of at most {most}, got {shown}")
    return (height, width) if height and width else None


def _object_of(node: ElementTree.Element, where: str) -> XmlObject:
    name = (node.findtext("name") or "").strip()
    if not name:
        raise BadXmlError(f"{where}: name: expected a class, got nothing")
    if has_control_characters(name):
        raise BadXmlError(f"{where}: name: expected no control characters, got {name!r:.60}")
    # cut to 60 characters for the message; a missing value becomes text that float() refuses
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
