"""The trackers' own packages, without a network: what they store, and that they resume."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

from engine.trainer import fit
from tests.engine.test_trainer import config
from tests.engine.toy import ToyTask


def wandb_has_it(folder: Path, run_id: str) -> None:
    runs = sorted((folder / "run" / "wandb").glob("offline-run-*"))
    assert [path.name.rpartition("-")[2] for path in runs] == [run_id, run_id]
    assert [len(list(path.rglob("media/images/predictions/*.png"))) for path in runs] == [2, 2]


def mlflow_has_it(folder: Path, run_id: str) -> None:
    ((run,),) = ((folder / "mlflow").glob(f"*/{run_id}"),)
    losses = (run / "metrics" / "train" / "square").read_text().splitlines()
    assert [int(line.split()[2]) for line in losses] == [3, 6, 9, 12]  # time, value, step
    assert (run / "params" / "loop.max_steps").read_text() == "6"
    assert "max_steps: 12\n" in (run / "artifacts" / "config.yaml").read_text()
    assert len(list((run / "artifacts" / "images").glob("predictions*.png"))) == 4


def trackio_has_it(folder: Path, run_id: str) -> None:
    with closing(sqlite3.connect(folder / "trackio" / "resdet.db")) as database:
        rows = database.execute(
            "select run_name, step, cast(metrics as blob) from metrics"
        ).fetchall()
    assert {name for name, _, _ in rows} == {run_id}
    assert [step for _, step, text in rows if b"train/square" in text] == [3, 6, 9, 12]
    assert len(list((folder / "trackio" / "media").rglob("*.png"))) == 4


STORED: dict[str, Callable[[Path, str], None]] = {
    "wandb": wandb_has_it,
    "mlflow": mlflow_has_it,
    "trackio": trackio_has_it,
}


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


@pytest.mark.extended
@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=needs(each)) for each in ("wandb", "mlflow", "trackio")]
)
def test_package_gets_everything_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow-skinny has no other local store
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    task, output = ToyTask(), tmp_path / "run"
    fit(task, config(max_steps=6, drawn_images=2, tracker=name), output=output)
    fit(task, config(drawn_images=2, tracker=name), output=output, resume=True)
    said = [line for line in capsys.readouterr().out.splitlines() if "loop.tracker=" in line]
    assert [line for line in said if "6 of 6 records sent" in line] == said[1::2]
    run_id = json.loads((output / "tracker.json").read_text())[name]
    assert all(f": run {run_id}" in line for line in said[::2])
    STORED[name](tmp_path, run_id)
