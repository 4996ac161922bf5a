"""Objects marked difficult or ignored, and areas of zero: what the COCO reader makes of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detection.data.coco import read_coco
from engine.errors import UserError

Document = dict[str, Any]
CocoWriter = Callable[[Document], Path]


@pytest.mark.parametrize("marks", [{}, {"ignore": 1}], ids=["one mark", "two marks"])
def test_an_object_is_counted_once_where_nothing_is_left_to_train_on(
    document: Document, write_coco: CocoWriter, marks: dict[str, int]
) -> None:
    """One crowd that is difficult too, one difficult object, maybe ignored too, one ignored."""
    crowd, difficult, ignored = (document["annotations"][row] for row in (1, 0, 2))
    crowd["difficult"] = difficult["difficult"] = ignored["ignore"] = 1
    difficult.update(marks)
    with pytest.raises(UserError) as error:
        read_coco(write_coco(document))
    assert str(error.value).endswith(
        "got 3: 1 crowd regions, 1 difficult objects, 1 objects marked `ignore`"
    )


def test_an_area_of_zero_is_kept(document: Document, write_coco: CocoWriter) -> None:
    document["annotations"][0]["area"] = 0
    annotations = read_coco(write_coco(document))
    assert 0.0 in annotations.areas.tolist()
    assert annotations.report.dropped == {}
