"""Synthetic classification data: crops of single objects of the demo."""

from pathlib import Path

import numpy as np
import pytest

from backbones.config import DemoConfig
from backbones.images import read_image
from detection.datasets.demo import CATEGORIES
from detection.datasets.demo_objects import SIDE, make_demo_objects
from engine.errors import UserError


def small(root: Path, *, seed: int = 1) -> DemoConfig:
    return DemoConfig(root=str(root), num_train=40, num_val=10, seed=seed)


def content(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.png"))
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of demo objects, shared by the tests; do not change it."""
    root = tmp_path_factory.mktemp("demo") / "objects"
    make_demo_objects(small(root))
    return root


def test_layout(made: Path) -> None:
    for split, count in (("train", 40), ("val", 10)):
        assert {path.name for path in (made / split).iterdir()} == set(CATEGORIES.values())
        assert len(list((made / split).rglob("*.png"))) == count


def test_objects_fill_their_images(made: Path) -> None:
    for path in made.rglob("*.png"):
        pixels = read_image(path)
        assert pixels.shape == (SIDE, SIDE, 3)
        assert pixels.std() > 5


def test_only_the_same_parameters_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    make_demo_objects(small(tmp_path / "again"))
    assert content(tmp_path / "again") == content(made)
    make_demo_objects(small(tmp_path / "other", seed=2))
    assert content(tmp_path / "other") != content(made)


def test_splits_share_no_image(made: Path) -> None:
    train, val = (
        {path.read_bytes() for path in (made / s).rglob("*.png")} for s in ("train", "val")
    )
    assert not train & val


def test_second_call_does_nothing(made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    make_demo_objects(small(made))
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_folder_with_other_files_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"with only an earlier demo, got one with photo\.jpg"):
        make_demo_objects(small(tmp_path))
    assert np.array_equal([path.name for path in tmp_path.iterdir()], ["photo.jpg"])
