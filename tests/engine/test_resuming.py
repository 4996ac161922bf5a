"""Resuming on the toy task: finished runs continued, and runs that a scheduler starts again."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checksum import write_with_checksum
from engine.config import dump_config
from engine.errors import UserError
from engine.locks import FolderLock
from engine.resuming import LOCK_WAIT_S, rate_change_note
from engine.schema import RunConfig, ScheduleConfig
from engine.trainer import fit
from tests.engine.test_run_folder import holder  # noqa: F401  a fixture
from tests.engine.test_run_lifecycle import GetsWorse, Unreadable, newest
from tests.engine.test_trainer import config, lines, weights
from tests.engine.toy import ToyTask


def with_schedule(settings: RunConfig, **schedule: Any) -> RunConfig:
    return settings.model_copy(update={"schedule": ScheduleConfig(**schedule)})


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_continued_equals_a_longer_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    kept: dict[str, Any] = {"log_every": 1, "export": "last"}
    short, long = (
        with_schedule(config(max_steps=steps, **kept), kind="constant", warmup_steps=2)
        for steps in (4, 8)
    )
    fit(ToyTask(), short, output=run)
    capsys.readouterr()
    metrics = fit(ToyTask(), long, output=run, resume=True)
    said = capsys.readouterr().out
    assert metrics["score"] == fit(ToyTask(), long, output=whole)["score"]
    torch.testing.assert_close(weights(run), weights(whole), rtol=0, atol=0)
    names = ("step", "loss", "lr")
    trained = [[[x[name] for name in names] for x in lines(f, "train")] for f in (run, whole)]
    assert trained[0] == trained[1]
    assert [line["step"] for line in lines(run, "eval")] == [4, 8]
    assert [line["step"] for line in lines(run, "final")] == [8]
    assert json.loads((run / "metrics.json").read_text())["score"] == metrics["score"]
    assert (run / "config.yaml").read_text() == dump_config(long)
    assert "resumed with a changed setting: loop.max_steps: 4 -> 8" in said
    assert "resumed at step 4\n" in said
    assert "the constant schedule does not depend on loop.max_steps" in said.replace("\n", " ")


def test_a_continued_cosine_is_laid_over_all_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for steps in (4, 9):
        settings = with_schedule(config(max_steps=steps, log_every=1), kind="cosine")
        fit(ToyTask(), settings, output=tmp_path, resume=steps == 9)
    said = capsys.readouterr().out
    rates = [line["lr"] for line in lines(tmp_path, "train")]
    # half of the peak at the middle of 9 steps, step 5; before, 0 at the last of 4
    assert rates[3:5] == pytest.approx([0.0, 0.025])
    assert (
        "learning rate of step 5: 0.025, of step 4: 0; the cosine schedule spans 9 steps, before 4"
    ) in said


@pytest.mark.parametrize(
    ("before", "after", "step", "expected"),
    [
        ({}, {}, 5, None),
        ({}, {"seed": 4}, 5, None),
        ({}, {"loop": {"max_steps": 20}}, 0, None),
        ({}, {"optim": {"lr": 0.5}, "loop": {"max_steps": 10}}, 10, None),
        (
            {"schedule": {"milestones": [0.5]}},
            {"schedule": {"milestones": [0.5]}, "loop": {"max_steps": 20}},
            8,
            "learning rate of step 9: 0.02, of step 8: 0.002; the steps schedule spans 20 steps, "
            "before 10",
        ),
        (
            {"schedule": {"milestones": [5]}},
            {"schedule": {"milestones": [5]}, "loop": {"max_steps": 20}},
            8,
            "learning rate of step 9: 0.002, of step 8: 0.002; the steps schedule does not depend "
            "on loop.max_steps",
        ),
        (
            {"optim": {"reference_batch_size": 16}},
            {"optim": {"reference_batch_size": 16}, "loop": {"max_steps": 10, "batch_size": 8}},
            8,
            "learning rate of step 9: 0.01, of step 8: 0.02; the steps schedule does not depend on "
            "loop.max_steps",
        ),
    ],
    ids=["equal", "seed", "no step before", "none after", "fractions", "milestones", "batch size"],
)
def test_the_note_on_the_rate(
    before: dict[str, Any], after: dict[str, Any], step: int, expected: str | None
) -> None:
    old, new = (
        RunConfig.model_validate({"loop": {"max_steps": 10}, **values})
        for values in (before, after)
    )
    assert rate_change_note(old, new, step=step) == expected


def test_a_rate_that_no_step_would_use_is_refused(tmp_path: Path) -> None:
    fit(ToyTask(), config(), output=tmp_path)
    before = files(tmp_path)
    with pytest.raises(
        UserError, match=r"finished at step 12, where optim.lr no .* loop.max_steps=N, above 12$"
    ):
        fit(ToyTask(), config(lr=0.1), output=tmp_path, resume=True)
    assert files(tmp_path) == before
    # settings of the evaluation and of the export do matter
    fit(ToyTask(), config(export="last"), output=tmp_path, resume=True)
    fit(ToyTask(), config(lr=0.1, export="last", max_steps=14), output=tmp_path, resume=True)
    assert newest(tmp_path)["progress"]["step"] == 14


def test_a_run_out_of_patience_continues_with_more_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def settings(patience: int, **loop: Any) -> RunConfig:
        return config(eval_every=2, patience=patience, **loop)

    fit(GetsWorse(), settings(1), output=tmp_path)
    stopped = newest(tmp_path)["progress"]["step"]
    assert stopped < 12
    fit(GetsWorse(), settings(1), output=tmp_path, resume=True)
    assert "to train further: --resume loop.patience=N, above 1, or null" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"where loop.max_steps no longer matters; .*patience=N"):
        fit(GetsWorse(), settings(1, max_steps=20), output=tmp_path, resume=True)
    fit(GetsWorse(), settings(2), output=tmp_path, resume=True)
    assert newest(tmp_path)["progress"]["step"] > stopped


def test_a_start_that_wrote_no_checkpoint_is_repeated_in_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Killed(BaseException):
        """Ends the process's work without a checkpoint."""

    class KilledData(Unreadable):
        def load(self, index: int, seed: int, batch_shape: None = None) -> tuple[int, torch.Tensor]:
            try:
                return super().load(index, seed)
            except UserError as error:
                raise Killed from error

    settings = config(checkpoint_every=1000, log_every=1)
    run, whole = tmp_path / "run", tmp_path / "whole"
    with pytest.raises(Killed):
        fit(ToyTask(KilledData()), settings, output=run, auto_resume=True, replace=True)
    assert lines(run, "train")
    (run / "checkpoints").mkdir()  # as if killed while the first checkpoint was written
    (run / "checkpoints" / "step_00000006.pt.partial").write_bytes(b"half")
    said = capsys.readouterr().out
    assert "run: no checkpoint to resume from: starting a new run" in said
    fit(ToyTask(), settings, output=run, auto_resume=True, replace=True)
    assert "the earlier start wrote no checkpoint: starting again at step 0" in (
        capsys.readouterr().out.replace("\n", " ")
    )
    fit(ToyTask(), settings, output=whole)
    torch.testing.assert_close(weights(run), weights(whole), rtol=0, atol=0)
    steps = [[line["step"] for line in lines(folder, "train")] for folder in (run, whole)]
    assert steps[0] == steps[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"]
    assert not list(run.rglob("*.partial"))


@pytest.mark.parametrize(
    "damaged", [["step_00000012"], ["best"], ["step_00000012", "best"]], ids=str
)
def test_a_restarted_job_resumes_from_the_checkpoint_before_a_damaged_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damaged: list[str]
) -> None:
    settings = config(checkpoint_every=4, eval_every=4, keep_checkpoints=2, log_every=1)
    run, whole = tmp_path / "run", tmp_path / "whole"
    for folder in (run, whole):
        fit(ToyTask(), settings, output=folder)
    content = {}
    for name in damaged:
        path = run / "checkpoints" / f"{name}.pt"
        content[name] = path.read_bytes()[:-100]
        path.write_bytes(content[name])
    capsys.readouterr()
    fit(ToyTask(), settings, output=run, auto_resume=True, replace=True)
    said = capsys.readouterr().out.replace("\n", " ")
    for name in damaged:
        aside = f"{name}.pt.damaged"
        assert f"its end is missing or altered; renamed to {aside}" in said
        assert (run / "checkpoints" / aside).read_bytes() == content[name]
    assert ("resumed at step 8" in said) == ("step_00000012" in damaged)
    torch.testing.assert_close(weights(run), weights(whole), rtol=0, atol=0)
    steps = [[line["step"] for line in lines(folder, "train")] for folder in (run, whole)]
    assert steps[0] == steps[1]


def test_a_job_whose_checkpoints_are_all_damaged_ends_with_one_line(tmp_path: Path) -> None:
    settings = config(checkpoint_every=4, keep_checkpoints=2)
    fit(ToyTask(), settings, output=tmp_path)
    for path in (tmp_path / "checkpoints").glob("step_*.pt"):
        path.write_bytes(path.read_bytes()[:-100])
    for _ in range(2):  # also when it is restarted once more
        with pytest.raises(UserError, match=r"step_00000008.pt: .*there is no earlier one$"):
            fit(ToyTask(), settings, output=tmp_path, auto_resume=True, replace=True)
    # without the flag nothing is renamed
    before = files(tmp_path)
    with pytest.raises(UserError, match="damaged"):
        fit(ToyTask(), settings, output=tmp_path, resume=True)
    assert files(tmp_path) == before


def test_a_file_that_its_checksum_confirms_is_not_set_aside(tmp_path: Path) -> None:
    settings = config(checkpoint_every=4, keep_checkpoints=2)
    fit(ToyTask(), settings, output=tmp_path)
    with (tmp_path / "checkpoints" / "step_00000012.pt").open("wb") as file:
        write_with_checksum(file, lambda writer: writer.write(b"loading this fails"))
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"step_00000012.pt: expected a checkpoint"):
        fit(ToyTask(), settings, output=tmp_path, auto_resume=True, replace=True)
    assert files(tmp_path) == before


def test_many_differences_from_an_earlier_run_are_counted(tmp_path: Path) -> None:
    fit(ToyTask(), config(), output=tmp_path)
    other = config(
        lr=0.1,
        max_steps=20,
        log_every=2,
        eval_every=3,
        checkpoint_every=7,
        patience=2,
        ema_decay=0.9,
    )
    with pytest.raises(UserError, match=r"config \(optim.lr: 0.05 -> 0.1; .*; and 2 more\)"):
        fit(ToyTask(), other, output=tmp_path, auto_resume=True, replace=True)


@pytest.mark.parametrize("changed", [False, True], ids=["same config", "another config"])
def test_weights_without_checkpoints_are_moved_aside(tmp_path: Path, changed: bool) -> None:
    run = tmp_path / "run"
    fit(ToyTask(), config(), output=run)
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    before = (run / "model.safetensors").read_bytes()
    settings = config(lr=0.01) if changed else config()
    fit(ToyTask(), settings, output=run, auto_resume=True, replace=True)
    assert (tmp_path / "run.1" / "model.safetensors").read_bytes() == before
    assert newest(run)["progress"]["step"] == 12


def test_files_of_the_user_stay_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    fit(ToyTask(), config(), output=tmp_path, auto_resume=True, replace=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text("a: b\n")
    with pytest.raises(UserError, match="got one with another"):
        fit(ToyTask(), config(), output=other, auto_resume=True, replace=True)
    assert (other / "config.yaml").read_text() == "a: b\n"


def test_a_restarted_job_waits_for_its_earlier_process(
    tmp_path: Path,
    holder: subprocess.Popen[str],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    end = threading.Timer(0.5, holder.send_signal, [signal.SIGKILL])
    end.start()
    fit(ToyTask(), config(), output=tmp_path, auto_resume=True, replace=True)
    end.join()
    holder.communicate(timeout=10)
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"in use by process {holder.pid} " in said
    assert f"waiting up to {LOCK_WAIT_S} s" in said
    assert newest(tmp_path)["progress"]["step"] == 12


def test_the_wait_is_bounded(tmp_path: Path, holder: subprocess.Popen[str]) -> None:  # noqa: F811
    said: list[str] = []
    with pytest.raises(UserError, match=r"in use by process \d+ on .* after 0.3 s; stop that"):
        FolderLock(tmp_path, wait_s=0.3, say=said.append)
    assert len(said) == 1
    holder.kill()
    holder.communicate(timeout=10)


DIFFERENT_VIEWS = """
import os, sys
from pathlib import Path
rank, folder = os.environ["RANK"], Path(sys.argv[1])
from engine.trainer import fit
from tests.engine.test_trainer import config
from tests.engine.toy import ToyTask
from engine.errors import UserError
output = folder / ("run" if rank == "0" else "stale")
try:
    fit(ToyTask(), config(max_steps=20), output=output, resume=True, device="cpu")
except UserError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.extended
def test_processes_that_see_different_checkpoints_stop(tmp_path: Path) -> None:
    for name, steps in (("run", 10), ("stale", 5)):
        fit(ToyTask(), config(max_steps=steps), output=tmp_path / name)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    program = tmp_path / "program.py"
    program.write_text(DIFFERENT_VIEWS)
    done = subprocess.run(
        [*torchrun, "--nproc-per-node=2", str(program), str(tmp_path)],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "expected the checkpoint of step 10, as process 0 reads, got that of step 5" in (
        done.stdout
    ), done.stderr
    assert "process 0 of 0..1: another process ended" in done.stdout
