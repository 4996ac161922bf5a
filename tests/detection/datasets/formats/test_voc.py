"""VOC's XML in the folders that tools write; the reader of the XML has its own tests."""

from pathlib import Path

import pytest

from engine.errors import UserError
from tests.detection.datasets.formats.conversions import read_checked, rows_of, write_files
from tests.detection.datasets.voc_files import XmlRow, write_image, write_voc, write_xml

CAT: list[XmlRow] = [("cat", 5.5, 6, 25, 16, "")]
ROW = ("cat", [5.5, 6, 19.5, 10])
# labelImg 1.8.6: a path of Windows, Windows line ends
LABELIMG = """<annotation>
	<folder>fotos</folder>
	<filename>a b.JPG</filename>
	<path>C:\\me\\fotos\\a b.JPG</path>
	<source>
		<database>Unknown</database>
	</source>
	<size>
		<width>60</width>
		<height>40</height>
		<depth>3</depth>
	</size>
	<segmented>0</segmented>
	<object>
		<name>cat</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<difficult>0</difficult>
		<bndbox>
			<xmin>5</xmin>
			<ymin>6</ymin>
			<xmax>25</xmax>
			<ymax>16</ymax>
		</bndbox>
	</object>
</annotation>
"""


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_labelimg(tmp_path: Path, start: str) -> None:
    write_files(tmp_path, {"a b.xml": start + LABELIMG.replace("\n", "\r\n")})
    write_image(tmp_path / "a b.JPG")
    checked = read_checked(tmp_path, "voc", boxes="corners")
    assert rows_of(checked) == [("a b.JPG", "cat", [5, 6, 20, 10])]


def test_images_in_another_folder(tmp_path: Path) -> None:
    write_xml(tmp_path / "xml/sub/a.xml", CAT)
    write_image(tmp_path / "images/sub/a.jpg")
    checked = read_checked(tmp_path / "xml", "voc", images=tmp_path / "images")
    assert rows_of(checked) == [("sub/a.jpg", *ROW)]
    assert checked.root == tmp_path / "images"


def test_an_image_in_another_folder_of_the_images_is_found_and_said(tmp_path: Path) -> None:
    write_xml(tmp_path / "xml/a.xml", CAT)
    write_image(tmp_path / "images/deep/er/a.png")
    checked = read_checked(tmp_path / "xml", "voc", images=tmp_path / "images")
    assert rows_of(checked) == [("deep/er/a.png", *ROW)]
    assert "images found in another folder: a: deep/er/a.png" in checked.examples


def test_without_any_image_the_xml_files_give_name_and_size(tmp_path: Path) -> None:
    write_files(tmp_path, {"sub/other name.xml": LABELIMG})
    checked = read_checked(tmp_path, "voc", boxes="corners")
    assert rows_of(checked) == [("sub/a b.JPG", "cat", [5, 6, 20, 10])]
    assert checked.images[0].size == (40, 60)
    assert "it has no images; file names and sizes are those of the XML files" in checked.notes[0]
    for element in ("<filename>a b.JPG</filename>", "<width>60</width>"):
        write_files(tmp_path, {"sub/other name.xml": LABELIMG.replace(element, "")})
        with pytest.raises(UserError, match=r"(filename|size): got nothing; --images DIR"):
            read_checked(tmp_path, "voc")


def test_one_image_among_others_is_still_missing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_xml(tmp_path / f"{name}.xml", CAT)
    write_image(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"b\.\*: expected an image with the XML file's name"):
        read_checked(tmp_path, "voc")


def test_one_xml_file(tmp_path: Path) -> None:
    write_files(tmp_path, {"a b.xml": LABELIMG, "c.xml": LABELIMG})
    write_image(tmp_path / "a b.jpg")
    write_image(tmp_path / "c.jpg")
    checked = read_checked(tmp_path / "a b.xml", "voc", boxes="corners")
    assert rows_of(checked) == [("a b.jpg", "cat", [5, 6, 20, 10])]


def test_layout_of_voc(tmp_path: Path) -> None:
    write_voc(tmp_path, "VOC2007", {"trainval": "000001 000002", "test": "000003"})
    assert len(read_checked(tmp_path / "VOC2007", "voc").images) == 3
    checked = read_checked(tmp_path / "VOC2007", "voc", split="test")
    assert [image.file_name for image in checked.images] == ["JPEGImages/000003.jpg"]
    checked = read_checked(tmp_path, "voc", split="VOC2007/test")
    assert [image.file_name for image in checked.images] == ["VOC2007/JPEGImages/000003.jpg"]


def test_folders_of_roboflow(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write_xml(tmp_path / split / "a_jpg.rf.0a.xml", CAT)
        write_image(tmp_path / split / "a_jpg.rf.0a.jpg")
    with pytest.raises(UserError, match="--split: expected one of train, valid, all"):
        read_checked(tmp_path, "voc")
    rows = rows_of(read_checked(tmp_path, "voc", split="valid"))
    assert rows == [("valid/a_jpg.rf.0a.jpg", *ROW)]


def test_classes_beside_the_files_give_the_order(tmp_path: Path) -> None:
    write_xml(tmp_path / "a.xml", CAT)
    write_image(tmp_path / "a.jpg")
    write_files(tmp_path, {"classes.txt": "zebra\r\ncat\r\n"})
    checked = read_checked(tmp_path, "voc")
    assert list(checked.classes) == ["zebra", "cat"]
    assert f"classes and their order are read from {tmp_path / 'classes.txt'}" in checked.notes
