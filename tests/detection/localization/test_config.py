"""Validation of the localization config."""

import pytest

from detection.commands.schemas import SCHEMAS
from engine.config import parse_config
from engine.errors import UserError

MISTAKES = {
    "thresholds": ({"model": {"bg_iou_thresh": 0.9}}, "bg_iou_thresh: expected at most fg_iou"),
    "frozen": (
        {"model": {"level": "c3", "backbone": {"frozen_stages": 4}}},
        "frozen_stages: expected at most 3 with level=c3, got 4",
    ),
    "vgg": (
        {"model": {"backbone": {"kind": "vgg16"}}},
        "backbone.kind: expected a residual or plain network, whose c2 to c5 `level` chooses from",
    ),
    "crop": ({"evaluation": {"crop": 300}}, "resize: expected at least crop"),
    "area": ({"augment": {"area": [0.5, 0.2]}}, "area: expected two rising numbers above 0"),
    "kind": ({"data": {"kind": "voc"}}, "data.kind"),
    "vote": ({"evaluation": {"vote_iou_thresh": 0}}, "vote_iou_thresh"),
}


@pytest.mark.parametrize(("values", "message"), MISTAKES.values(), ids=MISTAKES)
def test_invalid_values_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config({"task": "localization", **values}, schemas=SCHEMAS, source="test")
    assert message in str(caught.value)


def test_task_defaults_to_detection() -> None:
    assert parse_config({}, schemas=SCHEMAS, source="test").model_dump()["task"] == "detection"
