"""The commands train, eval and predict on a tiny data set: output files, and their agreement."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from detection.commands import evaluate as eval_tool
from detection.commands import predict
from detection.commands import train as train_det
from engine.checkpoint import read_safetensors
from tests.cli.conftest import Call

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def read_json(path: Path) -> dict[str, float]:
    content: dict[str, float] = json.loads(path.read_text())
    return content


def command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a tool in a subprocess, in a working directory outside the repository."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    line = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        line, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_run_folder_is_complete(trained: Path) -> None:
    names = {path.name.split(".out.")[0] for path in trained.iterdir()}
    assert names >= {
        *("config.yaml", "metrics.jsonl", "metrics.json", "model.safetensors", "checkpoints"),
        *("detections.json", "curves.png", "pr_curves.png", "events"),
    }
    metadata = read_safetensors(trained / "model.safetensors")[1]
    assert json.loads(metadata["class_names"]) == ["cow", "ant"]
    assert json.loads(metadata["category_ids"]) == [4, 9]


@pytest.mark.parametrize("file", [".", "checkpoints/step_00000002.pt", "model.safetensors"])
def test_evaluation_repeats_the_final_metrics(
    site: Path, trained: Path, call: Call, file: str
) -> None:
    outcome = call(eval_tool, trained / file, "--output", "scores", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert "ap50" in outcome.out
    assert read_json(site / "scores" / "metrics.json") == read_json(trained / "metrics.json")
    assert (site / "scores" / "detections.json").read_bytes() == (
        trained / "detections.json"
    ).read_bytes()


def test_evaluation_is_written_to_the_run_folder(site: Path, trained: Path, call: Call) -> None:
    shutil.copytree(trained, site / "run")
    arguments = ["loop.eval_batch_size=1", "--device", "cpu"]
    assert call(eval_tool, site / "run" / "checkpoints" / "best.pt", *arguments).code == 0
    scores = read_json(site / "run" / "eval" / "metrics.json")
    assert scores == pytest.approx(read_json(trained / "metrics.json"), nan_ok=True)


def test_results_file_has_the_scores_of_its_run(site: Path, trained: Path, call: Call) -> None:
    results = trained / "detections.json"
    arguments = ["data.val.annotations=data/val.json", "--output", "scores"]
    outcome = call(eval_tool, "--results", results, *arguments)
    assert outcome.code == 0, outcome.err
    assert "detections in 3 of 3 images" in outcome.out
    assert read_json(site / "scores" / "metrics.json") == read_json(trained / "metrics.json")
    before = sorted(site.rglob("*"))
    assert call(eval_tool, "--results", results, arguments[0]).code == 0
    assert sorted(site.rglob("*")) == before  # without --output nothing is written


def test_scores_of_another_run_are_not_replaced(site: Path, trained: Path, call: Call) -> None:
    shutil.copytree(trained, "other")
    for source in ([trained], ["--results", trained / "detections.json"]):
        outcome = call(eval_tool, *source, "--output", "other")
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert "--output: expected a folder for scores, got another run: other" in outcome.err
    assert read_json(site / "other" / "metrics.json") == read_json(trained / "metrics.json")
    assert call(eval_tool, trained, "--output", trained).code == 0


@pytest.mark.parametrize("flag", [(), ("--all-images",)], ids=["default", "flag"])
def test_all_annotated_images_are_scored(site: Path, call: Call, flag: tuple[str, ...]) -> None:
    found = {"image_id": 10, "category_id": 4, "bbox": [5, 5, 30, 40], "score": 0.5}
    (site / "found.json").write_text(json.dumps([found]))
    arguments = ["--results", "found.json", "data.val.annotations=data/val.json", "--output"]
    whole = call(eval_tool, *arguments, "all", *flag)
    assert "2 annotated images without results are scored as images" in whole.out
    named = call(eval_tool, *arguments, "named", "--named-images")
    assert "2 annotated images without results are not scored" in named.out
    scores = [read_json(site / name / "metrics.json") for name in ("all", "named")]
    assert [each["num_images"] for each in scores] == [3, 1]
    assert [each["ap"] for each in scores] == pytest.approx([0.5, 1.0])
    both = call(eval_tool, *arguments, "both", "--all-images", "--named-images")
    assert (both.code, both.err.count("\n")) == (2, 1)


def test_predictions_are_matched_by_file_name(site: Path, trained: Path, call: Call) -> None:
    """predict.py numbers images from 0, in the order of their names."""
    document = json.loads((site / "data" / "val.json").read_text())
    for image in document["images"]:  # ids 0 to 2, each different from predict.py's
        image["id"] = (image["id"] - 10 + 1) % 3
    for annotation in document["annotations"]:
        annotation["image_id"] = (annotation["image_id"] - 10 + 1) % 3
    (site / "data" / "val.json").write_text(json.dumps(document))
    arguments = ["--output", "scores", "--device", "cpu", "data.val.annotations=data/val.json"]
    assert call(eval_tool, trained, *arguments).code == 0
    assert call(predict, trained, "data", "--output", "found", "--device", "cpu").code == 0
    arguments = ["--results", "found/detections.json", arguments[-1], "--output", "again"]
    outcome = call(eval_tool, *arguments)
    assert outcome.code == 0, outcome.err
    assert "images are matched by file_name: 15 of 15 image_ids differ" in outcome.out
    again = read_json(site / "again" / "metrics.json")
    assert again == read_json(site / "scores" / "metrics.json")


def test_images_without_annotations_get_detections(site: Path, trained: Path, call: Call) -> None:
    """Like COCO's image_info_test-dev2017.json, whose results are scored on a server."""
    document = json.loads((site / "data" / "val.json").read_text())
    ids = {image["file_name"]: image["id"] for image in document["images"]}
    expected = (trained / "detections.json").read_bytes()
    for has_key in (True, False):
        del document["annotations"]
        document |= {"annotations": []} if has_key else {}
        (site / "test-dev.json").write_text(json.dumps(document))
        arguments = [
            "data.val.annotations=test-dev.json",
            "--output",
            "test-dev",
            "--device",
            "cpu",
        ]
        outcome = call(eval_tool, trained, *arguments)
        assert (outcome.code, outcome.err) == (0, "")
        assert "nothing to score: test-dev.json has no annotations" in outcome.out
        scores = read_json(site / "test-dev" / "metrics.json")
        assert scores["ap"] is scores["ap/cow"] is None
        assert (site / "test-dev" / "detections.json").read_bytes() == expected
        document["annotations"] = []
    assert {each["image_id"] for each in json.loads(expected)} == set(ids.values())


def test_prediction_writes_results_and_images(site: Path, trained: Path, call: Call) -> None:
    (site / "more").mkdir()
    shutil.copy(site / "data" / "0.jpg", site / "more" / "0.jpg")
    before = {path: path.read_bytes() for path in site.rglob("*.jpg")}
    arguments = ["data", "more/0.jpg", "--output", "data/found", "--device", "cpu"]
    outcome = call(predict, trained, *arguments)
    assert outcome.code == 0, outcome.err
    entries = json.loads((site / "data" / "found" / "detections.json").read_text())
    names = ["data/0.jpg", "data/1.jpg", "data/2.jpg", "more/0.jpg"]
    assert [names[entry["image_id"]] for entry in entries] == [e["file_name"] for e in entries]
    assert {e["file_name"] for e in entries} == set(names)
    assert {(e["category_id"], e["category_name"]) for e in entries} <= {(4, "cow"), (9, "ant")}
    drawn = sorted(path.name for path in (site / "data" / "found").glob("*.jpg"))
    assert drawn == ["0.jpg", "0_2.jpg", "1.jpg", "2.jpg"]
    assert cv2.imread(str(site / "data" / "found" / "0_2.jpg")) is not None
    assert all(path.read_bytes() == content for path, content in before.items())
    # a second run does not use the drawings of the first as images
    assert call(predict, trained, *arguments).out == outcome.out


def test_drawings_do_not_overwrite_the_user_s_files(site: Path, trained: Path, call: Call) -> None:
    (site / "mine").mkdir()
    (site / "mine" / "0.jpg").write_bytes(b"mine")
    assert call(predict, trained, "data/0.jpg", "--output", "mine", "--device", "cpu").code == 0
    assert (site / "mine" / "0.jpg").read_bytes() == b"mine"
    assert (site / "mine" / "0_2.jpg").exists()


def test_a_run_folder_may_look_like_an_override(site: Path, trained: Path, call: Call) -> None:
    shutil.copytree(trained, site / "lr=0.1")
    assert call(eval_tool, "lr=0.1", "--output", "scores", "--device", "cpu").code == 0


def test_score_drops_lower_detections(site: Path, trained: Path, call: Call) -> None:
    for score in ("0", "0.999"):
        call(predict, trained, "data", "--output", score, "--score", score)
    counts = [len(json.loads((site / s / "detections.json").read_text())) for s in ("0", "0.999")]
    assert counts[0] > counts[1] == 0


@pytest.mark.extended
def test_resumed_run_uses_its_saved_config(site: Path, trained: Path, call: Call) -> None:
    shutil.copytree(trained, site / "run")
    (site / "tiny.yaml").unlink()
    outcome = call(train_det, "--resume", "--output", "run", "loop.max_steps=3", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert "loop.max_steps: 2 -> 3" in outcome.out
    assert "step 3/3" in outcome.out
    lines = (site / "run" / "metrics.jsonl").read_text().splitlines()
    assert sorted({json.loads(line)["step"] for line in lines}) == [1, 2, 3]
    assert not (site / "run.1").exists()


@pytest.mark.extended
@pytest.mark.parametrize(
    ("changed", "messages"),
    [
        ((), ()),
        (
            ("train", "val"),
            (
                "training data differ from those of the steps up to 2",
                "validation data differ from those of the scores up to step 2",
            ),
        ),
    ],
)
def test_a_resumed_run_reports_changed_data(
    site: Path, trained: Path, call: Call, changed: tuple[str, ...], messages: tuple[str, ...]
) -> None:
    shutil.copytree(trained, site / "run")
    for split in ("train", "val"):
        path = site / "data" / f"{split}.json"
        document = json.loads(path.read_text())
        document["annotations"][0]["bbox"][0] += split in changed
        path.write_text(json.dumps(document, indent=1))  # other whitespace is not a change
    outcome = call(train_det, "--resume", "--output", "run", "loop.max_steps=3", "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.count("resumed with changed data: ") == len(messages)
    for message in messages:
        assert f"resumed with changed data: {message}" in outcome.out


@pytest.mark.extended
def test_earlier_run_is_renamed(site: Path, trained: Path, call: Call) -> None:
    shutil.copytree(trained, site / "runs" / "tiny")
    (site / "runs" / "tiny.1").mkdir()
    outcome = call(train_det, "tiny.yaml", "loop.max_steps=1", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert "runs/tiny: the earlier run was renamed to runs/tiny.2" in outcome.out
    kept = (site / "runs" / "tiny.2" / "model.safetensors").read_bytes()
    assert kept == (trained / "model.safetensors").read_bytes()
    assert (site / "runs" / "tiny" / "checkpoints" / "step_00000001.pt").exists()


@pytest.mark.extended
def test_overrides_may_follow_flags(site: Path, call: Call) -> None:
    arguments = ["--device", "cpu", "loop.max_steps=1", "--output", "run", "seed=3"]
    assert call(train_det, "tiny.yaml", *arguments).code == 0
    assert "seed: 3" in (site / "run" / "config.yaml").read_text()


@pytest.mark.extended
def test_files_in_the_output_folder_are_kept(site: Path, call: Call) -> None:
    (site / "out").mkdir()
    (site / "out" / "notes.txt").write_text("mine")
    arguments = ["tiny.yaml", "loop.max_steps=1", "--output", "out", "--device", "cpu"]
    assert call(train_det, *arguments).code == 0
    assert (site / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("script", ["train_det.py", "eval.py", "predict.py"])
def test_help_does_not_import_torch_and_flags_are_checked(script: str, tmp_path: Path) -> None:
    path = TOOLS / script
    code = (
        "import atexit, runpy, sys; sys.argv[1:] = ['--help'];"
        "atexit.register(lambda: sys.stderr.write(str('torch' in sys.modules)));"
        f"runpy.run_path({str(path)!r}, run_name='__main__')"
    )
    result = command("-c", code, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "False")
    assert "--output" in result.stdout
    wrong = command(path, "--wrong-flag", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "--wrong-flag" in wrong.stderr or "required" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.extended
def test_commands_work_from_any_folder(site: Path, trained: Path) -> None:
    bad = command(TOOLS / "train_det.py", "tiny.yaml", "optim.lrr=1", cwd=site)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: ")
    assert bad.stderr.count("\n") == 1
    results = ["--results", str(trained / "detections.json")]
    good = command(TOOLS / "eval.py", *results, "data.val.annotations=data/val.json", cwd=site)
    assert (good.returncode, good.stderr) == (0, "")
    assert "ap50" in good.stdout
