"""Run log: console, metrics.jsonl, TensorBoard, and disks that are full."""

import json
import math
import re
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.log import WIDTH, RunLog, make_console, read_metrics


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def lines(directory: Path) -> list[dict[str, Any]]:
    text = (directory / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_step_line_is_plain_and_fits_its_columns(capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(None, is_main=True)
    losses = {f"loss_with_a_long_name_{index}": 0.5 for index in range(10)}
    log.step(20, 1000, losses, lr=0.02, images_per_second=12.34)
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= WIDTH
    assert re.fullmatch(r"step 20/1000  .*", text.splitlines()[0])
    assert all(line.startswith("     ") for line in text.splitlines()[1:])
    words = text.split("  ")
    assert [word.strip() for word in words if word.strip()][1:-3] == [
        f"{name} 0.5" for name in losses
    ]
    assert re.search(r"lr 0\.02  12\.3 images/s  eta 0:00:\d\d\n$", text)


def test_remaining_time_counts_from_the_resumed_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 100.0, 120.0, 130.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    log = RunLog(None, is_main=True)
    log.truncate_after(500)
    for step in (510, 520):
        log.step(step, 1000, {}, lr=0.1, images_per_second=1.0)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("eta 0:16:20")  # 490 steps of 2 s
    assert second.endswith("eta 0:12:00")  # 480 steps of 1.5 s


def test_numbers_are_written_to_the_file_and_to_tensorboard(tmp_path: Path) -> None:
    log = RunLog(tmp_path, is_main=True)
    log.step(1, 4, {"loss": 2.0}, lr=0.1, images_per_second=3.0)
    log.step(2, 4, {"loss": math.nan}, lr=0.1, images_per_second=3.0)
    log.evaluation(2, {"ap": 0.25, "ap/cat": 0.5})
    log.images(2, [np.zeros((4, 5, 3), dtype=np.uint8)], "val")
    log.close()
    assert lines(tmp_path) == [
        {"kind": "train", "step": 1, "loss": 2.0, "lr": 0.1, "images_per_second": 3.0},
        {"kind": "train", "step": 2, "loss": None, "lr": 0.1, "images_per_second": 3.0},
        {"kind": "eval", "step": 2, "ap": 0.25, "ap/cat": 0.5},
    ]
    events = EventAccumulator(str(tmp_path)).Reload()
    scalars = {"train/loss", "train/lr", "train/images_per_second", "eval/ap", "eval/ap/cat"}
    assert set(events.Tags()["scalars"]) == scalars
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    assert events.Tags()["images"] == ["val/0"]
    assert (tmp_path / "pictures" / "val_00.png").exists()


def test_resumed_run_drops_later_records(tmp_path: Path) -> None:
    log = RunLog(tmp_path, is_main=True)
    log.truncate_after(0)  # no file yet
    for step in (1, 2, 3):
        log.step(step, 4, {"loss": float(step)}, lr=0.1, images_per_second=3.0)
    log.close()
    # TensorBoard reads files in the order of their names: second, host, process, counter. The
    # counter is compared as text, so files of the same second may be read out of order.
    (first,) = tmp_path.glob("events.out.tfevents.*")
    first.rename(first.with_name(first.name.replace("tfevents.", "tfevents.0")))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # a kill in the middle of a line
    resumed = RunLog(tmp_path, is_main=True)
    resumed.truncate_after(2)
    resumed.step(3, 4, {"loss": 30.0}, lr=0.1, images_per_second=3.0)
    resumed.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 1), (2, 2), (3, 30)]
    events = EventAccumulator(str(tmp_path)).Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert scalars == [(1, 1), (2, 2), (3, 30)]


def test_evaluation_shows_the_overall_numbers_or_the_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = RunLog(None, is_main=True)
    log.evaluation(5, {"ap": 0.25, "ap/cat": 0.5})
    assert capsys.readouterr().out == "evaluation at step 5  ap 0.25\n"
    table = Table("class", "ap")
    table.add_row("x" * 80, "0.5")
    log.evaluation(5, {"ap": 0.25}, table)
    text = capsys.readouterr().out
    assert "x" * 80 in text
    assert "evaluation" not in text


def test_notes_are_printed_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[bold]a/b.yaml[/bold]: expected [1, 2] :smile: " + "long, " * 60 + "end"
    RunLog(None, is_main=True).note(text)
    assert capsys.readouterr().out == text + "\n"


def test_other_processes_are_silent(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log = RunLog(tmp_path, is_main=False)
    log.note("x")
    log.step(1, 2, {"loss": 1.0}, lr=0.1, images_per_second=1.0)
    log.evaluation(1, {"ap": 0.5})
    log.images(1, [np.zeros((4, 5, 3), dtype=np.uint8)], "val")
    log.truncate_after(0)
    assert list(log.progress([1, 2], 2, "reading")) == [1, 2]
    log.close()
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_progress_without_a_terminal_is_an_occasional_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RunLog(None, is_main=True)
    assert list(log.progress(range(3), 3, "reading")) == [0, 1, 2]
    assert capsys.readouterr().out == ""
    clock = iter([0.0, 20.0, 40.0, 60.0, 80.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert list(log.progress(range(4), 4, "reading")) == [0, 1, 2, 3]
    assert capsys.readouterr().out == "reading 2/4  eta 0:00:40\nreading 4/4  eta 0:00:00\n"


@pytest.fixture
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.usefixtures("_terminal")
def test_progress_on_a_terminal_is_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(None, is_main=True)
    assert list(log.progress(range(3), 3, "reading")) == [0, 1, 2]
    text = capsys.readouterr().out
    assert "reading" in text
    assert "3/3" in text


@pytest.mark.usefixtures("_terminal")
def test_terminal_has_colours_unless_disabled(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    RunLog(None, is_main=True).step(1, 2, {"loss": 1.0}, lr=0.1, images_per_second=1.0)
    assert "\x1b[1;36m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    RunLog(None, is_main=True).step(1, 2, {"loss": 1.0}, lr=0.1, images_per_second=1.0)
    assert "36m" not in capsys.readouterr().out


def test_full_disk_does_not_end_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = RunLog(tmp_path, is_main=True)
    for step in (1, 2):
        log.step(step, 4, {"loss": 2.0}, lr=0.1, images_per_second=3.0)
    (tmp_path / "metrics.jsonl").unlink()  # there is space again
    log.evaluation(2, {"ap": 0.5})
    log.close()
    assert [(line["kind"], line["step"]) for line in lines(tmp_path)] == [
        ("train", 1),
        ("train", 2),
        ("eval", 2),
    ]
    output = capsys.readouterr().out
    assert output.count("metrics.jsonl cannot be written, the run continues: No space left") == 1


def test_removed_folder_does_not_end_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path / "run", is_main=True)
    for step in (1, 2):
        log.step(step, 4, {"loss": 2.0}, lr=0.1, images_per_second=3.0)
        log.images(step, [np.zeros((4, 5, 3), dtype=np.uint8)], "val")
    log.close()
    output = capsys.readouterr().out
    for what in ("metrics.jsonl", "TensorBoard's events", "val_00.png"):
        assert output.count(f"{what} cannot be written, the run continues: ") == 1
    assert "metrics.jsonl lacks 2 lines" in output


@pytest.fixture
def fill_disk() -> Iterator[Callable[[], None]]:
    """Return a function that limits the size of all files to a few bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_tensorboard_continues_in_a_new_file_after_a_failure(
    tmp_path: Path, fill_disk: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = RunLog(tmp_path, is_main=True)
    log.step(1, 4, {"loss": 1.0}, lr=0.1, images_per_second=3.0)
    fill_disk()
    log.step(2, 4, {"loss": 1.5}, lr=0.1, images_per_second=3.0)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.step(3, 4, {"loss": 2.0}, lr=0.1, images_per_second=3.0)
    log.close()
    assert "TensorBoard's events cannot be written, the run continues: " in capsys.readouterr().out
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1), (3, 2)]


def test_later_records_are_dropped_even_if_the_first_write_failed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    log = RunLog(run, is_main=True)
    log.step(1, 4, {"loss": 1.0}, lr=0.1, images_per_second=3.0)
    log.step(2, 4, {"loss": 9.0}, lr=0.1, images_per_second=3.0)
    log.close()
    (first,) = run.glob("events.out.tfevents.*")
    first.rename(first.with_name(first.name.replace("tfevents.", "tfevents.0")))
    resumed = RunLog(run, is_main=True)
    resumed.truncate_after(1)
    run.rename(tmp_path / "away")
    resumed.step(2, 4, {"loss": 8.0}, lr=0.1, images_per_second=3.0)
    (tmp_path / "away").rename(run)
    resumed.step(3, 4, {"loss": 3.0}, lr=0.1, images_per_second=3.0)
    resumed.close()
    events = EventAccumulator(str(run)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1), (3, 3)]


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = '{"kind": "train", "step": 1, "loss": 2.0}'
    bad = ['{"kind": "tr', "[1]", '{"kind": "train"}', '{"kind": [], "step": 1}', "[" * 10_000]
    path.write_bytes("\n".join([good, *bad]).encode() + b"\n\xff\xfe")
    records, num_damaged = read_metrics(path)
    assert records == [json.loads(good)]
    assert num_damaged == 6


@pytest.mark.usefixtures("_terminal")
def test_progress_bar_moves_between_log_lines_on_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = RunLog(None, is_main=True)
    for step in range(1, 4):
        log.advance(step, 4)
    log.step(3, 4, {"loss": 1.0}, lr=0.1, images_per_second=1.0)
    log.close()
    text = capsys.readouterr().out
    assert "training" in text
    assert "3/4" in text


def test_a_narrow_table_breaks_words_and_loses_none(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("class", "objects", "median side")
    table.add_row("photosynthesis", "123456", "12.5")
    make_console(width=24).print(table, soft_wrap=False)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 24 for line in lines)
    cells = [line.split("│")[1].strip() for line in lines if "│" in line]
    assert "".join(cells) == "photosynthesis"
    assert "…" not in "".join(lines)
