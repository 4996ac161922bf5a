"""The export command, and the script that it writes beside an ONNX file."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from detection import load_detector
from detection.commands import evaluate, export
from tests.cli.conftest import Call

BARE = """
import importlib.abc, runpy, sys

class OnlyThese(importlib.abc.MetaPathFinder):
    '''Hides all packages but the standard library and those that run_onnx.py names.'''
    def find_spec(self, name, path=None, target=None):
        allowed = ("numpy", "onnxruntime", "PIL", *sys.stdlib_module_names)
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, OnlyThese())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.extended
def test_file_is_written_with_its_script_which_needs_no_other_packages(
    site: Path, trained: Path, call: Call
) -> None:
    images = [str(site / "data" / f"{number}.jpg") for number in range(3)]
    outcome = call(export, trained, "--ap", "loop.precision=bf16", "--license", "mine")
    assert outcome.code == 0, outcome.err
    assert "Largest differences between model.onnx in fp32 and the model" in outcome.out
    path = trained / "model.onnx"
    props = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert json.loads(props["class_names"]) == ["cow", "ant"]
    assert len(props["weights_sha256"]) == 64
    assert props["license"] == "mine"
    (site / "bare.py").write_text(BARE)
    script = trained / "run_onnx.py"
    command = [sys.executable, "bare.py", str(script), str(path), *images, "--score", "0"]
    done = subprocess.run(command, cwd=site, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    detector = load_detector(trained, device="cpu", overrides=["loop.precision=fp32"])
    expected = detector.predict(images)
    assert [row[0] for row in rows] == [
        name for name, found in zip(images, expected, strict=True) for _ in range(len(found))
    ]
    for bad, message in (
        ([str(path), "absent.jpg", images[0]], "absent.jpg: No such file"),
        (["data/0.jpg", images[0]], "data/0.jpg: expected a model"),
    ):
        wrong = subprocess.run(
            [sys.executable, str(script), *bad], cwd=site, capture_output=True, text=True
        )
        assert wrong.returncode == 2
        assert "Traceback" not in wrong.stderr
        assert message in wrong.stderr
    scores = [float(row[2]) for row in rows]
    assert scores == pytest.approx([float(x) for found in expected for x in found.scores], abs=1e-3)
    # the detections of --ap are a COCO results file
    scored = call(
        evaluate,
        "--results",
        trained / "model_detections.json",
        "data.val.annotations=data/val.json",
    )
    assert scored.code == 0, scored.err


WRONG = {
    "no run": (("a.b=c",), "expected one RUN_OR_CHECKPOINT, got 0"),
    "two runs": (("trained", "trained"), "expected one RUN_OR_CHECKPOINT, got 2"),
    "batch": (("trained", "--batch", "0"), "--batch: expected dynamic or a number of at least 1"),
    "suffix": (("trained", "--output", "a.pt"), "--output: expected a name that ends in .onnx"),
    "precision": (
        ("trained", "--format", "torch", "--precision", "half"),
        "--precision half: expected --format onnx",
    ),
    "additions": (
        ("trained", "evaluation.refine_boxes=true"),
        "evaluation.refine_boxes: expected false",
    ),
    "size": (("trained", "--size", "480"), "--size: expected HEIGHTxWIDTH in pixels"),
    "aoti": (("trained", "--format", "aoti", "--batch", "1"), "--format aoti: expected --batch N"),
    "ap of one size": (("trained", "--ap", "--size", "64x64"), "--ap: expected a file without"),
    "no images": (("trained", "--images", "empty"), "empty: expected images, got none"),
    "images in a file": (("trained", "--images", "tiny.yaml"), "--images: expected a folder"),
    "output is a folder": (("trained", "--output", "folder.onnx"), "--output: expected a file"),
    "masks": (
        ("trained", "--masks", "cells"),
        "--masks cells: expected a run of",
    ),
    "no such run": (("absent",), "absent: "),
    "ap without data": (
        ("trained", "--ap", "data.val.annotations=no.json"),
        "--ap: data.val.annotations: no such file or folder: no.json",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_mistakes_are_one_line(
    site: Path, trained: Path, call: Call, arguments: tuple[str, ...], message: str
) -> None:
    (site / "empty").mkdir()
    (site / "folder.onnx").mkdir()
    before = set(trained.iterdir())
    outcome = call(export, *(trained if each == "trained" else each for each in arguments))
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert set(trained.iterdir()) == before


@pytest.mark.slow
def test_script_runs_in_an_environment_of_three_packages(
    site: Path, trained: Path, call: Call
) -> None:
    assert call(export, trained).code == 0
    venv = site / "bare"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    packages = ["numpy", "onnxruntime", "Pillow"]
    subprocess.run([venv / "bin/pip", "install", "--quiet", *packages], check=True)
    command = [
        str(path)
        for path in (
            venv / "bin/python",
            trained / "run_onnx.py",
            trained / "model.onnx",
            site / "data/0.jpg",
        )
    ]
    command += ["--score", "0"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cow" in done.stdout or "ant" in done.stdout
