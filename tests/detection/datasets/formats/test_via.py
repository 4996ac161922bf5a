"""VIA 2: projects, annotations and CSV; class attributes; shapes."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from tests.detection.datasets.formats.conversions import read_checked, rows_of, write_files
from tests.detection.datasets.voc_files import write_image

RECT = {"name": "rect", "x": 5, "y": 6, "width": 20, "height": 10}
ROW = ("a.jpg", "cat", [5, 6, 20, 10])
# VIA 2.0.11, "Export Annotations (as csv)"
CSV = (
    "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,"
    "region_attributes\n"
    'a.jpg,1234,"{}",1,0,"{""name"":""rect"",""x"":5,""y"":6,""width"":20,""height"":10}",'
    '"{""class"":""cat""}"\n'
    'b.jpg,1234,"{}",0,0,"{}","{}"\n'
)


def region(shape: Any = None, **attributes: Any) -> dict[str, Any]:
    return {"shape_attributes": shape or RECT, "region_attributes": attributes}


def annotations(regions: Any, name: str = "a.jpg") -> dict[str, Any]:
    """Return what VIA 2.0.11 writes by "Export Annotations (as json)"."""
    return {
        f"{name}1234": {"filename": name, "size": 1234, "regions": regions, "file_attributes": {}}
    }


def write(folder: Path, content: Any) -> Path:
    write_image(folder / "a.jpg")
    write_files(folder, {"via.json": json.dumps(content)})
    return folder / "via.json"


def project(regions: Any) -> dict[str, Any]:
    dropdown = {"type": "dropdown", "description": "", "options": {"dog": "", "cat": ""}}
    return {
        "_via_settings": {"ui": {}, "core": {}, "project": {"name": "p"}},
        "_via_img_metadata": annotations(regions),
        "_via_attributes": {"region": {"class": dropdown}, "file": {}},
    }


@pytest.mark.parametrize(
    "content",
    [
        annotations([region(**{"class": "cat"})]),
        annotations({"0": region(**{"class": "cat"})}),  # VIA 1
        project([region(**{"class": "cat"})]),
        annotations([region(**{"class": {"cat": True, "dog": False}})]),  # checkboxes
        annotations([region(**{"Class": "cat", "colour": "red"})]),
        annotations([region(animal=" cat ")]),
    ],
    ids=["annotations", "via1", "project", "checkbox", "several", "only-one"],
)
def test_forms(tmp_path: Path, content: Any) -> None:
    assert rows_of(read_checked(write(tmp_path, content), "via")) == [ROW]


def test_csv(tmp_path: Path) -> None:
    write_files(tmp_path, {"via.csv": CSV.replace("\n", "\r\n")})
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / name)
    checked = read_checked(tmp_path / "via.csv", "via")
    assert rows_of(checked) == [ROW]
    assert len(checked.images) == 2


def test_a_projects_classes_keep_their_order(tmp_path: Path) -> None:
    path = write(tmp_path, project([region(**{"class": "cat"})]))
    assert list(read_checked(path, "via").classes) == ["dog", "cat"]


@pytest.mark.parametrize(
    ("shape", "xywh"),
    [
        ({"name": "circle", "cx": 20, "cy": 20, "r": 10}, [10, 10, 20, 20]),
        ({"name": "ellipse", "cx": 20, "cy": 20, "rx": 10, "ry": 5}, [10, 15, 20, 10]),
        (
            {"name": "ellipse", "cx": 20, "cy": 20, "rx": 10, "ry": 5, "theta": 1.5707963},
            [15, 10, 10, 20],
        ),
        (
            {"name": "polygon", "all_points_x": [5, 25, 25], "all_points_y": [6, 6, 16]},
            [5, 6, 20, 10],
        ),
    ],
    ids=["circle", "ellipse", "turned", "polygon"],
)
def test_shapes(tmp_path: Path, shape: Any, xywh: list[float]) -> None:
    path = write(tmp_path, annotations([region(shape, label="cat")]))
    assert rows_of(read_checked(path, "via")) == [("a.jpg", "cat", xywh)]


def test_regions_without_area_are_dropped_by_name(tmp_path: Path) -> None:
    shapes = [{"name": "point", "cx": 1, "cy": 1}, {"name": "polyline", "all_points_x": [1, 2]}]
    path = write(tmp_path, annotations([region(each, label="cat") for each in shapes]))
    counts = dict(read_checked(path, "via").rows)
    assert counts["dropped, regions `point`"] == counts["dropped, regions `polyline`"] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (region(), "expected a class in an attribute, got nothing; --class-name gives one"),
        (region(label=""), "expected a class in an attribute label, got nothing"),
        (region(label={"cat": True, "dog": True}), "label: expected one class, got cat, dog"),
        (region({"name": "rect", "x": 1}, label="cat"), "expected numbers as x, y, width, height"),
        (region({"name": "star"}, label="cat"), "expected a known shape, got 'star'"),
    ],
)
def test_bad_regions(tmp_path: Path, given: Any, message: str) -> None:
    path = write(tmp_path, annotations([given]))
    with pytest.raises(UserError, match=f"image a.jpg: region 1: {message}"):
        read_checked(path, "via")


def test_one_class_for_all(tmp_path: Path) -> None:
    # the balloon data set of Mask R-CNN's tutorial has regions without attributes
    path = write(tmp_path, annotations([region()]))
    assert rows_of(read_checked(path, "via", class_name="cat")) == [ROW]


def test_several_attributes_need_a_choice(tmp_path: Path) -> None:
    path = write(tmp_path, annotations([region(animal="cat", colour="red")]))
    with pytest.raises(
        UserError, match="expected one attribute with the class, got animal, colour"
    ):
        read_checked(path, "via")
    assert rows_of(read_checked(path, "via", class_attribute="animal")) == [ROW]


def test_urls_and_windows_paths(tmp_path: Path) -> None:
    entries: dict[str, Any] = {}
    for name in ("https://a.b/c/a.jpg?x=1", "C:\\me\\b.jpg"):
        entries |= annotations([region(label="cat")], name)
    path = write(tmp_path, entries)
    write_image(tmp_path / "b.jpg")
    checked = read_checked(path, "via")
    assert [row[0] for row in rows_of(checked)] == ["a.jpg", "b.jpg"]
    assert dict(checked.rows)["file names taken from a path or URL"] == 2


def test_via3_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, {"project": {}, "config": {}, "file": {}, "metadata": {}, "view": {}})
    with pytest.raises(UserError, match="got a project of VIA 3"):
        read_checked(path, "via")
