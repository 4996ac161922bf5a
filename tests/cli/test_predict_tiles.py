"""The predict command in tiles: its results, what it says, and wrong values."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from detection.commands import predict
from tests.cli.conftest import Call

OPTIONS = ("--device", "cpu", "--output")


def entries(folder: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((folder / "detections.json").read_text())
    return found


def test_images_are_cut_and_small_ones_are_not(site: Path, trained: Path, call: Call) -> None:
    large = np.random.default_rng(0).integers(256, size=(100, 200, 3), dtype=np.uint8)
    cv2.imwrite(str(site / "data" / "wide.png"), large)
    plain = call(predict, trained, "data", *OPTIONS, "plain")
    outcome = call(predict, trained, "data", *OPTIONS, "out", "--tile", "100", "--overlap", "0.2")
    assert (plain.code, outcome.code) == (0, 0), outcome.err
    assert "data/wide.png: 200 x 100 pixels, 3 tiles" in outcome.out
    assert outcome.out.count(" tiles") == 1
    small, others = (
        [entry for entry in entries(site / name) if entry["file_name"] != "data/wide.png"]
        for name in ("plain", "out")
    )
    assert small == others
    assert len(entries(site / "out")) > len(entries(site / "plain")) + 5
    assert (site / "out" / "wide.jpg").is_file()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["--tile", "0"], "tile: expected at least 32 pixels, got 0"),
        (["--tile", "800x4"], "tile: expected at least 32 pixels, got 4"),
        (["--tile", "-800"], "--tile: expected PIXELS or HEIGHTxWIDTH, got -800"),
        (["--tile", "8e2"], "--tile: expected PIXELS or HEIGHTxWIDTH, got 8e2"),
        (["--tile", "800", "--overlap", "1"], "overlap: expected a fraction from 0 to below 1"),
        (["--tile", "800", "--overlap", "-1"], "overlap: expected a fraction from 0 to below 1"),
        (["--tile", "800", "--overlap", "80px"], "--overlap: invalid float value: '80px'"),
        (["--overlap", "0.2"], "--overlap: expected --tile too"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_values_are_one_line(
    site: Path, trained: Path, call: Call, values: list[str], message: str
) -> None:
    outcome = call(predict, trained, "data", *OPTIONS, "out", *values)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert message in outcome.err
    assert not (site / "out").exists()
