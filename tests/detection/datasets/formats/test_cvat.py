"""CVAT for images 1.1: shapes, masks, groups, and what is refused."""

from pathlib import Path

import pytest

from detection.datasets.formats.shapes import mask_area
from detection.ops import rle
from engine.errors import UserError
from tests.detection.datasets.formats.conversions import read_checked, rows_of, write_files

# CVAT 2.25, export "CVAT for images 1.1" of a task
HEAD = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id>4</id>
      <name>t</name>
      <size>1</size>
      <mode>annotation</mode>
      <labels>
        <label>
          <name>dog</name>
          <color>#fa3253</color>
          <type>any</type>
          <attributes>
          </attributes>
        </label>
        <label>
          <name>cat</name>
          <type>any</type>
          <attributes>
          </attributes>
        </label>
        <label>
          <name>1</name>
          <type>points</type>
          <attributes>
          </attributes>
          <parent>s1</parent>
        </label>
      </labels>
    </task>
    <dumped>2024-09-25 11:38:28.799808+00:00</dumped>
  </meta>
"""
BOX = '<box label="cat" source="manual" occluded="0" xtl="5.00" ytl="6.00" xbr="25.00" ybr="16.00"'
END = ' z_order="0">\n    </box>\n'


def write(folder: Path, shapes: str, *, image: str = 'name="a.jpg" width="60" height="40"') -> Path:
    text = f'{HEAD}  <image id="0" {image}>\n{shapes}  </image>\n</annotations>\n'
    return write_files(folder, {"annotations.xml": text})


@pytest.mark.parametrize(
    ("shape", "xywh"),
    [
        (f"{BOX}{END}", [5, 6, 20, 10]),
        (f'{BOX} rotation="90.00"{END}', [10, 1, 10, 20]),
        (
            '<polygon label="cat" source="manual" occluded="0" '
            'points="5.00,6.00;25.00,6.00;25.00,16.00" z_order="0">\n</polygon>',
            [5, 6, 20, 10],
        ),
        (
            '<ellipse label="cat" source="manual" occluded="0" cx="20" cy="20" rx="10" ry="5" '
            'z_order="0">\n</ellipse>',
            [10, 15, 20, 10],
        ),
        (
            '<mask label="cat" source="manual" occluded="0" rle="1, 2, 3" left="5" top="6" '
            'width="3" height="2" z_order="0">\n</mask>',
            [6, 6, 2, 1],
        ),
    ],
    ids=["box", "rotated", "polygon", "ellipse", "mask"],
)
def test_shapes(tmp_path: Path, shape: str, xywh: list[float]) -> None:
    checked = read_checked(write(tmp_path, shape), "cvat")
    assert rows_of(checked) == [("a.jpg", "cat", xywh)]
    assert list(checked.classes) == ["dog", "cat"]


def test_a_rotated_box_is_counted(tmp_path: Path) -> None:
    checked = read_checked(write(tmp_path, f'{BOX} rotation="45.00"{END}'), "cvat")
    # a box of 20x10 turned by 45 degrees around (15, 11): both sides are (20 + 10) / sqrt(2)
    assert rows_of(checked)[0][2] == pytest.approx([15 - 10.61, 11 - 10.61, 21.21, 21.21], abs=0.01)
    assert dict(checked.rows)["rotated boxes turned into their enclosing box"] == 1


def test_the_mask_of_cvats_documentation(tmp_path: Path) -> None:
    code = "3, 5, 7, 7, 5, 9, 3, 11, 2, 11, 2, 12, 1, 12, 1, 26, 1, 12, 1, 12, 2, 11, 3, 9, 5, 7, 7"
    code += ", 5, 3"
    shape = f'<mask label="cat" rle="{code}" left="7" top="8" width="13" height="15" z_order="0"/>'
    (found,) = read_checked(write(tmp_path, shape), "cvat").images[0].objects
    counts = list(map(int, code.split(",")))
    assert mask_area(found.run_lengths, (40, 60)) == sum(counts[1::2])
    flat = rle.decode(found.run_lengths, (40, 60))[8:23, 7:20].ravel().tolist()
    assert flat == [bool(n % 2) for n, count in enumerate(counts) for _ in range(count)]


def test_shapes_without_area_are_dropped_by_name(tmp_path: Path) -> None:
    shapes = "".join(
        f'<{kind} label="cat" points="1,1;2,2"></{kind}>'
        for kind in ("polyline", "points", "tag", "skeleton", "cuboid")
    )
    counts = dict(read_checked(write(tmp_path, shapes), "cvat").rows)
    assert counts["images without objects"] == 1
    assert [name for name in counts if name.startswith("dropped, shapes <")] == [
        f"dropped, shapes <{kind}>" for kind in ("polyline", "points", "tag", "skeleton", "cuboid")
    ]


def test_polygons_of_a_group_are_one_object_but_boxes_are_not(tmp_path: Path) -> None:
    polygon = '<polygon label="cat" points="5,6;25,6;25,16" group_id="2"></polygon>'
    box = f'{BOX} group_id="2"{END}'
    checked = read_checked(write(tmp_path, polygon * 2 + box * 2), "cvat")
    assert [len(found.polygons) for found in checked.images[0].objects] == [2, 0, 0]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (f"{BOX.replace('25.00', 'x')}{END}", "shape 1: expected numbers as xtl"),
        (f"{BOX.replace('25.00', '1')}{END}", r"shape 1 \(cat\): bbox width: expected at least"),
        (f"{BOX.replace('cat', 'cow')}{END}", "name: expected a class such as dog, cat, got cow"),
        ('<polygon label="cat" points="5,6;25,6"/>', "points: expected three or more"),
        ('<mask label="cat" rle="1, 2" left="5" top="6" width="3" height="2"/>', "rle: expected"),
        ('<star label="cat"/>', "expected a known shape, got <star>"),
    ],
)
def test_bad_shapes(tmp_path: Path, shape: str, message: str) -> None:
    folder = write(tmp_path, shape + f"{BOX}{END}")
    with pytest.raises(UserError, match=message):
        read_checked(folder, "cvat")
    assert len(rows_of(read_checked(folder, "cvat", policy="skip"))) == 1


def test_subsets_of_a_project(tmp_path: Path) -> None:
    # a project's export has subset and task_id for each image
    image = 'name="a.jpg" subset="Train" task_id="1" width="60" height="40"'
    folder = write(tmp_path, f"{BOX}{END}", image=image)
    assert len(rows_of(read_checked(folder, "cvat", split="Train"))) == 1
    with pytest.raises(UserError, match="--split: expected one of Train, all, got Test"):
        read_checked(folder, "cvat", split="Test")


def test_videos_are_refused_by_name(tmp_path: Path) -> None:
    track = '<track id="0" label="cat"><box frame="0" outside="0"/></track>'
    write_files(tmp_path, {"annotations.xml": f"{HEAD}{track}</annotations>"})
    with pytest.raises(UserError, match=r'got "CVAT for video 1\.1" with tracks'):
        read_checked(tmp_path, "cvat")


def test_entities_are_refused(tmp_path: Path) -> None:
    text = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotations>&x;</annotations>'
    write_files(tmp_path, {"annotations.xml": text})
    with pytest.raises(UserError, match="expected no <!DOCTYPE>"):
        read_checked(tmp_path, "cvat")
