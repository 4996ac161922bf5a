"""What a file of weights says about itself is checked as a config is, and writes nowhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from backbones.resnet import resnet18
from backbones.weights import load_backbone_weights
from detection.commands.tasks import load_task
from detection.config import DetectionConfig
from detection.inference.trained import load_trained
from detection.tasks.detection import DetectionTask
from detection.weights import load_detector_weights
from engine.checkpoint import save_checkpoint, write_safetensors
from engine.errors import UserError
from tests.detection.tasks.tiny import tiny_task

Files = tuple[dict[str, torch.Tensor], dict[str, str]]
CONFIG_CHANGES: list[dict[str, Any]] = [
    {"data": 3},
    {"data": {"demo": 3}},
    {"model": []},
    {"nothing": 1},
    {"task": 3},
    {"task": "localization"},
    {"model": {"roi": {"hidden_dim": 10**12}}},
    {"model": {"roi": {"hidden_dim": 10**30}}},
    {"model": {"mask": {"num_convs": 10**9}}},
    {"model": {"neck": {"channels": -1}}},
]
TEXTS = [
    "",
    "x",
    "{",
    "null",
    "3",
    "true",
    "[]",
    "{}",
    '"cat"',
    "[" * 5000,
    "[1, 2]",
    "NaN",
    "9" * 5000,
]
CLASS_NAMES = ["[1, 2]", '["a", "a"]', '["a"]', '[["a"]]', "[null]", '["\\ud800", "b"]']
CATEGORY_IDS = ["[1]", "[true, false]", '["1", "2"]', "[-1.5, 2]", "[2, 1]", f"[1, {10**30}]"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Files:
    task, _ = tiny_task(tmp_path_factory.mktemp("demo") / "demo", "fpn")
    return dict(task.model.state_dict()), task.metadata()


def cases(trained: Files) -> list[dict[str, str]]:
    """Return metadata that are wrong, each in one place."""
    good = trained[1]
    config = json.loads(good["config"])
    model = config["model"]
    wrong = []
    for change in CONFIG_CHANGES:
        if isinstance(change.get("model"), dict):
            change = {"model": {k: {**model[k], **part} for k, part in change["model"].items()}}
            change["model"] = {**model, **change["model"]}
        wrong.append({**good, "config": json.dumps({**config, **change})})
    wrong += [{**good, "config": text} for text in TEXTS if text != "{}"]
    wrong += [{**good, "class_names": text} for text in TEXTS + CLASS_NAMES]
    wrong += [{**good, "category_ids": text} for text in TEXTS + CATEGORY_IDS]
    wrong += [
        {k: v for k, v in good.items() if k != key}
        for key in ("config", "class_names", "category_ids")
    ]
    return wrong


@pytest.mark.extended
@pytest.mark.parametrize("kind", ["safetensors", pytest.param("pt", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "read", [load_trained, lambda path: load_task([path])], ids=["predict", "eval"]
)
def test_wrong_metadata_are_one_line(
    tmp_path: Path, trained: Files, kind: str, read: Callable[[Path], object]
) -> None:
    path = tmp_path / f"a.{kind}"
    state = {"w": torch.ones(2)}  # not looked at before the text is right
    for metadata in cases(trained):
        if kind == "pt":
            save_checkpoint(path, {"model": state, "metadata": metadata})
        else:
            write_safetensors(path, state, metadata)
        with pytest.raises(UserError) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize("value", [None, 3, "x", [], {"config": 3}, {1: "x"}], ids=str)
@pytest.mark.parametrize("key", ["model", "metadata", "average"])
def test_wrong_parts_of_a_checkpoint_are_one_line(
    tmp_path: Path, trained: Files, key: str, value: Any
) -> None:
    if key == "average" and value is None:
        return
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"model": trained[0], "metadata": trained[1], key: value})
    with pytest.raises(UserError, match=r"a\.pt: expected a checkpoint of a run"):
        load_task([path])


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.to(torch.int64),
        lambda t: t.to(torch.complex64),
        lambda t: t[None],
        lambda t: torch.full_like(t, torch.nan),
    ],
    ids=["int", "complex", "shape", "NaN"],
)
def test_wrong_tensors_are_one_line(
    tmp_path: Path, trained: Files, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    state, metadata = trained
    name = "backbone.conv1.weight"
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {**state, name: change(state[name])}, metadata)
    with pytest.raises(UserError, match=r"a\.safetensors: backbone\.conv1\.weight: expected"):
        load_trained(path)


@pytest.mark.parametrize("text", TEXTS)
def test_wrong_metadata_of_pretrained_weights_are_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.safetensors"
    model = resnet18()
    for key in ("pixel_mean", "pixel_std"):
        write_safetensors(path, model.state_dict(), {key: text})
        with pytest.raises(UserError, match=rf"a\.safetensors: {key}: expected"):
            load_backbone_weights(model, path, pixel_mean=(1, 2, 3), pixel_std=(1, 1, 1))
    write_safetensors(
        path, {"box_predictor.class_logits.bias": torch.ones(3)}, {"class_names": text}
    )
    with pytest.raises(UserError, match=r"a\.safetensors: "):
        load_detector_weights(
            model, path, config=DetectionConfig(), class_names=["cat"], category_ids=[1]
        )


def foreign(tmp_path: Path, trained: Files, data: dict[str, Any]) -> Path:
    """Write a detector whose config has other data."""
    config = json.loads(trained[1]["config"])
    config["data"] |= data
    path = tmp_path / "foreign.safetensors"
    write_safetensors(path, trained[0], {**trained[1], "config": json.dumps(config)})
    return path


def test_a_file_draws_no_demo_where_it_likes(tmp_path: Path, trained: Files) -> None:
    root = tmp_path / "victim"
    split = {"images": str(root / "val"), "annotations": str(root / "annotations/val.json")}
    data = {"demo": {"root": str(root), "num_train": 2, "num_val": 1}, "val": split, "train": split}
    path = foreign(tmp_path, trained, data)
    with pytest.raises(UserError, match=rf"data\.demo\.root={root} to the command line"):
        load_task([path]).val_data()
    assert not root.exists()
    task = load_task([path], [f"data.demo.root={root}"])
    assert len(task.val_data()) == 1


def test_a_file_writes_no_packed_copy(
    tmp_path: Path, trained: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detection.data.dataset.CACHED_BYTES", 1)
    val = json.loads(trained[1]["config"])["data"]["val"]
    beside = Path(val["annotations"]).parent
    before = sorted(beside.iterdir())
    path = foreign(tmp_path, trained, {"cache": True})
    load_task([path]).val_data()
    assert sorted(beside.iterdir()) == before
    load_task([path], [f"data.val.annotations={val['annotations']}"]).val_data()
    assert len(list(beside.iterdir())) == len(before) + 1


def test_a_loaded_config_is_the_files(tmp_path: Path, trained: Files) -> None:
    path = foreign(tmp_path, trained, {})
    assert load_trained(path).config.data.cache
    task = load_task([path])
    assert isinstance(task, DetectionTask)
    assert not task.config.data.cache


def test_a_network_beyond_all_memory_is_not_built(tmp_path: Path, trained: Files) -> None:
    state, metadata = trained
    config = json.loads(metadata["config"])
    config["model"]["roi"]["hidden_dim"] = 10**12
    path = tmp_path / "a.safetensors"
    write_safetensors(path, state, {**metadata, "config": json.dumps(config)})
    with pytest.raises(UserError, match=r"as many parameters as the file .\d+., got a far"):
        load_trained(path)


def test_a_file_without_a_checksum_says_so_once(
    tmp_path: Path,
    trained: Files,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state, metadata = trained
    monkeypatch.setenv("RANK", "1")  # of several processes the first one speaks
    safetensors.torch.save_file(state, tmp_path / "second.safetensors", metadata)
    load_task([tmp_path / "second.safetensors"])
    monkeypatch.delenv("RANK")
    safetensors.torch.save_file(state, tmp_path / "old.safetensors", metadata)
    load_task([tmp_path / "old.safetensors"])
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{tmp_path / 'old.safetensors'}: has no checksum")
