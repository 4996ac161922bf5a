import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detection.commands.tasks import build_task
from detection.config import SCHEMAS
from detection.data.coco import ClassMap
from detection.structures import Detections
from engine.config import load_config
from engine.errors import UserError
from engine.trainer import fit
from tests.detection.small_bccd import SMALL_BCCD
from tools.lab.tile_accuracy import GRID, Mosaics, clipped, measure

REPOSITORY = Path(__file__).resolve().parents[2]
SIZE = (20, 30)
BOX = (25.0, 4.0, 30.0, 12.0)
"""Of the one object of each image, at its right border."""

QUICK = [
    *SMALL_BCCD,
    "schedule.warmup_steps=20",
    "loop.max_steps=120",
    "loop.eval_every=0",
    "loop.ema_decay=0.98",
    "loader.workers=1",
]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with 20 images of one colour each, and their JSON."""
    names = [f"{i}.png" for i in range(20)]
    for i, name in enumerate(names):
        cv2.imwrite(str(tmp_path / name), np.full((*SIZE, 3), i, np.uint8))
    images = [
        {"id": 7 + i, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
        for i, name in enumerate(names)
    ]
    box = {"category_id": 3, "bbox": [25, 4, 5, 8], "area": 40, "iscrowd": 0}
    annotations = [{"id": i + 1, "image_id": 7 + i, **box} for i in range(20)]
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cell"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    return tmp_path


def test_mosaics_hold_the_images_and_their_objects(site: Path) -> None:
    mosaics = Mosaics.read(site, site / "a.json")
    assert len(mosaics.paths) == GRID**2
    (mosaic,) = mosaics
    assert mosaic.shape == (4 * SIZE[0], 4 * SIZE[1], 3)
    corners = [(row * SIZE[0], column * SIZE[1]) for row in range(4) for column in range(4)]
    for (y, x), path in zip(corners, mosaics.paths, strict=True):
        assert (mosaic[y : y + SIZE[0], x : x + SIZE[1]] == int(path.stem)).all()
    boxes = torch.tensor([[x + BOX[0], y + BOX[1], x + BOX[2], y + BOX[3]] for y, x in corners])
    found = Detections(boxes, torch.full((16,), 0.5), torch.zeros(16, dtype=torch.int64))
    classes = ClassMap(("cell",), (3,))
    parts = mosaics.split([found])
    assert mosaics.ap(parts, classes) == 1
    # a pixel over the border into the next image costs AP unless it is cut off
    over = Detections(boxes + torch.tensor([0, 0, 2.0, 0]), found.scores, found.labels)
    parts = mosaics.split([over])
    assert mosaics.ap(parts, classes) < 1
    assert mosaics.ap([clipped(each, SIZE) for each in parts], classes) == 1
    # in the image that it is not of
    missed = Detections(boxes + 5, found.scores, found.labels)
    assert mosaics.ap(mosaics.split([missed]), classes) == 0


def test_too_few_images(site: Path) -> None:
    document = json.loads((site / "a.json").read_text())
    document["images"] = document["images"][:15]
    (site / "a.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="expected at least 16 images of one size, got 15 of 1"):
        Mosaics.read(site, site / "a.json")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_tiles_find_what_single_images_do(data_dir: Path, tmp_path: Path) -> None:
    """On mosaics of 64 test images of blood cells."""
    bccd = data_dir / "bccd"
    files = [
        f"data.{split}.{key}={bccd / value}"
        for split in ("train", "val")
        for key, value in (("images", "images"), ("annotations", f"annotations/{split}.json"))
    ]
    config = load_config(
        REPOSITORY / "configs/detection/bccd.yaml", [*QUICK, *files], schemas=SCHEMAS
    )
    fit(build_task(config), config, output=tmp_path / "run", device="cpu")
    mosaics = Mosaics.read(bccd / "images", bccd / "annotations/test.json")
    settings = [((480, 640), 0.0), ((480, 480), 0.5)]
    rows = measure(mosaics, tmp_path / "run", settings)
    (_, single, _), (_, whole, _), (_, same, _), (_, found, cut) = rows
    assert single > 0.25
    assert whole < 0.1
    assert same == pytest.approx(single, abs=0.005)
    assert cut > single - 0.005
    assert found > single - 0.05
