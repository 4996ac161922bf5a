"""An interrupted or killed prediction goes on, and gives the files of an uninterrupted one."""

import json
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from detection.commands import predict
from tests.cli.conftest import Call

PARTIAL = "detections.partial.jsonl"
SHAPES = [(64, 64), (64, 90), (90, 64), (64, 64), (40, 60), (64, 64), (64, 90), (60, 40), (64, 64)]
FORMATS = ("--format", "csv,yolo,coco-annotations", "--save-crops")
TILES = ("--tile", "60x70000")
"""Seven images are cut, while others wait for images of their shape."""


@pytest.fixture
def images(site: Path) -> Path:
    """The folder of eleven images of five shapes; one of them is bad, and one cannot be drawn."""
    rng = np.random.default_rng(0)
    (site / "in").mkdir()
    for number, shape in enumerate(SHAPES):
        pixels = rng.integers(256, size=(*shape, 3), dtype=np.uint8)
        cv2.imwrite(str(site / "in" / f"{number}.png"), pixels)
    (site / "in" / "4a.png").write_bytes(b"no image")
    cv2.imwrite(str(site / "in" / "4b.png"), np.zeros((16, 70000, 3), np.uint8))
    return site / "in"


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def arguments(trained: Path, output: str, *more: str) -> list[str]:
    basic = ["in", "--score", "0", "--device", "cpu", "--skip-bad", "--output", output]
    return [str(trained), *basic, *more]


def killed_at_the_end(trained: Path, output: str, call: Call, *more: str) -> list[bytes]:
    """Predict until detections.json cannot be written; return the JSON lines."""
    obstacle = Path(output) / "detections.json.partial"
    obstacle.parent.mkdir(exist_ok=True)
    obstacle.symlink_to("/dev/full")
    outcome = call(predict, *arguments(trained, output, *more))
    assert outcome.code == 2
    assert "detections.json: cannot be written" in outcome.err
    obstacle.unlink(missing_ok=True)
    return (Path(output) / PARTIAL).read_bytes().splitlines(keepends=True)


def cuts(lines: Sequence[bytes]) -> Iterator[bytes]:
    """Yield what the file may be after a kill."""
    ends = [n for n, line in enumerate(lines) if n == 0 or json.loads(line)["left"] == 0]
    yield lines[0][:30]
    yield lines[0]
    yield b"".join(lines[: ends[1]]) + lines[ends[1]][:-1]
    yield b"".join(lines[: ends[2]])  # a batch without its last line
    yield b"".join(lines[: ends[3] + 1])
    yield b"".join(lines[: ends[4] + 1]) + lines[ends[4] + 1][:5]
    yield b"".join(lines)


@pytest.mark.extended
@pytest.mark.parametrize("options", [FORMATS, (*FORMATS, *TILES)], ids=["whole", "tiles"])
def test_a_killed_prediction_is_resumed_at_any_point(
    images: Path, trained: Path, call: Call, options: Sequence[str]
) -> None:
    for name in ("whole", "killed"):
        Path(name).mkdir()
        Path(name, "0.jpg").write_bytes(b"mine")
    expected = call(predict, *arguments(trained, "whole", *options))
    assert expected.code == 0, expected.err
    assert expected.out.count(" tiles\n") == (7 if "--tile" in options else 0)
    lines = killed_at_the_end(trained, "killed", call, *options)
    whole = files_of(Path("whole"))
    # the path of the output folder is in data.yaml
    del whole["data.yaml"]
    assert whole["0.jpg"] == b"mine"
    assert {"0_2.jpg", "labels/4b.txt"} <= whole.keys()
    assert "labels/4a.txt" not in whole
    crops = [name for name in whole if name.startswith("crops/")]
    assert len(crops) == whole["detections.csv"].count(b"\n") - 1 > 0
    for cut in cuts(lines):
        shutil.rmtree("resumed", ignore_errors=True)
        is_begun = b"\n" in cut  # then there may be drawings and crops
        kept = None if is_begun else shutil.ignore_patterns("crops", "?.jpg", "?_?.jpg")
        shutil.copytree("killed", "resumed", ignore=kept)
        shutil.copy("whole/0.jpg", "resumed")
        Path("resumed", PARTIAL).write_bytes(cut)
        outcome = call(predict, *arguments(trained, "resumed", *options, "--resume"))
        assert outcome.code == 0, outcome.err
        found = files_of(Path("resumed"))
        del found["data.yaml"]
        assert found == whole
        is_drawn_again = b"4b.png" not in cut[: cut.rfind(b"\n")]
        folder = "resumed" if is_drawn_again else "killed"  # where the file was made
        said = [line for line in outcome.out.splitlines() if line.startswith(("skip", "not dr"))]
        assert said == [
            "skipped: in/4a.png: expected a whole image, got a file that cannot be decoded",
            f"not drawn: {folder}/4b.jpg: expected sides of at most 65535 pixels, got 70000x16 "
            "(width x height)",
        ]


def test_done_images_are_not_predicted_again(images: Path, trained: Path, call: Call) -> None:
    killed_at_the_end(trained, "out", call)
    expected = json.loads(Path("out", PARTIAL).read_text().splitlines()[3])["file_name"]
    for path in images.iterdir():
        path.write_bytes(b"")
    outcome = call(predict, *arguments(trained, "out", "--resume"))
    assert outcome.code == 0, outcome.err
    assert "out: 11 of 11 images are done" in outcome.out
    entries = json.loads(Path("out", "detections.json").read_text())
    assert {entry["image_id"] for entry in entries} == {*range(11)} - {5}
    assert expected in {entry["file_name"] for entry in entries}
    assert not Path("out", PARTIAL).exists()


@pytest.mark.extended
def test_a_signal_keeps_the_lines_and_the_results(images: Path, trained: Path, call: Call) -> None:
    inputs = [f"in{number}" for number in range(6)]
    for name in inputs:
        shutil.copytree("in", name)
    whole = [str(trained), *inputs, *arguments(trained, "whole")[2:]]
    assert call(predict, *whole).code == 0

    def stop_after_a_batch() -> None:
        partial = Path("out", PARTIAL)
        for _ in range(6000):
            if partial.exists() and partial.read_bytes().count(b"\n") > 2:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.01)

    watcher = threading.Thread(target=stop_after_a_batch)
    watcher.start()
    stopped = [str(trained), *inputs, *arguments(trained, "out")[2:]]
    outcome = call(predict, *stopped)
    watcher.join()
    assert outcome.code == 130, outcome.err
    some = json.loads(Path("out", "detections.json").read_text())
    lines = Path("out", PARTIAL).read_text().splitlines()[1:]
    done = {json.loads(line)["image"] for line in lines}
    assert 0 < len(done) < 66
    assert f"interrupted after {len(done)} of 66 images" in outcome.err
    assert {entry["image_id"] for entry in some} <= done
    outcome = call(predict, *stopped, "--resume")
    assert outcome.code == 0, outcome.err
    assert f"out: {len(done)} of 66 images are done" in outcome.out
    assert files_of(Path("out")) == files_of(Path("whole"))


def test_a_full_disk_in_between_is_one_line(images: Path, trained: Path, call: Call) -> None:
    assert call(predict, *arguments(trained, "whole", "--no-drawings")).code == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, limits[1]))
    try:
        outcome = call(predict, *arguments(trained, "out", "--no-drawings"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"out/{PARTIAL}: cannot be written" in outcome.err
    outcome = call(predict, *arguments(trained, "out", "--no-drawings", "--resume"))
    assert outcome.code == 0, outcome.err
    assert "out: 0 of 11 images are done" not in outcome.out
    assert files_of(Path("out")) == files_of(Path("whole"))


def test_another_job_is_not_resumed(images: Path, trained: Path, call: Call) -> None:
    killed_at_the_end(trained, "out", call, *TILES)
    before = files_of(Path("out"))
    shutil.copytree(trained, "other")
    with Path("other", "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    default = arguments(trained, "out", *TILES, "--resume")
    cases = {
        "overrides": [*default, "model.roi.nms_thresh=0.4"],
        "images": [*default, "data/0.jpg"],
        "drawings": [*default, "--no-drawings"],
        "crops": [*default, "--save-crops"],
        "classes": [*default, "--classes", "cow"],
        "tile": arguments(trained, "out", "--resume"),
        "overlap": [*default, "--overlap", "0.3"],
    }
    for key, changed in cases.items():
        outcome = call(predict, *changed)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1), key
        assert f"--resume: expected {key} as in the interrupted prediction" in outcome.err
    assert files_of(Path("out")) == before
    Path("out", PARTIAL).write_text('{"file_name": "a.jpg"}\n')
    outcome = call(predict, *default)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"out/{PARTIAL}: expected none, or that of an earlier prediction, got" in outcome.err
    Path("out", PARTIAL).write_text('{"job": {}}\n')
    outcome = call(predict, *default)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "--resume: expected the lines of an interrupted prediction, got others" in outcome.err


def test_without_resume_a_prediction_starts_again(images: Path, trained: Path, call: Call) -> None:
    killed_at_the_end(trained, "out", call)
    assert call(predict, *arguments(trained, "out")).code == 0
    assert call(predict, *arguments(trained, "whole")).code == 0
    assert files_of(Path("out")) == files_of(Path("whole"))
    again = call(predict, *arguments(trained, "out", "--resume"))
    assert again.code == 0, again.err
    assert "out: no interrupted prediction to resume; this one starts" in again.out
    assert files_of(Path("out")) == files_of(Path("whole"))
