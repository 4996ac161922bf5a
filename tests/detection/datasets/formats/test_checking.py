"""Objects that are refused or dropped after reading, whatever format they come from."""

import json
from pathlib import Path
from typing import Any

import pytest

from detection.datasets.formats.coco import to_coco
from engine.errors import UserError
from tests.detection.datasets.formats.conversions import read_checked, write_files

# the NaN is not in the first point, where min and max of the points would show it
XML = (
    '<annotations><image id="0" name="a.jpg" width="60" height="40">'
    '<polygon label="cat" points="1,1;20,nan;20,20"/><box label="cat" xtl="1" ytl="1" xbr="5" '
    'ybr="5"/></image></annotations>'
)
LABELME = (
    '{"version": "5.2.1", "flags": {}, "shapes": [{"label": "cat", "points": [[1, 1], [20, NaN], '
    '[20, 20]], "shape_type": "polygon"}, {"label": "cat", "points": [[1, 1], [5, 5]], '
    '"shape_type": "rectangle"}], "imagePath": "a.jpg", "imageHeight": 40, "imageWidth": 60}'
)


@pytest.mark.parametrize(("name", "text"), [("cvat", XML), ("labelme", LABELME)])
def test_polygons_with_nan_are_bad_objects(tmp_path: Path, name: str, text: str) -> None:
    write_files(tmp_path, {"in/a.json" if name == "labelme" else "in": text})
    with pytest.raises(UserError, match=r"shape 1 .*: expected finite numbers in a polygon"):
        read_checked(tmp_path / "in", name)
    checked = read_checked(tmp_path / "in", name, policy="skip")
    assert dict(checked.rows)["objects dropped, not finite: cat"] == 1
    assert [each["bbox"] for each in to_coco(checked)["annotations"]] == [[1, 1, 4, 4]]


def coco(**changes: Any) -> str:
    """Return a COCO JSON of one object, with changes of it."""
    annotation = {"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16}
    return json.dumps(
        {
            "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}],
            "annotations": [annotation | changes],
            "categories": [{"id": 1, "name": "cat"}],
        }
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"area": float("nan")}, "annotation 7: area: expected a finite number of at least 0, got"),
        ({"area": -4}, "annotation 7: area: .* got -4"),
        ({"image_id": 77}, "annotation 7: image_id: no image has the id 77"),
        ({"category_id": 78}, "annotation 7: category_id: no category has the id 78"),
    ],
)
def test_bad_objects_of_a_coco_json(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_files(tmp_path, {"in.json": coco(**changes)})
    with pytest.raises(UserError, match=message):
        read_checked(tmp_path / "in.json", "coco")
    checked = read_checked(tmp_path / "in.json", "coco", policy="skip")
    assert to_coco(checked)["annotations"] == []
    assert sum(count for what, count in checked.rows if what.startswith("objects dropped")) == 1
