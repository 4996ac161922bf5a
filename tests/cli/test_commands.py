"""The commands of the README on a tiny data set: what they write, and that they hang together."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import pytest

from detection.commands import evaluate as eval_tool
from detection.commands import predict
from detection.commands import train as train_det
from engine.checkpoint import read_safetensors
from tests.cli.conftest import Call

TOOLS = Path(train_det.__file__).parent


def read_json(path: Path) -> dict[str, float]:
    content: dict[str, float] = json.loads(path.read_text())
    return content


def command(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a tool in a process of its own, in a folder that is not the repository's."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    line = [sys.executable, *map(str, words)]
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


@pytest.mark.parametrize("place", [".", "checkpoints/step_00000002.pt", "model.safetensors"])
def test_evaluation_repeats_the_final_metrics(
    site: Path, trained: Path, call: Call, place: str
) -> None:
    outcome = call(eval_tool, trained / place, "--output", "scores", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert "ap50" in outcome.out
    assert read_json(site / "scores" / "metrics.json") == read_json(trained / "metrics.json")
    assert (site / "scores" / "detections.json").read_bytes() == (
        trained / "detections.json"
    ).read_bytes()


def test_evaluation_is_kept_beside_its_run(site: Path, trained: Path, call: Call) -> None:
    shutil.copytree(trained, site / "run")
    words = ["loop.eval_batch_size=1", "--device", "cpu"]
    assert call(eval_tool, site / "run" / "checkpoints" / "best.pt", *words).code == 0
    scores = read_json(site / "run" / "eval" / "metrics.json")
    assert scores == pytest.approx(read_json(trained / "metrics.json"), nan_ok=True)


def test_results_file_scores_as_its_run(site: Path, trained: Path, call: Call) -> None:
    results = trained / "detections.json"
    words = ["data.val.annotations=data/val.json", "--output", "scores"]
    outcome = call(eval_tool, "--results", results, *words)
    assert outcome.code == 0, outcome.err
    assert "detections in 3 of 3 images" in outcome.out
    assert read_json(site / "scores" / "metrics.json") == read_json(trained / "metrics.json")
    before = sorted(site.rglob("*"))
    assert call(eval_tool, "--results", results, words[0]).code == 0
    assert sorted(site.rglob("*")) == before  # nothing is written unless asked


@pytest.mark.parametrize("flag", [(), ("--all-images",)], ids=["default", "by its flag"])
def test_all_annotated_images_are_scored(site: Path, call: Call, flag: tuple[str, ...]) -> None:
    found = {"image_id": 10, "category_id": 4, "bbox": [5, 5, 30, 40], "score": 0.5}
    (site / "found.json").write_text(json.dumps([found]))
    words = ["--results", "found.json", "data.val.annotations=data/val.json", "--output"]
    whole = call(eval_tool, *words, "all", *flag)
    assert "2 annotated images that the results do not name are scored as images" in whole.out
    named = call(eval_tool, *words, "named", "--named-images")
    assert "2 annotated images that the results do not name are not scored" in named.out
    scores = [read_json(site / name / "metrics.json") for name in ("all", "named")]
    assert [each["num_images"] for each in scores] == [3, 1]
    assert [each["ap"] for each in scores] == pytest.approx([0.5, 1.0])
    both = call(eval_tool, *words, "both", "--all-images", "--named-images")
    assert (both.code, both.err.count("\n")) == (2, 1)


def test_predictions_are_scored_by_their_names(site: Path, trained: Path, call: Call) -> None:
    """predict.py numbers images from 0, in the order of their names."""
    document = json.loads((site / "data" / "val.json").read_text())
    for image in document["images"]:  # 0 to 2, and none where predict.py has it
        image["id"] = (image["id"] - 10 + 1) % 3
    for annotation in document["annotations"]:
        annotation["image_id"] = (annotation["image_id"] - 10 + 1) % 3
    (site / "data" / "val.json").write_text(json.dumps(document))
    words = ["--output", "scores", "--device", "cpu", "data.val.annotations=data/val.json"]
    assert call(eval_tool, trained, *words).code == 0
    assert call(predict, trained, "data", "--output", "found", "--device", "cpu").code == 0
    words = ["--results", "found/detections.json", words[-1], "--output", "again"]
    outcome = call(eval_tool, *words)
    assert outcome.code == 0, outcome.err
    assert "images are matched by file_name: 15 of 15 image_ids are not those" in outcome.out
    again = read_json(site / "again" / "metrics.json")
    assert again == read_json(site / "scores" / "metrics.json")


def test_images_without_annotations_get_detections(site: Path, trained: Path, call: Call) -> None:
    """As COCO's image_info_test-dev2017.json: the results are for others to score."""
    document = json.loads((site / "data" / "val.json").read_text())
    ids = {image["file_name"]: image["id"] for image in document["images"]}
    expected = (trained / "detections.json").read_bytes()
    for is_there in (True, False):
        del document["annotations"]
        document |= {"annotations": []} if is_there else {}
        (site / "test-dev.json").write_text(json.dumps(document))
        words = ["data.val.annotations=test-dev.json", "--output", "test-dev", "--device", "cpu"]
        outcome = call(eval_tool, trained, *words)
        assert (outcome.code, outcome.err) == (0, "")
        assert "nothing to score: test-dev.json has no annotations" in outcome.out
        scores = read_json(site / "test-dev" / "metrics.json")
        assert scores["ap"] is scores["ap/cow"] is None
        assert (site / "test-dev" / "detections.json").read_bytes() == expected
        document["annotations"] = []
    assert {each["image_id"] for each in json.loads(expected)} == set(ids.values())


def test_prediction_writes_results_and_pictures(site: Path, trained: Path, call: Call) -> None:
    (site / "more").mkdir()
    shutil.copy(site / "data" / "0.jpg", site / "more" / "0.jpg")
    before = {path: path.read_bytes() for path in site.rglob("*.jpg")}
    words = ["data", "more/0.jpg", "--output", "data/found", "--device", "cpu"]
    outcome = call(predict, trained, *words)
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
    # a second time it does not take its own drawings for pictures
    assert call(predict, trained, *words).out == outcome.out


def test_drawings_spare_what_lies_in_their_folder(site: Path, trained: Path, call: Call) -> None:
    (site / "mine").mkdir()
    (site / "mine" / "0.jpg").write_bytes(b"mine")
    assert call(predict, trained, "data/0.jpg", "--output", "mine", "--device", "cpu").code == 0
    assert (site / "mine" / "0.jpg").read_bytes() == b"mine"
    assert (site / "mine" / "0_2.jpg").exists()


def test_a_run_may_be_called_after_a_setting(site: Path, trained: Path, call: Call) -> None:
    shutil.copytree(trained, site / "lr=0.1")
    assert call(eval_tool, "lr=0.1", "--output", "scores", "--device", "cpu").code == 0


def test_score_leaves_out_what_is_lower(site: Path, trained: Path, call: Call) -> None:
    for score in ("0", "0.999"):
        call(predict, trained, "data", "--output", score, "--score", score)
    counts = [len(json.loads((site / s / "detections.json").read_text())) for s in ("0", "0.999")]
    assert counts[0] > counts[1] == 0


def test_resumed_run_takes_its_own_config(site: Path, trained: Path, call: Call) -> None:
    shutil.copytree(trained, site / "run")
    (site / "tiny.yaml").unlink()
    outcome = call(train_det, "--resume", "--output", "run", "loop.max_steps=3", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert "loop.max_steps: 2 -> 3" in outcome.out
    assert "step 3/3" in outcome.out
    lines = (site / "run" / "metrics.jsonl").read_text().splitlines()
    assert sorted({json.loads(line)["step"] for line in lines}) == [1, 2, 3]
    assert not (site / "run.1").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ((), ()),
        (
            ("train", "val"),
            (
                "training data are not those of the steps up to 2",
                "validation data are not those of the scores up to step 2",
            ),
        ),
    ],
)
def test_a_resumed_run_says_that_its_data_have_changed(
    site: Path, trained: Path, call: Call, changed: tuple[str, ...], said: tuple[str, ...]
) -> None:
    shutil.copytree(trained, site / "run")
    for split in ("train", "val"):
        path = site / "data" / f"{split}.json"
        document = json.loads(path.read_text())
        document["annotations"][0]["bbox"][0] += split in changed
        path.write_text(json.dumps(document, indent=1))  # other bytes alone are no change
    outcome = call(train_det, "--resume", "--output", "run", "loop.max_steps=3", "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.count("resumed with other data: ") == len(said)
    for line in said:
        assert f"resumed with other data: {line}" in outcome.out


def test_earlier_run_is_moved_aside(site: Path, trained: Path, call: Call) -> None:
    shutil.copytree(trained, site / "runs" / "tiny")
    (site / "runs" / "tiny.1").mkdir()
    outcome = call(train_det, "tiny.yaml", "loop.max_steps=1", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert "runs/tiny: the run that lay there is now runs/tiny.2" in outcome.out
    kept = (site / "runs" / "tiny.2" / "model.safetensors").read_bytes()
    assert kept == (trained / "model.safetensors").read_bytes()
    assert (site / "runs" / "tiny" / "checkpoints" / "step_00000001.pt").exists()


def test_keys_may_stand_behind_flags(site: Path, call: Call) -> None:
    words = ["--device", "cpu", "loop.max_steps=1", "--output", "run", "seed=3"]
    assert call(train_det, "tiny.yaml", *words).code == 0
    assert "seed: 3" in (site / "run" / "config.yaml").read_text()


def test_folder_without_a_run_is_left_alone(site: Path, call: Call) -> None:
    (site / "out").mkdir()
    (site / "out" / "notes.txt").write_text("mine")
    words = ["tiny.yaml", "loop.max_steps=1", "--output", "out", "--device", "cpu"]
    assert call(train_det, *words).code == 0
    assert (site / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("tool", [train_det, eval_tool, predict], ids=lambda tool: tool.__name__)
def test_help_is_quick_and_flags_are_checked(tool: ModuleType, tmp_path: Path) -> None:
    path = Path(str(tool.__file__))
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


def test_commands_work_from_any_folder(site: Path, trained: Path) -> None:
    bad = command(TOOLS / "train_det.py", "tiny.yaml", "optim.lrr=1", cwd=site)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: ")
    assert bad.stderr.count("\n") == 1
    results = ["--results", str(trained / "detections.json")]
    good = command(TOOLS / "eval.py", *results, "data.val.annotations=data/val.json", cwd=site)
    assert (good.returncode, good.stderr) == (0, "")
    assert "ap50" in good.stdout
