"""The compare command: finished and interrupted runs, damaged and foreign files."""

import json
from pathlib import Path
from typing import Any

import pytest

from detection.commands import compare
from detection.config import SCHEMAS
from engine.config import dump_config, load_config
from tests.cli.conftest import Call


def write_run(
    folder: Path, metrics: Any, lines: list[Any], *, tail: str = "", exported: bool = True
) -> None:
    folder.mkdir()
    text = metrics if isinstance(metrics, str) else json.dumps(metrics)
    (folder / "metrics.json").write_text(text)
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + tail)
    if exported:
        (folder / "model.safetensors").touch()


def train(step: int) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": 1.5}


def scored(step: int, ap: float | None) -> dict[str, Any]:
    return {"kind": "eval", "step": step, "ap": ap, "ap50": 0.5, "num_skipped": 0}


def row_of(out: str) -> list[str]:
    """Return the table's cells for the run `run`: steps, step of the scores, AP."""
    line = next(line for line in out.splitlines() if "│ run " in line and "steps" not in line)
    return [cell.strip() for cell in line.strip("│").split("│")][1:4]


FINISHED = [train(2), scored(2, 0.25), train(4), scored(4, 0.125)]
RUNS: dict[str, tuple[dict[str, Any], list[Any], dict[str, Any], list[str], list[str]]] = {
    "finished": ({"ap": 0.125}, FINISHED, {}, ["4", "4", "12.5"], []),
    "best weights exported": ({"ap": 0.25}, FINISHED, {}, ["4", "2", "25.0"], []),
    "equal scores": ({"ap": 0.5}, [scored(1, 0.5), scored(2, 0.5)], {}, ["2", "2", "50.0"], []),
    "null": ({"ap": None}, [scored(1, None)], {}, ["1", "1", "-"], []),
    "killed": (
        {"ap": 0.25},
        [train(2), scored(2, 0.25), train(4)],
        {"exported": False},
        ["4", "2", "25.0"],
        ["run: unfinished: logged up to step 4, evaluated up to 2"],
    ),
    "killed before scores were written": (
        {"ap": 0.25},
        FINISHED,
        {"exported": False},
        ["4", "2", "25.0"],
        ["run: unfinished: logged up to step 4, evaluated up to 4"],
    ),
    "resumed for longer": (
        {"ap": 0.125},
        [*FINISHED, train(6)],
        {},
        ["6", "4", "12.5"],
        ["unfinished: logged up to step 6, evaluated up to 4"],
    ),
    "half a line": (
        {"ap": 0.125},
        FINISHED,
        {"tail": '{"kind": "train", "st'},
        ["4", "4", "12.5"],
        ["run: damaged lines of metrics.jsonl, skipped: 1"],
    ),
    "strange lines": (
        {"ap": 0.125},
        [*FINISHED, [], 7, {"kind": "eval"}, {"step": "9"}, {"step": True}, {"step": -1}, None],
        {"tail": "\0\0\0\n[" + "[" * 100_000 + "\n" + '{"step": 1' + "0" * 5000 + "}\n"},
        ["4", "4", "12.5"],
        ["run: damaged lines of metrics.jsonl, skipped: 10"],
    ),
    "scores without a log line": (
        {"ap": 0.75},
        FINISHED,
        {},
        ["4", "-", "75.0"],
        ["run: its scores match no evaluation in metrics.jsonl"],
    ),
    "no lines": ({"ap": 0.75}, [], {"exported": False}, ["-", "-", "75.0"], ["unfinished"]),
}


@pytest.mark.parametrize(("metrics", "lines", "more", "row", "notes"), RUNS.values(), ids=RUNS)
def test_scores_are_shown_with_their_step(
    site: Path,
    call: Call,
    metrics: dict[str, Any],
    lines: list[Any],
    more: dict[str, Any],
    row: list[str],
    notes: list[str],
) -> None:
    write_run(site / "run", metrics, lines, **more)
    outcome = call(compare, "run")
    assert (outcome.code, outcome.err) == (0, "")
    assert row_of(outcome.out) == row
    for note in notes:
        assert note in outcome.out
    assert ("run: " in outcome.out) == bool(notes)


FOREIGN = {
    "truncated": ('{"ap": 0.', "metrics.json: not valid JSON: line 1"),
    "empty": ("", "metrics.json: not valid JSON: line 1"),
    "list": ("[1]", "metrics.json: expected an object of scores, got list"),
    "text": ('{"ap": "good"}', "metrics.json: ap: expected a number from 0 to 1, got 'good'"),
    "bool": ('{"top1": true}', "metrics.json: top1: expected a number from 0 to 1, got True"),
    "list of numbers": ('{"ap": [1]}', "metrics.json: ap: expected a number"),
    "infinite": ('{"ap": Infinity}', "metrics.json: ap: expected a number from 0 to 1, got inf"),
    "huge": ('{"ap": 1' + "0" * 400 + "}", "metrics.json: ap: expected a number from 0 to 1"),
    "digits": ('{"ap": 1' + "0" * 5000 + "}", "metrics.json: not valid JSON: too many digits"),
    "depth": ("[" * 100_000, "metrics.json: not valid JSON"),
}


@pytest.mark.parametrize(("text", "message"), FOREIGN.values(), ids=FOREIGN)
def test_invalid_scores_are_one_line(site: Path, call: Call, text: str, message: str) -> None:
    write_run(site / "run", text, FINISHED)
    outcome = call(compare, "run")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert message in outcome.err


@pytest.mark.parametrize("name", ["absent", "x" * 300, "a\0b", "tiny.yaml", "data"])
def test_a_path_that_is_not_a_run_is_one_line(site: Path, call: Call, name: str) -> None:
    outcome = call(compare, name)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "Traceback" not in outcome.err


def test_nan_is_shown_like_null(site: Path, call: Call) -> None:
    write_run(site / "run", '{"ap": NaN}', [scored(1, None)])
    assert row_of(call(compare, "run").out) == ["1", "1", "-"]


def write_detector(folder: Path, results: list[dict[str, Any]], *settings: str, ap: float) -> None:
    """Write a finished run on the tiny data set, with the given COCO results."""
    write_run(folder, {"ap": ap}, [scored(4, ap)])
    config = load_config("tiny.yaml", settings, schemas=SCHEMAS)
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "detections.json").write_text(json.dumps(results))


def result(image_id: int, category_id: int, box: list[float], score: float) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


RIGHT = [result(10, 4, [5, 5, 30, 40], 0.9), result(11, 9, [20, 10, 25, 25], 0.8)]


def cells_of(out: str, metric: str) -> list[str]:
    lines = [[cell.strip() for cell in line.split("│")] for line in out.splitlines()]
    return next(line[2:-1] for line in lines if len(line) > 2 and line[1] == metric)


def test_two_runs_get_the_paired_difference(site: Path, call: Call) -> None:
    write_detector(site / "a", RIGHT, ap=1.0)
    write_detector(site / "b", RIGHT[:1], ap=0.5)
    outcome = call(compare, "a", "b")
    assert (outcome.code, outcome.err) == (0, "")
    assert "100.0" in outcome.out  # the table of scores
    assert "3 images" in outcome.out
    assert cells_of(outcome.out, "ap50")[:3] == ["100.00", "50.00", "-50.00"]
    same = call(compare, "a", "a").out
    assert cells_of(same, "ap")[2:] == ["+0.00", "+0.00 to +0.00", "1.000"]


def test_two_results_files(site: Path, call: Call) -> None:
    for name, results in (("a.json", RIGHT), ("b.json", RIGHT[:1])):
        (site / name).write_text(json.dumps(results))
    before = (site / "a.json").read_bytes()
    outcome = call(compare, "a.json", "b.json", "data.val.annotations=data/val.json")
    assert cells_of(outcome.out, "ap75")[:3] == ["100.00", "50.00", "-50.00"]
    assert (site / "a.json").read_bytes() == before
    outcome = call(compare, "a.json", "b.json")
    assert outcome.code == 2
    assert "a.json: expected data.val.annotations=PATH as well, got none" in outcome.err
    outcome = call(compare, "a.json", "a.json", "b.json", "data.val.annotations=data/val.json")
    assert outcome.code == 2
    assert "expected two results files or runs, got 3" in outcome.err


@pytest.mark.parametrize("fault", ["no detections", "other images", "other objects", "no config"])
def test_runs_that_cannot_be_paired_keep_their_table(
    site: Path, call: Call, document: dict[str, Any], fault: str
) -> None:
    if fault == "other images":
        document["images"] = document["images"][:2]
    document["annotations"][0]["id"] = 7
    (site / "other.json").write_text(json.dumps(document))
    write_detector(site / "a", RIGHT, ap=1.0)
    others = ["data.val.annotations=other.json"] if fault.startswith("other") else []
    write_detector(site / "b", RIGHT, *others, ap=0.5)
    if fault in ("no detections", "no config"):
        (site / "b" / ("detections.json" if fault == "no detections" else "config.yaml")).unlink()
    outcome = call(compare, "a", "b")
    assert (outcome.code, outcome.err) == (0, "")
    assert "50.0" in outcome.out
    line = next(line for line in outcome.out.splitlines() if "no paired difference: " in line)
    expected = {
        "no detections": "b/detections.json: expected the detections of an evaluated run, got none",
        "other images": "expected two runs with the same images, got 3 and 2; 1 are only in the",
        "other objects": "expected two runs with the same objects, got 2 and 2; 1 are only in the",
        "no config": "b/config.yaml: ",
    }
    assert expected[fault] in line


def test_three_seeds_get_mean_and_standard_deviation(site: Path, call: Call) -> None:
    for seed, ap in enumerate((0.25, 0.5, 0.75)):
        write_detector(site / f"run{seed}", RIGHT, f"seed={seed}", ap=ap)
    outcome = call(compare, "run0", "run1", "run2")
    assert (outcome.code, outcome.err) == (0, "")
    assert cells_of(outcome.out, "ap") == ["50.00", "25.00"]
    write_detector(site / "other", RIGHT, "seed=3", "optim.lr=0.5", ap=0.5)
    write_detector(site / "twice", RIGHT, "seed=1", ap=0.5)
    for name, message in (
        ("other", "no mean over seeds: other: expected the config of run0 with another seed, got "),
        ("twice", "no mean over seeds: twice: expected a seed of its own, got 1 in run1 as well"),
    ):
        outcome = call(compare, "run0", "run1", name)
        assert outcome.code == 0
        assert message in outcome.out
        assert "std" not in outcome.out


def test_two_runs_of_the_trained_detector(trained: Path, call: Call, site: Path) -> None:
    outcome = call(compare, trained, trained, "data.val.annotations=data/val.json")
    assert cells_of(outcome.out, "ap50")[2:] == ["+0.00", "+0.00 to +0.00", "1.000"]
