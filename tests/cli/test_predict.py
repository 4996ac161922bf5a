"""The predict command keeps its results when images are bad, writing fails or it is stopped."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from backbones.images import read_image
from detection.commands import predict
from tests.cli.conftest import Call

PREDICT = Path(__file__).resolve().parents[2] / "tools" / "predict.py"
OPTIONS = ("--score", "0", "--device", "cpu", "--output", "out")


def entries(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "detections.json").read_text())
    return found


def add_bad_images(site: Path) -> None:
    """Add files to data/ that cannot be read or drawn, sorted between good ones."""
    data = site / "data"
    (data / "0a.jpg").write_bytes((data / "0.jpg").read_bytes()[:300])
    (data / "0b.png").write_bytes(b"no image")
    cv2.imwrite(str(data / "0c.png"), np.zeros((16, 70000, 3), np.uint8))
    os.mkfifo(data / "1a.jpg")
    header = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    (data / "1b.png").write_bytes(header[:16] + (30000).to_bytes(4, "big") * 2 + header[24:])
    (data / "1c.jpg").symlink_to("nothing")
    (data / os.fsdecode(b"\xb9\xb7.jpg")).write_bytes((data / "0.jpg").read_bytes())
    (data / "a\x1b[31m\nb.jpg").write_bytes((data / "0.jpg").read_bytes())


@pytest.mark.parametrize("skip", [False, True])
def test_bad_images_are_reported_and_the_others_predicted(
    site: Path, trained: Path, call: Call, skip: bool
) -> None:
    add_bad_images(site)
    inputs = ("data", "absent.jpg", "empty")
    (site / "empty").mkdir()
    outcome = call(predict, trained, *inputs, *OPTIONS, *["--skip-bad"] * skip)
    assert outcome.code == (0 if skip else 2), outcome.err
    assert outcome.err.count("\n") == (0 if skip else 1)
    for name in ("0a.jpg", "0b.png", "1a.jpg", "1b.png", "1c.jpg"):
        assert f"skipped: data/{name}: " in outcome.out
    assert "skipped: absent.jpg: " in outcome.out
    assert "skipped: empty: " in outcome.out
    assert "not drawn: out/0c.jpg: expected sides of at most 65535" in outcome.out
    named = {entry["file_name"] for entry in entries(site / "out")}
    good = {"0.jpg", "0c.png", "1.jpg", "2.jpg", os.fsdecode(b"\xb9\xb7.jpg"), "a\x1b[31m\nb.jpg"}
    assert named == {f"data/{name}" for name in good}
    assert len(list((site / "out").glob("*.jpg"))) == len(good) - 1
    assert not (site / "out" / "detections.partial.jsonl").exists()


def test_results_are_kept_if_a_drawing_cannot_be_written(
    site: Path, trained: Path, call: Call
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        outcome = call(predict, trained, "data", *OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert outcome.code == 2
    assert "not drawn: out/1.jpg: cannot be written" in outcome.out
    assert {entry["image_id"] for entry in entries(site / "out")} == {0, 1, 2}
    assert not list((site / "out").glob("*.jpg"))  # no half of one


@pytest.mark.parametrize("name", ["detections.partial.jsonl", "detections.json"])
def test_full_disk_is_one_line(site: Path, trained: Path, call: Call, name: str) -> None:
    (site / "out").mkdir()
    if name == "detections.json":
        (site / "out" / f"{name}.partial").symlink_to("/dev/full")
    else:
        (site / "out" / name).symlink_to("/dev/full")
    outcome = call(predict, trained, "data", *OPTIONS)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert f"{name}: cannot be written" in outcome.err


def test_overrides_are_applied(site: Path, trained: Path, call: Call) -> None:
    outcome = call(predict, trained, "data", "model.roi.max_detections=1", *OPTIONS)
    assert outcome.code == 0, outcome.err
    assert [entry["image_id"] for entry in entries(site / "out")] == [0, 1, 2]
    wrong = call(predict, trained, "data", "model.roi.max_detection=1", *OPTIONS)
    assert wrong.code == 2
    assert "model.roi.max_detections" in wrong.err
    nothing = call(predict, trained, "model.roi.max_detections=1", *OPTIONS)
    assert nothing.code == 2
    assert "expected RUN_OR_CHECKPOINT and IMAGE_OR_FOLDER" in nothing.err


def test_objects_that_are_not_drawn_are_counted(site: Path, trained: Path, call: Call) -> None:
    options = ("data", "model.roi.score_thresh=0", *OPTIONS[2:])
    call(predict, trained, *options)
    scores = sorted(entry["score"] for entry in entries(site / "out"))
    thresh = scores[len(scores) // 2]
    above, count = sum(score >= thresh for score in scores), len(scores)
    assert 0 < above < count
    found = call(predict, trained, f"evaluation.draw_score_thresh={thresh!r}", *options)
    assert f"a score of {thresh} or more, {above} of {count};" in found.out
    for all_drawn in ((*OPTIONS, "data"), (*options, "--no-drawings")):
        assert "drawings show" not in call(predict, trained, *all_drawn).out


def test_twelve_bit_images_are_reported_once(site: Path, trained: Path, call: Call) -> None:
    for name in ("12a.png", "12b.png"):
        cv2.imwrite(str(site / name), np.full((40, 40), 4000, np.uint16))
    outcome = call(predict, trained, "12a.png", "12b.png", *OPTIONS)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("12 are used") == 1
    assert read_image(site / "12a.png").max() == 250


@pytest.mark.extended
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_results_are_kept_after_a_signal(site: Path, trained: Path, number: int) -> None:
    (site / "many").mkdir()
    for name in range(6000):
        (site / "many" / f"{name}.jpg").hardlink_to(site / "data" / f"{name % 2}.jpg")
    process = subprocess.Popen(
        [sys.executable, str(PREDICT), str(trained), "many", *OPTIONS],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    partial = site / "out" / "detections.partial.jsonl"
    for _ in range(600):
        if partial.exists() and partial.read_bytes().count(b"\n") > 10:
            break
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        lines = partial.read_text().splitlines()[1:-1]  # the last may be incomplete
        assert all("file_name" in json.loads(line) for line in lines)
        return
    assert process.returncode == 130, err
    heard, stopped = err.splitlines()
    assert heard.endswith(": stopping after this batch; a second signal stops at once")
    assert stopped.startswith("stopped: interrupted after")
    assert len(entries(site / "out")) >= 10
    assert partial.exists()  # for --resume
