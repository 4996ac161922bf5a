"""Keys as other frameworks call them, against the schemas of every task."""

import pytest

from detection.commands.schemas import ALL_SCHEMAS
from engine.config import parse_config
from engine.config_keys import KEYS_ELSEWHERE, RENAMED, key_paths
from engine.errors import UserError

NAMES = {
    "epochs=3": "loop.max_steps (steps = epochs x images / loop.batch_size)",
    "loop.epochs=3": "loop.max_steps (steps = epochs x images / loop.batch_size)",
    "max_epochs=3": "loop.max_steps (steps",
    "imgsz=640": "data.augment.short_sides",
    "data.img_size=640": "data.augment.short_sides",
    "batch=4": "loop.batch_size",
    "loop.batch=4": "loop.batch_size",
    "batch_size=4": "loop.batch_size",
    "lr=1": "optim.lr",
    "lr0=1": "optim.lr",
    "loop.lr=1": "optim.lr",
    "optim.learning_rate=1": "optim.lr",
    "SOLVER.BASE_LR=1": "optim.lr",
    "optimizer=adam": "optim.kind",
    "optim.optimizer=adam": "optim.kind",
    "workers=3": "loader.workers",
    "num_workers=3": "loader.workers",
    "device=0": "--device",
    "gpus=2": "torchrun",
    "num_classes=3": "classes are read from the data",
    "model.num_classes=3": "classes are read from the data",
    "nc=3": "classes are read from the data",
    "pretrained=true": "model.backbone.weights or model.weights",
    "weights=x": "model.backbone.weights or model.weights",
    "model.backbone.pretrained=true": "model.backbone.weights",
    "momentum=1": "optim.momentum",
    "weight_decay=1": "optim.weight_decay",
    "warmup_epochs=1": "schedule.warmup_steps",
    "amp=true": "loop.precision",
    "patience=1": "loop.patience",
    "project=x": "--output",
    "conf_thres=1": "model.roi.score_thresh",
    "model.depth=50": "model.backbone.kind",
}


@pytest.mark.parametrize("override", NAMES)
def test_a_name_from_elsewhere_leads_to_ours(override: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config({}, [override], schemas=ALL_SCHEMAS, source="test")
    assert str(caught.value).startswith(f"command line: {override.split('=')[0].split('.')[0]}")
    assert "unknown key" in str(caught.value)
    assert NAMES[override] in str(caught.value)


def test_a_classifier_has_keys_of_its_own() -> None:
    with pytest.raises(UserError, match=r"imgsz: unknown key; here: augment.crop$"):
        parse_config({"imgsz": 3}, ["task=classification"], schemas=ALL_SCHEMAS, source="test")


def test_ours_are_keys_of_a_schema_and_no_name_is_given_twice() -> None:
    known = {path for schema in ALL_SCHEMAS.values() for path in key_paths(schema)}
    names = [name for names in KEYS_ELSEWHERE.values() for name in names.split()]
    assert sorted(names) == sorted(set(names))
    for here in KEYS_ELSEWHERE:
        if not here.startswith(("no ", "the ")):
            plain = here.split(" (")[0].replace(" and ", "; ").replace(", ", "; ")
            assert set(plain.split("; ")) <= known


def test_keys_of_earlier_versions_have_current_names_in_a_schema() -> None:
    known = {path for schema in ALL_SCHEMAS.values() for path in key_paths(schema)}
    assert set(RENAMED.values()) <= known
    assert not set(RENAMED) & known
    config = parse_config(
        {}, ["evaluation.engine=hotcoco"], schemas=ALL_SCHEMAS, source="test"
    ).model_dump()
    assert config["evaluation"]["backend"] == "hotcoco"
