"""Reader of VOC's XML files: valid files, and an error message for each malformed one."""

import math
import os
from pathlib import Path

import pytest

from detection.datasets.voc_xml import BadXmlError, XmlAnnotation, XmlObject, read_voc_xml

BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3.5</xmax><ymax>4</ymax></bndbox>"


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "a.xml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_complete_file(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>9</xmin></bndbox></part>"
    content = f"""<?xml version="1.0"?>
    <annotation><folder>VOC2007</folder><filename> a b.jpg </filename>
      <size><width> 60 </width><height>40</height><depth>3</depth></size>
      <object><name> person </name><truncated>1</truncated><difficult>1</difficult>{BOX}{part}
      </object>
      <object><name>cat</name><difficult>0</difficult>{BOX}</object>
    </annotation>"""
    box = (1.0, 2.0, 3.5, 4.0)
    expected = (XmlObject("person", box, True), XmlObject("cat", box, False))
    assert read_voc_xml(written(tmp_path, content)) == XmlAnnotation("a b.jpg", (40, 60), expected)


def test_optional_elements(tmp_path: Path) -> None:
    assert read_voc_xml(written(tmp_path, "<annotation/>")) == XmlAnnotation("", None, ())
    size = "<size><width>0</width><height>0</height></size>"
    nan = BOX.replace("3.5", "nan")
    content = f"<annotation>{size}<object><name>cat</name>{nan}</object></annotation>"
    annotation = read_voc_xml(written(tmp_path, content))
    assert annotation.size is None
    assert math.isnan(annotation.objects[0].corners[2])  # the converter checks it
    assert not annotation.objects[0].is_difficult


def test_other_encodings(tmp_path: Path) -> None:
    content = f"<annotation><object><name>Kühe</name>{BOX}</object></annotation>"
    latin = f'<?xml version="1.0" encoding="latin-1"?>{content}'.encode("latin-1")
    for data in (latin, content.encode("utf-16"), content.encode("utf-8-sig")):
        assert read_voc_xml(written(tmp_path, data)).objects[0].name == "Kühe"


def objects(inside: str) -> str:
    return (
        f"<annotation><object><name>cat</name>{BOX}</object><object>{inside}</object></annotation>"
    )


LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><annotation>&b;</annotation>'
FILE_ENTITY = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/hostname">]><annotation>&a;</annotation>'
FAULTS = {
    "many digits": (
        f"<annotation><size><width>{'9' * 5000}</width><height>4</height></size></annotation>",
        "size: expected height and width of at most 1048576 pixels",
    ),
    "large": (
        "<annotation><size><width>40000</width><height>40000</height></size></annotation>",
        "size: expected height and width of at most 1048576 pixels and 1073741824 in total, got",
    ),
    "line break": (
        objects(f"<name>traffic\n light</name>{BOX}"),
        "object 2: name: expected no control characters, got 'traffic\\n light'",
    ),
    "control character": (
        objects(f"<name>a&#x9b;1m</name>{BOX}"),
        "object 2: name: expected no control characters, got 'a\\x9b1m'",
    ),
    "long number": (
        objects(f"<name>dog</name>{BOX.replace('3.5', 'x' * 5000)}"),
        "(dog): bndbox: expected numbers as",
    ),
    "deep": ("<annotation>" + "<a>" * 100_000, "not valid XML"),
    "empty": ("", "not valid XML: no element found"),
    "truncated": ("<annotation><size>", "not valid XML: no element found"),
    "no XML": (b"\xff\xd8\xff\xe0", "not valid XML: "),
    "another encoding": ('<?xml version="1.0" encoding="klingon"?><annotation/>', "not valid XML"),
    "another root": ("<html></html>", "expected <annotation>, got <html>"),
    "entities": (LAUGHS, "not valid XML: expected no <!DOCTYPE> in an annotation"),
    "a file in an entity": (FILE_ENTITY, "not valid XML: expected no <!DOCTYPE> in an annotation"),
    "entities in UTF-16": (LAUGHS.encode("utf-16"), "expected no <!DOCTYPE>"),
    "unknown entity": ("<annotation>&b;</annotation>", "not valid XML: undefined entity"),
    "size": (
        "<annotation><size><width>60.5</width><height>40</height></size></annotation>",
        "size: expected height and width in whole pixels, got ['40', '60.5']",
    ),
    "no name": (objects(BOX), "object 2: name: expected a class, got nothing"),
    "no box": (
        objects("<name>dog</name>"),
        "object 2 (dog): bndbox: expected numbers as xmin, ymin, xmax, ymax, got ['nothing', ",
    ),
    "word in place of a number": (
        objects(f"<name>dog</name>{BOX.replace('3.5', 'left')}"),
        "got ['1', '2', 'left', '4']",
    ),
    "difficult": (
        objects(f"<name>dog</name><difficult>perhaps</difficult>{BOX}"),
        "object 2 (dog): difficult: expected 0 or 1, got 'perhaps'",
    ),
}


@pytest.mark.parametrize(("content", "expected"), FAULTS.values(), ids=FAULTS)
def test_faults_are_one_line(tmp_path: Path, content: str | bytes, expected: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(BadXmlError) as error:
        read_voc_xml(path)
    assert str(error.value).startswith(f"{path}: ")
    assert expected in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < len(str(path)) + 400


def test_folder_and_pipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadXmlError, match="expected a file, got a folder"):
        read_voc_xml(tmp_path)
    os.mkfifo(tmp_path / "pipe.xml")
    with pytest.raises(BadXmlError, match="expected a file, got a FIFO"):
        read_voc_xml(tmp_path / "pipe.xml")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadXmlError, match=r"a\.xml: no such file"):
        read_voc_xml(tmp_path / "a.xml")
