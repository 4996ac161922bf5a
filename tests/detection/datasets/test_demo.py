"""Synthetic demo data: valid COCO annotations, reproducibility, protection of the user's files."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from backbones.config import DemoConfig
from detection.config import DataConfig, SplitConfig
from detection.data.coco import read_coco
from detection.data.dataset import CocoDetection
from detection.datasets.demo import CATEGORIES, MARKER, MIN_VISIBLE_SIDE, draw_once, make_demo
from engine.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "demo"
    make_demo(DemoConfig(root=str(root), num_train=60, num_val=12))
    return root


def contents(root: Path) -> dict[str, bytes]:
    """Return the bytes of every file below `root`, by file name."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(("split", "count"), [("train", 60), ("val", 12)], ids=["train", "val"])
def test_demo_is_valid_coco(root: Path, split: str, count: int) -> None:
    annotations = read_coco(root / "annotations" / f"{split}.json")
    report = annotations.report
    assert len(annotations) == count
    assert annotations.classes.category_ids == tuple(sorted(CATEGORIES))
    reasons = (report.dropped, report.clipped_boxes, report.filled_areas, report.unreadable_masks)
    assert not any(reasons)
    assert min(report.boxes_by_class.values()) > 0
    sides = annotations.boxes[:, 2:] - annotations.boxes[:, :2]
    assert sides[~annotations.is_crowd].min() >= MIN_VISIBLE_SIDE
    if split == "train":
        assert report.crowds > 0
        assert report.images_without_boxes > 0


def test_images_load_as_annotated(root: Path) -> None:
    split = SplitConfig(images=str(root / "val"), annotations=str(root / "annotations/val.json"))
    data = CocoDetection(split, config=DataConfig(), training=False)
    for index in range(len(data)):
        assert data.load(index, 0).image_id == index + 1


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_boxes_are_tight_around_the_visible_masks(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = COCO(root / "annotations/train.json")
    capsys.readouterr()
    seen: dict[int, np.ndarray] = {}
    for entry in reference.anns.values():
        mask = reference.annToMask(entry)
        assert mask.sum() == entry["area"]
        assert coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask))).tolist() == entry["bbox"]
        total = seen.setdefault(entry["image_id"], np.zeros_like(mask))
        total += mask
        assert total.max() == 1, "a pixel belongs to only one object"


def test_same_seed_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    first, again, other = (
        contents_of_demo(tmp_path / name, seed=seed)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first == again
    shared = [name for name in first if name.startswith(("train/", "val/"))]
    assert {name: contents(root)[name] for name in shared} == {name: first[name] for name in shared}
    assert not any(other[name] == first[name] for name in shared)


def contents_of_demo(root: Path, *, seed: int) -> dict[str, bytes]:
    make_demo(DemoConfig(root=str(root), num_train=3, num_val=2, seed=seed))
    return contents(root)


def test_splits_differ(root: Path) -> None:
    files = contents(root)
    assert files["train/000001.jpg"] != files["val/000001.jpg"]


def test_a_second_call_does_nothing(tmp_path: Path) -> None:
    config = DemoConfig(root=str(tmp_path / "demo"), num_train=2, num_val=1)
    make_demo(config)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*")}
    make_demo(config)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*")} == times


def test_other_parameters_replace_an_earlier_demo(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    make_demo(DemoConfig(root=str(root), num_train=4, num_val=1))
    make_demo(DemoConfig(root=str(root), num_train=2, num_val=1))
    images = json.loads((root / "annotations/train.json").read_text())["images"]
    assert len(images) == len(list((root / "train").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize("with_marker", [False, True], ids=["no demo", "beside a demo"])
def test_files_of_the_user_are_never_changed(tmp_path: Path, with_marker: bool) -> None:
    root = tmp_path / "demo"
    if with_marker:
        make_demo(DemoConfig(root=str(root), num_train=1, num_val=1))
    (root / "train").mkdir(parents=True, exist_ok=True)
    (root / "train" / "mine.jpg").write_bytes(b"mine")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"got one with train/mine\.jpg"):
        make_demo(DemoConfig(root=str(root), num_train=2, num_val=1))
    assert contents(tmp_path) == before


def test_an_empty_folder_is_used_and_a_broken_marker_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make_demo(DemoConfig(root=str(tmp_path / "empty"), num_train=1, num_val=1))
    assert (tmp_path / "empty" / MARKER).exists()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / MARKER).write_text("{")
    (tmp_path / "odd" / "train").write_text("")
    with pytest.raises(UserError, match=rf"got one with (train|{MARKER})"):
        make_demo(DemoConfig(root=str(tmp_path / "odd"), num_train=1, num_val=1))


def test_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "demo"):
        with pytest.raises(UserError, match="file"):
            make_demo(DemoConfig(root=str(root), num_train=1, num_val=1))


def test_lock_file_is_beside_the_data_and_is_not_a_followed_link(tmp_path: Path) -> None:
    target, lock = tmp_path / "mine.txt", tmp_path / ".demo.resdet-lock"
    target.write_text("mine")
    lock.symlink_to(target)
    config = DemoConfig(root=str(tmp_path / "demo"), num_train=1, num_val=1)
    with pytest.raises(UserError, match=r"demo: cannot write the demo images: Too many levels of"):
        make_demo(config)
    assert target.read_text() == "mine"
    lock.unlink()
    lock.touch()  # as a killed process leaves it
    make_demo(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "mine.txt"]


def test_nothing_is_opened_in_the_shared_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o500)
    monkeypatch.setattr("tempfile.tempdir", str(shared))
    make_demo(DemoConfig(root=str(tmp_path / "demo"), num_train=1, num_val=1))
    assert list(shared.iterdir()) == []


def test_only_one_of_several_processes_draws(tmp_path: Path) -> None:
    config = DemoConfig(root=str(tmp_path / "demo"), num_train=6, num_val=1)
    drawn = []

    def draw(root: Path, split: str, count: int, *, seed: tuple[int, int]) -> list[str]:
        drawn.append(split)
        (root / split).mkdir(parents=True)
        time.sleep(0.05)
        return []

    # the lock belongs to an open file, so it excludes threads like processes
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: draw_once(config, draw, streams=(0, 1)), range(8)))
    assert drawn == ["train", "val"]
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize(
    "root", ["a\0b", "x" * 300, "x" * 250], ids=["NUL", "long name", "long lock name"]
)
def test_invalid_root_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        make_demo(DemoConfig(root=root, num_train=1, num_val=1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("files", [[1], "x", None, {"a": 1}, [["a"]]], ids=str)
def test_marker_with_other_content_is_a_foreign_file(tmp_path: Path, files: Any) -> None:
    (tmp_path / MARKER).write_text(json.dumps({"parameters": {}, "files": files}))
    with pytest.raises(UserError, match=rf"got one with {MARKER}"):
        make_demo(DemoConfig(root=str(tmp_path), num_train=1, num_val=1))
